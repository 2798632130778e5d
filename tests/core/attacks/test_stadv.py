"""StAdv against a literal implementation of its specification, and what it promises."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdvae_ray.core.attacks.adam import Adam
from cdvae_ray.core.attacks.outcome import AttackResult
from cdvae_ray.core.attacks.smoothness import total_variation
from cdvae_ray.core.attacks.stadv import FlowSearch, identity_grid, stadv
from cdvae_ray.errors import ConfigError

from .networks import fixed_network

CLASSES = 5


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    return fixed_network(16, 16, classes=CLASSES, dtype=dtype)


def smooth_images(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    images = F.interpolate(coarse, size=(16, 16), mode="bilinear", align_corners=False)
    return images.to(dtype)


def case(count: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images, and the classes that it sees in them."""
    model, images = network(dtype), smooth_images(count, dtype)
    return model, images, model(images).argmax(dim=1)


def literal_total_variation(field: Tensor) -> Tensor:
    """One image's field (C, ...): every point, axis and direction, edges replicated, in a loop."""
    total = field.new_zeros(())
    for axis in range(1, field.dim()):
        size = field.shape[axis]
        for i in range(size):
            for j in (max(i - 1, 0), min(i + 1, size - 1)):
                difference = field.select(axis, i) - field.select(axis, j)
                total = total + (difference.pow(2).sum(dim=0) + 1e-10).sqrt().sum()
    return total


