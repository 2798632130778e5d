"""Training on two nodes: what a fault loses is the epoch in flight, and no weight differs."""

import shutil
import signal
import subprocess
import time

import pytest

from cdvae_ray.tracking.client import connect
from tests.runtime.conftest import run_folder
from tests.runtime.test_train_job import assert_same_weights, final_weights

from .lab import BIN, wait_for

STEADY = [
    "smoke",
    *("--training.epochs", "6", "--training.global-batch-size", "32"),
    *("--resources.num-workers", "2", "--resources.cpus-per-worker", "1"),
    *("--model.classifier-dropout", "0.1", "--resources.wait-seconds", "60"),
]


@pytest.fixture(scope="module")
def undisturbed(lab, tmp_path_factory):
    """The weights of the run that nothing happens to, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    output = lab.ended(folder, *STEADY)
    assert "2 x 1 thread on CPU" in output
    return final_weights(folder), time.monotonic() - began


def epochs(folder):
    return sorted(each.name for each in folder.glob("runs/train/cdvae-*/epoch-*"))


def under_way(lab, folder, *arguments):
    """A job with two epochs stored, one worker on each node."""
    job = lab.job(folder, *STEADY, *arguments)
    run = run_folder(folder / "runs")
    wait_for(lambda: (run / "epoch-0002").exists() or job.poll() is not None, "second epoch")
    assert job.poll() is None, job.communicate()[0]
    workers = lab.train_workers()
    assert {place.address for place, _ in workers} == {each.address for each in lab.workers}
    return job, workers


def ended(job):
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    return output


def test_a_node_cut_off_and_back_costs_an_epoch(lab, undisturbed, tmp_path, fault):
    job, _ = under_way(lab, tmp_path)
    lab.workers[1].unplug()
    fault.strikes()
    wait_for(lambda: lab.head.alive_nodes() == 2, "loss of a node")
    lab.workers[1].plug()
    fault.ends()
    stored = len(epochs(tmp_path))
    wait_for(lambda: len(epochs(tmp_path)) > stored or job.poll() is not None, "epoch")
    fault.recovered()
    output = ended(job)
    assert f"resuming after epoch {stored}" in output, output
    fault.lost("the epoch in flight")
    assert_same_weights(final_weights(tmp_path), undisturbed[0])
    lab.wait_for_nodes(3)


def test_a_restarted_head_costs_the_job_and_an_epoch(lab, undisturbed, tmp_path, fault):
    job, _ = under_way(lab, tmp_path)
    fault.strikes()
    lab.restart()
    fault.ends()
    assert job.returncode != 0
    stored = len(epochs(tmp_path))
    again = lab.job(tmp_path, *STEADY, "--resume")
    wait_for(lambda: len(epochs(tmp_path)) > stored or again.poll() is not None, "epoch")
    fault.recovered()
    output = ended(again)
    assert f"resuming after epoch {stored}" in output
    fault.lost("the epoch in flight; the job is submitted again")
    assert_same_weights(final_weights(tmp_path), undisturbed[0])


def test_a_slow_node_costs_time_alone(lab, undisturbed, tmp_path, fault):
    job, workers = under_way(lab, tmp_path)
    place, process = workers[1]
    fault.strikes()
    with place.slowed(process):
        wait_for(lambda: len(epochs(tmp_path)) >= 5 or job.poll() is not None, "fifth epoch")
    fault.ends()
    output = ended(job)
    fault.recovered()
    assert "resuming" not in output
    fault.lost("nothing")
    assert_same_weights(final_weights(tmp_path), undisturbed[0])


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_storage_in_trouble_ends_the_job_and_the_same_command_goes_on(
    lab, undisturbed, tmp_path, fault, trouble
):
    storage = lab.storage / "runs"
    (tmp_path / "runs").symlink_to(storage)
    where = ("--storage", storage)
    job, _ = under_way(lab, tmp_path, *where)
    fault.strikes()
    with lab.storage_trouble(trouble):
        output, _ = job.communicate(timeout=120)
    fault.ends()
    assert job.returncode == 1, output
    line = next(line for line in output.splitlines() if line.startswith("error: "))
    assert lab.complaint(trouble) in line
    assert str(storage) in line
    stored = len(epochs(tmp_path))
    again = lab.job(tmp_path, *STEADY, *where, "--resume")
    wait_for(lambda: len(epochs(tmp_path)) > stored or again.poll() is not None, "epoch")
    fault.recovered()
    assert f"resuming after epoch {stored}" in ended(again)
    fault.lost("the epoch in flight; the job is submitted again")
    assert_same_weights(final_weights(tmp_path), undisturbed[0])
    assert not list(storage.rglob(".partial-*"))
    shutil.rmtree(storage)


def test_a_tracking_server_that_is_down_for_a_while_has_every_epoch(lab, tmp_path, fault):
    uri = "http://10.77.0.254:5000"
    database = f"sqlite:///{tmp_path}/server.db"

    def serve():
        lab.bridge.popen(
            *(BIN / "mlflow", "server", "--host", "10.77.0.254", "--port", "5000"),
            *("--workers", "1", "--backend-store-uri", database, "--allowed-hosts", "*"),
            *("--artifacts-destination", tmp_path / "artifacts"),
            cwd=tmp_path,
            extra={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: lab.head.answers("10.77.0.254", 5000), "MLflow server")

    serve()
    epochs_to_do = ("--training.epochs", "24")
    job = lab.job(tmp_path, *STEADY, *epochs_to_do, extra={"MLFLOW_TRACKING_URI": uri})
    wait_for(lambda: len(epochs(tmp_path)) >= 2 or job.poll() is not None, "second epoch")
    lab.bridge.signal(signal.SIGKILL, *lab.bridge.processes("mlflow"))
    fault.strikes()
    stored = len(epochs(tmp_path))
    wait_for(lambda: len(epochs(tmp_path)) >= stored + 3 or job.poll() is not None, "epochs")
    assert job.poll() is None, job.communicate()[0]
    serve()
    fault.ends()
    output = ended(job)
    fault.recovered()
    assert "resuming" not in output
    fault.lost("nothing")
    lab.bridge.signal(signal.SIGKILL, *lab.bridge.processes("mlflow"))
    client = connect(database)
    (run,) = client.search_runs([client.get_experiment_by_name("cdvae").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert sorted(each.step for each in history) == list(range(1, 25))
