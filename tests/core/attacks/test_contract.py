"""What every attack promises, for any images, batch size and precision."""

import functools
import inspect
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from cdvae_ray import attacks
from cdvae_ray.core.attacks.run import ATTACKS
from cdvae_ray.errors import ConfigError, DataError

CLASSES, SIZE = 4, 16

SETTINGS = {
    "fgsm": [{"epsilon": 0.03}, {"epsilon": 0.03, "sign_of_zero": 1}],
    "bim": [{"epsilon": 0.03, "num_steps": 3}],
    "pgd": [
        {"epsilon": 0.03, "num_steps": 3},
        {"epsilon": 0.5, "num_steps": 3, "norm": "l2"},
        {"epsilon": 0.03, "num_steps": 2, "num_restarts": 3},
    ],
    "margin_pgd": [
        {"epsilon": 0.03, "num_steps": 3, "confidence": 10.0},
        {"epsilon": 0.5, "num_steps": 3, "norm": "l2"},
    ],
    "carlini_wagner_l2": [
        {"num_steps": 10, "num_searches": 3},
        {"num_steps": 10, "num_searches": 2, "epsilon": 0.5},
    ],
    "stadv": [{"epsilon": 0.05, "num_steps": 3}],
    "recolor": [{"epsilon": 0.06, "num_steps": 2}],
    "jpeg": [{"epsilon": 0.5, "num_steps": 3}],
    "auto_attack": [{"epsilon": 0.03}],
}
CASES = [
    pytest.param(name, options, id=f"{name}-{number}")
    for name, cases in SETTINGS.items()
    for number, options in enumerate(cases)
]
# AutoAttack runs thousands of queries: its own file holds what costs more than a few runs.
QUICK = [case for case in CASES if case.values[0] != "auto_attack"]


class Net(nn.Module):
    """A small network with what disturbs careless attacks: batch norm, dropout, a train mode."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.convolution = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(6 * 7 * 7, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))

    def forward(self, images):
        hidden = self.norm(self.convolution(2 * images - 1)).relu()
        return self.linear(self.dropout(hidden.flatten(1)))


def batch(count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    # A third of the pixels lie on the border of the box, where clipping acts.
    images = (1.5 * images - 0.25).clamp(0, 1)
    return images, torch.randint(CLASSES, (count,), generator=generator)


@pytest.mark.parametrize(("name", "options"), QUICK)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.sampled_from([1, 3, 8]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_every_attack_keeps_its_contract(name, options, count, dtype, seed):
    check_contract(name, options, count, dtype, seed)


@pytest.mark.parametrize("count", [1, 3])
def test_auto_attack_keeps_the_contract(count):
    check_contract("auto_attack", {"epsilon": 0.03}, count, torch.float32, 0)


def check_contract(name, options, count, dtype, seed):
    attack = ATTACKS[name]
    model = Net().to(dtype).train()
    model.norm.eval()  # a mixture of modes must come back as it was
    modes = [module.training for module in model.modules()]
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    images, labels = batch(count, dtype, seed)
    before = images.clone()
    random_state = torch.get_rng_state()
    result = attack(model, images, labels, seed=seed, **options)

    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())

    assert result.images.shape == images.shape
    assert result.images.dtype == dtype
    assert not any(each.requires_grad for each in result)
    assert torch.isfinite(result.images).all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    for values, kind in (
        (result.success, torch.bool),
        (result.zero_gradient, torch.bool),
        (result.nonfinite_gradient, torch.bool),
    ):
        assert values.shape == (count,)
        assert values.dtype == kind
    assert result.loss.shape == result.norm.shape == (count,)
    if "epsilon" in options:
        assert (result.norm <= options["epsilon"] + 1e-6).all()
    if name in ("fgsm", "bim", "pgd", "margin_pgd") and options.get("norm", "linf") == "linf":
        assert ((result.images - images).abs() <= options["epsilon"] + 1e-6).all()
    if options.get("norm") == "l2" or name == "carlini_wagner_l2":
        distance = (result.images - images).flatten(1).norm(dim=1)
        torch.testing.assert_close(distance, result.norm.to(dtype), rtol=1e-4, atol=1e-5)

    model.eval()
    with torch.no_grad():
        wrong = model(result.images).argmax(dim=1) != labels
    if name == "carlini_wagner_l2" and "epsilon" in options:
        wrong &= (result.norm <= options["epsilon"]) & (result.success | (result.norm > 0))
        assert (result.success <= wrong).all() or (result.success == wrong).all()
    else:
        assert torch.equal(result.success, wrong)

    again = attack(model, images, labels, seed=seed, **options)
    assert torch.equal(again.images, result.images)
    assert torch.equal(again.success, result.success)


class Linear(nn.Module):
    """Logits (w.x + b, 0): the least perturbation that flips it has a closed form."""

    def __init__(self, weights, dtype=torch.float32):
        super().__init__()
        self.weights = weights.to(dtype)

    def forward(self, images):
        value = ((images - 0.5) * self.weights).flatten(1).sum(dim=1)
        return torch.stack([value, torch.zeros_like(value)], dim=1)


def linear_case(count, dtype):
    """Images in the middle of the box, of class 0, and their distances to the boundary."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(1, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    images = 0.5 + 0.05 * torch.randn(
        count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64
    )
    # Push each image to a margin of its own on the positive side.
    margin = 2.0 + torch.arange(count, dtype=torch.float64)
    value = ((images - 0.5) * weights).flatten(1).sum(dim=1)
    scale = (margin - value) / weights.pow(2).sum()
    images = images + scale.view(-1, 1, 1, 1) * weights
    linf, l2 = margin / weights.abs().sum(), margin / weights.flatten().norm()
    return Linear(weights, dtype), images.to(dtype), torch.zeros(count, dtype=torch.int64), linf, l2


