"""One score of many layers: a logistic regression on standardised scores, as plain numbers."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cdvae_ray.core.detectors.combine import fit_standardizer
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_metrics import BoolArray, FloatArray, IntArray

REGULARIZATIONS = tuple(float(10.0**power) for power in np.linspace(-4, 4, 10))
"""Inverse strengths C to choose from: scikit-learn's own grid."""
NUM_FOLDS = 5
_MAX_ITERATIONS = 1000
_FIELDS = (
    "layers",
    "mean",
    "std",
    "coefficients",
    "intercept",
    "regularization",
    "converged",
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Combiner:
    """score(s) = b + sum_l w_l (s_l - mean_l) / std_l; higher is more adversarial."""

    layers: tuple[str, ...]
    mean: FloatArray
    """(L,), of the training part."""
    std: FloatArray
    """(L,), > 0."""
    coefficients: FloatArray
    """(L,), w."""
    intercept: float
    """b."""
    regularization: float | None
    """C chosen by cross-validation; None: no regression was fitted."""
    converged: bool
    """Whether every fit of the regression, cross-validation included, reached its tolerance."""

    def score(self, scores: FloatArray) -> FloatArray:
        """The combined score, the regression's decision function.

        Args:
            scores: (N, L), in the order of `layers`.

        Returns:
            (N,).

        Raises:
            DataError: scores of another shape, or not finite.
        """
        check_layer_scores(scores, self.layers)
        combined: FloatArray = (scores - self.mean) / self.std @ self.coefficients + self.intercept
        return combined

    def to_json(self) -> str:
        """The combiner as JSON, without loss."""
        fields = {
            name: value.tolist() if isinstance(value := getattr(self, name), np.ndarray) else value
            for name in _FIELDS
        }
        return json.dumps(fields, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Combiner:
        """The combiner that `to_json` wrote.

        Raises:
            DataError: the text is not one.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            if set(fields) != set(_FIELDS):
                raise ValueError(f"fields {sorted(fields)}")
            arrays = {
                name: np.array(fields[name], dtype=np.float64)
                for name in ("mean", "std", "coefficients")
            }
            if any(array.shape != (len(fields["layers"]),) for array in arrays.values()):
                raise ValueError("numbers of other layers")
        except (ValueError, TypeError) as error:
            raise DataError(
                "combiner",
                got=f"no combiner ({error})",
                expected="JSON written by Combiner.to_json",
                remedy="fit it again",
            ) from error
        return cls(**{**fields, **arrays, "layers": tuple(fields["layers"])})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingRows:
    """What a combiner is fitted to: rows of the training part of the images."""

    layers: tuple[str, ...]
    image_ids: IntArray
    """(N,), the image that each row was made of; the groups of cross-validation."""
    scores: FloatArray
    """(N, L)."""
    is_adversarial: BoolArray
    """(N,)."""


def fit_combiner(rows: TrainingRows, *, num_folds: int = NUM_FOLDS) -> Combiner:
    """Fits scaler and regression; C by log-likelihood over folds that keep an image together.

    Each fold's scaler is fitted without it.

    Args:
        rows: of the training part alone.
        num_folds: folds of the cross-validation.

    Raises:
        DataError: scores that are not finite or of other layers, one class alone, or too few images
            for the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_layer_scores(rows.scores, rows.layers)
    _check_classes(rows)
    _check_images(rows, num_folds)
    folds = list(
        GroupKFold(num_folds).split(rows.scores, rows.is_adversarial, groups=rows.image_ids)
    )
    if any(len(set(rows.is_adversarial[part].tolist())) < 2 for fold in folds for part in fold):
        raise _too_few(rows, "both classes in each fold")
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MAX_ITERATIONS)),
        {"logisticregression__C": REGULARIZATIONS},
        cv=folds,
        scoring="neg_log_loss",
        error_score="raise",
    )
    converged = _fit(search, rows)
    scaler, regression = (step for _, step in search.best_estimator_.steps)
    return Combiner(
        layers=rows.layers,
        mean=scaler.mean_,
        std=scaler.scale_,
        coefficients=regression.coef_[0],
        intercept=float(regression.intercept_[0]),
        regularization=float(search.best_params_["logisticregression__C"]),
        converged=converged,
    )


