"""A model and its optimiser on one rank, and one step of both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.augment import augment
from cdvae_ray.core.cdvae import CDVAE, CdvaeOutput, build_cdvae
from cdvae_ray.core.mixup import mixup
from cdvae_ray.core.objective import cdvae_loss
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.core.sync_batch_norm import synchronize_batch_norm
from cdvae_ray.data.batches import Batch
from cdvae_ray.errors import CheckpointError, ConfigError
from cdvae_ray.training.distributed import world_size


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingTask:
    """What is to be trained: settings and the facts of the dataset that the networks need."""

    model: ModelConfig
    objective: ObjectiveConfig
    training: TrainingConfig
    augmentation: AugmentationConfig
    image_size: int
    class_names: tuple[str, ...]


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


class TrainState:
    """A replica of the model with its optimiser on one rank.

    Args:
        task: settings and dataset facts.
        device: where the replica lives.
    """

    def __init__(self, task: TrainingTask, device: torch.device) -> None:
        self.task, self.device = task, device
        self.precision = resolve_precision(task.training, device)
        self.model: CDVAE = build_cdvae(
            task.model,
            image_size=task.image_size,
            class_names=task.class_names,
            seed=task.training.seed,
        )
        self.memory_format = (
            torch.channels_last if task.training.channels_last else torch.contiguous_format
        )
        self.model.to(device).to(memory_format=self.memory_format)
        if world_size() > 1 and task.training.sync_batch_norm:
            self.model = synchronize_batch_norm(self.model, device)  # type: ignore[assignment]
        if task.training.compile:
            self.model.compile()
        self.replica: nn.Module = self.model
        if world_size() > 1:
            self.replica = DistributedDataParallel(
                self.model,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Synchronised layers hold equal statistics; otherwise rank 0's are the model's.
                broadcast_buffers=not task.training.sync_batch_norm,
            )
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=task.training.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=task.training.weight_decay,
            fused=True,
        )

    def train_step(self, batch: Batch, *, epoch: int, index: int) -> dict[str, Tensor]:
        """One optimiser step on this rank's part of global batch `index` of an epoch.

        Returns:
            Sums over this rank's images, on the device: loss, reconstruction, kl,
            classification (each a per-image value by its config's reduction) and correct.
        """
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
        keys = image_keys(
            training.seed, "latent", epoch, batch.image_ids.to(self.device, non_blocking=True)
        )
        noise = keyed_normal(keys, self.task.model.latent_size)
        with self.autocast():
            output: CdvaeOutput = self.replica(mixed.images, noise)
        loss = cdvae_loss(
            output,
            mixed.labels,
            objective=self.task.objective,
            epoch=epoch,
            partner_labels=mixed.partner_labels,
            mixup_weight=mixed.weight,
        )
        self.optimizer.zero_grad(set_to_none=True)
        # Ranks hold equally many images, so DDP's mean of gradients is the global batch's.
        loss.total.backward()  # type: ignore[no-untyped-call]
        if training.max_gradient_norm > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), training.max_gradient_norm)
        self.optimizer.step()
        count = len(batch.labels)
        return {
            "loss": loss.total * count,
            "reconstruction": loss.reconstruction * count,
            "kl": loss.kl * count,
            "classification": loss.classification * count,
            "correct": (output.logits.argmax(dim=1) == mixed.labels).sum(),
        }

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
        """AdamW's moments and step counts by "<parameter>/<part>", on the CPU."""
        return {
            f"{name}/{part}": value.detach().to("cpu").contiguous()
            for name, parameter in self.model.named_parameters()
            for part, value in self.optimizer.state[parameter].items()
        }

    def load_tensors(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """Restores what `model_tensors` and `optimizer_tensors` gave.

        Raises:
            CheckpointError: a tensor is missing, left over or of another shape.
        """
        load_weights(self.model, model)
        parameters = dict(self.model.named_parameters())
        parts = {"step", "exp_avg", "exp_avg_sq"}
        expected = {f"{name}/{part}" for name in parameters for part in parts}
        if set(optimizer) != expected:
            raise _other_tensors("optimiser state", set(optimizer), expected)
        for name, parameter in parameters.items():
            # The fused optimiser walks memory: moments must be laid out like their parameter.
            moments = {
                part: torch.empty_like(parameter.detach()) for part in ("exp_avg", "exp_avg_sq")
            }
            for part, moment in moments.items():
                moment.copy_(optimizer[f"{name}/{part}"])
            step = optimizer[f"{name}/step"].to(self.device)
            self.optimizer.state[parameter] = {"step": step, **moments}


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
