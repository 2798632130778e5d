"""What every training job does on the driver: train on Ray Train, evaluate, store, track."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.config.training import ResourcesConfig
from cdvae_ray.config.training_job import TrainingJobConfig
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import TrainingData, TrainingImages, load_for_training
from cdvae_ray.data.stream_order import StreamOrder
from cdvae_ray.data.streamed import StreamedImages
from cdvae_ray.errors import (
    CdvaeError,
    CheckpointError,
    ConfigError,
    NonFiniteLossError,
    StorageError,
    TrainingError,
)
from cdvae_ray.evaluation.after_training import Evaluate, FinalNumbers
from cdvae_ray.evaluation.results import TableRow, table_columns
from cdvae_ray.runtime import cluster
from cdvae_ray.runtime.mailbox import (
    CheckpointSaved,
    CorruptImages,
    EpochDone,
    EpochProgress,
    Failed,
    Message,
    PassedOver,
    Resumed,
    open_mailbox,
    reading,
)
from cdvae_ray.runtime.progress import ProgressLines
from cdvae_ray.runtime.shared_images import share_images
from cdvae_ray.runtime.stand_back import helpers_stand_back
from cdvae_ray.runtime.tracked import (
    embedded_root,
    ending,
    require_lasting_places,
    tracking_address,
)
from cdvae_ray.runtime.worker import WorkerJob, train_worker
from cdvae_ray.storage.artifact import has_artifact
from cdvae_ray.storage.store import Store
from cdvae_ray.tracking import Writer, open_writer
from cdvae_ray.training.checkpoint import (
    MODEL_FILE,
    Checkpoint,
    checkpoint_name,
    checkpoint_names,
    model_files,
    read_checkpoint,
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
from cdvae_ray.training.task import Task

Say = Callable[[str], None]


class TrainingJob(ABC):
    """What sets one kind of training job apart from another, on the driver.

    Args:
        name: the job's name, as in jobs/<name>.py.
        config: its settings.
    """

    def __init__(self, name: str, config: TrainingJobConfig) -> None:
        self.name, self.config = name, config

    def training_images(self, train: TrainingImages) -> TrainingImages:
        """What is trained on: all training images, unless a job holds some of them out."""
        return train

    @abstractmethod
    def task(self, train: TrainingImages) -> Task:
        """What the workers train.

        Raises:
            CdvaeError: it cannot be trained on these images.
        """

    @abstractmethod
    def identity(self, *, precision: str, train_digest: str) -> dict[str, Any]:
        """All that determines the trained weights, as JSON values."""

    @abstractmethod
    def evaluation_identity(self, *, training_digest: str, test_digest: str) -> dict[str, Any]:
        """All that determines the numbers after training, as JSON values."""

    @abstractmethod
    def run_name(self, digest: str) -> str:
        """The run's folder below train/ in the storage root."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The job's own settings to track beside those that all training jobs have."""

    @abstractmethod
    def checkpoint_settings(self) -> dict[str, Any]:
        """The settings by which a person tells logged checkpoints apart."""

    @abstractmethod
    def evaluate(self) -> Evaluate:
        """The evaluation after training, pickled to the workers."""

    @abstractmethod
    def table(self, numbers: FinalNumbers, test: ImageSet) -> list[TableRow]:
        """The final numbers as a person reads them."""

    def picture(self, run: Store, test: ImageSet, *, caption: str) -> bytes | None:
        """A PNG by the last checkpoint, for jobs that have something to show."""
        return None


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What a training job came to."""

    run_id: str | None
    checkpoint: str
    config_digest: str
    metrics: dict[str, float]
    table: list[TableRow]
    results: str
    """The folder of the stored numbers, and of the picture if there is one."""
    was_stored: bool = False
    """Whether all of it was found, and nothing trained."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A job with everything resolved: what is trained, on what, and under which name."""

    job: TrainingJob
    config: TrainingJobConfig
    preset: str
    splits: TrainingData
    task: Task
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


