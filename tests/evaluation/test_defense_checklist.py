"""Each line of a defence's checklist fails for its own defect, and no other line with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from cdvae_ray.config.attack import SUITES, AttackConfig
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.attack_report import AttackCounts, Check, StrengthCounts, failed
from cdvae_ray.evaluation.defense_checklist import (
    DefenseEvidence,
    checklist_columns,
    checklist_markdown,
    checklist_text,
    defense_checklist,
)
from cdvae_ray.evaluation.defense_table import AttackedDefense, DefenseOutcomes

N = 1000
TRANSFER = "transfer: made against D(x), which knows nothing of the defence"
WHITE_BOX = "white-box: against the whole defence"
PGD = AttackConfig(attack="pgd", label="PGD-Linf", epsilon=8 / 255, num_steps=100)
CW_L2 = AttackConfig(attack="carlini_wagner_l2", label="C&W-L2 original", num_steps=20)
ALL = SUITES["white-box"].attacks
AUTO = ALL[0]


def first(count: int, n: int = N) -> Tensor:
    return torch.arange(n) < count


def sound_outcomes() -> DefenseOutcomes:
    """900 of 1,000 right; 700 by transfer, 400 white-box, 300 under AutoAttack and the others."""
    robust = {(TRANSFER, PGD): 700, (WHITE_BOX, PGD): 400} | {
        (WHITE_BOX, attack): 300 for attack in ALL
    }
    return DefenseOutcomes(
        name="Ours",
        digest="d1",
        trained_against=(),
        clean_correct=first(900),
        attacks=tuple(
            AttackedDefense(
                attack=attack,
                threat_model=threat_model,
                is_white_box=threat_model == WHITE_BOX,
                correct=first(count),
                set_digest="s1",
                eot_samples=1,
            )
            for (threat_model, attack), count in robust.items()
        ),
        is_stochastic=False,
        seed=0,
    )


def sound(**changes: Any) -> DefenseEvidence:
    """Everything run, nothing wrong."""
    outcomes = sound_outcomes()
    values: dict[str, Any] = {
        "outcomes": outcomes,
        "counts": {
            (each.threat_model, each.attack.label): AttackCounts(
                images=N, clean_correct=900, robust=each.num_robust
            )
            for each in outcomes.attacks
        },
        "epsilon_sweep": [(64 / 255, 0, N), (8 / 255, 400, N), (16 / 255, 100, N)],
        "strength": {"PGD-Linf": StrengthCounts(N, 400, 500, 398, 399)},
        "losses": frozenset({"cross-entropy", "margin", "DLR"}),
        "zero_strength": {"JPEG": (900, 895, N), "ReColorAdv": (900, 905, N)},
        "black_box": (750, N),
        "eot_samples": 1,
        "detector_aware": True,
    }
    return DefenseEvidence(**{**values, **changes})


def outcomes_of(evidence: DefenseEvidence) -> dict[str, str]:
    checks = defense_checklist(evidence)
    found = {check.check: check.outcome for check in checks}
    assert len(found) == len(checks)
    return found


def changes(evidence: DefenseEvidence) -> dict[str, str]:
    """The lines whose outcome is another than that of the sound defence."""
    before = outcomes_of(sound())
    return {name: now for name, now in outcomes_of(evidence).items() if before[name] != now}


def counting(threat_model: str = WHITE_BOX, label: str = "StAdv", **found: int) -> DefenseEvidence:
    """One attack counted something else."""
    evidence = sound()
    key = (threat_model, label)
    counts = {**evidence.counts, key: dataclasses.replace(evidence.counts[key], **found)}
    return dataclasses.replace(evidence, counts=counts)


def attacking(where: int, **found: Any) -> DefenseEvidence:
    """One attack came out otherwise; its counts say the same."""
    evidence = sound()
    attacks = list(evidence.outcomes.attacks)
    old = attacks[where]
    attacks[where] = new = dataclasses.replace(old, **found)
    counts = dict(evidence.counts)
    of_old = counts.pop((old.threat_model, old.attack.label))
    counts[new.threat_model, new.attack.label] = dataclasses.replace(of_old, robust=new.num_robust)
    outcomes = dataclasses.replace(evidence.outcomes, attacks=tuple(attacks))
    return dataclasses.replace(evidence, outcomes=outcomes, counts=counts)


def stochastic(*, eot_samples: int, of_variants: int = 20) -> DefenseEvidence:
    """A stochastic defence; AutoAttack's version is rand, as it should be."""
    evidence = sound(eot_samples=of_variants)
    attacks = []
    for each in evidence.outcomes.attacks:
        attack = each.attack
        if attack.attack == "auto_attack":
            attack = dataclasses.replace(attack, version="rand")
        attacks.append(dataclasses.replace(each, attack=attack, eot_samples=eot_samples))
    outcomes = dataclasses.replace(evidence.outcomes, attacks=tuple(attacks), is_stochastic=True)
    return dataclasses.replace(evidence, outcomes=outcomes)


