"""The attacks against those of public libraries, on a network trained on real digits."""

import functools
import warnings

import pytest
import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import nn

from cdvae_ray.core.attacks import auto_attack as auto_attack_module
from cdvae_ray.core.attacks.auto_attack import auto_attack
from cdvae_ray.core.attacks.bim import bim
from cdvae_ray.core.attacks.carlini_wagner import carlini_wagner_l2
from cdvae_ray.core.attacks.fgsm import fgsm
from cdvae_ray.core.attacks.margin_pgd import margin_pgd
from cdvae_ray.core.attacks.pgd import pgd

with warnings.catch_warnings():
    # foolbox 3.3.4 imports from a namespace that SciPy has renamed.
    warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
    import foolbox

COUNT = 300


@pytest.fixture(scope="module")
def case():
    """A network of 97 % accuracy or more, and 300 images that it was not trained on."""
    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    images = nn.functional.interpolate(images, 16, mode="bilinear").clamp(0, 1)
    images, labels = images.repeat(1, 3, 1, 1), torch.from_numpy(targets).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(12):
            for rows in torch.randperm(len(images) - COUNT).split(128):
                loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    model.eval().requires_grad_(False)
    assert (model(images[-COUNT:]).argmax(dim=1) == labels[-COUNT:]).float().mean() > 0.9
    return model, images[-COUNT:], labels[-COUNT:]


def fooled(model, images, labels):
    """Share of images in percent."""
    return 100 * float((model(images).argmax(dim=1) != labels).float().mean())


def by_foolbox(attack, case, epsilon):
    model, images, labels = case
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, clipped, _ = attack(wrapped, images, labels, epsilons=epsilon)
    return clipped


@pytest.mark.parametrize("epsilon", [2 / 255, 8 / 255, 0.1])
def test_fgsm_is_that_of_torchattacks_and_foolbox(case, epsilon):
    model, images, labels = case
    ours = fgsm(model, images, labels, epsilon=epsilon).images
    assert torch.equal(ours, torchattacks.FGSM(model, eps=epsilon)(images, labels))
    theirs = by_foolbox(foolbox.attacks.LinfFastGradientAttack(), case, epsilon)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("epsilon", [0.03, 0.06])
def test_pgd_linf_fools_as_many_as_torchattacks_and_foolbox(case, epsilon):
    model, images, labels = case
    size = epsilon / 4
    torch.manual_seed(0)
    ours = pgd(
        model, images, labels, epsilon=epsilon, num_steps=20, step_size=size, keep="last"
    ).images
    first = torchattacks.PGD(model, eps=epsilon, alpha=size, steps=20)(images, labels)
    second = by_foolbox(
        foolbox.attacks.LinfPGD(abs_stepsize=size, steps=20, random_start=True), case, epsilon
    )
    rate = fooled(model, ours, labels)
    assert 10 < rate < 98
    assert rate == pytest.approx(fooled(model, first, labels), abs=2)
    assert rate == pytest.approx(fooled(model, second, labels), abs=2)


@pytest.mark.parametrize("epsilon", [0.7, 1.2])
def test_pgd_l2_fools_as_many_as_torchattacks_and_foolbox(case, epsilon):
    model, images, labels = case
    size = epsilon / 4
    torch.manual_seed(0)
    ours = pgd(
        model,
        images,
        labels,
        epsilon=epsilon,
        num_steps=20,
        step_size=size,
        norm="l2",
        keep="last",
    ).images
    first = torchattacks.PGDL2(model, eps=epsilon, alpha=size, steps=20)(images, labels)
    second = by_foolbox(
        foolbox.attacks.L2PGD(abs_stepsize=size, steps=20, random_start=True), case, epsilon
    )
    rate = fooled(model, ours, labels)
    assert 10 < rate < 98
    assert rate == pytest.approx(fooled(model, first, labels), abs=2)
    assert rate == pytest.approx(fooled(model, second, labels), abs=2)


def test_carlini_wagner_finds_the_norms_of_foolbox(case):
    model, images, labels = (case[0], *(each[:80] for each in case[1:]))
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, theirs, success = foolbox.attacks.L2CarliniWagnerAttack(steps=100)(
        wrapped, images, labels, epsilons=None
    )
    ours = carlini_wagner_l2(model, images, labels, num_steps=100)
    assert success.all()
    assert ours.success.all()
    norms = (theirs - images).flatten(1).norm(dim=1)
    assert float(ours.norm.median()) == pytest.approx(float(norms.median()), rel=0.02)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.045), ("l2", 0.9)])
def test_auto_attack_leaves_no_more_than_any_single_attack(case, norm, epsilon, monkeypatch):
    # A part of its steps, still more than those of the others.
    monkeypatch.setattr(auto_attack_module, "NUM_QUERIES", 50)
    monkeypatch.setattr(auto_attack_module, "NUM_STEPS", 30)
    model, images, labels = (case[0], *(each[:80] for each in case[1:]))
    left = auto_attack(model, images, labels, epsilon=epsilon, norm=norm)
    singles = [
        functools.partial(pgd, num_steps=20, norm=norm),
        functools.partial(margin_pgd, num_steps=20, norm=norm),
    ]
    if norm == "linf":
        singles += [functools.partial(fgsm, keep="best"), functools.partial(bim, num_steps=20)]
    for single in singles:
        other = single(model, images, labels, epsilon=epsilon)
        assert left.success.sum() >= other.success.sum()
    assert left.success.float().mean() < 1
