"""From chunks of a `StreamOrder` to decoded images, and from those to batches.

`read_chunk` is a pure function of what it is given: it may run anywhere, many at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.data.batches import Batch
from cdvae_ray.data.decode import decode_image, to_square
from cdvae_ray.data.parquet import LABEL_COLUMN, broken_file, image_column, opened_parquet
from cdvae_ray.data.resized_crop import NUM_TRIES, UNIFORMS_PER_TRY, resized_crop_box
from cdvae_ray.data.stream_order import Chunk, StreamOrder
from cdvae_ray.data.streamed import RowGroup, StreamedImages, verified_labels
from cdvae_ray.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


class DecodedChunk(NamedTuple):
    """The images of a chunk, in the order of their use, in host memory."""

    lane: int
    """Which lane they belong to."""
    first: int
    """Position of the first of them in the lane's sequence of images."""
    images: Tensor
    """(K, 3, S, S) uint8."""
    labels: Tensor
    """(K,) int64."""
    image_ids: Tensor
    """(K,) int64: which image each is; of a replaced image, the one that is there instead."""
    corrupt: tuple[str, ...]
    """Names (file and row) of the chunk's images that were replaced as they do not decode."""


class _EncodedGroup(NamedTuple):
    """A row group as read."""

    images: Any
    """Arrow column of structs with `bytes`."""
    labels: Tensor
    """(rows,) int64."""
    first_row: int
    """Number of its first row in the file."""


def read_chunk(
    images: StreamedImages, chunk: Chunk, *, min_crop_area: float, seed: int, epoch: int
) -> DecodedChunk:
    """Reads the chunk's row group and decodes the chunk's rows of it, on one thread.

    An image that does not decode is replaced by the next one of the chunk that does, cyclically;
    where none does, by the first that does of the whole row group. In memory are the encoded
    images of the group and the decoded ones of the chunk.

    Args:
        images: where they lie.
        chunk: of a StreamOrder over images.groups.
        min_crop_area: smallest area of a random resized crop, as a part of the image, in (0, 1];
            0 for `decode.to_square`. See `resized_crop.resized_crop_box`.
        seed: of the crops.
        epoch: the crop of an image depends on nothing but seed, epoch and image id.

    Raises:
        DataError: the file is broken or not the one that was opened, or no image of the row group
            decodes.
    """
    assert 0 <= min_crop_area <= 1, f"min_crop_area {min_crop_area}"
    group = images.groups[chunk.group]
    file, size = images.files[group.file], images.image_size
    encoded = _read_group(images, group)

    def name_of(row: int) -> str:
        return f"{file} row {encoded.first_row + row}"

    def decode(row: int) -> Tensor | None:
        struct = encoded.images[row].as_py() or {"bytes": None}
        try:
            # Null is as undecodable as no bytes at all.
            image = decode_image(struct["bytes"] or b"", name_of(row))
        except DataError:
            return None  # the caller replaces it, and the result names it
        if min_crop_area:
            return _random_crop(image, size, min_crop_area, seed, epoch, group.first_id + row)
        return to_square(image, size)

    rows = list(chunk.rows)
    decoded = torch.empty((len(rows), 3, size, size), dtype=torch.uint8)
    sound, corrupt = [], []
    for place, row in enumerate(chunk.rows):
        square = decode(row)
        if square is None:
            corrupt.append(place)
        else:
            sound.append(place)
            decoded[place] = square
    if not sound:
        # A chunk may be a single row, cut off by a border of lanes: no reason to end training.
        rows[0], decoded[0] = _first_sound_row(decode, group, chunk, file)
        sound = [0]
    for place in corrupt:
        instead = next((other for other in sound if other > place), sound[0])
        rows[place], decoded[place] = rows[instead], decoded[instead]
    chosen = torch.tensor(rows)
    return DecodedChunk(
        lane=chunk.lane,
        first=chunk.first,
        images=decoded,
        labels=encoded.labels[chosen],
        image_ids=group.first_id + chosen,
        corrupt=tuple(name_of(chunk.rows[place]) for place in corrupt),
    )


