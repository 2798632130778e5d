"""Fine-tuning's step is Eqs. (7)-(10) beside Eqs. (1)-(3), and its run can be interrupted."""

import math

import pytest
import torch
from torch import nn

from cdvae_ray.core.attacks.balls import pixel_norm
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.loading import load, load_classifier, load_defense
from cdvae_ray.training.finetune_task import MeanPath
from cdvae_ray.training.inner_attack import Autocast, adversarial_images
from cdvae_ray.training.state import TrainState

from .conftest import (
    CPU,
    KilledError,
    assert_same_tensors,
    kill_after,
    settled_cdvae,
    tiny_batch,
    tiny_classifier,
    tiny_finetune_task,
)

RELEASED = {
    "margin": -0.5,
    "margin_on": "logits",
    "reconstruction_target": "clean",
    "essential_class": "most_probable",
    "essential_examples": "all",
    "gamma": 0.3,
}
EVERY_EXAMPLE = {"margin": 1.0, "essential_examples": "all"}
NO_EXAMPLE_FOR_D_G = {"margin": -1.0, "essential_examples": "all"}


class Recorder(nn.Module):
    """A model that remembers what it was called with."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, *arguments, **options):
        self.calls.append((*arguments, options))
        return self.model(*arguments, **options)


class Step:
    """One step on a tiny model in train mode: its loss, and the gradient of each parameter."""

    def __init__(self, batch=None, **task):
        self.batch = batch or tiny_batch()
        self.task = tiny_finetune_task(**task)
        self.state = TrainState(self.task, CPU)
        self.model = self.state.model.train()
        self.recorder = Recorder(self.model)
        replica = self.state.replica._replace(module=self.recorder)
        self.loss = self.state.batch_loss(replica, self.batch)
        self.gradients = self.gradients_of(self.loss.total)

    def gradients_of(self, total):
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        found = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
        return {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for name, parameter, gradient in zip(names, parameters, found, strict=True)
        }

    def reached(self, gradients=None):
        """The networks with a parameter whose gradient is not zero."""
        gradients = self.gradients if gradients is None else gradients
        return {part_of(name) for name, each in gradients.items() if (each != 0).any()}


def part_of(name):
    parts = {"cdvae.generator": "G", "cdvae.classifier": "D", "classifier": "D_G"}
    return next(part for prefix, part in parts.items() if name.startswith(prefix))


def clean_images(step):
    """x in normalised pixels."""
    return (step.batch.images - step.model.cdvae.pixel_mean) / step.model.cdvae.pixel_std


def pass_through(step, images, noise):
    """G, D and D_G on images, written out: x, G(x), mean, log-variance, D(R(x)), D_G(G(x))."""
    cdvae, classifier = step.model.cdvae, step.model.classifier
    normalized = (images - cdvae.pixel_mean) / cdvae.pixel_std
    mean, log_var = cdvae.generator.encode(normalized)
    redundant = cdvae.generator.decode(mean + (log_var / 2).exp() * noise)
    essential_logits = cdvae.classifier(normalized - redundant)
    redundant_logits = classifier(redundant * cdvae.pixel_std + cdvae.pixel_mean)
    return normalized, redundant, mean, log_var, essential_logits, redundant_logits


def literal_kl(mean, log_var):
    """KL / (3 Z), by PyTorch's own distributions."""
    posterior = torch.distributions.Normal(mean, (log_var / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return torch.distributions.kl_divergence(posterior, prior).sum() / (3 * len(mean))


def literal_adversarial_loss(step):
    """Eq. (8) an image at a time; also how many images are within the margin."""
    config, labels = step.task.adversarial, step.batch.labels.tolist()
    adversarial, noise, _ = step.recorder.calls[-1]
    seen = pass_through(step, adversarial, noise)
    redundant_losses, other_losses = [], []
    for x, g, mean, log_var, essential, logits, clean, y in zip(
        *seen, clean_images(step), labels, strict=True
    ):
        probabilities = logits.detach().softmax(0)
        values = (probabilities if config.margin_on == "probabilities" else logits).tolist()
        others = [k for k in range(3) if k != y]
        within = values[y] - max(values[k] for k in others) <= config.margin
        target = x if config.reconstruction_target == "adversarial" else clean
        choice = others if config.essential_class == "most_probable_wrong" else range(3)
        answered = max(choice, key=lambda k: float(probabilities[k]))
        if within:
            redundant_losses.append(-config.gamma * logits.softmax(0)[y].log())
        if within or config.essential_examples == "all":
            reconstruction = ((g - target) ** 2).mean()
            essential_loss = -essential.softmax(0)[answered].log()
            other_losses.append(
                reconstruction
                + config.beta * literal_kl(mean, log_var)
                + config.gamma * essential_loss
            )
    total = sum(redundant_losses) / max(len(redundant_losses), 1)
    total = total + sum(other_losses) / max(len(other_losses), 1)
    return total, len(redundant_losses)


def literal_clean_loss(step):
    """Eq. (1) an image at a time, and how many D(R(x)) answers rightly."""
    config = step.task.clean
    images, noise, _ = step.recorder.calls[0]
    seen = pass_through(step, images, noise)
    losses, right = [], 0
    for x, g, mean, log_var, essential, y in zip(
        *seen[:5], step.batch.labels.tolist(), strict=True
    ):
        losses.append(
            ((g - x) ** 2).mean()
            + config.beta * literal_kl(mean, log_var)
            - config.gamma * essential.softmax(0)[y].log()
        )
        right += int(essential.argmax()) == y
    return sum(losses) / len(losses), right


def assert_close_scalars(total, expected):
    # Eq. (8) is divided by a count in float64, which makes the step's loss one.
    torch.testing.assert_close(total.double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("adversarial", "clean_weight"),
    [({}, 1.0), ({"margin": 0.2, "gamma": 2.0, "beta": 0.7}, 0.25), (RELEASED, 0.5)],
    ids=["the paper's text", "other weights", "released variants"],
)
def test_a_step_is_the_equations_written_out(adversarial, clean_weight):
    step = Step(adversarial=adversarial, clean_weight=clean_weight)
    adversarial_loss, num_within = literal_adversarial_loss(step)
    clean_loss, right = literal_clean_loss(step)
    expected = clean_weight * clean_loss + adversarial_loss
    # Neither nobody nor everybody, or the margin would be out of the test.
    assert 0 < num_within < 9
    assert_close_scalars(step.loss.total, expected)
    literal = step.gradients_of(expected)
    for name, gradient in step.gradients.items():
        torch.testing.assert_close(gradient, literal[name], rtol=1e-3, atol=1e-5)
    sums = {name: value.item() for name, value in step.loss.sums.items()}
    assert tuple(sums) == step.task.metric_sums
    assert sums["loss"] == pytest.approx(9 * expected.item(), rel=1e-5)
    assert sums["clean_loss"] == pytest.approx(9 * clean_loss.item(), rel=1e-5)
    assert sums["adversarial_loss"] == pytest.approx(9 * adversarial_loss.item(), rel=1e-5)
    assert (sums["within_margin"], sums["correct"]) == (num_within, right)


def test_both_passes_take_what_the_seed_the_epoch_and_the_images_say():
    step = Step(batch=tiny_batch(epoch=2, first_id=40), seed=5)
    (clean, noise, _), (adversarial, other_noise, _) = step.recorder.calls
    ids = step.batch.image_ids
    assert torch.equal(clean, step.batch.images)
    assert torch.equal(noise, keyed_normal(image_keys(5, "latent", 2, ids), 8))
    assert torch.equal(other_noise, keyed_normal(image_keys(5, "latent.adversarial", 2, ids), 8))
    again = adversarial_images(
        step.model.defense(), step.batch, step.task.attack, seed=5, only_correct=True
    )
    # The first pass moved G's running statistics, and no network had them then: start afresh.
    fresh = TrainState(step.task, CPU).model.train()
    first = adversarial_images(
        fresh.defense(), step.batch, step.task.attack, seed=5, only_correct=True
    )
    assert torch.equal(adversarial, first)
    assert not torch.equal(adversarial, again)


def test_the_model_is_what_it_started_from():
    cdvae = settled_cdvae()
    task = tiny_finetune_task(cdvae=cdvae)
    model = task.build_model()
    tensors = model.state_dict()
    for name, tensor in cdvae.tensors.items():
        assert torch.equal(tensors[f"cdvae.{name}"], tensor)
    for name, tensor in task.classifier.tensors.items():
        assert torch.equal(tensors[f"classifier.{name}"], tensor)
    # Training it moves copies of them.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    again = task.build_model().state_dict()
    assert all(torch.equal(again[f"cdvae.{name}"], each) for name, each in cdvae.tensors.items())


# Which parameters each term reaches: one active at a time, by gamma and the margin.


def test_reconstruction_and_kl_reach_g_alone():
    step = Step(adversarial=EVERY_EXAMPLE | {"gamma": 0.0}, clean_weight=0.0)
    assert step.reached() == {"G"}
    kl = Step(adversarial=EVERY_EXAMPLE | {"gamma": 0.0, "beta": 5.0}, clean_weight=0.0)
    moved = {name for name, each in kl.gradients.items() if not each.equal(step.gradients[name])}
    assert moved
    assert all(name.startswith(("cdvae.generator.enc", "cdvae.generator.fc1")) for name in moved)


def test_the_essential_term_reaches_d_and_g():
    with_term = Step(adversarial=NO_EXAMPLE_FOR_D_G | {"gamma": 1.0}, clean_weight=0.0)
    without = Step(adversarial=NO_EXAMPLE_FOR_D_G | {"gamma": 0.0}, clean_weight=0.0)
    assert with_term.reached() == {"G", "D"}
    difference = {
        name: each - without.gradients[name] for name, each in with_term.gradients.items()
    }
    assert with_term.reached(difference) == {"G", "D"}
    decoder = "cdvae.generator.decoder"
    assert any((each != 0).any() for name, each in difference.items() if name.startswith(decoder))


def test_the_redundant_term_reaches_d_g_and_g():
    all_of_them = Step(adversarial=EVERY_EXAMPLE | {"gamma": 1.0}, clean_weight=0.0)
    none_of_them = Step(adversarial=NO_EXAMPLE_FOR_D_G | {"gamma": 1.0}, clean_weight=0.0)
    difference = {
        name: each - none_of_them.gradients[name] for name, each in all_of_them.gradients.items()
    }
    assert all_of_them.reached(difference) == {"G", "D_G"}
    for name, gradient in all_of_them.gradients.items():
        if part_of(name) == "D":
            assert torch.equal(gradient, none_of_them.gradients[name]), name


def test_the_clean_pass_gives_d_g_nothing():
    step = Step(adversarial={"margin": -1.0})
    assert step.loss.sums["adversarial_loss"].item() == 0
    assert step.reached() == {"G", "D"}
    # Neither a gradient nor statistics: D_G's are those of one pass, G's and D's of two.
    counts = {
        part: {
            tensor.item()
            for name, tensor in step.model.state_dict().items()
            if name.endswith("num_batches_tracked") and part_of(name) == part
        }
        for part in ("G", "D", "D_G")
    }
    start = TrainState(step.task, CPU).model.state_dict()
    (before,) = {
        each.item()
        for name, each in start.items()
        if name.startswith("classifier.") and name.endswith("num_batches_tracked")
    }
    assert counts["D_G"] == {before + 1}
    assert counts["G"] == counts["D"] == {before + 2}


def test_a_margin_of_minus_one_leaves_eq_1_alone():
    step = Step(adversarial={"margin": -1.0}, clean_weight=0.5)
    assert step.loss.sums["within_margin"].item() == 0
    assert step.loss.sums["adversarial_loss"].item() == 0
    clean_loss, _ = literal_clean_loss(step)
    assert_close_scalars(step.loss.total, 0.5 * clean_loss)
    literal = step.gradients_of(0.5 * clean_loss)
    for name, gradient in step.gradients.items():
        torch.testing.assert_close(gradient, literal[name], rtol=1e-3, atol=1e-5)
    nothing = Step(adversarial={"margin": -1.0}, clean_weight=0.0)
    assert nothing.loss.total.item() == 0
    assert nothing.reached() == set()
    assert all(torch.isfinite(each).all() for each in nothing.gradients.values())


def test_a_margin_of_one_takes_every_example():
    step = Step(adversarial={"margin": 1.0})
    assert step.loss.sums["within_margin"].item() == 9
    assert step.reached() == {"G", "D", "D_G"}


def test_without_clean_weight_there_is_no_clean_pass():
    step = Step(clean_weight=0.0)
    assert len(step.recorder.calls) == 1
    adversarial_loss, num_within = literal_adversarial_loss(step)
    assert_close_scalars(step.loss.total, adversarial_loss)
    sums = {name: value.item() for name, value in step.loss.sums.items()}
    assert sums["clean_loss"] == 0
    assert sums["within_margin"] == num_within
    adversarial, noise, _ = step.recorder.calls[0]
    answers = pass_through(step, adversarial, noise)[4].argmax(dim=1)
    assert sums["correct"] == int((answers == step.batch.labels).sum())


# Eq. (7), as training takes it.


def attacked(model, batch, task, **options):
    return adversarial_images(
        Autocast(model, torch.enable_grad),
        batch,
        task.attack,
        **({"seed": 0, "only_correct": True} | options),
    )


@pytest.fixture
def double():
    """A defence in float64, where rounding turns no sign of a gradient."""
    task = tiny_finetune_task()
    return task, task.build_model().defense().double().eval()


def in_double(batch):
    return batch._replace(images=batch.images.double())


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 8 / 255), ("l2", 0.5)])
def test_the_inner_attack_moves_what_is_right_within_ball_and_box(norm, epsilon):
    task = tiny_finetune_task(attack={"norm": norm, "epsilon": epsilon})
    defense = task.build_model().defense().eval()
    batch = tiny_batch(24)
    batch.images[0:12].round_()  # pixels of 0 and 1, where the box is near
    right = defense(batch.images).argmax(dim=1) == batch.labels
    assert 0 < right.sum() < 24
    adversarial = attacked(defense, batch, task)
    assert torch.equal(adversarial[~right], batch.images[~right])
    sizes = pixel_norm(adversarial - batch.images, norm)
    assert (sizes[right] > 0.1 * epsilon).all()
    assert (sizes <= epsilon * (1 + 1e-5)).all()
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert adversarial.shape == batch.images.shape and not adversarial.requires_grad
    everything = attacked(defense, batch, task, only_correct=False)
    assert (pixel_norm(everything - batch.images, norm) > 0.1 * epsilon).all()
    torch.testing.assert_close(everything[right], adversarial[right], rtol=0, atol=2 * epsilon)