def literal_stadv(
    model: nn.Module, images: Tensor, labels: Tensor, num_steps: int, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Section by section as specified: images and sampling grids after num_steps."""
    theta = torch.eye(2, 3, dtype=images.dtype).repeat(len(images), 1, 1)
    identity = F.affine_grid(theta, list(images.shape), align_corners=False)
    grid = identity.clone().requires_grad_()
    adam = torch.optim.Adam([grid], lr=0.01)

    def project() -> None:
        with torch.no_grad():
            grid.copy_(grid.clamp(-1, 1))
            grid.copy_(torch.minimum(torch.maximum(grid, identity - epsilon), identity + epsilon))

    def render() -> Tensor:
        return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)

    for _ in range(num_steps):
        project()
        adam.zero_grad()
        logits = model(render())
        loss = images.new_zeros(())
        for image, (row, label) in enumerate(zip(logits, labels.tolist(), strict=True)):
            others = torch.cat([row[:label], row[label + 1 :]])
            flow = (grid[image] - identity[image]).permute(2, 0, 1)
            variation = literal_total_variation(flow)
            loss = loss + row[label] - others.max() + 0.0025 / epsilon * variation
        loss.backward()
        adam.step()
    project()
    return render().detach(), grid.detach() - identity


# With the largest epsilon the edge of the image is nearer than that of the ball.
@pytest.mark.parametrize(("num_steps", "epsilon"), [(3, 0.05), (10, 0.05), (12, 0.2)])
def test_it_is_what_its_specification_says(num_steps: int, epsilon: float) -> None:
    model, images, labels = case(4)
    result = stadv(model, images, labels, epsilon=epsilon, num_steps=num_steps, keep="last")
    expected, flow = literal_stadv(model, images, labels, num_steps, epsilon)
    torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(result.norm, flow.abs().amax(dim=(1, 2, 3)), rtol=0, atol=1e-8)
    # Not by standing still.
    assert (expected - images).abs().max() > 0.01


@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 4, 2, 3), (1, 1, 6), (2, 9)])
def test_total_variation_is_the_literal_sum(shape: tuple[int, ...]) -> None:
    field = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mine, literal = field.clone().requires_grad_(), field.clone().requires_grad_()
    values = total_variation(mine)
    expected = torch.stack([literal_total_variation(each) for each in literal])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    gradients = torch.autograd.grad((weights * values).sum(), mine)
    torch.testing.assert_close(
        gradients, torch.autograd.grad((weights * expected).sum(), literal), rtol=1e-10, atol=1e-12
    )
    assert torch.equal(total_variation(field), values)


def test_the_total_variation_of_nothing_is_its_offset() -> None:
    field = torch.zeros(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    values = total_variation(field)
    torch.testing.assert_close(values, torch.full_like(values, 4 * 64 * 1e-5), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(values.sum(), field)
    assert torch.equal(gradient, torch.zeros_like(field))


def test_adam_climbs_as_pytorch_descends() -> None:
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    reference = points.clone().requires_grad_()
    theirs, mine = torch.optim.Adam([reference], lr=0.02), Adam.like(points, step_size=0.02)
    for _ in range(12):
        gradient = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        reference.grad = -gradient
        theirs.step()
        points = mine.ascend(points, gradient)
        torch.testing.assert_close(points, reference.detach(), rtol=0, atol=1e-13)


def test_adam_of_some_images_goes_on_as_in_the_batch() -> None:
    generator = torch.Generator().manual_seed(4)
    points, rows = torch.randn(5, 6, generator=generator), torch.tensor([3, 0])
    adam = Adam.like(points, step_size=0.1)
    points = adam.ascend(points, torch.randn(5, 6, generator=generator))
    gradient = torch.randn(5, 6, generator=generator)
    some = adam.select(rows).ascend(points[rows], gradient[rows])
    assert torch.equal(some, adam.ascend(points, gradient)[rows])


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (7, 10)])
def test_the_identity_grid_is_pytorchs(size: tuple[int, int]) -> None:
    images = torch.zeros(1, 3, *size, dtype=torch.float64)
    theirs = F.affine_grid(torch.eye(2, 3).double()[None], [1, 3, *size], align_corners=False)
    torch.testing.assert_close(identity_grid(images).movedim(0, -1), theirs[0])


def flow_search(images: Tensor, flow: Tensor) -> FlowSearch:
    return FlowSearch(
        images,
        identity_grid(images),
        epsilon=0.05,
        smoothness=0.05,
        adam=Adam.like(flow, step_size=0.01),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_flow_shows_the_image(dtype: torch.dtype) -> None:
    images = torch.rand(3, 3, 13, 32, generator=torch.Generator().manual_seed(5), dtype=dtype)
    images = (1.5 * images - 0.25).clamp(0, 1)
    flow = torch.zeros(3, 2, 13, 32, dtype=dtype)
    shown = flow_search(images, flow).render(flow)
    torch.testing.assert_close(
        shown, images, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13
    )
    assert shown.min() >= 0 and shown.max() <= 1


def test_a_flow_of_one_pixel_shifts_the_image() -> None:
    images = smooth_images(2)
    flow = torch.zeros(2, 2, 16, 16, dtype=torch.float64)
    flow[0, 0], flow[1, 1] = 2 / 16, 2 / 16  # along a row; along a column
    shown = flow_search(images, flow).render(flow)
    torch.testing.assert_close(shown[0, :, :, :-1], images[0, :, :, 1:])
    torch.testing.assert_close(shown[1, :, :-1], images[1, :, 1:])


def test_rounding_above_white_stops_no_gradient() -> None:
    # What is above 1 by rounding on some device, here by decree.
    white = 1 + torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    flow = 0.03 * torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(6))
    flow.requires_grad_()
    search = flow_search(white, flow.detach())
    raw = F.grid_sample(white, (search.identity + flow).movedim(1, -1), align_corners=False)
    assert raw.max() > 1
    expected = torch.autograd.grad(raw.sum(), flow)
    shown = search.render(flow)
    assert shown.max() == 1
    torch.testing.assert_close(torch.autograd.grad(shown.sum(), flow), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.3])
def test_the_flow_stays_in_the_ball_and_the_image(dtype: torch.dtype, epsilon: float) -> None:
    model, images, labels = case(3, dtype)
    # Steps as long as the ball, so that its border and the image's are reached.
    result = stadv(
        model, images, labels, epsilon=epsilon, step_size=epsilon, num_steps=6, keep="last"
    )
    assert (result.norm <= epsilon + 1e-7).all()
    assert (result.norm > 0.9 * epsilon).all()
    assert result.images.min() >= 0 and result.images.max() <= 1
    # Nothing is sampled from outside the image.
    for side in (-1.0, 1.0):
        flow = torch.full((1, 2, 16, 16), side, dtype=dtype)
        search = replace(flow_search(images[:1], flow), epsilon=epsilon)
        advanced = search.advance(flow, torch.zeros_like(flow))
        assert (search.identity + advanced).abs().max() <= 1 + 1e-6
        assert advanced.abs().max() <= epsilon + 1e-7


def attack(model: nn.Module, images: Tensor, labels: Tensor, **options: object) -> AttackResult:
    return stadv(model, images, labels, epsilon=0.02, num_steps=12, **options)  # type: ignore[arg-type]


def test_dropping_the_fooled_changes_nothing_for_the_others() -> None:
    model, images, labels = case(24)
    dropped = attack(model, images, labels, drop_fooled=True)
    full = attack(model, images, labels, drop_fooled=False)
    assert torch.equal(dropped.success, full.success)
    rest = ~full.success
    assert rest.any() and full.success.any()
    torch.testing.assert_close(dropped.images[rest], full.images[rest], rtol=0, atol=1e-9)
    assert (full.loss >= dropped.loss - 1e-9).all()


def test_an_image_takes_the_same_path_in_any_batch() -> None:
    model, images, labels = case(9)
    whole = attack(model, images, labels, keep="last")
    for rows in ([4], [8, 0, 3]):
        part = attack(model, images[rows], labels[rows], keep="last")
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-9)


def test_it_raises_the_margin_of_every_image_and_fools_most() -> None:
    model, images, labels = case(24)
    logits = model(images)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    before = others - logits.gather(1, labels[:, None]).squeeze(1)
    weak = stadv(model, images, labels, epsilon=0.05, num_steps=10)
    strong = stadv(model, images, labels, epsilon=0.4, num_steps=40, smoothness=0.0)
    assert (weak.loss > before).all()
    assert strong.success.float().mean() > 0.8
    assert not weak.zero_gradient.any()


def test_it_reaches_a_class_aimed_at() -> None:
    model, images, labels = case(6)
    targets = (labels + 1) % CLASSES
    result = stadv(
        model, images, labels, epsilon=0.4, num_steps=40, smoothness=0.0, targets=targets
    )
    assert torch.equal(model(result.images).argmax(dim=1) == targets, result.success)
    assert result.success.any()


def test_smoothness_makes_flows_smooth() -> None:
    model, images, labels = case(4)

    def roughness(smoothness: float) -> Tensor:
        search_images = stadv(
            model, images, labels, smoothness=smoothness, num_steps=20, keep="last"
        ).images
        return (search_images - images).diff(dim=-1).abs().sum(dim=(1, 2, 3))

    assert (roughness(1.0) < roughness(0.0)).all()


@pytest.mark.parametrize("smoothness", [-0.1, math.nan, math.inf])
def test_a_smoothness_that_is_no_weight_is_refused(smoothness: float) -> None:
    model, images, labels = case(1)
    with pytest.raises(ConfigError, match="smoothness"):
        stadv(model, images, labels, smoothness=smoothness)
