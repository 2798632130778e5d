"""Searches on a real cluster: trials are nested runs, none is made twice, a failure stops none."""

import json
import os
import signal
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.load import load_splits

from .conftest import ROOT, kill, summary, wait_for
from .untrained_models import untrained

pytestmark = pytest.mark.jobs

SPACE = """
parameter = "{parameter}"
values = [{values}]
low = {low}
high = {high}
num_samples = 3
[metrics]
{metrics}
"""
MARGIN = (
    *("smoke", "--cdvae", "cdvae", "--classifier", "classifier", "--space", "space.toml"),
    *("--resources.cpus-per-worker", "1", "--pool.cpus-per-worker", "1", "--epochs", "1"),
)
GAMMA = (
    *("smoke", "--classifier", "classifier", "--space", "space.toml"),
    *("--resources.cpus-per-worker", "1", "--pool.cpus-per-worker", "1"),
)


def margin_space(folder, values):
    metrics = 'accuracy = "max"\nattacked_accuracy = "max"'
    text = SPACE.format(parameter="margin", values=values, low=-1, high=1, metrics=metrics)
    (folder / "space.toml").write_text(text)


@pytest.fixture(scope="module")
def digits():
    return load_splits(DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100))


@pytest.fixture(scope="module")
def searched(cluster, digits, tmp_path_factory):
    """A search for two margins, its folder and its output."""
    folder = tmp_path_factory.mktemp("search")
    untrained(folder, digits.train)
    margin_space(folder, "0.0, 1.0")
    done = cluster.train(
        folder, *MARGIN, "--max-concurrent", "2", "--summary", "first.json", job="tune_margin"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_every_value_is_a_finished_trial_with_numbers_and_a_picture(searched):
    folder, output = searched
    assert "on the Pareto front" in output
    (report,) = (folder / "runs/search").glob("report-*")
    trials = json.loads((report / "trials.json").read_text())
    assert trials["margin"] == [0.0, 1.0]
    assert trials["state"] == ["finished", "finished"]
    assert any(trials["on_pareto_front"])
    for low, value, high in zip(
        trials["accuracy_low"], trials["accuracy"], trials["accuracy_high"], strict=True
    ):
        assert low <= value <= high
    assert (report / "figure-4.png").stat().st_size > 5_000


def test_mlflow_shows_the_search_with_its_trials_nested_in_it(searched):
    folder, _ = searched
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    parent = client.get_run(summary(folder / "first.json")["run_id"])
    runs = client.search_runs([parent.info.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(float(run.data.params["margin"]) for run in trials) == [0.0, 1.0]
    for trial in trials:
        assert {"accuracy", "attacked_accuracy", "train_accuracy"} <= set(trial.data.metrics)
        trainings = [
            run for run in runs if run.data.tags.get("mlflow.parentRunId") == trial.info.run_id
        ]
        assert [run.data.tags["job"] for run in trainings] == ["finetune_adversarial"]


def test_finished_trials_are_not_run_again(cluster, searched):
    folder, _ = searched
    margin_space(folder, "0.0, 0.5, 0.75, 1.0")
    before = set((folder / "runs/train").iterdir())
    first = cluster.train(
        folder, *MARGIN, "--max-concurrent", "2", "--summary", "second.json", job="tune_margin"
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 trials are there, 2 to run" in first.stdout
    assert len(set((folder / "runs/train").iterdir()) - before) == 2
    again = cluster.train(folder, *MARGIN, job="tune_margin")
    assert "4 trials are there, 0 to run" in again.stdout


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_killed_search_goes_on_and_a_failed_trial_stops_no_other(cluster, digits, tmp_path):
    untrained(tmp_path, digits.train)
    metrics = 'class_essential_accuracy = "max"\nreconstruction_accuracy = "max"'
    # The loss of the last one is not finite.
    text = SPACE.format(parameter="gamma", values="0.02, 2.0, 1e38", low=1, high=2, metrics=metrics)
    (tmp_path / "space.toml").write_text(text)
    job = cluster.start(tmp_path, *GAMMA, job="tune_gamma")
    trials = tmp_path / "runs/search"
    wait_for(lambda: next(iter(trials.glob("trial-*/manifest.json")), None), "a trial", seconds=400)
    kill(job)
    job.communicate(timeout=300)
    first = {each: each.stat().st_mtime_ns for each in trials.glob("trial-*/manifest.json")}
    done = cluster.train(tmp_path, *GAMMA, job="tune_gamma", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(first)} trials are there, {3 - len(first)} to run" in done.stdout
    assert all(each.stat().st_mtime_ns == written for each, written in first.items())
    assert "gamma = 1e+38 failed" in done.stdout
    assert "loss" in done.stdout
    (report,) = trials.glob("report-*")
    states = json.loads((report / "trials.json").read_text())["state"]
    assert states == ["finished", "finished", "failed"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("cdvae").experiment_id
    ended = [run.info.status for run in client.search_runs([experiment])]
    assert ended.count("FAILED") >= 1


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_an_interrupted_search_ends_as_one_and_goes_on_later(cluster, digits, tmp_path):
    untrained(tmp_path, digits.train)
    margin_space(tmp_path, "0.0, 1.0")
    job = cluster.start(tmp_path, *MARGIN, "--summary", "s.json", job="tune_margin")
    trials = tmp_path / "runs/search"
    wait_for(lambda: next(iter(trials.glob("trial-*/manifest.json")), None), "a trial", seconds=400)
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 130, output
    assert "interrupted" in output
    assert not (tmp_path / "s.json").exists()
    assert not list(trials.glob("report-*"))
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("cdvae").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    done = cluster.train(tmp_path, *MARGIN, job="tune_margin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 trials are there, 1 to run" in done.stdout


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_stopped_trials_give_their_places_back_where_no_dashboard_is(digits, tmp_path):
    untrained(tmp_path, digits.train)
    margin_space(tmp_path, "1.0, 0.5, -0.5")
    stopping = ("--epochs", "3", "--scheduler", "asha", "--grace-epochs", "1")
    # As many CPUs as one trial takes: the next one waits for those of the one that is stopped.
    places = str(os.cpu_count() or 1)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.runtime.ranked_margin_search"),
            *(*MARGIN[:-2], *stopping, "--max-concurrent", "1"),
            *("--resources.cpus-per-worker", places),
        ],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = (tmp_path / "runs/search").glob("report-*")
    states = json.loads((report / "trials.json").read_text())["state"]
    assert sorted(states) == ["finished", "stopped", "stopped"]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_sampled_search_goes_on_from_its_trials_and_stopped_ones_leave_no_run_running(
    cluster, digits, tmp_path
):
    untrained(tmp_path, digits.train)
    margin_space(tmp_path, "0.0")
    sampled = (*MARGIN, "--strategy", "optuna")
    for wanted, line in ((2, "0 trials are there, 2 to run"), (3, "2 trials are there, 1 to run")):
        done = cluster.train(tmp_path, *sampled, "--num-samples", str(wanted), job="tune_margin")
        assert done.returncode == 0, done.stdout + done.stderr
        assert line in done.stdout
    values = {
        json.loads(each.read_text())["facts"]["value"]
        for each in (tmp_path / "runs/search").glob("trial-*/manifest.json")
    }
    assert len(values) == 3
    assert all(-1 <= value <= 1 for value in values)
    margin_space(tmp_path, "1.0, 0.5, -0.5")
    stopping = ("--epochs", "3", "--scheduler", "asha", "--grace-epochs", "1")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.runtime.ranked_margin_search"),
            *(*MARGIN[:-2], *stopping, "--max-concurrent", "1"),
        ],
        cwd=tmp_path,
        env=cluster.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reports = sorted(
        (tmp_path / "runs/search").glob("report-*"), key=lambda each: each.stat().st_mtime
    )
    states = json.loads((reports[-1] / "trials.json").read_text())["state"]
    # The first one's epochs are the best, so that no later trial passes the first rung.
    assert sorted(states) == ["finished", "stopped", "stopped"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("cdvae").experiment_id
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}
