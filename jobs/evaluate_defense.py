"""Attacks defences, as in Tables 6 and 7: python jobs/evaluate_defense.py [preset] [--flag ...]"""

from __future__ import annotations

import sys

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.defense_job import DEFENSE_PRESETS, DefenseJobConfig, defense_preset
from cdvae_ray.evaluation.defense_checklist import checklist_text
from cdvae_ray.evaluation.defense_table import defense_text


def main() -> None:
    """Parses the command line, attacks, prints table and checklist."""
    name, config = parse(
        DefenseJobConfig,
        sys.argv[1:],
        job="jobs/evaluate_defense.py",
        presets={key: (each.summary, each.config) for key, each in DEFENSE_PRESETS.items()},
        default_preset="quickstart",
        choose=defense_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.evaluate_defense import evaluate_defense

    outcome = evaluate_defense(config, preset=name, say=say)
    say(f"\n{defense_text(outcome.numbers)}\n\n{checklist_text(outcome.checks)}\n")
    for remark in outcome.remarks:
        say(f"  {remark}")
    say(f"  report, tables and picture: {outcome.report}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="evaluate_defense",
            run_id=outcome.run_id,
            checkpoint=", ".join(config.defenses),
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )


if __name__ == "__main__":
    run_job(main)
