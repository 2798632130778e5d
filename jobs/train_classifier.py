"""Trains a plain classifier on images or on their parts G(x) or R(x).

python jobs/train_classifier.py [preset] [--flag value ...]
"""

from __future__ import annotations

import sys

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.classifier_job import ClassifierJobConfig
from cdvae_ray.config.classifier_presets import CLASSIFIER_PRESETS, classifier_preset
from cdvae_ray.evaluation.results import table_text


def main() -> None:
    """Parses the command line, trains, prints and writes the final numbers."""
    name, config = parse(
        ClassifierJobConfig,
        sys.argv[1:],
        job="jobs/train_classifier.py",
        presets={key: (each.summary, each.config) for key, each in CLASSIFIER_PRESETS.items()},
        default_preset="quickstart",
        choose=classifier_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.train_classifier import train_classifier

    outcome = train_classifier(config, preset=name, say=say)
    say("")
    say(table_text(outcome.table))
    say(f"\n  numbers: {outcome.results}\n  checkpoint: {outcome.checkpoint}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="train_classifier",
            run_id=outcome.run_id,
            checkpoint=outcome.checkpoint,
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


if __name__ == "__main__":
    run_job(main)
