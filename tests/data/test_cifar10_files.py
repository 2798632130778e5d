from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data import load_splits
from cdvae_ray.data.cifar10 import load_cifar10
from cdvae_ray.errors import DataError

NAMES = ["airplane", "automobile", "bird"]


class _OldArray:
    """Pickles like an array of an old numpy: with an integer for its dtype's `align`."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self):
        return np.ndarray, (self.array.shape, _OldDtype(), self.array.tobytes())


class _OldDtype:
    def __reduce__(self):
        return np.dtype, ("u1", 0)


class _Touch:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in the published layout, and torchvision's checksums set to theirs."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name: str, count: int) -> list[str]:
        data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        return write(name, {"data": _OldArray(data), "labels": [i % 3 for i in range(count)]})

    train_list = [batch("data_batch_1", 5), batch("data_batch_2", 4)]
    monkeypatch.setattr(CIFAR10, "train_list", train_list)
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 3)])
    meta = write("batches.meta", {"label_names": NAMES})
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return tmp_path


def test_the_published_layout_is_read(published: Path) -> None:
    config = DataConfig(source="cifar10", path=str(published), image_size=32)
    train, test = load_splits(config)
    assert (len(train), train.name, len(test), test.name) == (9, "cifar10/train", 3, "cifar10/test")
    assert train.class_names == tuple(NAMES)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0]
    with pytest.warns(match="align"):  # from torchvision alone; not from the loader
        image, label = CIFAR10(str(published), train=False)[1]  # the reference
    assert label == 1
    assert (test.images[1].permute(1, 2, 0).numpy() == np.asarray(image)).all()


def test_other_sizes_are_resized_as_pillow_resizes(published: Path) -> None:
    whole = load_cifar10(str(published), 32, download=False).test
    small = load_cifar10(str(published), 16, download=False).test
    for image, resized in zip(whole.images, small.images, strict=True):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(pillow.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(resized.permute(1, 2, 0).numpy() - expected).max() <= 1
    assert small.images.dtype == torch.uint8


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_changed_file_is_refused_and_never_unpickled(published: Path, name: str) -> None:
    marker = published / "executed"
    (published / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(_Touch(marker)))
    with pytest.raises(DataError, match=r"--data\.download, or use --data\.source parquet"):
        load_cifar10(str(published), 32, download=False)
    assert not marker.exists()


def test_absent_files_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR-10 in .*--data\.download"):
        load_cifar10(str(tmp_path), 32, download=False)


def test_a_failed_download_is_a_data_error(tmp_path: Path, monkeypatch) -> None:
    def refuse(self: CIFAR10) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    with pytest.raises(DataError, match="got network is unreachable"):
        load_cifar10(str(tmp_path), 32, download=True)
