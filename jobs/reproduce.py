"""Tables and figures of the paper: python jobs/reproduce.py [preset] --table 4 --figure 2 3"""

from __future__ import annotations

import sys
from pathlib import Path

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.reproduce_job import REPRODUCE_PRESETS, ReproduceConfig, reproduce_preset
from cdvae_ray.evaluation.headlines import headline_text

SPACE = Path(__file__).parents[1] / "tune_spaces" / "gamma.toml"


def main() -> None:
    """Parses the command line, makes what is missing, prints the numbers at a glance."""
    name, config = parse(
        ReproduceConfig,
        sys.argv[1:],
        job="jobs/reproduce.py",
        presets={key: (each.summary, each.config) for key, each in REPRODUCE_PRESETS.items()},
        default_preset="quickstart",
        choose=reproduce_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.reproduce import PAGE, reproduce

    outcome = reproduce(config, space=SPACE, preset=name, say=say)
    say(f"\n{headline_text(outcome.headlines)}\n")
    say(f"  the page to look at: {outcome.report}/{PAGE}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="reproduce",
            run_id=outcome.run_id,
            checkpoint="",
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


if __name__ == "__main__":
    run_job(main)
