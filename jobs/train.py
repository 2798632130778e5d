"""Trains a CD-VAE and evaluates it: python jobs/train.py [preset] [--flag value ...]"""

from __future__ import annotations

import sys

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.presets import PRESETS, preset
from cdvae_ray.config.train_job import TrainConfig
from cdvae_ray.evaluation.results import table_text


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
    say("")
    say(table_text(outcome.table))
    say(f"\n  picture and numbers: {outcome.results}\n  checkpoint: {outcome.checkpoint}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="train",
            run_id=outcome.run_id,
            checkpoint=outcome.checkpoint,
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


if __name__ == "__main__":
    run_job(main)
