"""All epochs of a run on one rank: train, checkpoint, evaluate. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cdvae_ray.data.batches import BatchSource
from cdvae_ray.errors import CdvaeError, CheckpointError
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import (
    checkpoint_name,
    newest_sound_checkpoint,
    read_checkpoint,
    restore_checkpoint,
    take_snapshot,
)
from cdvae_ray.training.checkpoint_writer import CheckpointWriter
from cdvae_ray.training.distributed import from_rank_zero, raise_together, rank
from cdvae_ray.training.epoch import EpochReport, Progress, train_epoch
from cdvae_ray.training.state import TrainState


def resume(
    run: Store,
    state: TrainState,
    *,
    config_digest: str,
    on_damaged: Callable[[CheckpointError], None] | None = None,
) -> int:
    """Restores the run's newest sound checkpoint on every rank; returns the epochs done.

    Args:
        run: the run's folder.
        state: this rank's replica.
        config_digest: the run's identity.
        on_damaged: told on rank 0 of each damaged checkpoint that is passed over.

    Raises:
        CheckpointError: the checkpoint is of another configuration, or none is sound.
    """
    found, error = None, None
    if rank() == 0:
        try:
            found = newest_sound_checkpoint(run, on_damaged=on_damaged)
        except CdvaeError as trouble:
            error = trouble
    raise_together(error, state.device, doing="looking for a checkpoint")
    epochs_done = from_rank_zero(found.epochs_done if found else 0, state.device)
    if epochs_done > 0:
        try:
            # Rank 0 has read and verified it already.
            checkpoint = found or read_checkpoint(run, checkpoint_name(epochs_done))
            restore_checkpoint(checkpoint, state, config_digest=config_digest)
        except CdvaeError as trouble:
            error = trouble
        raise_together(error, state.device, doing="restoring a checkpoint")
    return epochs_done


def fit(
    state: TrainState,
    source: BatchSource,
    run: Store,
    *,
    epochs_done: int,
    checkpoint_every: int,
    overlap_checkpoints: bool = False,
    config_digest: str,
    identity: Mapping[str, Any],
    on_epoch: Callable[[EpochReport], None],
    on_progress: Callable[[Progress], None],
    on_checkpoint: Callable[[str, EpochReport], None],
) -> None:
    """Trains the remaining epochs. Called by every rank; rank 0 writes the checkpoints.

    Args:
        state: this rank's replica, as `resume` left it.
        source: this rank's share of the training images.
        run: the run's folder, the same storage for every rank.
        epochs_done: where to go on.
        checkpoint_every: epochs between checkpoints; the last epoch always has one.
        overlap_checkpoints: write each while the next epoch trains, but for the last.
        config_digest: the run's identity, stored in each checkpoint.
        identity: what the digest was taken of.
        on_epoch: called on every rank after each epoch.
        on_progress: called on every rank every few seconds within an epoch.
        on_checkpoint: called on every rank once a checkpoint is written, with its name and the
            report of its epoch; where they overlap, after a later epoch.

    Raises:
        CdvaeError: on all ranks together: training failed, or a checkpoint could not be written.
    """
    epochs = state.task.training.epochs
    with CheckpointWriter(run, state.device, on_checkpoint) as writer:
        for epoch in range(epochs_done, epochs):
            report = train_epoch(state, source, epoch, on_progress=on_progress)
            on_epoch(report)
            done = epoch + 1
            is_last = done == epochs
            is_due = is_last or done % checkpoint_every == 0
            writer.settle(wait=is_due)
            if is_due:
                take = partial(
                    take_snapshot,
                    state,
                    epochs_done=done,
                    config_digest=config_digest,
                    identity=identity,
                    metrics=report.metrics,
                )
                writer.begin(report, take)
                writer.settle(wait=is_last or not overlap_checkpoints)