def test_the_inner_attack_lowers_the_true_class(double):
    task, defense = double
    batch = in_double(tiny_batch(24))
    right = defense(batch.images).argmax(dim=1) == batch.labels
    adversarial = attacked(defense, batch, task)

    def lead(images):
        logits = defense(images)[right]
        labels = batch.labels[right, None]
        return (logits.gather(1, labels) - logits.scatter(1, labels, -math.inf).amax(1, True))[:, 0]

    with torch.no_grad():
        noise = (8 / 255) * torch.randn(batch.images.shape).sign()
        assert (lead(adversarial) < lead(batch.images)).all()
        assert lead(adversarial).mean() < lead((batch.images + noise).clamp(0, 1)).mean()


@pytest.mark.parametrize("only_correct", [True, False])
def test_the_inner_attack_leaves_modes_gradients_and_generators_alone(only_correct):
    task = tiny_finetune_task()
    model = task.build_model().train()
    model.cdvae.generator.decoder.eval()
    modes = [each.training for each in model.modules()]
    statistics = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    marked = model.classifier.network.linear.weight
    marked.grad = torch.full_like(marked, 7.0)
    torch.manual_seed(11)
    attacked(model.defense(), tiny_batch(), task, only_correct=only_correct)
    after = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(3), after)
    assert [each.training for each in model.modules()] == modes
    assert_same_tensors(statistics, model.state_dict())
    assert (marked.grad == 7).all()
    assert all(each.grad is None for each in model.parameters() if each is not marked)


