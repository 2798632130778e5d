"""Gaussian kernel density of the predicted class (Feinman et al., 2017), summed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdvae_ray.core.detectors.checks import check_all_classes, check_features, check_labels
from cdvae_ray.core.detectors.full_precision import full_precision
from cdvae_ray.core.detectors.moments import class_sums
from cdvae_ray.errors import ConfigError, DataError

# A block of exponents holds at most their product, 32 MB in float64.
_QUERY_ROWS, _REFERENCE_ROWS = 1024, 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KernelSums:
    """Unnormalised densities of queries, which add up over shards of the references."""

    log_sums: Tensor
    """log sum_t exp(-|q - t|^2 / 2 h^2) over the predicted class, (N,); -inf over no reference."""
    counts: Tensor
    """n_c of each query's predicted class, (N,), int64."""


def merge_kernel_sums(first: KernelSums, second: KernelSums) -> KernelSums:
    """The sums over both shards' references, for the same queries: log(e^a + e^b), counts added.

    Raises:
        DataError: the shards differ in the number of queries.
    """
    if first.counts.shape != second.counts.shape:
        raise DataError(
            "kernel sums to merge",
            got=f"{len(first.counts)} and {len(second.counts)} queries",
            expected="the same queries in the same order",
            remedy="score all queries against every shard",
        )
    return KernelSums(
        log_sums=torch.logaddexp(first.log_sums, second.log_sums),
        counts=first.counts + second.counts,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KernelDensity:
    """One density a class, p_c(q) = 1/n_c sum_t N(q; t, h^2 I), with all references kept.

    Sums run in the type of these tensors, float64 unless `to` says otherwise.
    """

    references: Tensor
    """t - mean of its class, ordered by class, (M, d)."""
    half_norms: Tensor
    """|t - mean|^2 / 2, (M,)."""
    centers: Tensor
    """The classes' means, (C, d); zero for a class without references."""
    counts: tuple[int, ...]
    """n_c, which is where the classes lie in `references`."""
    bandwidth: float
    """h, in units of the features."""

    def kernel_sums(self, features: Tensor, predictions: Tensor) -> KernelSums:
        """Sums over the references of the predicted class, for `merge_kernel_sums`.

        Args:
            features: (N, d), floating point.
            predictions: (N,) int64, the classes that the classifier predicts.

        Returns:
            N sums, differentiable in the features.

        Raises:
            DataError: empty, non-finite or ill-shaped features, or predictions out of range.
        """
        log_sums = log_kernel_sums(self, features, predictions, (self.bandwidth,))[0]
        counts = torch.tensor(self.counts, device=predictions.device)[predictions]
        return KernelSums(log_sums=log_sums, counts=counts)

    def score(self, features: Tensor, predictions: Tensor) -> Tensor:
        """-log p_c(q) with c the predicted class, nats; higher is more adversarial.

        Args:
            features: (N, d), floating point.
            predictions: (N,) int64, the classes that the classifier predicts.

        Returns:
            (N,), differentiable in the features.

        Raises:
            DataError: empty, non-finite or ill-shaped features, predictions out of range, or of a
                class without references.
        """
        return self.score_of_sums(self.kernel_sums(features, predictions))

    def score_of_sums(self, sums: KernelSums) -> Tensor:
        """The score of sums merged over all shards, each with this bandwidth.

        -log p = log n_c + d/2 log(2 pi h^2) - log sum_t exp(-|q - t|^2 / 2 h^2).

        Raises:
            DataError: a predicted class has no reference in any shard.
        """
        if bool((sums.counts == 0).any()):
            raise DataError(
                "kernel density of the predicted class",
                got="a class without references",
                expected="at least one reference of each class",
                remedy="merge the sums of all shards first",
            )
        normalizer = 0.5 * self.references.shape[1] * math.log(2 * math.pi * self.bandwidth**2)
        return sums.counts.to(sums.log_sums.dtype).log() + normalizer - sums.log_sums

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> KernelDensity:
        """The same detector on a device, summing in a type."""
        return KernelDensity(
            references=self.references.to(device, dtype),
            half_norms=self.half_norms.to(device, dtype),
            centers=self.centers.to(device, dtype),
            counts=self.counts,
            bandwidth=self.bandwidth,
        )


def fit_kernel_density(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    bandwidth: float,
    is_shard: bool = False,
) -> KernelDensity:
    """Keeps the training features by class.

    The kernel is exp(-|q - t|^2 / 2 h^2), as in scikit-learn; Feinman et al. print
    exp(-|q - t|^2 / s^2), where s^2 = 2 h^2. Constant features are no error: h alone is the width.

    Args:
        features: (M, d), floating point, of clean training images.
        labels: (M,) int64 in [0, num_classes), their true classes.
        num_classes: C.
        bandwidth: h > 0, in units of the features.
        is_shard: these are some of several shards' references, so that a class may be absent.

    Raises:
        ConfigError: no class, or a bandwidth that is not positive.
        DataError: empty, non-finite or ill-shaped features, labels out of range, or a class without
            references.
    """
    check_features(features)
    check_labels(labels, len(features), num_classes)
    check_bandwidths((bandwidth,))
    counts = torch.bincount(labels, minlength=num_classes)
    if not is_shard:
        check_all_classes(counts)
    features = features.detach().double()
    centers = class_sums(features, labels, num_classes) / counts.clamp(min=1)[:, None]
    order = labels.argsort(stable=True)
    references = features[order] - centers[labels[order]]
    return KernelDensity(
        references=references,
        half_norms=0.5 * references.square().sum(dim=1),
        centers=centers,
        counts=tuple(counts.tolist()),
        bandwidth=bandwidth,
    )


def log_kernel_sums(
    density: KernelDensity, features: Tensor, predictions: Tensor, bandwidths: Sequence[float]
) -> Tensor:
    """log sum_t exp(-|q - t|^2 / 2 h^2) for several h at the products of one: (H, N).

    Args and Raises: as `KernelDensity.kernel_sums`.
    """
    check_features(features, width=density.references.shape[1])
    check_labels(predictions, len(features), len(density.counts), what="predictions")
    order = predictions.argsort(stable=True)
    sizes = torch.bincount(predictions, minlength=len(density.counts)).tolist()
    queries = torch.split(features.to(density.references.dtype)[order], sizes)
    references = torch.split(density.references, list(density.counts))
    half_norms = torch.split(density.half_norms, list(density.counts))
    classes = zip(queries, density.centers, references, half_norms, strict=True)
    log_sums = torch.cat(
        [
            _block_log_sums(rows - center, points, halves, bandwidths)
            for each, center, points, halves in classes
            for rows in torch.split(each, _QUERY_ROWS)
        ],
        dim=1,
    )
    return log_sums[:, order.argsort()]


def _block_log_sums(
    queries: Tensor, references: Tensor, half_norms: Tensor, bandwidths: Sequence[float]
) -> Tensor:
    """`log_kernel_sums` of one class: queries (N, d), references (n, d) to (H, N)."""
    if not len(references):
        return queries.new_full((len(bandwidths), len(queries)), -math.inf)
    blocks = zip(
        torch.split(references, _REFERENCE_ROWS),
        torch.split(half_norms, _REFERENCE_ROWS),
        strict=True,
    )
    with full_precision(queries.device):
        sums = [
            _log_sums_exp(_half_products(queries, points, halves), bandwidths)
            for points, halves in blocks
        ]
    total = sums[0] if len(sums) == 1 else torch.logsumexp(torch.stack(sums), dim=0)
    half_norm = 0.5 * queries.square().sum(dim=1)
    return total - torch.stack([half_norm / bandwidth**2 for bandwidth in bandwidths])


def _half_products(queries: Tensor, references: Tensor, half_norms: Tensor) -> Tensor:
    """q.t - |t|^2 / 2, which is (|q|^2 - |q - t|^2) / 2: (N, n)."""
    return torch.addmm(half_norms, queries, references.T, beta=-1)


def _log_sums_exp(half_products: Tensor, bandwidths: Sequence[float]) -> Tensor:
    """log sum_t exp(z / h^2) over the last dimension for each h: (N, n) to (H, N)."""
    if half_products.requires_grad:
        rows = [torch.logsumexp(half_products / bandwidth**2, dim=1) for bandwidth in bandwidths]
        return torch.stack(rows)
    largest = half_products.amax(dim=1)
    half_products.sub_(largest[:, None])
    rows = []
    for index, bandwidth in enumerate(bandwidths):
        # The last may overwrite the products: one pass less through memory.
        is_last = index + 1 == len(bandwidths)
        exponents = torch.mul(half_products, bandwidth**-2, out=half_products if is_last else None)
        rows.append(exponents.exp_().sum(dim=1).log_() + largest / bandwidth**2)
    return torch.stack(rows)


def check_bandwidths(bandwidths: Sequence[float]) -> None:
    """Asks for at least one bandwidth, each finite and above 0.

    Raises:
        ConfigError: they are not.
    """
    if not bandwidths or not all(0 < value < math.inf for value in bandwidths):
        raise ConfigError(
            "bandwidth",
            got=", ".join(map(str, bandwidths)) or "none",
            expected="a finite number > 0",
            remedy="pass one in units of the features, or choose one by choose_bandwidth",
        )
