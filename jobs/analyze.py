"""Tables 1-3, Figures 2 and 3: python jobs/analyze.py [preset] --checkpoint ... [--flag ...]"""

from __future__ import annotations

import sys

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.study_job import STUDY_PRESETS, StudyJobConfig, study_preset
from cdvae_ray.evaluation.study_table import study_text


def main() -> None:
    """Parses the command line, compares parts, prints the tables."""
    name, config = parse(
        StudyJobConfig,
        sys.argv[1:],
        job="jobs/analyze.py",
        presets={key: (each.summary, each.config) for key, each in STUDY_PRESETS.items()},
        default_preset="quickstart",
        choose=study_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.analyze import analyze

    outcome = analyze(config, preset=name, say=say)
    say(f"\n{study_text(outcome.tables)}\n")
    say(f"  report, tables and pictures: {outcome.report}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="analyze",
            run_id=outcome.run_id,
            checkpoint=config.checkpoint,
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


if __name__ == "__main__":
    run_job(main)
