"""The checks that a sceptic would make of a defence's numbers, each of which can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.attack_report import (
    BALL_TOLERANCE,
    EOT_SAMPLES,
    MASKED_FRACTION,
    STABLE_POINTS,
    UNPERTURBED,
    UNTOLD,
    AttackCounts,
    Check,
    Outcome,
    StrengthCounts,
    check_text,
    gradient_draws,
)
from cdvae_ray.evaluation.defense_table import ABOUT_ZERO, AttackedDefense, DefenseOutcomes

LOSSES = ("cross-entropy", "margin", "DLR")
"""What white-box attacks should have climbed, each at least once."""
LARGE_EPSILON = 64 / 255
"""An L-inf radius that no defence should survive."""
ZERO_STRENGTH_KINDS = ("jpeg", "recolor")
"""Attacks whose transform changes an image also at zero strength."""

_NO_WHITE_BOX = "no white-box attack was made"
_NO_BLACK_BOX = "Square was not run"
_SLACK = 1e-9
"""Of comparisons in points, for rounding."""


@dataclass(frozen=True, kw_only=True)
class DefenseEvidence:
    """All that the checklist looks at; what is left out makes its lines "not run".

    Raises:
        DataError: counts of an attack that the outcomes have not, or shares of no images.
    """

    outcomes: DefenseOutcomes
    """Of the defence, image by image."""
    counts: Mapping[tuple[str, str], AttackCounts] = field(default_factory=dict)
    """By threat model and label, of each adversarial set."""
    epsilon_sweep: Sequence[tuple[float, int, int]] | None = None
    """Radius, robust images, images of white-box PGD L-inf; None: not made."""
    strength: Mapping[str, StrengthCounts] = field(default_factory=dict)
    """By the label of a white-box attack: what stronger and weaker variants leave."""
    losses: frozenset[str] = frozenset()
    """That white-box attacks climbed, of LOSSES."""
    zero_strength: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """By label: images right as they are, right after the transform at zero strength, images."""
    black_box: tuple[int, int] | None = None
    """Robust images and images of Square on the defence, its first n; None: not made."""
    eot_samples: int = 1
    """Draws a gradient that the sweep and the variants took."""
    detector_aware: bool = False
    """Whether an attack was made on defence and detector together."""

    def __post_init__(self) -> None:
        known = {(each.threat_model, each.attack.label) for each in self.outcomes.attacks}
        if unknown := [key for key in self.counts if key not in known]:
            raise DataError(
                f"counts of attacks on {self.outcomes.name}",
                got="; ".join(f"{label} ({threat_model})" for threat_model, label in unknown),
                expected="threat models and labels of its outcomes",
                remedy="name the attacks alike in both",
            )
        shares = {
            **{f"epsilon {epsilon:.4g}": n for epsilon, _, n in self.epsilon_sweep or ()},
            **{f"variants of {label}": each.images for label, each in self.strength.items()},
            **{f"{label} at zero strength": n for label, (_, _, n) in self.zero_strength.items()},
            **({"Square": self.black_box[1]} if self.black_box else {}),
        }
        for what, n in shares.items():
            if n < 1:
                raise DataError(
                    f"images of {self.outcomes.name}, {what}",
                    got=n,
                    expected="1 or more",
                    remedy="leave out what was not run",
                )

    @property
    def white_box(self) -> list[AttackedDefense]:
        """Attacks on the defence itself."""
        return [each for each in self.outcomes.attacks if each.is_white_box]

    @property
    def transfer(self) -> list[AttackedDefense]:
        """Attacks on something else."""
        return [each for each in self.outcomes.attacks if not each.is_white_box]


def defense_checklist(evidence: DefenseEvidence) -> list[Check]:
    """The report of one defence: always the same lines, in one order.

    Args:
        evidence: all that was seen of it.
    """
    return [
        _counted(evidence, "pixels are finite", _none(lambda counts: counts.nonfinite_pixels)),
        _counted(evidence, "pixels are in [0, 1]", _none(lambda counts: counts.outside_box)),
        _in_ball(evidence),
        _gradients(
            evidence, "gradients are finite", _none(lambda counts: counts.nonfinite_gradient)
        ),
        _gradients(
            evidence, "no image resists by a gradient of zero", _few(lambda counts: counts.masked)
        ),
        _unperturbed(evidence),
        _determinism(evidence),
        _clean_wrong(evidence),
        _worst_of_all(evidence),
        _white_box_and_transfer(evidence),
        _transfer_and_black_box(evidence),
        _white_box_and_black_box(evidence),
        _monotone(evidence),
        _large_epsilon(evidence),
        *_strength(evidence),
        _losses(evidence),
        _auto_attack(evidence),
        _all_parts(evidence),
        _detector_aware(evidence),
        _labelled(evidence),
        _zero_strength(evidence),
    ]


# --- what attacks counted -----------------------------------------------------------------------

_Judge = Callable[[AttackCounts], tuple[bool, str]]


def _none(found: Callable[[AttackCounts], int]) -> _Judge:
    return lambda counts: (
        found(counts) == 0,
        f"{found(counts)} of {counts.images} images are not so",
    )


def _few(found: Callable[[AttackCounts], int]) -> _Judge:
    return lambda counts: (
        found(counts) <= MASKED_FRACTION * counts.images,
        f"{found(counts)} of {counts.images} images do, at most {MASKED_FRACTION:.0%} may",
    )


def _counted(
    evidence: DefenseEvidence,
    check: str,
    judge: _Judge,
    attacks: Iterable[AttackedDefense] | None = None,
) -> Check:
    """Judges each attack's counts: the line fails with the first that does."""
    wanted = list(evidence.outcomes.attacks if attacks is None else attacks)
    found = [
        (each, counts)
        for each in wanted
        if (counts := evidence.counts.get((each.threat_model, each.attack.label))) is not None
    ]
    wrong = []
    for each, counts in found:
        is_good, detail = judge(counts)
        if not is_good:
            wrong.append(f"{_name(each)}: {detail}")
    missing = [_name(each) for each in wanted if not any(each is other for other, _ in found)]
    images = sum(counts.images for _, counts in found)
    return _judged(
        check,
        wrong=wrong,
        passed=f"{len(found)} adversarial sets, {images} images" if found else "",
        missing=missing,
        why_none="no counts of attacks" if wanted else "no attack was made",
    )


