"""Nearest neighbours by Euclidean distance: exact, with the work in float32, and mergeable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cdvae_ray.core.detectors.checks import check_features, check_ids
from cdvae_ray.core.detectors.full_precision import full_precision
from cdvae_ray.errors import ConfigError, DataError

_BLOCK_ELEMENTS = 1 << 24  # of a block of products: fewer rows make a slow product
# Of a block of differences: on a CPU one that stays in the cache, 7 times as fast as in memory.
_DIFFERENCES = {"cpu": 1 << 18}
_DIFFERENCES_ELSEWHERE = 1 << 24


class Neighbours(NamedTuple):
    """The references nearest to each query, nearest first."""

    distances: Tensor
    """Euclidean, (N, k), float64; infinite where a shard has no further reference."""
    ids: Tensor
    """The references' ids, (N, k), int64; -1 where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NeighbourIndex:
    """References made ready for searching."""

    references: Tensor
    """(M, d), as they were given."""
    ids: Tensor
    """(M,), int64, at least 0, all different."""
    center: Tensor
    """The references' mean, (d,), float32."""
    points: Tensor
    """References less their mean, (M, d), float32."""
    squared_norms: Tensor
    """Of the points, (M,), float32."""

    def to(self, device: torch.device | str) -> NeighbourIndex:
        """The same index on a device."""
        return NeighbourIndex(
            references=self.references.to(device),
            ids=self.ids.to(device),
            center=self.center.to(device),
            points=self.points.to(device),
            squared_norms=self.squared_norms.to(device),
        )


def index_references(references: Tensor, ids: Tensor) -> NeighbourIndex:
    """Makes references ready for `nearest`.

    Args:
        references: (M, d), floating point.
        ids: (M,) int64, at least 0, all different.

    Raises:
        DataError: empty, non-finite or ill-shaped features, or ids that are not as said.
    """
    check_features(references, what="references")
    _check_reference_ids(ids, len(references))
    references = references.detach()
    center = references.mean(dim=0, dtype=torch.float64).float()
    points = (references - center).float()
    return NeighbourIndex(
        references=references,
        ids=ids,
        center=center,
        points=points,
        squared_norms=points.square().sum(dim=1),
    )


