"""Several seeds side by side: python jobs/compare_seeds.py --reports REPORT REPORT ..."""

from __future__ import annotations

import sys

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.seeds_job import SEEDS_PRESETS, SeedsConfig, seeds_preset


def main() -> None:
    """Parses the command line, compares, says where it lies."""
    _, config = parse(
        SeedsConfig,
        sys.argv[1:],
        job="jobs/compare_seeds.py",
        presets={key: (each.summary, each.config) for key, each in SEEDS_PRESETS.items()},
        default_preset="default",
        choose=seeds_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.compare_seeds import compare

    outcome = compare(config, say=say)
    say(f"  {len(outcome.rows):,} numbers, page and picture: {outcome.report}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="compare_seeds",
            run_id=outcome.run_id,
            checkpoint="",
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


if __name__ == "__main__":
    run_job(main)
