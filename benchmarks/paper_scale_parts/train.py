"""A stage that trains: epoch by epoch, with checkpoints from which another call goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cdvae_ray.data.images import ImageSet
from cdvae_ray.training.epoch import Progress, train_epoch
from cdvae_ray.training.state import TrainState
from cdvae_ray.training.task import Task

from .arithmetic import wait_for
from .clock import Clock, OutOfBudgetError
from .device_batches import DeviceBatches
from .progress import Say
from .stage import Stage
from .tensor_file import TensorFile, read_tensors, write_tensors

MODEL_FILE, _CHECKPOINT_FILE = "model.safetensors", "checkpoint.safetensors"
CHECKPOINT_SECONDS = 60.0
"""Between checkpoints; a call that runs out of its budget writes one too."""
_MODEL, _OPTIMIZER = "model/", "optimizer/"


def train_stage(
    stage: Stage,
    task: Task,
    images: ImageSet,
    device: torch.device,
    clock: Clock,
    say: Say,
    *,
    planned_epoch_seconds: float | None,
) -> None:
    """Trains the epochs that are left.

    Args:
        stage: its folder.
        task: what is trained.
        images: what it is trained on.
        device: where.
        clock: of this call.
        say: gets lines.
        planned_epoch_seconds: what an epoch was expected to take, if anything was.

    Raises:
        OutOfBudgetError: the next epoch does not fit into this call; a checkpoint was written.
    """
    epochs = task.training.epochs
    began = time.perf_counter()
    stage.folder.mkdir(parents=True, exist_ok=True)
    state = TrainState(task, device)
    done = _restore(stage, state)
    history: list[dict[str, float]] = list(stage.results.get("history", []))[:done]
    if done:
        say(f"{stage.name}: goes on after {done} of {epochs} epochs")
    source = DeviceBatches(
        images,
        global_batch_size=task.training.global_batch_size,
        seed=task.training.seed,
        device=device,
    )
    kept, kept_at = done, time.perf_counter()

    def keep() -> None:
        nonlocal kept, kept_at, began
        if kept < done:
            _save(stage, state, done)
            kept, kept_at = done, time.perf_counter()
            stage.note(
                seconds=kept_at - began, reached=f"{done} of {epochs} epochs", history=history
            )
            began = kept_at

    while done < epochs:
        if time.perf_counter() - kept_at >= CHECKPOINT_SECONDS:
            keep()
        # The least of what is known: the first epoch of a call may have compiled the model.
        known = [each["epoch_seconds"] for each in history]
        expected = 1.05 * min([planned_epoch_seconds or math.inf, *known])
        try:
            clock.begin(0.0 if math.isinf(expected) else expected)
        except OutOfBudgetError:
            keep()
            raise
        report = train_epoch(state, source, done, on_progress=_teller(stage, epochs, say))
        wait_for(device)
        done += 1
        history.append({name: float(value) for name, value in report.metrics.items()})
        say(
            f"{stage.name}: {done} of {epochs} epochs, loss {report.metrics['train_loss']:.4f}, "
            f"accuracy {report.metrics['train_accuracy']:.4f}, "
            f"{report.metrics['images_per_second']:.0f} images/s"
        )
    sha256 = write_tensors(stage.folder / MODEL_FILE, state.model_tensors(), task.model_facts())
    stage.note(
        seconds=time.perf_counter() - began,
        reached=f"{epochs} of {epochs} epochs",
        finished=True,
        history=history,
        weights_sha256=sha256,
        precision=state.precision,
    )
    (stage.folder / _CHECKPOINT_FILE).unlink(missing_ok=True)


def _teller(stage: Stage, epochs: int, say: Say) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        say(
            f"{stage.name}: epoch {progress.epoch + 1} of {epochs}, batch {progress.batches_done} "
            f"of {progress.batches}, {progress.images_per_second:.0f} images/s"
        )

    return on_progress


def trained_weights(stage: Stage) -> TensorFile:
    """The weights of a finished stage, verified, and the facts that rebuild its model."""
    return read_tensors(stage.folder / MODEL_FILE, sha256=stage.results["weights_sha256"])


def _save(stage: Stage, state: TrainState, epochs_done: int) -> None:
    tensors: dict[str, Tensor] = {
        **{_MODEL + name: tensor for name, tensor in state.model_tensors().items()},
        **{_OPTIMIZER + name: tensor for name, tensor in state.optimizer_tensors().items()},
    }
    write_tensors(stage.folder / _CHECKPOINT_FILE, tensors, {"epochs_done": epochs_done})


def _restore(stage: Stage, state: TrainState) -> int:
    """Loads the checkpoint if there is one; the epochs done. Generators need no state: every
    random number is keyed, or drawn from a generator seeded anew at each epoch."""
    path = stage.folder / _CHECKPOINT_FILE
    if not path.is_file():
        return 0
    found = read_tensors(path)
    state.load_tensors(_below(found, _MODEL), _below(found, _OPTIMIZER))
    return int(found.facts["epochs_done"])


def _below(found: TensorFile, prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in found.tensors.items()
        if name.startswith(prefix)
    }
