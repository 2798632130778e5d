"""What every attack asks of its arguments, and the state in which it leaves the model."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cdvae_ray.core.attacks.outcome import Goal
from cdvae_ray.core.random import derive_seed
from cdvae_ray.errors import ConfigError, DataError

Classify = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in [0, 1] to logits (N, classes)."""

BOX_TOLERANCE = 1e-6
"""How far outside [0, 1] a pixel may lie, by rounding, to be taken for 0 or 1."""


class Prepared(NamedTuple):
    """Arguments that have been checked."""

    images: Tensor
    """(N, 3, H, W), detached, within [0, 1] exactly."""
    goal: Goal
    image_ids: Tensor
    """(N,) int64 on the CPU."""


def prepare(
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    image_ids: Tensor | None = None,
) -> Prepared:
    """Checks and completes what every attack takes.

    Args:
        images: floating point, (N, C, H, W), N >= 1, in [0, 1] up to BOX_TOLERANCE.
        labels: int64, (N,), >= 0.
        targets: int64, (N,): the classes aimed at. None: any class but the label.
        image_ids: int64, (N,): the images' ids in their dataset. None: 0, 1, 2, ...

    Raises:
        DataError: one of them is not so.
    """
    if images.dim() != 4 or len(images) == 0 or not images.is_floating_point():
        raise DataError(
            "images",
            got=f"{images.dtype} of shape {tuple(images.shape)}",
            expected="floating point of shape (N, 3, H, W) with N >= 1",
            remedy="divide uint8 images by 255 and give them as a batch",
        )
    low, high = float(images.detach().amin()), float(images.detach().amax())
    # A NaN anywhere is both extremes, and fails both comparisons.
    if not (low >= -BOX_TOLERANCE and high <= 1 + BOX_TOLERANCE):
        raise DataError(
            "images",
            got=f"values in [{low:g}, {high:g}]",
            expected="finite values in [0, 1]",
            remedy="pass pixels in [0, 1]; normalisation belongs inside the classifier",
        )
    for name, values in (("labels", labels), ("targets", targets), ("image_ids", image_ids)):
        if values is not None and (values.dtype != torch.int64 or values.shape != images.shape[:1]):
            raise DataError(
                name,
                got=f"{values.dtype} of shape {tuple(values.shape)}",
                expected=f"torch.int64 of shape ({len(images)},)",
                remedy="give each image one integer",
            )
    aims = labels if targets is None else targets
    ids = torch.arange(len(images)) if image_ids is None else image_ids.cpu()
    return Prepared(
        images=images.detach().clamp(0, 1),
        goal=Goal(aims.to(images.device), targeted=targets is not None),
        image_ids=ids,
    )


def check_positive(what: str, value: float) -> None:
    """Raises ConfigError unless the value is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(
            what, got=value, expected="a finite number > 0", remedy="pass such a number"
        )


def check_steps(num_steps: int) -> None:
    """Raises ConfigError unless num_steps is at least 1."""
    if num_steps < 1:
        raise ConfigError("num_steps", got=num_steps, expected=">= 1", remedy="pass such a number")


def check_keep(keep: str, drop_fooled: bool | None, classify: Classify) -> bool:
    """Whether to drop fooled images: where nothing is said, if the kept iterate allows it.

    Under an `eot` it is not done unless it is asked for: of many steps one is fooled by luck, and
    an image that stops there is most often right when it is looked at again.

    Raises:
        ConfigError: keep is neither best nor last, or the last iterate of dropped images was
            asked for.
    """
    if keep not in ("best", "last"):
        raise ConfigError("keep", got=repr(keep), expected="best or last", remedy="pass either")
    if keep == "last" and drop_fooled:
        raise ConfigError(
            "drop_fooled",
            got="True with keep='last'",
            expected="keep='best' (a dropped image has no last iterate)",
            remedy="leave drop_fooled out, or keep the best iterate",
        )
    if drop_fooled is not None:
        return drop_fooled
    return keep == "best" and not is_averaged(classify)


def check_logits(logits: Tensor, count: int) -> None:
    """Raises DataError unless these are logits (count, classes)."""
    if logits.dim() != 2 or len(logits) != count or logits.shape[1] < 2:
        raise DataError(
            "the classifier's answer",
            got=f"shape {tuple(logits.shape)}",
            expected=f"logits of shape ({count}, classes) with 2 classes or more",
            remedy="pass a function from images to logits",
        )
    if not logits.is_floating_point():
        raise DataError(
            "the classifier's answer",
            got=str(logits.dtype),
            expected="floating-point logits",
            remedy="pass a function from images to logits, not to predictions",
        )


def check_classes(labels: Tensor, num_classes: int) -> None:
    """Raises DataError unless every label is one of the classifier's classes."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            "labels",
            got=f"values in [{low}, {high}]",
            expected=f"classes in [0, {num_classes})",
            remedy="use the labels of the classifier's own classes",
        )


@contextmanager
def attacking(classify: Classify, seed: int, device: torch.device) -> Iterator[None]:
    """Evaluation mode and a seeded generator while an attack runs; both as before afterwards.

    The modules behind `classify` are found if it is a module, a bound method of one, a partial of
    either, or an `eot` of these; what a closure hides is left as it is.
    """
    modules = [each for module in modules_behind(classify) for each in module.modules()]
    modes = [module.training for module in modules]
    with ExitStack() as stack:
        devices = [device] if device.type == "cuda" else []
        # A stochastic model draws from PyTorch's own generators: an attack on it is repeatable.
        stack.enter_context(torch.random.fork_rng(devices=devices))
        torch.manual_seed(derive_seed(seed, "attack.model"))
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode


def is_averaged(classify: Classify) -> bool:
    """Whether it is an `eot` of a classifier."""
    return getattr(classify, "attacked", None) is not None


def modules_behind(classify: Classify) -> list[nn.Module]:
    """The modules that a function of images obviously runs."""
    if isinstance(classify, nn.Module):
        return [classify]
    if isinstance(classify, functools.partial):
        return modules_behind(classify.func)
    if is_averaged(classify):
        return modules_behind(classify.attacked)  # type: ignore[attr-defined]
    owner = getattr(classify, "__self__", None)
    return [owner] if isinstance(owner, nn.Module) else []
