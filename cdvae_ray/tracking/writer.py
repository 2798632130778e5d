"""The one writer of a run: calls are queued and made by one background thread.

A caller never waits for MLflow. Trouble is reported once, in one line of the logger
"cdvae_ray.tracking"; an operation that met an outage is made again until it succeeds or until
the deadline of `close`, and one that can never succeed is dropped.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.tracking.address import artifact_location, redact, tracking_uri
from cdvae_ray.tracking.client import THREAD_NAME, Failure, classify, connect
from cdvae_ray.tracking.environment import environment_facts, git_commit
from cdvae_ray.tracking.nesting import nesting_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

Status = Literal["FINISHED", "FAILED", "KILLED"]
Context = Literal["train", "test"]

FIRST_DELAY_SECONDS = 0.5
LAST_DELAY_SECONDS = 15.0
PATIENCE = 6
"""Failed attempts (about 15 seconds) after which an operation may be the only one in trouble."""
MAX_WAITING_BYTES = 2 * 1024**3
"""Checkpoints, images and texts that may wait in memory while the store is down."""

MAX_VALUE_LENGTH = 6000
"""MLflow's limit on a parameter's value, in characters."""
STEP_TAG = "step"
"""Tag of a logged model: the step its checkpoint was saved at."""
WRITER_TAG = "writer_id"
"""Tag of a run: the writer that created it, of which there is one a run."""

logger = logging.getLogger("cdvae_ray.tracking")


class Writer(Protocol):
    """What a job tells its tracker. No method waits for the store but `run_id` and `close`."""

    def log_config(self, params: Mapping[str, Any]) -> None:
        """Logs a nested config as dotted parameters.

        A reopened run keeps the value of a parameter that it already has (MLflow does not change
        parameters); a new value is set as the tag "resumed.<parameter>".
        """

    def log_dataset(
        self,
        name: str,
        digest: str,
        source_kind: str,
        num_images: int,
        num_classes: int,
        context: Context = "train",
    ) -> None:
        """Logs a dataset as the run's input.

        MLflow shows the digest's first 16 digits; the whole digest stands in the dataset's
        source and in the tag "dataset.<context>.digest".
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs the metrics of one step in one call."""

    def log_checkpoint(
        self,
        name: str,
        step: int,
        files: Mapping[str, bytes],
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Logs a checkpoint as a logged model with its metrics, once per name in a run.

        Args:
            name: without any of `/ : . % " '`, which MLflow refuses.
            step: of the run, as in `log_metrics`.
            files: contents by relative path.
            params: nested parameters of the model, logged as dotted ones.
            metrics: of the checkpoint, by which checkpoints can be ranked.
        """

    def log_table(self, columns: Mapping[str, Sequence[Any]], artifact_file: str) -> None:
        """Logs a table (.json or .parquet) by column, in place of one of the same name.

        MLflow's JSON keeps 10 decimals; Parquet keeps every digit.
        """

    def log_image(self, png_bytes: bytes, artifact_file: str) -> None:
        """Logs an encoded image, in place of one of the same name."""

    def log_text(self, text: str, artifact_file: str) -> None:
        """Logs a text file, in place of one of the same name."""

    def run_id(self, timeout_seconds: float) -> str | None:
        """The run's id, waited for; None where there is no run yet, or never will be."""

    def close(self, status: Status, timeout_seconds: float = 60.0) -> None:
        """Makes the calls that still wait, then ends the run with this status."""


class NullWriter:
    """Writes nothing: the writer of a job that is not tracked."""

    def log_config(self, params: Mapping[str, Any]) -> None:
        """Does nothing."""

    def log_dataset(
        self,
        name: str,
        digest: str,
        source_kind: str,
        num_images: int,
        num_classes: int,
        context: Context = "train",
    ) -> None:
        """Does nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def log_checkpoint(
        self,
        name: str,
        step: int,
        files: Mapping[str, bytes],
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Does nothing."""

    def log_table(self, columns: Mapping[str, Sequence[Any]], artifact_file: str) -> None:
        """Does nothing."""

    def log_image(self, png_bytes: bytes, artifact_file: str) -> None:
        """Does nothing."""

    def log_text(self, text: str, artifact_file: str) -> None:
        """Does nothing."""

    def run_id(self, timeout_seconds: float) -> str | None:
        """None: there is no run."""
        return None

    def close(self, status: Status, timeout_seconds: float = 60.0) -> None:
        """Does nothing."""