BALLS = [
    ("fgsm", {}, "linf"),
    ("bim", {"num_steps": 20}, "linf"),
    ("pgd", {"num_steps": 20}, "linf"),
    ("pgd", {"num_steps": 40, "norm": "l2"}, "l2"),
    ("margin_pgd", {"num_steps": 20}, "linf"),
    ("margin_pgd", {"num_steps": 40, "norm": "l2"}, "l2"),
]


@pytest.mark.parametrize(("name", "options", "norm"), BALLS)
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_model_flips_at_its_optimum_and_not_below(name, options, norm, count, dtype):
    model, images, labels, linf, l2 = linear_case(count, dtype)
    optimum = linf if norm == "linf" else l2
    for number in range(count):
        one = slice(number, number + 1)
        for factor, flips in ((1.25, True), (0.98, False)):
            epsilon = factor * float(optimum[number])
            result = ATTACKS[name](
                model, images[one], labels[one], epsilon=epsilon, seed=1, **options
            )
            assert bool(result.success) is flips
            assert float(result.norm) <= 1.01 * epsilon


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_strength_on_a_linear_model_is_the_closed_form(norm):
    model, images, labels, linf, l2 = linear_case(5, torch.float64)
    epsilon = 0.5 * float(min(linf if norm == "linf" else l2))
    result = attacks.margin_pgd(
        model,
        images,
        labels,
        epsilon=epsilon,
        num_steps=60,
        step_size=epsilon / 4,
        norm=norm,
        keep="best",
    )
    fall = epsilon * (
        model.weights.abs().sum() if norm == "linf" else model.weights.flatten().norm()
    )
    clean = model(images)[:, 0]
    torch.testing.assert_close(-result.loss, clean - fall, rtol=1e-6, atol=1e-6)


def test_an_attack_with_a_target_reaches_it():
    model = Net().eval()
    images, _ = batch(8, torch.float32, 5)
    labels = model(images).argmax(dim=1)
    targets = (labels + 1) % CLASSES
    for attack in (attacks.pgd, attacks.margin_pgd, attacks.bim):
        result = attack(model, images, labels, epsilon=0.5, num_steps=40, targets=targets)
        assert result.success.float().mean() >= 0.75
        assert torch.equal(model(result.images).argmax(dim=1) == targets, result.success)


@pytest.mark.parametrize("name", ["bim", "pgd", "margin_pgd", "stadv", "recolor", "jpeg"])
def test_dropping_fooled_images_changes_no_success(name):
    model = Net().eval()
    images, _ = batch(8, torch.float64, 7)
    model = model.double()
    labels = model(images).argmax(dim=1)
    options = {**SETTINGS[name][0], "num_steps": 6}
    dropped = ATTACKS[name](model, images, labels, seed=2, drop_fooled=True, **options)
    full = ATTACKS[name](model, images, labels, seed=2, drop_fooled=False, **options)
    assert torch.equal(dropped.success, full.success)
    resisting = ~full.success
    torch.testing.assert_close(dropped.images[resisting], full.images[resisting], rtol=0, atol=1e-9)
    assert (full.loss >= dropped.loss - 1e-9).all()


