"""Running statistics after training: averages over batches that see no dropout."""

import copy

import pytest
import torch
from torch import nn

from cdvae_ray.config.serialize import to_dict
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.errors import ConfigError
from cdvae_ray.training.epoch import train_epoch
from cdvae_ray.training.recalibration import recalibrate
from cdvae_ray.training.state import TrainState
from cdvae_ray.training.task import StatefulLoss

from .conftest import CPU, tiny_classifier_task, tiny_images, tiny_task

STEPS = 3


def made(task):
    batch = task.training.global_batch_size
    return TrainState(task, CPU), InMemoryBatches(
        tiny_images(), global_batch_size=batch, seed=0, rank=0, world_size=1
    )


def trained(task):
    state, source = made(task)
    for epoch in range(task.training.epochs):
        train_epoch(state, source, epoch, on_progress=lambda progress: None)
    return state, source


def statistics_without_dropout(state, source, *, epoch, steps):
    """By layer: the averages over batches of the mean and the unbiased variance of its input."""
    model = copy.deepcopy(state.model)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm2d):

            def note(_module, inputs, name=name):
                numbers = inputs[0].transpose(0, 1).flatten(1)
                found.setdefault(name, []).append((numbers.mean(dim=1), numbers.var(dim=1)))

            module.register_forward_pre_hook(note)
    replica = state.replica._replace(module=model, model=model)
    for index, batch in enumerate(source.epoch_batches(epoch)):
        if index < steps:
            state.batch_loss(replica, state.seen(batch, epoch=epoch, index=index))
    return {
        name: tuple(torch.stack(part).mean(dim=0) for part in zip(*each, strict=True))
        for name, each in found.items()
    }


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [tiny_task, tiny_classifier_task])
def test_statistics_are_averages_over_batches_without_dropout(make, compiled):
    state, source = trained(make(epochs=1))
    if compiled:
        state.model.compile(backend="eager")
    expected = statistics_without_dropout(state, source, epoch=0, steps=STEPS)
    recalibrate(state, source, epoch=0, steps=STEPS)
    layers = {name: each for name, each in state.model.named_modules() if name in expected}
    assert len(layers) >= 7
    for name, (mean, variance) in expected.items():
        torch.testing.assert_close(layers[name].running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layers[name].running_var, variance, rtol=1e-4, atol=1e-5)


def test_it_comes_after_the_last_epoch_and_changes_statistics_alone():
    plain, _ = trained(tiny_classifier_task(epochs=2))
    state, source = trained(tiny_classifier_task(epochs=2, recalibration_steps=STEPS))
    expected = statistics_without_dropout(plain, source, epoch=1, steps=STEPS)
    changed = set()
    for name, tensor in state.model.state_dict().items():
        if not torch.equal(tensor, plain.model.state_dict()[name]):
            changed.add(name.rpartition(".")[2])
    assert changed == {"running_mean", "running_var"}
    for name, (mean, _) in expected.items():
        found = state.model.get_submodule(name)
        torch.testing.assert_close(found.running_mean, mean, rtol=1e-4, atol=1e-5)
        assert found.momentum is not None and found.num_batches_tracked > STEPS
    for module in state.model.modules():
        assert module.training


def test_more_steps_than_batches_take_them_all():
    state, source = made(tiny_classifier_task())
    expected = statistics_without_dropout(state, source, epoch=0, steps=source.batches_per_epoch)
    recalibrate(state, source, epoch=0, steps=1000)
    for name, (mean, _) in expected.items():
        found = state.model.get_submodule(name).running_mean
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5)


def test_without_it_runs_keep_their_digests():
    assert "recalibration_steps" not in to_dict(TrainingConfig())
    assert to_dict(TrainingConfig(recalibration_steps=5))["recalibration_steps"] == 5
    with pytest.raises(ConfigError, match=r"recalibration_steps: got -1, expected .*>= 0"):
        TrainingConfig(recalibration_steps=-1)


def test_a_loss_that_remembers_is_refused_before_it_trains():
    class Remembering(StatefulLoss):
        def __call__(self, replica, batch):
            raise AssertionError("trained")

    state, source = made(tiny_classifier_task(recalibration_steps=1))
    state.batch_loss = Remembering({"best": torch.zeros(())})
    with pytest.raises(ConfigError, match="got 1 with Remembering, which remembers"):
        train_epoch(state, source, 0, on_progress=lambda progress: None)
