"""The order in which an epoch reads images that come in row groups: shuffled, in lanes.

Only whole row groups are cheap to read. So an epoch visits the groups in a random order, and the
rows of each in a random order, and cuts this sequence of all images into equally long lanes. A
global batch takes the next few images of every lane: they come from as many groups as there are
lanes. Lanes, not ranks, are what the sequence is cut into: any number of workers sees one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cdvae_ray.config.checks import require
from cdvae_ray.core.random import image_keys


class Chunk(NamedTuple):
    """Rows of one row group that one lane uses one after another: what is read at a time."""

    lane: int
    """Which lane, counted over all ranks."""
    group: int
    """Index into the row groups."""
    rows: tuple[int, ...]
    """Rows within the group, in the order of their use; at least one, none twice."""
    first: int
    """Position of the first of them in the lane's sequence of images."""
    needed_by: int
    """The first global batch of the epoch that uses one of them, from 0."""


class StreamOrder:
    """Which rows a rank reads in an epoch, and in which order.

    Of N images, with B = global_batch_size, L = lanes and b = B / L, an epoch has N // B batches
    and a lane n = b (N // B) images: lane l is [l n, (l + 1) n) of the shuffled sequence. Global
    batch g is images [g b, (g + 1) b) of lane 0, then those of lane 1, ...; rank r of R has the
    lanes [r L / R, (r + 1) L / R). So the ranks' parts one after another are the same images for
    any R. The end of the sequence, up to B - 1 images, is left out: others in each epoch.

    Args:
        groups_rows: rows of each row group, at least one each.
        global_batch_size: images of one step, over all ranks.
        lanes: row groups that a global batch is mixed of.
        seed: of the epochs' orders; equal on all ranks.
        rank: this rank, in [0, world_size).
        world_size: number of ranks.

    Raises:
        ConfigError: the global batch does not divide among the lanes, or the lanes among the
            ranks, or the global batch exceeds the dataset.
    """

    def __init__(
        self,
        groups_rows: Sequence[int],
        *,
        global_batch_size: int,
        lanes: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        assert min(groups_rows, default=1) >= 1, "a row group without rows"
        self._rows = torch.tensor(groups_rows, dtype=torch.int64)
        self.num_images = int(self._rows.sum())
        """Images in the dataset, over all ranks."""
        _verify(global_batch_size, lanes, rank, world_size, self.num_images)
        self.batches_per_epoch = self.num_images // global_batch_size
        """Complete global batches in an epoch, the same on every rank."""
        self.lane_batch_size = global_batch_size // lanes
        """Images of each lane in a global batch."""
        self.lanes = range(rank * lanes // world_size, (rank + 1) * lanes // world_size)
        """The lanes of this rank; its part of a batch has their images in this order."""
        self._seed = seed

    def chunks(self, epoch: int) -> list[Chunk]:
        """What this rank reads in an epoch, sorted by (needed_by, lane): in order of need.

        Global batch g can be assembled when all chunks with needed_by <= g are there.

        Args:
            epoch: from 0.

        Returns:
            Chunks that depend on nothing but the constructor's arguments and the epoch.
        """
        groups = _shuffled(_keys(self._seed, "stream.groups", epoch, len(self._rows)))
        keys = _keys(self._seed, "stream.rows", epoch, self.num_images)
        row_keys = torch.split(keys, self._rows.tolist())
        # Where each group, in the order of the epoch, ends in the sequence of all images.
        ends = self._rows[groups].cumsum(0)
        lane_images = self.batches_per_epoch * self.lane_batch_size
        chunks = []
        for lane in self.lanes:
            position, lane_end = lane * lane_images, (lane + 1) * lane_images
            place = int(torch.searchsorted(ends, position, right=True))
            while position < lane_end:
                group, group_end = groups[place], int(ends[place])
                group_start = group_end - len(row_keys[group])
                stop = min(group_end, lane_end)
                rows = _shuffled(row_keys[group])[position - group_start : stop - group_start]
                first = position - lane * lane_images
                chunks.append(Chunk(lane, group, tuple(rows), first, first // self.lane_batch_size))
                position, place = stop, place + 1
        # Stable: chunks of one lane that are needed by the same batch stay in their order.
        return sorted(chunks, key=lambda chunk: (chunk.needed_by, chunk.lane))


def _keys(seed: int, purpose: str, epoch: int, count: int) -> Tensor:
    return image_keys(seed, purpose, epoch, torch.arange(count))


def _shuffled(keys: Tensor) -> list[int]:
    # No two keys are equal: the order is determined, and uniform as far as the keys are.
    order: list[int] = keys.argsort().tolist()
    return order


def _verify(
    global_batch_size: int, lanes: int, rank: int, world_size: int, num_images: int
) -> None:
    require(
        0 <= rank < world_size,
        "rank",
        got=f"{rank} of {world_size} workers",
        expected="a rank in [0, number of workers)",
        remedy="pass the rank and world size of one and the same group",
    )
    require(
        lanes >= 1 and lanes % world_size == 0,
        "data.lanes",
        got=f"{lanes} with {world_size} workers",
        expected=f"a multiple of {world_size}",
        remedy="change --data.lanes or the number of workers",
    )
    require(
        global_batch_size >= 1 and global_batch_size % lanes == 0,
        "training.global_batch_size",
        got=f"{global_batch_size} with {lanes} lanes",
        expected=f"a multiple of {lanes}",
        remedy="change --training.global-batch-size or --data.lanes",
    )
    require(
        global_batch_size <= num_images,
        "training.global_batch_size",
        got=global_batch_size,
        expected=f"at most the {num_images} training images",
        remedy="lower --training.global-batch-size or use more training images",
    )