def open_writer(
    config: TrackingConfig,
    *,
    embedded_root: Path,
    run_name: str,
    previous_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    on_run: Callable[[str], None] | None = None,
) -> Writer:
    """The writer that a config asks for.

    Runs on the driver.

    Args:
        config: the tracking section of the job's config.
        embedded_root: folder of the embedded database, where no other store is named.
        run_name: shown by MLflow.
        previous_run_id: the run to go on with; a new run is made where it is gone.
        tags: of the run, besides those of its environment and its commit.
        on_run: takes the run's id as soon as there is one, on the writer's thread.

    Raises:
        ConfigError: the store's address can never work.
    """
    if not config.enabled:
        return NullWriter()
    uri = tracking_uri(config, embedded_root)
    return RunWriter(
        config,
        uri=uri,
        experiment_artifacts=artifact_location(uri, embedded_root),
        run_name=run_name,
        previous_run_id=previous_run_id,
        tags={**(tags or {}), **nesting_tags(config)},
        on_run=on_run,
    )


@dataclass(eq=False)
class _Operation:
    what: str
    call: Callable[[_Run], None]
    num_bytes: int = 0
    attempts: int = 0
    store_answered: bool = False
    """Whether the store was in good health after the last attempt."""


class RunWriter:
    """Writes one run to MLflow. See the module's docstring for what happens in trouble.

    Runs on the driver.

    Args:
        config: its `experiment` is used.
        uri: the store's address, from `tracking_uri`.
        experiment_artifacts: where a new experiment keeps its files; "" leaves it to the store.
        run_name: shown by MLflow.
        previous_run_id: the run to reopen, where it exists in that store.
        tags: of the run, besides those of its environment and its commit.
        on_run: takes the run's id as soon as there is one, on the writer's thread.
    """

    def __init__(
        self,
        config: TrackingConfig,
        *,
        uri: str,
        experiment_artifacts: str,
        run_name: str,
        previous_run_id: str | None,
        tags: dict[str, str],
        on_run: Callable[[str], None] | None = None,
    ) -> None:
        self._uri = uri
        self._on_run = on_run
        tags = {**tags, WRITER_TAG: uuid.uuid4().hex}
        self._open: Callable[[], _Run] = lambda: _Run.open(
            uri, config.experiment, experiment_artifacts, run_name, previous_run_id, tags
        )
        self._run: _Run | None = None
        self._off = False
        self._ended = False
        self._opened = threading.Event()

        self._waiting: deque[_Operation] = deque()
        self._changed = threading.Condition()
        self._final_status: Status | None = None
        self._deadline = math.inf
        self._waiting_bytes = 0

        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def log_config(self, params: Mapping[str, Any]) -> None:
        """Logs a nested config as dotted parameters."""
        flat = flatten(params)
        self._enqueue("the config", lambda run: run.log_params(flat))

    def log_dataset(
        self,
        name: str,
        digest: str,
        source_kind: str,
        num_images: int,
        num_classes: int,
        context: Context = "train",
    ) -> None:
        """Logs a dataset as the run's input."""
        facts = {"digest": digest, "num_images": num_images, "num_classes": num_classes}
        self._enqueue(
            f"dataset {name}", lambda run: run.log_dataset(name, source_kind, facts, context)
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs the metrics of one step in one call."""
        values, now = dict(metrics), _now_milliseconds()
        self._enqueue(f"the metrics of step {step}", lambda run: run.log_metrics(values, step, now))

    def log_checkpoint(
        self,
        name: str,
        step: int,
        files: Mapping[str, bytes],
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Logs a checkpoint as a logged model with its metrics, once per name in a run."""
        contents, flat, values = dict(files), flatten(params), dict(metrics)
        now = _now_milliseconds()
        self._enqueue(
            f"checkpoint {name}",
            lambda run: run.log_checkpoint(name, step, contents, flat, values, now),
            sum(map(len, contents.values())),
        )

    def log_table(self, columns: Mapping[str, Sequence[Any]], artifact_file: str) -> None:
        """Logs a table (.json or .parquet) by column, in place of one of the same name."""
        data = {name: list(column) for name, column in columns.items()}
        self._enqueue(f"table {artifact_file}", lambda run: run.log_table(data, artifact_file))

    def log_image(self, png_bytes: bytes, artifact_file: str) -> None:
        """Logs an encoded image, in place of one of the same name."""
        self._enqueue(
            f"image {artifact_file}",
            lambda run: run.upload(png_bytes, artifact_file),
            len(png_bytes),
        )

    def log_text(self, text: str, artifact_file: str) -> None:
        """Logs a text file, in place of one of the same name."""
        data = text.encode()
        self._enqueue(
            f"text {artifact_file}", lambda run: run.upload(data, artifact_file), len(data)
        )

    def run_id(self, timeout_seconds: float) -> str | None:
        """The run's id, waited for; None where there is no run yet, or never will be."""
        self._opened.wait(timeout_seconds)
        return self._run.run_id if self._run else None

    def close(self, status: Status, timeout_seconds: float = 60.0) -> None:
        """Makes the calls that still wait, then ends the run with this status.

        Args:
            status: with which the run ends.
            timeout_seconds: after which it returns whatever still waits, with a warning.
        """
        with self._changed:
            if self._final_status:
                return
            self._final_status = status
            self._deadline = time.monotonic() + timeout_seconds
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        with self._changed:
            untracked = len(self._waiting)
            done = self._off or self._ended
            self._deadline = -math.inf
        if not done:
            logger.warning(
                "MLflow at %s did not take everything within %g s: %d operations were not tracked "
                "and the run's end is not recorded",
                redact(self._uri),
                timeout_seconds,
                untracked,
            )

    def _enqueue(self, what: str, call: Callable[[_Run], None], num_bytes: int = 0) -> None:
        with self._changed:
            if self._off or self._final_status:
                return
            if self._waiting_bytes + num_bytes > MAX_WAITING_BYTES and self._waiting_bytes:
                self._warn_once(
                    "memory",
                    f"{what} and whatever else does not fit is not tracked: "
                    f"{self._waiting_bytes} bytes already wait for MLflow",
                )
                return
            self._waiting.append(_Operation(what, call, num_bytes))
            self._waiting_bytes += num_bytes
            self._changed.notify_all()

    # The rest is called on the writer's thread.

    def _work(self) -> None:
        try:
            self._open_run()
            while (operation := self._next()) is not None:
                self._make(operation)
            if self._run and self._final_status and not self._waiting:
                self._end_run(self._run, self._final_status)
        finally:
            self._opened.set()

    def _open_run(self) -> None:
        attempts = 0
        while self._run is None and not self._off and self._time_left() > 0:
            try:
                self._run = self._open()
            except Exception as error:  # noqa: BLE001 - tracking never stops training
                attempts += 1
                if classify(error) is Failure.PERMANENT:
                    self._turn_off(error)
                else:
                    self._warn_of_outage("the run", error)
                    self._pause(attempts)
        if self._run is not None and self._on_run is not None:
            self._announce(self._run.run_id, self._on_run)
        self._opened.set()

    def _announce(self, run_id: str, on_run: Callable[[str], None]) -> None:
        try:
            on_run(run_id)
        except Exception as error:  # noqa: BLE001 - tracking never stops training
            self._warn_once("announce", f"MLflow run {run_id} is not noted: {_line(error)}")

    def _turn_off(self, error: Exception) -> None:
        with self._changed:
            self._off = True
            self._waiting.clear()
            self._waiting_bytes = 0
        self._warn_once(
            "off", f"this run is not tracked, MLflow at {redact(self._uri)} said: {_line(error)}"
        )

    def _next(self) -> _Operation | None:
        """The next operation, or None when the thread is done."""
        with self._changed:
            while not self._waiting and not self._final_status and not self._off:
                self._changed.wait()
            if self._run is None or not self._waiting or self._time_left() <= 0:
                return None
            return self._waiting[0]

    def _make(self, operation: _Operation) -> None:
        assert self._run is not None
        try:
            operation.call(self._run)
        except Exception as error:  # noqa: BLE001 - tracking never stops training
            operation.attempts += 1
            failure = classify(error)
            if failure is Failure.PERMANENT:
                self._drop(operation, error)
                return
            self._warn_of_outage(operation.what, error)
            if operation.attempts < PATIENCE or not self._run.answers():
                operation.store_answered = False
                self._pause(operation.attempts)
            # Only this operation is in trouble. An outage of the file store passes, ...
            elif failure is Failure.OUTAGE:
                self._let_others_pass(operation)
            # ... and so may one of the store have passed since: another attempt, at once, tells.
            elif not operation.store_answered:
                operation.store_answered = True
            # What fails between two answers of the store is the operation's own fault.
            else:
                self._drop(operation, error)
        else:
            self._remove(operation)

    def _remove(self, operation: _Operation) -> None:
        with self._changed:
            self._waiting.remove(operation)
            self._waiting_bytes -= operation.num_bytes

    def _drop(self, operation: _Operation, error: Exception) -> None:
        kind = f"{operation.what.split()[0]}: {type(error).__name__}"
        self._warn_once(kind, f"{operation.what} is not tracked, MLflow said: {_line(error)}")
        self._remove(operation)

    def _let_others_pass(self, operation: _Operation) -> None:
        with self._changed:
            self._waiting.rotate(-1)
            in_trouble_too = self._waiting[0].attempts >= PATIENCE
        if in_trouble_too:
            self._pause(operation.attempts)

    def _end_run(self, run: _Run, status: Status) -> None:
        end = _Operation("the run's end", lambda run: run.end(status))
        with self._changed:
            self._waiting.append(end)
        while not self._ended and self._time_left() > 0:
            self._make(end)
            self._ended = end not in self._waiting

    def _time_left(self) -> float:
        return self._deadline - time.monotonic()

    def _pause(self, attempts: int) -> None:
        """Waits before the next attempt, shorter once the job closes."""
        delay = min(LAST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (attempts - 1))
        end = time.monotonic() + delay
        with self._changed:
            while (left := min(end - time.monotonic(), self._time_left())) > 0:
                closing = self._final_status is not None
                self._changed.wait(left)
                if not closing and self._final_status:
                    return

    def _warn_of_outage(self, what: str, error: Exception) -> None:
        if self._deadline == -math.inf:
            return  # closed: what was lost has been said, and nothing is tried again
        self._warn_once(
            "outage",
            f"MLflow at {redact(self._uri)} failed on {what} and is tried again until it works; "
            f"the job goes on: {_line(error)}",
        )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", message)


class _Run:
    """The calls that make up a run; each may be made again after any failure within it."""

    def __init__(self, client: MlflowClient, experiment_id: str, run_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self.run_id = run_id
        self._times: dict[tuple[str, int], tuple[float, int]] = {}

    @classmethod
    def open(
        cls,
        uri: str,
        experiment: str,
        experiment_artifacts: str,
        run_name: str,
        previous_run_id: str | None,
        tags: Mapping[str, str],
    ) -> _Run:
        """Creates the run, or reopens the previous one."""
        client = connect(uri)
        commit = git_commit(Path(__file__).parent)
        every_tag = {
            **{f"environment.{name}": value for name, value in environment_facts().items()},
            "git.commit": commit,
            **tags,
        }
        if commit != "unknown":
            every_tag["mlflow.source.git.commit"] = commit.removesuffix("+changes")
        experiment_id = _experiment_id(client, experiment, experiment_artifacts)
        if previous_run_id:
            if _is_usable(client, previous_run_id, experiment_id):
                client.update_run(previous_run_id, status="RUNNING")
                run = cls(client, experiment_id, previous_run_id)
                run._log_batch(tags=every_tag)
                return run
            every_tag["previous_run_id"] = previous_run_id
        run_id = client.create_run(experiment_id, run_name=run_name, tags=every_tag).info.run_id
        # An attempt whose answer was lost on the way has created a run as well.
        of_writer = f"tags.{WRITER_TAG} = '{tags[WRITER_TAG]}'"
        for created in client.search_runs([experiment_id], of_writer):
            if created.info.run_id != run_id:
                client.delete_run(created.info.run_id)
        return cls(client, experiment_id, run_id)

    def answers(self) -> bool:
        """Whether the store answers a plain question about the run."""
        try:
            self._client.get_run(self.run_id)
        except Exception:  # noqa: BLE001 - any failure is the answer
            return False
        return True

    def end(self, status: Status) -> None:
        self._client.set_terminated(self.run_id, status=status)

    def log_params(self, params: Mapping[str, str]) -> None:
        present = self._client.get_run(self.run_id).data.params
        self._log_batch(
            params={key: value for key, value in params.items() if key not in present},
            tags={
                f"resumed.{key}": value
                for key, value in params.items()
                if present.get(key, value) != value
            },
        )

    def log_dataset(
        self, name: str, source_kind: str, facts: Mapping[str, Any], context: Context
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest = str(facts["digest"])
        dataset = Dataset(
            name=name,
            digest=digest.removeprefix("sha256:")[:16],  # MLflow allows 36 characters
            source_type=source_kind,
            source=json.dumps({"kind": source_kind, "digest": digest}),
            profile=json.dumps(dict(facts)),
        )
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, [tag])])
        self._log_batch(tags={f"dataset.{context}.digest": digest})

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, now: int, model_id: str | None = None
    ) -> None:
        from mlflow.entities import Metric

        points = []
        for key, value in metrics.items():
            # MLflow adds a model's metrics to the run's: with the time of the point that is
            # already there they are one point, not two.
            known, timestamp = self._times.get((key, step), (math.nan, now))
            if known != value:
                timestamp = now
            self._times[key, step] = value, timestamp
            points.append(Metric(key, float(value), timestamp, step, model_id=model_id))
        self._client.log_batch(self.run_id, metrics=points, synchronous=True)

    def log_checkpoint(
        self,
        name: str,
        step: int,
        files: Mapping[str, bytes],
        params: Mapping[str, str],
        metrics: Mapping[str, float],
        now: int,
    ) -> None:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        model = self._find_checkpoint(name) or self._client.create_logged_model(
            self._experiment_id,
            name=name,
            source_run_id=self.run_id,
            tags={STEP_TAG: str(step)},
            params=dict(params),
            model_type="checkpoint",
        )
        if model.status == LoggedModelStatus.READY:
            return
        # READY is set last, so a model that is not yet READY is completed by the next attempt.
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                file = Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            self._client.log_model_artifacts(model.model_id, folder)
        self.log_metrics(metrics, step, now, model.model_id)
        outputs = self._client.get_run(self.run_id).outputs
        if model.model_id not in [output.model_id for output in outputs.model_outputs]:
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
        self._client.finalize_logged_model(model.model_id, "READY")

    def _find_checkpoint(self, name: str) -> LoggedModel | None:
        quoted = name.replace("'", "")  # MLflow refuses to create a name with a quote
        found = self._client.search_logged_models(
            experiment_ids=[self._experiment_id],
            filter_string=f"source_run_id = '{self.run_id}' AND name = '{quoted}'",
            max_results=1,
        )
        return found[0] if found else None

    def log_table(self, columns: dict[str, list[Any]], artifact_file: str) -> None:
        import pandas as pd

        folder = str(PurePosixPath(artifact_file).parent)
        present = self._client.list_artifacts(self.run_id, None if folder == "." else folder)
        if artifact_file not in [file.path for file in present]:
            self._client.log_table(self.run_id, columns, artifact_file)
            return
        # log_table would append the rows to those of the attempt, or of the run, before.
        frame = pd.DataFrame(columns)
        if artifact_file.endswith(".parquet"):
            self.upload(frame.to_parquet(index=False), artifact_file)
        else:
            table = frame.to_json(orient="split", index=False, date_format="iso")
            self.upload(table.encode(), artifact_file)

    def upload(self, data: bytes, artifact_file: str) -> None:
        path = PurePosixPath(artifact_file)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, path.name)
            file.write_bytes(data)
            parent = None if str(path.parent) == "." else str(path.parent)
            self._client.log_artifact(self.run_id, str(file), parent)

    def _log_batch(
        self, params: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        from mlflow.entities import Param, RunTag

        self._client.log_batch(
            self.run_id,
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in (tags or {}).items()],
            synchronous=True,
        )


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and texts of a length that MLflow takes."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        else:
            text = json.dumps(value) if isinstance(value, (list, tuple)) else str(value)
            is_long = len(text) > MAX_VALUE_LENGTH
            flat[key] = f"{text[: MAX_VALUE_LENGTH - 3]}..." if is_long else text
    return flat


def _experiment_id(client: MlflowClient, name: str, artifacts: str) -> str:
    from mlflow.exceptions import MlflowException

    if (experiment := client.get_experiment_by_name(name)) is None:
        try:
            # The kind makes MLflow's pages speak of runs and models, not of prompts and agents.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return str(
                client.create_experiment(name, artifact_location=artifacts or None, tags=kind)
            )
        except MlflowException as error:
            # Another job may have created it in between.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id)


def _is_usable(client: MlflowClient, run_id: str, experiment_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
    return bool(info.lifecycle_stage == "active" and info.experiment_id == experiment_id)


def _now_milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _line(error: Exception) -> str:
    """An error in one line of bearable length, without passwords."""
    text = redact(" ".join(str(error).split())) or "no message"
    return f"{type(error).__name__}: {text[:300]}"
