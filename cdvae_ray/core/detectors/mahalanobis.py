"""Mahalanobis distance to the nearest class (Lee et al., 2018), one layer a detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cdvae_ray.core.detectors.checks import check_all_classes, check_features
from cdvae_ray.core.detectors.full_precision import full_precision
from cdvae_ray.core.detectors.moments import ClassMoments
from cdvae_ray.errors import ConfigError, DataError

Precision = Literal["pinvh", "cholesky"]
_BLOCK_ROWS = 2048  # of what is computed of a row, which a CPU's cache then holds


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mahalanobis:
    """Classes with one covariance S among them, in coordinates in which S is the identity.

    With w = (f - m0) A and A A^T the inverse of S, d2_c = |w|^2 - 2 w.w_c + |w_c|^2. Scores are
    computed and returned in the type of these tensors, float64 unless `to` says otherwise.
    """

    center: Tensor
    """m0, the mean of all images, (d,)."""
    whitening: Tensor
    """A, (d, r); r is the rank of S."""
    whitened_means: Tensor
    """w_c = (mu_c - m0) A, (C, r)."""

    def squared_distances(self, features: Tensor) -> Tensor:
        """d2_c = (f - mu_c)^T S^-1 (f - mu_c) to all classes: (N, d) to (N, C), differentiable.

        Raises:
            DataError: empty, non-finite or ill-shaped features.
        """
        check_features(features, width=len(self.center))
        return self._to_all_classes(self._whitened(features))

    def score(self, features: Tensor) -> Tensor:
        """1/2 min_c d2_c, which is -max_c of the reference's score; higher is more adversarial.

        Args:
            features: (N, d), floating point.

        Returns:
            (N,), at least 0; differentiable in the features.

        Raises:
            DataError: empty, non-finite or ill-shaped features.
        """
        check_features(features, width=len(self.center))
        return torch.cat([self._scores_of(rows) for rows in torch.split(features, _BLOCK_ROWS)])

    def _scores_of(self, features: Tensor) -> Tensor:
        """`score` of a block."""
        whitened = self._whitened(features)
        nearest = self._to_all_classes(whitened.detach()).argmin(dim=1)
        # |w - w_c|^2 keeps the digits that a difference of products loses where classes lie far
        # apart: in float32 it leaves three of seven.
        return 0.5 * (whitened - self.whitened_means[nearest]).square().sum(dim=1)

    def _whitened(self, features: Tensor) -> Tensor:
        """w = (f - m0) A: (N, d) to (N, r)."""
        with full_precision(features.device):
            return (features.to(self.center.dtype) - self.center) @ self.whitening

    def _to_all_classes(self, whitened: Tensor) -> Tensor:
        """|w|^2 - 2 w.w_c + |w_c|^2: (N, r) to (N, C)."""
        with full_precision(whitened.device):
            products = whitened @ self.whitened_means.T
        squared_norms = whitened.square().sum(dim=1, keepdim=True)
        return squared_norms - 2 * products + self.whitened_means.square().sum(dim=1)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Mahalanobis:
        """The same detector on a device, scoring in a type; float32 is about twice as fast."""
        return Mahalanobis(
            center=self.center.to(device, dtype),
            whitening=self.whitening.to(device, dtype),
            whitened_means=self.whitened_means.to(device, dtype),
        )


def fit_mahalanobis(
    moments: ClassMoments, *, precision: Precision = "pinvh", ridge: float = 0.0
) -> Mahalanobis:
    """Fits S = W / N, the maximum-likelihood covariance within classes.

    Args:
        moments: of all training images, from `class_moments`, with their true labels.
        precision: pinvh: the pseudo-inverse, which leaves out directions along which the training
            features do not vary (eigenvalues up to d eps times the largest), such as dead channels.
            cholesky: the inverse of S + ridge tr(S) / d I, in which a dead channel weighs 1 / ridge
            times an average one.
        ridge: with cholesky alone, >= 0, a share of the mean variance.

    Raises:
        ConfigError: a ridge that is negative, not finite, or given with pinvh.
        DataError: a class without images, features that never vary within a class, or, with
            cholesky, a singular covariance.
    """
    _check_ridge(precision, ridge)
    check_all_classes(moments.counts)
    total = moments.counts.sum()
    covariance = moments.scatter / total
    if not bool((covariance.diagonal() > 0).any()):
        raise DataError(
            "features to fit a Mahalanobis detector to",
            got="no variation within any class",
            expected="some feature that varies",
            remedy="fit on more images, or on a layer that is alive",
        )
    whitening = _pinvh_root(covariance) if precision == "pinvh" else _ridge_root(covariance, ridge)
    center = (moments.counts.double() @ moments.means) / total
    return Mahalanobis(
        center=center,
        whitening=whitening,
        whitened_means=(moments.means - center) @ whitening,
    )


def _pinvh_root(covariance: Tensor) -> Tensor:
    """A with A A^T = pinv(S): V_r diag(l_r)^(-1/2), over eigenvalues above the rounding of S."""
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    cutoff = len(covariance) * torch.finfo(covariance.dtype).eps * eigenvalues.abs().amax()
    kept = eigenvalues > cutoff
    root: Tensor = eigenvectors[:, kept] * eigenvalues[kept].rsqrt()
    return root


def _ridge_root(covariance: Tensor, ridge: float) -> Tensor:
    """A = L^-T with L L^T = S + ridge tr(S) / d I."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    ridged = covariance + ridge * covariance.diagonal().mean() * identity
    factor, failed = torch.linalg.cholesky_ex(ridged)
    # Rounding may let a singular matrix pass with pivots that are noise.
    smallest_pivot = factor.diagonal().square() / ridged.diagonal().clamp(min=1e-300)
    rounding = len(covariance) * torch.finfo(covariance.dtype).eps
    if bool(failed) or bool(smallest_pivot.amin() <= rounding):
        raise DataError(
            "covariance of the features",
            got="a singular matrix (dead channels, or fewer images than features)",
            expected="a positive definite one",
            remedy="use precision='pinvh', or a ridge such as 1e-6",
        )
    root: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False).T
    return root


def _check_ridge(precision: Precision, ridge: float) -> None:
    if precision not in ("pinvh", "cholesky"):
        raise ConfigError(
            "precision", got=precision, expected="pinvh or cholesky", remedy="choose one of them"
        )
    if not 0 <= ridge < float("inf"):
        raise ConfigError(
            "ridge", got=ridge, expected="a finite number >= 0", remedy="pass one, such as 1e-6"
        )
    if precision == "pinvh" and ridge:
        raise ConfigError(
            "ridge",
            got=f"{ridge} with precision='pinvh'",
            expected="0, as the pseudo-inverse needs none",
            remedy="pass precision='cholesky', or leave the ridge out",
        )