def test_the_inner_attack_runs_in_eval_mode(double):
    task, defense = double
    batch = in_double(tiny_batch())
    expected = attacked(defense, batch, task)
    assert torch.equal(attacked(defense.train(), batch, task), expected)


def test_an_images_attack_depends_on_its_id_and_the_epoch_and_on_no_other_image(double):
    task, defense = double
    batch = in_double(tiny_batch(12))
    whole = attacked(defense, batch, task, only_correct=False)
    rows = torch.tensor([7, 2, 10])
    part = batch._replace(
        images=batch.images[rows],
        labels=batch.labels[rows],
        partner_labels=batch.labels[rows],
        image_ids=batch.image_ids[rows],
    )
    for only_correct in (False, True):
        whole = attacked(defense, batch, task, only_correct=only_correct)
        torch.testing.assert_close(
            attacked(defense, part, task, only_correct=only_correct), whole[rows]
        )
    whole = attacked(defense, batch, task, only_correct=False)
    for change in ({"epoch": 1}, {"image_ids": batch.image_ids + 100}):
        other = attacked(defense, batch._replace(**change), task, only_correct=False)
        assert (pixel_norm(other - whole, "linf") > 1e-3).all()
    other = attacked(defense, batch, task, only_correct=False, seed=1)
    assert (pixel_norm(other - whole, "linf") > 1e-3).all()