def _gradients(evidence: DefenseEvidence, check: str, judge: _Judge) -> Check:
    every = evidence.outcomes.attacks
    telling = [each for each in every if each.attack.tells_of_gradients]
    if every and not telling:
        return Check(check, "not run", UNTOLD)
    return _counted(evidence, check, judge, telling)


def _unperturbed(evidence: DefenseEvidence) -> Check:
    every = evidence.outcomes.attacks
    moving = [each for each in every if not each.attack.gives_back_resisting]
    if every and not moving:
        return Check(UNPERTURBED, "not run", "every attack gives back what it does not fool")
    return _counted(evidence, UNPERTURBED, _few(lambda counts: counts.unperturbed), moving)


def _judged(
    check: str, *, wrong: Sequence[str], passed: str, missing: Sequence[str], why_none: str
) -> Check:
    """Fails if anything is wrong; passes only where nothing is missing."""
    if wrong:
        return Check(check, "fail", "; ".join(wrong))
    if not passed:
        return Check(check, "not run", why_none)
    if missing:
        return Check(check, "warn", f"{passed}; not known of {', '.join(missing)}")
    return Check(check, "pass", passed)


def _in_ball(evidence: DefenseEvidence) -> Check:
    check = f"perturbations are within epsilon + {BALL_TOLERANCE:g}"
    bounded = [each for each in evidence.outcomes.attacks if each.attack.epsilon is not None]
    if evidence.outcomes.attacks and not bounded:
        return Check(check, "not run", "no attack has an epsilon")
    return _counted(evidence, check, _none(lambda counts: counts.outside_ball), bounded)


def _clean_wrong(evidence: DefenseEvidence) -> Check:
    check = "an image that is wrong without an attack is not robust"
    outcomes = evidence.outcomes
    wrong = []
    for each in outcomes.attacks:
        if revived := int((each.correct & ~outcomes.clean_correct).sum()):
            wrong.append(f"{_name(each)}: {revived} images count all the same")
        counts = evidence.counts.get((each.threat_model, each.attack.label))
        if counts is not None and counts.robust > counts.clean_correct:
            wrong.append(
                f"{_name(each)}: {counts.robust} robust of {counts.clean_correct} that were right"
            )
    return _judged(
        check,
        wrong=wrong,
        passed=f"{len(outcomes.attacks)} attacks" if outcomes.attacks else "",
        missing=(),
        why_none="no attack was made",
    )


