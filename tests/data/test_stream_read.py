"""Reading chunks and assembling them: the oracle is the same files as an ImageSet in memory."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.data import Batch, ImageSet
from cdvae_ray.data.decode import MAX_PIXELS
from cdvae_ray.data.parquet import load_parquet
from cdvae_ray.data.resized_crop import resized_crop_box
from cdvae_ray.data.stream_order import Chunk, StreamOrder
from cdvae_ray.data.stream_read import DecodedChunk, assemble, read_chunk
from cdvae_ray.data.streamed import StreamedImages
from cdvae_ray.errors import DataError
from tests.data.test_streamed import open_quietly, write_shard

SIZE = 16


@pytest.fixture
def dataset(tmp_path: Path, encode, noise) -> Path:
    """29 images of several sizes, modes and formats in three files, groups of up to 4 rows."""
    pictures = [noise(seed, 8 + seed % 5 * 9, 8 + seed % 7 * 5) for seed in range(30)]
    modes, kinds = ("RGB", "L", "RGBA", "RGB", "CMYK"), ("PNG", "PNG", "PNG", "JPEG", "JPEG")
    encoded = [
        encode(picture.convert(modes[i % 5]), kinds[i % 5]) for i, picture in enumerate(pictures)
    ]
    labels = [i % 3 for i in range(30)]
    for number, (start, stop) in enumerate(((0, 11), (11, 13), (13, 29))):
        file = tmp_path / f"train-{number}.parquet"
        write_shard(file, encoded[start:stop], labels[start:stop], row_group_size=4)
    write_shard(tmp_path / "test.parquet", encoded[29:], labels[29:])
    return tmp_path


def group_chunk(rows: tuple[int, ...], group: int = 0, lane: int = 0, first: int = 0) -> Chunk:
    return Chunk(lane, group, rows, first, 0)


def read(images: StreamedImages, chunk: Chunk, **settings) -> DecodedChunk:
    return read_chunk(images, chunk, **{"min_crop_area": 0.0, "seed": 0, "epoch": 0, **settings})


def order_of(images: StreamedImages, *, rank: int = 0, world_size: int = 1) -> StreamOrder:
    return StreamOrder(
        [group.rows for group in images.groups],
        global_batch_size=8,
        lanes=4,
        seed=5,
        rank=rank,
        world_size=world_size,
    )


def stream(images: StreamedImages, order: StreamOrder, epoch: int, **settings) -> list[Batch]:
    chunks = (read(images, chunk, epoch=epoch, **settings) for chunk in order.chunks(epoch))
    return list(assemble(chunks, order))


def assert_same(chunk: DecodedChunk, image_set: ImageSet, ids: list[int]) -> None:
    assert chunk.image_ids.dtype == chunk.labels.dtype == torch.int64
    assert chunk.image_ids.tolist() == ids
    assert torch.equal(chunk.labels, image_set.labels[chunk.image_ids])
    assert torch.equal(chunk.images, image_set.images[chunk.image_ids])


def test_every_image_is_that_of_the_image_set(dataset: Path) -> None:
    images, image_set = open_quietly(dataset, SIZE), load_parquet(str(dataset), SIZE).train
    for number, group in enumerate(images.groups):
        rows = tuple(reversed(range(group.rows)))
        chunk = read(images, group_chunk(rows, number, lane=3, first=7))
        assert (chunk.lane, chunk.first, chunk.corrupt) == (3, 7, ())
        assert_same(chunk, image_set, [group.first_id + row for row in rows])


def test_a_part_of_a_group_is_read_in_the_order_asked_for(dataset: Path) -> None:
    images, image_set = open_quietly(dataset, SIZE), load_parquet(str(dataset), SIZE).train
    group = images.groups[4]
    assert group.first_id == 13
    assert_same(read(images, group_chunk((2, 0), 4)), image_set, [15, 13])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batches_are_the_orders_and_equal_for_any_number_of_ranks(dataset, world_size) -> None:
    images, image_set = open_quietly(dataset, SIZE), load_parquet(str(dataset), SIZE).train
    whole = order_of(images)
    ranks = [
        stream(images, order_of(images, rank=rank, world_size=world_size), 1, min_crop_area=0.3)
        for rank in range(world_size)
    ]
    alone = stream(images, whole, 1, min_crop_area=0.3)
    for parts, batch in zip(zip(*ranks, strict=True), alone, strict=True):
        for name in Batch._fields:
            assert torch.equal(
                torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)
            )
    ids = torch.cat([batch.image_ids for batch in alone])
    assert len(alone) == whole.batches_per_epoch == 3
    assert len(ids.unique()) == len(ids) == 24
    for batch in stream(images, whole, 1):
        assert torch.equal(batch.images, image_set.images[batch.image_ids])
        assert torch.equal(batch.labels, image_set.labels[batch.image_ids])


def test_batches_follow_the_lanes(dataset: Path) -> None:
    images = open_quietly(dataset, SIZE)
    order = order_of(images)
    lanes: dict[int, list[int]] = {lane: [] for lane in order.lanes}
    for chunk in order.chunks(2):
        lanes[chunk.lane] += [images.groups[chunk.group].first_id + row for row in chunk.rows]
    for number, batch in enumerate(stream(images, order, 2)):
        expected = [i for lane in order.lanes for i in lanes[lane][2 * number : 2 * number + 2]]
        assert batch.image_ids.tolist() == expected


def test_epochs_differ_and_repeat(dataset: Path) -> None:
    images = open_quietly(dataset, SIZE)
    order = order_of(images)
    first, second, again = (stream(images, order, epoch) for epoch in (0, 1, 0))
    ids = [[batch.image_ids.tolist() for batch in batches] for batches in (first, second, again)]
    assert ids[0] == ids[2] != ids[1]


def test_reading_travels_to_other_processes(dataset: Path) -> None:
    images, chunk = open_quietly(dataset, SIZE), group_chunk((2, 0), 2)
    there = read(*pickle.loads(pickle.dumps((images, chunk))))  # noqa: S301
    assert torch.equal(there.images, read(images, chunk).images)


# Images that do not decode


def bomb(side: int = 9000) -> bytes:
    """A PNG of 1 bit a pixel that is small as a file and too large as an image."""

    def block(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side + 7) // 8 + 1) * side, 9)
    blocks = block(b"IHDR", header) + block(b"IDAT", pixels) + block(b"IEND", b"")
    assert side * side > MAX_PIXELS
    assert len(blocks) < 20_000
    return b"\x89PNG\r\n\x1a\n" + blocks


@pytest.fixture
def unsound(encode, noise) -> dict[str, bytes | None]:
    jpeg = encode(noise(0, 64, 64), "JPEG")
    return {
        "null": None,
        "empty": b"",
        "text": b"no image",
        "truncated": jpeg[: len(jpeg) // 2],
        "huge": bomb(),
    }


UNSOUND = ["null", "empty", "text", "truncated", "huge"]


def mixed(path: Path, contents: list[bytes | None], row_group_size: int = 100) -> StreamedImages:
    labels = [row % 3 for row in range(len(contents))]
    for name in ("train.parquet", "test.parquet"):
        write_shard(path / name, contents, labels, row_group_size=row_group_size)
    return open_quietly(path, SIZE)


@pytest.mark.parametrize("kind", UNSOUND)
def test_the_next_sound_image_of_the_chunk_stands_in(tmp_path, encode, noise, unsound, kind):
    sound = [encode(noise(seed)) for seed in range(7)]
    contents = [*sound[:2], unsound[kind], sound[3], unsound[kind], sound[5], sound[6]]
    images = mixed(tmp_path, contents)
    pixels = [torch.from_numpy(np.array(noise(seed))).permute(2, 0, 1) for seed in range(7)]
    cases = {
        (1, 2, 3): [1, 3, 3],
        (6, 2, 4, 0): [6, 0, 0, 0],
        (5, 1, 4): [5, 1, 5],  # cyclically
        (2, 6, 4): [6, 6, 6],
        (0, 1): [0, 1],
    }
    for rows, expected in cases.items():
        chunk = read(images, group_chunk(rows))
        assert chunk.image_ids.tolist() == expected
        assert chunk.labels.tolist() == [row % 3 for row in expected]
        assert torch.equal(chunk.images, torch.stack([pixels[row] for row in expected]))
        names = [f"{images.files[0]} row {row}" for row in rows if row in (2, 4)]
        assert list(chunk.corrupt) == names


def test_a_null_instead_of_an_image_is_replaced_too(tmp_path, encode, noise) -> None:
    rows = [None, {"bytes": encode(noise(1))}]
    table = pa.table({"img": rows, "label": [0, 1]})
    for name in ("train.parquet", "test.parquet"):
        pq.write_table(table, tmp_path / name)
    chunk = read(open_quietly(tmp_path, SIZE), group_chunk((0, 1)))
    assert (chunk.image_ids.tolist(), len(chunk.corrupt)) == ([1, 1], 1)


def test_names_count_rows_over_the_groups_of_a_file(tmp_path, encode, noise) -> None:
    contents = [encode(noise(0)), encode(noise(1)), b"no image", encode(noise(3))]
    images = mixed(tmp_path, contents, row_group_size=2)
    chunk = read(images, group_chunk((0, 1), group=1))
    assert chunk.corrupt == (f"{images.files[0]} row 2",)
    assert chunk.image_ids.tolist() == [3, 3]


def test_a_chunk_without_a_sound_image_takes_one_of_its_group(tmp_path, encode, noise) -> None:
    images = mixed(tmp_path, [b"", None, encode(noise(2)), encode(noise(3))])
    chunk = read(images, group_chunk((1, 0)))
    assert chunk.image_ids.tolist() == [2, 2]
    assert chunk.corrupt == (f"{images.files[0]} row 1", f"{images.files[0]} row 0")


def test_a_group_without_a_sound_image_is_an_error(tmp_path, encode, noise) -> None:
    images = mixed(tmp_path, [encode(noise(0))] * 2 + [b"", None], row_group_size=2)
    message = r"^row group 1 of .*train\.parquet: got no image that decodes among 2, expected"
    with pytest.raises(DataError, match=message):
        read(images, group_chunk((0,), group=1))


def test_a_replaced_image_is_cropped_as_in_its_own_place(tmp_path, encode, noise) -> None:
    images = mixed(tmp_path, [b"", encode(noise(1, 40, 40))])
    chunk = read(images, group_chunk((0, 1)), min_crop_area=0.2, epoch=4)
    assert torch.equal(chunk.images[0], chunk.images[1])


# Files that are not what they were


def test_a_damaged_row_group_names_the_file(tmp_path, encode, noise) -> None:
    images = mixed(tmp_path, [encode(noise(seed)) for seed in range(4)], row_group_size=2)
    path = tmp_path / "train.parquet"
    content = bytearray(path.read_bytes())
    content[4:64] = b"\xff" * 60  # the first page header
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet: got .* expected a complete Parquet file"):
        read(images, group_chunk((0, 1)))
    read(images, group_chunk((0, 1), group=1))  # the other group is whole
    path.unlink()
    with pytest.raises(DataError, match=r"train\.parquet: got .* expected a complete Parquet file"):
        read(images, group_chunk((0, 1), group=1))


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (1, [0], r"got 1 row groups, fewer than before, expected a complete Parquet file"),
        (3, [0, 0, 0], r"got 1 rows in row group 1, 2 before, expected a complete Parquet file"),
        (4, [0, 0, 0, 3], r"^label of .*row 3: got 3, expected a label in \[0, 3\)"),
    ],
)
def test_a_file_that_changed_is_named(tmp_path, encode, noise, rows, labels, message) -> None:
    contents = [encode(noise(seed)) for seed in range(4)]
    images = mixed(tmp_path, contents, row_group_size=2)
    write_shard(tmp_path / "train.parquet", contents[:rows], labels, row_group_size=2)
    with pytest.raises(DataError, match=message):
        read(images, group_chunk((0, 1), group=1))


# Crops


def test_crops_depend_on_seed_epoch_and_image_alone(dataset: Path) -> None:
    images = open_quietly(dataset, SIZE)

    def cropped(rows: tuple[int, ...], seed: int = 1, epoch: int = 2) -> dict[int, torch.Tensor]:
        chunk = read(images, group_chunk(rows), min_crop_area=0.3, seed=seed, epoch=epoch)
        return dict(zip(chunk.image_ids.tolist(), chunk.images, strict=True))

    together, alone = cropped((3, 2, 1, 0)), cropped((2,))
    assert torch.equal(together[2], alone[2])
    for other in (cropped((2,), seed=0), cropped((2,), epoch=3)):
        assert not torch.equal(alone[2], other[2])


def test_a_crop_is_pillows_of_the_box(tmp_path, encode, noise) -> None:
    pictures = [noise(seed, 50, 40) for seed in range(6)]
    images = mixed(tmp_path, [encode(picture) for picture in pictures], row_group_size=3)
    chunk = read(images, group_chunk((2, 0), group=1), min_crop_area=0.25, seed=7, epoch=9)
    keys = image_keys(7, "augment.resized_crop", 9, torch.tensor([5, 3]))
    for picture, uniforms, square in zip(
        (pictures[5], pictures[3]),
        keyed_uniform(keys, 40).view(2, 10, 4).tolist(),
        chunk.images,
        strict=True,
    ):
        box = resized_crop_box(50, 40, uniforms, min_area=0.25)
        expected = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
        assert (square.permute(1, 2, 0).numpy() == np.asarray(expected)).all()


def test_crops_of_odd_images(tmp_path, encode) -> None:
    contents = [
        encode(Image.new("RGB", (1, 1), (9, 8, 7))),
        encode(Image.new("L", (3, 500), 77)),
        encode(Image.new("CMYK", (60, 20), (0, 255, 255, 0)), "TIFF"),
        encode(Image.new("1", (2000, 1), 1)),
    ]
    images = mixed(tmp_path, contents)
    colours = [(9, 8, 7), (77, 77, 77), (255, 0, 0), (255, 255, 255)]
    for epoch in range(20):
        chunk = read(images, group_chunk((0, 1, 2, 3)), min_crop_area=0.01, epoch=epoch)
        assert chunk.corrupt == ()
        assert chunk.images.shape == (4, 3, SIZE, SIZE)
        for square, colour in zip(chunk.images, colours, strict=True):
            assert (square == torch.tensor(colour)[:, None, None]).all()


def test_a_smallest_area_of_1_takes_squares_whole(tmp_path, encode, noise) -> None:
    pictures = [noise(seed, 40, 40) for seed in range(3)]
    images = mixed(tmp_path, [encode(picture) for picture in pictures])
    chunk = read(images, group_chunk((0, 1, 2)), min_crop_area=1.0)
    assert torch.equal(chunk.images, read(images, group_chunk((0, 1, 2))).images)


# Assembling


class Counted(Iterator[DecodedChunk]):
    """Counts what is pulled."""

    def __init__(self, chunks: list[DecodedChunk]) -> None:
        self._chunks, self.pulled = iter(chunks), 0

    def __next__(self) -> DecodedChunk:
        chunk = next(self._chunks)
        self.pulled += 1
        return chunk


@pytest.fixture
def images(dataset: Path) -> StreamedImages:
    return open_quietly(dataset, SIZE)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (2, 4)])
def test_chunks_are_pulled_no_earlier_than_needed(images, rank: int, world_size: int) -> None:
    order = order_of(images, rank=rank, world_size=world_size)
    planned = order.chunks(0)
    counted = Counted([read(images, chunk) for chunk in planned])
    batches = assemble(counted, order)
    assert counted.pulled == 0
    for number, batch in enumerate(batches):
        assert counted.pulled == sum(chunk.needed_by <= number for chunk in planned)
        assert len(batch.labels) == 8 // world_size
    assert counted.pulled == len(planned)


def test_a_batch_is_a_copy(images) -> None:
    order = order_of(images)
    chunks = [read(images, chunk) for chunk in order.chunks(0)]
    before = [chunk.images.clone() for chunk in chunks]
    for batch in assemble(iter(chunks), order):
        batch.images.zero_()
    assert all(torch.equal(a.images, b) for a, b in zip(chunks, before, strict=True))


def test_chunks_that_end_early_are_an_error(images) -> None:
    order = order_of(images)
    batches = assemble(iter([read(images, chunk) for chunk in order.chunks(0)][:-1]), order)
    with pytest.raises(DataError, match=r"^chunks for batch \d of 3: got no more, expected"):
        list(batches)
    with pytest.raises(DataError, match=r"^chunks for batch 0 of 3: got no more"):
        next(assemble(iter([]), order))


def test_chunks_out_of_order_or_of_another_rank_are_an_error(images) -> None:
    order = order_of(images, rank=0, world_size=2)
    chunks = [read(images, chunk) for chunk in order.chunks(0)]
    first, later = (
        next(i for i, c in enumerate(chunks) if c.lane == 0 and (c.first > 0) == is_later)
        for is_later in (False, True)
    )
    swapped = list(chunks)
    swapped[first], swapped[later] = chunks[later], chunks[first]
    with pytest.raises(DataError, match=r"got the one at image \d+ of lane 0, expected the next"):
        list(assemble(iter(swapped), order))
    other = order_of(images, rank=1, world_size=2)
    with pytest.raises(DataError, match=r"got the one at image 0 of lane 0, expected the next"):
        list(assemble(iter(chunks), other))
