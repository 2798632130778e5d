"""Trains a plain classifier on images or on their parts G(x) or R(x).

python jobs/train_classifier.py [preset] [--flag value ...]
"""

from __future__ import annotations

import sys

from cdvae_ray.cli import conclude_training, parse, run_job, say
from cdvae_ray.config.classifier_job import ClassifierJobConfig
from cdvae_ray.config.classifier_presets import CLASSIFIER_PRESETS, classifier_preset


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
    conclude_training(outcome, job="train_classifier", stored="numbers", summary=config.summary)


if __name__ == "__main__":
    run_job(main)