def assemble(chunks: Iterator[DecodedChunk], order: StreamOrder) -> Iterator[Batch]:
    """This rank's part of each global batch of an epoch.

    A chunk is asked for when the next batch needs it, not before: what is held are the images of
    one batch, and of each lane at most the rest of one chunk.

    Args:
        chunks: what `read_chunk` makes of order.chunks(epoch), in that order.
        order: of this rank.

    Yields:
        order.batches_per_epoch batches of the same images for any number of ranks, one after
        another; see `StreamOrder`.

    Raises:
        DataError: the chunks end early, or one is not the next of its lane.
    """
    waiting: dict[int, deque[Batch]] = {lane: deque() for lane in order.lanes}
    received = dict.fromkeys(order.lanes, 0)
    for number in range(order.batches_per_epoch):
        while min(received.values()) < (number + 1) * order.lane_batch_size:
            chunk = next(chunks, None)
            if chunk is None or received.get(chunk.lane) != chunk.first:
                raise _not_in_order(chunk, number, order)
            waiting[chunk.lane].append(Batch(chunk.images, chunk.labels, chunk.image_ids))
            received[chunk.lane] += len(chunk.labels)
            del chunk  # else its images would stay while the batch is used
        parts = [
            part for lane in order.lanes for part in _take(waiting[lane], order.lane_batch_size)
        ]
        # Copies: no batch keeps a chunk alive.
        batch = Batch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
        del parts
        yield batch


def _take(waiting: deque[Batch], count: int) -> Iterator[Batch]:
    """The next `count` images of a lane, taken out."""
    while count:
        piece = waiting.popleft()
        if len(piece.labels) > count:
            waiting.appendleft(Batch(*(field[count:] for field in piece)))
            piece = Batch(*(field[:count] for field in piece))
        count -= len(piece.labels)
        yield piece


def _read_group(images: StreamedImages, group: RowGroup) -> _EncodedGroup:
    file = images.files[group.file]
    with opened_parquet(images.filesystem, file) as parquet:
        metadata = parquet.metadata
        if group.group >= metadata.num_row_groups:
            raise broken_file(file, f"{metadata.num_row_groups} row groups, fewer than before")
        first_row = sum(metadata.row_group(before).num_rows for before in range(group.group))
        column = image_column(file, parquet.schema_arrow)
        # One thread: many chunks are read at the same time.
        table = parquet.read_row_group(
            group.group, columns=[f"{column}.bytes", LABEL_COLUMN], use_threads=False
        )
    if table.num_rows != group.rows:
        raise broken_file(
            file, f"{table.num_rows} rows in row group {group.group}, {group.rows} before"
        )
    labels = verified_labels(
        table.column(LABEL_COLUMN).to_pylist(), file, first_row, images.num_classes
    )
    return _EncodedGroup(table.column(column), labels, first_row)


def _first_sound_row(
    decode: Callable[[int], Tensor | None], group: RowGroup, chunk: Chunk, file: str
) -> tuple[int, Tensor]:
    """The first row outside the chunk that decodes, and its image."""
    for row in sorted(set(range(group.rows)) - set(chunk.rows)):
        square = decode(row)
        if square is not None:
            return row, square
    raise DataError(
        f"row group {group.group} of {file}",
        got=f"no image that decodes among {group.rows}",
        expected="at least one",
        remedy="write the file again by jobs/prepare_data.py, which leaves such images out",
    )


def _random_crop(
    image: Image, size: int, min_crop_area: float, seed: int, epoch: int, image_id: int
) -> Tensor:
    """(3, size, size) uint8: a random resized crop, bilinear and antialiased."""
    from PIL.Image import Resampling

    keys = image_keys(seed, "augment.resized_crop", epoch, torch.tensor([image_id]))
    uniforms = keyed_uniform(keys, NUM_TRIES * UNIFORMS_PER_TRY).view(NUM_TRIES, UNIFORMS_PER_TRY)
    box = resized_crop_box(*image.size, uniforms.tolist(), min_area=min_crop_area)
    return to_square(image.resize((size, size), Resampling.BILINEAR, box=box), size)


def _not_in_order(chunk: DecodedChunk | None, number: int, order: StreamOrder) -> DataError:
    return DataError(
        f"chunks for batch {number} of {order.batches_per_epoch}",
        got="no more" if chunk is None else f"the one at image {chunk.first} of lane {chunk.lane}",
        expected="the next one of a lane of this rank",
        remedy="read the chunks in the order in which StreamOrder.chunks lists them",
    )
