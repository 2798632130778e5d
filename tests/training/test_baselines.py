"""What each baseline adds to the common trainer, against its formula and by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.config.baseline import BASELINE_NAMES, BASELINES
from cdvae_ray.core.ape_gan import discriminator_losses, generator_losses
from cdvae_ray.core.attacks.balls import pixel_norm
from cdvae_ray.core.attacks.pgd import pgd
from cdvae_ray.core.perceptual_distance import perceptual_distance, perceptual_features
from cdvae_ray.core.random import derive_seed
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.storage.store import Store
from cdvae_ray.training.baselines.adversarial import AdversarialLoss
from cdvae_ray.training.baselines.early_stopped import EarlyStoppedLoss
from cdvae_ray.training.baselines.self_adaptive import SelfAdaptiveLoss
from cdvae_ray.training.baselines.trades import divergence, most_divergent
from cdvae_ray.training.checkpoint import MODEL_FILE, read_checkpoint
from cdvae_ray.training.purifier_model import ApeGanModel
from cdvae_ray.training.state import TrainState

from .conftest import (
    CPU,
    KilledError,
    assert_same_tensors,
    kill_after,
    tiny_baseline_task,
    tiny_batch,
    tiny_classifier,
    tiny_images,
)

PURIFIERS = [name for name in BASELINE_NAMES if BASELINES[name].is_purifier]
LINF = AttackConfig(
    attack="pgd",
    label="inner",
    norm="linf",
    epsilon=8 / 255,
    num_steps=3,
    step_size=4 / 255,
    keep="last",
)


def coloured_images(count=48):
    """Images that a small network tells apart: each class lights up a channel of its own."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = 70 + 60 * torch.rand(count, 3, 16, 16, generator=generator)
    images[torch.arange(count), labels] += 60
    return ImageSet.build(images.to(torch.uint8), labels, ("a", "b", "c"), "made/coloured")


def coloured_batch(count=9, **changes):
    images = coloured_images(count).images.float() / 255
    return tiny_batch(count)._replace(images=images, **changes)


class Seen(nn.Module):
    """A model that remembers its inputs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.inputs = model, []

    def forward(self, *images):
        self.inputs.append(images)
        return self.model(*images)


def state_of(task):
    state = TrainState(task, CPU)
    state.model.train()
    return state


def seen_by(state):
    """The state's replica, whose training passes are remembered."""
    return state.replica._replace(module=Seen(state.model))


# Every baseline.

# Of the first epoch's loss, in the fourth. HGD's is one of logits, and starts small.
FALLS_TO = dict.fromkeys(BASELINE_NAMES, 0.5) | {"hgd": 0.9}


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_each_trains_and_lowers_its_loss(tmp_path, make_run, name):
    images = coloured_images()
    recipe = {"target_start": 0.25} if name == "sat" else {}
    task = tiny_baseline_task(name, recipe=recipe, images=images, epochs=4, learning_rate=5e-3)
    run = make_run(tmp_path, task=task)
    run.source = InMemoryBatches(images, global_batch_size=16, seed=0, rank=0, world_size=1)
    run.fit(checkpoint_every=4)
    losses = [report.metrics["train_loss"] for report in run.epochs]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < FALLS_TO[name] * losses[0]
    if name not in PURIFIERS:
        assert run.epochs[-1].metrics["train_accuracy"] > 0.9
    (report,) = {tuple(each.metrics) for each in run.epochs}
    assert {"train_loss", "train_accuracy", "learning_rate"} <= set(report)


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_the_attack_leaves_the_model_as_it_was(name):
    state = state_of(tiny_baseline_task(name, images=coloured_images(20)))
    modes = [each.training for each in state.model.modules()]
    torch.manual_seed(5)
    seen = seen_by(state)
    state.batch_loss(seen, coloured_batch())
    # Without dropout only an attack could have drawn from PyTorch's own generator.
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(2), drawn)
    assert [each.training for each in state.model.modules()] == modes
    assert all(parameter.grad is None for parameter in state.model.parameters())
    for images in seen.module.inputs[0]:
        assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad


