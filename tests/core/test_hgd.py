"""The denoiser starts as the identity, keeps shapes and learns; its loss by hand."""

import pytest
import torch
from torch import nn

from cdvae_ray.core.hgd import Denoiser, guidance_loss
from cdvae_ray.errors import ConfigError, DataError


def some_images(count, size, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def denoiser(**options):
    torch.manual_seed(0)
    return Denoiser(**{"width": 4, **options})


@pytest.mark.parametrize("size", [8, 12, 16, 32])
@pytest.mark.parametrize("training", [False, True])
def test_an_untrained_denoiser_is_the_identity(size, training):
    images = some_images(2, size)
    assert torch.equal(denoiser().train(training)(images), images)


@pytest.mark.parametrize(
    ("num_downsamplings", "size"), [(1, 16), (2, 16), (2, 32), (3, 16), (2, 19), (4, 299)]
)
def test_it_keeps_shapes_and_sees_the_whole_image(num_downsamplings, size):
    model = denoiser(num_downsamplings=num_downsamplings).eval()
    nn.init.normal_(model.last.weight)
    images = some_images(2, size).requires_grad_()
    denoised = model(images)
    assert denoised.shape == images.shape and not torch.equal(denoised, images)
    # Every part is in use.
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(denoised.square().sum(), [images, *parameters])
    assert all((gradient != 0).any() for gradient in gradients)


def test_the_layers_are_the_papers():
    model = Denoiser(width=64, num_downsamplings=4)
    convolutions = [each for each in model.down.modules() if isinstance(each, nn.Conv2d)]
    assert [each.out_channels for each in convolutions] == [64] * 2 + [128] * 3 + [256] * 9
    assert [each.stride[0] for each in convolutions] == [1, 1, *[2, 1, 1] * 4]
    fusions = [block[0].in_channels for block in model.up]
    assert fusions == [128 + 64, 256 + 128, 256 + 256, 256 + 256]
    ways_up = [
        [each.out_channels for each in block if isinstance(each, nn.Conv2d)] for block in model.up
    ]
    assert ways_up == [[64] * 2, [128] * 3, [256] * 3, [256] * 3]


def test_it_learns_to_take_a_pattern_off():
    model = denoiser()
    clean = some_images(8, 16)
    pattern = 0.1 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1)).sign()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        loss = (model(clean + pattern) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.1, abs=1e-6)
    assert losses[-1] < 0.08


def test_in_eval_mode_an_image_is_denoised_alone():
    model = denoiser().double().eval()
    nn.init.normal_(model.last.weight)
    images = some_images(3, 16).double()
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]))


def test_the_loss_by_hand():
    denoised = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.5, 1.0]], requires_grad=True)
    clean = torch.tensor([[0.0, 1.0, 3.5], [0.0, 0.5, 1.0]], requires_grad=True)
    loss = guidance_loss(denoised, clean)
    torch.testing.assert_close(loss, torch.tensor([4.5 / 3, 0.0]))
    loss.sum().backward()
    torch.testing.assert_close(
        denoised.grad, torch.tensor([[1.0, -1.0, -1.0], [0.0, 0.0, 0.0]]) / 3
    )
    assert clean.grad is None


@pytest.mark.parametrize(
    "options", [{"width": 0}, {"num_downsamplings": 0}, {"num_downsamplings": 5}]
)
def test_settings_that_cannot_be_built_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Denoiser(**options)


def test_ill_shaped_images_are_refused():
    images = some_images(2, 16)
    for wrong in (
        images[0],
        images[:, :1],
        images[:, :, :12],
        images[:, :, :14, :12],
        images[:, :, :4, :4],
        (255 * images).byte(),
    ):
        with pytest.raises(DataError, match="images to denoise"):
            denoiser()(wrong)
