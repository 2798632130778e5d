from __future__ import annotations

import json
import os
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data import ImageSet, Splits, load_split, load_splits
from cdvae_ray.data import parquet as parquet_module
from cdvae_ray.data.images import LIMIT_SEED, limited_order
from cdvae_ray.errors import DataError

NAMES = ["cat", "dog", "eel"]


def _write(
    path: Path,
    images: list,
    labels: list,
    *,
    column: str = "img",
    names: list[str] | None = NAMES,
    label_type: pa.DataType = pa.int64(),  # noqa: B008
    row_group_size: int = 2,
) -> None:
    rows = [i if isinstance(i, dict) or i is None else {"bytes": i, "path": None} for i in images]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(rows, struct), "label": pa.array(labels, label_type)})
    if names is not None:
        label = {"names": names, "_type": "ClassLabel"}
        info = {"info": {"features": {column: {"_type": "Image"}, "label": label}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


@pytest.fixture
def pngs(encode, noise) -> list[bytes]:
    return [encode(noise(seed)) for seed in range(8)]


@pytest.fixture
def dataset(tmp_path: Path, pngs) -> Path:
    _write(tmp_path / "train-00000-of-00002.parquet", pngs[:3], [2, 0, 1])
    _write(tmp_path / "train-00001-of-00002.parquet", pngs[3:5], [1, 1])
    _write(tmp_path / "test.parquet", pngs[5:7], [0, 2])
    return tmp_path


def _config(path: Path | str, image_size: int = 16, **limits: int) -> DataConfig:
    return DataConfig(source="parquet", path=str(path), image_size=image_size, **limits)


def _load(path: Path | str, image_size: int = 16, **limits: int) -> Splits:
    return load_splits(_config(path, image_size, **limits))


def _chosen(num_rows: int, limit: int) -> list[int]:
    return limited_order(num_rows, limit, LIMIT_SEED, "rows").tolist()


def _assert_same(got: ImageSet, expected: ImageSet) -> None:
    assert torch.equal(got.images, expected.images)
    assert got.labels.tolist() == expected.labels.tolist()
    assert (got.digest, got.name) == (expected.digest, expected.name)
    assert got.class_names == expected.class_names


def _damage_row_group(path: Path, group: int) -> None:
    """Overwrites the encoded images of a row group, so that reading it fails."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(0)
    assert chunk.path_in_schema.endswith(".bytes")
    start = chunk.data_page_offset
    if chunk.dictionary_page_offset is not None:
        start = min(start, chunk.dictionary_page_offset)
    damaged = bytearray(path.read_bytes())
    damaged[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(damaged)


def _assert_whole(splits: Splits, noise) -> None:
    assert splits.train.labels.tolist() == [2, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 2]
    decoded = torch.cat([splits.train.images, splits.test.images]).permute(0, 2, 3, 1).numpy()
    assert (decoded == np.stack([np.asarray(noise(seed)) for seed in range(7)])).all()


def test_round_trip_over_files_and_row_groups(dataset: Path, noise) -> None:
    splits = _load(dataset)
    _assert_whole(splits, noise)
    assert splits.train.class_names == splits.test.class_names == tuple(NAMES)
    assert (splits.train.name, splits.test.name) == ("parquet/train", "parquet/test")


def test_uris_and_relative_paths_are_read(dataset: Path, noise, monkeypatch) -> None:
    _assert_whole(_load(dataset.as_uri()), noise)
    monkeypatch.chdir(dataset.parent)
    _assert_whole(_load(dataset.name), noise)


def test_the_data_folder_and_validation_files_stand_in(tmp_path: Path, dataset, pngs) -> None:
    whole = _load(dataset)
    nested = tmp_path / "nested"
    for file in dataset.glob("train*.parquet"):
        (nested / "data").mkdir(parents=True, exist_ok=True)
        file.rename(nested / "data" / file.name)
    (dataset / "test.parquet").rename(nested / "data/validation-0.parquet")
    (nested / "README.md").write_text("about")
    again = _load(nested)
    assert (again.train.digest, again.test.digest) == (whole.train.digest, whole.test.digest)
    _write(nested / "data/test-0.parquet", pngs[7:], [1])
    assert len(_load(nested).test) == 1  # test files go before validation files


@pytest.mark.parametrize("label_type", [pa.int64(), pa.int32(), pa.uint8()])
def test_column_image_and_missing_names(tmp_path: Path, pngs, label_type) -> None:
    options = {"column": "image", "names": None, "label_type": label_type}
    _write(tmp_path / "train.parquet", pngs[:3], [0, 2, 0], **options)
    _write(tmp_path / "test.parquet", pngs[3:4], [1], **options)
    assert _load(tmp_path).test.class_names == ("0", "1", "2")
    _write(tmp_path / "test.parquet", pngs[3:4], [3], **options)
    with pytest.raises(DataError, match=r"test\.parquet row 0: got 3, expected .* \[0, 3\)"):
        _load(tmp_path)


def test_an_absurd_label_without_names_is_damage(tmp_path: Path, pngs) -> None:
    for name in ("train.parquet", "test.parquet"):
        _write(tmp_path / name, pngs[:2], [0, 2**62], names=None)
    with pytest.raises(DataError, match=r"train\.parquet row 1: got 4611686018427387904"):
        _load(tmp_path)


def test_other_sizes_are_cropped_to_squares(tmp_path: Path, encode, noise) -> None:
    for name in ("train.parquet", "test.parquet"):
        _write(tmp_path / name, [encode(noise(0, 40, 30)), encode(noise(1, 8, 9))], [0, 1])
    assert _load(tmp_path).train.images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("label", [3, -1, None])
def test_a_bad_label_names_file_and_row(dataset: Path, pngs, label: int | None) -> None:
    _write(dataset / "train-00001-of-00002.parquet", pngs[:5], [0, 1, 2, 0, label])
    got = "null" if label is None else label
    with pytest.raises(DataError, match=rf"train-00001-of-00002\.parquet row 4: got {got}, exp"):
        _load(dataset)


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "a.jpg"}])
def test_an_image_without_bytes_names_file_and_row(dataset: Path, pngs, image) -> None:
    _write(dataset / "test.parquet", [*pngs[:3], image], [0, 0, 0, 0])
    with pytest.raises(DataError, match=r"test\.parquet row 3: got no bytes in column img"):
        _load(dataset)


def test_a_truncated_jpeg_names_file_and_row(dataset: Path, pngs, encode, noise) -> None:
    jpeg = encode(noise(0, 32, 32), "JPEG")
    _write(dataset / "test.parquet", [*pngs[:3], jpeg[: len(jpeg) // 2]], [0, 0, 0, 0])
    with pytest.raises(DataError, match=r"test\.parquet row 3: got \d+ bytes that do not decode"):
        _load(dataset)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all"])
def test_a_file_that_is_no_parquet_is_named(dataset: Path, content: bytes) -> None:
    (dataset / "test.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"test\.parquet: got .* expected a complete Parquet file"):
        _load(dataset)


def test_damage_inside_a_parquet_file_is_named(dataset: Path, pngs) -> None:
    path = dataset / "test.parquet"
    _write(path, pngs, [0] * 8, row_group_size=8)
    damaged = bytearray(path.read_bytes())
    damaged[4:64] = b"\xff" * 60  # the first page header
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"test\.parquet: got .* expected a complete Parquet file"):
        _load(dataset)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"test\.parquet: got .* expected a complete Parquet file"):
        _load(dataset)


@pytest.mark.parametrize(
    "table",
    [
        {"img": [{"bytes": b"", "path": ""}]},
        {"label": [1]},
        {"img": [b"encoded"], "label": [1]},
        {"img": [{"path": "a.jpg"}], "label": [1]},
        {"img": [{"bytes": "text"}], "label": [1]},
        {"img": [{"bytes": b""}], "label": ["cat"]},
        {"img": [{"bytes": b""}], "labels": [1]},
    ],
)
def test_another_layout_is_named(dataset: Path, table: dict) -> None:
    pq.write_table(pa.table(table), dataset / "test.parquet")
    with pytest.raises(DataError, match=r"columns of .*test\.parquet: got .* expected img or"):
        _load(dataset)


def test_files_of_other_classes_are_named(dataset: Path, pngs) -> None:
    _write(dataset / "test.parquet", pngs[:1], [0], names=["cat", "dog", "fox"])
    with pytest.raises(DataError, match=r"class names in .*test\.parquet: got 3 names: cat, dog"):
        _load(dataset)


@pytest.mark.parametrize(
    "metadata",
    [b"not JSON", b"[]", b'{"info": {"features": {"label": {"names": [1]}}}}', b"\xff\xfe\xfd"],
)
def test_broken_metadata_is_named(dataset: Path, metadata: bytes) -> None:
    table = pq.read_table(dataset / "test.parquet")
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), dataset / "a.tmp")
    (dataset / "a.tmp").rename(dataset / "test.parquet")
    with pytest.raises(DataError, match=r"huggingface metadata of .*test\.parquet: got"):
        _load(dataset)


@pytest.mark.parametrize("metadata", [b"{}", b'{"info": {"features": {"label": {}}}}'])
def test_metadata_without_names_is_as_none(dataset: Path, metadata: bytes) -> None:
    table = pq.read_table(dataset / "test.parquet")
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), dataset / "a.tmp")
    (dataset / "a.tmp").rename(dataset / "test.parquet")
    assert _load(dataset).test.class_names == tuple(NAMES)


def test_missing_files_say_what_is_there(dataset: Path) -> None:
    (dataset / "test.parquet").rename(dataset / "dev.parquet")
    with pytest.raises(DataError, match=r"got a folder with dev\.parquet, train-0.* test\*"):
        _load(dataset)
    with pytest.raises(DataError, match="got no such folder"):
        _load(dataset / "absent")
    with pytest.raises(DataError, match=r"data\.path"):
        _load(dataset / "dev.parquet")
    with pytest.raises(DataError, match=r"data\.path nonsense://x: got"):
        _load("nonsense://x")


def test_files_without_rows_are_named(dataset: Path) -> None:
    _write(dataset / "test.parquet", [], [])
    with pytest.raises(DataError, match=r"test\.parquet: got no rows"):
        _load(dataset)


@pytest.mark.parametrize("names", [NAMES, None])
@pytest.mark.parametrize("rows_per_batch", [1, 2, 1024])
def test_a_limit_at_the_source_is_a_limit_afterwards(
    dataset: Path, pngs, monkeypatch, names, rows_per_batch: int
) -> None:
    monkeypatch.setattr(parquet_module, "ROWS_PER_BATCH", rows_per_batch)
    _write(dataset / "train-00000-of-00002.parquet", pngs[:5], [1, 0, 1, 0, 2], names=names)
    second = dataset / "train-00001-of-00002.parquet"
    _write(second, pngs[2:5], [0, 1, 1], names=names, row_group_size=3)
    _write(dataset / "test.parquet", pngs[5:8], [0, 2, 1], names=names)
    whole = _load(dataset)
    for train_limit in range(1, 9):
        test_limit = min(train_limit, 3)
        limited = _load(dataset, train_limit=train_limit, test_limit=test_limit)
        _assert_same(limited.train, whole.train.limit(train_limit, LIMIT_SEED))
        _assert_same(limited.test, whole.test.limit(test_limit, LIMIT_SEED))
    _assert_same(_load(dataset, train_limit=3).test, whole.test)


def test_a_limit_beyond_the_rows_is_the_error_of_limiting(dataset: Path) -> None:
    with pytest.raises(DataError) as afterwards:
        _load(dataset).train.limit(6, LIMIT_SEED)
    with pytest.raises(DataError) as at_the_source:
        _load(dataset, train_limit=6)
    assert str(at_the_source.value) == str(afterwards.value)
    with pytest.raises(DataError, match=r"limit on parquet/test: got 3, expected .* \[1, 2\]"):
        load_split(_config(dataset, test_limit=3), "test")


def test_rows_that_are_not_chosen_are_not_decoded(tmp_path: Path, pngs) -> None:
    _write(tmp_path / "test.parquet", pngs[:1], [0])
    _write(tmp_path / "train.parquet", pngs, [row % 3 for row in range(8)], row_group_size=8)
    whole = _load(tmp_path).train
    for limit in range(1, 8):
        chosen = _chosen(8, limit)
        images = [pngs[row] if row in chosen else b"no image" for row in range(8)]
        images[next(row for row in range(8) if row not in chosen)] = None
        labels = [row % 3 if row in chosen else None for row in range(8)]
        _write(tmp_path / "train.parquet", images, labels, row_group_size=8)
        limited = _load(tmp_path, train_limit=limit).train
        _assert_same(limited, whole.limit(limit, LIMIT_SEED))
        images[chosen[-1]] = b"no image"
        _write(tmp_path / "train.parquet", images, labels, row_group_size=8)
        with pytest.raises(DataError, match=rf"train\.parquet row {chosen[-1]}: got 8 bytes that"):
            _load(tmp_path, train_limit=limit)


def test_row_groups_without_a_chosen_row_are_not_read(tmp_path: Path, pngs) -> None:
    _write(tmp_path / "test.parquet", pngs[:1], [0])
    for file in range(2):
        _write(tmp_path / f"train-{file}.parquet", pngs[4 * file :][:4], [0, 1, 2, 0])
    whole = _load(tmp_path).train
    chosen = _chosen(8, 2)
    groups = [(row // 4, row % 4 // 2) for row in chosen]
    for file in range(2):
        for group in range(2):
            if (file, group) not in groups:
                _damage_row_group(tmp_path / f"train-{file}.parquet", group)
    _assert_same(_load(tmp_path, train_limit=2).train, whole.limit(2, LIMIT_SEED))
    with pytest.raises(DataError, match="a complete Parquet file"):
        _load(tmp_path)
    _damage_row_group(tmp_path / f"train-{groups[0][0]}.parquet", groups[0][1])
    with pytest.raises(DataError, match=rf"train-{groups[0][0]}\.parquet: got"):
        _load(tmp_path, train_limit=2)


@pytest.mark.parametrize("limits", [{}, {"train_limit": 6}])
def test_one_batch_of_rows_is_held_at_a_time(
    tmp_path: Path, monkeypatch, pngs, limits: dict
) -> None:
    _write(tmp_path / "test.parquet", pngs[:1], [0])
    _write(tmp_path / "train.parquet", pngs, [0] * 8, row_group_size=8)
    monkeypatch.setattr(parquet_module, "ROWS_PER_BATCH", 2)
    batches: list[weakref.ref] = []
    earlier: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def record(self, *args, **options):
        read = iter_batches(self, *args, **options)
        while True:
            earlier.append(sum(batch() is not None for batch in batches))
            batch = next(read, None)
            if batch is None:
                return
            batches.append(weakref.ref(batch))
            yield batch
            del batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", record)
    _load(tmp_path, **limits)
    assert len(batches) == 5
    assert not any(earlier)


@pytest.mark.parametrize("names", [NAMES, None])
@pytest.mark.parametrize("limits", [{}, {"train_limit": 3, "test_limit": 2}])
def test_one_half_is_loaded_without_decoding_the_other(
    dataset: Path, pngs, names, limits: dict
) -> None:
    train, test = [2, 0, 1], [0, 2]
    _write(dataset / "train-00001-of-00002.parquet", pngs[3:5], [1, 1], names=names)
    for half in ("train", "test"):
        _write(dataset / "train-00000-of-00002.parquet", pngs[:3], train, names=names)
        _write(dataset / "test.parquet", pngs[5:7], test, names=names)
        expected = getattr(_load(dataset, **limits), half)
        if half == "train":
            _write(dataset / "test.parquet", [b"no image", None], test, names=names)
        else:
            broken = [b"no image", None, b"no image"]
            _write(dataset / "train-00000-of-00002.parquet", broken, train, names=names)
        _assert_same(load_split(_config(dataset, **limits), half), expected)
        with pytest.raises(DataError):
            _load(dataset)


def test_the_other_halfs_limit_does_not_matter_to_one_half(dataset: Path) -> None:
    whole = _load(dataset)
    _assert_same(load_split(_config(dataset, train_limit=6), "test"), whole.test)
    _assert_same(load_split(_config(dataset, test_limit=3), "train"), whole.train)


def test_the_test_half_alone_keeps_to_the_training_classes(dataset: Path, pngs) -> None:
    _write(dataset / "test.parquet", pngs[:1], [0], names=["cat", "dog", "fox"])
    with pytest.raises(DataError, match=r"class names in .*test\.parquet: got 3 names: cat, dog"):
        load_split(_config(dataset), "test")
    _write(dataset / "test.parquet", pngs[:1], [3], names=None)
    with pytest.raises(DataError, match=r"test\.parquet row 0: got 3, expected .* \[0, 3\)"):
        load_split(_config(dataset), "test")


@pytest.mark.skipif(
    "CDVAE_TEST_CIFAR10" not in os.environ,
    reason="CDVAE_TEST_CIFAR10 is not set to a folder with CIFAR-10 in Parquet",
)
def test_cifar10_in_parquet() -> None:
    splits = _load(os.environ["CDVAE_TEST_CIFAR10"], 32)
    assert splits.train.images.shape == (50_000, 3, 32, 32)
    assert splits.train.labels.bincount().tolist() == [5000] * 10
    assert splits.train.class_names[0] == "airplane"
    # Per-channel means of the training images, as published for CIFAR-10.
    mean = splits.train.images.double().mean(dim=(0, 2, 3)) / 255
    assert (mean - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 5e-3
