"""Searches the margin c: python jobs/tune_margin.py [preset] --cdvae ... --classifier ... [...]"""

from __future__ import annotations

import sys
from pathlib import Path

from cdvae_ray.cli import conclude_search, parse, run_job, say
from cdvae_ray.config.search_job import MARGIN_PRESETS, MarginSearchConfig, margin_preset

SPACE = Path(__file__).parents[1] / "tune_spaces" / "margin.toml"


def main() -> None:
    """Parses the command line, searches, prints the table."""
    name, config = parse(
        MarginSearchConfig,
        sys.argv[1:],
        job="jobs/tune_margin.py",
        presets={key: (each.summary, each.config) for key, each in MARGIN_PRESETS.items()},
        default_preset="quickstart",
        choose=margin_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.tune import tune_margin

    outcome = tune_margin(config, space=SPACE, preset=name, say=say)
    conclude_search(outcome, job="tune_margin", summary=config.summary)


if __name__ == "__main__":
    run_job(main)
