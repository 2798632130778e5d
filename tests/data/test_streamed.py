"""Opening Parquet files for streaming: what is found, what is refused, and what is not read."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdvae_ray.config.prepare_job import PrepareConfig
from cdvae_ray.config.serialize import digest_of
from cdvae_ray.data import streamed
from cdvae_ray.data.parquet import load_parquet
from cdvae_ray.data.streamed import RowGroup, StreamedImages, open_streamed
from cdvae_ray.errors import ConfigError, DataError
from cdvae_ray.storage.prepared_images import prepare_images

NAMES = ("cat", "dog", "eel")
SHARDS = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")


def write_shard(
    path: Path,
    images: list[bytes | None],
    labels: list[int | None],
    *,
    column: str = "image",
    names: tuple[str, ...] | None = NAMES,
    label_type: pa.DataType = pa.int64(),  # noqa: B008
    row_group_size: int = 2,
) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": each, "path": None} for each in images], struct)
    table = pa.table({column: rows, "label": pa.array(labels, label_type)})
    if names is not None:
        info = {"info": {"features": {"label": {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


def open_quietly(path: Path | str, image_size: int = 16, **settings: float) -> StreamedImages:
    options = {"max_corrupt_fraction": 0.0, **settings}
    return open_streamed(str(path), image_size, **options, say=lambda _: None)


@pytest.fixture
def pngs(encode, noise) -> list[bytes]:
    return [encode(noise(seed)) for seed in range(8)]


@pytest.fixture
def dataset(tmp_path: Path, pngs) -> Path:
    write_shard(tmp_path / SHARDS[0], pngs[:5], [2, 0, 1, 1, 0])
    write_shard(tmp_path / SHARDS[1], pngs[5:7], [1, 1])
    write_shard(tmp_path / "test.parquet", pngs[7:], [0])
    return tmp_path


@pytest.fixture
def prepared(tmp_path: Path, dataset: Path) -> Path:
    """The dataset as jobs/prepare_data.py writes it, with a manifest."""
    config = PrepareConfig(
        path=str(dataset),
        out=str(tmp_path / "prepared"),
        source="parquet",
        classes="all",
        images_per_shard=4,
    )
    prepare_images(config, say=lambda _: None)
    return tmp_path / "prepared"


def test_groups_are_numbered_over_all_files(dataset: Path) -> None:
    images = open_quietly(dataset)
    assert images.groups == (
        RowGroup(file=0, group=0, first_id=0, rows=2),
        RowGroup(file=0, group=1, first_id=2, rows=2),
        RowGroup(file=0, group=2, first_id=4, rows=1),
        RowGroup(file=1, group=0, first_id=5, rows=2),
    )
    assert images.files == tuple((dataset / name).as_posix() for name in SHARDS)
    assert len(images) == len(load_parquet(str(dataset), 16).train) == 7
    assert (images.class_names, images.num_classes) == (NAMES, 3)
    assert (images.image_size, images.name) == (16, "parquet/train")


def test_uris_and_the_data_folder_are_found(dataset: Path) -> None:
    images = open_quietly(dataset)
    assert open_quietly(dataset.as_uri()).digest == images.digest
    (dataset / "nested/data").mkdir(parents=True)
    for file in dataset.glob("*.parquet"):
        file.rename(dataset / "nested/data" / file.name)
    nested = open_quietly(dataset / "nested")
    assert (nested.digest, nested.groups) == (images.digest, images.groups)


def test_it_is_small_and_travels(dataset: Path) -> None:
    images = open_quietly(dataset)
    assert pickle.loads(pickle.dumps(images)) == images  # noqa: S301
    assert len(pickle.dumps(images)) < 2000


def test_the_digest_is_the_documented_one(dataset: Path) -> None:
    files = [
        [name, rows, hashlib.sha256((dataset / name).read_bytes()).hexdigest()]
        for name, rows in zip(SHARDS, (5, 2), strict=True)
    ]
    content = {"image_size": 16, "class_names": list(NAMES), "files": files}
    assert open_quietly(dataset).digest == digest_of(content)


def test_the_digest_tells_data_apart_and_nothing_else(dataset: Path, pngs, tmp_path) -> None:
    digest = open_quietly(dataset).digest
    assert open_quietly(dataset, max_corrupt_fraction=0.5).digest == digest
    assert open_quietly(dataset, 24).digest != digest
    write_shard(dataset / "test.parquet", pngs[:1], [0])
    assert open_quietly(dataset).digest == digest
    write_shard(dataset / SHARDS[1], [pngs[5], pngs[0]], [1, 1])
    assert open_quietly(dataset).digest != digest


@pytest.mark.parametrize("label_type", [pa.int64(), pa.int32(), pa.uint8(), pa.uint64()])
def test_without_names_the_largest_label_counts(dataset: Path, pngs, label_type) -> None:
    options = {"names": None, "label_type": label_type, "column": "img"}
    write_shard(dataset / SHARDS[0], pngs[:5], [2, 0, 1, 1, 0], **options)
    write_shard(dataset / SHARDS[1], pngs[5:7], [1, 4], **options)
    assert open_quietly(dataset).class_names == ("0", "1", "2", "3", "4")
    write_shard(dataset / SHARDS[1], pngs[5:7], [1, 2])
    assert open_quietly(dataset).class_names == NAMES  # one file with names is enough


@pytest.mark.parametrize("label", [3, -1, None])
def test_a_bad_label_names_file_and_row(dataset: Path, pngs, monkeypatch, label) -> None:
    monkeypatch.setattr(streamed, "_LABELS_PER_BATCH", 2)
    write_shard(dataset / SHARDS[0], pngs[:5], [0, 1, 2, label, 0])
    got = "null" if label is None else label
    message = rf"^label of .*{SHARDS[0]} row 3: got {got}, expected a label in \[0, 3\)"
    with pytest.raises(DataError, match=message):
        open_quietly(dataset)


def test_an_absurd_label_without_names_is_damage(dataset: Path, pngs) -> None:
    for name in SHARDS:
        write_shard(dataset / name, pngs[:2], [0, 2**62], names=None)
    with pytest.raises(DataError, match=r"row 1: got 4611686018427387904"):
        open_quietly(dataset)


def test_files_of_other_classes_are_named(dataset: Path, pngs) -> None:
    write_shard(dataset / SHARDS[1], pngs[:1], [0], names=("cat", "dog", "fox"))
    with pytest.raises(DataError, match=rf"class names in .*{SHARDS[1]}: got 3 names: cat, dog"):
        open_quietly(dataset)
    for name in SHARDS:
        write_shard(dataset / name, pngs[:1], [0], names=("cat", "dog", "cat"))
    with pytest.raises(DataError, match=rf"class names in .*{SHARDS[0]}: got cat more than once"):
        open_quietly(dataset)


def test_a_file_without_rows_is_passed_over(dataset: Path, pngs) -> None:
    digest = open_quietly(dataset).digest
    write_shard(dataset / "train-00000-no-rows.parquet", [], [])
    images = open_quietly(dataset)
    assert [group.file for group in images.groups] == [1, 1, 1, 2]
    assert [group.first_id for group in images.groups] == [0, 2, 4, 5]
    assert images.digest != digest
    for name in SHARDS:
        write_shard(dataset / name, [], [])
    with pytest.raises(
        DataError, match=r"train-00000-no-rows\.parquet, .*: got no rows, expected at least"
    ):
        open_quietly(dataset)


def test_empty_row_groups_are_left_out(dataset: Path) -> None:
    table = pq.read_table(dataset / SHARDS[0])
    with pq.ParquetWriter(dataset / SHARDS[0], table.schema) as writer:
        for part in (table.slice(0, 3), table.slice(0, 0), table.slice(3)):
            writer.write_table(part)
    groups = open_quietly(dataset).groups
    assert pq.ParquetFile(dataset / SHARDS[0]).metadata.num_row_groups == 3
    assert groups[:2] == (RowGroup(0, 0, 0, 3), RowGroup(0, 2, 3, 2))


def test_a_row_group_too_large_to_hold_is_refused(dataset: Path, pngs) -> None:
    rows = streamed.MAX_GROUP_ROWS
    write_shard(dataset / SHARDS[1], pngs[:1] * rows, [0] * rows, row_group_size=rows)
    assert open_quietly(dataset).groups[-1].rows == rows
    rows += 1
    write_shard(dataset / SHARDS[1], pngs[:1] * rows, [0] * rows, row_group_size=rows)
    message = (
        rf"row group 0 of .*{SHARDS[1]}: got 1025 rows, expected at most 1024, .*; write it again "
        r"by jobs/prepare_data\.py, which writes groups of 100 rows$"
    )
    with pytest.raises(DataError, match=message):
        open_quietly(dataset)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all"])
def test_a_file_that_is_no_parquet_is_named(dataset: Path, content: bytes) -> None:
    (dataset / SHARDS[1]).write_bytes(content)
    with pytest.raises(DataError, match=rf"{SHARDS[1]}: got .* expected a complete Parquet file"):
        open_quietly(dataset)


def test_another_layout_is_named(dataset: Path) -> None:
    pq.write_table(pa.table({"img": [b"encoded"], "label": [1]}), dataset / SHARDS[1])
    with pytest.raises(DataError, match=rf"columns of .*{SHARDS[1]}: got .* expected img or"):
        open_quietly(dataset)


def test_missing_files_say_what_is_there(dataset: Path) -> None:
    (dataset / "test.parquet").rename(dataset / "dev.parquet")
    with pytest.raises(DataError, match=r"^data\.path .*: got a folder with dev\.parquet, train-0"):
        open_quietly(dataset)


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_a_corrupt_fraction_outside_its_range_is_refused(dataset: Path, fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_corrupt_fraction: got .* in \[0, 1\)"):
        open_quietly(dataset, max_corrupt_fraction=fraction)


def test_no_image_is_read(dataset: Path, pngs) -> None:
    write_shard(dataset / SHARDS[0], [b"no image", None], [0, 1])
    assert len(open_quietly(dataset)) == 4


class Lines(list[str]):
    """What was said."""

    def open(self, path: Path) -> StreamedImages:
        self.clear()
        return open_streamed(str(path), 16, max_corrupt_fraction=0.0, say=self.append)


@pytest.fixture
def forbid_hashing(monkeypatch) -> Callable[[], None]:
    def forbid() -> None:
        def fail(*_: object) -> str:
            raise AssertionError("a file was read whole")

        monkeypatch.setattr(streamed, "_file_digest", fail)

    return forbid


def test_the_manifest_saves_reading_the_files(prepared: Path, forbid_hashing) -> None:
    lines = Lines()
    manifest = (prepared / "manifest.json").read_bytes()
    (prepared / "manifest.json").unlink()
    read = lines.open(prepared)
    [line] = lines
    assert line.startswith("no manifest.json of jobs/prepare_data.py lists train-00000-of-00002.p")
    assert "reading 2 files, 0.0 MB, for their digests" in line
    (prepared / "manifest.json").write_bytes(manifest)
    forbid_hashing()
    assert lines.open(prepared) == read
    assert lines == []


def test_the_manifests_digests_are_taken_at_their_word(prepared: Path, forbid_hashing) -> None:
    digest = open_quietly(prepared).digest
    shard = prepared / SHARDS[0]
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT")] ^= 1  # in an image, which opening does not read
    shard.write_bytes(content)
    assert open_quietly(prepared).digest == digest
    (prepared / "manifest.json").unlink()
    assert open_quietly(prepared).digest != digest


def test_a_shard_of_another_size_than_its_manifest_says_is_refused(prepared: Path, pngs) -> None:
    size = (prepared / SHARDS[1]).stat().st_size
    write_shard(prepared / SHARDS[1], pngs[:1], [0])
    message = rf"{SHARDS[1]}: got \d+ bytes, expected the {size} that manifest\.json beside it says"
    with pytest.raises(DataError, match=message):
        open_quietly(prepared)


def test_files_that_the_manifest_does_not_list_are_read(prepared: Path, pngs) -> None:
    write_shard(prepared / "train-more.parquet", pngs[:1], [0])
    lines = Lines()
    images = lines.open(prepared)
    [line] = lines
    assert "lists train-more.parquet: reading 1 files" in line
    (prepared / "manifest.json").unlink()
    assert open_quietly(prepared).digest == images.digest


@pytest.mark.parametrize(
    "content",
    [
        b"not JSON",
        b"\xff\xfe",
        b"[]",
        b'{"kind": "another-kind", "files": {"NAME": {"sha256": "0", "bytes": 1}}}',
        b'{"kind": "prepared-images", "files": []}',
        b'{"kind": "prepared-images", "files": {"NAME": {"sha256": 1, "bytes": 1}}}',
        b'{"kind": "prepared-images", "files": {"NAME": null}}',
    ],
)
def test_another_file_of_the_manifests_name_is_passed_over(dataset: Path, content: bytes) -> None:
    digest = open_quietly(dataset).digest
    (dataset / "manifest.json").write_bytes(content.replace(b"NAME", SHARDS[0].encode()))
    lines = Lines()
    assert lines.open(dataset).digest == digest
    assert len(lines) == 1
