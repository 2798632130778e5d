"""What an attack run came to, and the checks that a sceptic would make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.core.attacks.auto_attack import RAND_DRAWS
from cdvae_ray.core.threat_models import ThreatModel
from cdvae_ray.evaluation.intervals import wilson
from cdvae_ray.storage.adversarial_set import AdversarialImages

Outcome = Literal["pass", "fail", "warn", "not run"]

BALL_TOLERANCE = 1e-6
"""How far beyond epsilon, by rounding, a perturbation may reach."""
MASKED_FRACTION = 0.01
"""Images that may resist with a vanished gradient, or unperturbed, before a check fails."""
UNPERTURBED = "no image resists unperturbed"
UNTOLD = "AutoAttack's package does not tell"
STABLE_POINTS = 0.5
"""Change of robust accuracy, in points, that twice the steps or more starts may bring."""
EOT_SAMPLES = 20
"""Draws a gradient that an attack on a stochastic model needs at least."""


@dataclass(frozen=True, kw_only=True)
class AttackCounts:
    """Counts and sums over images, which add up over shards."""

    images: int = 0
    clean_correct: int = 0
    robust: int = 0
    """Right before and after the attack; an image that is wrong without one is not robust."""
    success: int = 0
    nonfinite_pixels: int = 0
    outside_box: int = 0
    outside_ball: int = 0
    nonfinite_gradient: int = 0
    zero_gradient: int = 0
    masked: int = 0
    """Robust, with a gradient that vanished."""
    unperturbed: int = 0
    """Robust, and returned as it came."""
    linf: float = 0.0
    l2: float = 0.0
    norm: float = 0.0
    timed_images: int = 0
    """Images that were attacked in this job, and not found in storage."""
    seconds: float = 0.0
    """What the actors took for these, added up."""

    def __add__(self, other: AttackCounts) -> AttackCounts:
        return AttackCounts(
            **{
                field.name: getattr(self, field.name) + getattr(other, field.name)
                for field in dataclasses.fields(self)
            }
        )


def count_rows(
    rows: AdversarialImages, config: AttackConfig, *, seconds: float | None = None
) -> AttackCounts:
    """Counts the rows of a shard.

    Args:
        rows: of one attack.
        config: the attack's settings, for its radius.
        seconds: the attack took; None: the rows were found in storage.
    """
    correct = rows.clean_predictions == rows.labels
    robust = correct & (rows.predictions == rows.labels)
    finite = torch.isfinite(rows.images).flatten(1).all(dim=1)
    inside = ((rows.images >= 0) & (rows.images <= 1)).flatten(1).all(dim=1)
    beyond = torch.zeros_like(correct)
    if config.epsilon is not None:
        beyond = ~(rows.norm <= config.epsilon + BALL_TOLERANCE)
    return AttackCounts(
        images=len(rows),
        clean_correct=int(correct.sum()),
        robust=int(robust.sum()),
        success=int(rows.success.sum()),
        nonfinite_pixels=int((~finite).sum()),
        outside_box=int((finite & ~inside).sum()),
        outside_ball=int(beyond.sum()),
        nonfinite_gradient=int(rows.nonfinite_gradient.sum()),
        zero_gradient=int(rows.zero_gradient.sum()),
        masked=int((robust & rows.zero_gradient).sum()),
        unperturbed=int((robust & (rows.linf == 0)).sum()),
        linf=float(rows.linf.double().sum()),
        l2=float(rows.l2.double().sum()),
        norm=float(rows.norm.double().sum()),
        timed_images=0 if seconds is None else len(rows),
        seconds=seconds or 0.0,
    )


class StrengthCounts(NamedTuple):
    """Robust images among the first `images` ones, by the attack and by variants of it."""

    images: int
    robust: int
    one_step: int | None
    twice_the_steps: int | None
    five_starts: int | None


class Check(NamedTuple):
    """A line of the sanity report."""

    check: str
    outcome: Outcome
    detail: str


def strength_variants(config: AttackConfig) -> dict[str, AttackConfig]:
    """What an iterative attack is compared with: one step, twice the steps, five starts."""
    if not config.is_iterative_climb or config.num_steps is None:
        return {}
    variants = {"twice_the_steps": dataclasses.replace(config, num_steps=2 * config.num_steps)}
    if config.ball is not None:
        variants["one_step"] = dataclasses.replace(config, num_steps=1, step_size=config.epsilon)
    if config.attack in ("pgd", "margin_pgd") and config.keep != "last":
        variants["five_starts"] = dataclasses.replace(config, num_restarts=5)
    return variants


def sanity_checks(
    counts: AttackCounts,
    config: AttackConfig,
    *,
    is_stochastic: bool,
    eot_samples: int,
    strength: StrengthCounts | None,
    why_no_strength: str,
) -> list[Check]:
    """The report of one attack.

    Args:
        counts: over all its images.
        config: of the attack.
        is_stochastic: whether the attacked function answers at random.
        eot_samples: draws a gradient that the attack took.
        strength: what the variants came to; None: they were not run.
        why_no_strength: what to say then.
    """
    n = counts.images
    checks = [
        _none("pixels are finite", counts.nonfinite_pixels, n),
        _none("pixels are in [0, 1]", counts.outside_box, n),
        _none(f"perturbations are within epsilon + {BALL_TOLERANCE:g}", counts.outside_ball, n)
        if config.epsilon is not None
        else Check("perturbations are within epsilon", "not run", "the attack has no epsilon"),
        *_gradient_checks(counts, config),
        Check(UNPERTURBED, "not run", "the attack gives back unchanged what it does not fool")
        if config.gives_back_resisting
        else _few(UNPERTURBED, counts.unperturbed, n, None),
        _determinism(is_stochastic, eot_samples, config),
    ]
    return checks + _strength_checks(strength, why_no_strength, config)


def _gradient_checks(counts: AttackCounts, config: AttackConfig) -> list[Check]:
    names = "gradients are finite", "no image resists by a gradient of zero"
    if not config.tells_of_gradients:
        return [Check(name, "not run", UNTOLD) for name in names]
    n = counts.images
    return [
        _none(names[0], counts.nonfinite_gradient, n),
        _few(names[1], counts.masked, n, counts.zero_gradient),
    ]


def _none(check: str, found: int, count: int) -> Check:
    return Check(check, "fail" if found else "pass", f"{found} of {count} images are not so")


def _few(check: str, found: int, count: int, anywhere: int | None) -> Check:
    outcome: Outcome = "fail" if found > MASKED_FRACTION * count else "pass"
    more = "" if anywhere is None else f"; {anywhere} met one on the way"
    limit = f"at most {MASKED_FRACTION:.0%} may"
    return Check(check, outcome, f"{found} of {count} images do, {limit}{more}")


def gradient_draws(config: AttackConfig, eot_samples: int) -> int:
    """Draws that each gradient is a mean of: those that were asked for, or AutoAttack's own."""
    return RAND_DRAWS if config.version == "rand" and eot_samples == 1 else eot_samples


