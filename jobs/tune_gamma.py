"""Searches gamma (Figure 4): python jobs/tune_gamma.py [preset] --classifier ... [--flag ...]"""

from __future__ import annotations

import sys
from pathlib import Path

from cdvae_ray.cli import conclude_search, parse, run_job, say
from cdvae_ray.config.search_job import OBJECTIVE_PRESETS, ObjectiveSearchConfig, gamma_preset

SPACE = Path(__file__).parents[1] / "tune_spaces" / "gamma.toml"


def main() -> None:
    """Parses the command line, searches, prints the table."""
    name, config = parse(
        ObjectiveSearchConfig,
        sys.argv[1:],
        job="jobs/tune_gamma.py",
        presets={key: (each.summary, each.config) for key, each in OBJECTIVE_PRESETS.items()},
        default_preset="quickstart",
        choose=gamma_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.tune import tune_objective

    outcome = tune_objective(config, parameter="gamma", space=SPACE, preset=name, say=say)
    conclude_search(outcome, job="tune_gamma", summary=config.summary)


if __name__ == "__main__":
    run_job(main)
