"""What every Ray Train worker does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch

from cdvae_ray.config.training import EvaluationConfig
from cdvae_ray.data.batches import InMemoryBatches, evaluation_batches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.errors import CdvaeError
from cdvae_ray.evaluation.decomposition import (
    ATTACK_SUMS,
    CLEAN_SUMS,
    evaluate_clean,
    look_at_perturbations,
)
from cdvae_ray.runtime.mailbox import CheckpointSaved, EpochDone, EpochProgress, Failed, Resumed
from cdvae_ray.runtime.shared_images import fetch_images
from cdvae_ray.storage.store import Store
from cdvae_ray.training.distributed import all_reduce_sum, rank, world_size
from cdvae_ray.training.epoch import EpochReport, Progress
from cdvae_ray.training.fit import fit, resume
from cdvae_ray.training.state import TrainingTask, TrainState


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """All that a worker is told. Images travel once a node, through Ray's object store."""

    task: TrainingTask
    evaluation: EvaluationConfig
    train_images: Any
    test_images: Any
    filesystem: pyarrow.fs.FileSystem
    run_root: str
    run_uri: str
    checkpoint_every: int
    config_digest: str
    identity: Mapping[str, Any]
    threads: int
    mailbox: Any


class WorkerResult(NamedTuple):
    """What rank 0 returns: the final numbers over all ranks."""

    metrics: dict[str, float]
    test_images: int
    attacked_images: int


def train_worker(job: WorkerJob) -> WorkerResult | None:
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


def _train_and_evaluate(job: WorkerJob) -> WorkerResult:
    device = ray.train.torch.get_device()
    state = TrainState(job.task, device)
    run = Store(job.filesystem, job.run_root, job.run_uri)
    source = InMemoryBatches(
        fetch_images(job.train_images),
        global_batch_size=job.task.training.global_batch_size,
        seed=job.task.training.seed,
        rank=rank(),
        world_size=world_size(),
    )
    epochs_done = resume(run, state, config_digest=job.config_digest)
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
        config_digest=job.config_digest,
        identity=job.identity,
        on_epoch=on_epoch,
        on_progress=on_progress,
        on_checkpoint=on_checkpoint,
    )
    return _evaluate(state, fetch_images(job.test_images), job.evaluation)


def _evaluate(state: TrainState, test: ImageSet, config: EvaluationConfig) -> WorkerResult:
    state.model.eval()
    shard = {"batch_size": config.batch_size, "rank": rank(), "world_size": world_size()}
    clean = evaluate_clean(state.model, evaluation_batches(test, **shard), state.device)
    clean.reduce(all_reduce_sum, CLEAN_SUMS)
    attacked = look_at_perturbations(
        state.model,
        evaluation_batches(test, **shard, limit=config.attack_images),
        config,
        state.device,
    )
    attacked.reduce(all_reduce_sum, ATTACK_SUMS)
    return WorkerResult(
        metrics={**clean.means(), **attacked.means()},
        test_images=clean.count,
        attacked_images=attacked.count,
    )
