"""Training batches that Ray Data reads and decodes while training goes on: a BatchSource."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import ray.data
import torch
from ray.data import DataContext, ExecutionResources
from ray.exceptions import RayError

from cdvae_ray.data.batches import Batch
from cdvae_ray.data.stream_order import Chunk, StreamOrder
from cdvae_ray.data.stream_read import DecodedChunk, assemble, read_chunk
from cdvae_ray.data.streamed import StreamedImages
from cdvae_ray.errors import DataError
from cdvae_ray.runtime import cluster
from cdvae_ray.runtime.pool import silence_ray_data

Columns = dict[str, np.ndarray]
Say = Callable[[tuple[str, ...]], None]

_CHUNKS_AHEAD = 4
"""Decoded chunks that may wait in the object store, for each CPU that decodes."""
_LEAST_STORE_BYTES = 64 * 2**20


class ShardsError(RuntimeError):
    """Shards cannot be read by this worker.

    No error of the project's own, which every worker would meet: this one may pass, so that Ray
    starts the workers again from the last checkpoint, a few times.
    """


class StreamedBatches:
    """Training batches of images that stay in their shards, for one rank.

    Each rank runs a Ray Data pipeline of its own lanes, an epoch at a time: a task reads a row
    group and decodes what the rank needs of it. What is held is bounded by the chunks ahead and the
    lanes, however many shards there are.

    Args:
        images: where they lie.
        order: of this rank.
        min_crop_area: of a random resized crop, 0 for none.
        seed: of the crops.
        loader_cpus: tasks at a time.
        on_corrupt: gets the names of images that do not decode, as they are met.
    """

    def __init__(
        self,
        images: StreamedImages,
        order: StreamOrder,
        *,
        min_crop_area: float,
        seed: int,
        loader_cpus: int,
        on_corrupt: Say,
    ) -> None:
        self._images, self._order = images, order
        self._min_crop_area, self._seed = min_crop_area, seed
        self._loader_cpus, self._on_corrupt = loader_cpus, on_corrupt
        self.corrupt_images = 0
        """Undecodable images of this rank in the epoch so far, whose places others took."""

    @property
    def num_images(self) -> int:
        """Images in the dataset, over all ranks."""
        return len(self._images)

    @property
    def batches_per_epoch(self) -> int:
        """Complete global batches in an epoch."""
        return self._order.batches_per_epoch

    @property
    def max_corrupt_images(self) -> int:
        """How many images of an epoch, over all ranks, may be undecodable."""
        return int(self._images.max_corrupt_fraction * len(self._images) + 1e-9)

    def epoch_batches(self, epoch: int) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch.

        Raises:
            ShardsError: a shard is broken or gone.
        """
        self.corrupt_images = 0
        try:
            yield from assemble(self._counted(self._decoded(epoch)), self._order)
        except (RayError, ray.data.exceptions.UserCodeException, DataError) as error:
            raise ShardsError(
                f"{self._images.name}, epoch {epoch}: {cluster.deepest_cause(error)}"
            ) from error

    def _counted(self, chunks: Iterator[DecodedChunk]) -> Iterator[DecodedChunk]:
        for chunk in chunks:
            if chunk.corrupt:
                self.corrupt_images += len(chunk.corrupt)
                self._on_corrupt(chunk.corrupt)
            yield chunk
            del chunk  # else it would stay while the batches of others are used

    def _decoded(self, epoch: int) -> Iterator[DecodedChunk]:
        chunks = self._order.chunks(epoch)
        images, min_crop_area, seed = self._images, self._min_crop_area, self._seed

        def read(batch: Columns) -> Columns:
            torch.set_num_threads(1)
            [number] = batch["id"]
            decoded = read_chunk(
                images, chunks[number], min_crop_area=min_crop_area, seed=seed, epoch=epoch
            )
            return _to_columns(decoded)

        context = DataContext.get_current()
        silence_ray_data(context)
        options = context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(
            cpu=self._loader_cpus, object_store_memory=self._store_bytes(chunks)
        )
        # A block a chunk. One CPU a task, outside the placement group of the workers.
        dataset = ray.data.range(len(chunks), override_num_blocks=len(chunks)).map_batches(
            read, batch_size=1, num_cpus=1
        )
        for columns in dataset.iter_batches(batch_size=None, prefetch_batches=1):
            yield from _from_columns(columns)

    def _store_bytes(self, chunks: list[Chunk]) -> int:
        largest = max(len(chunk.rows) for chunk in chunks) * 3 * self._images.image_size**2
        return max(_LEAST_STORE_BYTES, _CHUNKS_AHEAD * self._loader_cpus * largest)


def _to_columns(chunk: DecodedChunk) -> Columns:
    """A row an image; the names of those that were replaced stand in the first rows."""
    count = len(chunk.labels)
    names = [*chunk.corrupt, *[""] * (count - len(chunk.corrupt))]
    return {
        "lane": np.full(count, chunk.lane),
        "position": np.arange(chunk.first, chunk.first + count),
        "images": chunk.images.numpy(),
        "labels": chunk.labels.numpy(),
        "image_ids": chunk.image_ids.numpy(),
        "corrupt": np.array(names),
    }


def _from_columns(columns: Columns) -> Iterator[DecodedChunk]:
    """The chunks of a block: Ray Data may cut a large one in two."""
    lanes = columns["lane"]
    starts = [0, *(np.flatnonzero(np.diff(lanes)) + 1).tolist(), len(lanes)]
    for start, stop in pairwise(starts):
        rows = slice(start, stop)
        yield DecodedChunk(
            lane=int(lanes[start]),
            first=int(columns["position"][start]),
            # Copies: the block itself can leave the object store.
            images=_copied(columns["images"][rows]),
            labels=_copied(columns["labels"][rows]),
            image_ids=_copied(columns["image_ids"][rows]),
            corrupt=tuple(name for name in columns["corrupt"][rows].tolist() if name),
        )


def _copied(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values))
