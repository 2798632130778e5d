"""Means, deviations and correlations by column: exact in one pass, and mergeable over shards."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdvae_ray.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PairedMoments:
    """Of two variables a and b, seen together, column by column, in float64."""

    count: int
    """n."""
    mean_a: Tensor
    """(d,)."""
    mean_b: Tensor
    square_a: Tensor
    """sum_i (a_i - mean_a)^2, (d,)."""
    square_b: Tensor
    product: Tensor
    """sum_i (a_i - mean_a) (b_i - mean_b), (d,)."""

    def std_a(self) -> Tensor:
        """The sample's deviation, divisor n - 1; NaN for one image."""
        return (self.square_a / (self.count - 1 if self.count > 1 else float("nan"))).sqrt()

    def correlation(self) -> Tensor:
        """Pearson's r by column, in [-1, 1]; NaN where a or b does not vary."""
        # Each root by itself: the product of two sums of squares may leave the range of floats.
        r = self.product / (self.square_a.sqrt() * self.square_b.sqrt())
        varies = self._varies(self.square_a, self.mean_a) & self._varies(self.square_b, self.mean_b)
        return torch.where(varies, r.clamp(-1, 1), torch.nan)

    def _varies(self, square: Tensor, mean: Tensor) -> Tensor:
        """Whether there is more to the deviations than the rounding of a mean of n numbers."""
        rounding = self.count * torch.finfo(torch.float64).eps * mean.abs()
        return square > self.count * rounding**2


def paired_moments(first: Tensor, second: Tensor) -> PairedMoments:
    """The moments of one shard.

    Args:
        first, second: (N, d), N >= 1, finite; row i of both belongs to one image.

    Raises:
        DataError: the shapes differ or are not that, no row, or a number that is not finite.
    """
    if first.shape != second.shape or first.dim() != 2 or not len(first):
        raise DataError(
            "pairs to take moments of",
            got=f"shapes {tuple(first.shape)} and {tuple(second.shape)}",
            expected="one shape (N, d), N >= 1",
            remedy="pass one row an image",
        )
    a, b = first.double(), second.double()
    if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
        raise DataError(
            "pairs to take moments of",
            got="NaN or infinity",
            expected="finite numbers",
            remedy="check the networks and their images for overflow",
        )
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    a, b = a - mean_a, b - mean_b
    return PairedMoments(
        count=len(a),
        mean_a=mean_a,
        mean_b=mean_b,
        square_a=(a * a).sum(dim=0),
        square_b=(b * b).sum(dim=0),
        product=(a * b).sum(dim=0),
    )


def column_moments(rows: Tensor) -> PairedMoments:
    """The moments of one variable, (N, d): a pair of it with itself."""
    return paired_moments(rows, rows)


def merge_paired(first: PairedMoments, second: PairedMoments) -> PairedMoments:
    """The moments of both shards together (Chan, Golub and LeVeque, 1979).

    Raises:
        DataError: the shards differ in their columns.
    """
    if first.mean_a.shape != second.mean_a.shape:
        raise DataError(
            "moments to merge",
            got=f"{len(first.mean_a)} and {len(second.mean_a)} columns",
            expected="as many",
            remedy="take all shards from one set",
        )
    count = first.count + second.count
    share = second.count / count
    weight = first.count * share
    step_a, step_b = second.mean_a - first.mean_a, second.mean_b - first.mean_b
    return PairedMoments(
        count=count,
        mean_a=first.mean_a + share * step_a,
        mean_b=first.mean_b + share * step_b,
        square_a=first.square_a + second.square_a + weight * step_a * step_a,
        square_b=first.square_b + second.square_b + weight * step_b * step_b,
        product=first.product + second.product + weight * step_a * step_b,
    )


def reduce_paired(shards: Iterable[PairedMoments]) -> PairedMoments:
    """Merges shards from first to last: the same order gives the same bits.

    Raises:
        DataError: there is no shard, or they do not fit together.
    """
    shards = list(shards)
    if not shards:
        raise DataError(
            "moments to merge", got="no shard", expected="at least one", remedy="pass some images"
        )
    return functools.reduce(merge_paired, shards)
