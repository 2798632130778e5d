"""AutoAttack against the package's own loop, with few classes, and its promises."""

import logging
import math
import sys

import pytest
import torch
from torch import nn

from cdvae_ray.core.attacks import auto_attack as module
from cdvae_ray.core.attacks.auto_attack import auto_attack
from cdvae_ray.core.attacks.eot import eot
from cdvae_ray.core.random import derive_seed
from cdvae_ray.errors import ConfigError, DataError

SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    # All steps and queries would cost minutes, and show nothing more.
    monkeypatch.setattr(module, "NUM_QUERIES", 60)
    monkeypatch.setattr(module, "NUM_STEPS", 10)


def network(classes=10, dtype=torch.float32):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, classes))
    return nn.Sequential(*layers).to(dtype)


def some_images(model, count=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, *SHAPE, generator=generator, dtype=dtype)
    images = (1.3 * images - 0.15).clamp(0, 1)
    return images, model(images).argmax(dim=1)


@pytest.mark.parametrize(
    ("norm", "epsilon", "version"),
    [
        ("linf", 0.012, "standard"),
        ("l2", 0.12, "standard"),
        ("linf", 0.012, "rand"),
        ("linf", 0.03, "square"),
    ],
)
def test_it_is_the_packages_own_evaluation(norm, epsilon, version, monkeypatch):
    from pyautoattack import AutoAttack

    monkeypatch.setattr(module, "NUM_STEPS", 100)
    monkeypatch.setattr(module, "RAND_DRAWS", 3)
    model = network(5)
    images, labels = some_images(model)
    labels[2] = (labels[2] + 1) % 5
    ids = torch.arange(100, 112)
    result = auto_attack(
        model, images, labels, epsilon=epsilon, norm=norm, version=version, seed=5, image_ids=ids
    )
    seed = derive_seed(5, "auto_attack", *ids.tolist())
    alone = {"version": "custom", "attacks": ["square"]}
    theirs = AutoAttack(
        model,
        eps=epsilon,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        seed=seed,
        **(alone if version == "square" else {"version": version}),
    )
    theirs.square.n_queries = 60
    theirs.apgd.eot_iter = 3 if version == "rand" else 1
    theirs.apgd_targeted.n_target_classes = theirs.fab.n_target_classes = 4
    tracer = sys.gettrace()
    logging.disable(logging.WARNING)
    try:
        found, _ = theirs.run_standard_evaluation(images, labels, batch_size=12)
    finally:
        logging.disable(logging.NOTSET)
        sys.settrace(tracer)
    torch.testing.assert_close(result.images, found, rtol=0, atol=1e-6)
    assert torch.equal(model(found).argmax(dim=1) != labels, result.success)
    assert 1 < result.success.sum() < 12


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_few_classes_run_the_attacks_that_are_defined(classes, version, monkeypatch):
    import pyautoattack.autopgd_base as apgd
    import pyautoattack.fab_pt as fab

    used = []

    def noting(owner, name):
        original = getattr(owner, name)

        def wrapped(self, *arguments):
            used.append((name, getattr(self, "n_target_classes", None)))
            return original(self, *arguments)

        monkeypatch.setattr(owner, name, wrapped)

    noting(apgd.APGDAttack, "dlr_loss")
    noting(apgd.APGDAttack_targeted, "dlr_loss_targeted")
    noting(fab.FABAttack_PT, "get_diff_logits_grads_batch_targeted")
    model = network(classes)
    images, labels = some_images(model, 4)
    # So small a ball that every attack comes to its turn.
    result = auto_attack(model, images, labels, epsilon=1e-5, version=version)
    assert not result.success.any()
    assert torch.equal(result.images, images)
    expected = set()
    if classes == 3 or (classes > 3 and version == "rand"):
        expected.add(("dlr_loss", None))
    if classes > 3 and version == "standard":
        expected.add(("dlr_loss_targeted", classes - 1))
    if version == "standard":
        expected.add(("get_diff_logits_grads_batch_targeted", classes - 1))
    assert set(used) == expected


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_success_norm_and_loss_hold_for_the_returned_images(norm, count):
    model = network(dtype=torch.float64)
    images, labels = some_images(model, count, torch.float64)
    epsilon = 0.012 if norm == "linf" else 0.12
    result = auto_attack(model, images, labels, epsilon=epsilon, norm=norm, batch_size=4)
    logits = model(result.images)
    assert result.images.dtype == torch.float64
    assert torch.equal(logits.argmax(dim=1) != labels, result.success)
    assert torch.equal(result.images[~result.success], images[~result.success])
    assert torch.equal(result.loss > 0, result.success)
    order = math.inf if norm == "linf" else 2
    distance = torch.linalg.vector_norm((result.images - images).flatten(1), ord=order, dim=1)
    torch.testing.assert_close(distance, result.norm)
    assert (distance <= epsilon * (1 + 1e-12)).all()