def test_an_image_that_is_wrong_already_costs_one_look():
    calls = []

    def classify(images):
        calls.append(len(images))
        return torch.stack([images.flatten(1).sum(dim=1), torch.zeros(len(images))], dim=1)

    images = torch.rand(4, 3, 4, 4)
    labels = torch.tensor([1, 1, 1, 1])
    result = attacks.bim(classify, images, labels, epsilon=0.1, num_steps=50)
    assert result.success.all()
    assert calls == [4]
    assert torch.equal(result.images, images)


def test_the_best_iterate_is_at_least_as_good_as_the_last():
    model = Net().eval()
    images, _ = batch(16, torch.float32, 11)
    labels = model(images).argmax(dim=1)
    last = attacks.pgd(model, images, labels, epsilon=0.01, num_steps=7, keep="last")
    best = attacks.pgd(
        model, images, labels, epsilon=0.01, num_steps=7, keep="best", drop_fooled=False
    )
    assert (best.success >= last.success).all()
    assert (best.loss >= last.loss)[best.success == last.success].all()


def test_more_starts_never_hurt():
    model = Net().eval()
    images, _ = batch(16, torch.float32, 13)
    labels = model(images).argmax(dim=1)
    one = attacks.pgd(model, images, labels, epsilon=0.006, num_steps=2)
    five = attacks.pgd(model, images, labels, epsilon=0.006, num_steps=2, num_restarts=5)
    assert (five.success >= one.success).all()
    assert (five.loss >= one.loss)[five.success == one.success].all()


@pytest.mark.parametrize(("name", "options"), QUICK)
def test_an_image_is_attacked_alike_in_any_batch(name, options):
    model = Net().double().eval()
    images, labels = batch(8, torch.float64, 17)
    ids = torch.tensor([90, 3, 4, 55, 7, 8, 1000, 2])
    whole = ATTACKS[name](model, images, labels, seed=4, image_ids=ids, **options)
    for rows in ([5], [6, 0, 3]):
        part = ATTACKS[name](
            model, images[rows], labels[rows], seed=4, image_ids=ids[rows], **options
        )
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-7)
        assert torch.equal(part.success, whole.success[rows])


@pytest.mark.parametrize("name", ["pgd", "jpeg"])
def test_the_seed_moves_the_random_start(name):
    model = Net().eval()
    images, labels = batch(3, torch.float32, 19)
    options = {**SETTINGS[name][0], "keep": "last", "num_steps": 1}
    first = ATTACKS[name](model, images, labels, seed=0, **options)
    second = ATTACKS[name](model, images, labels, seed=1, **options)
    assert not torch.equal(first.images, second.images)


# --- gradients that say nothing ---------------------------------------------------------------


def flat_classifier(images):
    return torch.tensor([[1.0, 0.0]]).expand(len(images), 2) + 0 * images.flatten(1).sum(1)[:, None]


def test_a_flat_classifier_is_reported_as_masked_and_the_image_survives():
    images, labels = torch.rand(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64)
    for norm in ("linf", "l2"):
        result = attacks.pgd(flat_classifier, images, labels, epsilon=0.1, num_steps=3, norm=norm)
        assert result.zero_gradient.all()
        assert not result.nonfinite_gradient.any()
        assert torch.isfinite(result.images).all()


def test_gradients_of_nan_are_counted_and_do_not_spoil_the_image():
    def classify(images):
        value = (images.flatten(1).sum(dim=1) - images.flatten(1).sum(dim=1)).sqrt()
        return torch.stack([1 + value, value], dim=1)

    images, labels = torch.rand(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64)
    result = attacks.pgd(classify, images, labels, epsilon=0.1, num_steps=3, norm="l2")
    assert result.nonfinite_gradient.all()
    assert torch.isfinite(result.images).all()


def test_beyond_its_confidence_the_l2_margin_attack_keeps_the_image():
    # The released code divides 0 by 0 here and answers with the clean image.
    model, images, labels, _, l2 = linear_case(4, torch.float64)
    result = attacks.margin_pgd(
        model,
        images,
        labels,
        epsilon=4 * float(l2.max()),
        num_steps=30,
        norm="l2",
        confidence=0.1,
        keep="last",
    )
    assert result.success.all()
    assert (result.norm > 0).all()
    assert not result.zero_gradient.any()


