"""Extracts detectors' features: python jobs/extract_features.py [preset] [--flag value ...]"""

from __future__ import annotations

import sys

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.feature_job import FEATURE_PRESETS, FeatureJobConfig, feature_preset


def main() -> None:
    """Parses the command line, extracts, prints where the features lie."""
    name, config = parse(
        FeatureJobConfig,
        sys.argv[1:],
        job="jobs/extract_features.py",
        presets={key: (each.summary, each.config) for key, each in FEATURE_PRESETS.items()},
        default_preset="digits",
        choose=feature_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.extract import extract_features

    outcome = extract_features(config, preset=name, say=say)
    widths = ", ".join(f"{layer} {width}" for layer, width in outcome.layers.items())
    say(f"\n  features: {outcome.features}\n  layers: {widths}")
    say(
        f"  the network is right on {outcome.metrics['accuracy']:.2%} of "
        f"{outcome.metrics['images']:,.0f} images"
    )
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="extract_features",
            run_id=outcome.run_id,
            checkpoint=config.checkpoint or config.classifier,
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


if __name__ == "__main__":
    run_job(main)
