"""A model and its optimiser on one rank, and one step of both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.augment import augment
from cdvae_ray.core.mixup import mixup
from cdvae_ray.core.sync_batch_norm import synchronize_batch_norm
from cdvae_ray.data.batches import Batch
from cdvae_ray.errors import CheckpointError, ConfigError
from cdvae_ray.training.distributed import copy_from_rank_zero, world_size
from cdvae_ray.training.optimizer import (
    build_optimizer,
    expected_names,
    load_optimizer_tensors,
    optimizer_tensors,
)
from cdvae_ray.training.task import Replica, StatefulLoss, Task, TrainBatch

_LOSS = "loss/"


def resolve_precision(training: TrainingConfig, device: torch.device) -> str:
    """What the precision setting comes to on this device: "float32" or "bfloat16".

    Raises:
        ConfigError: bfloat16 was asked for on a device that lacks it.
    """
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if training.precision == "bfloat16" and not has_bfloat16:
        raise ConfigError(
            "training.precision",
            got=f"bfloat16 on {device.type}",
            expected="a GPU that has it",
            remedy="set --training.precision float32 or auto",
        )
    if training.precision == "auto":
        return "bfloat16" if has_bfloat16 else "float32"
    return training.precision


def memory_format_of(training: TrainingConfig) -> torch.memory_format:
    """How activations and weights lie in memory."""
    return torch.channels_last if training.channels_last else torch.contiguous_format


class TrainState:
    """A replica of the model with its optimiser on one rank.

    Args:
        task: what is trained: the model, its loss, settings and dataset facts.
        device: where the replica lives.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task, self.device = task, device
        self.precision = resolve_precision(task.training, device)
        self.model = task.build_model()
        self.memory_format = memory_format_of(task.training)
        self.model.to(device).to(memory_format=self.memory_format)
        if world_size() > 1 and task.training.sync_batch_norm:
            self.model = synchronize_batch_norm(self.model, device)
        if task.training.compile:
            self.model.compile()
        module = self.model
        if world_size() > 1:
            module = DistributedDataParallel(
                self.model,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Synchronised layers hold equal statistics; otherwise rank 0's are the model's.
                broadcast_buffers=not task.training.sync_batch_norm,
            )
        self.replica = Replica(module, self.model, self.autocast)
        self.batch_loss = task.loss_on(device)
        self.optimizer = build_optimizer(self.model, task.training)

    def train_step(self, batch: Batch, *, epoch: int, index: int) -> dict[str, Tensor]:
        """One optimiser step on this rank's part of global batch `index` of an epoch.

        Returns:
            The task's `metric_sums` over this rank's images, on the device: per-image values by
            the task's own reduction, and counts.
        """
        training = self.task.training
        loss = self.batch_loss(self.replica, self.seen(batch, epoch=epoch, index=index))
        self.optimizer.zero_grad(set_to_none=True)
        # Ranks hold equally many images, so DDP's mean of gradients is the global batch's.
        loss.total.backward()  # type: ignore[no-untyped-call]
        if training.max_gradient_norm > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), training.max_gradient_norm)
        if training.max_gradient_value > 0:
            nn.utils.clip_grad_value_(self.model.parameters(), training.max_gradient_value)
        self.optimizer.step()
        return loss.sums

    def seen(self, batch: Batch, *, epoch: int, index: int) -> TrainBatch:
        """This rank's part of global batch `index` of an epoch, augmented and mixed."""
        training = self.task.training
        images = self.prepare(batch.images)
        images = augment(
            images,
            batch.image_ids,
            config=self.task.augmentation,
            seed=training.seed,
            epoch=epoch,
        )
        mixed = mixup(
            images,
            batch.labels.to(self.device, non_blocking=True),
            alpha=self.task.augmentation.mixup_alpha,
            seed=training.seed,
            epoch=epoch,
            batch_index=index,
        )
        return TrainBatch(
            images=mixed.images,
            labels=mixed.labels,
            partner_labels=mixed.partner_labels,
            mixup_weight=mixed.weight,
            image_ids=batch.image_ids.to(self.device, non_blocking=True),
            epoch=epoch,
        )

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, S, S) as float32 in [0, 1] on the device."""
        moved = images.to(self.device, non_blocking=True)
        return moved.to(torch.float32, memory_format=self.memory_format).div_(255)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 autocast where the precision says so."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the next steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def model_tensors(self) -> dict[str, Tensor]:
        """Weights and buffers by name, on the CPU."""
        return {
            name: tensor.detach().to("cpu").contiguous()
            for name, tensor in self.model.state_dict().items()
        }

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state by "<parameter>/<part>", and the loss's by "loss/<name>"."""
        return {
            **optimizer_tensors(self.model, self.optimizer),
            **{
                f"{_LOSS}{name}": value.detach().to("cpu", copy=True).contiguous()
                for name, value in self._loss_tensors().items()
            },
        }

    def load_tensors(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Restores what `model_tensors` and `optimizer_tensors` gave.

        Raises:
            CheckpointError: a tensor is missing, left over or of another shape.
        """
        load_weights(self.model, model)
        remembered = self._loss_tensors()
        expected = expected_names(self.model, self.task.training)
        expected |= {f"{_LOSS}{name}" for name in remembered}
        if set(optimizer) != expected:
            raise _other_tensors("optimiser state", set(optimizer), expected)
        load_optimizer_tensors(self.model, self.optimizer, optimizer)
        for name, value in remembered.items():
            value.copy_(optimizer[f"{_LOSS}{name}"])

    def end_epoch(self, *, epoch: int) -> dict[str, float]:
        """What a loss with a memory does after an epoch; its metrics."""
        if not isinstance(self.batch_loss, StatefulLoss):
            return {}
        is_last = epoch + 1 == self.task.training.epochs
        return self.batch_loss.end_epoch(self.replica, epoch=epoch, is_last=is_last)

    def share_statistics(self) -> None:
        """Gives every rank rank 0's running statistics, where layers do not synchronise them.

        They are the model's, which a checkpoint holds; DistributedDataParallel brings them to the
        others before a forward pass of training alone, and none follows the last step.
        """
        if not self.task.training.sync_batch_norm:
            copy_from_rank_zero(self.model.buffers())

    def non_finite(self) -> str | None:
        """The name of a weight, buffer or optimiser tensor with NaN or infinity in it, if any."""
        named = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            kept = self.optimizer.state.get(parameter, {})
            named |= {f"{name}/{part}": each for part, each in kept.items()}
        floats = {
            name: each
            for name, each in named.items()
            if isinstance(each, Tensor) and each.is_floating_point()
        }
        # One look for all of them: each look waits for the device.
        found = torch.stack([each.isfinite().all().to(self.device) for each in floats.values()])
        sound = found.tolist()
        return next(
            (name for name, is_sound in zip(floats, sound, strict=True) if not is_sound), None
        )

    def _loss_tensors(self) -> dict[str, Tensor]:
        return self.batch_loss.tensors if isinstance(self.batch_loss, StatefulLoss) else {}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors into a model, strictly.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    expected = model.state_dict()
    if set(tensors) != set(expected):
        raise _other_tensors("weights", set(tensors), set(expected))
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"weights {name}",
                got=f"shape {tuple(tensor.shape)}",
                expected=f"{tuple(expected[name].shape)}",
                remedy="use a checkpoint of this configuration",
            )
    model.load_state_dict(dict(tensors), strict=True)


def _other_tensors(what: str, got: set[str], expected: set[str]) -> CheckpointError:
    missing, left_over = sorted(expected - got)[:3], sorted(got - expected)[:3]
    return CheckpointError(
        what,
        got=f"missing {missing}, left over {left_over}",
        expected="exactly the model's tensors",
        remedy="use a checkpoint of this configuration",
    )