def _worst_of_all(evidence: DefenseEvidence) -> Check:
    wrong: list[str] = []
    passed: list[str] = []
    for threat_model, group in evidence.outcomes.by_threat_model().items():
        union = int(torch.stack([each.correct for each in group]).all(dim=0).sum())
        passed.append(f"{_short(threat_model)}: {union}")
        for each in group:
            alone = each.num_robust
            counts = evidence.counts.get((threat_model, each.attack.label))
            # A transferred set's own counts are of another function.
            if counts is not None and each.is_white_box and counts.images == len(each.correct):
                alone = min(alone, counts.robust)
            if union > alone:
                wrong.append(f"{_name(each)}: {alone} images robust, {union} against all attacks")
    n = len(evidence.outcomes.clean_correct)
    return _judged(
        "worst of all is no better than any single attack",
        wrong=wrong,
        passed=f"robust against all, {', '.join(passed)} of {n} images" if passed else "",
        missing=(),
        why_none="no attack was made",
    )


# --- who knows more does more ---------------------------------------------------------------------


def _determinism(evidence: DefenseEvidence) -> Check:
    check = "the defence is deterministic, or met in expectation"
    if not evidence.outcomes.is_stochastic:
        return Check(check, "pass", "its forward passes agree")
    if not evidence.white_box:
        return Check(check, "not run", f"stochastic, but {_NO_WHITE_BOX}")
    draws = {
        _name(each): gradient_draws(each.attack, each.eot_samples) for each in evidence.white_box
    }
    if evidence.strength or evidence.epsilon_sweep:
        draws["sweep and variants"] = evidence.eot_samples
    few = [f"{what} with {count}" for what, count in draws.items() if count < EOT_SAMPLES]
    if few:
        return Check(
            check,
            "fail",
            f"STOCHASTIC AND ATTACKED WITH FEW DRAWS A GRADIENT ({', '.join(few)}): the numbers "
            f"overstate robustness; set --eot-samples {EOT_SAMPLES} or more",
        )
    return Check(check, "pass", f"stochastic; at least {min(draws.values())} draws a gradient")


def _white_box_and_transfer(evidence: DefenseEvidence) -> Check:
    check = "white-box is at least as strong as transfer"
    wrong: list[str] = []
    passed: list[str] = []
    for known in evidence.white_box:
        for transfer in evidence.transfer:
            if known.attack.label != transfer.attack.label:
                continue
            ours, theirs = known.num_robust, transfer.num_robust
            detail = f"{known.attack.label}: robust {ours} white-box, {theirs} by transfer"
            (wrong if ours > theirs else passed).append(detail)
    why_none = "no attack was made both ways" if evidence.white_box else _NO_WHITE_BOX
    return _judged(check, wrong=wrong, passed="; ".join(passed), missing=(), why_none=why_none)


def _transfer_and_black_box(evidence: DefenseEvidence) -> Check:
    return _at_least_black_box(
        evidence,
        "transfer is at least as strong as black-box (Square)",
        [each for each in evidence.transfer if each.attack.ball == "linf"],
        why_none="no transferred attack in L-inf",
    )


def _white_box_and_black_box(evidence: DefenseEvidence) -> Check:
    return _at_least_black_box(
        evidence,
        "white-box is at least as strong as black-box (Square)",
        [each for each in evidence.white_box if each.attack.ball == "linf"],
        why_none="no white-box attack in L-inf",
    )


def _at_least_black_box(
    evidence: DefenseEvidence, check: str, attacks: Sequence[AttackedDefense], *, why_none: str
) -> Check:
    if evidence.black_box is None:
        return Check(check, "not run", _NO_BLACK_BOX)
    if not attacks:
        return Check(check, "not run", why_none)
    square, n = evidence.black_box
    if n > len(evidence.outcomes.clean_correct):
        have = len(evidence.outcomes.clean_correct)
        return Check(check, "not run", f"Square met {n} images, the attacks {have}")
    strongest = min(attacks, key=lambda each: int(each.correct[:n].sum()))
    robust = int(strongest.correct[:n].sum())
    detail = f"robust: {robust} of {n} images ({_name(strongest)}), Square {square}"
    return Check(check, "fail" if robust > square else "pass", detail)


