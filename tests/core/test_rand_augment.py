"""RandAugment against PIL, image by image, and the statistics of its plans."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from cdvae_ray.core.rand_augment import (
    Operation,
    RandAugmentPlan,
    auto_contrast,
    contrast,
    equalize,
    plan_rand_augment,
    posterize,
    rand_augment,
    sharpness,
    solarize,
)
from cdvae_ray.core.random import image_keys
from cdvae_ray.errors import ConfigError, DataError


def bytes_of(count: int, height: int, width: int) -> Tensor:
    """Images of every kind: noise, gradients, narrow histograms, few levels and flat channels."""
    generator = torch.Generator().manual_seed(height * 100 + width)

    def noise(high: int) -> Tensor:
        return torch.randint(0, high, (count, 3, height, width), generator=generator)

    ramp = torch.arange(height)[:, None] * 5 + torch.arange(width) * 3
    kinds = [noise(256), noise(60) + 90, noise(2) * 255, noise(3) + 7, (ramp + noise(20)) % 256]
    images = torch.stack([kinds[i % len(kinds)][i] for i in range(count)])
    images[count // 2, 1] = 77
    images[count - 1] = 200
    return images.to(torch.uint8)


def with_pil(image: Image.Image, operation: Operation, strength: int, sign: int) -> Image.Image:
    """One operation as FixMatch's released code asks PIL for it."""
    factor = 0.05 + strength * 0.9 / 10
    shear = sign * strength * 0.3 / 10

    def moved(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    match operation:
        case Operation.AUTO_CONTRAST:
            return ImageOps.autocontrast(image)
        case Operation.BRIGHTNESS:
            return ImageEnhance.Brightness(image).enhance(factor)
        case Operation.COLOR:
            return ImageEnhance.Color(image).enhance(factor)
        case Operation.CONTRAST:
            return ImageEnhance.Contrast(image).enhance(factor)
        case Operation.EQUALIZE:
            return ImageOps.equalize(image)
        case Operation.IDENTITY:
            return image
        case Operation.POSTERIZE:
            return ImageOps.posterize(image, int(strength * 4 / 10) + 4)
        case Operation.SHARPNESS:
            return ImageEnhance.Sharpness(image).enhance(factor)
        case Operation.SOLARIZE:
            return ImageOps.solarize(image, 256 - int(strength * 256 / 10))
        case Operation.ROTATE:
            return image.rotate(sign * int(strength * 30 / 10))
        case Operation.SHEAR_X:
            return moved(1, shear, 0, 0, 1, 0)
        case Operation.SHEAR_Y:
            return moved(1, 0, 0, shear, 1, 0)
        case Operation.TRANSLATE_X:
            return moved(1, 0, int(shear * image.size[0]), 0, 1, 0)
        case Operation.TRANSLATE_Y:
            return moved(1, 0, 0, 0, 1, int(shear * image.size[1]))


def plan_of(*steps: tuple[Tensor, Tensor, Tensor]) -> RandAugmentPlan:
    return RandAugmentPlan(*(torch.stack(list(parts), dim=1) for parts in zip(*steps, strict=True)))


def pil_batch(pixels: Tensor, plan: RandAugmentPlan) -> Tensor:
    results = []
    for row, pixel_row in enumerate(pixels):
        image = to_pil_image(pixel_row)
        for step in range(plan.operations.shape[1]):
            operation, strength, sign = (int(part[row, step]) for part in plan)
            image = with_pil(image, Operation(operation), strength, sign)
        results.append(pil_to_tensor(image))
    return torch.stack(results)


def levels_of(images: Tensor) -> Tensor:
    levels = images * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    return levels.round().to(torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 16), (21, 40)])
@pytest.mark.parametrize("operation", list(Operation), ids=lambda code: code.name.lower())
def test_operation_equals_pil(operation: Operation, height: int, width: int) -> None:
    pixels = bytes_of(40, height, width)
    strengths = torch.arange(40) % 10 + 1
    signs = torch.where(torch.arange(40) % 4 < 2, 1, -1)
    plan = plan_of((torch.full((40,), operation), strengths, signs))
    ours, theirs = rand_augment(pixels / 255, plan), pil_batch(pixels, plan)
    assert ours.dtype == torch.float32 and ours.min() >= 0 and ours.max() <= 1
    assert torch.equal(levels_of(ours), theirs)
    if operation != Operation.IDENTITY:
        assert not torch.equal(levels_of(ours), pixels)


def test_whole_plans_equal_pil() -> None:
    pixels = bytes_of(150, 32, 32)
    keys = image_keys(1, "test", 0, torch.arange(150))
    plan = plan_rand_augment(keys, num_ops=3, magnitude=10)
    assert torch.equal(levels_of(rand_augment(pixels / 255, plan)), pil_batch(pixels, plan))


