"""One pass over the training images."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from cdvae_ray.core.metrics import Tally
from cdvae_ray.core.random import derive_seed
from cdvae_ray.data.batches import BatchSource
from cdvae_ray.errors import DataError, NonFiniteLossError, TrainingError
from cdvae_ray.training.distributed import (
    all_reduce_min,
    all_reduce_sum,
    raise_together,
    rank,
    world_size,
)
from cdvae_ray.training.recalibration import check_recalibration, recalibrate
from cdvae_ray.training.schedule import learning_rate
from cdvae_ray.training.state import TrainState

_CHECK_STEPS = 50
"""Steps between looks at the loss, each of which waits for the device."""
_REMEDY = (
    "lower --training.learning-rate or set --training.max-gradient-norm; the last checkpoint is "
    "kept"
)


class Progress(NamedTuple):
    """How far an epoch has come, by rank 0's count."""

    epoch: int
    batches_done: int
    batches: int
    images_per_second: float
    seconds: float
    """Since the epoch began."""


class EpochReport(NamedTuple):
    """What an epoch came to over all ranks."""

    epoch: int
    metrics: dict[str, float]
    images: int
    seconds: float


def train_epoch(
    state: TrainState,
    source: BatchSource,
    epoch: int,
    *,
    on_progress: Callable[[Progress], None],
    progress_seconds: float = 5.0,
) -> EpochReport:
    """Trains on every batch of an epoch. Called by every rank.

    Raises:
        NonFiniteLossError: on all ranks together, once any rank's loss is NaN or infinite, or a
            weight is after the last step.
        DataError: on all ranks together, once more images are undecodable than the source allows.
        TrainingError: the source gave another number of batches than it promised.
        ConfigError: the loss allows no recalibration, which was asked for.
    """
    check_recalibration(state)
    seed = state.task.training.seed
    # Dropout draws from PyTorch's own generator. Seeding it here makes an epoch repeatable
    # whatever ran before it, so that a resumed run is the undisturbed one.
    torch.manual_seed(derive_seed(seed, "epoch", epoch, rank()))
    state.set_learning_rate(learning_rate(state.task.training, epoch))
    state.model.train()
    tally = Tally(state.device)
    first_bad = torch.full((1,), torch.inf, device=state.device)
    started = spoken = time.perf_counter()
    steps = 0
    for batch in source.epoch_batches(epoch):
        sums = state.train_step(batch, epoch=epoch, index=steps)
        tally.add(sums, len(batch.labels))
        # The host does not wait here: the first bad step is remembered on the device.
        bad_here = torch.where(torch.isfinite(sums["loss"].detach()), torch.inf, float(steps))
        first_bad = torch.minimum(first_bad, bad_here)
        steps += 1
        if steps % _CHECK_STEPS == 0:
            _stop_if_bad(first_bad, epoch)
            _count_corrupt(source, epoch, state.device)
        now = time.perf_counter()
        if now - spoken >= progress_seconds:
            spoken = now
            rate = tally.count * world_size() / (now - started)
            on_progress(Progress(epoch, steps, source.batches_per_epoch, rate, now - started))
    if steps != source.batches_per_epoch:
        raise TrainingError(
            f"epoch {epoch}",
            got=f"{steps} batches",
            expected=f"{source.batches_per_epoch}",
            remedy="check the dataset for images that were lost while training",
        )
    _stop_if_bad(first_bad, epoch)
    corrupt = _count_corrupt(source, epoch, state.device)
    tally.reduce(all_reduce_sum, state.task.metric_sums)
    seconds = time.perf_counter() - started
    means = tally.means()
    metrics = {f"train_{name}": value for name, value in means.items() if name != "correct"}
    metrics["train_accuracy"] = means["correct"]
    metrics["learning_rate"] = learning_rate(state.task.training, epoch)
    metrics |= state.end_epoch(epoch=epoch)
    metrics |= corrupt
    recalibration_steps = state.task.training.recalibration_steps
    if recalibration_steps and epoch + 1 == state.task.training.epochs:
        recalibrate(state, source, epoch=epoch, steps=recalibration_steps)
    state.share_statistics()
    _stop_if_spoilt(state, epoch)
    metrics["epoch_seconds"] = seconds
    metrics["images_per_second"] = tally.count / seconds
    return EpochReport(epoch, metrics, tally.count, seconds)


def _count_corrupt(source: BatchSource, epoch: int, device: torch.device) -> dict[str, float]:
    """The epoch's undecodable images so far, over all ranks; nothing of a source without any."""
    allowed = source.max_corrupt_images
    if allowed is None:
        return {}
    here = torch.tensor([source.corrupt_images], dtype=torch.float64, device=device)
    count = int(all_reduce_sum(here).item())
    if count > allowed:
        raise DataError(
            f"training images in epoch {epoch}",
            got=f"{count} that do not decode",
            expected=f"at most {allowed} of {source.num_images}",
            remedy="make the shards again by jobs/prepare_data.py, which leaves such images out, "
            "or raise --data.max-corrupt-fraction",
        )
    return {"train_corrupt_images": float(count)}


def _stop_if_spoilt(state: TrainState, epoch: int) -> None:
    """What the last step made of the weights is in no loss; a checkpoint of it must not be."""
    error = None
    if (name := state.non_finite()) is not None:
        error = NonFiniteLossError(
            f"{name} after epoch {epoch}",
            got="NaN or infinity",
            expected="finite numbers",
            remedy=_REMEDY,
        )
    raise_together(error, state.device, doing=f"epoch {epoch}")


def _stop_if_bad(first_bad: torch.Tensor, epoch: int) -> None:
    step = float(all_reduce_min(first_bad.clone()).item())
    if step != float("inf"):
        raise NonFiniteLossError(
            f"loss at epoch {epoch}, step {int(step)}",
            got="NaN or infinity",
            expected="a finite number",
            remedy=_REMEDY,
        )