def of_outcomes(**found: Any) -> DefenseEvidence:
    return sound(outcomes=dataclasses.replace(sound_outcomes(), **found))


def only(kind: str) -> DefenseEvidence:
    """Attacks of one kind alone."""
    evidence = sound()
    attacks = tuple(
        each for each in evidence.outcomes.attacks if each.is_white_box == (kind == "white-box")
    )
    counts = {
        (each.threat_model, each.attack.label): evidence.counts[
            each.threat_model, each.attack.label
        ]
        for each in attacks
    }
    return dataclasses.replace(
        evidence, outcomes=dataclasses.replace(evidence.outcomes, attacks=attacks), counts=counts
    )


def with_transfer_of_bim(robust: int, *, black_box: int) -> DefenseEvidence:
    """One more transferred attack, which was not made white-box."""
    evidence = sound(black_box=(black_box, N))
    attack = AttackConfig(attack="bim", label="BIM", epsilon=8 / 255, num_steps=5)
    bim = dataclasses.replace(evidence.outcomes.attacks[0], attack=attack, correct=first(robust))
    return dataclasses.replace(
        evidence,
        outcomes=dataclasses.replace(evidence.outcomes, attacks=(*evidence.outcomes.attacks, bim)),
        counts={**evidence.counts, (TRANSFER, "BIM"): AttackCounts(images=N, clean_correct=900)},
    )


def revived() -> DefenseEvidence:
    """Outcomes changed after they were checked, which tensors can be."""
    evidence = sound()
    correct = evidence.outcomes.attacks[-1].correct
    correct[0], correct[950] = False, True
    return evidence


def sweep(*robust: int) -> list[tuple[float, int, int]]:
    return [(epsilon / 255, *each) for epsilon, each in zip((8, 16, 64), [(r, N) for r in robust],
                                                            strict=True)]  # fmt: skip


def strength(
    one_step: int | None, twice_the_steps: int | None, five_starts: int | None
) -> dict[str, StrengthCounts]:
    return {
        "PGD-Linf": StrengthCounts(N, 400, 500, 400, 400),
        "JPEG": StrengthCounts(N, 400, one_step, twice_the_steps, five_starts),
    }


def test_a_sound_defence_passes_every_line() -> None:
    assert set(outcomes_of(sound()).values()) == {"pass"}
    assert set(outcomes_of(stochastic(eot_samples=20)).values()) == {"pass"}


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (counting(nonfinite_pixels=1), "pixels are finite"),
        (counting(TRANSFER, "PGD-Linf", nonfinite_pixels=1), "pixels are finite"),
        (counting(outside_box=1), "pixels are in [0, 1]"),
        (counting(outside_ball=1), "within epsilon"),
        (counting(nonfinite_gradient=1), "gradients are finite"),
        (counting(masked=11), "gradient of zero"),
        (counting(unperturbed=11), "unperturbed"),
        (stochastic(eot_samples=19), "deterministic, or met"),
        (stochastic(eot_samples=20, of_variants=1), "deterministic, or met"),
        (counting(robust=901), "wrong without an attack"),
        (revived(), "wrong without an attack"),
        (counting(robust=299), "worst of all"),
        (attacking(1, correct=first(701)), "white-box is at least as strong as transfer"),
        (sound(black_box=(699, N)), "transfer is at least as strong as black-box"),
        (
            with_transfer_of_bim(250, black_box=299),
            "white-box is at least as strong as black-box",
        ),
        (sound(epsilon_sweep=sweep(400, 406, 0)), "does not rise"),
        # Small rises do not add up to a large one.
        (sound(epsilon_sweep=[*sweep(10, 14, 17), (128 / 255, 20, N)]), "does not rise"),
        (sound(epsilon_sweep=sweep(400, 100, 51)), "about 0"),
        (sound(strength=strength(399, 400, 400)), "one step"),
        (sound(strength=strength(400, 395, 400)), "twice the steps"),
        (sound(strength=strength(400, 405, 400)), "twice the steps"),
        (sound(strength=strength(400, 400, 395)), "five starts"),
        (sound(losses=frozenset({"cross-entropy", "DLR"})), "losses"),
        (attacking(2, attack=dataclasses.replace(AUTO, version="rand")), "AutoAttack in full"),
        (of_outcomes(digest=""), "labelled"),
        (of_outcomes(name=" "), "labelled"),
        (attacking(3, set_digest=""), "labelled"),
        (sound(zero_strength={"JPEG": (900, 894, N), "ReColorAdv": (900, 900, N)}), "zero str"),
        (sound(zero_strength={"JPEG": (900, 900, N), "ReColorAdv": (900, 906, N)}), "zero str"),
    ],
)
def test_each_defect_fails_its_own_line_alone(evidence: DefenseEvidence, words: str) -> None:
    ((name, now),) = changes(evidence).items()
    assert now == "fail" and words in name


