"""Local intrinsic dimensionality (Ma et al., 2018) against a fixed sample of clean references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdvae_ray.core.detectors.checks import check_features
from cdvae_ray.core.detectors.neighbours import (
    NeighbourIndex,
    Neighbours,
    index_references,
    nearest,
)
from cdvae_ray.errors import ConfigError, DataError

LARGEST_DIMENSIONALITY = 1e6
"""The estimate where all k neighbours lie at one distance, where its formula has no value."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LocalDimensionality:
    """Clean references, to which every image is compared, whichever set it is of."""

    index: NeighbourIndex
    """The references."""

    def nearest(
        self, features: Tensor, num_neighbours: int, query_ids: Tensor | None = None
    ) -> Neighbours:
        """This shard's nearest references, for `merge_nearest` and `dimensionality`."""
        return nearest(features, self.index, num_neighbours, query_ids=query_ids)

    def scores(
        self, features: Tensor, num_neighbours: Sequence[int], query_ids: Tensor | None = None
    ) -> Tensor:
        """LID_k for several k at the cost of the largest; higher is more adversarial.

        Args:
            features: (N, d), floating point.
            num_neighbours: each k >= 2.
            query_ids: (N,) int64, the queries' ids. A reference of the same id is left out: give
                them where a query may be its own reference. None leaves none out.

        Returns:
            (N, number of k), float64, in [0, `LARGEST_DIMENSIONALITY`], differentiable.

        Raises:
            ConfigError: no k, or one below 2.
            DataError: empty, non-finite or ill-shaped features, ill ids, or fewer references
                (without the query itself) than k.
        """
        _check_neighbours(num_neighbours)
        found = self.nearest(features, max(num_neighbours), query_ids)
        return dimensionality(found.distances, num_neighbours)

    def score(
        self, features: Tensor, num_neighbours: int, query_ids: Tensor | None = None
    ) -> Tensor:
        """LID_k for one k: (N, d) to (N,), as `scores`."""
        return self.scores(features, (num_neighbours,), query_ids)[:, 0]

    def to(self, device: torch.device | str) -> LocalDimensionality:
        """The same detector on a device."""
        return LocalDimensionality(index=self.index.to(device))


def fit_lid(features: Tensor, reference_ids: Tensor) -> LocalDimensionality:
    """Keeps a sample of clean training features as references.

    Args:
        features: (M, d), floating point.
        reference_ids: (M,) int64, at least 0, all different: the images' positions in their
            dataset.

    Raises:
        DataError: empty, non-finite or ill-shaped features, features that are the same for all
            images (nothing is local to anything), or ids that are not as said.
    """
    index = index_references(features, reference_ids)
    if len(features) > 1 and bool((features == features[0]).all()):
        raise DataError(
            "features to fit a local dimensionality to",
            got="the same for all images",
            expected="some feature that varies",
            remedy="take a layer that is alive",
        )
    return LocalDimensionality(index=index)


def dimensionality(distances: Tensor, num_neighbours: Sequence[int]) -> Tensor:
    """LID_k = -k / sum_{i<=k} log(r_i / r_k) = k / (k l_k - sum_{i<=k} l_i), l = log r.

    The maximum-likelihood estimate of Amsaleg et al. (2015). Where the formula has no value:

    - r_i = 0 < r_k (some neighbours are duplicates): r_i counts as the smallest normal number, so
      that LID is small, above 0, and falls with each duplicate.
    - r_k = 0 (all k are duplicates): 0, the dimension of a point.
    - r_1 = r_k > 0 (all at one distance): the limit is infinite; `LARGEST_DIMENSIONALITY`, which
      also bounds every other estimate.

    Args:
        distances: (N, at least max k), sorted along each row, as in `Neighbours`.
        num_neighbours: each k >= 2.

    Returns:
        (N, number of k), differentiable.

    Raises:
        ConfigError: no k, or one below 2.
        DataError: fewer neighbours than k.
    """
    _check_neighbours(num_neighbours)
    largest = max(num_neighbours)
    available = distances.shape[1]
    if available >= largest:
        available = int(distances[:, :largest].isfinite().sum(dim=1).amin())
    if available < largest:
        raise DataError(
            "references to find neighbours among",
            got=f"{available} besides the query itself",
            expected=f"at least {largest}, the largest number of neighbours",
            remedy="pass more references or ask for fewer neighbours",
        )
    tiny = torch.finfo(distances.dtype).tiny
    logs = distances[:, :largest].clamp(min=tiny).log()
    k = torch.tensor(tuple(num_neighbours), device=distances.device)
    mean_log_ratio = logs[:, k - 1] - logs.cumsum(dim=1)[:, k - 1] / k
    estimates = mean_log_ratio.clamp(min=1 / LARGEST_DIMENSIONALITY).reciprocal()
    return estimates.masked_fill(distances[:, k - 1] < tiny, 0.0)


def reference_lid(
    queries: Tensor, clean: Tensor, num_neighbours: Sequence[int], *, batch_size: int = 100
) -> Tensor:
    """LID as the reference code of Ma et al. and Lee et al. computes it, for protocol="reference".

    Clean images are cut into minibatches, and query i is compared with the minibatch of clean image
    i, of which it is a version. The nearest of the batch is dropped whatever it is: for a clean
    query that is the query itself, for a noisy or adversarial one a true neighbour, which moves
    these sets apart even where nothing but fresh clean images is compared. Distances are float64;
    k shrinks to the batch's size less one, as there. Zero distances as in `dimensionality`.

    Args:
        queries: (N, d), floating point: the clean features themselves or their twins.
        clean: (N, d), floating point.
        num_neighbours: each k >= 2.
        batch_size: images a minibatch; the last may be smaller, and needs 3.

    Returns:
        (N, number of k), float64.

    Raises:
        ConfigError: no k, or one below 2, or a batch size below 3.
        DataError: empty, non-finite or ill-shaped features, another number of queries, or a last
            minibatch of fewer than 3.
    """
    _check_neighbours(num_neighbours)
    check_features(clean, what="clean features")
    check_features(queries, width=clean.shape[1], what="queries")
    if batch_size < 3:
        raise ConfigError(
            "batch_size", got=batch_size, expected="at least 3", remedy="pass the paper's 100"
        )
    if len(queries) != len(clean) or 0 < len(clean) % batch_size < 3:
        raise DataError(
            "images for the reference local dimensionality",
            got=f"{len(queries)} queries and {len(clean)} clean images in batches of {batch_size}",
            expected="as many of both, and at least 3 in the last batch",
            remedy="pass twins row by row, and choose another batch size",
        )
    parts = []
    pairs = zip(torch.split(queries, batch_size), torch.split(clean, batch_size), strict=True)
    for rows, batch in pairs:
        distances = torch.cdist(
            rows.double(), batch.double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        kept = distances.sort(dim=1).values[:, 1 : max(num_neighbours) + 1]
        parts.append(dimensionality(kept, [min(k, len(batch) - 1) for k in num_neighbours]))
    return torch.cat(parts)


def _check_neighbours(num_neighbours: Sequence[int]) -> None:
    if not num_neighbours or min(num_neighbours) < 2:
        raise ConfigError(
            "num_neighbours",
            got=tuple(num_neighbours),
            expected="numbers of at least 2, as one distance has no growth",
            remedy="pass such as (10, 20, 50)",
        )