@pytest.mark.parametrize("name", ["at-pgd-linf", "at-pgd-l2"])
def test_adversarial_training_is_cross_entropy_within_the_ball(name):
    recipe = {"num_steps": 5}
    state = state_of(tiny_baseline_task(name, recipe=recipe, images=coloured_images(20)))
    batch, seen = coloured_batch(), seen_by(state)
    step = state.batch_loss(seen, batch)
    ((adversarial,),) = seen.module.inputs
    epsilon = state.task.recipe.epsilon
    sizes = pixel_norm(adversarial - batch.images, "linf" if name == "at-pgd-linf" else "l2")
    assert (sizes <= epsilon * (1 + 1e-5)).all() and (sizes > 0.5 * epsilon).all()
    logits = state.model(adversarial)
    expected = F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(step.total, expected)
    sums = {key: value.item() for key, value in step.sums.items()}
    assert tuple(sums) == state.task.metric_sums
    assert sums["loss"] == pytest.approx(9 * expected.item(), rel=1e-5)
    assert sums["correct"] == (logits.argmax(dim=1) == batch.labels).sum()


@pytest.mark.parametrize("name", ["at-pgd-linf", "trades", "pat", "hgd", "ape-gan"])
def test_an_images_attack_depends_on_its_id_and_the_epoch(name):
    def attacked(**changes):
        state = state_of(tiny_baseline_task(name))
        seen = seen_by(state)
        state.batch_loss(seen, coloured_batch(**changes))
        # TRADES looks at x first, then at x'.
        return seen.module.inputs[1 if name == "trades" else 0][0]

    first = attacked()
    assert torch.equal(attacked(), first)
    assert not torch.equal(attacked(epoch=1), first)
    assert not torch.equal(attacked(image_ids=torch.arange(50, 59)), first)


def test_training_may_start_from_a_classifier(tmp_path, make_run):
    start = tiny_classifier(seed=4)
    task = tiny_baseline_task("at-pgd-linf", start=start)
    assert_same_tensors(dict(start.tensors), task.build_model().state_dict())
    fresh = tiny_baseline_task("at-pgd-linf").build_model().state_dict()
    assert not torch.equal(fresh["network.linear.weight"], start.tensors["network.linear.weight"])


# TRADES.


def test_the_divergence_is_zero_for_equal_answers_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(50, 7, generator=generator)
    assert torch.equal(divergence(logits, logits), torch.zeros(50))
    torch.testing.assert_close(divergence(logits, logits + 3), torch.zeros(50), rtol=0, atol=1e-5)
    assert (divergence(logits, logits.roll(1, dims=0)) > 0).all()


def test_the_divergence_by_hand():
    clean = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]])
    attacked = torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.8, 0.1]])
    expected = [
        0.5 * math.log(2) + 0.25 * math.log(0.5),
        0.9 * math.log(9) + 0.05 * math.log(0.05 / 0.8) + 0.05 * math.log(0.5),
    ]
    torch.testing.assert_close(divergence(clean.log(), attacked.log()), torch.tensor(expected))
    reference = torch.distributions.kl_divergence(
        torch.distributions.Categorical(probs=clean), torch.distributions.Categorical(attacked)
    )
    torch.testing.assert_close(divergence(clean.log(), attacked.log()), reference)


