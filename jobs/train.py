"""Trains a CD-VAE and evaluates it: python jobs/train.py [preset] [--flag value ...]"""

from __future__ import annotations

import sys

from cdvae_ray.cli import conclude_training, parse, run_job, say
from cdvae_ray.config.presets import PRESETS, preset
from cdvae_ray.config.train_job import TrainConfig


def main() -> None:
    """Parses the command line, trains, prints and writes the final numbers."""
    name, config = parse(
        TrainConfig,
        sys.argv[1:],
        job="jobs/train.py",
        presets={key: (each.summary, each.config) for key, each in PRESETS.items()},
        default_preset="quickstart",
        choose=preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.train import train

    outcome = train(config, preset=name, say=say)
    conclude_training(outcome, job="train", stored="picture and numbers", summary=config.summary)


if __name__ == "__main__":
    run_job(main)