def nearest(
    queries: Tensor, index: NeighbourIndex, num_neighbours: int, *, query_ids: Tensor | None = None
) -> Neighbours:
    """The k nearest references of each query, among all but the query itself.

    Candidates are found by |t|^2 - 2 q.t in float32 on centred features, a few more than k. Their
    distances are differences in float64; a query whose k-th might be beaten by a reference that is
    no candidate, by the error bound of the products, is looked up again in float64.

    Args:
        queries: (N, d), floating point.
        index: of M references.
        num_neighbours: k >= 1.
        query_ids: (N,) int64; a reference of the same id is left out. None: all are kept, however
            near.

    Returns:
        N times min(k, M); distances are differentiable in the queries, with gradient 0 where they
        are 0.

    Raises:
        ConfigError: k below 1.
        DataError: empty, non-finite or ill-shaped features, or ids that are not as said.
    """
    check_features(queries, width=index.references.shape[1], what="queries")
    if num_neighbours < 1:
        raise ConfigError(
            "num_neighbours", got=num_neighbours, expected="at least 1", remedy="pass 20, say"
        )
    excluded = _columns_of(query_ids, index.ids, len(queries))
    count = min(num_neighbours, len(index.references))
    exact = None
    parts = []
    rows = max(1, _BLOCK_ELEMENTS // len(index.references))
    for block, own in zip(torch.split(queries, rows), torch.split(excluded, rows), strict=True):
        columns, distances, certain = _search(block, own, index, count)
        if not bool(certain.all()):
            exact = exact or _in_float64(index)
            doubtful = torch.nonzero(~certain).flatten()
            again = _search(block[doubtful], own[doubtful], exact, count)
            columns = columns.index_copy(0, doubtful, again[0])
            distances = distances.index_copy(0, doubtful, again[1])
        ids = index.ids[columns].masked_fill(distances.isinf(), -1)
        parts.append(Neighbours(distances, ids))
    return Neighbours(*(torch.cat(each) for each in zip(*parts, strict=True)))


def merge_nearest(first: Neighbours, second: Neighbours, num_neighbours: int) -> Neighbours:
    """The k nearest of two shards' neighbours, for the same queries.

    Raises:
        DataError: the shards differ in the number of queries.
    """
    if len(first.ids) != len(second.ids):
        raise DataError(
            "neighbours to merge",
            got=f"{len(first.ids)} and {len(second.ids)} queries",
            expected="the same queries in the same order",
            remedy="search every shard for all queries",
        )
    distances = torch.cat([first.distances, second.distances], dim=1)
    ids = torch.cat([first.ids, second.ids], dim=1)
    order = distances.argsort(dim=1, stable=True)[:, :num_neighbours]
    return Neighbours(distances.gather(1, order), ids.gather(1, order))


def _in_float64(index: NeighbourIndex) -> NeighbourIndex:
    """The same index with points in float64."""
    points = index.references.double() - index.center
    return replace(index, points=points, squared_norms=points.square().sum(dim=1))


def _search(
    queries: Tensor, excluded: Tensor, index: NeighbourIndex, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns and distances of the nearest, (n, count), and which queries are certain, (n,)."""
    dtype = index.points.dtype
    centred = (queries.detach().to(torch.promote_types(queries.dtype, dtype)) - index.center).to(
        dtype
    )
    with full_precision(queries.device):
        products = torch.addmm(index.squared_norms, centred, index.points.T, alpha=-2)
    has_self = torch.nonzero(excluded >= 0).flatten()
    products[has_self, excluded[has_self]] = torch.inf
    candidates = min(len(index.points), _candidates(count))
    found = products.topk(candidates, dim=1, largest=False, sorted=True)
    distances = _distances(queries, index.references, found.indices)
    distances = distances.masked_fill(found.indices == excluded[:, None], torch.inf)
    order = distances.detach().argsort(dim=1, stable=True)[:, :count]
    distances, columns = distances.gather(1, order), found.indices.gather(1, order)
    if candidates == len(index.points) or dtype == torch.float64:
        return columns, distances, torch.ones_like(excluded, dtype=torch.bool)
    # What is no candidate lies at least as far as the last candidate, up to the products' error:
    # |fl(x.y) - x.y| <= d eps |x||y|, and spare terms for the norms and the rounding of x and y.
    norms = centred.double().square().sum(dim=1)
    radius = index.squared_norms.amax().double().sqrt()
    relative = 2 * (centred.shape[1] + 8) * torch.finfo(dtype).eps
    beyond = found.values[:, -1].double() + norms
    margin = relative * (norms.sqrt() + radius).square()
    return columns, distances, distances[:, -1].detach().square() <= beyond - margin


def _distances(queries: Tensor, references: Tensor, columns: Tensor) -> Tensor:
    """|q - t| in float64 by direct difference, of the references in `columns` (N, m): (N, m)."""
    limit = _DIFFERENCES.get(queries.device.type, _DIFFERENCES_ELSEWHERE)
    rows = max(1, limit // (columns.shape[1] * references.shape[1]))
    blocks = zip(torch.split(queries, rows), torch.split(columns, rows), strict=True)
    parts = [
        torch.linalg.vector_norm(
            block[:, None].double() - references[chosen].detach().double(), dim=2
        )
        for block, chosen in blocks
    ]
    return torch.cat(parts)


def _candidates(count: int) -> int:
    """How many to look at for `count` neighbours, so that the rest can be ruled out."""
    return count + 8 + count // 8


def _columns_of(query_ids: Tensor | None, reference_ids: Tensor, count: int) -> Tensor:
    """(N,): where each query is among the references; -1 where it is not."""
    if query_ids is None:
        return reference_ids.new_full((count,), -1)
    check_ids(query_ids, count, what="query_ids")
    ordered, order = reference_ids.sort()
    position = torch.searchsorted(ordered, query_ids).clamp(max=len(ordered) - 1)
    return order[position].where(ordered[position] == query_ids, -1)


def _check_reference_ids(reference_ids: Tensor, count: int) -> None:
    check_ids(reference_ids, count, what="reference_ids")
    ordered = reference_ids.sort().values
    if int(ordered[0]) < 0 or bool((ordered[1:] == ordered[:-1]).any()):
        raise DataError(
            "reference_ids",
            got="negative or repeated ids",
            expected="different ids of at least 0",
            remedy="give every reference its position in the dataset",
        )
