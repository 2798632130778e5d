"""The main job: train a CD-VAE on Ray Train, evaluate it, track it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.config.train_job import (
    TrainConfig,
    evaluation_identity,
    run_name,
    training_identity,
)
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.images import ImageSet, Splits
from cdvae_ray.data.load import load_splits
from cdvae_ray.errors import CdvaeError, CheckpointError, ConfigError, TrainingError
from cdvae_ray.evaluation.picture import decomposition_picture
from cdvae_ray.evaluation.results import TableRow, table_columns, training_table
from cdvae_ray.runtime import cluster
from cdvae_ray.runtime.mailbox import (
    CheckpointSaved,
    EpochDone,
    EpochProgress,
    Failed,
    Message,
    Resumed,
    open_mailbox,
    reading,
)
from cdvae_ray.runtime.progress import ProgressLines
from cdvae_ray.runtime.shared_images import share_images
from cdvae_ray.runtime.worker import WorkerJob, WorkerResult, train_worker
from cdvae_ray.storage.store import Store
from cdvae_ray.tracking import Writer, open_writer, tracking_uri
from cdvae_ray.training.checkpoint import (
    checkpoint_name,
    checkpoint_names,
    load_model,
    model_files,
    read_facts,
)
from cdvae_ray.training.epoch import EpochReport
from cdvae_ray.training.run_folder import (
    prepare_run,
    remember_tracking,
    remembered_tracking,
    results_folder,
    store_results,
    stored_results,
)
from cdvae_ray.training.state import TrainingTask

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What a training job came to."""

    run_id: str | None
    checkpoint: str
    config_digest: str
    metrics: dict[str, float]
    table: list[TableRow]
    results: str
    """The folder of the stored numbers and the picture."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A job with everything resolved: what is trained, on what, and under which name."""

    config: TrainConfig
    preset: str
    splits: Splits
    allocation: cluster.Allocation
    precision: str
    identity: dict[str, Any]
    digest: str
    evaluation_identity: dict[str, Any]
    evaluation_digest: str
    run: Store

    @property
    def name(self) -> str:
        """A name for people: the preset, and the identity's first digits."""
        return f"{self.preset}-{self.digest[:12]}"


def train(config: TrainConfig, *, preset: str, say: Say) -> TrainOutcome:
    """Runs on the driver. Trains and evaluates, or finds that this was already done.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    cluster.require_lasting_storage(config.storage)
    say(f"data: loading {config.data.source}")
    splits = load_splits(config.data)
    say(
        f"data: {splits.train.name} {len(splits.train):,} images, {splits.test.name} "
        f"{len(splits.test):,} images of {splits.train.image_size}x{splits.train.image_size}, "
        f"{splits.train.num_classes} classes"
    )
    _check_batch(config, splits)
    say("ray: connecting")
    cluster.connect()
    plan = _plan(config, preset, splits, say)
    say(f"run: {plan.name}, stored in {plan.run.uri}")
    if not config.overwrite and (outcome := _finished_before(plan)) is not None:
        say("this run is complete: its results follow (--overwrite trains it again)")
        return outcome
    prepare_run(
        plan.run,
        facts={
            "config_digest": plan.digest,
            "identity": plan.identity,
            "preset": preset,
            "data": {"source": config.data.source, "train_images": len(splits.train)},
        },
        resume=config.resume,
        overwrite=config.overwrite,
    )
    return _train_tracked(plan, say)


def _check_batch(config: TrainConfig, splits: Splits) -> None:
    """Raises what the workers' batches would raise, before a cluster is asked for anything."""
    InMemoryBatches(
        splits.train,
        global_batch_size=config.training.global_batch_size,
        seed=config.training.seed,
        rank=0,
        world_size=config.resources.num_workers,
    )


def _plan(config: TrainConfig, preset: str, splits: Splits, say: Say) -> _Plan:
    allocation = cluster.allocate(config.resources, say=say)
    precision = _precision(config, allocation)
    device = "GPU" if allocation.use_gpu else "CPU"
    say(
        f"workers: {config.resources.num_workers} x {allocation.cpus_per_worker} "
        f"{'thread' if allocation.cpus_per_worker == 1 else 'threads'} on {device}, {precision}"
    )
    identity = training_identity(config, precision=precision, train_digest=splits.train.digest)
    digest = digest_of(identity)
    evaluated = evaluation_identity(config, training_digest=digest, test_digest=splits.test.digest)
    return _Plan(
        config=config,
        preset=preset,
        splits=splits,
        allocation=allocation,
        precision=precision,
        identity=identity,
        digest=digest,
        evaluation_identity=evaluated,
        evaluation_digest=digest_of(evaluated),
        run=Store.at(config.storage).child("train").child(run_name(digest)),
    )