def fit_reference_combiner(rows: TrainingRows) -> Combiner:
    """`LogisticRegressionCV()` on raw scores, as Lee et al. (2018) and the paper's code call it.

    Its folds take rows in order and part an image's rows; C is chosen by accuracy. Departs in that
    today's scikit-learn takes 5 folds and theirs took 3.

    Args:
        rows: of the training part, in the reference's order.

    Raises:
        DataError: scores that are not finite or of other layers, or too few rows of a class.
    """
    from sklearn.linear_model import LogisticRegressionCV

    check_layer_scores(rows.scores, rows.layers)
    _check_classes(rows)
    if min(int(rows.is_adversarial.sum()), int((~rows.is_adversarial).sum())) < NUM_FOLDS:
        raise _too_few(rows, f"at least {NUM_FOLDS} rows of each class")
    regression = LogisticRegressionCV(scoring="accuracy")
    converged = _fit(regression, rows)
    width = len(rows.layers)
    return Combiner(
        layers=rows.layers,
        mean=np.zeros(width),
        std=np.ones(width),
        coefficients=regression.coef_[0],
        intercept=float(regression.intercept_[0]),
        # An array of one until scikit-learn 1.10, a number from then on.
        regularization=float(np.ravel(regression.C_)[0]),
        converged=converged,
    )


def attack_free_combiner(layers: tuple[str, ...], clean: FloatArray) -> Combiner:
    """The standardised sum of layers, from clean images alone.

    Args:
        layers: names.
        clean: (N, L), scores of clean images of the training part.

    Raises:
        DataError: scores that are not finite or of other layers, or a layer that never varies.
    """
    check_layer_scores(clean, layers)
    columns = torch.from_numpy(np.ascontiguousarray(clean))
    fitted = fit_standardizer({name: columns[:, place] for place, name in enumerate(layers)})
    return Combiner(
        layers=layers,
        mean=fitted.mean.numpy(),
        std=fitted.std.numpy(),
        coefficients=np.ones(len(layers)),
        intercept=0.0,
        regularization=None,
        converged=True,
    )


def check_layer_scores(
    scores: FloatArray, layers: tuple[str, ...], *, what: str = "scores by layer"
) -> None:
    """Asks for finite scores (N, L) of L named layers.

    Raises:
        DataError: they are not.
    """
    if scores.ndim != 2 or scores.shape[1] != len(layers) or not layers:
        raise DataError(
            what,
            got=f"shape {scores.shape}",
            expected=f"(N, {len(layers)}) for the layers {', '.join(layers) or '(none)'}",
            remedy="score the layers that the combiner is of, in their order",
        )
    bad = int((~np.isfinite(scores)).any(axis=1).sum())
    if bad:
        raise DataError(
            what,
            got=f"NaN or infinity in {bad} of {len(scores)} rows",
            expected="finite scores",
            remedy="check the detector and its features for overflow",
        )


def _fit(estimator: Any, rows: TrainingRows) -> bool:
    """Fits in place; whether no fit stopped before its tolerance."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        # Defaults that are about to change; results do not depend on them.
        warnings.simplefilter("ignore", FutureWarning)
        estimator.fit(rows.scores, rows.is_adversarial)
    early = [each for each in caught if issubclass(each.category, ConvergenceWarning)]
    for each in caught:
        if each not in early:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    return not early


def _check_classes(rows: TrainingRows) -> None:
    count, adversarial = len(rows.is_adversarial), int(rows.is_adversarial.sum())
    if not 0 < adversarial < count:
        raise DataError(
            "training part of the combiner",
            got=f"{adversarial} adversarial and {count - adversarial} other rows",
            expected="some of both",
            remedy="detect on more images, raise its fraction, or choose an attack that succeeds",
        )


def _check_images(rows: TrainingRows, num_folds: int) -> None:
    if len(np.unique(rows.image_ids[rows.is_adversarial])) < num_folds:
        raise _too_few(rows, f"adversarial rows of at least {num_folds}")


def _too_few(rows: TrainingRows, expected: str) -> DataError:
    return DataError(
        "images in the training part of the combiner",
        got=f"{len(np.unique(rows.image_ids))} with {int(rows.is_adversarial.sum())} adversarial "
        f"rows of {len(rows.image_ids)}",
        expected=expected,
        remedy="detect on more images, or raise its fraction",
    )
