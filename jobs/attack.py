"""Attacks a model and stores adversarial sets: python jobs/attack.py [preset] [--flag value ...]"""

from __future__ import annotations

import sys

from cdvae_ray.cli import parse, run_job, say, write_summary
from cdvae_ray.config.attack import SUITES
from cdvae_ray.config.attack_job import ATTACK_PRESETS, AttackJobConfig, attack_preset
from cdvae_ray.errors import CheckError
from cdvae_ray.evaluation.attack_report import attack_text, check_text, failed


def main() -> None:
    """Parses the command line, attacks, prints the table and the sanity report."""
    name, config = parse(
        AttackJobConfig,
        sys.argv[1:],
        job="jobs/attack.py",
        presets={key: (SUITES[each.suite].summary, each) for key, each in ATTACK_PRESETS.items()},
        default_preset="quick",
        choose=attack_preset,
    )
    # Ray takes a second to import, which the help does not owe.
    from cdvae_ray.runtime.attack import attack

    outcome = attack(config, preset=name, say=say)
    say("")
    say(attack_text(outcome.rows))
    say("\n  sanity report")
    say(check_text(outcome.checks))
    say("")
    for label, folder in outcome.sets.items():
        say(f"  {label}: {folder}")
    say(f"  report and picture: {outcome.report}")
    if outcome.run_id:
        say(f"  MLflow run: {outcome.run_id}  (make ui)")
    if config.summary is not None:
        write_summary(
            config.summary,
            job="attack",
            run_id=outcome.run_id,
            checkpoint=config.checkpoint or config.classifier,
            config_digest=outcome.config_digest,
            metrics=outcome.metrics,
        )
    if (bad := failed(outcome.checks)) and not config.checks.allow_failed:
        raise CheckError(
            "sanity report",
            got=f"{len(bad)} failed lines, the first: {bad[0]}",
            expected="none",
            remedy="look into them, or pass --checks.allow-failed",
        )


if __name__ == "__main__":
    run_job(main)
