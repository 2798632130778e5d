"""Searches beta of Eq. (1): python jobs/tune_beta.py [preset] --classifier ... [--flag ...]"""

from __future__ import annotations

import sys
from pathlib import Path

from cdvae_ray.cli import conclude_search, parse, run_job, say
from cdvae_ray.config.search_job import OBJECTIVE_PRESETS, ObjectiveSearchConfig, beta_preset

SPACE = Path(__file__).parents[1] / "tune_spaces" / "beta.toml"


def main() -> None:
    """Parses the command line, searches, prints the table."""
    name, config = parse(
        ObjectiveSearchConfig,
        sys.argv[1:],
        job="jobs/tune_beta.py",
        presets={key: (each.summary, each.config) for key, each in OBJECTIVE_PRESETS.items()},
        default_preset="quickstart",
        choose=beta_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.tune import tune_objective

    outcome = tune_objective(config, parameter="beta", space=SPACE, preset=name, say=say)
    conclude_search(outcome, job="tune_beta", summary=config.summary)


if __name__ == "__main__":
    run_job(main)
