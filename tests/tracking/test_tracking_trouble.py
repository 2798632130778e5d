"""Trouble with the store never stops, blocks or floods a job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests

from cdvae_ray.tracking import writer as writing
from cdvae_ray.tracking.client import Failure, classify, connect


class Flaky:
    """An MLflow client whose calls fail as a plan says."""

    def __init__(self, client: Any, fail: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._client, self._fail = client, fail

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._fail(name, args)
            return method(*args, **kwargs)

        return call


@pytest.fixture
def break_store(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the store's calls fail as a function of name and arguments says, with short pauses."""

    def install(fail: Callable[[str, tuple[Any, ...]], None]) -> None:
        monkeypatch.setattr(writing, "connect", lambda uri: Flaky(connect(uri), fail))
        monkeypatch.setattr(writing, "FIRST_DELAY_SECONDS", 0.01)
        monkeypatch.setattr(writing, "LAST_DELAY_SECONDS", 0.05)

    return install


def _mlflow_error(code: str) -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2

    return MlflowException("told so", error_code=getattr(databricks_pb2, code))


@pytest.mark.parametrize("kind", ["connection", "TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR"])
def test_an_outage_loses_nothing_and_warns_once(
    kind: str,
    break_store: Any,
    make_writer: Any,
    client: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    down, failed = threading.Event(), 0
    error = requests.ConnectionError("refused") if kind == "connection" else _mlflow_error(kind)

    def fail(name: str, args: tuple[Any, ...]) -> None:
        nonlocal failed
        # Down from the start for 3 calls, later for as long as the event says.
        if failed < 3 or down.is_set():
            failed += 1
            raise error

    break_store(fail)
    writer = make_writer()
    run_id = writer.run_id(60)
    assert failed == 3
    down.set()
    writer.log_config({"a": 1})
    for step in range(5):
        writer.log_metrics({"loss": float(step)}, step)
    writer.log_checkpoint("epoch-0", 4, {"a": b"0"}, {}, {"loss": 4.0})
    time.sleep(0.5)
    assert failed > writing.PATIENCE
    down.clear()
    writer.close("FINISHED")

    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"a": "1"}
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [0, 1, 2, 3, 4]
    assert len(run.outputs.model_outputs) == 1
    assert len(caplog.records) == 1, caplog.messages
    assert "tried again until it works" in caplog.messages[0]


def test_an_outage_that_passes_while_the_store_is_asked_loses_nothing(
    break_store: Any, make_writer: Any, client: Any
) -> None:
    failed = 0

    def fail(name: str, args: tuple[Any, ...]) -> None:
        nonlocal failed
        # Down for as long as the writer is patient; then it asks the store, which is just back.
        if name == "log_batch" and failed < writing.PATIENCE:
            failed += 1
            raise _mlflow_error("INTERNAL_ERROR")

    break_store(fail)
    writer = make_writer()
    writer.log_metrics({"loss": 1.0}, 0)
    writer.close("FINISHED")
    assert failed == writing.PATIENCE
    assert client.get_run(writer.run_id(0)).data.metrics == {"loss": 1.0}


def test_a_run_whose_creation_was_not_answered_is_not_doubled(
    monkeypatch: pytest.MonkeyPatch, break_store: Any, make_writer: Any, client: Any
) -> None:
    lost = 2

    def connect_and_lose(uri: str) -> Any:
        connected = connect(uri)
        create = connected.create_run

        def create_run(*args: Any, **kwargs: Any) -> Any:
            nonlocal lost
            created = create(*args, **kwargs)
            if lost:
                lost -= 1
                raise requests.ConnectionError("reset after the server had done its work")
            return created

        monkeypatch.setattr(connected, "create_run", create_run)
        return connected

    break_store(lambda name, args: None)
    monkeypatch.setattr(writing, "connect", connect_and_lose)
    writer = make_writer(experiment="answers that are lost")
    writer.log_metrics({"loss": 1.0}, 0)
    writer.close("FINISHED")
    assert lost == 0
    experiment = client.get_experiment_by_name("answers that are lost")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [writer.run_id(0)]
    assert runs[0].info.status == "FINISHED" and runs[0].data.metrics == {"loss": 1.0}


