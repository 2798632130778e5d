"""What is trained: the seam between the trainer and everything that it can train.

A task knows its model and its loss. The trainer (`state`, `epoch`, `fit`, `checkpoint`) knows data,
augmentation, optimiser, ranks, epochs and files, and nothing of what the numbers mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.training import TrainingConfig


class TrainBatch(NamedTuple):
    """One rank's part of a global batch on the device, augmented and mixed."""

    images: Tensor
    """(N, 3, S, S) float32 in [0, 1]."""
    labels: Tensor
    """(N,) int64, the labels of the images themselves."""
    partner_labels: Tensor
    """(N,) int64, the labels of the images mixed in; `labels` without mixup."""
    mixup_weight: float
    """The share of the images themselves in [0, 1]; 1 without mixup."""
    image_ids: Tensor
    """(N,) int64: the index of each image in its dataset, by which random numbers are keyed."""
    epoch: int
    """From 0."""


class StepLoss(NamedTuple):
    """What a batch came to on one rank."""

    total: Tensor
    """The mean loss over the batch, a scalar to differentiate."""
    sums: dict[str, Tensor]
    """Sums over the rank's images by the task's `metric_sums`, in their order."""


class Replica(NamedTuple):
    """One rank's model, as a loss calls it."""

    module: nn.Module
    """Goes through DistributedDataParallel where several ranks train."""
    model: nn.Module
    """The same model by itself, for passes that no weight takes a gradient of."""
    autocast: Callable[[], AbstractContextManager[Any]]
    """The context of a forward pass in the run's precision."""


BatchLoss = Callable[[Replica, TrainBatch], StepLoss]
"""The loss of a batch. It draws random numbers by image id and epoch, so as not to depend on the
number of ranks."""


class StatefulLoss(ABC):
    """A loss that remembers from step to step, and across an interruption.

    Args:
        tensors: what it remembers, by name, equal on every rank; kept with the optimiser's state.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @abstractmethod
    def __call__(self, replica: Replica, batch: TrainBatch) -> StepLoss:
        """The loss of a batch."""

    def end_epoch(self, replica: Replica, *, epoch: int, is_last: bool) -> dict[str, float]:
        """Called by every rank after an epoch, before its checkpoint. Returns metrics of it."""
        return {}


class Task(Protocol):
    """Settings and dataset facts of one kind of training; pickled to the workers."""

    @property
    def checkpoint_kind(self) -> str:
        """What its checkpoints are called in their manifest."""

    @property
    def metric_sums(self) -> tuple[str, ...]:
        """The names of a step's sums: "loss", "correct", and what else the task reports."""

    @property
    def training(self) -> TrainingConfig:
        """Optimiser, schedule and numerics."""

    @property
    def augmentation(self) -> AugmentationConfig:
        """What the trainer does to images before the task sees them."""

    def build_model(self) -> nn.Module:
        """A freshly initialised model on the CPU, the same on every rank."""

    def model_facts(self) -> dict[str, Any]:
        """All that rebuilds the model from a checkpoint, as JSON values."""

    def loss_on(self, device: torch.device) -> BatchLoss:
        """The loss, with whatever frozen parts it needs on the device. Called once a worker."""
