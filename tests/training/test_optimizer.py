"""Optimiser state, stored and restored to the bit; the learning rate by hand."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.errors import CheckpointError, ConfigError
from cdvae_ray.training.epoch import train_epoch
from cdvae_ray.training.optimizer import (
    build_optimizer,
    expected_names,
    load_optimizer_tensors,
    optimizer_tensors,
)
from cdvae_ray.training.schedule import learning_rate
from cdvae_ray.training.state import TrainState

from .conftest import CPU, assert_same_tensors, tiny_baseline_task, tiny_images

PARTS = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}


def trained(optimizer, *, name="sat", channels_last=True, recipe=None):
    """A state after an epoch, with the source that goes on from there."""
    task = tiny_baseline_task(
        name,
        recipe={"num_steps": 1} | (recipe or {}),
        optimizer=optimizer,
        weight_decay=1e-3,
        channels_last=channels_last,
    )
    state = TrainState(task, CPU)
    source = InMemoryBatches(tiny_images(), global_batch_size=16, seed=0, rank=0, world_size=1)
    train_epoch(state, source, 0, on_progress=lambda progress: None)
    return state, source


def on_disk(tensors):
    """What a file of them gives back."""
    return load(save(tensors))


@pytest.mark.parametrize("optimizer", PARTS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_restored_optimiser_goes_on_to_the_bit(optimizer, channels_last):
    state, source = trained(optimizer, channels_last=channels_last)
    weights, moments = on_disk(state.model_tensors()), on_disk(state.optimizer_tensors())
    again = TrainState(state.task, CPU)
    again.load_tensors(weights, moments)
    assert_same_tensors(again.optimizer_tensors(), moments)
    assert_same_tensors(again.model_tensors(), weights)
    for parameter, buffers in again.optimizer.state.items():
        for part, buffer in buffers.items():
            # The fused optimisers walk memory.
            assert part == "step" or buffer.stride() == parameter.stride()
    for each in (state, again):
        train_epoch(each, source, 1, on_progress=lambda progress: None)
    assert_same_tensors(state.model_tensors(), again.model_tensors())
    assert_same_tensors(state.optimizer_tensors(), again.optimizer_tensors())
    assert any(not torch.equal(each, weights[k]) for k, each in state.model_tensors().items())
    assert any(not torch.equal(each, moments[k]) for k, each in state.optimizer_tensors().items())


@pytest.mark.parametrize("optimizer", PARTS)
def test_training_on_leaves_what_was_loaded_as_it_was(optimizer):
    state, source = trained(optimizer)
    weights, moments = on_disk(state.model_tensors()), on_disk(state.optimizer_tensors())
    copies = [{name: each.clone() for name, each in held.items()} for held in (weights, moments)]
    again = TrainState(state.task, CPU)
    again.load_tensors(weights, moments)
    train_epoch(again, source, 1, on_progress=lambda progress: None)
    assert_same_tensors(weights, copies[0])
    assert_same_tensors(moments, copies[1])


@pytest.mark.parametrize("optimizer", PARTS)
def test_the_state_has_a_name_for_each_part_of_each_parameter(optimizer):
    state, _ = trained(optimizer, name="hgd")
    trainable = {name for name, each in state.model.named_parameters() if each.requires_grad}
    expected = {f"{name}/{part}" for name in trainable for part in PARTS[optimizer]}
    assert set(state.optimizer_tensors()) == expected
    assert expected_names(state.model, state.task.training) == expected
    assert not any(name.startswith("classifier.") for name in expected)


@pytest.mark.parametrize("optimizer", PARTS)
def test_missing_and_left_over_tensors_are_refused(optimizer):
    state, _ = trained(optimizer)
    weights, moments = on_disk(state.model_tensors()), on_disk(state.optimizer_tensors())
    part = next(name for name in moments if not name.startswith("loss/"))
    cases = {
        f"missing ['{part}'], left over []": {k: v for k, v in moments.items() if k != part},
        "missing ['loss/soft_labels'], left over []": {
            k: v for k, v in moments.items() if k != "loss/soft_labels"
        },
        "missing [], left over ['loss/other']": moments | {"loss/other": torch.zeros(1)},
        "missing [], left over ['network.linear.weight/third']": moments
        | {"network.linear.weight/third": torch.zeros(1)},
    }
    for complaint, tensors in cases.items():
        with pytest.raises(CheckpointError) as caught:
            TrainState(state.task, CPU).load_tensors(weights, tensors)
        assert f"optimiser state: got {complaint}, expected exactly" in str(caught.value)
    with pytest.raises(CheckpointError, match="weights: got missing"):
        TrainState(state.task, CPU).load_tensors({}, moments)


def test_another_optimisers_state_is_refused():
    first, second = (trained(name)[0] for name in PARTS)
    for mine, other in ((first, second), (second, first)):
        with pytest.raises(CheckpointError, match="optimiser state: got missing"):
            mine.load_tensors(mine.model_tensors(), on_disk(other.optimizer_tensors()))


def test_a_loss_without_a_memory_takes_none():
    with_memory, _ = trained("sgd")
    without = TrainState(tiny_baseline_task("trades", optimizer="sgd"), CPU)
    with pytest.raises(CheckpointError, match=r"left over \['loss/soft_labels'\]"):
        without.load_tensors(with_memory.model_tensors(), with_memory.optimizer_tensors())


def test_sgd_is_its_formula():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    model = nn.Module()
    model.weight = weight
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    model.frozen = frozen
    optimizer = build_optimizer(
        model, TrainingConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.5)
    )
    expected, velocity = torch.tensor([1.0, -2.0]), torch.zeros(2)
    for gradient in (torch.tensor([1.0, 0.0]), torch.tensor([0.5, -1.0])):
        weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.5 * expected
        expected = expected - 0.1 * velocity
        torch.testing.assert_close(weight.detach(), expected)
    (name,) = tensors = optimizer_tensors(model, optimizer)
    assert name == "weight/momentum_buffer"
    torch.testing.assert_close(tensors[name], velocity)
    assert torch.equal(frozen, torch.ones(2))


def test_names_with_a_common_beginning_keep_their_own_state():
    model = nn.Module()
    model.scale, model.scale_out = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = build_optimizer(model, TrainingConfig(optimizer="sgd"))
    tensors = {
        "scale/momentum_buffer": torch.tensor([1.0]),
        "scale_out/momentum_buffer": torch.tensor([2.0]),
    }
    load_optimizer_tensors(model, optimizer, tensors)
    assert_same_tensors(optimizer_tensors(model, optimizer), tensors)


def test_clipping_by_value_bounds_every_entry():
    task = tiny_baseline_task("at-pgd-linf", max_gradient_value=1e-4, optimizer="sgd")
    state = TrainState(task, CPU)
    state.model.train()
    source = InMemoryBatches(tiny_images(), global_batch_size=16, seed=0, rank=0, world_size=1)
    state.train_step(next(iter(source.epoch_batches(0))), epoch=0, index=0)
    largest = [each.grad.abs().max().item() for each in state.model.parameters()]
    assert max(largest) == pytest.approx(1e-4)


# The learning rate.


def rates(epochs, **settings):
    config = TrainingConfig(**({"learning_rate": 0.1} | settings))
    return [learning_rate(config, epoch) for epoch in range(epochs)]


def test_steps_are_a_tenth_from_each_step_epoch_on():
    expected = [0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001]
    assert rates(7, schedule="steps", step_epochs=(2, 5)) == pytest.approx(expected)


def test_warm_up_rises_to_the_schedules_rate():
    assert rates(5, warmup_epochs=3) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates(2, warmup_epochs=0) == [0.1, 0.1]
    # The rate that it rises to is the schedule's at that epoch.
    expected = [0.1 / 4, 0.1 * 2 / 4, 0.01 * 3 / 4, 0.01, 0.001]
    steps = rates(5, schedule="steps", step_epochs=(2, 4), warmup_epochs=3)
    assert steps == pytest.approx(expected)
    settings = {"schedule": "cosine", "cosine_period_epochs": 4, "minimum_learning_rate": 0.02}
    plain, warmed = rates(6, **settings), rates(6, warmup_epochs=1, **settings)
    assert warmed == pytest.approx([plain[0] / 2, *plain[1:]])
    assert plain[2] == pytest.approx(0.06)


def test_the_trainer_follows_the_schedule(tmp_path, make_run):
    task = tiny_baseline_task(
        "at-pgd-linf",
        recipe={"num_steps": 1},
        epochs=4,
        optimizer="sgd",
        learning_rate=0.01,
        schedule="steps",
        step_epochs=(2, 3),
        warmup_epochs=1,
    )
    run = make_run(tmp_path, task=task).fit(checkpoint_every=4)
    expected = [0.005, 0.01, 0.001, 0.0001]
    assert [each.metrics["learning_rate"] for each in run.epochs] == pytest.approx(expected)
    assert [group["lr"] for group in run.state.optimizer.param_groups] == pytest.approx([0.0001])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"schedule": "steps"}, "training.step_epochs: got none, expected rising epochs >= 1"),
        ({"step_epochs": (3,)}, "expected none for the schedule constant"),
        ({"schedule": "cosine", "step_epochs": (3,)}, "expected none for the schedule cosine"),
        ({"schedule": "steps", "step_epochs": (0, 3)}, "got (0, 3), expected rising"),
        ({"schedule": "steps", "step_epochs": (-1,)}, "got (-1,), expected rising"),
        ({"schedule": "steps", "step_epochs": (3, 3)}, "got (3, 3), expected rising"),
        ({"schedule": "steps", "step_epochs": (5, 3)}, "got (5, 3), expected rising"),
        ({"schedule": "steps", "step_epochs": (1, 5, 4)}, "got (1, 5, 4), expected rising"),
        ({"warmup_epochs": -1}, "training.warmup_epochs: got -1"),
        ({"max_gradient_value": -1.0}, "training.max_gradient_value: got -1.0"),
        ({"max_gradient_value": float("nan")}, "training.max_gradient_value: got nan"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, complaint):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(**settings)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rising_step_epochs_are_taken():
    assert TrainingConfig(schedule="steps", step_epochs=(1, 2, 90)).step_epochs == (1, 2, 90)
