"""What every Ray Train worker does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch

from cdvae_ray.data.batches import BatchSource, InMemoryBatches
from cdvae_ray.data.stream_order import StreamOrder
from cdvae_ray.data.streamed import StreamedImages
from cdvae_ray.errors import CdvaeError
from cdvae_ray.evaluation.after_training import Evaluate, FinalNumbers
from cdvae_ray.runtime.mailbox import (
    CheckpointSaved,
    CorruptImages,
    EpochDone,
    EpochProgress,
    Failed,
    PassedOver,
    Resumed,
)
from cdvae_ray.runtime.shared_images import fetch_images
from cdvae_ray.runtime.streamed_batches import StreamedBatches
from cdvae_ray.storage.store import Store
from cdvae_ray.training.distributed import rank, world_size
from cdvae_ray.training.epoch import EpochReport, Progress
from cdvae_ray.training.fit import fit, resume
from cdvae_ray.training.state import TrainState
from cdvae_ray.training.task import Task


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """All that a worker is told. Task and images travel once a node, through Ray's object store."""

    task: Any
    """A reference to the `Task`."""
    evaluate: Evaluate
    train_images: Any
    """A reference to shared images, or StreamedImages."""
    test_images: Any
    lanes: int
    loader_cpus: int
    """Of streamed images."""
    filesystem: pyarrow.fs.FileSystem
    run_root: str
    run_uri: str
    checkpoint_every: int
    overlap_checkpoints: bool
    config_digest: str
    identity: Mapping[str, Any]
    threads: int
    mailbox: Any


def train_worker(job: WorkerJob) -> FinalNumbers | None:
    """Runs on every worker. Trains what is left to train, then evaluates.

    An error of the project's own is deterministic: every rank stops, the driver is told and Ray
    does not try again. Anything else, such as a lost worker, is Ray's to handle.
    """
    torch.set_num_threads(job.threads)
    try:
        return _train_and_evaluate(job)
    except CdvaeError as error:
        ray.get(job.mailbox.post.remote(Failed(rank(), error)))
        return None


def _train_and_evaluate(job: WorkerJob) -> FinalNumbers:
    device = ray.train.torch.get_device()
    task: Task = ray.get(job.task)
    state = TrainState(task, device)
    run = Store(job.filesystem, job.run_root, job.run_uri)
    source = _batch_source(job, task)
    epochs_done = resume(
        run,
        state,
        config_digest=job.config_digest,
        on_damaged=lambda error: job.mailbox.post.remote(PassedOver(error)),
    )
    speaks = rank() == 0
    if speaks and epochs_done:
        job.mailbox.post.remote(Resumed(epochs_done))

    def on_epoch(report: EpochReport) -> None:
        if speaks:
            job.mailbox.post.remote(EpochDone(report))

    def on_progress(progress: Progress) -> None:
        if speaks:
            job.mailbox.post.remote(EpochProgress(progress))

    def on_checkpoint(name: str, report: EpochReport) -> None:
        if speaks:
            job.mailbox.post.remote(CheckpointSaved(name, report))
        ray.train.report(
            report.metrics,
            checkpoint=ray.train.Checkpoint(f"{job.run_root}/{name}", job.filesystem),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )

    fit(
        state,
        source,
        run,
        epochs_done=epochs_done,
        checkpoint_every=job.checkpoint_every,
        overlap_checkpoints=job.overlap_checkpoints,
        config_digest=job.config_digest,
        identity=job.identity,
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_checkpoint=on_checkpoint,
    )
    return job.evaluate(state, fetch_images(job.test_images))


def _batch_source(job: WorkerJob, task: Task) -> BatchSource:
    training = task.training
    place = {"seed": training.seed, "rank": rank(), "world_size": world_size()}
    if not isinstance(job.train_images, StreamedImages):
        return InMemoryBatches(
            fetch_images(job.train_images), global_batch_size=training.global_batch_size, **place
        )
    order = StreamOrder(
        [group.rows for group in job.train_images.groups],
        global_batch_size=training.global_batch_size,
        lanes=job.lanes,
        **place,
    )
    return StreamedBatches(
        job.train_images,
        order,
        min_crop_area=task.augmentation.min_crop_area,
        seed=training.seed,
        loader_cpus=job.loader_cpus,
        on_corrupt=lambda names: job.mailbox.post.remote(CorruptImages(names)),
    )
