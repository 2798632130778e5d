"""Tables of detection: what a row must say, the paper's numbers, paired differences, the 2x2."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cdvae_ray.config.attack import ThreatModelName
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.bootstrap import Estimate
from cdvae_ray.evaluation.detection_combiner import attack_free_combiner
from cdvae_ray.evaluation.detection_metrics import DetectionMetrics, detection_metrics
from cdvae_ray.evaluation.detection_protocol import Detection
from cdvae_ray.evaluation.detection_table import (
    _PAPER,
    DetectionRow,
    DifferenceRow,
    detection_columns,
    detection_row,
    detection_text,
    difference_row,
    paper_value,
    two_by_two,
)


def detection(
    *,
    shift: float = 2.0,
    seed: int = 0,
    space: InputKind = "class_essential",
    target: ThreatModelName = "class-essential",
    count: int = 150,
    first_id: int = 0,
) -> Detection:
    rng = np.random.default_rng(seed)
    own = rng.normal(size=count)
    return Detection(
        method="KD",
        space=space,
        threat_model=THREAT_MODELS[target],
        dataset="cifar10",
        attack="FGSM",
        trained_on="FGSM",
        protocol="strict",
        mode="same_attack",
        subset="successful",
        setting="h = 0.26",
        combiner=attack_free_combiner(("last",), np.arange(3.0)[:, None]),
        image_ids=np.arange(first_id, first_id + count),
        clean=own + rng.normal(size=count),
        noisy=own + rng.normal(size=count),
        adversarial=own + rng.normal(size=count) + shift,
        successful=np.ones(count, dtype=bool),
    )


def test_a_row_holds_the_metrics_of_its_contrast() -> None:
    found = detection()
    both = np.r_[found.clean, found.noisy]
    for contrast, negatives, positives, counts in (
        ("adversarial against clean and noisy", both, found.adversarial, (150, 150, 150)),
        ("adversarial against clean", found.clean, found.adversarial, (150, 0, 150)),
        ("noisy against clean", found.clean, found.noisy, (150, 150, 0)),
    ):
        row = detection_row(found, seed=0, contrast=contrast, num_resamples=50)  # type: ignore[arg-type]
        expected = detection_metrics(negatives, positives)
        for name, value in zip(DetectionMetrics._fields, expected, strict=True):
            estimate = getattr(row, name)
            assert estimate.value == value
            assert estimate.low <= estimate.high
        assert (row.clean_images, row.noisy_images, row.adversarial_images) == counts
        assert row.auroc.low < expected.auroc < row.auroc.high


def test_a_row_cannot_leave_out_what_the_number_means() -> None:
    assert not DetectionRow._field_defaults and not DifferenceRow._field_defaults
    row = detection_row(detection(), seed=0, num_resamples=10)
    assert (row.threat_model, row.attacked) == THREAT_MODELS["class-essential"][:2]
    assert (row.protocol, row.mode, row.trained_on) == ("strict", "same_attack", "FGSM")


def test_intervals_depend_on_the_seed_alone() -> None:
    rows = [detection_row(detection(), seed=seed, num_resamples=40) for seed in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert rows[0].auroc.value == rows[2].auroc.value and rows[0].auroc != rows[2].auroc


def test_noise_that_looks_like_clean_images_is_not_seen() -> None:
    row = detection_row(detection(), seed=0, contrast="noisy against clean", num_resamples=200)
    assert row.auroc.low <= 0.5 <= row.auroc.high


def test_papers_numbers_as_printed() -> None:
    assert len(_PAPER) == 12 and all(len(printed) == 5 for printed in _PAPER.values())
    # Spot checks at the corners of Tables 4 and 5, and the sentence on FGSM in section 4.2.
    for dataset, method, space, attack, tnr, auc in (
        ("cifar10", "KD", "images", "FGSM", 0.4238, 0.8574),
        ("cifar10", "MD", "class_essential", "PGD-L2", 0.9913, 0.9977),
        ("cifar10", "LID", "class_essential", "C&W", 0.7642, 0.9510),
        ("restricted-imagenet", "KD", "images", "FGSM", 0.0876, 0.7025),
        ("restricted-imagenet", "KD", "class_essential", "FGSM", 0.9940, 0.9963),
        ("restricted-imagenet", "MD", "class_essential", "PGD-L2", 0.9542, 0.9886),
    ):
        assert paper_value(dataset, method, space, attack) == pytest.approx((tnr, auc))  # type: ignore[arg-type]
    assert paper_value("digits", "KD", "images", "FGSM") is None
    assert paper_value("cifar10", "KD", "images", "StAdv") is None
    assert paper_value("cifar10", "KD", "class_redundant", "FGSM") is None


def test_r_of_x_is_better_than_x_in_all_of_the_papers_numbers_but_one() -> None:
    # Rows swapped in copying would break it.
    worse = []
    for (dataset, method, space), on_x in _PAPER.items():
        if space == "images":
            on_r = _PAPER[dataset, method, "class_essential"]
            for place, (before, after) in enumerate(zip(on_x, on_r, strict=True)):
                assert after[0] > before[0]
                if after[1] <= before[1]:
                    worse.append((dataset, method, place))
    assert worse == [("restricted-imagenet", "LID", 2)]  # C&W: AUC 99.49 and 99.40


def test_the_papers_number_stands_only_beside_what_it_means() -> None:
    def paper(found: Detection, contrast: str = "adversarial against clean and noisy") -> object:
        row = detection_row(found, seed=0, contrast=contrast, num_resamples=5)  # type: ignore[arg-type]
        return row.paper_tnr_at_95_tpr, row.paper_auroc

    on_r = detection()
    assert paper(on_r) == pytest.approx((0.5710, 0.8969))
    on_x = detection(space="images", target="classifier")
    assert paper(on_x) == pytest.approx((0.4238, 0.8574))
    for other in (
        detection(space="images"),
        detection(target="classifier"),
        dataclasses.replace(on_r, mode="unseen"),
        dataclasses.replace(on_r, mode="attack_free"),
        dataclasses.replace(on_r, subset="all"),
        dataclasses.replace(on_r, dataset="digits"),
    ):
        assert paper(other) == (None, None)
    assert paper(on_r, "adversarial against clean") == (None, None)


def test_difference_is_paired_and_changes_sign() -> None:
    first, second = detection(shift=2.0), detection(shift=1.0)
    forth = difference_row(first, second, seed=0, num_resamples=200)
    back = difference_row(second, first, seed=0, num_resamples=200)
    expected = [
        detection_metrics(np.r_[each.clean, each.noisy], each.adversarial)
        for each in (first, second)
    ]
    assert forth.auroc.value == pytest.approx(expected[0].auroc - expected[1].auroc)
    assert forth.tnr_at_95_tpr.value == pytest.approx(
        expected[0].tnr_at_95_tpr - expected[1].tnr_at_95_tpr
    )
    np.testing.assert_allclose(
        forth.auroc, [-back.auroc.value, -back.auroc.high, -back.auroc.low], atol=1e-12
    )
    assert 0 < forth.auroc.low < forth.auroc.high
    # The same images: narrower than intervals of either would make it.
    alone = [detection_row(each, seed=0, num_resamples=200).auroc for each in (first, second)]
    assert forth.auroc.high - forth.auroc.low < sum(each.high - each.low for each in alone) / 2
    nothing = difference_row(first, first, seed=0, num_resamples=20)
    assert nothing.auroc == nothing.tnr_at_95_tpr == Estimate(0.0, 0.0, 0.0)


def test_difference_over_other_images() -> None:
    first, second = detection(), detection(first_id=100)
    row = difference_row(first, second, seed=0, num_resamples=100)
    assert row.images == 250
    # The same scores under other ids: equal numbers, unpaired in part.
    assert row.auroc.value == 0.0 and row.auroc.low < 0 < row.auroc.high
    with pytest.raises(DataError, match="one"):
        difference_row(first, dataclasses.replace(second, dataset="digits"), seed=0)


def test_two_by_two() -> None:
    cells: list[tuple[ThreatModelName, InputKind]] = [
        ("classifier", "images"),
        ("classifier", "class_essential"),
        ("class-essential", "images"),
        ("class-essential", "class_essential"),
    ]
    rows = [
        detection_row(detection(target=target, space=space), seed=0, num_resamples=5)
        for target, space in reversed(cells)
    ]
    extra = detection_row(dataclasses.replace(detection(), mode="unseen"), seed=0, num_resamples=5)

    def table(rows: list[DetectionRow]) -> list[DetectionRow]:
        return two_by_two(rows, method="KD", attack="FGSM", protocol="strict", mode="same_attack")

    found = table([*rows, extra])
    assert [(row.threat_model, row.space) for row in found] == cells
    assert [row.paper_auroc is not None for row in found] == [True, False, False, True]
    for wrong in (rows[:3], [*rows, rows[0]]):
        with pytest.raises(DataError, match="rows of KD on FGSM"):
            table(wrong)


def test_text_names_threat_model_protocol_and_intervals() -> None:
    first = detection_row(detection(), seed=0, num_resamples=20)
    second = detection_row(detection(space="images", target="classifier"), seed=0, num_resamples=20)
    third = second._replace(protocol="reference", converged=False, paper_auroc=None)
    text = detection_text([first, second, third])
    lines = text.splitlines()
    assert "KD(R(x))" in lines[1] and lines[1].endswith("[1]")
    assert f"{100 * first.auroc.value:.2f} [" in lines[1] and lines[1].split()[-2:-1] == ["89.69"]
    assert "KD(x)" in lines[2] and "57.10" not in lines[2] and "42.38" in lines[2]
    assert lines[3].endswith("[3] (regression stopped early)")
    assert "[1] attack on D(R(x)) through the whole CD-VAE; protocol strict" in text
    assert "[2] attack on D(x), a plain classifier; protocol strict" in text
    assert "[3] attack on D(x), a plain classifier; protocol reference" in text
    assert "Tables 4 and 5" in text
    assert "Tables 4 and 5" not in detection_text([third._replace(paper_tnr_at_95_tpr=None)])


def test_columns_for_tracking_are_flat_and_of_one_length() -> None:
    rows = [detection_row(detection(seed=seed), seed=0, num_resamples=10) for seed in (0, 1)]
    columns = detection_columns(rows)
    assert {len(column) for column in columns.values()} == {2}
    assert columns["auroc"] == [row.auroc.value for row in rows]
    assert columns["auroc_low"] == [row.auroc.low for row in rows]
    assert columns["threat_model"] == ["class-essential"] * 2
    kinds = {type(value) for column in columns.values() for value in column}
    assert kinds <= {str, int, float, bool, type(None)}
    differences = detection_columns(
        [difference_row(detection(), detection(seed=1), seed=0, num_resamples=5)]
    )
    assert {"first", "first_attacked", "auroc_high"} <= set(differences)
