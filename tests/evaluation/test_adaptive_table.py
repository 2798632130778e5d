"""The table of attacks that know the detector: counted by hand, and an image's best run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdvae_ray.config.detection import AdaptiveConfig
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.adaptive_table import (
    AdaptiveRow,
    adaptive_columns,
    adaptive_rows,
    adaptive_text,
    best_of,
    known_threat,
    unknown_threat,
)
from cdvae_ray.evaluation.intervals import wilson
from cdvae_ray.storage.row_set import ImageRows

ON_R = THREAT_MODELS["class-essential"]


def run_of(
    scores: list[float],
    fooled: list[bool],
    *,
    clean_scores: list[float] | None = None,
    right: list[bool] | None = None,
    zero: list[bool] | None = None,
    nonfinite: list[bool] | None = None,
) -> ImageRows:
    """Rows as `AdaptiveColumns` makes them."""
    count = len(scores)
    nothing = [False] * count
    return ImageRows(
        torch.arange(count) * 3,
        {
            "label": torch.full((count,), 2),
            "clean_prediction": torch.where(torch.tensor(right or [True] * count), 2, 1),
            "clean_score": torch.tensor(clean_scores or [0.0] * count, dtype=torch.float64),
            "fooled": torch.tensor(fooled),
            "detector_score": torch.tensor(scores, dtype=torch.float64),
            "norm": torch.tensor(scores) + 100,
            "zero_gradient": torch.tensor(zero or nothing),
            "nonfinite_gradient": torch.tensor(nonfinite or nothing),
        },
    )


def rows_of(
    run: ImageRows, thresholds: dict[float, float], *, threat_model: str = "white-box"
) -> list[AdaptiveRow]:
    return adaptive_rows(
        run,
        method="MD",
        space="class_essential",
        attack="orthogonal",
        threat_model=threat_model,
        config=AdaptiveConfig(num_steps=7, epsilon=4 / 255),
        thresholds=thresholds,
    )


def test_counts_are_those_made_by_hand() -> None:
    run = run_of(
        #  let pass, at the threshold, flagged, not fooled, wrong anyway (twice)
        scores=[0.5, 1.0, 1.5, 0.1, 0.2, 9.0],
        fooled=[True, True, True, False, True, True],
        right=[True, True, True, True, False, False],
        clean_scores=[0.0, 1.0, 1.1, 2.0, 7.0, 7.0],
        zero=[True, False, False, False, True, True],
        nonfinite=[False, False, True, True, False, True],
    )
    strict, lenient = rows_of(run, {0.5: 0.7, 0.05: 1.0})
    assert (strict.false_positive_rate, strict.threshold) == (0.5, 0.7)
    assert (lenient.false_positive_rate, lenient.threshold) == (0.05, 1.0)
    for row, success, flagged in ((strict, 1, 3), (lenient, 2, 2)):
        assert (row.images, row.fooled) == (4, 3 / 4)
        assert row.success == success / 4
        assert (row.success_low, row.success_high) == wilson(success, 4)
        # A score equal to the threshold is let pass, clean or adversarial.
        assert row.clean_flagged == flagged / 4
        assert (row.zero_gradient, row.nonfinite_gradient) == (1, 2)
        assert (row.method, row.space, row.attack) == ("MD", "class_essential", "orthogonal")
        assert (row.epsilon, row.num_steps) == (4 / 255, 7)
        assert row.radius == "4/255"
        assert row._replace(epsilon=1.0, measure="L2, pixels").radius == "1 (L2, pixels)"


def test_no_success_and_nothing_but_success_have_closed_intervals() -> None:
    (never,) = rows_of(run_of([1.0] * 20, [False] * 20), {0.05: 2.0})
    (always,) = rows_of(run_of([1.0] * 20, [True] * 20), {0.05: 2.0})
    assert (never.success, never.success_low) == (0.0, 0.0) and 0 < never.success_high < 0.2
    assert (always.success, always.success_high) == (1.0, 1.0) and 0.8 < always.success_low < 1


def test_no_image_that_is_right_without_an_attack_is_refused() -> None:
    run = run_of([1.0, 2.0], [True, True], right=[False, False])
    with pytest.raises(DataError, match="none that the classifier gets right") as caught:
        rows_of(run, {0.05: 1.0})
    assert "\n" not in str(caught.value)


# --- the best of several runs -------------------------------------------------------------------


def test_an_images_best_run_fools_with_the_lowest_score_and_brings_all_its_columns() -> None:
    first = run_of([3.0, 1.0, 0.1, 5.0], [True, True, False, False], zero=[True, *[False] * 3])
    second = run_of([2.0, 4.0, 9.0, 0.5], [True, True, True, False], nonfinite=[False, True] * 2)
    best = best_of([first, second])
    assert torch.equal(best.image_ids, first.image_ids)
    # Second, first, second (the first fools nobody), and, as none fools, the first.
    assert best["detector_score"].tolist() == [2.0, 1.0, 9.0, 5.0]
    assert best["fooled"].tolist() == [True, True, True, False]
    assert torch.equal(best["norm"], (best["detector_score"] + 100).float())
    # A gradient that vanished in any run is told of.
    assert best["zero_gradient"].tolist() == [True, False, False, False]
    assert best["nonfinite_gradient"].tolist() == [False, True, False, True]
    assert set(best.columns) == set(first.columns)
    assert best_of([first]).row_digests() == first.row_digests()


@st.composite
def several_runs(draw: st.DrawFn) -> list[ImageRows]:
    """Runs on the same images; few different scores, so that many are equal."""
    count, number = draw(st.integers(1, 8)), draw(st.integers(1, 4))

    def flags() -> list[bool]:
        return draw(st.lists(st.booleans(), min_size=count, max_size=count))

    right = [True, *flags()[1:]]
    scores = st.lists(st.integers(-3, 3).map(float), min_size=count, max_size=count)
    return [run_of(draw(scores), flags(), right=right) for _ in range(number)]


@settings(deadline=None, max_examples=100)
@given(several_runs())
def test_the_best_run_succeeds_wherever_any_run_does(runs: list[ImageRows]) -> None:
    best = best_of(runs)
    assert torch.equal(best["fooled"], torch.stack([run["fooled"] for run in runs]).any(dim=0))
    thresholds = {0.1 * place: float(place - 4) for place in range(9)}
    table = rows_of(best, thresholds)
    for run in runs:
        for row, other in zip(table, rows_of(run, thresholds), strict=True):
            assert row.success >= other.success and row.fooled >= other.fooled
    for row in table:
        passed = [run["fooled"] & (run["detector_score"] <= row.threshold) for run in runs]
        right = best["clean_prediction"] == best["label"]
        expected = torch.stack(passed).any(dim=0)[right]
        assert row.success == float(expected.double().mean())
    assert best_of([best, *runs]).row_digests() == best.row_digests()


# --- how it is shown ----------------------------------------------------------------------------


def both_threats() -> list[AdaptiveRow]:
    run = run_of([0.5, 1.5, 0.4, 0.3], [True, True, False, True])
    thresholds = {0.05: 1.0, 0.5: 0.4}
    return [
        *rows_of(run, thresholds, threat_model=unknown_threat(ON_R)),
        *rows_of(run, thresholds, threat_model=known_threat(ON_R)),
    ]


def test_threat_models_say_what_the_attacker_follows() -> None:
    for threat_model in THREAT_MODELS.values():
        known, unknown = known_threat(threat_model), unknown_threat(threat_model)
        assert threat_model.attacked in known and threat_model.attacked in unknown
        assert known.endswith("and on the detector") and unknown.endswith("unaware of the detector")


def test_text_carries_threat_models_and_intervals() -> None:
    rows = both_threats()
    lines = adaptive_text(rows).splitlines()
    for line, row, note in zip(lines[1:5], rows, (1, 1, 2, 2), strict=True):
        rate = f"{row.false_positive_rate:.0%}"
        assert line.split()[:4] == ["MD(R(x))", "orthogonal", str(row.num_steps), rate]
        assert line.endswith(f"[{note}]")
        low, high = wilson(round(4 * row.success), 4)
        shown = "".join(line.split())
        assert f"{row.fooled:.1%}{row.success:.1%}[{low:.1%},{high:.1%}]" in shown
    assert lines[5:7] == [f"  [1] {unknown_threat(ON_R)}", f"  [2] {known_threat(ON_R)}"]
    assert "right without an attack" in lines[7] and len(lines) == 8
    # Numbers stand below their headings.
    assert len({len(line) for line in lines[1:5]}) == 1


def test_columns_for_tracking_are_flat_and_carry_the_threat_model() -> None:
    rows = both_threats()
    columns = adaptive_columns(rows)
    assert tuple(columns) == AdaptiveRow._fields and not AdaptiveRow._field_defaults
    assert columns["threat_model"] == [unknown_threat(ON_R)] * 2 + [known_threat(ON_R)] * 2
    assert columns["success"] == [0.5, 0.25] * 2
    np.testing.assert_array_equal(columns["success_low"], [row.success_low for row in rows])
    kinds = {type(value) for column in columns.values() for value in column}
    assert kinds == {str, int, float}
