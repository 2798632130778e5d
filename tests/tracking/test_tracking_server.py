"""A real MLflow server on a real PostgreSQL: many runs at once, and processes that are killed.

Every run is written by our own writer; a plain client reads back what the server has.
CDVAE_OUTAGE_SECONDS sets how long the killed processes stay down; --log-cli-level=INFO shows the
counts.
"""

from __future__ import annotations

import io
import json
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.tracking import Writer, open_writer
from cdvae_ray.tracking import client as tracking_client
from tests.tracking.server import TrackingServer, what_is_missing

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]

METRICS = ("loss", "reconstruction", "kl", "classification", "accuracy", "learning_rate")
TABLE: dict[str, list[Any]] = {"class": ["cat", "dog"], "images": [5, 7], "accuracy": [0.375, 0.75]}
OUTAGE_SECONDS = float(os.environ.get("CDVAE_OUTAGE_SECONDS", "8"))

logger = logging.getLogger(__name__)


def value(run: int, name: str, step: int) -> float:
    """A metric's value that needs every digit and that no other run, metric or step has."""
    return math.sqrt(2 + run + 100 * METRICS.index(name)) * math.exp(-step / 50)


def metrics(run: int, step: int) -> dict[str, float]:
    return {name: value(run, name, step) for name in METRICS}


def png(run: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), (run, 2 * run, 3 * run)).save(file, "PNG")
    return file.getvalue()


def opened(uri: str, experiment: str, run: int, folder: Path) -> Writer:
    return open_writer(
        TrackingConfig(experiment=experiment, uri=uri),
        embedded_root=folder,
        run_name=f"run-{run}",
    )


def write_runs(uri: str, experiment: str, runs: list[int], num_steps: int, folder: str) -> None:
    """Writes some runs at the same time, from a process of its own."""
    writers = {run: opened(uri, experiment, run, Path(folder)) for run in runs}
    for run, writer in writers.items():
        writer.log_config({"run": run, "model": {"width": 64}})
    for step in range(num_steps):
        for run, writer in writers.items():
            writer.log_metrics(metrics(run, step), step)
    for run, writer in writers.items():
        writer.log_table(TABLE, "tables/classes.json")
        writer.log_image(png(run), "images/run.png")
    for writer in writers.values():
        writer.close("FINISHED", timeout_seconds=900)


def stored(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    """Every step and value that the store has of a metric, in order of the steps."""
    history = client.get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in history)


def expect_whole(client: Any, run: int, found: Any, num_steps: int) -> int:
    """Checks that a run has ended and has each value once, and counts the values."""
    assert found.info.status == "FINISHED", (run, found.info)
    count = 0
    for name in METRICS:
        points = stored(client, found.info.run_id, name)
        assert points == [(step, value(run, name, step)) for step in range(num_steps)], (run, name)
        assert found.data.metrics[name] == value(run, name, num_steps - 1)
        count += len(points)
    return count


def expect_files(client: Any, run: int, found: Any, folder: Path) -> None:
    """Checks that a run's files come back, through the server, as they were written."""
    assert found.info.artifact_uri.startswith("mlflow-artifacts:")
    run_id = found.info.run_id
    rows = [list(row) for row in zip(*TABLE.values(), strict=True)]
    table = json.loads(
        Path(client.download_artifacts(run_id, "tables", folder))
        .joinpath("classes.json")
        .read_text()
    )
    assert table == {"columns": list(TABLE), "data": rows}
    image = Path(client.download_artifacts(run_id, "images/run.png", folder))
    assert image.read_bytes() == png(run)