def run_training(
    job: TrainingJob,
    *,
    preset: str,
    say: Say,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> TrainOutcome:
    """Runs on the driver. Trains and evaluates, or finds that this was already done.

    Args:
        job: what is trained, and its settings.
        preset: the name it was started from, for people.
        say: takes lines of progress.
        on_epoch: takes the numbers of each epoch as it is done.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    config = job.config
    require_lasting_places(config.storage, config.tracking)
    say(f"data: loading {config.data.source}")
    loaded = load_for_training(config.data, say)
    splits = loaded._replace(train=job.training_images(loaded.train))
    say(
        f"data: {splits.train.name} {len(splits.train):,} images, {splits.test.name} "
        f"{len(splits.test):,} images of {splits.train.image_size}x{splits.train.image_size}, "
        f"{splits.train.num_classes} classes{', streamed' if config.data.streaming else ''}"
    )
    _check_batch(config, splits)
    task = job.task(splits.train)
    say("ray: connecting")
    cluster.connect()
    plan = _plan(job, preset, splits, task, say)
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
    return _train_tracked(plan, say, on_epoch)


def _check_batch(config: TrainingJobConfig, splits: TrainingData) -> None:
    """Raises what the workers' batches would raise, before a cluster is asked for anything."""
    known = {
        "global_batch_size": config.training.global_batch_size,
        "seed": config.training.seed,
        "rank": 0,
    }
    for workers in config.resources.worker_counts:
        if isinstance(splits.train, StreamedImages):
            rows = [group.rows for group in splits.train.groups]
            StreamOrder(rows, lanes=config.data.lanes, world_size=workers, **known)
        else:
            InMemoryBatches(splits.train, world_size=workers, **known)


def _train_digest(config: TrainingJobConfig, train: TrainingImages) -> str:
    """What stands for the training images in a run's identity: of streamed ones also the order."""
    if isinstance(train, StreamedImages):
        return digest_of({"streamed_images": train.digest, "lanes": config.data.lanes})
    return train.digest


def _plan(job: TrainingJob, preset: str, splits: TrainingData, task: Task, say: Say) -> _Plan:
    config = job.config
    beside = config.resources.loader_cpus if config.data.streaming else 0
    counts = config.resources.worker_counts
    allocation = cluster.allocate(config.resources, say=say, cpus_beside=beside, fewest=counts[0])
    precision = _precision(config, allocation)
    device = "GPU" if allocation.use_gpu else "CPU"
    fewest = f"{counts[0]} to " if len(counts) > 1 else ""
    say(
        f"workers: {fewest}{counts[-1]} x {allocation.cpus_per_worker} "
        f"{'thread' if allocation.cpus_per_worker == 1 else 'threads'} on {device}, {precision}"
    )
    train_digest = _train_digest(config, splits.train)
    identity = job.identity(precision=precision, train_digest=train_digest)
    if not config.training.sync_batch_norm and counts[-1] > 1:
        # Then the weights are those of just so many workers.
        identity["workers"] = list(counts)
    digest = digest_of(identity)
    evaluated = job.evaluation_identity(training_digest=digest, test_digest=splits.test.digest)
    return _Plan(
        job=job,
        config=config,
        preset=preset,
        splits=splits,
        task=task,
        allocation=allocation,
        precision=precision,
        identity=identity,
        digest=digest,
        evaluation_identity=evaluated,
        evaluation_digest=digest_of(evaluated),
        run=Store.at(config.storage).child("train").child(job.run_name(digest)),
    )


def _precision(config: TrainingJobConfig, allocation: cluster.Allocation) -> str:
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
    # Numbers without their checkpoint are those of a model that is gone.
    if found is None or not has_artifact(plan.run, checkpoint_name(plan.config.training.epochs)):
        return None
    numbers = FinalNumbers(found["metrics"], found["test_images"], found["attacked_images"])
    return replace(_outcome(plan, numbers, run_id=_remembered(plan)), was_stored=True)


def _train_tracked(
    plan: _Plan, say: Say, on_epoch: Callable[[EpochReport], None] | None
) -> TrainOutcome:
    writer = open_writer(
        plan.config.tracking,
        embedded_root=embedded_root(plan.config.storage),
        run_name=plan.name,
        previous_run_id=_remembered(plan),
        tags={"job": plan.job.name, "preset": plan.preset, "config_digest": plan.digest},
        on_run=functools.partial(_remember, plan),
    )
    with ending(writer):
        _describe(writer, plan)
        _track_earlier_epochs(writer, plan)
        numbers = _fit(plan, writer, say, on_epoch)
        picture = plan.job.picture(plan.run, plan.splits.test, caption=plan.name)
        run_id = writer.run_id(timeout_seconds=15)
        outcome = _outcome(plan, numbers, run_id=run_id)
        store_results(
            plan.run,
            plan.evaluation_digest,
            identity=plan.evaluation_identity,
            values=numbers._asdict(),
            picture=picture,
        )
        writer.log_metrics(
            {f"final_{name}": value for name, value in outcome.metrics.items()},
            step=plan.config.training.epochs,
        )
        writer.log_table(table_columns(outcome.table), "tables/results.json")
        if picture is not None:
            writer.log_image(picture, "figures/decomposition.png")
        return outcome


def _remember(plan: _Plan, run_id: str) -> None:
    """Notes the MLflow run for a job that resumes this one."""
    if run_id != _remembered(plan):
        address = tracking_address(plan.config.tracking, plan.config.storage)
        remember_tracking(plan.run, run_id=run_id, uri=address)


def _remembered(plan: _Plan) -> str | None:
    if not plan.config.tracking.enabled:
        return None
    address = tracking_address(plan.config.tracking, plan.config.storage)
    return remembered_tracking(plan.run, uri=address)


def _describe(writer: Writer, plan: _Plan) -> None:
    config = plan.config
    writer.log_config(
        {
            "data": to_dict(config.data),
            "augmentation": to_dict(config.augmentation),
            "training": to_dict(config.training),
            "resources": to_dict(config.resources),
            **plan.job.settings(),
            "storage": config.storage,
            "preset": plan.preset,
            "precision": plan.precision,
        }
    )
    for context, images in (("train", plan.splits.train), ("test", plan.splits.test)):
        writer.log_dataset(
            images.name,
            images.digest,
            config.data.source,
            len(images),
            images.num_classes,
            "train" if context == "train" else "test",
        )


def _fit(
    plan: _Plan,
    writer: Writer,
    say: Say,
    on_epoch: Callable[[EpochReport], None] | None,
) -> FinalNumbers:
    config, run = plan.config, plan.run
    mailbox = open_mailbox()
    lines = ProgressLines(config.training.epochs, say)
    failures: list[Failed] = []
    reports: list[EpochReport] = []
    is_started = True

    def handle(message: Message) -> None:
        nonlocal is_started
        match message:
            case EpochDone(report):
                # By now what a start needs has come up, and has done its part.
                if is_started and cluster.is_own():
                    helpers_stand_back()
                is_started = False
                lines.epoch(report)
                reports.append(report)
                writer.log_metrics(report.metrics, step=report.epoch + 1)
                if on_epoch is not None:
                    on_epoch(report)
            case EpochProgress(progress):
                lines.within_epoch(progress)
            case CheckpointSaved(name, report):
                if plan.config.tracking.enabled:
                    try:
                        saved = read_checkpoint(run, name, only=(MODEL_FILE,))
                        _track_checkpoint(writer, plan, saved, report.metrics)
                    except CdvaeError as error:  # training itself does not need this
                        say(f"tracking: {name} is not logged: {error}")
            case Resumed(epochs_done):
                is_started = True
                lines.resumed(epochs_done)
            case PassedOver(error):
                say(f"passing over a damaged checkpoint: {error}")
            case CorruptImages(names):
                lines.corrupt(names)
            case Failed():
                failures.append(message)

    job = WorkerJob(
        # Once through the object store: a task may hold the weights of a frozen model.
        task=ray.put(plan.task),
        evaluate=plan.job.evaluate(),
        train_images=plan.splits.train
        if isinstance(plan.splits.train, StreamedImages)
        else share_images(plan.splits.train),
        test_images=share_images(plan.splits.test),
        lanes=config.data.lanes,
        loader_cpus=config.resources.loader_cpus,
        filesystem=run.filesystem,
        run_root=run.root,
        run_uri=run.uri,
        checkpoint_every=config.resources.checkpoint_every,
        overlap_checkpoints=config.resources.overlap_checkpoints,
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
            num_workers=_num_workers(config.resources),
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
            got=cluster.deepest_cause(error),
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
    numbers: FinalNumbers = result.return_value
    _require_finite(numbers.metrics)
    numbers.metrics["images_per_second"] = _images_per_second(plan, reports)
    return numbers


def _require_finite(metrics: dict[str, float]) -> None:
    """Finite weights can still give none: such a model is no result."""
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise NonFiniteLossError(
            "the final numbers",
            got=f"NaN or infinity in {', '.join(bad)}",
            expected="finite numbers",
            remedy="lower --training.learning-rate or set --training.max-gradient-norm, and pass "
            "--overwrite; the checkpoints are kept until then",
        )


def _num_workers(resources: ResourcesConfig) -> int | tuple[int, int]:
    """As Ray Train takes it: a range makes it elastic."""
    if resources.min_workers is None:
        return resources.num_workers
    return resources.min_workers, resources.num_workers


def _images_per_second(plan: _Plan, reports: list[EpochReport]) -> float:
    """Training throughput; a process's first epoch, which warms it up, counts only if alone."""
    steady = reports[1:] or reports
    if steady:
        return sum(each.images for each in steady) / sum(each.seconds for each in steady)
    # Nothing was left to train: the last epoch's rate stands in its checkpoint.
    last = read_checkpoint(plan.run, checkpoint_name(plan.config.training.epochs), only=())
    return last.metrics["images_per_second"]


def _first_cause(failures: list[Failed]) -> CdvaeError:
    """The error that made the ranks stop; those that only followed say no more than that."""
    causes = [each.error for each in failures if type(each.error) is not TrainingError]
    return causes[0] if causes else failures[0].error


def _track_earlier_epochs(writer: Writer, plan: _Plan) -> None:
    """Tracks what a killed driver had no time to. Checkpoints that are there are not doubled."""
    if not plan.config.tracking.enabled:
        return
    for name in checkpoint_names(plan.run):
        try:
            checkpoint = read_checkpoint(plan.run, name, only=(MODEL_FILE,))
            _track_checkpoint(writer, plan, checkpoint, checkpoint.metrics)
        except (CheckpointError, StorageError):
            continue  # The worker that resumes passes over it, and says so.
        writer.log_metrics(checkpoint.metrics, step=checkpoint.epochs_done)


def _track_checkpoint(
    writer: Writer, plan: _Plan, checkpoint: Checkpoint, metrics: dict[str, float]
) -> None:
    writer.log_checkpoint(
        checkpoint.name,
        checkpoint.epochs_done,
        model_files(plan.run, checkpoint),
        {
            "preset": plan.preset,
            "config_digest": plan.digest,
            **plan.job.checkpoint_settings(),
        },
        metrics,
    )


def _outcome(plan: _Plan, numbers: FinalNumbers, *, run_id: str | None) -> TrainOutcome:
    checkpoint = checkpoint_name(plan.config.training.epochs)
    return TrainOutcome(
        run_id=run_id,
        checkpoint=plan.run.location(checkpoint),
        config_digest=plan.digest,
        metrics=numbers.metrics,
        table=plan.job.table(numbers, plan.splits.test),
        results=results_folder(plan.run, plan.evaluation_digest),
    )