def _determinism(is_stochastic: bool, eot_samples: int, config: AttackConfig) -> Check:
    check = "the attacked function is deterministic, or met in expectation"
    if not is_stochastic:
        return Check(check, "pass", "5 forward passes agree")
    draws = gradient_draws(config, eot_samples)
    if draws >= EOT_SAMPLES:
        return Check(check, "pass", f"stochastic; {draws} draws a gradient")
    return Check(
        check,
        "warn",
        f"STOCHASTIC AND ATTACKED WITH {draws} DRAW(S) A GRADIENT: the numbers overstate "
        f"robustness; set --eot-samples {EOT_SAMPLES} or more",
    )


def _strength_checks(
    strength: StrengthCounts | None, why_none: str, config: AttackConfig
) -> list[Check]:
    names = {
        "one_step": "iterations are at least as strong as one step of length epsilon",
        "twice_the_steps": f"twice the steps change robust accuracy by < {STABLE_POINTS} points",
        "five_starts": f"five starts change robust accuracy by < {STABLE_POINTS} points",
    }
    checks = []
    for variant, name in names.items():
        found: int | None = None if strength is None else getattr(strength, variant)
        if strength is None or found is None:
            why = why_none if strength is None else f"does not apply to {config.label}"
            checks.append(Check(name, "not run", why))
            continue
        n, robust = strength.images, strength.robust
        points = 100 * (found - robust) / n
        passes = robust <= found if variant == "one_step" else abs(points) < STABLE_POINTS
        checks.append(
            Check(
                name,
                "pass" if passes else "fail",
                f"robust: {robust} of {n} images, the variant {found} ({points:+.2f} points)",
            )
        )
    return checks


# --- tables -------------------------------------------------------------------------------------


