"""A search on two nodes: what a fault loses is the trials in flight, and no number differs."""

import json
import signal

import pytest
from mlflow import MlflowClient

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.load import load_splits
from tests.runtime.test_search_job import MARGIN, margin_space
from tests.runtime.untrained_models import untrained

from .lab import wait_for

STEADY = (*MARGIN, "--max-concurrent", "2")
VALUES = [0.0, 0.5, 1.0]


def begun(folder):
    """A folder with models and a space of three margins."""
    data = DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100)
    untrained(folder, load_splits(data).train)
    margin_space(folder, ", ".join(map(str, VALUES)))
    return folder


def trials(folder):
    return {
        path: path.stat().st_mtime_ns for path in folder.glob("runs/search/trial-*/manifest.json")
    }


def numbers(folder):
    """Each value's metrics."""
    found = {}
    for path in trials(folder):
        facts = json.loads(path.read_text())["facts"]
        found[facts["value"]] = facts["metrics"]
    return found


@pytest.fixture(scope="module")
def undisturbed(lab, tmp_path_factory):
    folder = begun(tmp_path_factory.mktemp("undisturbed"))
    lab.ended(folder, *STEADY, job="tune_margin")
    found = numbers(folder)
    assert sorted(found) == VALUES
    return found


def under_way(lab, folder):
    job = lab.job(folder, *STEADY, job="tune_margin")
    wait_for(lambda: trials(folder) or job.poll() is not None, "first trial", seconds=240)
    assert job.poll() is None, job.communicate()[0]
    return job


def assert_no_run_goes_on(folder):
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("cdvae").experiment_id
    assert all(run.info.status != "RUNNING" for run in client.search_runs([experiment]))


def test_a_node_cut_off_and_back_costs_its_trial_in_flight(lab, undisturbed, tmp_path, fault):
    job = under_way(lab, begun(tmp_path))
    before = trials(tmp_path)
    lab.workers[1].unplug()
    fault.strikes()
    wait_for(lambda: lab.head.alive_nodes() == 2, "loss of a node")
    lab.workers[1].plug()
    fault.ends()
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    fault.lost("nothing but time")
    if len(trials(tmp_path)) < len(VALUES):
        # Its trial counts as failed; the same command tries it again, and no other.
        output = lab.ended(tmp_path, *STEADY, job="tune_margin")
        fault.lost("the trial in flight on that node; the same command again tries it again")
    fault.recovered()
    after = trials(tmp_path)
    assert all(after[path] == written for path, written in before.items())
    assert numbers(tmp_path) == undisturbed
    assert_no_run_goes_on(tmp_path)
    lab.wait_for_nodes(3)


def test_a_restarted_head_costs_the_trials_in_flight(lab, undisturbed, tmp_path, fault):
    job = under_way(lab, begun(tmp_path))
    fault.strikes()
    lab.restart()
    fault.ends()
    assert job.returncode != 0
    before = trials(tmp_path)
    output = lab.ended(tmp_path, *STEADY, job="tune_margin", timeout=400)
    fault.recovered()
    assert f"{len(before)} trials are there, {len(VALUES) - len(before)} to run" in output
    fault.lost("the trials in flight; the job is submitted again")
    after = trials(tmp_path)
    assert all(after[path] == written for path, written in before.items())
    assert numbers(tmp_path) == undisturbed


def test_a_killed_worker_of_a_trial_costs_an_epoch(lab, undisturbed, tmp_path, fault):
    job = under_way(lab, begun(tmp_path))
    before = trials(tmp_path)
    workers = wait_for(lab.train_workers, "a trial in training")
    place, process = workers[0]
    place.signal(signal.SIGKILL, process)
    fault.strikes()
    output, _ = job.communicate(timeout=300)
    fault.recovered()
    assert job.returncode == 0, output
    fault.lost("the epoch in flight of that trial")
    after = trials(tmp_path)
    assert all(after[path] == written for path, written in before.items())
    assert numbers(tmp_path) == undisturbed
    assert_no_run_goes_on(tmp_path)


def test_full_storage_ends_a_search_and_the_same_command_goes_on(lab, undisturbed, tmp_path, fault):
    storage = lab.storage / tmp_path.name
    (tmp_path / "runs").symlink_to(storage)
    begun(tmp_path)
    job = lab.job(tmp_path, *STEADY, "--storage", storage, job="tune_margin")
    wait_for(lambda: trials(tmp_path) or job.poll() is not None, "first trial", seconds=240)
    fault.strikes()
    with lab.storage_trouble("full"):
        output, _ = job.communicate(timeout=240)
    fault.ends()
    before = trials(tmp_path)
    assert len(before) < len(VALUES)
    # Trials fail one by one; a search with a finished one goes on to its table, which has no room.
    assert job.returncode == 1, output
    assert "No space left" in output
    output = lab.ended(tmp_path, *STEADY, "--storage", storage, job="tune_margin")
    fault.recovered()
    assert f"{len(before)} trials are there, {len(VALUES) - len(before)} to run" in output
    fault.lost("the trials in flight; the same command again")
    assert numbers(tmp_path) == undisturbed
