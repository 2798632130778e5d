"""The sanity report finds what it is for, and the table adds up over shards."""

import dataclasses
import math

import pytest
import torch

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.evaluation.attack_report import (
    AttackCounts,
    StrengthCounts,
    attack_row,
    attack_text,
    check_text,
    count_rows,
    failed,
    sanity_checks,
    strength_variants,
)
from cdvae_ray.evaluation.intervals import wilson
from cdvae_ray.storage.adversarial_set import AdversarialImages

PGD = AttackConfig(attack="pgd", label="PGD", epsilon=8 / 255, num_steps=10)


def rows(count=200, **changes):
    """Sound rows: a quarter wrong without an attack, half of the others fooled."""
    values = {
        "image_ids": torch.arange(count),
        "images": torch.full((count, 3, 4, 4), 0.5),
        "labels": torch.zeros(count, dtype=torch.int64),
        "clean_predictions": (torch.arange(count) % 4 == 0).long(),
        "predictions": (torch.arange(count) % 2 == 0).long(),
        "success": torch.arange(count) % 2 == 0,
        "loss": torch.zeros(count),
        "norm": torch.full((count,), 8 / 255),
        "linf": torch.full((count,), 8 / 255),
        "l2": torch.ones(count),
        "zero_gradient": torch.zeros(count, dtype=torch.bool),
        "nonfinite_gradient": torch.zeros(count, dtype=torch.bool),
    }
    return AdversarialImages(**{**values, **changes})


def report(found, *, config=PGD, is_stochastic=False, eot_samples=1, strength=None):
    checks = sanity_checks(
        count_rows(found, config),
        config,
        is_stochastic=is_stochastic,
        eot_samples=eot_samples,
        strength=strength,
        why_no_strength="not asked for",
    )
    return {check.check: check for check in checks}


def outcome(found, words, **settings):
    (check,) = [each for name, each in report(found, **settings).items() if words in name]
    return check.outcome


@pytest.mark.parametrize("attack", ["auto_attack", "carlini_wagner_l2"])
def test_what_an_attack_gives_back_by_design_is_no_sign_of_masking(attack):
    steps = {"num_steps": 10} if attack == "carlini_wagner_l2" else {}
    config = AttackConfig(attack=attack, label="A", epsilon=8 / 255, **steps)
    check = report(spoilt("linf", 0.0, 50), config=config)["no image resists unperturbed"]
    assert check.outcome == "not run"
    assert "gives back unchanged" in check.detail


def test_sound_rows_pass():
    outcomes = [check.outcome for check in report(rows()).values()]
    assert outcomes == ["pass"] * 7 + ["not run"] * 3


def spoilt(name, value, how_many=3):
    values = getattr(rows(), name).clone()
    values[1 : 1 + 2 * how_many : 2] = value
    return rows(**{name: values})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (spoilt("images", math.nan, 1), "finite"),
        (spoilt("images", 1.0001, 1), "in [0, 1]"),
        (spoilt("images", -0.0001, 1), "in [0, 1]"),
        (spoilt("norm", 8 / 255 + 2e-6, 1), "within epsilon"),
        (spoilt("norm", math.nan, 1), "within epsilon"),
        (spoilt("nonfinite_gradient", True, 1), "gradients are finite"),
        (spoilt("zero_gradient", True), "gradient of zero"),
        (spoilt("linf", 0.0), "unperturbed"),
    ],
)
def test_each_defect_fails_its_own_line_alone(found, words):
    wrong = [name for name, check in report(found).items() if check.outcome == "fail"]
    assert len(wrong) == 1
    assert words in wrong[0]


def test_rounding_at_the_edge_of_the_ball_is_no_defect():
    assert outcome(spoilt("norm", 8 / 255 + 5e-7), "within epsilon") == "pass"


def test_vanished_gradients_of_fooled_images_are_no_defect():
    fooled = rows(zero_gradient=torch.arange(200) % 2 == 0)
    assert outcome(fooled, "gradient of zero") == "pass"