def test_a_stochastic_defence_needs_autoattack_rand() -> None:
    evidence = stochastic(eot_samples=20)
    attacks = list(evidence.outcomes.attacks)
    attacks[2] = dataclasses.replace(attacks[2], attack=AUTO)
    outcomes = dataclasses.replace(evidence.outcomes, attacks=tuple(attacks))
    assert changes(dataclasses.replace(evidence, outcomes=outcomes)) == {
        "AutoAttack in full: standard, or rand for a stochastic defence": "fail"
    }


def test_transferred_attacks_alone_say_nothing_of_who_knows_the_defence() -> None:
    found = changes(only("transfer"))
    assert found.pop("attacked through all of its parts") == "fail"
    assert set(found.values()) == {"not run"}
    assert [name.split(" ")[0] for name in found] == ["white-box", "white-box", "AutoAttack"]


@pytest.mark.parametrize(
    "evidence",
    [
        counting(masked=10),
        counting(unperturbed=10),
        # AutoAttack gives back what it does not fool.
        counting(label=AUTO.label, unperturbed=300),
        # A transferred set's own robustness is that of another network.
        counting(TRANSFER, "PGD-Linf", robust=0),
        sound(black_box=(700, N)),
        # The first images that Square met: 60 of them, all robust.
        sound(black_box=(60, 60)),
        sound(epsilon_sweep=sweep(400, 405, 50)),
        sound(epsilon_sweep=[*sweep(400, 100, 0), (0.0, 900, N)]),
        sound(epsilon_sweep=[(8 / 255, 40, 100), (16 / 255, 80, 200), (64 / 255, 5, 100)]),
        sound(strength=strength(400, 404, 396)),
        sound(strength=strength(None, None, None)),
        sound(losses=frozenset({"cross-entropy", "DLR", "margin", "other"})),
    ],
)
def test_what_is_no_defect(evidence: DefenseEvidence) -> None:
    assert changes(evidence) == {}


@pytest.mark.parametrize(
    ("left_out", "words", "reason"),
    [
        ({"epsilon_sweep": None}, ("does not rise", "about 0"), "no sweep"),
        ({"epsilon_sweep": []}, ("does not rise", "about 0"), "no sweep"),
        ({"epsilon_sweep": [(64 / 255, 0, N)]}, ("does not rise",), "two radii"),
        ({"epsilon_sweep": [(8 / 255, 4, N), (63 / 255, 1, N)]}, ("about 0",), "63/255"),
        ({"strength": {}}, ("one step", "twice", "five starts"), "variants were not run"),
        (
            {"strength": {"StAdv": StrengthCounts(N, 4, None, 4, None)}},
            ("one step", "five starts"),
            "none of the attacks",
        ),
        ({"losses": frozenset()}, ("losses",), "not known"),
        ({"zero_strength": {}}, ("zero strength",), "not measured"),
        (
            {"black_box": None},
            ("transfer is at least as strong as black", "white-box is at least as strong as black"),
            "Square was not run",
        ),
        (
            {"black_box": (900, N + 1)},
            ("transfer is at least as strong as black", "white-box is at least as strong as black"),
            "Square met 1001 images",
        ),
        ({"detector_aware": False}, ("together with a detector",), "detector"),
        (
            {"counts": {}},
            (
                *("pixels are finite", "pixels are in", "within epsilon", "gradients are finite"),
                *("gradient of zero", "unperturbed"),
            ),
            "no counts of attacks",
        ),
    ],
)
def test_what_lacks_evidence_is_not_run_and_says_why(
    left_out: dict[str, Any], words: tuple[str, ...], reason: str
) -> None:
    evidence = sound(**left_out)
    found = changes(evidence)
    assert set(found.values()) == {"not run"} and len(found) == len(words)
    details = {check.check: check.detail for check in defense_checklist(evidence)}
    for word in words:
        (name,) = [name for name in found if word in name]
        assert reason in details[name]