# --- expectation over transformation ------------------------------------------------------------


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "margin_pgd", "stadv", "jpeg"])
@pytest.mark.parametrize("drop_fooled", [None, True])
def test_eot_is_no_op_on_a_deterministic_model_but_for_dropping(name, drop_fooled):
    model = Net().eval()
    images, labels = batch(3, torch.float32, 23)
    settings = SETTINGS[name][0] | {"keep": "best", "seed": 1}
    plain = ATTACKS[name](model, images, labels, drop_fooled=bool(drop_fooled), **settings)
    averaged = ATTACKS[name](
        attacks.eot(model, num_samples=5), images, labels, drop_fooled=drop_fooled, **settings
    )
    assert torch.equal(plain.images, averaged.images)
    assert torch.equal(plain.success, averaged.success)


class NoisyMargin:
    """Two classes whose margin is linear in the image, under noise: what fools is known exactly.

    A PGD of L-infinity radius EPSILON can take 1 off every image's margin, which begins between 0.5
    and 1.5: half of the images can be fooled, and by luck many more are for a moment.
    """

    EPSILON = 0.05
    NOISE = 2.0

    def __init__(self, count=64):
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(48, generator=generator).sign()
        self.weight = direction / (48 * self.EPSILON)
        self.images = 0.4 + 0.2 * torch.rand(count, 3, 4, 4, generator=generator)
        self.offset = torch.linspace(0.5, 1.5, count) - self.images.flatten(1) @ self.weight
        self.labels = torch.zeros(count, dtype=torch.int64)
        self.best = torch.linspace(0.5, 1.5, count) - 1

    def margin(self, images, rows=slice(None)):
        return images.flatten(1) @ self.weight + self.offset[rows]

    def __call__(self, images):
        # The offset of an image is known by the image it is near: attacks ask of some alone.
        distance = torch.cdist(images.detach().flatten(1), self.images.flatten(1), p=math.inf)
        mean = self.margin(images, distance.argmin(dim=1))
        noisy = mean + self.NOISE * torch.randn(len(images))
        return torch.stack([noisy, torch.zeros_like(noisy)], dim=1)

    def still_right(self, result):
        return (self.margin(result.images) > 0).float().mean().item()


def test_a_lucky_draw_ends_no_attack_in_expectation():
    model = NoisyMargin()
    averaged = attacks.eot(model, num_samples=20)
    settings = {"epsilon": model.EPSILON, "num_steps": 20, "step_size": 0.01, "seed": 1}
    given = model.images, model.labels
    whole = attacks.pgd(averaged, *given, keep="last", **settings)
    assert model.still_right(whole) == pytest.approx(float((model.best > 0).sum()) / 64, abs=0.02)
    dropping = attacks.pgd(averaged, *given, drop_fooled=True, **settings)
    assert model.still_right(dropping) > model.still_right(whole) + 0.1
    # Best of many looks, some of them lucky: near the last, and by no means where luck came first.
    default = attacks.pgd(averaged, *given, **settings)
    assert model.still_right(default) < model.still_right(whole) + 0.05


def test_autoattack_rand_attacks_and_judges_the_mean_answer():
    model = NoisyMargin()
    for classify in (model, attacks.eot(model, num_samples=20)):
        result = attacks.auto_attack(
            classify, model.images, model.labels, epsilon=model.EPSILON, version="rand", seed=1
        )
        # Half can be fooled. Judged by single draws it was 0.77 and 0.81.
        assert model.still_right(result) < 0.7
        assert abs(model.still_right(result) - (~result.success).float().mean()) < 0.15


