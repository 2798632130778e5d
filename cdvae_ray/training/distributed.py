"""torch.distributed where several ranks train, and its trivial case where one does."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from cdvae_ray.errors import CdvaeError, TrainingError


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """The element-wise sum over all ranks."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_reduce_min(values: Tensor) -> Tensor:
    """The element-wise minimum over all ranks."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MIN)
    return values


def all_gather_rows(values: Tensor) -> Tensor:
    """All ranks' rows (N, ...), rank by rank; every rank must bring equally many."""
    if world_size() == 1:
        return values
    gathered = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(gathered, values.contiguous())
    return torch.cat(gathered)


def from_rank_zero(number: int, device: torch.device) -> int:
    """Rank 0's number, on every rank."""
    values = torch.tensor([number], dtype=torch.int64, device=device)
    if world_size() > 1:
        dist.broadcast(values, src=0)
    return int(values.item())


def copy_from_rank_zero(tensors: Iterable[Tensor]) -> None:
    """Overwrites every rank's tensors by rank 0's."""
    if world_size() > 1:
        for each in tensors:
            dist.broadcast(each, src=0)


def raise_together(error: CdvaeError | None, device: torch.device, *, doing: str) -> None:
    """Raises on every rank if any rank brings an error, so that none waits for another for ever.

    Args:
        error: this rank's own error, or None.
        device: where the ranks' collectives run.
        doing: what the ranks were doing, for the ranks without an error of their own.
    """
    failed = all_reduce_sum(torch.tensor([float(error is not None)], device=device))
    if error is not None:
        raise error
    if failed.item() > 0:
        raise TrainingError(
            doing,
            got="an error on another worker",
            expected="none",
            remedy="see that worker's message",
        )