def test_large_image_contrast_is_exact() -> None:
    """Sums of luma beyond float32's integers, and a mean at exactly one half."""
    pixels = torch.full((2, 3, 300, 300), 254, dtype=torch.uint8)
    pixels[:, :, :150] = 253
    pixels[1, :, 0, 0] = 252
    ours = contrast(pixels.float(), torch.zeros(2))
    for image, mine in zip(pixels, ours, strict=True):
        theirs = pil_to_tensor(ImageEnhance.Contrast(to_pil_image(image)).enhance(0.0))
        assert torch.equal(mine, theirs.float())


def test_extremes() -> None:
    levels = bytes_of(6, 16, 16).float()
    assert torch.equal(posterize(levels, torch.full((6,), 8)), levels)
    assert posterize(levels, torch.full((6,), 1)).unique().tolist() == [0.0, 128.0]
    assert torch.equal(solarize(levels, torch.full((6,), 256)), levels)
    assert torch.equal(solarize(levels, torch.zeros(6, dtype=torch.int64)), 255 - levels)
    assert torch.equal(sharpness(levels, torch.ones(6)), levels)
    flat = torch.full((1, 3, 16, 16), 9.0)
    assert torch.equal(auto_contrast(flat), flat) and torch.equal(equalize(flat), flat)


def test_rows_do_not_depend_on_the_batch() -> None:
    images = bytes_of(60, 16, 16) / 255
    keys = image_keys(0, "test", 0, torch.arange(60))

    def run(images: Tensor, keys: Tensor) -> Tensor:
        return rand_augment(images, plan_rand_augment(keys, num_ops=2, magnitude=10))

    whole = run(images, keys)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(images[order], keys[order]), whole[order])
    parts = [run(*pair) for pair in zip(images.split(7), keys.split(7), strict=True)]
    assert torch.equal(torch.cat(parts), whole)


def test_plan_statistics() -> None:
    plan = plan_rand_augment(
        image_keys(0, "test", 0, torch.arange(20_000)), num_ops=3, magnitude=10
    )
    n = plan.operations.numel()
    assert plan.operations.shape == plan.strengths.shape == plan.signs.shape == (20_000, 3)

    def check(counts: Tensor, probability: float) -> None:
        deviation = math.sqrt(n * probability * (1 - probability))
        assert ((counts.double() - n * probability).abs() < 4.5 * deviation).all()

    counts = plan.operations.flatten().bincount(minlength=14)
    assert len(counts) == len(Operation) == 14
    moving = torch.tensor([code for code in Operation if code != Operation.IDENTITY])
    check(counts[moving], 1 / 28)
    check(counts[Operation.IDENTITY], 1 / 2 + 1 / 28)
    strengths = plan.strengths.flatten().bincount()
    assert len(strengths) == 10 and strengths[0] == 0
    check(strengths[1:], 1 / 9)
    assert set(plan.signs.unique().tolist()) == {-1, 1}
    check((plan.signs == 1).sum(), 1 / 2)
    applied = plan.operations != Operation.IDENTITY
    # Strength and sign tell nothing of which operation was drawn, nor of each other.
    columns = [plan.operations, plan.strengths, plan.signs]
    drawn = torch.stack([column[applied].double() for column in columns])
    off_diagonal = drawn.corrcoef() - torch.eye(3)
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(int(applied.sum()))
    assert abs(float(drawn[2].mean())) < 4.5 / math.sqrt(int(applied.sum()))
    both = (applied[:, 0] & applied[:, 1]).double().mean()
    assert float(both) == pytest.approx((13 / 28) ** 2, abs=0.015)
    # With replacement: among images that two operations reach, 1 in 13 gets one twice.
    repeated = (plan.operations[:, 0] == plan.operations[:, 1])[applied[:, 0] & applied[:, 1]]
    assert float(repeated.double().mean()) == pytest.approx(1 / 13, abs=0.02)


def test_smallest_magnitude_and_empty_batches() -> None:
    keys = image_keys(0, "test", 0, torch.arange(50))
    assert plan_rand_augment(keys, num_ops=2, magnitude=2).strengths.unique().tolist() == [1]
    images = bytes_of(50, 16, 16) / 255
    assert rand_augment(images, plan_rand_augment(keys, num_ops=0, magnitude=10)) is images
    empty = rand_augment(images[:0], plan_rand_augment(keys[:0], num_ops=2, magnitude=10))
    assert empty.shape == (0, 3, 16, 16)


def test_wrong_arguments() -> None:
    keys = image_keys(0, "test", 0, torch.arange(4))
    for num_ops, magnitude in ((-1, 10), (2, 1), (2, 12)):
        with pytest.raises(ConfigError, match="RandAugment"):
            plan_rand_augment(keys, num_ops=num_ops, magnitude=magnitude)
    plan = plan_rand_augment(keys, num_ops=2, magnitude=10)
    with pytest.raises(DataError, match="4 rows for 3 images"):
        rand_augment(torch.rand(3, 3, 16, 16), plan)