def test_images_that_are_wrong_already_are_not_attacked():
    model = network()
    images, labels = some_images(model)
    calls = []

    def counted(points):
        calls.append(len(points))
        return model(points)

    result = auto_attack(counted, images, (labels + 1) % 10, epsilon=0.1)
    assert calls == [12]
    assert result.success.all()
    assert torch.equal(result.images, images)


def test_it_leaves_no_trace(capfd, caplog):
    model = network()
    images, labels = some_images(model, 4)
    state, tracer = torch.get_rng_state(), sys.gettrace()
    auto_attack(model.train(), images, labels, epsilon=0.003)
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.gettrace() is tracer
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_flat_or_broken_classifier_leaves_images_whole():
    def flat(points):
        return torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(len(points), 4).clone()

    def broken(points):
        total = points.flatten(1).sum(dim=1, keepdim=True)
        return torch.tensor([[1.0, 0.0, -1.0, -2.0]]) + (total - total).sqrt()

    images, labels = torch.rand(3, *SHAPE), torch.zeros(3, dtype=torch.int64)
    for classify in (flat, broken):
        result = auto_attack(classify, images, labels, epsilon=0.1)
        assert not result.success.any()
        assert torch.equal(result.images, images)


def test_logits_that_the_classifier_keeps_are_not_written_into():
    kept = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(3, 1)
    images, labels = torch.rand(3, *SHAPE), torch.zeros(3, dtype=torch.int64)
    auto_attack(lambda points: kept[: len(points)], images, labels, epsilon=0.1)
    assert torch.equal(kept, torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(3, 1))


def test_a_random_model_is_attacked_repeatably_and_over_the_draws_of_its_eot():
    model = network(4)
    images, labels = some_images(model, 4)
    draws = []

    def noisy(points):
        draws.append(len(points))
        return model(points) + 0.05 * torch.randn(len(points), 4)

    def attack(samples):
        draws.clear()
        result = auto_attack(
            eot(noisy, num_samples=samples), images, labels, epsilon=0.001, version="rand", seed=2
        )
        return result, len(draws)

    (first, cost), (second, _) = attack(2), attack(2)
    assert torch.equal(first.images, second.images)
    # Two losses of 11 gradients each, computed again on the way back, and a few looks.
    assert 2 * 2 * 11 * 2 <= cost < 2 * 2 * 11 * 2 + 20
    assert attack(4)[1] > 1.6 * cost


def test_the_seed_and_the_ids_move_it():
    model = network()
    images, labels = some_images(model)

    def run(**options):
        return auto_attack(model, images, labels, epsilon=0.02, version="rand", **options).images

    assert torch.equal(run(seed=1), run(seed=1))
    assert not torch.equal(run(seed=1), run(seed=2))
    assert not torch.equal(run(), run(image_ids=torch.arange(7, 19)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"norm": "l1"}, "norm"),
        ({"version": "plus"}, "version"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(options, message):
    model = network()
    images, labels = some_images(model, 2)
    with pytest.raises(ConfigError, match=message):
        auto_attack(model, images, labels, **{"epsilon": 0.1, **options})


def test_images_too_small_for_the_l2_windows_are_refused():
    images, labels = torch.rand(2, 3, 4, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(DataError, match="5 pixels"):
        auto_attack(lambda points: points.flatten(1), images, labels, epsilon=0.1, norm="l2")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack.square", None)
    model = network()
    images, labels = some_images(model, 2)
    with pytest.raises(ConfigError, match=r"pip install pyautoattack==0\.2\.0"):
        auto_attack(model, images, labels, epsilon=0.1)