# --- more is stronger -----------------------------------------------------------------------------


def _monotone(evidence: DefenseEvidence) -> Check:
    check = "robust accuracy does not rise with epsilon"
    sweep = sorted(evidence.epsilon_sweep or ())
    if len(sweep) < 2:
        return Check(check, "not run", "no sweep of two radii or more")
    wrong, lowest = [], 1.0
    for epsilon, robust, n in sweep:
        share = robust / n
        if 100 * (share - lowest) > STABLE_POINTS + _SLACK:
            wrong.append(f"{_radius(epsilon)}: {share:.2%} after {lowest:.2%}")
        lowest = min(lowest, share)
    detail = ", ".join(f"{_radius(epsilon)}: {robust / n:.2%}" for epsilon, robust, n in sweep)
    return Check(check, "fail" if wrong else "pass", "; ".join(wrong) or detail)


def _large_epsilon(evidence: DefenseEvidence) -> Check:
    check = "robust accuracy is about 0 at a large epsilon"
    if not evidence.epsilon_sweep:
        return Check(check, "not run", "no sweep of radii")
    epsilon, robust, n = max(evidence.epsilon_sweep)
    if epsilon < LARGE_EPSILON - _SLACK:
        return Check(check, "not run", f"the largest radius is {_radius(epsilon)}, not 64/255")
    detail = f"{robust} of {n} images withstand {_radius(epsilon)}, at most {ABOUT_ZERO:.0%} may"
    return Check(check, "fail" if robust > ABOUT_ZERO * n else "pass", detail)


def _strength(evidence: DefenseEvidence) -> list[Check]:
    names = {
        "one_step": "iterations are at least as strong as one step of length epsilon",
        "twice_the_steps": f"twice the steps change robust accuracy by < {STABLE_POINTS} points",
        "five_starts": f"five starts change robust accuracy by < {STABLE_POINTS} points",
    }
    checks = []
    for variant, name in names.items():
        wrong: list[str] = []
        passed: list[str] = []
        for label, counts in evidence.strength.items():
            found: int | None = getattr(counts, variant)
            if found is None:
                continue
            points = 100 * (found - counts.robust) / counts.images
            detail = (
                f"{label}: robust {counts.robust} of {counts.images} images, the variant {found} "
                f"({points:+.2f} points)"
            )
            holds = counts.robust <= found if variant == "one_step" else abs(points) < STABLE_POINTS
            (passed if holds else wrong).append(detail)
        why_none = (
            "applies to none of the attacks" if evidence.strength else "variants were not run"
        )
        checks.append(
            _judged(name, wrong=wrong, passed="; ".join(passed), missing=(), why_none=why_none)
        )
    return checks


# --- what was run at all --------------------------------------------------------------------------


def _losses(evidence: DefenseEvidence) -> Check:
    check = f"attacked by the losses {', '.join(LOSSES)}"
    if not evidence.losses:
        return Check(check, "not run", _NO_WHITE_BOX if not evidence.white_box else "not known")
    absent = [loss for loss in LOSSES if loss not in evidence.losses]
    detail = f"not by {', '.join(absent)}" if absent else "each at least once, white-box"
    return Check(check, "fail" if absent else "pass", detail)


def _auto_attack(evidence: DefenseEvidence) -> Check:
    expected = "rand" if evidence.outcomes.is_stochastic else "standard"
    wrong: list[str] = []
    passed: list[str] = []
    for each in evidence.white_box:
        if each.attack.attack == "auto_attack":
            version = each.attack.version or "standard"
            right = version == expected
            detail = f"{_name(each)}: {version}" + ("" if right else f", expected {expected}")
            (passed if right else wrong).append(detail)
    return _judged(
        "AutoAttack in full: standard, or rand for a stochastic defence",
        wrong=wrong,
        passed="; ".join(passed),
        missing=(),
        why_none="no white-box AutoAttack was made",
    )


def _all_parts(evidence: DefenseEvidence) -> Check:
    check = "attacked through all of its parts"
    if evidence.white_box:
        labels = ", ".join(each.attack.label for each in evidence.white_box)
        return Check(check, "pass", f"white-box: {labels}")
    if evidence.transfer:
        detail = "only transferred attacks: nothing is known of an adversary who knows the defence"
        return Check(check, "fail", detail)
    return Check(check, "not run", "no attack was made")