def _precision(config: TrainConfig, allocation: cluster.Allocation) -> str:
    wanted = config.training.precision
    if wanted == "float32" or (wanted == "auto" and not allocation.use_gpu):
        return "float32"
    if allocation.use_gpu and cluster.gpu_has_bfloat16():
        return "bfloat16"
    if wanted == "auto":
        return "float32"
    raise ConfigError(
        "training.precision",
        got=f"bfloat16 on {'a GPU without it' if allocation.use_gpu else 'CPUs'}",
        expected="a GPU that computes in bfloat16",
        remedy="set --training.precision float32 or auto",
    )


def _finished_before(plan: _Plan) -> TrainOutcome | None:
    found = stored_results(plan.run, plan.evaluation_digest)
    if found is None:
        return None
    result = WorkerResult(found["metrics"], found["test_images"], found["attacked_images"])
    return _outcome(plan, result, run_id=_remembered(plan))


def _train_tracked(plan: _Plan, say: Say) -> TrainOutcome:
    writer = open_writer(
        plan.config.tracking,
        embedded_root=_embedded_root(plan),
        run_name=plan.name,
        previous_run_id=_remembered(plan),
        tags={"job": "train", "preset": plan.preset, "config_digest": plan.digest},
    )
    status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
    try:
        _describe(writer, plan)
        _track_earlier_epochs(writer, plan)
        result = _fit(plan, writer, say)
        picture = _picture(plan)
        run_id = writer.run_id(timeout_seconds=15)
        _remember(plan, run_id)
        outcome = _outcome(plan, result, run_id=run_id)
        store_results(
            plan.run,
            plan.evaluation_digest,
            identity=plan.evaluation_identity,
            values=result._asdict(),
            picture=picture,
        )
        writer.log_metrics(
            {f"final_{name}": value for name, value in outcome.metrics.items()},
            step=plan.config.training.epochs,
        )
        writer.log_table(table_columns(outcome.table), "tables/results.json")
        writer.log_image(picture, "figures/decomposition.png")
        status = "FINISHED"
        return outcome
    except Exception:
        status = "FAILED"
        raise
    finally:
        # KeyboardInterrupt and SystemExit (a stopped job) pass here with the status KILLED.
        writer.close(status, timeout_seconds=30)


def _tracking_address(plan: _Plan) -> str:
    if not plan.config.tracking.enabled:
        return ""
    return tracking_uri(plan.config.tracking, _embedded_root(plan))


def _embedded_root(plan: _Plan) -> Path:
    # A submitted job's working directory is a copy that Ray deletes after it: the storage stays.
    store = Store.at(plan.config.storage)
    return Path(store.root) if cluster.is_submitted_job() and store.is_local else Path.cwd()


def _remember(plan: _Plan, run_id: str | None) -> None:
    """Notes the MLflow run, once there is one, for a job that resumes this one."""
    if run_id and run_id != _remembered(plan):
        remember_tracking(plan.run, run_id=run_id, uri=_tracking_address(plan))


def _remembered(plan: _Plan) -> str | None:
    uri = _tracking_address(plan)
    return remembered_tracking(plan.run, uri=uri) if uri else None


def _describe(writer: Writer, plan: _Plan) -> None:
    sections = ("data", "augmentation", "model", "objective", "training", "evaluation", "resources")
    writer.log_config(
        {
            **{name: to_dict(getattr(plan.config, name)) for name in sections},
            "storage": plan.config.storage,
            "preset": plan.preset,
            "precision": plan.precision,
        }
    )
    for context, images in (("train", plan.splits.train), ("test", plan.splits.test)):
        writer.log_dataset(
            images.name,
            images.digest,
            plan.config.data.source,
            len(images),
            images.num_classes,
            "train" if context == "train" else "test",
        )