def test_trades_x_raises_the_divergence_within_ball_and_box():
    state = state_of(tiny_baseline_task("trades", images=coloured_images(20)))
    batch = coloured_batch(12)
    batch.images[:6].round_()  # pixels of 0 and 1, where the box is near
    found = most_divergent(state.replica, batch, LINF, seed=0)
    assert ((found - batch.images).abs() <= 8 / 255 + 1e-6).all()
    assert found.min() >= 0 and found.max() <= 1 and not found.requires_grad
    classify = state.model.eval()
    with torch.no_grad():
        clean = classify(batch.images)
        reached = divergence(clean, classify(found))
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            signs = torch.randn(batch.images.shape, generator=generator).sign()
            by_chance = (batch.images + 8 / 255 * signs).clamp(0, 1)
            assert (reached > divergence(clean, classify(by_chance))).all()
    # More steps find more.
    longer = most_divergent(state.replica, batch, LINF, seed=0)
    one = AttackConfig(attack="pgd", label="one", epsilon=8 / 255, num_steps=1, step_size=1 / 255)
    shorter = most_divergent(state.replica, batch, one, seed=0)
    with torch.no_grad():
        gained = divergence(clean, classify(longer)) - divergence(clean, classify(shorter))
    assert (gained > 0).all()
    assert ((shorter - batch.images).abs() <= 1 / 255 + 5 * 0.001).all()


