"""Whole-batch augmentation against one-image references, and what its draws depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as reference

from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.core.augment import GREY, augment, cutout, horizontal_flip, random_crop
from cdvae_ray.core.rand_augment import plan_rand_augment, rand_augment
from cdvae_ray.core.random import image_keys
from cdvae_ray.errors import DataError

RELEASED = AugmentationConfig(
    crop_padding=4,
    horizontal_flip=True,
    rand_augment_ops=2,
    rand_augment_magnitude=10,
    cutout_size=16,
)
PARTS = [
    AugmentationConfig(crop_padding=4),
    AugmentationConfig(horizontal_flip=True),
    AugmentationConfig(rand_augment_ops=2),
    AugmentationConfig(cutout_size=7),
    RELEASED,
]
PART_NAMES = ["crop", "flip", "rand_augment", "cutout", "released"]


def batch(count: int, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(1, 256, (count, 3, height, width), generator=generator) / 255


def run(images: Tensor, ids: Tensor, config: AugmentationConfig, epoch: int = 0) -> Tensor:
    return augment(images, ids, config=config, seed=0, epoch=epoch)


def test_crop_equals_torchvision() -> None:
    images = batch(49, 16, 24)
    offsets_y, offsets_x = torch.arange(49) // 7, torch.arange(49) % 7
    cropped = random_crop(images, offsets_y, offsets_x, 3)
    for row in range(49):
        padded = reference.pad(images[row], [3, 3, 3, 3])
        expected = reference.crop(padded, int(offsets_y[row]), int(offsets_x[row]), 16, 24)
        assert torch.equal(cropped[row], expected)
    centred = torch.full((49,), 3)
    assert torch.equal(random_crop(images, centred, centred, 3), images)


def test_flip_equals_torchvision() -> None:
    images, mask = batch(9, 16, 24), torch.arange(9) % 3 == 0
    flipped = horizontal_flip(images, mask)
    for image, result, chosen in zip(images, flipped, mask.tolist(), strict=True):
        assert torch.equal(result, reference.hflip(image) if chosen else image)


def test_cutout_equals_a_slice() -> None:
    images = batch(60, 16, 24)
    centres_y, centres_x = torch.arange(60) * 7 % 16, torch.arange(60) * 5 % 24
    sizes = torch.arange(60) % 20
    result = cutout(images, centres_y, centres_x, sizes)
    for row in range(60):
        y, x, size = int(centres_y[row]), int(centres_x[row]), int(sizes[row])
        top, left = y - size // 2, x - size // 2
        expected = images[row].clone()
        expected[:, max(top, 0) : top + size, max(left, 0) : left + size] = 127 / 255
        assert torch.equal(result[row], expected)


def test_off_is_the_input_itself() -> None:
    images = batch(4)
    assert run(images, torch.arange(4), AugmentationConfig(mixup_alpha=2.0)) is images


@pytest.mark.parametrize("config", PARTS, ids=PART_NAMES)
def test_rows_do_not_depend_on_the_batch(config: AugmentationConfig) -> None:
    images, ids = batch(60), torch.arange(60) * 17 + 3
    before = images.clone()
    whole = run(images, ids, config)
    assert torch.equal(images, before)
    assert whole.shape == images.shape and whole.dtype == torch.float32
    assert whole.min() >= 0 and whole.max() <= 1
    changed = (whole != images).flatten(1).any(dim=1)
    assert float(changed.double().mean()) > 0.2
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(images[order], ids[order], config), whole[order])
    parts = [run(*pair, config) for pair in zip(images.split(13), ids.split(13), strict=True)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(run(images, ids, config, epoch=1), whole)
    assert not torch.equal(run(images, ids + 1, config), whole)
    assert not torch.equal(augment(images, ids, config=config, seed=1, epoch=0), whole)


@pytest.mark.parametrize("config", PARTS, ids=PART_NAMES)
def test_channels_last_is_kept(config: AugmentationConfig) -> None:
    images, ids = batch(20), torch.arange(20)
    result = run(images.to(memory_format=torch.channels_last), ids, config)
    assert result.is_contiguous(memory_format=torch.channels_last)
    plain = run(images, ids, config)
    assert plain.is_contiguous() and torch.equal(result, plain)


@pytest.mark.parametrize("config", PARTS, ids=PART_NAMES)
def test_the_device_is_never_waited_for(config: AugmentationConfig) -> None:
    """A meta tensor has no values: reading one, or a size that depends on one, fails."""
    result = run(batch(30).to("meta"), torch.arange(30), config)
    assert result.device.type == "meta" and result.shape == (30, 3, 32, 32)


def test_order_of_the_parts() -> None:
    """The whole equals its parts one after the other; an image's draws do not depend on them."""
    images, ids = batch(80), torch.arange(80)
    expected = images
    for config in (
        AugmentationConfig(crop_padding=4),
        AugmentationConfig(horizontal_flip=True),
        AugmentationConfig(rand_augment_ops=2),
        AugmentationConfig(cutout_size=16),
    ):
        expected = run(expected, ids, config)
    assert torch.equal(run(images, ids, RELEASED), expected)


