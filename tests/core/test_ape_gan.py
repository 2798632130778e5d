"""APE-GAN: shapes, ranges, losses by hand, and that a step of training does what it should."""

import math

import pytest
import torch

from cdvae_ray.core.ape_gan import (
    Discriminator,
    Generator,
    discriminator_losses,
    generator_losses,
)
from cdvae_ray.errors import ConfigError, DataError


def some_images(count, size, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def networks(image_size=16):
    torch.manual_seed(0)
    return Generator(width=4), Discriminator(image_size=image_size, width=4)


# 299 is that of restricted ImageNet.
@pytest.mark.parametrize("size", [8, 9, 12, 16, 32, 299])
@pytest.mark.parametrize("training", [False, True])
def test_shapes_and_ranges(size, training):
    generator, discriminator = (each.train(training) for each in networks(size))
    images = some_images(3, size)
    fake = generator(images)
    assert fake.shape == images.shape and fake.dtype == images.dtype
    assert (fake >= 0).all() and (fake <= 1).all() and fake.std() > 0.001
    assert discriminator(fake).shape == (3,)


def test_the_networks_see_images_between_minus_one_and_one():
    generator, discriminator = networks()
    images = torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.5)])
    seen = []
    for network in (generator, discriminator):
        network.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        network(images)
    for inputs in seen:
        assert (inputs[0] == -1).all() and (inputs[1] == 0).all()
    # tanh of 0, the middle of its range, is the middle of the pixels'.
    torch.nn.init.zeros_(generator.layers[-2].weight)
    torch.nn.init.zeros_(generator.layers[-2].bias)
    torch.testing.assert_close(generator(images), torch.full_like(images, 0.5))


def test_the_losses_of_the_generator_by_hand():
    clean = torch.zeros(2, 3, 4, 4)
    fake = torch.stack([torch.full((3, 4, 4), 0.5), torch.zeros(3, 4, 4)])
    fake[1, 0, 0, 0] = 1.0
    logits = torch.tensor([0.0, 2.0])
    # In [-1, 1] the first differs by 1 everywhere, the second by 2 in one element of 48.
    expected = [
        0.7 * 1 + 0.3 * math.log(2),
        0.7 * 4 / 48 + 0.3 * math.log(1 + math.exp(-2)),
    ]
    torch.testing.assert_close(generator_losses(fake, clean, logits), torch.tensor(expected))
    weighted = generator_losses(fake, clean, logits, pixel_weight=2.0, adversarial_weight=0.0)
    torch.testing.assert_close(weighted, torch.tensor([2.0, 8 / 48]))


def test_the_losses_of_the_discriminator_by_hand():
    real, fake = torch.tensor([0.0, 3.0]), torch.tensor([0.0, -1.0])
    expected = [2 * math.log(2), math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1))]
    torch.testing.assert_close(discriminator_losses(real, fake), torch.tensor(expected))
    # Logits at which a sigmoid is 0 or 1 in float32.
    far = discriminator_losses(torch.tensor([-200.0]), torch.tensor([200.0]))
    torch.testing.assert_close(far, torch.tensor([400.0]))


def test_training_brings_the_fakes_nearer_and_tells_them_apart():
    generator, discriminator = networks()
    clean = some_images(16, 16)
    noise = 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).sign()
    adversarial = (clean + noise).clamp(0, 1)
    for_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
    for_discriminator = torch.optim.Adam(discriminator.parameters(), lr=0.01)

    fake = generator(adversarial).detach()
    apart = []
    for _ in range(15):
        loss = discriminator_losses(discriminator(clean), discriminator(fake)).mean()
        for_discriminator.zero_grad()
        loss.backward()
        for_discriminator.step()
        apart.append(loss.item())
    assert apart[-1] < 0.5 * apart[0]

    nearer = []
    for _ in range(15):
        fake = generator(adversarial)
        loss = generator_losses(fake, clean, discriminator(fake)).mean()
        for_generator.zero_grad()
        loss.backward()
        for_generator.step()
        nearer.append(loss.item())
    assert nearer[-1] < nearer[0]


def test_in_eval_mode_an_image_is_seen_alone():
    images = some_images(3, 16).double()
    for network in networks():
        network.double().eval()
        torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


def test_settings_that_cannot_be_built_are_refused():
    for build in (
        lambda: Generator(width=0),
        lambda: Discriminator(image_size=16, width=0),
    ):
        with pytest.raises(ConfigError, match="width"):
            build()
    with pytest.raises(ConfigError, match="image_size"):
        Discriminator(image_size=4)


def test_ill_shaped_images_are_refused():
    generator, discriminator = networks()
    images = some_images(2, 16)
    for wrong in (images[0], images[:, :1], images[:, :, :3, :3], (255 * images).byte()):
        with pytest.raises(DataError, match="images to restore"):
            generator(wrong)
        with pytest.raises(DataError, match="images of the discriminator"):
            discriminator(wrong)
