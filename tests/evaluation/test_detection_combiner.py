"""The combiner against scikit-learn, its round trip, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegressionCV

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_combiner import (
    REGULARIZATIONS,
    Combiner,
    TrainingRows,
    attack_free_combiner,
    fit_combiner,
    fit_reference_combiner,
)

LAYERS = ("conv", "block", "last")


def training_rows(num_images: int = 60, *, seed: int = 0, shift: float = 1.0) -> TrainingRows:
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(num_images, 3))
    clean, noisy, adversarial = (own + rng.normal(size=own.shape) for _ in range(3))
    adversarial += shift * np.array([0.0, 1.0, 2.0])
    # Layers of very different size and offset, as detectors' scores are.
    scores = np.concatenate([clean, noisy, adversarial]) * [1.0, 30.0, 1000.0] + [0.0, 5.0, 1e4]
    return TrainingRows(
        layers=LAYERS,
        image_ids=np.tile(np.arange(num_images), 3),
        scores=scores,
        is_adversarial=np.arange(3 * num_images) >= 2 * num_images,
    )


def test_coefficients_minimise_the_regularised_log_loss() -> None:
    rows = training_rows()
    combiner = fit_combiner(rows)
    assert combiner.converged and combiner.regularization in REGULARIZATIONS
    np.testing.assert_allclose(combiner.mean, rows.scores.mean(axis=0))
    np.testing.assert_allclose(combiner.std, rows.scores.std(axis=0))
    standardised = (rows.scores - combiner.mean) / combiner.std
    signs = np.where(rows.is_adversarial, 1.0, -1.0)
    strength = combiner.regularization
    assert strength is not None

    def objective(parameters: np.ndarray) -> float:
        decision = standardised @ parameters[:3] + parameters[3]
        losses = np.logaddexp(0, -signs * decision).sum()
        return float(strength * losses + 0.5 * parameters[:3] @ parameters[:3])

    expected = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    found = [*combiner.coefficients, combiner.intercept]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(
        combiner.score(rows.scores), standardised @ found[:3] + found[3], rtol=1e-12
    )


def test_offset_and_scale_of_a_layer_change_no_score() -> None:
    rows = training_rows()
    moved = dataclasses.replace(rows, scores=rows.scores * [7.0, 0.1, 3.0] + [-4.0, 2.0, 0.5])
    np.testing.assert_allclose(
        fit_combiner(moved).score(moved.scores), fit_combiner(rows).score(rows.scores), rtol=1e-4
    )


def test_folds_hold_each_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import model_selection

    seen: list[tuple[set[int], set[int]]] = []
    rows = training_rows(23)
    search = model_selection.GridSearchCV

    def spy(*args: object, **kwargs: object) -> object:
        for train, held_out in kwargs["cv"]:  # type: ignore[attr-defined]
            seen.append((set(rows.image_ids[train].tolist()), set(rows.image_ids[held_out])))
        return search(*args, **kwargs)

    monkeypatch.setattr(model_selection, "GridSearchCV", spy)
    fit_combiner(rows)
    assert len(seen) == 5
    assert all(not train & held_out for train, held_out in seen)
    assert sorted(image for _, held_out in seen for image in held_out) == list(range(23))


def test_reference_combiner_is_logistic_regression_cv_on_raw_scores() -> None:
    rows = training_rows(shift=0.5)
    rows = dataclasses.replace(rows, scores=rows.scores / [1.0, 30.0, 1000.0])
    with pytest.warns(FutureWarning):
        expected = LogisticRegressionCV().fit(rows.scores, rows.is_adversarial)
    combiner = fit_reference_combiner(rows)
    np.testing.assert_array_equal(
        combiner.score(rows.scores), expected.decision_function(rows.scores)
    )
    assert combiner.regularization == expected.C_[0] and combiner.converged


def test_a_regression_that_stops_early_says_so() -> None:
    rows = training_rows(200, shift=0.5)
    # 100 iterations are not enough for layers of such different size.
    rows = dataclasses.replace(rows, scores=(rows.scores - [0, 5, 1e4]) * [1, 0.3, 1e3])
    combiner = fit_reference_combiner(rows)
    assert not combiner.converged
    assert np.isfinite(combiner.score(rows.scores)).all()


def test_attack_free_combination_is_the_sum_of_standard_scores() -> None:
    clean = training_rows().scores[:60]
    combiner = attack_free_combiner(LAYERS, clean)
    other = training_rows(seed=1).scores
    expected = ((other - clean.mean(axis=0)) / clean.std(axis=0)).sum(axis=1)
    np.testing.assert_allclose(combiner.score(other), expected, rtol=1e-10)
    assert combiner.regularization is None


@pytest.mark.parametrize("fit", [fit_combiner, fit_reference_combiner])
def test_json_round_trip_is_exact(fit: object) -> None:
    rows = training_rows()
    combiner = fit(rows)  # type: ignore[operator]
    again = Combiner.from_json(combiner.to_json())
    assert again.to_json() == combiner.to_json()
    np.testing.assert_array_equal(again.score(rows.scores), combiner.score(rows.scores))
    assert again.layers == LAYERS


def test_foreign_json_is_refused() -> None:
    fields = json.loads(fit_combiner(training_rows()).to_json())
    texts = ("", "[]", "{}", json.dumps({**fields, "mean": [0.0]}))
    for text in (*texts, json.dumps({**fields, "std": ["a", 1, 2]})):
        with pytest.raises(DataError, match="combiner"):
            Combiner.from_json(text)


@pytest.mark.parametrize("fit", [fit_combiner, fit_reference_combiner])
def test_bad_training_rows_are_refused(fit: object) -> None:
    rows = training_rows(12)

    def refused(message: str, **changes: object) -> None:
        with pytest.raises(DataError, match=message):
            fit(dataclasses.replace(rows, **changes))  # type: ignore[operator, arg-type]

    for value in (True, False):
        refused("some of both", is_adversarial=np.full(36, value))
    broken = rows.scores.copy()
    broken[3, 1] = np.nan
    refused("NaN or infinity in 1 of 36 rows", scores=broken)
    refused("layers", scores=rows.scores[:, :2])
    refused("layers", layers=("conv", "block"))
    few = np.zeros(36, dtype=bool)
    few[-4:] = True
    refused("images in the training part", is_adversarial=few)


def test_scores_of_other_layers_are_refused() -> None:
    combiner = fit_combiner(training_rows(12))
    with pytest.raises(DataError, match="conv, block, last"):
        combiner.score(np.zeros((4, 2)))
    with pytest.raises(DataError, match="finite"):
        combiner.score(np.full((4, 3), np.nan))
    with pytest.raises(DataError, match="one value"):
        attack_free_combiner(LAYERS, np.ones((5, 3)))
