"""Class means and their shared scatter: exact in one pass, and mergeable over shards."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cdvae_ray.core.detectors.checks import check_features, check_labels
from cdvae_ray.errors import DataError

_BLOCK_ROWS = 8192  # bounds the float64 copies
_GRAM_BLOCKS = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassMoments:
    """Counts, means and scatter of features by class, in float64."""

    counts: Tensor
    """n_c, (C,), int64."""
    means: Tensor
    """mu_c, (C, d); zero for a class without images."""
    scatter: Tensor
    """W = sum_i (f_i - mu_{y_i}) (f_i - mu_{y_i})^T, (d, d), symmetric."""


def class_moments(features: Tensor, labels: Tensor, num_classes: int) -> ClassMoments:
    """Counts, means and within-class scatter of one shard, in float64.

    Args:
        features: (N, d), floating point.
        labels: (N,) int64 in [0, num_classes); a class may be absent.
        num_classes: C.

    Raises:
        ConfigError: there is no class.
        DataError: empty, non-finite or ill-shaped features, or labels out of range.
    """
    check_features(features)
    check_labels(labels, len(features), num_classes)
    blocks = zip(torch.split(features, _BLOCK_ROWS), torch.split(labels, _BLOCK_ROWS), strict=True)
    return reduce_moments(_block_moments(rows, classes, num_classes) for rows, classes in blocks)


def merge_moments(first: ClassMoments, second: ClassMoments) -> ClassMoments:
    """The moments of both shards together (Chan, Golub and LeVeque, 1979).

    With D = mu2 - mu1 and w_c = n1_c n2_c / (n1_c + n2_c), or 0 where both are empty:
    W = W1 + W2 + D^T diag(w) D and mu_c = mu1_c + D_c n2_c / (n1_c + n2_c).

    Raises:
        DataError: the shards differ in the number of classes or features.
    """
    if first.means.shape != second.means.shape:
        raise DataError(
            "moments to merge",
            got=f"(classes, features) {tuple(first.means.shape)} and {tuple(second.means.shape)}",
            expected="the same of both",
            remedy="take all shards from one layer, with one number of classes",
        )
    counts = first.counts + second.counts
    share = second.counts / counts.clamp(min=1).double()
    difference = second.means - first.means
    weighted = (first.counts * share)[:, None] * difference
    scatter = first.scatter + second.scatter + difference.T @ weighted
    return ClassMoments(
        counts=counts,
        means=first.means + share[:, None] * difference,
        scatter=0.5 * (scatter + scatter.T),
    )


def reduce_moments(shards: Iterable[ClassMoments]) -> ClassMoments:
    """Merges shards from first to last: the same order gives the same bits.

    Raises:
        DataError: there is no shard, or they do not fit together.
    """
    shards = list(shards)
    if not shards:
        raise DataError(
            "moments to merge", got="no shard", expected="at least one", remedy="pass some images"
        )
    return functools.reduce(merge_moments, shards)


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """sum_{y_i = c} f_i: (N, d) and (N,) to (C, d), in an order that does not change."""
    # A product, because index_add_ on a GPU adds in any order.
    members = F.one_hot(labels, num_classes).to(features.dtype)
    return members.T @ features


def _block_moments(features: Tensor, labels: Tensor, num_classes: int) -> ClassMoments:
    features = features.detach().double()
    counts = torch.bincount(labels, minlength=num_classes)
    means = class_sums(features, labels, num_classes) / counts.clamp(min=1)[:, None]
    residuals = features - means[labels]
    return ClassMoments(counts=counts, means=means, scatter=_gram(residuals))


def _gram(rows: Tensor) -> Tensor:
    """rows^T rows, (N, d) to (d, d), by the blocks on and above the diagonal: 5/8 of the work."""
    width = rows.shape[1]
    step = max(1, -(-width // _GRAM_BLOCKS))
    product = rows.new_empty(width, width)
    for start in range(0, width, step):
        product[start : start + step, start:] = rows[:, start : start + step].T @ rows[:, start:]
    upper = product.triu()
    return upper + upper.triu(1).T
