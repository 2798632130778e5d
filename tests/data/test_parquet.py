from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data import Splits, load_splits
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


def _load(path: Path | str, image_size: int = 16) -> Splits:
    return load_splits(DataConfig(source="parquet", path=str(path), image_size=image_size))


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
