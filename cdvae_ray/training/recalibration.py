"""Batch normalisation's running statistics, taken anew without dropout once training has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cdvae_ray.data.batches import BatchSource
from cdvae_ray.errors import ConfigError
from cdvae_ray.training.state import TrainState
from cdvae_ray.training.task import StatefulLoss


def check_recalibration(state: TrainState) -> None:
    """Refuses it for a loss that remembers, which passes of no step would change.

    Raises:
        ConfigError: such a loss and training.recalibration_steps > 0.
    """
    steps, loss = state.task.training.recalibration_steps, state.batch_loss
    if steps and isinstance(loss, StatefulLoss) and loss.tensors:
        raise ConfigError(
            "training.recalibration_steps",
            got=f"{steps} with {type(loss).__name__}, which remembers from step to step",
            expected="0",
            remedy="leave it out",
        )


def recalibrate(state: TrainState, source: BatchSource, *, epoch: int, steps: int) -> None:
    """Sets each running mean and variance to its average over batches that see no dropout.

    Training sees what dropout does to the variance of what follows it, and evaluation does not;
    a normalisation behind dropout then divides by too much (Li et al., 2019, Understanding the
    Disharmony between Dropout and Batch Normalization by Variance Shift). No weight changes. The
    batches are the first ones of the epoch, augmented as in it; all of them if there are fewer.
    Called by every rank.

    Args:
        state: this rank's replica; its model stays in training mode.
        source: this rank's share of the training images.
        epoch: which epoch's order and augmentation.
        steps: how many batches.
    """
    # The model by itself: without a backward pass, DistributedDataParallel would wait for one.
    replica = state.replica._replace(module=state.model)
    with _averaging(state.model), torch.compiler.set_stance("force_eager"):
        for index, batch in enumerate(source.epoch_batches(epoch)):
            if index == steps:
                break
            state.batch_loss(replica, state.seen(batch, epoch=epoch, index=index))


@contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    """Dropout off, and statistics that are plain averages from here on."""
    dropouts = [each for each in model.modules() if isinstance(each, nn.Dropout) and each.training]
    layers = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.training]
    counts = [each.num_batches_tracked for each in layers if each.num_batches_tracked is not None]
    before = [each.momentum for each in layers], [each.clone() for each in counts]
    for dropout in dropouts:
        dropout.eval()
    for layer in layers:
        layer.momentum = None  # PyTorch's word for a plain average
    for count in counts:
        count.zero_()
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.train()
        for layer, momentum in zip(layers, before[0], strict=True):
            layer.momentum = momentum
        for count, batches in zip(counts, before[1], strict=True):
            count.copy_(batches)
