"""Trains a defence of other people's, to compare ours with.

python jobs/train_baseline.py [preset] [--flag value ...]
"""

from __future__ import annotations

import sys

from cdvae_ray.cli import conclude_training, parse, run_job, say
from cdvae_ray.config.baseline_job import BaselineJobConfig
from cdvae_ray.config.baseline_presets import BASELINE_PRESETS, baseline_preset


def main() -> None:
    """Parses the command line, trains, prints and writes the final numbers."""
    name, config = parse(
        BaselineJobConfig,
        sys.argv[1:],
        job="jobs/train_baseline.py",
        presets={key: (each.summary, each.config) for key, each in BASELINE_PRESETS.items()},
        default_preset="quickstart",
        choose=baseline_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.train_baseline import train_baseline

    outcome = train_baseline(config, preset=name, say=say)
    conclude_training(outcome, job="train_baseline", stored="numbers", summary=config.summary)


if __name__ == "__main__":
    run_job(main)