def test_an_operation_interrupted_half_way_is_not_doubled(
    break_store: Any, make_writer: Any, client: Any
) -> None:
    left = {"log_model_artifacts": 2, "log_outputs": 1, "finalize_logged_model": 2, "log_table": 1}

    def fail(name: str, args: tuple[Any, ...]) -> None:
        if left.get(name, 0) > 0:
            left[name] -= 1
            raise requests.ConnectionError("reset")

    break_store(fail)
    writer = make_writer()
    writer.log_metrics({"loss": 1.0}, 0)
    writer.log_checkpoint("epoch-0", 0, {"a": b"0"}, {}, {"loss": 1.0})
    writer.log_table({"a": [1]}, "table.json")
    writer.close("FINISHED")
    run = client.get_run(writer.run_id(0))
    assert not any(left.values())
    models = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    assert len(models) == len(run.outputs.model_outputs) == 1
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1


def test_what_can_never_work_is_dropped_with_one_warning_a_kind(
    make_writer: Any, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make_writer()
    writer.log_metrics({"loss": "a word"}, 0)  # type: ignore[dict-item]
    writer.log_metrics({"loss": "another"}, 1)  # type: ignore[dict-item]
    writer.log_checkpoint("not/a:name", 0, {}, {}, {})
    writer.log_metrics({"loss": 0.5}, 2)
    writer.close("FINISHED")
    run = client.get_run(writer.run_id(0))
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 0.5}
    assert len(caplog.records) == 2, caplog.messages
    assert "the metrics of step 0 is not tracked" in caplog.messages[0]
    assert "checkpoint not/a:name" in caplog.messages[1]


@pytest.mark.parametrize(("kind", "is_kept"), [("outage", True), ("unclear", False)])
def test_one_operation_in_trouble_lets_the_others_pass(
    kind: str, is_kept: bool, break_store: Any, make_writer: Any, client: Any
) -> None:
    broken = threading.Event()
    broken.set()
    error = requests.ConnectionError("x") if kind == "outage" else _mlflow_error("INTERNAL_ERROR")

    def fail(name: str, args: tuple[Any, ...]) -> None:
        if name == "log_artifact" and broken.is_set():
            raise error

    break_store(fail)
    writer = make_writer()
    writer.log_text("x", "text.txt")
    writer.log_metrics({"loss": 1.0}, 0)
    run_id = writer.run_id(60)
    deadline = time.monotonic() + 20
    while not client.get_run(run_id).data.metrics and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.get_run(run_id).data.metrics == {"loss": 1.0}
    broken.clear()
    writer.close("FINISHED")
    assert [file.path for file in client.list_artifacts(run_id)] == ["text.txt"] * is_kept
    assert client.get_run(run_id).info.status == "FINISHED"