class AttackRow(NamedTuple):
    """A line of the attack table; it cannot be made without its threat model."""

    attack: str
    threat_model: str
    images: int
    clean_accuracy: float
    accuracy: float
    low: float
    """Lower end of the accuracy's 95 % interval."""
    high: float
    success_rate: float
    """Of the images that were right before."""
    mean_linf: float
    mean_l2: float
    images_per_second: float
    """Of one actor, in this job; 0 where all was found in storage."""
    settings: str
    set_digest: str


def attack_row(
    config: AttackConfig, counts: AttackCounts, *, threat_model: ThreatModel, set_digest: str
) -> AttackRow:
    """The row of one attack."""
    n = counts.images
    interval = wilson(counts.robust, n)
    return AttackRow(
        attack=config.label,
        threat_model=f"{threat_model.name}: {threat_model.attacked}",
        images=n,
        clean_accuracy=counts.clean_correct / n,
        accuracy=counts.robust / n,
        low=interval.low,
        high=interval.high,
        success_rate=1 - counts.robust / counts.clean_correct if counts.clean_correct else 0.0,
        mean_linf=counts.linf / n,
        mean_l2=counts.l2 / n,
        images_per_second=counts.timed_images / counts.seconds if counts.seconds else 0.0,
        settings=config.describe(),
        set_digest=set_digest,
    )


def attack_columns(rows: Sequence[AttackRow]) -> dict[str, list[Any]]:
    """The table as columns, for tracking."""
    return {name: [getattr(row, name) for row in rows] for name in AttackRow._fields}


def attack_text(rows: Sequence[AttackRow]) -> str:
    """The table as aligned text, with threat model and settings below."""
    width = max(len("attack"), *(len(row.attack) for row in rows))
    lines = [
        f"  {'attack':<{width}}      n   clean  attacked  95 % interval    fooled  "
        "|delta|_inf  |delta|_2"
    ]
    for number, row in enumerate(rows, start=1):
        lines.append(
            f"  {row.attack:<{width}}  {row.images:>5}  {row.clean_accuracy:6.2%}"
            f"   {row.accuracy:6.2%}  [{row.low:6.2%}, {row.high:6.2%}]  {row.success_rate:7.2%}"
            f"  {row.mean_linf:11.4f}  {row.mean_l2:9.4f}  [{number}]"
        )
    for threat_model in dict.fromkeys(row.threat_model for row in rows):
        lines.append(f"  threat model: {threat_model}")
    lines += [f"  [{number}] {row.settings}" for number, row in enumerate(rows, start=1)]
    return "\n".join(lines)


def check_columns(checks: dict[str, list[Check]]) -> dict[str, list[Any]]:
    """The sanity report of all attacks as columns, for tracking."""
    flat = [(attack, *check) for attack, lines in checks.items() for check in lines]
    names = ("attack", *Check._fields)
    return {name: [line[place] for line in flat] for place, name in enumerate(names)}


def check_text(checks: dict[str, list[Check]]) -> str:
    """The sanity report as text: what failed in full, what passed in a line a check."""
    attacks = list(checks)
    lines = []
    by_name: dict[str, list[tuple[str, Check]]] = {}
    for attack, report in checks.items():
        for check in report:
            by_name.setdefault(check.check, []).append((attack, check))
    for name, found in by_name.items():
        passed = [attack for attack, check in found if check.outcome == "pass"]
        for outcome in ("fail", "warn"):
            lines += [
                f"  {outcome:<8}{name} ({attack}: {check.detail})"
                for attack, check in found
                if check.outcome == outcome
            ]
        if passed:
            whom = "" if len(passed) == len(attacks) else f" ({', '.join(passed)})"
            lines.append(f"  {'pass':<8}{name}{whom}")
        unrun: dict[str, list[str]] = {}
        for attack, check in found:
            if check.outcome == "not run":
                unrun.setdefault(check.detail, []).append(attack)
        lines += [
            f"  {'not run':<8}{name} ({', '.join(whom)}: {why})" for why, whom in unrun.items()
        ]
    return "\n".join(lines)


def failed(checks: dict[str, list[Check]]) -> list[str]:
    """The lines that failed, as "attack: check (detail)", of every line that failed."""
    return [
        f"{attack}: {check.check} ({check.detail})"
        for attack, lines in checks.items()
        for check in lines
        if check.outcome == "fail"
    ]