def test_rand_augment_has_its_own_key() -> None:
    images, ids = batch(40), torch.arange(40)
    keys = image_keys(0, "augment.rand_augment", 5, ids)
    plan = plan_rand_augment(keys, num_ops=3, magnitude=7)
    config = AugmentationConfig(rand_augment_ops=3, rand_augment_magnitude=7)
    assert torch.equal(run(images, ids, config, epoch=5), rand_augment(images, plan))


def test_crops_and_flips_are_uniform() -> None:
    count = 4000
    # A single bright pixel tells where the crop moved it; the flip is told from an asymmetric pair.
    marked = torch.zeros(count, 3, 16, 16)
    marked[:, :, 8, 8] = 1.0
    cropped = run(marked, torch.arange(count), AugmentationConfig(crop_padding=2))
    where = cropped[:, 0].sum(dim=0)[6:11, 6:11]
    assert float(where.sum()) == count
    deviation = math.sqrt(count * 0.04 * 0.96)
    assert ((where - count / 25).abs() < 4.5 * deviation).all()
    flipped = run(marked, torch.arange(count), AugmentationConfig(horizontal_flip=True))
    assert abs(float(flipped[:, 0, 8, 7].sum()) - count / 2) < 4.5 * math.sqrt(count / 4)


def test_cutout_centres_are_uniform() -> None:
    count, blank = 6000, torch.zeros(6000, 3, 16, 24)
    grey = run(blank, torch.arange(count), AugmentationConfig(cutout_size=1))[:, 0]
    assert torch.equal(grey.flatten(1).sum(dim=1), torch.full((count,), GREY))
    covered = (grey > 0).sum(dim=0).double()
    deviation = math.sqrt(count / 384)
    assert covered.min() > 0 and (covered - count / 384).abs().max() < 5 * deviation


def test_empty_batch() -> None:
    empty = run(torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.int64), RELEASED)
    assert empty.shape == (0, 3, 16, 16)


def test_wrong_arguments() -> None:
    images, ids = batch(4), torch.arange(4)
    for wrong in (images[0], images[:, :1], images.double(), (images * 255).byte()):
        with pytest.raises(DataError, match="float32 of shape"):
            run(wrong, ids, RELEASED)
    for wrong_ids in (ids[:3], ids.to("meta"), ids[:, None]):
        with pytest.raises(DataError, match="4 ids on the CPU"):
            run(images, wrong_ids, RELEASED)
    with pytest.raises(DataError, match="int64"):
        run(images, ids.float(), RELEASED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree() -> None:
    images, ids = batch(200), torch.arange(200)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device = images.cuda(non_blocking=True)
        result = run(on_device, ids, RELEASED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), run(images, ids, RELEASED), atol=1e-6, rtol=0)