def runs_by_name(client: Any, experiment: str) -> dict[str, Any]:
    """The runs of an experiment, of which no two have the same name."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], max_results=1000)
    named = {run.info.run_name: run for run in runs}
    assert len(named) == len(runs), [run.info.run_name for run in runs]
    return named


@pytest.fixture(scope="module")
def server() -> Iterator[TrackingServer]:
    if missing := what_is_missing():
        pytest.skip(missing)
    with TrackingServer() as running:
        yield running


@pytest.fixture
def reader(server: TrackingServer) -> Any:
    return tracking_client.connect(server.uri)


def test_24_concurrent_runs_lose_no_value_and_no_file(
    server: TrackingServer, reader: Any, tmp_path: Path
) -> None:
    num_processes, runs_each, num_steps = 4, 6, 100
    runs = list(range(num_processes * runs_each))
    start = time.monotonic()
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                write_runs, server.uri, "many", runs[i::num_processes], num_steps, str(tmp_path)
            )
            for i in range(num_processes)
        ]
        for job in jobs:
            job.result()
    seconds = time.monotonic() - start

    found = runs_by_name(reader, "many")
    assert sorted(found) == sorted(f"run-{run}" for run in runs)
    count = 0
    for run in runs:
        of_run = found[f"run-{run}"]
        assert of_run.data.params == {"run": str(run), "model.width": "64"}
        count += expect_whole(reader, run, of_run, num_steps)
        folder = tmp_path / f"run-{run}"
        folder.mkdir()
        expect_files(reader, run, of_run, folder)
    assert count == 24 * 100 * 6
    assert len([path for path in server.artifacts.rglob("*") if path.is_file()]) == 2 * len(runs)
    logger.info("%d of %d values found, written in %.0f s", count, 24 * 100 * 6, seconds)


@pytest.mark.parametrize("killed", ["server", "database", "server and database"])
def test_a_kill_in_the_middle_of_writing_loses_and_doubles_nothing(
    killed: str,
    server: TrackingServer,
    reader: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    num_before, num_steps = 150, 200
    writers = {run: opened(server.uri, killed, run, tmp_path) for run in range(4)}
    run_ids = {run: writer.run_id(120) for run, writer in writers.items()}
    seconds_in_calls = 0.0

    def log_steps(first: int, last: int) -> None:
        nonlocal seconds_in_calls
        start = time.monotonic()
        for step in range(first, last):
            for run, writer in writers.items():
                writer.log_metrics(metrics(run, step), step)
        seconds_in_calls += time.monotonic() - start

    log_steps(0, num_before)
    for run, writer in writers.items():
        writer.log_checkpoint("before", num_before, {"model": bytes([run]) * 1000}, {}, {})
    while any(len(stored(reader, run_id, "loss")) < 10 for run_id in run_ids.values()):
        time.sleep(0.05)
    if "server" in killed:
        server.kill_server()
    if "database" in killed:
        server.kill_database()
    down_since = time.monotonic()

    # A run that is opened while nothing answers.
    writers[4] = opened(server.uri, killed, 4, tmp_path)
    for step in range(num_before):
        writers[4].log_metrics(metrics(4, step), step)
    for step in range(num_before, num_steps - 10):
        log_steps(step, step + 1)
        time.sleep(OUTAGE_SECONDS / (num_steps - 10 - num_before))
    for run, writer in writers.items():
        writer.log_table(TABLE, "tables/classes.json")
        writer.log_image(png(run), "images/run.png")
        writer.log_checkpoint("during", num_steps, {"model": bytes([run]) * 1000}, {}, {})
    seconds_down = time.monotonic() - down_since
    assert seconds_in_calls < seconds_down / 2

    if "database" in killed:
        server.start_database()
    if "server" in killed:
        server.start_server()
    log_steps(num_steps - 10, num_steps)
    with ThreadPoolExecutor(len(writers)) as pool:
        for closing in [
            pool.submit(writer.close, "FINISHED", timeout_seconds=600)
            for writer in writers.values()
        ]:
            closing.result()

    found = runs_by_name(reader, killed)
    assert len(found) == len(writers)
    count = 0
    for run, writer in writers.items():
        of_run = found[f"run-{run}"]
        assert of_run.info.run_id == writer.run_id(0)
        count += expect_whole(reader, run, of_run, num_steps)
        folder = tmp_path / f"run-{run}"
        folder.mkdir()
        expect_files(reader, run, of_run, folder)
        models = reader.search_logged_models(
            [of_run.info.experiment_id], f"source_run_id = '{of_run.info.run_id}'"
        )
        names = ["before", "during"] if run < 4 else ["during"]
        assert sorted(model.name for model in models) == names
        assert {str(model.status) for model in models} == {"READY"}
    assert count == len(writers) * len(METRICS) * num_steps
    ours = [entry for entry in caplog.records if entry.name == "cdvae_ray.tracking"]
    assert len(ours) == len(writers), caplog.messages
    assert all("tried again until it works" in entry.getMessage() for entry in ours)
    logger.info(
        "%d of %d values found after %.0f s without %s; the calls took %.2f s in all",
        count,
        len(writers) * len(METRICS) * num_steps,
        seconds_down,
        killed,
        seconds_in_calls,
    )