def test_an_unreachable_server_is_given_up_at_close_with_one_line(
    make_writer: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = make_writer(uri="http://user:word@127.0.0.1:9")
    writer.log_config({"a": 1})
    for step in range(100):
        writer.log_metrics({"loss": 1.0}, step)
    writer.log_checkpoint("epoch-0", 0, {"a": bytes(10_000_000)}, {}, {})
    assert writer.run_id(0.1) is None

    writer.close("FINISHED", timeout_seconds=2)
    at_close = [message for message in caplog.messages if "did not take everything" in message]
    assert len(at_close) == 1 and "102 operations were not tracked" in at_close[0]
    assert len(caplog.records) <= 2 and "word" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err
    writer.log_metrics({"loss": 1.0}, 0)  # does nothing after close
    writer.close("FINISHED", timeout_seconds=2)


def test_a_closed_writer_says_nothing_more(
    break_store: Any, make_writer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer, answered = threading.Event(), threading.Event()

    def hang(name: str, args: tuple[Any, ...]) -> None:
        answer.wait(120)
        answered.set()
        raise ConnectionError("too late")

    break_store(hang)
    writer = make_writer()
    writer.log_metrics({"loss": 1.0}, 0)
    writer.close("FINISHED", timeout_seconds=0.2)
    assert len(caplog.records) == 1  # of the close
    answer.set()
    assert answered.wait(120)
    writer._thread.join(120)
    assert len(caplog.records) == 1


def test_no_call_waits_for_the_servers_answer(
    break_store: Any, make_writer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = threading.Event()
    waited_in_vain: list[str] = []

    def hang(name: str, args: tuple[Any, ...]) -> None:
        if not answer.wait(120):
            waited_in_vain.append(name)

    break_store(hang)
    writer = make_writer()
    writer.log_config({"a": 1})
    for step in range(100):
        writer.log_metrics({"loss": 1.0}, step)
    writer.log_checkpoint("epoch-0", 0, {"a": bytes(10_000_000)}, {}, {})
    assert writer.run_id(0.1) is None
    writer.close("FINISHED", timeout_seconds=0.2)
    assert not waited_in_vain and "did not take everything within 0.2 s" in caplog.text
    answer.set()


def test_a_run_that_cannot_be_created_turns_tracking_off(
    break_store: Any, make_writer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str, args: tuple[Any, ...]) -> None:
        raise _mlflow_error("PERMISSION_DENIED")

    break_store(fail)
    writer = make_writer()
    writer.log_metrics({"loss": 1.0}, 0)
    assert writer.run_id(60) is None
    writer.log_metrics({"loss": 1.0}, 1)
    writer.close("FINISHED", timeout_seconds=3600)  # waits for nothing
    assert len(caplog.records) == 1 and "this run is not tracked" in caplog.text


def test_what_waits_in_memory_is_bounded(
    break_store: Any,
    make_writer: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()

    def hang(name: str, args: tuple[Any, ...]) -> None:
        gate.wait(30)

    break_store(hang)
    monkeypatch.setattr(writing, "MAX_WAITING_BYTES", 100)
    writer = make_writer()
    for name in ("a", "b", "c"):
        writer.log_text("x" * 80, f"{name}.txt")
    assert len(caplog.records) == 1 and "text b.txt" in caplog.text
    gate.set()
    writer.close("FINISHED")


def test_failures_are_told_apart() -> None:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    def http(status: int) -> Exception:
        response = requests.Response()
        response.status_code = status
        return requests.HTTPError(response=response)

    def wrapped(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except OSError as error:
                raise MlflowException(f"API request failed: {error}")  # noqa: B904 - as MLflow does
        except MlflowException as outer:
            return outer

    locked = OperationalError("insert", {}, Exception("database is locked"))
    expected = {
        Failure.OUTAGE: [
            requests.ConnectionError(),
            requests.Timeout(),
            ConnectionResetError(),
            locked,
            http(503),
            http(429),
            wrapped(requests.ConnectionError()),
            _mlflow_error("TEMPORARILY_UNAVAILABLE"),
        ],
        Failure.UNCLEAR: [
            _mlflow_error("INTERNAL_ERROR"),
            OSError(),
            http(500),
            wrapped(requests.exceptions.RetryError("too many 500 error responses")),
        ],
        Failure.PERMANENT: [
            _mlflow_error("INVALID_PARAMETER_VALUE"),
            _mlflow_error("PERMISSION_DENIED"),
            http(403),
            ValueError(),
            requests.exceptions.InvalidURL(),
            ModuleNotFoundError("boto3"),
        ],
    }
    for failure, errors in expected.items():
        for error in errors:
            assert classify(error) is failure, error
