"""The attacks on detectors: a linear pair in closed form, a literal loop, and a real detector."""

import functools
import inspect
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cdvae_ray import attacks
from cdvae_ray.core.attacks import detector_pgd as module
from cdvae_ray.core.attacks.balls import project, random_start
from cdvae_ray.core.attacks.detector_pgd import detector_pgd
from cdvae_ray.core.attacks.objective_pair import PairLook, heading
from cdvae_ray.detectors import class_moments, fit_mahalanobis
from cdvae_ray.errors import CdvaeError, ConfigError, DataError
from tests.core.attacks.networks import fixed_network

SIZE, CLASSES = 8, 4
STRATEGIES = ["orthogonal", "selective", "joint"]
NORMS = [("linf", 0.05), ("l2", 0.5)]
COMBINATIONS = [
    pytest.param(strategy, norm, epsilon, id=f"{strategy}-{norm}")
    for strategy in STRATEGIES
    for norm, epsilon in NORMS
]


def draw(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    # A third of the pixels lie on the border of the box, where clipping acts.
    images = (1.5 * images - 0.25).clamp(0, 1)
    return images.to(dtype), torch.randint(CLASSES, (count,), generator=generator)


def attacked_network(dtype=torch.float64):
    return fixed_network(SIZE, SIZE, classes=CLASSES, dtype=dtype)


def detecting_network(dtype=torch.float64):
    """Images to scores (N,), not linear, unrelated to the classifier."""
    generator = torch.Generator().manual_seed(7)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIZE**2, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.to(dtype).eval()


def unit(values):
    return values / values.norm()


# --- a linear classifier and a linear detector, in closed form -------------------------------


class LinearPair:
    """Logits (w.x + b, 0) and score d.x: grad f = -w for label 0, grad g = d.

    w leans against d, so that what fools the classifier also raises the score, but has a part in
    the null space of d.
    """

    def __init__(self, dtype=torch.float64, margin=1.0):
        generator = torch.Generator().manual_seed(5)
        shape = (3, SIZE, SIZE)
        d = unit(torch.randn(shape, generator=generator, dtype=torch.float64))
        free = torch.randn(shape, generator=generator, dtype=torch.float64)
        free = unit(free - (free * d).sum() * d)
        self.d, self.w = 2 * d.to(dtype), (3 * free - 4 * d).to(dtype)
        self.margin = margin
        self.images = torch.full((2, *shape), 0.5, dtype=dtype)
        self.labels = torch.zeros(2, dtype=torch.int64)
        # grad f less its part along d, by hand: w.free = 3, w.d = -4, in units of |d| = 1.
        self.free_direction = -free.to(dtype)
        self.seen = []

    def classify(self, images):
        value = ((images - 0.5) * self.w).flatten(1).sum(dim=1) + self.margin
        return torch.stack([value, torch.zeros_like(value)], dim=1)

    def detect(self, images):
        self.seen.append(images.detach().clone())
        return ((images - 0.5) * self.d).flatten(1).sum(dim=1)


@pytest.mark.parametrize(("norm", "epsilon"), NORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_orthogonal_never_moves_the_score_before_the_image_fools(
    monkeypatch, norm, epsilon, dtype, tolerance
):
    # From the middle of the ball and in steps that do not reach its border: nothing is clipped.
    monkeypatch.setattr(module, "random_start", lambda images, **_: images.clone())
    pair = LinearPair(dtype, margin=100.0)
    size = epsilon / 40
    result = detector_pgd(
        pair.classify,
        pair.detect,
        pair.images,
        pair.labels,
        epsilon=epsilon,
        num_steps=8,
        strategy="orthogonal",
        norm=norm,
        step_size=size,
    )
    assert not result.fooled.any()
    length = size * (math.sqrt(3 * SIZE**2) if norm == "linf" else 1)
    path = pair.seen[1:]  # the clean image comes first
    assert len(path) == 9
    for step, images in enumerate(path):
        score = pair.detect(images)
        torch.testing.assert_close(score, torch.zeros_like(score), rtol=0, atol=tolerance)
        expected = pair.images + step * length * pair.free_direction
        torch.testing.assert_close(images, expected, rtol=0, atol=tolerance)
    assert torch.equal(result.images, path[-1])  # the highest margin


@pytest.mark.parametrize(("norm", "epsilon"), NORMS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fools", [False, True])
def test_the_first_step_from_the_random_start_is_the_analytic_one(norm, epsilon, strategy, fools):
    pair = LinearPair(margin=-100.0 if fools else 100.0)
    weight = 0.7 if strategy == "joint" else 1.0
    detector_pgd(
        pair.classify,
        pair.detect,
        pair.images,
        pair.labels,
        epsilon=epsilon,
        num_steps=10,
        strategy=strategy,
        norm=norm,
        detector_weight=weight,
        seed=3,
    )
    f, g = unit(-pair.w), unit(pair.d)
    direction = {
        ("selective", False): f,
        ("selective", True): -g,
        ("orthogonal", False): f - (f * g).sum() * g,
        ("orthogonal", True): -(g - (f * g).sum() * f),
    }.get((strategy, fools), f - weight * g)
    length = epsilon / 4 * (math.sqrt(3 * SIZE**2) if norm == "linf" else 1)
    start = random_start(
        pair.images, norm=norm, epsilon=epsilon, seed=3, restart=0, image_ids=torch.arange(2)
    )
    moved = project(start + length * unit(direction), pair.images, norm=norm, epsilon=epsilon)
    assert torch.equal(pair.seen[1], start)
    torch.testing.assert_close(pair.seen[2], moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm", "epsilon"), NORMS)
def test_what_margin_pgd_does_not_evade_the_adaptive_attacks_do(norm, epsilon):
    pair = LinearPair(margin=0.5)
    threshold = 0.0  # the score of the clean images, which the detector therefore passes
    plain = attacks.margin_pgd(
        pair.classify, pair.images, pair.labels, epsilon=epsilon, num_steps=50, norm=norm
    )
    assert plain.success.all()
    assert (pair.detect(plain.images) > threshold + 0.1).all()
    for strategy in STRATEGIES:
        result = detector_pgd(
            pair.classify,
            pair.detect,
            pair.images,
            pair.labels,
            epsilon=epsilon,
            num_steps=50,
            strategy=strategy,
            norm=norm,
        )
        assert result.evades(threshold).all(), strategy


def test_a_higher_weight_lets_joint_pass_a_stricter_detector():
    pair = LinearPair(margin=0.5)

    def score(weight):
        result = detector_pgd(
            pair.classify,
            pair.detect,
            pair.images,
            pair.labels,
            epsilon=0.05,
            num_steps=40,
            strategy="joint",
            detector_weight=weight,
        )
        return float(result.detector_score.mean()), result.fooled

    ignoring, fooled = score(0.0)
    assert fooled.all()
    minding, fooled = score(1.0)
    assert fooled.all()
    assert minding < ignoring - 0.1
    minding_only, fooled = score(1e3)
    assert not fooled.any()
    assert minding_only > minding  # clean: no iterate has a higher margin


# --- directions --------------------------------------------------------------------------------


def pair_look(f, g, fooled, dtype=torch.float32):
    count = len(fooled)
    return PairLook(
        fooled=torch.tensor(fooled),
        margin=torch.zeros(count),
        score=torch.zeros(count),
        margin_gradient=torch.as_tensor(f, dtype=dtype).view(count, 1, 1, -1),
        score_gradient=torch.as_tensor(g, dtype=dtype).view(count, 1, 1, -1),
    )


@pytest.mark.parametrize("scale_f", [1e-44, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("scale_g", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_projections_survive_gradients_of_any_float32_size(scale_f, scale_g):
    generator = torch.Generator().manual_seed(1)
    f = torch.randint(-1, 2, (2, 50), generator=generator).double()
    g = torch.randint(-1, 2, (2, 50), generator=generator).double()
    f, g = f + 0.0, g + 0.0
    f[:, 0] = g[:, 0] = 1
    seen = pair_look(scale_f * f, scale_g * g, [False, True])
    to = heading(seen, strategy="orthogonal", detector_weight=1.0)
    expected = torch.stack(
        [
            unit(f[0] - (f[0] @ g[0]) / (g[0] @ g[0]) * g[0]),
            unit(-(g[1] - (f[1] @ g[1]) / (f[1] @ f[1]) * f[1])),
        ]
    )
    torch.testing.assert_close(to.direction.view(2, -1).double(), expected, rtol=0, atol=1e-6)
    assert not to.zero.any()
    assert not to.nonfinite.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nothing_is_left_of_parallel_gradients_and_it_is_said(dtype):
    f = torch.randn(2, 3000, generator=torch.Generator().manual_seed(2)).to(dtype)
    for factor in (0.5, -4.0):
        seen = pair_look(f, factor * f, [False, True], dtype)
        to = heading(seen, strategy="orthogonal", detector_weight=1.0)
        assert torch.equal(to.direction, torch.zeros_like(to.direction))
        assert to.zero.all()
    to = heading(pair_look(f, f, [False, True], dtype), strategy="joint", detector_weight=1.0)
    assert to.zero.all()


def test_what_little_is_left_of_nearly_parallel_gradients_is_orthogonal():
    generator = torch.Generator().manual_seed(3)
    f = torch.rand(2, 3000, generator=generator)
    g = f + 1e-4 * torch.randn(2, 3000, generator=generator)
    to = heading(pair_look(f, g, [False, True]), strategy="orthogonal", detector_weight=1.0)
    direction = to.direction.view(2, -1).double()
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(2).double())
    assert abs(direction[0] @ unit(g[0].double())) < 2e-6
    assert abs(direction[1] @ unit(f[1].double())) < 2e-6
    assert not to.zero.any()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fooled", [False, True])
@pytest.mark.parametrize("spoiled", ["f", "g"])
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_gradient_that_says_nothing_takes_nothing_out(strategy, fooled, spoiled, value):
    good = torch.tensor([3.0, -4.0, 0.0])
    bad = torch.zeros(3) if value == 0 else torch.tensor([1.0, value, 2.0])
    f, g = (bad, good) if spoiled == "f" else (good, bad)
    to = heading(pair_look(f, g, [fooled]), strategy=strategy, detector_weight=1.0)
    followed = "g" if fooled else "f"
    sign = 1 if spoiled == "g" else -1
    expected = sign * good / 5
    if strategy != "joint" and followed == spoiled:
        expected = torch.zeros(3)
    torch.testing.assert_close(to.direction.flatten(), expected)
    is_followed = strategy == "joint" or followed == spoiled
    assert bool(to.zero) is (value == 0 and is_followed)
    assert bool(to.nonfinite) is (value != 0 and (is_followed or strategy == "orthogonal"))


@pytest.mark.parametrize("weight", [1e10, 1e300])
def test_a_weight_of_any_size_is_finite_in_single_precision(weight):
    seen = pair_look([[3.0, 4.0]], [[0.0, 2.0]], [False])
    to = heading(seen, strategy="joint", detector_weight=weight)
    torch.testing.assert_close(to.direction.flatten(), torch.tensor([0.0, -1.0]))


def test_a_weight_of_zero_follows_the_classifier_alone():
    seen = pair_look([[3.0, 4.0]], [[math.nan, 0.0]], [True])
    to = heading(seen, strategy="joint", detector_weight=0.0)
    torch.testing.assert_close(to.direction.flatten(), torch.tensor([0.6, 0.8]))
    assert not to.zero
    assert not to.nonfinite


# --- the contract ------------------------------------------------------------------------------


class Disturbing(nn.Module):
    """A network with what disturbs careless attacks: batch norm, dropout, a train mode."""

    def __init__(self, outputs, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.convolution = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(36, outputs)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, images):
        hidden = self.norm(self.convolution(2 * images - 1)).tanh()
        return self.linear(self.dropout(hidden.flatten(1)))


class DisturbingDetector(Disturbing):
    def forward(self, images):
        return super().forward(images).squeeze(1)


@pytest.mark.parametrize(("strategy", "norm", "epsilon"), COMBINATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 5])
def test_the_contract_of_every_attack_is_kept(strategy, norm, epsilon, dtype, count):
    classifier = Disturbing(CLASSES, 1).to(dtype).train()
    detector = DisturbingDetector(1, 2).to(dtype).train()
    detector.norm.eval()  # a mixture of modes must come back as it was
    both = nn.ModuleList([classifier, detector])
    modes = [each.training for each in both.modules()]
    buffers = {key: value.clone() for key, value in both.named_buffers()}
    images, labels = draw(count, 11, dtype)
    before, random_state = images.clone(), torch.get_rng_state()
    attack = functools.partial(
        detector_pgd,
        classifier,
        detector,
        images,
        labels,
        epsilon=epsilon,
        num_steps=4,
        strategy=strategy,
        norm=norm,
    )
    result = attack(seed=1)

    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [each.training for each in both.modules()] == modes
    assert all(parameter.grad is None for parameter in both.parameters())
    assert all(torch.equal(value, buffers[key]) for key, value in both.named_buffers())

    assert result.images.shape == images.shape
    assert result.images.dtype == dtype
    assert not any(each.requires_grad for each in result)
    assert torch.isfinite(result.images).all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    perturbation = (result.images - images).flatten(1)
    distance = perturbation.abs().amax(dim=1) if norm == "linf" else perturbation.norm(dim=1)
    assert (distance <= epsilon + 1e-6).all()
    torch.testing.assert_close(result.norm, distance)
    for values in (result.fooled, result.zero_gradient, result.nonfinite_gradient):
        assert values.shape == (count,)
        assert values.dtype == torch.bool

    both.eval()
    with torch.no_grad():
        assert torch.equal(classifier(result.images).argmax(dim=1) != labels, result.fooled)
        torch.testing.assert_close(detector(result.images), result.detector_score)
    again = attack(seed=1)
    assert all(torch.equal(first, second) for first, second in zip(result, again, strict=True))


@pytest.mark.parametrize(("strategy", "norm", "epsilon"), COMBINATIONS)
def test_an_image_is_attacked_alike_in_any_batch_and_another_seed_starts_elsewhere(
    strategy, norm, epsilon
):
    images, labels = draw(6, 13)
    ids = torch.tensor([90, 3, 4, 55, 7, 1000])
    attack = functools.partial(
        detector_pgd,
        attacked_network(),
        detecting_network(),
        epsilon=epsilon,
        num_steps=4,
        strategy=strategy,
        norm=norm,
    )
    whole = attack(images, labels, seed=4, image_ids=ids)
    for rows in ([5], [3, 0, 2]):
        part = attack(images[rows], labels[rows], seed=4, image_ids=ids[rows])
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-9)
        assert torch.equal(part.fooled, whole.fooled[rows])
    other = attack(images, labels, seed=5, image_ids=ids)
    assert not torch.equal(other.images, whole.images)


def test_a_detector_of_another_precision_keeps_its_own():
    images, labels = draw(3, 17, torch.float32)
    wide = detecting_network()
    result = detector_pgd(
        attacked_network(torch.float32),
        lambda images: wide(images.double()),
        images,
        labels,
        epsilon=0.05,
        num_steps=3,
        strategy="orthogonal",
    )
    assert result.images.dtype == torch.float32
    assert result.detector_score.dtype == torch.float64
    with torch.no_grad():
        assert torch.equal(wide(result.images.double()), result.detector_score)


def test_one_module_may_be_both_classifier_and_detector():
    model = Disturbing(CLASSES, 1).train()
    model.energy = lambda images: -torch.logsumexp(model(images), dim=1)
    images, labels = draw(3, 19, torch.float32)
    result = detector_pgd(
        model, model.energy, images, labels, epsilon=0.05, num_steps=3, strategy="joint"
    )
    assert all(each.training for each in model.modules())
    assert torch.isfinite(result.detector_score).all()


# --- what is kept ------------------------------------------------------------------------------


def literal_attack(classify, detect, image, label, *, epsilon, num_steps, strategy, norm, seed, id):
    """The paper's loop for one image, as it is written; returns every point that it looked at."""
    size = 2.5 * epsilon / num_steps
    length = size * math.sqrt(image.numel()) if norm == "linf" else size
    point = random_start(
        image[None],
        norm=norm,
        epsilon=epsilon,
        seed=seed,
        restart=0,
        image_ids=torch.tensor([id]),
    )[0]
    points = [image, point]
    for _ in range(num_steps):
        x = point.clone().requires_grad_()
        logits = classify(x[None])[0]
        others = torch.cat([logits[:label], logits[label + 1 :]])
        (f,) = torch.autograd.grad(others.max() - logits[label], x)
        (g,) = torch.autograd.grad(detect(x[None])[0], x)
        fools = int(logits.argmax()) != label
        if strategy == "joint":
            direction = f / f.norm() - 0.5 * g / g.norm()
        elif strategy == "selective":
            direction = -g if fools else f
        elif fools:
            direction = -(g - (g * f).sum() / (f * f).sum() * f)
        else:
            direction = f - (f * g).sum() / (g * g).sum() * g
        point = point + length * direction / direction.norm()
        if norm == "linf":
            point = torch.minimum(torch.maximum(point, image - epsilon), image + epsilon)
        else:
            perturbation = point - image
            point = image + perturbation * min(1.0, epsilon / float(perturbation.norm()))
        point = point.clamp(0, 1)
        points.append(point)
    return points


@pytest.mark.parametrize(("strategy", "norm", "epsilon"), COMBINATIONS)
def test_what_is_kept_is_the_best_of_all_points_of_the_literal_loop(strategy, norm, epsilon):
    classify, detect = attacked_network(), detecting_network()
    images, _ = draw(12, 23)
    with torch.no_grad():
        labels = classify(images).argmax(dim=1)
        labels[:2] = (labels[:2] + 1) % CLASSES  # misclassified without an attack
    result = detector_pgd(
        classify,
        detect,
        images,
        labels,
        epsilon=epsilon,
        num_steps=5,
        strategy=strategy,
        norm=norm,
        detector_weight=0.5 if strategy == "joint" else 1.0,
        seed=9,
    )
    fooled_after = []
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        points = literal_attack(
            classify,
            detect,
            image,
            label,
            epsilon=epsilon,
            num_steps=5,
            strategy=strategy,
            norm=norm,
            seed=9,
            id=row,
        )
        best, best_key = None, None
        for point in points:
            with torch.no_grad():
                logits, score = classify(point[None])[0], float(detect(point[None]))
            others = torch.cat([logits[:label], logits[label + 1 :]])
            margin = float(others.max() - logits[label])
            key = (1, -score) if margin > 0 else (0, margin)
            if best_key is None or key > best_key:
                best, best_key = point, key
        torch.testing.assert_close(result.images[row], best, rtol=0, atol=1e-10)
        assert bool(result.fooled[row]) is (best_key[0] == 1)
        if best_key[0] == 1:
            assert float(result.detector_score[row]) == pytest.approx(-best_key[1], abs=1e-10)
        fooled_after.append(best_key[0])
    assert 2 < sum(fooled_after) < 12, "both branches have to be seen"


def test_a_clean_image_that_is_wrong_and_harmless_already_is_kept():
    # The score grows with the distance from the image: nothing but the image has score 0.
    images, labels = draw(4, 29)
    classify = attacked_network()
    with torch.no_grad():
        labels = (classify(images).argmax(dim=1) + 1) % CLASSES
    for strategy in STRATEGIES:
        result = detector_pgd(
            classify,
            lambda points: (points - images).flatten(1).square().sum(dim=1),
            images,
            labels,
            epsilon=0.02,
            num_steps=5,
            strategy=strategy,
        )
        assert torch.equal(result.images, images)
        assert torch.equal(result.norm, torch.zeros(4, dtype=torch.float64))
        assert result.fooled.all()
        assert result.evades(0.0).all()


def test_a_clean_image_that_is_wrong_gives_way_to_a_lower_score():
    pair = LinearPair(margin=-1.0)
    result = detector_pgd(
        pair.classify,
        pair.detect,
        pair.images,
        pair.labels,
        epsilon=0.05,
        num_steps=10,
        strategy="orthogonal",
    )
    assert result.fooled.all()
    assert (result.detector_score < 0).all()
    assert (result.norm > 0).all()


# --- thresholds --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_evasion_is_monotone_in_the_threshold(strategy):
    images, labels = draw(12, 31)
    result = detector_pgd(
        attacked_network(),
        detecting_network(),
        images,
        labels,
        epsilon=0.05,
        num_steps=4,
        strategy=strategy,
    )
    assert result.fooled.any()
    thresholds = [-math.inf, *result.detector_score.sort().values.tolist(), math.inf]
    evading = [result.evades(each) for each in thresholds]
    assert all(bool((lower <= higher).all()) for lower, higher in itertools.pairwise(evading))
    assert not evading[0].any()
    assert torch.equal(evading[-1], result.fooled)
    for threshold, evades in zip(thresholds, evading, strict=True):
        assert evades.tolist() == [
            fooled and score <= threshold
            for fooled, score in zip(
                result.fooled.tolist(), result.detector_score.tolist(), strict=True
            )
        ]


def test_a_threshold_is_not_rounded_to_a_score_of_single_precision():
    result = attacks.DetectorAttackResult(
        images=torch.zeros(1, 3, 1, 1),
        fooled=torch.tensor([True]),
        detector_score=torch.tensor([0.1]),  # 0.10000000149
        norm=torch.zeros(1),
        zero_gradient=torch.tensor([False]),
        nonfinite_gradient=torch.tensor([False]),
    )
    assert not result.evades(0.1)
    assert result.evades(0.1000001)
    with pytest.raises(ConfigError, match="threshold"):
        result.evades(math.nan)


# --- gradients that say nothing ----------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "norm", "epsilon"), COMBINATIONS)
def test_a_constant_detector_and_a_constant_classifier_make_no_nan(strategy, norm, epsilon):
    images, labels = torch.rand(3, 3, SIZE, SIZE), torch.zeros(3, dtype=torch.int64)

    def flat_score(images):
        return 0 * images.flatten(1).sum(dim=1)

    def flat_logits(images):
        return torch.tensor([[1.0, 0.0]]) + flat_score(images)[:, None]

    detect, classify = detecting_network(torch.float32), LinearPair(torch.float32, margin=0.5)
    attack = functools.partial(
        detector_pgd, epsilon=epsilon, num_steps=4, strategy=strategy, norm=norm
    )
    masked = attack(flat_logits, detect, images, labels)
    assert torch.isfinite(masked.images).all()
    assert masked.zero_gradient.all()
    assert not masked.fooled.any()
    middle = torch.full_like(images, 0.5)
    blind = attack(classify.classify, flat_score, middle, labels)
    assert torch.isfinite(blind.images).all()
    assert not blind.nonfinite_gradient.any()
    if norm == "linf":
        assert blind.fooled.all()  # nothing was taken out of the classifier's gradient
    neither = attack(flat_logits, flat_score, images, labels)
    assert torch.isfinite(neither.images).all()
    assert neither.zero_gradient.all()
    without = attack(lambda images: torch.tensor([[1.0, 0.0]] * 3), detect, images, labels)
    assert without.zero_gradient.all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_of_nan_are_counted_and_do_not_spoil_the_image(strategy):
    pair = LinearPair(margin=0.5)

    def nan_gradient(images):
        total = images.flatten(1).sum(dim=1)
        return (total - total).sqrt()

    attack = functools.partial(
        detector_pgd,
        images=pair.images,
        labels=pair.labels,
        epsilon=0.05,
        num_steps=10,
        strategy=strategy,
    )
    result = attack(pair.classify, nan_gradient)
    assert torch.isfinite(result.images).all()
    assert result.fooled.all()  # the classifier's own gradient is as good as ever
    assert result.nonfinite_gradient.all()
    result = attack(
        lambda images: pair.classify(images) + nan_gradient(images)[:, None], pair.detect
    )
    assert torch.isfinite(result.images).all()
    assert result.nonfinite_gradient.all()


# --- bad input ---------------------------------------------------------------------------------


def good():
    images, labels = draw(3, 37)
    return {
        "classify": attacked_network(),
        "detect": detecting_network(),
        "images": images,
        "labels": labels,
        "epsilon": 0.05,
        "num_steps": 2,
        "strategy": "orthogonal",
    }


def total(images):
    return images.flatten(1).sum(dim=1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"strategy": "both"}, ConfigError, "strategy: got 'both'"),
        ({"norm": "l1"}, ConfigError, "norm: got 'l1'"),
        ({"epsilon": 0.0}, ConfigError, "epsilon"),
        ({"epsilon": math.nan}, ConfigError, "epsilon"),
        ({"num_steps": 0}, ConfigError, "num_steps"),
        ({"step_size": 0.0}, ConfigError, "step_size"),
        ({"step_size": math.inf}, ConfigError, "step_size"),
        ({"detector_weight": 2.0}, ConfigError, "detector_weight.*orthogonal"),
        ({"detector_weight": 0.0, "strategy": "selective"}, ConfigError, "detector_weight.*sele"),
        ({"detector_weight": -1.0, "strategy": "joint"}, ConfigError, "detector_weight: got -1"),
        ({"detector_weight": math.inf, "strategy": "joint"}, ConfigError, "detector_weight"),
        ({"detector_weight": math.nan, "strategy": "joint"}, ConfigError, "detector_weight"),
        ({"images": torch.full((3, 3, SIZE, SIZE), 2.0)}, DataError, "images: got values"),
        ({"labels": torch.tensor([0, 1, CLASSES])}, DataError, "labels"),
        ({"labels": torch.tensor([0, 1])}, DataError, "labels"),
        ({"image_ids": torch.tensor([0, 1])}, DataError, "image_ids"),
        ({"classify": total}, DataError, "the classifier's answer"),
        ({"detect": lambda images: images}, DataError, "detector's scores: got .*shape"),
        ({"detect": lambda images: total(images)[:, None]}, DataError, r"scores: got .*\(3, 1\)"),
        ({"detect": lambda images: total(images).sum()}, DataError, r"detector's scores.*\(\)"),
        ({"detect": lambda images: total(images)[:2]}, DataError, r"detector's scores.*\(2,\)"),
        ({"detect": lambda images: total(images) > 0}, DataError, "detector's scores.*torch.bool"),
        ({"detect": lambda images: total(images) / 0}, DataError, "NaN or infinity for 3 of 3"),
        ({"detect": lambda images: total(images) * math.nan}, DataError, "NaN or infinity"),
        ({"detect": lambda images: total(images).detach()}, DataError, "differentiable scores"),
        (
            {"detect": lambda images: torch.ones(3, requires_grad=True) * 2},
            DataError,
            "differentiable scores",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(change, error, message):
    arguments = {**good(), **change}
    models = [
        each for each in (arguments["classify"], arguments["detect"]) if hasattr(each, "train")
    ]
    for each in models:
        each.train()
    with pytest.raises(error, match=message) as caught:
        detector_pgd(**arguments)
    assert isinstance(caught.value, CdvaeError)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{caught.value.what}: got {caught.value.got}, expected ")
    assert caught.value.expected
    assert caught.value.remedy
    assert all(each.training for each in models)


def test_a_score_that_is_infinite_only_on_the_way_is_refused_too():
    arguments = good()
    clean = arguments["images"].clone()

    def detect(images):
        return total(images) + (0.0 if torch.equal(images, clean) else math.inf)

    with pytest.raises(DataError, match="NaN or infinity for 3 of 3"):
        detector_pgd(**{**arguments, "detect": detect})


def test_it_speaks_the_vocabulary_of_the_other_attacks():
    assert attacks.detector_pgd is detector_pgd
    ours = inspect.signature(detector_pgd).parameters
    theirs = inspect.signature(attacks.pgd).parameters
    assert list(ours)[:4] == ["classify", "detect", "images", "labels"]
    shared = {"epsilon", "num_steps", "norm", "step_size", "seed", "image_ids"}
    assert shared <= set(ours) & set(theirs)
    assert all(ours[name].default == theirs[name].default for name in shared)
    positional = [each for each in ours.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert len(positional) == 4


# --- a real detector ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detected():
    """A trained network, a Mahalanobis detector on its last features, and images to attack."""
    generator = torch.Generator().manual_seed(0)
    templates = torch.rand(CLASSES, 3, SIZE, SIZE, generator=generator)
    labels = torch.arange(600) % CLASSES
    noise = 0.15 * torch.randn(600, 3, SIZE, SIZE, generator=generator)
    images = (0.5 + 0.3 * (templates[labels] - 0.5) + noise).clamp(0, 1)
    model = fixed_network(SIZE, SIZE, classes=CLASSES, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(images[:500]), labels[:500])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False)
    features = model[:-1]
    detector = fit_mahalanobis(class_moments(features(images[:500]), labels[:500], CLASSES))
    attacked, targets = images[500:], labels[500:]
    assert (model(attacked).argmax(dim=1) == targets).float().mean() > 0.8
    return model, lambda points: detector.score(features(points)), attacked, targets


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 1.2)])
def test_a_mahalanobis_detector_scores_what_is_aimed_at_it_below_what_pgd_finds(
    detected, norm, epsilon
):
    model, detect, images, labels = detected
    budget = {"epsilon": epsilon, "num_steps": 30, "norm": norm}
    plain = attacks.pgd(model, images, labels, **budget)
    further = attacks.pgd(model, images, labels, drop_fooled=False, **budget)
    with torch.no_grad():
        clean_score, score = detect(images).median(), detect(plain.images)
        further_score = detect(further.images)
    assert score.mean() > 3 * clean_score  # there is something to evade
    lowest = torch.full_like(score, math.inf)
    for strategy in STRATEGIES:
        result = detector_pgd(model, detect, images, labels, strategy=strategy, **budget)
        both = result.fooled & plain.success
        assert both.float().mean() > 0.5
        assert result.detector_score[both].mean() < 0.7 * score[both].mean(), strategy
        lowest = torch.where(result.fooled, result.detector_score.minimum(lowest), lowest)
    # Deep in another class PGD may look harmless without meaning to. Orthogonal steps keep the
    # margin of what fools and do not get there, but the other strategies do.
    assert lowest.isfinite().all()
    assert lowest.mean() < 0.6 * further_score.mean()
    assert (lowest <= clean_score).float().mean() > 0.6
