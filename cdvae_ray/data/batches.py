"""The seam between datasets and training: who sees which images, in which order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cdvae_ray.data.images import ImageSet
from cdvae_ray.errors import ConfigError


class Batch(NamedTuple):
    """One rank's part of a global batch, in host memory."""

    images: Tensor
    """(B, 3, H, H) uint8."""
    labels: Tensor
    """(B,) int64."""
    image_ids: Tensor
    """(B,) int64: the index of each image in its ImageSet."""

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images as float32 in [0, 1], and labels, on a device."""
        images = self.images.to(device, non_blocking=True).float().div_(255)
        return images, self.labels.to(device, non_blocking=True)


class BatchSource(Protocol):
    """Training batches for one rank, whether from memory or streamed.

    The ranks' parts of global batch g, one after another, are the same images for any number of
    ranks; every rank yields exactly `batches_per_epoch` batches.
    """

    @property
    def num_images(self) -> int:
        """Images in the dataset, over all ranks."""

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in an epoch, the same on every rank."""

    @property
    def corrupt_images(self) -> int:
        """Undecodable images of this rank in the epoch so far, whose places others took."""

    @property
    def max_corrupt_images(self) -> int | None:
        """How many an epoch may have over all ranks; None where images were decoded before."""

    def epoch_batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch; the same for the same epoch."""


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the images.

    Args:
        num_images: how many there are.
        seed: of the run.
        epoch: from 0.

    Returns:
        (num_images,) int64, a permutation that depends on nothing but the arguments.
    """
    key = hashlib.sha256(json.dumps(["order", seed, epoch]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    return torch.randperm(num_images, generator=generator)


class InMemoryBatches:
    """Training batches of an ImageSet: a BatchSource.

    Global batch g of an epoch is order[g B : (g + 1) B], B = global_batch_size; of it rank r gets
    the contiguous block [r b, (r + 1) b), b = B / world_size. An incomplete last global batch is
    left out: up to B - 1 images, others in each epoch.

    Args:
        image_set: what to train on, whole on every rank.
        global_batch_size: images of one step, over all ranks.
        seed: of the epochs' orders; equal on all ranks.
        rank: this rank, in [0, world_size).
        world_size: number of ranks.

    Raises:
        ConfigError: the global batch does not divide among the ranks or exceeds the dataset.
    """

    def __init__(
        self,
        image_set: ImageSet,
        *,
        global_batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        _verify_rank(rank, world_size)
        if global_batch_size < 1 or global_batch_size % world_size:
            raise ConfigError(
                "training.global_batch_size",
                got=f"{global_batch_size} with {world_size} workers",
                expected=f"a multiple of {world_size}",
                remedy="change --training.global-batch-size or the number of workers",
            )
        if global_batch_size > len(image_set):
            raise ConfigError(
                "training.global_batch_size",
                got=global_batch_size,
                expected=f"at most the {len(image_set)} images of {image_set.name}",
                remedy="lower --training.global-batch-size or use more training images",
            )
        self._image_set = image_set
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._rank = rank
        self._rank_batch_size = global_batch_size // world_size
        self.corrupt_images, self.max_corrupt_images = 0, None

    @property
    def num_images(self) -> int:
        """Images in the dataset, over all ranks."""
        return len(self._image_set)

    @property
    def batches_per_epoch(self) -> int:
        """Complete global batches in an epoch."""
        return len(self._image_set) // self._global_batch_size

    def epoch_batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch.

        Args:
            epoch: from 0.

        Yields:
            Batches of global_batch_size / world_size images, copied out of the set.
        """
        order = epoch_order(self.num_images, seed=self._seed, epoch=epoch)
        for index in range(self.batches_per_epoch):
            start = index * self._global_batch_size + self._rank * self._rank_batch_size
            image_ids = order[start : start + self._rank_batch_size]
            # index_select copies whole rows; indexing would gather byte by byte.
            yield Batch(
                self._image_set.images.index_select(0, image_ids),
                self._image_set.labels.index_select(0, image_ids),
                image_ids,
            )


def evaluation_batches(
    image_set: ImageSet,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    limit: int | None = None,
) -> Iterator[Batch]:
    """This rank's shard of an evaluation: over all ranks every image exactly once, in id order.

    Of n images rank r gets ids [n r // world_size, n (r + 1) // world_size): shards are contiguous,
    differ by at most one image and may be empty. A shard's last batch may be short.

    Args:
        image_set: what to evaluate on, whole on every rank.
        batch_size: images of one batch on one rank.
        rank: this rank, in [0, world_size).
        world_size: number of ranks.
        limit: evaluate on the first `limit` images only; all of them where there are fewer.

    Returns:
        An iterator over batches of 1..batch_size images; images and labels are views of the set.

    Raises:
        ConfigError: at the call, for a batch size or limit below 1 or a rank outside the world.
    """
    _verify_rank(rank, world_size)
    _verify_positive("batch size of an evaluation", batch_size)
    if limit is not None:
        _verify_positive("limit of an evaluation", limit)
    count = len(image_set) if limit is None else min(limit, len(image_set))
    start, stop = count * rank // world_size, count * (rank + 1) // world_size
    return _shard_batches(image_set, start, stop, batch_size)


def _shard_batches(image_set: ImageSet, start: int, stop: int, batch_size: int) -> Iterator[Batch]:
    for first in range(start, stop, batch_size):
        last = min(first + batch_size, stop)
        yield Batch(
            image_set.images[first:last], image_set.labels[first:last], torch.arange(first, last)
        )


def _verify_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ConfigError(
            "rank",
            got=f"{rank} of {world_size} workers",
            expected="a rank in [0, number of workers)",
            remedy="pass the rank and world size of one and the same group",
        )


def _verify_positive(what: str, value: int) -> None:
    if value < 1:
        raise ConfigError(what, got=value, expected="at least 1", remedy="choose a larger number")