@pytest.mark.parametrize(
    ("samples", "version", "expected"),
    [(1, None, "warn"), (19, None, "warn"), (20, None, "pass"), (1, "rand", "pass")],
)
def test_a_stochastic_model_without_expectation_is_warned_of(samples, version, expected):
    config = PGD
    if version:
        config = AttackConfig(attack="auto_attack", label="AA", epsilon=0.1, version=version)
    found = report(rows(), config=config, is_stochastic=True, eot_samples=samples)
    (check,) = [each for name, each in found.items() if "deterministic" in name]
    assert check.outcome == expected
    assert ("STOCHASTIC" in check.detail) == (expected == "warn")


@pytest.mark.parametrize(
    ("strength", "words", "expected"),
    [
        (StrengthCounts(1000, 400, 400, None, None), "one step", "pass"),
        (StrengthCounts(1000, 401, 400, None, None), "one step", "fail"),
        (StrengthCounts(1000, 400, None, 396, None), "twice the steps", "pass"),
        (StrengthCounts(1000, 400, None, 395, None), "twice the steps", "fail"),
        (StrengthCounts(1000, 400, None, 405, None), "twice the steps", "fail"),
        (StrengthCounts(1000, 400, None, None, 396), "five starts", "pass"),
        (StrengthCounts(1000, 400, None, None, 395), "five starts", "fail"),
        (StrengthCounts(1000, 400, None, None, None), "five starts", "not run"),
    ],
)
def test_the_lines_of_strength_compare_counts(strength, words, expected):
    assert outcome(rows(), words, strength=strength) == expected


def test_the_variants_of_an_attack():
    variants = strength_variants(PGD)
    assert variants["twice_the_steps"].num_steps == 20
    assert (variants["one_step"].num_steps, variants["one_step"].step_size) == (1, 8 / 255)
    assert variants["five_starts"].num_restarts == 5
    last = dataclasses.replace(PGD, keep="last")
    assert set(strength_variants(last)) == {"one_step", "twice_the_steps"}
    fgsm = AttackConfig(attack="fgsm", label="FGSM", epsilon=0.1)
    assert strength_variants(fgsm) == {}
    stadv = AttackConfig(attack="stadv", label="StAdv", epsilon=0.05, num_steps=10)
    assert set(strength_variants(stadv)) == {"twice_the_steps"}


def test_counts_add_up_over_shards():
    whole = rows()
    parts = [
        AdversarialImages(
            **{
                field.name: getattr(whole, field.name)[piece]
                for field in dataclasses.fields(AdversarialImages)
            }
        )
        for piece in (slice(0, 1), slice(1, 130), slice(130, 200))
    ]
    added = sum((count_rows(part, PGD) for part in parts), AttackCounts())
    for name, value in dataclasses.asdict(count_rows(whole, PGD)).items():
        assert getattr(added, name) == pytest.approx(value, rel=1e-12), name


def test_an_image_that_is_wrong_without_an_attack_is_not_robust():
    wrong_then_right = rows(
        clean_predictions=torch.ones(200, dtype=torch.int64),
        predictions=torch.zeros(200, dtype=torch.int64),
    )
    assert count_rows(wrong_then_right, PGD).robust == 0


def test_the_table_carries_threat_model_settings_and_interval():
    counts = count_rows(rows(), PGD, seconds=4.0)
    row = attack_row(PGD, counts, threat_model=THREAT_MODELS["class-essential"], set_digest="d")
    assert (row.clean_accuracy, row.accuracy) == (0.75, 0.5)
    assert row.success_rate == pytest.approx(1 / 3)
    assert (row.low, row.high) == wilson(100, 200)
    assert row.images_per_second == 50
    text = attack_text([row])
    assert "threat model: class-essential: D(R(x))" in text
    assert "PGD: eps 8/255 (L-inf, pixels), 10 steps, best iterate" in text
    assert "n" in text.splitlines()[0]
    assert "200" in text


def test_the_printed_report_names_what_failed():
    config = dataclasses.replace(PGD, label="other")
    checks = {
        "PGD": list(report(rows()).values()),
        "other": list(report(spoilt("linf", 0.0), config=config).values()),
    }
    text = check_text(checks)
    assert "fail    no image resists unperturbed (other: 3 of 200 images do" in text
    assert "pass    pixels are finite" in text
    assert "not run" in text
    assert len(failed(checks)) == 1
    assert failed(checks)[0].startswith("other: no image resists unperturbed")