def test_eot_follows_the_mean_where_single_draws_mislead():
    direction = torch.randn(48, generator=torch.Generator().manual_seed(0))

    def classify(images):
        # Each draw buries the one direction that counts under noise ten times as large.
        noisy = direction + 10 * torch.randn(48)
        value = (images.flatten(1) - 0.5) @ noisy
        return torch.stack([value, torch.zeros_like(value)], dim=1)

    images, labels = torch.full((4, 3, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)

    def gain(function):
        result = attacks.margin_pgd(
            function, images, labels, epsilon=0.1, num_steps=5, keep="last", seed=3
        )
        return -((result.images - images).flatten(1) @ direction).mean()

    assert gain(attacks.eot(classify, num_samples=400)) > 2 * gain(classify)


def test_an_attack_on_a_stochastic_model_is_repeatable():
    def classify(images):
        noise = torch.rand(len(images), 1)
        return torch.cat([images.flatten(1).mean(dim=1, keepdim=True), noise], dim=1)

    images, labels = torch.rand(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64)
    results = [
        attacks.pgd(classify, images, labels, epsilon=0.1, num_steps=3, seed=9) for _ in range(2)
    ]
    assert torch.equal(results[0].loss, results[1].loss)


# --- bad input ------------------------------------------------------------------------------------


def good():
    return Net().eval(), *batch(3, torch.float32, 29)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda images: images + 0.01, "values in"),
        (lambda images: images - 0.01, "values in"),
        (lambda images: images.index_fill(0, torch.tensor([0]), math.nan), "values in"),
        (lambda images: (255 * images).to(torch.uint8), "torch.uint8"),
        (lambda images: images[0], "shape"),
        (lambda images: images[:0], "shape"),
    ],
)
def test_images_that_are_none_are_refused(name, options, spoil, message):
    model, images, labels = good()
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0.0, 1.0
    with pytest.raises(DataError, match=message):
        ATTACKS[name](model, spoil(images), labels, **options)


@pytest.mark.parametrize(("name", "options"), QUICK)
def test_float_error_around_the_box_is_not_refused(name, options):
    model, images, labels = good()
    images[0, 0, 0, 0], images[0, 0, 0, 1] = -3e-8, 1 + 1e-7
    result = ATTACKS[name](model, images, labels, **options)
    assert result.images.min() >= 0
    assert result.images.max() <= 1


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 1, CLASSES]),
        torch.tensor([0, -1, 2]),
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([0, 1]),
        torch.tensor([[0], [1], [2]]),
    ],
    ids=["too large", "negative", "float", "too few", "a column"],
)
def test_labels_that_are_none_are_refused(name, options, labels):
    model, images, _ = good()
    with pytest.raises(DataError, match="labels"):
        ATTACKS[name](model, images, labels, **options)


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.parametrize("epsilon", [0.0, -0.1, math.nan, math.inf])
def test_an_epsilon_that_is_no_radius_is_refused(name, epsilon):
    model, images, labels = good()
    options = {**SETTINGS[name][0], "epsilon": epsilon}
    with pytest.raises(ConfigError, match="epsilon"):
        ATTACKS[name](model, images, labels, **options)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(
    "answer",
    [
        lambda images: images.flatten(1).sum(dim=1),
        lambda images: images,
        lambda images: images.flatten(1)[:1, :CLASSES],
        lambda images: images.flatten(1)[:, :1],
        lambda images: images.flatten(1)[:, :CLASSES].argmax(dim=1, keepdim=True).repeat(1, 4),
    ],
    ids=["a vector", "images", "one row", "one class", "integers"],
)
def test_an_answer_that_is_no_logits_is_refused(name, options, answer):
    _, images, labels = good()
    with pytest.raises(DataError, match="the classifier's answer"):
        ATTACKS[name](answer, images, labels, **options)


@pytest.mark.parametrize("name", ["bim", "pgd", "margin_pgd", "stadv", "recolor", "jpeg"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps"),
        ({"step_size": 0.0}, "step_size"),
        ({"keep": "first"}, "keep"),
        ({"keep": "last", "drop_fooled": True}, "drop_fooled"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(name, options, message):
    model, images, labels = good()
    with pytest.raises(ConfigError, match=message):
        ATTACKS[name](model, images, labels, **{**SETTINGS[name][0], **options})


def test_restarts_of_the_last_iterate_are_refused():
    model, images, labels = good()
    with pytest.raises(ConfigError, match="num_restarts"):
        attacks.pgd(model, images, labels, epsilon=0.1, num_steps=1, num_restarts=2, keep="last")


def test_the_attacks_share_one_vocabulary():
    for name, attack in ATTACKS.items():
        parameters = inspect.signature(attack).parameters
        assert list(parameters)[:3] == ["classify", "images", "labels"], name
        assert {"epsilon", "seed", "image_ids"} <= set(parameters), name
        positional = [
            each for each in parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD
        ]
        assert len(positional) == 3, name


def test_modules_are_found_behind_partials_and_methods():
    class Method(Net):
        def classify(self, images):
            return self(images)

    model = Method().train()
    images, labels = batch(3, torch.float32, 31)
    results = [
        attacks.bim(function, images, labels, epsilon=0.03, num_steps=2).images
        for function in (model, model.classify, functools.partial(model.classify))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert model.training