def test_nothing_but_a_clean_number() -> None:
    bare = DefenseEvidence(outcomes=dataclasses.replace(sound_outcomes(), attacks=()))
    found = outcomes_of(bare)
    passed = [name for name, outcome in found.items() if outcome != "not run"]
    assert [name.split(" ")[0] for name in passed] == ["the", "every"]
    assert all(check.detail for check in defense_checklist(bare))
    random = dataclasses.replace(
        bare, outcomes=dataclasses.replace(bare.outcomes, is_stochastic=True)
    )
    assert outcomes_of(random)["the defence is deterministic, or met in expectation"] == "not run"


def test_evidence_of_some_attacks_alone_is_no_pass() -> None:
    evidence = sound()
    counts = {key: value for key, value in evidence.counts.items() if key[1] != "StAdv"}
    found = changes(dataclasses.replace(evidence, counts=counts))
    assert set(found.values()) == {"warn"} and len(found) == 6
    half = sound(zero_strength={"JPEG": (900, 900, N)})
    assert list(changes(half).values()) == ["warn"]
    (check,) = [each for each in defense_checklist(half) if each.outcome == "warn"]
    assert check.detail.endswith("not known of ReColorAdv")


def test_attacks_without_a_radius_are_in_no_ball() -> None:
    evidence = attacking(1, attack=CW_L2)
    no_radius = dataclasses.replace(
        evidence,
        outcomes=dataclasses.replace(evidence.outcomes, attacks=(evidence.outcomes.attacks[1],)),
        counts={},
    )
    found = {check.check: check for check in defense_checklist(no_radius)}
    (line,) = [check for name, check in found.items() if "within epsilon" in name]
    assert (line.outcome, line.detail) == ("not run", "no attack has an epsilon")


def test_the_lines_are_always_the_same() -> None:
    names = [check.check for check in defense_checklist(sound())]
    assert len(names) == len(set(names)) == 23
    for evidence in (only("transfer"), only("white-box"), stochastic(eot_samples=1)):
        assert [check.check for check in defense_checklist(evidence)] == names


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"counts": {("white-box", "PGD-Linf"): AttackCounts(images=1)}}, "PGD-Linf"),
        ({"black_box": (0, 0)}, "Square"),
        ({"epsilon_sweep": [(0.1, 0, 0)]}, "epsilon 0.1"),
        ({"strength": {"PGD-Linf": StrengthCounts(0, 0, 0, 0, 0)}}, "variants"),
        ({"zero_strength": {"JPEG": (0, 0, 0)}}, "JPEG at zero strength"),
    ],
)
def test_evidence_that_contradicts_itself_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        sound(**changed)
    assert "Ours" in str(refused.value)


# --- all defences -------------------------------------------------------------------------------


def reports() -> dict[str, list[Check]]:
    return {
        "Ours": defense_checklist(sound()),
        "HGD": defense_checklist(counting(outside_box=2)),
        "PAT": defense_checklist(sound(black_box=None)),
    }


def test_the_printed_checklists_name_what_failed() -> None:
    text = checklist_text(reports())
    assert "fail    pixels are in [0, 1] (HGD: StAdv, white-box: 2 of 1000 images" in text
    assert "pass    pixels are finite\n" in text
    assert "(PAT: Square was not run)" in text
    assert len(failed(reports())) == 1


def test_columns_hold_every_line() -> None:
    columns = checklist_columns(reports())
    assert list(columns) == ["defense", "check", "outcome", "detail"]
    lines = [(name, *check) for name, checks in reports().items() for check in checks]
    assert list(zip(*columns.values(), strict=True)) == lines
    assert checklist_columns({}) == {"defense": [], "check": [], "outcome": [], "detail": []}


def test_markdown_has_a_column_a_defence_and_the_reasons() -> None:
    text = checklist_markdown(reports())
    lines = text.splitlines()
    assert lines[0] == "| check | Ours | HGD | PAT |"
    assert "| pixels are in [0, 1] | pass | **fail** | pass |" in lines
    assert (
        "| transfer is at least as strong as black-box (Square) | pass | pass | not run |" in lines
    )
    reasons = [line for line in lines if line.startswith("- ")]
    assert reasons[0].startswith("- **fail**: pixels are in [0, 1] (HGD): StAdv, white-box: 2 of")
    assert len(reasons) == 3
    assert len([line for line in lines if line.startswith("|")]) == 2 + 23
    assert "\n- " not in checklist_markdown({"Ours": reports()["Ours"]})
