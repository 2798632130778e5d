"""What a classifier answers, where the answer counts as one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cdvae_ray.core.random import derive_seed
from cdvae_ray.errors import DataError


def predictions(logits: Tensor) -> Tensor:
    """The classes (N,) of logits (N, classes), of which none may be NaN or infinite.

    The largest of NaNs is the first class: a broken model would seem right about its images.

    Raises:
        DataError: a logit is not finite.
    """
    sound = torch.isfinite(logits).all(dim=1)
    if not bool(sound.all()):
        raise DataError(
            "the classifier's answer",
            got=f"NaN or infinity for {int((~sound).sum())} of {len(logits)} images",
            expected="finite logits",
            remedy="repair or retrain the model: such an answer is neither right nor wrong",
        )
    return logits.argmax(dim=1)


@contextmanager
def answering(seed: int, *what: str | int, device: torch.device) -> Iterator[None]:
    """Seeds what a stochastic model draws, so that its answers to the same images are the same.

    Args:
        seed: of the evaluation.
        what: is asked, and the first image's id: the draws belong to a batch.
        device: where the model computes.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "answers", *what))
        yield