def test_a_trades_step_is_the_formula():
    recipe = {"weight": 2.5, "num_steps": 3}
    state = state_of(tiny_baseline_task("trades", recipe=recipe, images=coloured_images(20)))
    batch, seen = coloured_batch(), seen_by(state)
    step = state.batch_loss(seen, batch)
    (clean_images,), (adversarial,) = seen.module.inputs
    assert torch.equal(clean_images, batch.images)
    clean, attacked = state.model(clean_images), state.model(adversarial)
    terms = []
    for own, other, label in zip(clean.softmax(1), attacked.softmax(1), batch.labels, strict=True):
        kl = sum(own[k] * (own[k] / other[k]).log() for k in range(3))
        terms.append(-own[label].log() + 2.5 * kl)
    torch.testing.assert_close(step.total, sum(terms) / 9, rtol=1e-4, atol=1e-6)
    assert step.sums["correct"] == (attacked.argmax(dim=1) == batch.labels).sum()
    # Both answers learn.
    (expected,) = torch.autograd.grad(sum(terms) / 9, state.model.network.linear.weight)
    (gradient,) = torch.autograd.grad(step.total, state.model.network.linear.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


# SAT.


def sat_state(**recipe):
    settings = {"target_start": 2 / 3, "target_momentum": 0.75} | recipe
    return state_of(tiny_baseline_task("sat", recipe=settings, epochs=3))


def one_hot(labels):
    return F.one_hot(labels, 3).float()


def test_soft_labels_stay_one_hot_before_their_epoch():
    state = sat_state()
    labels = state.task.labels
    assert torch.equal(state.batch_loss.tensors["soft_labels"], one_hot(labels))
    for epoch in (0, 1):
        state.batch_loss(state.replica, tiny_batch(epoch=epoch))
        assert torch.equal(state.batch_loss.tensors["soft_labels"], one_hot(labels))


def test_soft_labels_follow_the_answers_from_their_epoch_on():
    state = sat_state()
    table = state.batch_loss.tensors["soft_labels"]
    expected = table.clone()
    for epoch in (2, 3):
        batch = tiny_batch(epoch=epoch, first_id=30)
        state.batch_loss(state.replica, batch)
        with torch.no_grad():
            answers = state.model(batch.images).softmax(dim=1)
        expected[30:39] = 0.75 * expected[30:39] + 0.25 * answers
        torch.testing.assert_close(table, expected)
        torch.testing.assert_close(table.sum(dim=1), torch.ones(70))
    # Nobody else's have moved.
    others = torch.ones(70, dtype=torch.bool)
    others[30:39] = False
    assert torch.equal(table[others], one_hot(state.task.labels)[others])
    assert (table[30:39] != one_hot(state.task.labels)[30:39]).any(dim=1).all()


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_at_its_ends(momentum):
    state = sat_state(target_momentum=momentum)
    batch = tiny_batch(epoch=2)
    state.batch_loss(state.replica, batch)
    found = state.batch_loss.tensors["soft_labels"][:9]
    with torch.no_grad():
        answers = state.model(batch.images).softmax(dim=1)
    torch.testing.assert_close(found, one_hot(batch.labels) if momentum else answers)


def test_sat_on_one_hot_labels_is_trades():
    recipe = {"weight": 3.0}
    sat = sat_state(**recipe)
    trades = state_of(tiny_baseline_task("trades", recipe=recipe))
    assert_same_tensors(sat.model.state_dict(), trades.model.state_dict())
    first, second = (each.batch_loss(each.replica, tiny_batch()) for each in (sat, trades))
    torch.testing.assert_close(first.total, second.total)
    # Nor does momentum 1 change anything, ever.
    still = sat_state(target_momentum=1.0, **recipe)
    late = tiny_batch(epoch=5)
    third, fourth = (each.batch_loss(each.replica, late) for each in (still, state_of(trades.task)))
    torch.testing.assert_close(third.total, fourth.total)


class Fixed(nn.Module):
    """Answers the same logits, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits[: len(images)] + 0 * images.sum()


def test_the_weights_by_hand():
    # Two images: the one's soft label is sure, the other's is spread evenly.
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    model = Fixed(probabilities.log())
    loss = SelfAdaptiveLoss(
        torch.tensor([0, 1, 2]),
        3,
        attack=LINF,
        weight=100.0,
        momentum=0.9,
        start_epoch=10,
        seed=0,
    )
    loss.tensors["soft_labels"].copy_(
        torch.tensor([[0.4, 0.4, 0.2], [1.0, 0.0, 0.0], [0.9, 0.05, 0.05]])
    )
    batch = tiny_batch(2, first_id=0)
    replica = state_of(tiny_baseline_task("sat")).replica._replace(module=model, model=model)
    step = loss(replica, batch)
    first = -(0.4 * math.log(0.5) + 0.4 * math.log(0.25) + 0.2 * math.log(0.25))
    second = -math.log(0.2)
    # x and x' have the same answers: no divergence. The weights are 0.4 and 1.
    expected = (0.4 * first + 1.0 * second) / 1.4
    assert step.total.item() == pytest.approx(expected, rel=1e-5)
    assert step.sums["loss"].item() == pytest.approx(2 * expected, rel=1e-5)


def test_a_sat_step_is_the_formula():
    state = sat_state(weight=2.0, target_momentum=0.4)
    batch, seen = tiny_batch(epoch=2), seen_by(state)
    step = state.batch_loss(seen, batch)
    (_, (adversarial,)) = seen.module.inputs
    clean, attacked = state.model(batch.images), state.model(adversarial)
    soft = 0.4 * one_hot(batch.labels) + 0.6 * clean.detach().softmax(dim=1)
    weighted, weights, kls = 0.0, 0.0, 0.0
    for own, other, target in zip(clean.softmax(1), attacked.softmax(1), soft, strict=True):
        weight = max(target.tolist())
        weighted = weighted - weight * sum(target[k] * own[k].log() for k in range(3))
        weights += weight
        kls = kls + sum(own[k] * (own[k] / other[k]).log() for k in range(3))
    expected = weighted / weights + 2.0 * kls / 9
    torch.testing.assert_close(step.total, expected, rtol=1e-4, atol=1e-5)
    # No gradient flows through soft labels or weights.
    parameter = state.model.network.linear.bias
    (literal,) = torch.autograd.grad(expected, parameter)
    (gradient,) = torch.autograd.grad(step.total, parameter)
    torch.testing.assert_close(gradient, literal, rtol=1e-3, atol=1e-6)


def test_soft_labels_survive_an_interruption(tmp_path, make_run):
    def task():
        return tiny_baseline_task("sat", recipe={"target_start": 1 / 3}, epochs=3)

    whole = make_run(tmp_path / "whole", task=task()).fit()
    with pytest.raises(KilledError):
        make_run(tmp_path / "cut", task=task()).fit(on_checkpoint=kill_after("epoch-0002"))
    again = make_run(tmp_path / "cut", task=task())
    assert again.resume() == 2
    moved = again.state.batch_loss.tensors["soft_labels"].amax(dim=1) < 1
    assert moved.sum() == 64
    again.fit(epochs_done=2)
    assert_same_tensors(whole.state.model_tensors(), again.state.model_tensors())
    assert_same_tensors(whole.state.optimizer_tensors(), again.state.optimizer_tensors())


# OIA.


def scripted(run, counts):
    """A run whose held-out images say what the script says, an epoch each."""
    counts = iter(counts)
    run.state.batch_loss._robust = lambda replica: next(counts)
    return run


def weights_after(folder, epochs_done):
    checkpoint = read_checkpoint(Store.at(folder), f"epoch-{epochs_done:04d}")
    return checkpoint.tensors(MODEL_FILE)


SCRIPT = [3, 9, 5, 9]


def test_the_last_epoch_has_the_weights_of_the_best(tmp_path, make_run):
    task = tiny_baseline_task("oia", epochs=4)
    run = scripted(make_run(tmp_path, task=task), SCRIPT).fit()
    best = weights_after(tmp_path, 2)
    # Of equals the earlier; statistics and counts are chosen with the weights.
    assert_same_tensors(weights_after(tmp_path, 4), best)
    assert_same_tensors(run.state.model_tensors(), best)
    # The earlier checkpoints hold their own.
    linear = [weights_after(tmp_path, n)["network.linear.weight"] for n in (1, 2, 3)]
    assert not any(torch.equal(linear[n], linear[n - 1]) for n in (0, 1, 2))
    metrics = [report.metrics for report in run.epochs]
    assert [each["best_epoch"] for each in metrics] == [1, 2, 2, 2]
    accuracies = [each["validation_robust_accuracy"] for each in metrics]
    assert accuracies == pytest.approx([count / 20 for count in SCRIPT])


@pytest.mark.parametrize(("script", "best"), [([0, 0], 1), ([1, 2], 2)])
def test_the_first_and_the_last_epoch_may_be_the_best(tmp_path, make_run, script, best):
    run = scripted(make_run(tmp_path, task=tiny_baseline_task("oia")), script).fit()
    assert run.epochs[-1].metrics["best_epoch"] == best
    reference = make_run(
        tmp_path / "reference", task=tiny_baseline_task("at-pgd-linf", epochs=best)
    )
    reference.fit()
    assert_same_tensors(run.state.model_tensors(), reference.state.model_tensors())


@pytest.mark.parametrize("killed", [2, 3])
def test_the_best_epoch_survives_an_interruption(tmp_path, make_run, killed):
    task = tiny_baseline_task("oia", epochs=4)
    whole = scripted(make_run(tmp_path / "whole", task=task), SCRIPT).fit()
    with pytest.raises(KilledError):
        scripted(make_run(tmp_path / "cut", task=task), SCRIPT).fit(
            on_checkpoint=kill_after(f"epoch-{killed:04d}")
        )
    again = make_run(tmp_path / "cut", task=task)
    assert again.resume() == killed
    scripted(again, SCRIPT[killed:]).fit(epochs_done=killed)
    assert again.epochs[-1].metrics["best_epoch"] == 2
    assert_same_tensors(whole.state.model_tensors(), again.state.model_tensors())
    assert_same_tensors(whole.state.optimizer_tensors(), again.state.optimizer_tensors())


def test_robustness_is_counted_on_held_out_images_under_the_own_attack():
    validation = tiny_images(60)
    model = tiny_classifier().build().train()
    weak = replace(LINF, epsilon=1 / 255, step_size=0.5 / 255)
    loss = EarlyStoppedLoss(AdversarialLoss(weak, 7), model, validation)
    replica = state_of(tiny_baseline_task("oia")).replica._replace(module=model, model=model)
    counted = loss._robust(replica)
    assert model.training
    pixels = validation.images.float() / 255
    attacked = pgd(
        model.eval(),
        pixels,
        validation.labels,
        epsilon=1 / 255,
        num_steps=3,
        step_size=0.5 / 255,
        keep="last",
        seed=derive_seed(7, "validation attack"),
        image_ids=torch.arange(60),
    ).images
    with torch.no_grad():
        robust, clean = (
            int((model(each).argmax(dim=1) == validation.labels).sum())
            for each in (attacked, pixels)
        )
    assert counted == robust
    assert 0 < robust < clean


# PAT.


def test_pats_x_lies_about_within_the_bound():
    # By steps of the network as it is; one with steep logits would overrule the Lagrangian's 10.
    state = state_of(tiny_baseline_task("pat", recipe={"num_steps": 10, "epsilon": 0.5}))
    start = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    batch, seen = tiny_batch(), seen_by(state)
    step = state.batch_loss(seen, batch)
    ((adversarial,),) = seen.module.inputs
    torch.testing.assert_close(step.total, F.cross_entropy(state.model(adversarial), batch.labels))
    state.model.load_state_dict(start)
    model = state.model.eval()

    def features(images):
        return perceptual_features(
            model.network.activations((images - model.pixel_mean) / model.pixel_std)
        )

    with torch.no_grad():
        distances = perceptual_distance(features(adversarial), features(batch.images))
        margins = [
            logits.scatter(1, batch.labels[:, None], -math.inf).amax(1)
            - logits.gather(1, batch.labels[:, None])[:, 0]
            for logits in (model(batch.images), model(adversarial))
        ]
    assert (distances > 0.8 * 0.5).all() and (distances < 1.25 * 0.5).all()
    assert (margins[1] > margins[0]).all()


# Purifiers.


@pytest.mark.parametrize("name", PURIFIERS)
def test_the_classifier_behind_a_purifier_never_changes(tmp_path, make_run, name):
    frozen = tiny_classifier()
    before = {key: tensor.clone() for key, tensor in frozen.tensors.items()}
    run = make_run(tmp_path, task=tiny_baseline_task(name, classifier=frozen))
    classifier = run.state.model.classifier
    theirs = {id(each) for each in classifier.parameters()}
    held = {id(each) for group in run.state.optimizer.param_groups for each in group["params"]}
    assert not theirs & held
    assert held == {id(each) for each in run.state.model.parameters()} - theirs
    modes = set()
    classifier.register_forward_hook(
        lambda module, *_: modes.update(each.training for each in module.modules())
    )
    purifier = run.state.model.purifier
    fresh = {key: tensor.clone() for key, tensor in purifier.state_dict().items()}
    run.fit()
    assert modes == {False}
    assert_same_tensors(before, dict(classifier.state_dict()))
    assert_same_tensors(before, dict(frozen.tensors))
    assert all(each.grad is None for each in classifier.parameters())
    assert not any("classifier" in key for key in run.state.optimizer_tensors())
    trained = purifier.state_dict()
    assert any(not torch.equal(tensor, trained[key]) for key, tensor in fresh.items())
    # Its weights are part of the checkpoint, which is a defence of itself.
    stored = weights_after(tmp_path, 2)
    assert_same_tensors(
        before,
        {
            key.removeprefix("classifier."): tensor
            for key, tensor in stored.items()
            if key.startswith("classifier.")
        },
    )


@pytest.mark.parametrize("name", PURIFIERS)
def test_only_the_purifier_has_a_mode(name):
    model = tiny_baseline_task(name).build_model()
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert {each.training for each in model.classifier.modules()} == {False}
        assert {each.training for each in model.purifier.modules()} == {mode}


@pytest.mark.parametrize("name", PURIFIERS)
def test_a_fresh_purifier_depends_on_the_seed_alone(name):
    first = tiny_baseline_task(name).build_model().state_dict()
    assert_same_tensors(first, tiny_baseline_task(name).build_model().state_dict())
    other = tiny_baseline_task(name, seed=1).build_model().state_dict()
    assert any(not torch.equal(tensor, other[key]) for key, tensor in first.items())


@pytest.mark.parametrize("name", PURIFIERS)
def test_purifiers_are_trained_on_attacks_of_the_classifier_alone(name):
    state = state_of(tiny_baseline_task(name, recipe={"num_steps": 3}))
    batch, seen = tiny_batch(epoch=1), seen_by(state)
    state.batch_loss(seen, batch)
    expected = pgd(
        tiny_classifier().build().eval(),
        batch.images,
        batch.labels,
        epsilon=8 / 255,
        num_steps=3,
        step_size=2 / 255,
        keep="last",
        seed=derive_seed(0, "inner attack", 1),
        image_ids=batch.image_ids,
    ).images
    assert torch.equal(seen.module.inputs[0][0], expected)


def test_an_hgd_step_is_the_formula():
    state = state_of(tiny_baseline_task("hgd"))
    with torch.no_grad():
        state.model.purifier.last.weight.normal_(std=0.1)
    batch, seen = tiny_batch(), seen_by(state)
    step = state.batch_loss(seen, batch)
    (adversarial,), (clean,) = seen.module.inputs
    assert torch.equal(clean, batch.images)
    classifier, purifier = state.model.classifier, state.model.purifier
    attacked = classifier(purifier(adversarial))
    terms = []
    for answers in (attacked, classifier(purifier(clean))):
        for found, wanted in zip(answers, classifier(clean), strict=True):
            terms.append(sum(abs(found[k] - wanted[k].detach()) for k in range(3)) / 3)
    torch.testing.assert_close(step.total, sum(terms) / 9, rtol=1e-4, atol=1e-6)
    assert step.sums["correct"] == (attacked.argmax(dim=1) == batch.labels).sum()
    (expected,) = torch.autograd.grad(sum(terms) / 9, purifier.last.weight)
    (gradient,) = torch.autograd.grad(step.total, purifier.last.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def ape_gan():
    state = state_of(tiny_baseline_task("ape-gan"))
    assert isinstance(state.model, ApeGanModel)
    return state, state.model


def gradients(total, module):
    return torch.autograd.grad(
        total, list(module.parameters()), allow_unused=True, retain_graph=True
    )


def test_each_of_ape_gans_losses_reaches_its_own_network_alone():
    _, model = ape_gan()
    batch = tiny_batch()
    output = model((batch.images + 0.03).clamp(0, 1), batch.images)
    for_generator = generator_losses(
        output.purified, batch.images, output.fake_logits_for_generator
    ).sum()
    for_discriminator = discriminator_losses(output.real_logits, output.fake_logits).sum()
    assert all(each is None for each in gradients(for_generator, model.discriminator))
    assert all(each is None for each in gradients(for_discriminator, model.purifier))
    assert all((each != 0).any() for each in gradients(for_discriminator, model.discriminator))
    assert all((each != 0).any() for each in gradients(for_generator, model.purifier))
    # Pleasing the discriminator is part of it.
    pleasing = output.fake_logits_for_generator.sum()
    assert any((each != 0).any() for each in gradients(pleasing, model.purifier))
    assert not any(each.requires_grad for each in model.classifier.parameters())


def test_an_ape_gan_step_is_both_losses_and_one_step_of_statistics():
    state, model = ape_gan()
    batch, seen = tiny_batch(), seen_by(state)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    step = state.batch_loss(seen, batch)
    counts = {
        model.state_dict()[key].item() - before[key].item()
        for key in before
        if key.endswith("num_batches_tracked") and not key.startswith("classifier.")
    }
    assert counts == {1}
    ((adversarial, clean),) = seen.module.inputs
    assert torch.equal(clean, batch.images)
    purified = model.purifier(adversarial)
    logits = model.discriminator(purified)
    generator_total = (
        0.7 * (2 * (purified - clean)).square().mean() + 0.3 * F.softplus(-logits).mean()
    )
    real, fake = model.discriminator(torch.cat([clean, purified.detach()])).chunk(2)
    discriminator_total = F.softplus(-real).mean() + F.softplus(fake).mean()
    torch.testing.assert_close(step.total, generator_total + discriminator_total)
    for total, module in (
        (generator_total, model.purifier),
        (discriminator_total, model.discriminator),
    ):
        for found, expected in zip(
            gradients(step.total, module), gradients(total, module), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
