from __future__ import annotations

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data import load_splits
from cdvae_ray.data.digits import load_digits
from cdvae_ray.data.resize import resize_bilinear


def test_at_eight_pixels_the_digits_are_scikit_learns() -> None:
    train, test = load_digits(8)
    assert (train.name, len(train), test.name, len(test)) == (
        "digits/train",
        1437,
        "digits/test",
        360,
    )
    assert train.class_names == test.class_names == tuple("0123456789")
    digits = sklearn.datasets.load_digits()
    reference = np.rint(digits.images * 255 / 16).astype(np.uint8)
    rows = zip(reference, digits.target, strict=True)
    expected = sorted((image.tobytes(), int(label)) for image, label in rows)
    actual = sorted(
        (image[channel].numpy().tobytes(), int(label))
        for split in (train, test)
        for image, label in zip(split.images, split.labels, strict=True)
        for channel in [int(label) % 3]
    )
    assert actual == expected
    assert (train.images == train.images[:, :1]).all()


def test_the_split_is_stratified_and_fixed() -> None:
    train, test = load_digits(16)
    whole = (train.labels.bincount() + test.labels.bincount()).double()
    assert ((test.labels.bincount() - whole * 360 / 1797).abs() < 1).all()
    again = load_digits(16)
    assert (again.train.digest, again.test.digest) == (train.digest, test.digest)


def test_enlarging_is_bilinear() -> None:
    small, large = load_digits(8).train, load_digits(16).train
    # Doubling puts each new pixel a quarter of a pixel from its nearest old one.
    old = torch.nn.functional.pad(small.images.double(), (1, 1, 1, 1), mode="replicate")
    rows = torch.stack(
        [
            0.75 * old[..., 1:-1, :] + 0.25 * old[..., :-2, :],
            0.75 * old[..., 1:-1, :] + 0.25 * old[..., 2:, :],
        ],
        dim=-2,
    )
    rows = rows.flatten(-3, -2)
    expected = torch.stack(
        [
            0.75 * rows[..., 1:-1] + 0.25 * rows[..., :-2],
            0.75 * rows[..., 1:-1] + 0.25 * rows[..., 2:],
        ],
        dim=-1,
    ).flatten(-2)
    assert torch.equal(large.images, expected.round().to(torch.uint8))


def test_antialiased_shrinking_agrees_with_pillow(noise) -> None:
    images = [noise(seed, 32, 32) for seed in range(3)]
    stacked = torch.stack([torch.from_numpy(np.asarray(i).copy()).permute(2, 0, 1) for i in images])
    shrunk = resize_bilinear(stacked, 16, antialias=True)
    expected = np.stack([np.asarray(i.resize((16, 16), Image.Resampling.BILINEAR)) for i in images])
    assert np.abs(shrunk.permute(0, 2, 3, 1).numpy().astype(int) - expected).max() <= 1
    assert resize_bilinear(stacked, 32, antialias=True) is stacked


@pytest.mark.parametrize("size", [16, 32])
def test_limits_apply(size: int) -> None:
    splits = load_splits(DataConfig(image_size=size, train_limit=50, test_limit=7))
    assert splits.train.images.shape == (50, 3, size, size)
    assert splits.test.images.shape == (7, 3, size, size)
    whole = load_splits(DataConfig(image_size=size))
    assert splits.train.digest == whole.train.limit(50, 0).digest