def _fit(plan: _Plan, writer: Writer, say: Say) -> WorkerResult:
    config, run = plan.config, plan.run
    mailbox = open_mailbox()
    lines = ProgressLines(config.training.epochs, say)
    failures: list[Failed] = []
    reports: list[EpochReport] = []

    def handle(message: Message) -> None:
        match message:
            case EpochDone(report):
                lines.epoch(report)
                reports.append(report)
                writer.log_metrics(report.metrics, step=report.epoch + 1)
                _remember(plan, writer.run_id(timeout_seconds=0))
            case EpochProgress(progress):
                lines.within_epoch(progress)
            case CheckpointSaved(name, report):
                _track_checkpoint(writer, plan, name, report.metrics, report.epoch + 1)
            case Resumed(epochs_done):
                lines.resumed(epochs_done)
            case Failed():
                failures.append(message)

    job = WorkerJob(
        task=TrainingTask(
            model=config.model,
            objective=config.objective,
            training=config.training,
            augmentation=config.augmentation,
            image_size=plan.splits.train.image_size,
            class_names=plan.splits.train.class_names,
        ),
        evaluation=config.evaluation,
        train_images=share_images(plan.splits.train),
        test_images=share_images(plan.splits.test),
        filesystem=run.filesystem,
        run_root=run.root,
        run_uri=run.uri,
        checkpoint_every=config.resources.checkpoint_every,
        config_digest=plan.digest,
        identity=plan.identity,
        threads=plan.allocation.cpus_per_worker,
        mailbox=mailbox,
    )
    folder, _, name = run.root.rpartition("/")
    trainer = TorchTrainer(
        functools.partial(train_worker, job),
        torch_config=TorchConfig(backend="nccl" if plan.allocation.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.resources.num_workers,
            use_gpu=plan.allocation.use_gpu,
            resources_per_worker={
                "CPU": plan.allocation.cpus_per_worker,
                **({"GPU": 1} if plan.allocation.use_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=run.filesystem,
            worker_runtime_env={
                "env_vars": {} if plan.allocation.use_gpu else cluster.CPU_WORKER_ENVIRONMENT
            },
            failure_config=FailureConfig(
                max_failures=config.resources.max_failures, controller_failure_limit=1
            ),
        ),
    )
    say(f"training: {config.training.epochs} epochs of {len(plan.splits.train):,} images")
    try:
        with reading(mailbox, handle):
            result = trainer.fit()
    except (ray.train.TrainingFailedError, RayError) as error:
        raise TrainingError(
            "training",
            got=_cause(error),
            expected=f"at most {config.resources.max_failures} lost workers",
            remedy="see Ray's logs in /tmp/ray/session_latest/logs/train; "
            "--resume goes on from the last checkpoint",
        ) from error
    if failures:
        raise _first_cause(failures)
    if result.return_value is None:
        raise TrainingError(
            "training",
            got="no result",
            expected="the final numbers",
            remedy="--resume goes on from the last checkpoint",
        )
    worker_result: WorkerResult = result.return_value
    worker_result.metrics["images_per_second"] = _images_per_second(plan, reports)
    return worker_result


def _images_per_second(plan: _Plan, reports: list[EpochReport]) -> float:
    """Training throughput; a process's first epoch, which warms it up, counts only if alone."""
    steady = reports[1:] or reports
    if steady:
        return sum(each.images for each in steady) / sum(each.seconds for each in steady)
    # Nothing was left to train: the last epoch's rate stands in its checkpoint.
    last = read_facts(plan.run, checkpoint_name(plan.config.training.epochs))
    return last.metrics["images_per_second"]


def _first_cause(failures: list[Failed]) -> CdvaeError:
    """The error that made the ranks stop; those that only followed say no more than that."""
    causes = [each.error for each in failures if type(each.error) is not TrainingError]
    return causes[0] if causes else failures[0].error


def _cause(error: Exception) -> str:
    """The last line of the deepest error that Ray wrapped."""
    return str(error).strip().splitlines()[-1][:300]


def _track_earlier_epochs(writer: Writer, plan: _Plan) -> None:
    """Tracks what a killed driver had no time to. Checkpoints that are there are not doubled."""
    if not plan.config.tracking.enabled:
        return
    for name in checkpoint_names(plan.run):
        try:
            facts = read_facts(plan.run, name)
        except CheckpointError:
            continue  # The worker that resumes passes over it with a warning.
        writer.log_metrics(facts.metrics, step=facts.epochs_done)
        _track_checkpoint(writer, plan, name, facts.metrics, facts.epochs_done)


def _track_checkpoint(
    writer: Writer, plan: _Plan, name: str, metrics: dict[str, float], step: int
) -> None:
    if not plan.config.tracking.enabled:
        return
    writer.log_checkpoint(
        name,
        step,
        model_files(plan.run, name),
        {
            "preset": plan.preset,
            "config_digest": plan.digest,
            "gamma": plan.config.objective.gamma,
            "beta": plan.config.objective.beta,
        },
        metrics,
    )


def _picture(plan: _Plan) -> bytes:
    """x, G(x) and R(x) of the first test images, by the last checkpoint as a user loads it."""
    model = load_model(plan.run, checkpoint_name(plan.config.training.epochs))
    count = min(plan.config.evaluation.picture_images, len(plan.splits.test))
    test: ImageSet = plan.splits.test
    gamma = plan.config.objective.gamma
    return decomposition_picture(
        model, test.images[:count], test.labels[:count], caption=f"{plan.name}, gamma = {gamma:g}"
    )


def _outcome(plan: _Plan, result: WorkerResult, *, run_id: str | None) -> TrainOutcome:
    checkpoint = checkpoint_name(plan.config.training.epochs)
    return TrainOutcome(
        run_id=run_id,
        checkpoint=f"{plan.run.uri}/{checkpoint}",
        config_digest=plan.digest,
        metrics=result.metrics,
        table=training_table(
            result.metrics,
            plan.config.evaluation,
            test_images=result.test_images,
            attacked=result.attacked_images,
        ),
        results=results_folder(plan.run, plan.evaluation_digest),
    )
