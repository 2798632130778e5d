"""The fast Lagrangian attack against its algorithm written out, and what it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cdvae_ray.core.attacks.fast_lagrangian import fast_lagrangian
from cdvae_ray.core.perceptual_distance import perceptual_distance, perceptual_features
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.core.wide_resnet import WideResNet
from cdvae_ray.errors import ConfigError, DataError

CLASSES = 5
BOUND = 0.5


class Network(nn.Module):
    """A small WideResNet with a look at its activations."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = WideResNet(depth=10, widen_factor=1, num_classes=CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        activations = self.inner.activations(4 * images - 2)
        return activations["logits"], perceptual_features(activations)


def case(
    count: int, dtype: torch.dtype = torch.float64, size: int = 8
) -> tuple[Network, Tensor, Tensor]:
    """A network, images with black and white pixels, and the classes it sees in them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network().to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)
    images = (1.2 * images - 0.1).clamp(0, 1).to(dtype)
    with torch.no_grad():
        labels = network(images)[0].argmax(dim=1)
    return network, images, labels


def margins(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(images)[0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


def distances(network: nn.Module, images: Tensor, others: Tensor) -> Tensor:
    with torch.no_grad():
        return perceptual_distance(network(images)[1], network(others)[1])


def start(images: Tensor, seed: int, ids: Tensor) -> Tensor:
    noise = keyed_normal(image_keys(seed, "fast_lagrangian", 0, ids), images[0].numel())
    return (images + 0.01 * noise.to(images.dtype).view_as(images)).clamp(0, 1)


def literal_attack(
    network: nn.Module, image: Tensor, label: int, point: Tensor, bound: float, num_steps: int
) -> Tensor:
    """One image, from its start, as the paper's algorithm is written."""
    clean = network(image[None])[1].detach()[0]
    for t in range(1, num_steps + 1):
        lam = 10 ** (t / num_steps)
        eta = bound * 0.1 ** (t / num_steps)
        variable = point.clone().requires_grad_()
        logits, features = (each[0] for each in network(variable[None]))
        wrong = torch.cat([logits[:label], logits[label + 1 :]]).max()
        over = (features - clean).square().sum().sqrt() - bound
        lagrangian = wrong - logits[label] - (lam * over if over > 0 else 0)
        (gradient,) = torch.autograd.grad(lagrangian, variable)
        unit = gradient / gradient.square().sum().sqrt()
        with torch.no_grad():
            away = network((point + 0.1 * unit)[None])[1][0]
            m = (away - features).square().sum().sqrt() / 0.1
            point = (point + eta / m * unit).clamp(0, 1)
    return point


@pytest.mark.parametrize(("bound", "num_steps"), [(0.5, 1), (0.5, 4), (0.02, 5)])
def test_it_is_the_algorithm_as_written(bound: float, num_steps: int) -> None:
    network, images, labels = case(3)
    ids = torch.tensor([7, 2, 9])
    found = fast_lagrangian(
        network, images, labels, bound=bound, num_steps=num_steps, seed=3, image_ids=ids
    )
    starts = start(images, 3, ids)
    for image, label, point, mine in zip(images, labels.tolist(), starts, found, strict=True):
        expected = literal_attack(network, image, label, point, bound, num_steps)
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-9)
        assert (expected - point).abs().max() > 1e-3  # not by standing still


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_raises_the_margin_and_stays_an_image(dtype: torch.dtype) -> None:
    network, images, labels = case(12, dtype)
    before, copy = margins(network, images, labels), images.clone()
    found = fast_lagrangian(network, images, labels, bound=BOUND)
    assert found.dtype == dtype and found.shape == images.shape and not found.requires_grad
    assert (found >= 0).all() and (found <= 1).all()
    assert (before < 0).all()  # the labels are what the network sees
    after = margins(network, found, labels)
    assert (after > before).all() and (after > 0).double().mean() > 0.9
    assert torch.equal(images, copy) and not images.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_bound_bounds_softly() -> None:
    network, images, labels = case(12)
    for bound in (0.1, 0.5):
        found = fast_lagrangian(network, images, labels, bound=bound)
        moved = distances(network, images, found)
        assert (moved > 0.8 * bound).all() and (moved < 1.25 * bound).all()


def test_it_repeats_by_seed_and_image_whatever_the_batch() -> None:
    network, images, labels = case(6)

    def attack(rows: list[int], seed: int) -> Tensor:
        return fast_lagrangian(
            network,
            images[rows],
            labels[rows],
            bound=BOUND,
            num_steps=4,
            seed=seed,
            image_ids=torch.tensor(rows),
        )

    whole = attack(list(range(6)), 5)
    assert torch.equal(whole, attack(list(range(6)), 5))
    assert torch.equal(
        whole, fast_lagrangian(network, images, labels, bound=BOUND, num_steps=4, seed=5)
    )
    assert (whole - attack(list(range(6)), 6)).flatten(1).abs().amax(dim=1).min() > 1e-3
    for rows in ([4, 1], [3]):
        torch.testing.assert_close(attack(rows, 5), whole[rows], rtol=0, atol=1e-9)


def test_it_works_where_gradients_are_off() -> None:
    network, images, labels = case(2)
    expected = fast_lagrangian(network, images, labels, bound=BOUND, num_steps=2)
    with torch.no_grad():
        found = fast_lagrangian(network, images, labels, bound=BOUND, num_steps=2)
    assert torch.equal(found, expected)


def constant(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.new_zeros(len(images), CLASSES), images.new_zeros(len(images), 4)


def flat_parameters(images: Tensor) -> tuple[Tensor, Tensor]:
    """Answers that have a gradient, but none with respect to the images."""
    logits, features = constant(images)
    return logits.requires_grad_(), features.requires_grad_()


def without_features(images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits that images move, features that they do not."""
    return images.flatten(1)[:, :CLASSES], constant(images)[1]


def nan_gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Finite answers whose gradients are not: the root of zero."""
    flat = images.flatten(1)
    return (flat - flat.detach())[:, :CLASSES].square().sqrt(), flat


@pytest.mark.parametrize("look", [constant, flat_parameters, without_features, nan_gradient])
def test_an_image_with_nowhere_to_go_stays_at_its_start(
    look: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> None:
    _, images, labels = case(3)
    found = fast_lagrangian(look, images, labels, bound=BOUND, seed=1)
    assert torch.equal(found, start(images, 1, torch.arange(3)))


@pytest.mark.parametrize(
    "options",
    [{"bound": 0.0}, {"bound": -1.0}, {"bound": float("nan")}, {"num_steps": 0}],
)
def test_settings_that_cannot_be_run_are_refused(options: dict[str, float]) -> None:
    network, images, labels = case(1)
    with pytest.raises(ConfigError, match=next(iter(options))):
        fast_lagrangian(network, images, labels, **{"bound": BOUND, **options})


def test_data_that_cannot_be_attacked_are_refused() -> None:
    network, images, labels = case(2)
    with pytest.raises(DataError, match="images"):
        fast_lagrangian(network, images + 1, labels, bound=BOUND)
    with pytest.raises(DataError, match="labels"):
        fast_lagrangian(network, images, labels + CLASSES, bound=BOUND)
    with pytest.raises(DataError, match="the classifier's answer"):
        fast_lagrangian(lambda x: (x, x.flatten(1)), images, labels, bound=BOUND)
    with pytest.raises(DataError, match="the perceptual features"):
        fast_lagrangian(lambda x: (network(x)[0], x), images, labels, bound=BOUND)
