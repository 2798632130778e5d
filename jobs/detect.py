"""Detects adversarial images on x and on R(x): python jobs/detect.py [preset] [--flag value ...]"""

from __future__ import annotations

import sys

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.detection_job import (
    DETECTION_PRESETS,
    DetectionJobConfig,
    detection_preset,
)
from cdvae_ray.evaluation.adaptive_table import adaptive_text
from cdvae_ray.evaluation.detection_table import detection_text


def main() -> None:
    """Parses the command line, detects, prints the tables."""
    name, config = parse(
        DetectionJobConfig,
        sys.argv[1:],
        job="jobs/detect.py",
        presets={key: (each.summary, each.config) for key, each in DETECTION_PRESETS.items()},
        default_preset="quickstart",
        choose=detection_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.detect import detect

    outcome = detect(config, preset=name, say=say)
    shown = [
        row
        for row in outcome.rows
        if (row.mode, row.subset) in (("same_attack", "successful"), ("attack_free", "successful"))
    ]
    if shown:
        say(f"\n{detection_text(shown)}")
    if outcome.adaptive:
        say(f"\n{adaptive_text(outcome.adaptive)}")
    for reason in outcome.skipped:
        say(f"  not measured: {reason}")
    say("")
    for label, folder in outcome.detectors.items():
        say(f"  detector {label}: {folder}")
    say(f"  report, tables and pictures: {outcome.report}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="detect",
            run_id=outcome.run_id,
            checkpoint=config.checkpoint,
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


if __name__ == "__main__":
    run_job(main)
