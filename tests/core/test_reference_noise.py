"""The reference's noise: Gaussian in normalised units, keyed by image, clipped across channels."""

import pytest
import torch

from cdvae_ray.core.noise import reference_noise
from cdvae_ray.errors import DataError


def channels(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype).view(1, 3, 1, 1)


# Black is -2, -2 and -3 in normalised units, and white 2, 3 and 7.
MEAN, STD = channels(0.5, 0.4, 0.3), channels(0.25, 0.2, 0.1)


def noisy(images, *, ids=None, std=0.1, seed=0, mean=MEAN, pixel_std=STD):
    ids = torch.arange(len(images)) if ids is None else ids
    return reference_noise(images, ids, std=std, pixel_mean=mean, pixel_std=pixel_std, seed=seed)


def grey(count=40, side=16, dtype=torch.float32):
    return torch.full((count, 3, side, side), 0.5, dtype=dtype)


def made_up_images(count=12):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def normals_of(count, side):
    """The normals of ids 0 to count, read off noise that nothing clips."""
    clean = grey(count, side, torch.float64)
    return (noisy(clean, std=1e-3) - clean) / STD / 1e-3


@pytest.mark.parametrize("std", [0.05, 0.2])
def test_noise_has_its_deviation_in_normalised_units_in_every_channel(std):
    clean = grey()
    noise = (noisy(clean, std=std) - clean) / STD
    # 10,240 numbers a channel: the deviation of this deviation is 0.7 %.
    measured = noise.transpose(0, 1).flatten(1)
    torch.testing.assert_close(measured.std(dim=1), torch.full((3,), std), rtol=0.03, atol=0)
    assert (measured.mean(dim=1).abs() < 4 * std / measured.shape[1] ** 0.5).all()


def test_noise_is_gaussian_and_of_channels_that_have_nothing_in_common():
    normals = normals_of(40, 16)
    count = normals.numel()
    assert abs((normals**4).mean() - 3) < 4 * (96 / count) ** 0.5
    correlations = torch.corrcoef(normals.transpose(0, 1).flatten(1))
    assert (correlations - torch.eye(3)).abs().amax() < 4 / (count / 3) ** 0.5


def test_noise_is_added_to_normalised_pixels_and_clipped_there():
    images, normals = made_up_images().double(), normals_of(12, 8)
    for std in (0.1, 3.0):
        normalized = (images - MEAN) / STD + std * normals
        expected = normalized.clamp(-3, 7) * STD + MEAN
        torch.testing.assert_close(noisy(images, std=std), expected, rtol=1e-6, atol=1e-6)


def test_noise_depends_on_seed_and_image_id_alone():
    images, ids = made_up_images(), torch.arange(12) + 40
    whole = noisy(images, ids=ids)
    parts = [noisy(images[part], ids=ids[part]) for part in (slice(0, 5), slice(5, 12))]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.tensor([7, 2, 11])
    assert torch.equal(noisy(images[order], ids=ids[order]), whole[order])
    assert not torch.equal(noisy(images, ids=ids, seed=1), whole)
    assert not torch.equal(noisy(images, ids=ids + 1), whole)
    same_images = noisy(grey(12), ids=ids)
    assert len({image.numpy().tobytes() for image in same_images}) == 12


@pytest.mark.parametrize("shade", [0.0, 1.0])
def test_pixels_are_clipped_to_the_least_and_greatest_value_of_any_channel(shade):
    # -3 and 7 in the pixel units of each channel: only the third cannot leave [0, 1].
    least = torch.tensor([-3 * 0.25 + 0.5, -3 * 0.2 + 0.4, 0.0])
    greatest = torch.tensor([7 * 0.25 + 0.5, 7 * 0.2 + 0.4, 1.0])
    found = noisy(torch.full((20, 3, 16, 16), shade), std=20.0).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.amin(dim=1), least, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.amax(dim=1), greatest, rtol=0, atol=1e-6)


def test_channels_of_one_mean_and_deviation_stay_pixels():
    alike = {"mean": channels(0.5, 0.5, 0.5), "pixel_std": channels(0.25, 0.25, 0.25)}
    found = noisy(made_up_images(), std=1.0, **alike)
    assert found.amin() == 0 and found.amax() == 1


def test_a_little_noise_on_light_pixels_leaves_the_range_of_their_channel():
    found = noisy(torch.ones(4, 3, 8, 8), std=0.5)
    above = (found > 1).transpose(0, 1).flatten(1).float().mean(dim=1)
    # Half of the noise points up, and nothing but the range of the third channel cuts it off.
    assert (above[:2] - 0.5).abs().amax() < 0.15 and above[2] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_images_keep_their_type_and_are_left_alone(dtype):
    images = made_up_images().to(dtype)
    before = images.clone()
    found = noisy(images)
    assert found.dtype == dtype and found.shape == images.shape
    assert torch.equal(images, before) and not torch.equal(found, before)


def test_bad_input_is_refused():
    clean, ids = made_up_images(), torch.arange(12)
    for message, images, own in (
        ("outside", clean - 0.1, ids),
        ("outside", clean * 2, ids),
        ("outside", clean * torch.nan, ids),
        ("floating", (clean * 255).byte(), ids),
        ("floating", clean[0], ids),
        ("floating", clean[:0], ids[:0]),
        ("shapes", clean, ids[:3]),
    ):
        with pytest.raises(DataError, match=message) as caught:
            noisy(images, ids=own)
        assert "\n" not in str(caught.value)