def test_where_g_samples_an_images_attack_depends_on_no_other_image():
    task = tiny_finetune_task(cdvae=settled_cdvae(evaluation_latent="sample"))
    defense = MeanPath(task.build_model()).double().eval()
    batch = in_double(tiny_batch(12))
    part = batch._replace(
        **{name: getattr(batch, name)[6:] for name in ("images", "labels", "image_ids")}
    )
    whole = attacked(defense, batch, task, only_correct=False)
    torch.testing.assert_close(attacked(defense, part, task, only_correct=False), whole[6:])


def test_a_batch_without_a_right_answer_stays_as_it_is():
    task = tiny_finetune_task()
    defense = task.build_model().defense().eval()
    batch = tiny_batch()
    wrong = (defense(batch.images).argmax(dim=1) + 1) % 3
    batch = batch._replace(labels=wrong)
    adversarial = attacked(defense, batch, task)
    assert torch.equal(adversarial, batch.images)
    assert adversarial is not batch.images


# Runs and checkpoints.


def test_a_checkpoint_loads_as_the_defence(tmp_path, make_run):
    run = make_run(tmp_path, task=tiny_finetune_task()).fit()
    images = torch.rand(5, 3, 16, 16)
    for location, epochs in ((tmp_path, 2), (tmp_path / "epoch-0002", 2)):
        loaded = load_defense(location)
        assert not any(each.training for each in loaded.modules()), epochs
        assert (loaded.class_names, loaded.image_size) == (("a", "b", "c"), 16)
        with torch.no_grad():
            assert torch.equal(loaded(images), run.state.model.defense().eval()(images))
    with torch.no_grad():
        early = load_defense(tmp_path / "epoch-0001")(images)
    assert not torch.equal(early, loaded(images))
    for loader in (load, load_classifier):
        with pytest.raises(Exception, match=r"load it by cdvae_ray.load_defense$"):
            loader(tmp_path)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_equals_undisturbed_to_the_bit(tmp_path, make_run, optimizer):
    def task():
        # Dropout and a sampled latent, so that every source of chance takes part.
        return tiny_finetune_task(
            cdvae=settled_cdvae(classifier_dropout=0.2),
            optimizer=optimizer,
            learning_rate=1e-3 if optimizer == "adamw" else 0.02,
        )

    whole = make_run(tmp_path / "whole", task=task()).fit()
    with pytest.raises(KilledError):
        make_run(tmp_path / "cut", task=task()).fit(on_checkpoint=kill_after("epoch-0001"))
    torch.rand(100)
    again = make_run(tmp_path / "cut", task=task())
    assert again.resume() == 1
    again.fit(epochs_done=1)
    assert_same_tensors(whole.state.model_tensors(), again.state.model_tensors())
    assert_same_tensors(whole.state.optimizer_tensors(), again.state.optimizer_tensors())
    assert whole.epochs[1].metrics["train_loss"] == again.epochs[0].metrics["train_loss"]


