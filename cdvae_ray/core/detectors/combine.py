"""One score of many layers without a single adversarial image: the standardised sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdvae_ray.core.detectors.checks import check_features
from cdvae_ray.errors import DataError

Scores = Mapping[str, Tensor] | Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Standardizer:
    """Mean and deviation of every layer's score on clean images."""

    names: tuple[str, ...] | None
    """The layers' names in order; None for columns without names."""
    mean: Tensor
    """(L,), float64."""
    std: Tensor
    """(L,), float64, > 0."""

    def score(self, scores: Scores) -> Tensor:
        """sum_l (s_l - mean_l) / std_l; higher is more adversarial.

        Args:
            scores: by layer (N,) each, of the names fitted and in any order; or (N, L).

        Returns:
            (N,), float64, differentiable.

        Raises:
            DataError: other layers than were fitted, or empty, non-finite or ill-shaped scores.
        """
        names = None if isinstance(scores, Tensor) else set(scores)
        if names != (None if self.names is None else set(self.names)):
            raise DataError(
                "layers of the scores",
                got=_layers(scores),
                expected="columns" if self.names is None else ", ".join(self.names),
                remedy="score the layers that were fitted, in the form they were fitted in",
            )
        columns = _columns(scores, self.names)
        check_features(columns, width=len(self.mean), what="scores")
        return ((columns - self.mean) / self.std).sum(dim=1)


def fit_standardizer(scores: Scores) -> Standardizer:
    """Takes mean and deviation (dividing by N, as StandardScaler) of clean images' scores.

    Args:
        scores: of clean images: by layer (N,) each, or (N, L).

    Raises:
        DataError: empty, non-finite or ill-shaped scores, or a layer whose score is the same for
            all images: any other score would be infinitely far from it.
    """
    names = None if isinstance(scores, Tensor) else tuple(scores)
    if names == ():
        raise DataError(
            "layers of the scores", got="none", expected="at least one", remedy="pass some"
        )
    columns = _columns(scores, names).detach()
    check_features(columns, what="scores")
    mean, std = columns.mean(dim=0), columns.std(dim=0, correction=0)
    constant = torch.nonzero(columns.amin(dim=0) == columns.amax(dim=0)).flatten().tolist()
    if constant:
        layers = [names[index] if names else f"column {index}" for index in constant]
        raise DataError(
            "clean scores",
            got=f"one value for all images in {', '.join(layers)}",
            expected="scores that vary",
            remedy="leave such layers out, or fit on more images",
        )
    return Standardizer(names=names, mean=mean, std=std)


def _columns(scores: Scores, names: tuple[str, ...] | None) -> Tensor:
    """(N, L) in float64, layers in the order of `names`."""
    if isinstance(scores, Tensor):
        return scores.double()
    assert names is not None
    layers = [scores[name] for name in names]
    if any(layer.dim() != 1 or len(layer) != len(layers[0]) for layer in layers):
        raise DataError(
            "scores by layer",
            got=", ".join(f"{name} {tuple(scores[name].shape)}" for name in names),
            expected="(N,) each, of the same N",
            remedy="score the same images in every layer",
        )
    return torch.stack(layers, dim=1).double()


def _layers(scores: Scores) -> str:
    return "columns without names" if isinstance(scores, Tensor) else ", ".join(scores)