def _detector_aware(evidence: DefenseEvidence) -> Check:
    check = "attacked together with a detector"
    if evidence.detector_aware:
        return Check(check, "pass", "an attack knew both")
    return Check(check, "not run", "no attack knew a detector beside the defence")


def _labelled(evidence: DefenseEvidence) -> Check:
    outcomes = evidence.outcomes
    wrong = [
        f"the defence has no {what}"
        for what, value in (("name", outcomes.name), ("digest", outcomes.digest))
        if not value.strip()
    ]
    for each in outcomes.attacks:
        for what, value in (("threat model", each.threat_model), ("set digest", each.set_digest)):
            if not value.strip():
                wrong.append(f"{each.attack.label} has no {what}")
    return _judged(
        "every number is labelled: defence, threat model, n, seed, digests",
        wrong=wrong,
        passed=f"{len(outcomes.attacks)} attacks, n = {len(outcomes.clean_correct)}, seed "
        f"{outcomes.seed}, defence {outcomes.digest}",
        missing=(),
        why_none="",
    )


def _zero_strength(evidence: DefenseEvidence) -> Check:
    wrong: list[str] = []
    passed: list[str] = []
    for label, (clean, after, n) in evidence.zero_strength.items():
        points = 100 * (after - clean) / n
        detail = f"{label}: right {clean} of {n} images, {after} after it ({points:+.2f} points)"
        (passed if abs(points) <= STABLE_POINTS + _SLACK else wrong).append(detail)
    needed = [
        each.attack.label
        for each in evidence.outcomes.attacks
        if each.attack.attack in ZERO_STRENGTH_KINDS
    ]
    return _judged(
        f"JPEG and ReColorAdv at zero strength change accuracy by <= {STABLE_POINTS} points",
        wrong=wrong,
        passed="; ".join(passed),
        missing=[label for label in dict.fromkeys(needed) if label not in evidence.zero_strength],
        why_none="not measured" if needed else "neither of them was made",
    )


def _name(attacked: AttackedDefense) -> str:
    return f"{attacked.attack.label}, {_short(attacked.threat_model)}"


def _short(threat_model: str) -> str:
    return threat_model.partition(":")[0]


def _radius(epsilon: float) -> str:
    return f"{255 * epsilon:.3g}/255"


# --- the checklists of all defences ---------------------------------------------------------------


def checklist_text(checks: Mapping[str, Sequence[Check]]) -> str:
    """The checklists as text: what failed in full, what passed in a line a check.

    Args:
        checks: by the name of the defence.
    """
    return check_text({defense: list(lines) for defense, lines in checks.items()})


def checklist_columns(checks: Mapping[str, Sequence[Check]]) -> dict[str, list[Any]]:
    """The checklists as columns, for tracking; `checks` by the name of the defence."""
    flat = [(defense, *check) for defense, lines in checks.items() for check in lines]
    names = ("defense", *Check._fields)
    return {name: [line[place] for line in flat] for place, name in enumerate(names)}


def checklist_markdown(checks: Mapping[str, Sequence[Check]]) -> str:
    """The checklists as a table, a column a defence, and below it the reasons of what did not pass.

    Args:
        checks: by the name of the defence.
    """
    outcomes: dict[str, dict[str, Outcome]] = {}
    reasons: dict[tuple[Outcome, str, str], list[str]] = {}
    for defense, lines in checks.items():
        for check in lines:
            outcomes.setdefault(check.check, {})[defense] = check.outcome
            if check.outcome != "pass":
                reasons.setdefault((check.outcome, check.check, check.detail), []).append(defense)
    rows = [["check", *checks], ["---"] * (1 + len(checks))]
    rows += [
        [name, *(_marked(of_check.get(defense)) for defense in checks)]
        for name, of_check in outcomes.items()
    ]
    order: tuple[Outcome, ...] = ("fail", "warn", "not run")
    listed = [
        f"- {_marked(outcome)}: {name} ({', '.join(whom)}): {detail}"
        for wanted in order
        for (outcome, name, detail), whom in reasons.items()
        if outcome == wanted
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return "\n\n".join([table, *(["\n".join(listed)] if listed else [])]) + "\n"


def _marked(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    return f"**{outcome}**" if outcome == "fail" else outcome