def test_training_lowers_both_losses(tmp_path, make_run):
    task = tiny_finetune_task(
        epochs=4, learning_rate=5e-3, adversarial={"margin": 1.0, "gamma": 1.0}
    )
    run = make_run(tmp_path, task=task).fit(checkpoint_every=4)
    first, last = run.epochs[0].metrics, run.epochs[-1].metrics
    assert last["train_adversarial_loss"] < first["train_adversarial_loss"]
    assert last["train_clean_loss"] < first["train_clean_loss"]
    assert all(report.metrics["train_within_margin"] == 1 for report in run.epochs)


def test_d_g_may_start_from_a_classifier_of_g(tmp_path, make_run):
    cdvae = settled_cdvae()
    classifier = tiny_classifier("class_redundant", behind=cdvae)
    assert classifier.cdvae_digest == cdvae.digest
    task = tiny_finetune_task(cdvae=cdvae, classifier=classifier, epochs=1)
    start = task.build_model().defense().eval()
    images = torch.rand(4, 3, 16, 16)
    alone = classifier.build().eval()
    behind = cdvae.build(CPU, memory_format=torch.contiguous_format)
    with torch.no_grad():
        torch.testing.assert_close(start(images), alone(behind.decompose(images).class_redundant))
    make_run(tmp_path, task=task).fit()
    load_defense(tmp_path)
