from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data import ImageSet, Splits, load_split, load_splits
from cdvae_ray.data.images import LIMIT_SEED, limited_order
from cdvae_ray.errors import DataError


@pytest.fixture
def folder(tmp_path: Path, encode, noise) -> Path:
    def write(name: str, seed: int, kind: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise(seed), kind))

    write("train/dog/b.PNG", 0, "PNG")
    write("train/dog/a.bmp", 1, "BMP")
    write("train/cat/x.ppm", 2, "PPM")
    write("train/cat/y.TiFf", 3, "TIFF")
    write("train/cat/z.jpeg", 4, "JPEG")
    write("test/dog/t.png", 5, "PNG")
    return tmp_path


FILES = ["cat/x.ppm", "cat/y.TiFf", "cat/z.jpeg", "dog/a.bmp", "dog/b.PNG"]  # in their order


def _config(path: Path, **limits: int) -> DataConfig:
    return DataConfig(source="folder", path=str(path), image_size=16, **limits)


def _load(path: Path, **limits: int) -> Splits:
    return load_splits(_config(path, **limits))


def _assert_same(got: ImageSet, expected: ImageSet) -> None:
    assert got.labels.tolist() == expected.labels.tolist()
    assert (got.digest, got.name) == (expected.digest, expected.name)
    assert got.class_names == expected.class_names


def test_classes_and_files_are_sorted_and_others_ignored(folder: Path, noise) -> None:
    (folder / "train/cat/notes.txt").write_text("no image")
    (folder / "train/cat/.hidden.png").write_text("no image")
    (folder / "train/cat/deeper.png").mkdir()
    (folder / "train/.cache").mkdir()
    (folder / "train/readme.md").write_text("no class")
    train, test = _load(folder)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert test.labels.tolist() == [1]
    assert (train.name, test.name) == ("folder/train", "folder/test")
    for index, seed in ((0, 2), (1, 3), (3, 1), (4, 0)):
        expected = np.asarray(noise(seed))
        assert (train.images[index].permute(1, 2, 0).numpy() == expected).all()


def test_an_unknown_test_class_is_named(folder: Path) -> None:
    (folder / "test/eel").mkdir()
    with pytest.raises(DataError, match=r"test/eel: got a label outside the class list"):
        _load(folder)


def test_an_empty_training_class_is_named(folder: Path) -> None:
    (folder / "train/eel").mkdir()
    (folder / "train/eel/notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"train/eel: got no images"):
        _load(folder)


def test_a_test_half_without_images_is_named(folder: Path) -> None:
    (folder / "test/dog/t.png").unlink()
    with pytest.raises(DataError, match=r"test: got no images"):
        _load(folder)


def test_missing_folders_say_what_is_there(folder: Path, tmp_path: Path) -> None:
    (folder / "test/dog/t.png").unlink()
    (folder / "test/dog").rmdir()
    with pytest.raises(DataError, match=r"test: got no class folders"):
        _load(folder)
    (folder / "test").rename(folder / "val")
    with pytest.raises(DataError, match=r"got a folder with train, val, expected .* test/<class>/"):
        _load(folder)
    with pytest.raises(DataError, match=r"got a folder with cat, dog, expected .* train/<class>/"):
        _load(folder / "train")
    with pytest.raises(DataError, match="got no such folder"):
        _load(folder / "absent")
    (folder / "file").write_text("")
    with pytest.raises(DataError, match="got a file"):
        _load(folder / "file")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="got an empty folder"):
        _load(folder / "empty")


def test_a_truncated_jpeg_is_named(folder: Path) -> None:
    path = folder / "train/cat/z.jpeg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"train/cat/z\.jpeg: got \d+ bytes that do not decode"):
        _load(folder)


def test_a_limit_at_the_source_reads_the_chosen_files_alone(folder: Path) -> None:
    whole = _load(folder).train
    contents = {name: (folder / "train" / name).read_bytes() for name in FILES}
    for limit in range(1, 6):
        chosen = limited_order(5, limit, LIMIT_SEED, "files").tolist()
        for number, (name, content) in enumerate(contents.items()):
            (folder / "train" / name).write_bytes(content if number in chosen else b"no image")
        limited = _load(folder, train_limit=limit)
        _assert_same(limited.train, whole.limit(limit, LIMIT_SEED))
        (folder / "train" / FILES[chosen[-1]]).write_bytes(b"no image")
        with pytest.raises(DataError, match=rf"train/{FILES[chosen[-1]]}: got 8 bytes that"):
            _load(folder, train_limit=limit)


def test_a_limit_beyond_the_files_is_the_error_of_limiting(folder: Path) -> None:
    with pytest.raises(DataError) as afterwards:
        _load(folder).train.limit(6, LIMIT_SEED)
    with pytest.raises(DataError) as at_the_source:
        _load(folder, train_limit=6)
    assert str(at_the_source.value) == str(afterwards.value)
    with pytest.raises(DataError, match=r"limit on folder/test: got 2, expected .* \[1, 1\]"):
        load_split(_config(folder, test_limit=2), "test")


@pytest.mark.parametrize("half", ["train", "test"])
def test_one_half_is_loaded_without_decoding_the_other(folder: Path, half: str) -> None:
    limits = {"train_limit": 3, "test_limit": 1}
    whole, limited = getattr(_load(folder), half), getattr(_load(folder, **limits), half)
    for file in (folder / ("test" if half == "train" else "train")).rglob("*.*"):
        file.write_bytes(b"no image")
    _assert_same(load_split(_config(folder), half), whole)
    _assert_same(load_split(_config(folder, **limits), half), limited)
    with pytest.raises(DataError, match="bytes that do not decode"):
        _load(folder)


def test_one_half_alone_keeps_to_the_training_classes(folder: Path) -> None:
    (folder / "test/eel").mkdir()
    for half in ("train", "test"):
        with pytest.raises(DataError, match=r"test/eel: got a label outside the class list"):
            load_split(_config(folder), half)


def test_what_the_system_refuses_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read whatever its permissions are, so the refusal is the system call's own.
    iterdir = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "cat":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"got Permission denied: .*/cat, expected folders and"):
        _load(folder)
