"""Optimisers whose state is named, so that it can be stored without pickling."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cdvae_ray.config.training import TrainingConfig

MOMENTUM = 0.9


def build_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser of a model's trainable parameters."""
    parameters = list(trainable(model).values())
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=training.learning_rate,
            momentum=MOMENTUM,
            weight_decay=training.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        parameters,
        lr=training.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=training.weight_decay,
        fused=True,
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take gradients, by name."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and step counts by "<parameter>/<part>", on the CPU."""
    return {
        f"{name}/{part}": value.detach().to("cpu").contiguous()
        for name, parameter in trainable(model).items()
        for part, value in optimizer.state[parameter].items()
    }


def expected_names(model: nn.Module, training: TrainingConfig) -> set[str]:
    """The names of `optimizer_tensors` after a step."""
    return {f"{name}/{part}" for name in trainable(model) for part in _parts(training)}


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restores what `optimizer_tensors` gave, under exactly `expected_names`."""
    for name, parameter in trainable(model).items():
        parts = {
            key.removeprefix(f"{name}/"): value
            for key, value in tensors.items()
            if key.rpartition("/")[0] == name
        }
        optimizer.state[parameter] = {
            part: value.to(parameter.device, copy=True)
            if part == "step"
            else _laid_out(value, parameter)
            for part, value in parts.items()
        }


def _laid_out(moment: Tensor, parameter: nn.Parameter) -> Tensor:
    # The fused optimisers walk memory: moments must be laid out like their parameter.
    return torch.empty_like(parameter.detach()).copy_(moment)


def _parts(training: TrainingConfig) -> tuple[str, ...]:
    return (
        ("momentum_buffer",) if training.optimizer == "sgd" else ("step", "exp_avg", "exp_avg_sq")
    )
