"""C&W-L2 against closed forms, torch.optim.Adam, and its own promises."""

import math

import pytest
import torch
from torch import nn

from cdvae_ray.core.attacks.carlini_wagner import carlini_wagner_l2
from cdvae_ray.core.attacks.eot import eot
from cdvae_ray.errors import ConfigError

SHAPE = (3, 8, 8)


def linear(seed=0):
    """Logits (w.(x - 1/2) + b, 0) and images of class 0 around gray: the box is far away."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(SHAPE, generator=generator)
    images = 0.5 + 0.05 * torch.randn(12, *SHAPE, generator=generator)
    value = ((images - 0.5) * weights).flatten(1).sum(dim=1)
    # Nearer than Adam's first step, 0.005 in each of 192 pixels, it would have to come back.
    wanted = torch.linspace(1.5, 6.0, 12)
    images = images + ((wanted - value) / weights.pow(2).sum()).view(-1, 1, 1, 1) * weights

    def classify(points):
        value = ((points - 0.5) * weights).flatten(1).sum(dim=1)
        return torch.stack([value, torch.zeros_like(value)], dim=1)

    return classify, images, torch.zeros(12, dtype=torch.int64), wanted / weights.norm()


def small_net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 5)).to(dtype)


def some_images(count=10, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, *SHAPE, generator=generator, dtype=dtype)
    return (1.3 * images - 0.15).clamp(0, 1)


def test_a_linear_model_is_fooled_at_its_distance_to_the_boundary():
    classify, images, labels, distance = linear()
    result = carlini_wagner_l2(classify, images, labels, num_steps=500)
    assert result.success.all()
    assert (result.norm >= distance * (1 - 1e-5)).all()
    assert (result.norm <= distance * 1.02).all()


def test_a_confidence_moves_the_boundary_by_itself():
    classify, images, labels, distance = linear()
    result = carlini_wagner_l2(classify, images, labels, num_steps=300, confidence=2.0)
    # The margin grows by |w| a unit of distance, and |w| = wanted / distance.
    per_unit = classify(images)[:, 0] / distance
    assert (result.loss >= 2.0).all()
    torch.testing.assert_close(result.norm, distance + 2.0 / per_unit, rtol=0.02, atol=0)


def test_epsilon_divides_images_into_fooled_and_unchanged():
    classify, images, labels, distance = linear()
    epsilon = float(distance[5:7].mean())
    result = carlini_wagner_l2(classify, images, labels, num_steps=300, epsilon=epsilon)
    assert torch.equal(result.success, distance < epsilon)
    resisted = ~result.success
    assert torch.equal(result.images[resisted], images[resisted])
    assert (result.norm[resisted] == 0).all()
    assert (result.norm <= epsilon).all()
    torch.testing.assert_close(result.loss[resisted], -classify(images)[resisted, 0])


def test_an_image_that_fools_already_comes_back_itself():
    classify, images, labels, _ = linear()
    labels[3] = 1
    result = carlini_wagner_l2(classify, images, labels, num_steps=20)
    assert result.success[3]
    assert result.norm[3] == 0
    assert torch.equal(result.images[3], images[3])
    again = carlini_wagner_l2(classify, images, 1 - torch.zeros_like(labels), num_steps=5)
    assert again.success.all()
    assert torch.equal(again.images, images)


def test_what_cannot_be_fooled_comes_back_unchanged_and_its_zero_gradient_is_told():
    def stubborn(points):
        return torch.tensor([[1.0, 0.0]]).expand(len(points), 2) + 0 * points.sum()

    images = some_images(3)
    result = carlini_wagner_l2(
        stubborn, images, torch.zeros(3, dtype=torch.int64), num_steps=20, num_searches=3
    )
    assert not result.success.any()
    assert torch.equal(result.images, images)
    assert result.zero_gradient.all()
    assert not result.nonfinite_gradient.any()


def test_a_gradient_of_nan_is_told_and_leaves_the_image_whole():
    def broken(points):
        total = points.flatten(1).sum(dim=1)
        return torch.stack([1 + (total - total).sqrt(), total * 0], dim=1)

    result = carlini_wagner_l2(
        broken, some_images(3), torch.zeros(3, dtype=torch.int64), num_steps=20, num_searches=3
    )
    assert result.nonfinite_gradient.all()
    assert torch.isfinite(result.images).all()


def test_iterates_are_those_of_adam_and_autograd():
    model, images = small_net(torch.float64), some_images(6, torch.float64)
    labels = model(images).argmax(dim=1)
    constant, steps = 10.0, 25
    variable = torch.atanh((2 * images - 1) * 0.999999).requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=0.05)
    nearest = torch.full((6,), math.inf, dtype=torch.float64)
    for _ in range(steps):
        points = (torch.tanh(variable) + 1) / 2
        logits = model(points)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        other = torch.where(nn.functional.one_hot(labels, 5).bool(), -torch.inf, logits).amax(1)
        square = (points - images).pow(2).flatten(1).sum(dim=1)
        fooled = logits.argmax(dim=1) != labels
        nearest = torch.where(fooled, torch.minimum(nearest, square.detach().sqrt()), nearest)
        optimizer.zero_grad()
        (square + constant * (own - other).clamp(min=0)).sum().backward()
        optimizer.step()
    result = carlini_wagner_l2(
        model,
        images,
        labels,
        num_steps=steps,
        step_size=0.05,
        initial_constant=constant,
        num_searches=1,
        abort_early=False,
    )
    assert torch.equal(result.success, torch.isfinite(nearest))
    assert result.success.any()
    torch.testing.assert_close(
        result.norm[result.success], nearest[result.success], rtol=1e-7, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_success_holds_for_the_very_images_in_the_box(dtype):
    model, images = small_net(dtype).eval(), some_images(16).to(dtype)
    labels = model(images).argmax(dim=1)
    result = carlini_wagner_l2(model, images, labels, num_steps=50, num_searches=6)
    assert result.success.float().mean() > 0.8
    assert torch.equal(model(result.images).argmax(dim=1) != labels, result.success)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert result.images.dtype == dtype


def test_images_do_not_depend_on_the_batch():
    model, images = small_net(torch.float64), some_images(10, torch.float64)
    labels = model(images).argmax(dim=1)
    whole = carlini_wagner_l2(model, images, labels, num_steps=60, num_searches=6)
    for rows in ([0], [7, 2, 5]):
        part = carlini_wagner_l2(model, images[rows], labels[rows], num_steps=60, num_searches=6)
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-9)
        assert torch.equal(part.success, whole.success[rows])


def test_aborting_early_saves_forwards_and_little_else():
    model, images = small_net(), some_images()
    labels = model(images).argmax(dim=1)
    seen = []

    def counted(points):
        seen.append(len(points))
        return model(points)

    aborted = carlini_wagner_l2(counted, images, labels, num_steps=100)
    cost_aborted = sum(seen)
    seen.clear()
    full = carlini_wagner_l2(counted, images, labels, num_steps=100, abort_early=False)
    assert cost_aborted < 0.9 * sum(seen)
    assert aborted.success.all()
    assert full.success.all()
    torch.testing.assert_close(aborted.norm.median(), full.norm.median(), rtol=0.02, atol=0)


def test_more_constants_never_end_further_away():
    model, images = small_net(), some_images()
    labels = model(images).argmax(dim=1)
    few = carlini_wagner_l2(model, images, labels, num_steps=50, num_searches=5)
    many = carlini_wagner_l2(model, images, labels, num_steps=50, num_searches=8)
    assert (many.success >= few.success).all()
    assert (many.norm <= few.norm)[few.success].all()


def test_targets_are_reached():
    model, images = small_net(), some_images()
    labels = model(images).argmax(dim=1)
    targets = (labels + 1) % 5
    result = carlini_wagner_l2(model, images, labels, num_steps=100, targets=targets)
    assert result.success.float().mean() >= 0.8
    assert torch.equal(model(result.images).argmax(dim=1) == targets, result.success)
    away = carlini_wagner_l2(model, images, labels, num_steps=100)
    assert away.norm[result.success].mean() <= result.norm[result.success].mean()


def test_eot_changes_nothing_for_a_deterministic_model_and_averages_a_random_one():
    model, images = small_net(), some_images(4)
    labels = model(images).argmax(dim=1)
    plain = carlini_wagner_l2(model, images, labels, num_steps=30, num_searches=5)
    averaged = carlini_wagner_l2(
        eot(model, num_samples=3), images, labels, num_steps=30, num_searches=5
    )
    assert torch.equal(plain.images, averaged.images)

    def noisy(points):
        return model(points) + 0.5 * torch.randn(len(points), 5)

    random = carlini_wagner_l2(
        eot(noisy, num_samples=10), images, labels, num_steps=30, num_searches=5, seed=3
    )
    again = carlini_wagner_l2(
        eot(noisy, num_samples=10), images, labels, num_steps=30, num_searches=5, seed=3
    )
    assert torch.equal(random.images, again.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"num_steps": 0}, "num_steps"),
        ({"step_size": -1.0}, "step_size"),
        ({"confidence": -1.0}, "confidence"),
        ({"confidence": math.inf}, "confidence"),
        ({"initial_constant": 0.0}, "initial_constant"),
        ({"num_searches": 0}, "num_searches"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        carlini_wagner_l2(small_net(), some_images(2), torch.zeros(2, dtype=torch.int64), **options)
