"""The main job on a real cluster: two workers, lost workers and drivers, results and tracking."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import cdvae_ray
from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.load import load_splits

from .conftest import ROOT, kill, read_until, run_folder, summary, wait_for

# Long enough that a process can be killed in the middle, short enough to wait for.
STEADY = [
    "smoke",
    *("--training.epochs", "6", "--training.global-batch-size", "32"),
    *("--resources.num-workers", "2", "--resources.cpus-per-worker", "1"),
    *("--model.classifier-dropout", "0.1"),
]
METRICS = {
    "class_essential_accuracy",
    "reconstruction_accuracy",
    "delta_l2",
    "delta_redundant_l2",
    "delta_essential_l2",
    "images_per_second",
}


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """The run that nothing happens to, with its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = cluster.train(folder, *STEADY, "--summary", "summary.json")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def final_weights(folder):
    return load_file(run_folder(folder / "runs") / "epoch-0006" / "model.safetensors")


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # Two workers' gradients are summed in one order: equality is exact.
        assert torch.equal(tensor, second[name]), name


def test_the_job_prints_progress_and_a_table(undisturbed):
    _, done = undisturbed
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch ") and "images/s" in line for line in lines) >= 6
    assert any("left 0:00" in line for line in lines)
    assert "accuracy of D(R(x))" in done.stdout
    assert "white-box on D(R(x)): PGD" in done.stdout
    assert "2 x 1 thread on CPU, float32" in done.stdout


def test_the_summary_holds_what_the_contract_names(undisturbed):
    folder, _ = undisturbed
    values = summary(folder / "summary.json")
    assert set(values) == {"job", "run_id", "checkpoint", "config_digest", "metrics"}
    assert values["job"] == "train"
    assert set(values["metrics"]) >= METRICS
    assert run_folder(folder / "runs").name == f"cdvae-{values['config_digest'][:12]}"


def test_a_checkpoint_loads_from_folder_run_and_mlflow_alike(undisturbed, monkeypatch):
    folder, _ = undisturbed
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values = summary(folder / "summary.json")
    test = load_splits(DataConfig(source="digits", image_size=16, test_limit=20)).test
    images = test.images.float() / 255
    from cdvae_ray.tracking.client import connect

    client = connect(f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(values["run_id"])
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted(model.name for model in models) == [f"epoch-000{n}" for n in range(1, 7)]
    assert all({metric.key for metric in model.metrics} >= {"train_loss"} for model in models)
    assert run.info.status == "FINISHED"
    assert run.data.params["objective.gamma"] == "2.0"
    assert "final_class_essential_accuracy" in run.data.metrics
    artifacts = {each.path for each in client.list_artifacts(values["run_id"], "figures")}
    assert artifacts == {"figures/decomposition.png"}
    (newest,) = [model for model in models if model.name == "epoch-0006"]
    locations = [
        values["checkpoint"],
        run_folder(folder / "runs"),
        f"runs:/{values['run_id']}",
        f"runs:/{values['run_id']}/epoch-0006",
        f"models:/{newest.model_id}",
    ]
    with torch.no_grad():
        outputs = [cdvae_ray.load(location).decompose(images).logits for location in locations]
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])
    with pytest.raises(cdvae_ray.errors.CheckpointError, match="nothing there"):
        cdvae_ray.load(folder / "absent")


def test_a_complete_run_is_found_again_and_not_trained_again(cluster, undisturbed):
    folder, _ = undisturbed
    done = cluster.train(folder, *STEADY, "--summary", "again.json")
    assert done.returncode == 0, done.stderr
    assert "this run is complete" in done.stdout
    assert summary(folder / "again.json") == summary(folder / "summary.json")


def test_numbers_whose_checkpoint_is_gone_are_no_complete_run(cluster, undisturbed, tmp_path):
    folder, _ = undisturbed
    shutil.copytree(folder / "runs", tmp_path / "runs")
    shutil.rmtree(run_folder(tmp_path / "runs") / "epoch-0006")
    damaged = run_folder(tmp_path / "runs") / "epoch-0005" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    refused = cluster.train(tmp_path, *STEADY)
    assert refused.returncode == 1
    assert "an unfinished run with epoch-0005" in refused.stderr
    done = cluster.train(tmp_path, *STEADY, "--resume")
    assert done.returncode == 0, done.stderr
    assert "passing over a damaged checkpoint" in done.stdout
    assert "resuming after epoch 4 of 6" in done.stdout
    assert_same_weights(final_weights(tmp_path), final_weights(folder))


@pytest.mark.faults
def test_a_killed_worker_costs_an_epoch_and_changes_nothing(cluster, undisturbed, tmp_path, fault):
    job = cluster.start(tmp_path, *STEADY)
    run = run_folder(tmp_path / "runs")
    wait_for(lambda: (run / "epoch-0002").exists(), "second checkpoint")
    kill(cluster.train_workers()[-1])
    fault.strikes()
    stored = len(list(run.glob("epoch-*")))
    wait_for(lambda: len(list(run.glob("epoch-*"))) > stored or job.poll() is not None, "epoch")
    fault.recovered()
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert "resuming after epoch" in output
    fault.lost("the epoch in flight")
    assert_same_weights(final_weights(tmp_path), final_weights(undisturbed[0]))


@pytest.mark.faults
def test_a_killed_worker_changes_nothing_where_checkpoints_overlap(cluster, undisturbed, tmp_path):
    job = cluster.start(tmp_path, *STEADY, "--resources.overlap-checkpoints")
    run = run_folder(tmp_path / "runs")
    wait_for(lambda: (run / "epoch-0002").exists(), "second checkpoint")
    kill(cluster.train_workers()[-1])
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert "resuming after epoch" in output
    assert_same_weights(final_weights(tmp_path), final_weights(undisturbed[0]))


@pytest.mark.faults
def test_a_killed_driver_resumes_to_the_same_weights(cluster, undisturbed, tmp_path):
    job = cluster.start(tmp_path, *STEADY)
    run = run_folder(tmp_path / "runs")
    wait_for(lambda: (run / "epoch-0002").exists(), "second checkpoint")
    kill(job)
    job.communicate(timeout=300)
    wait_for(lambda: not cluster.train_workers(), "end of the orphaned workers")
    refused = cluster.train(tmp_path, *STEADY)
    assert refused.returncode == 1
    assert "pass --resume to go on or --overwrite" in refused.stderr
    done = cluster.train(tmp_path, *STEADY, "--resume", "--summary", "summary.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming after epoch" in done.stdout
    assert_same_weights(final_weights(tmp_path), final_weights(undisturbed[0]))
    from cdvae_ray.tracking.client import connect

    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("cdvae").experiment_id])
    assert tracked.info.run_id == summary(tmp_path / "summary.json")["run_id"]
    assert tracked.info.status == "FINISHED"
    steps = client.get_metric_history(tracked.info.run_id, "train_loss")
    assert {metric.step for metric in steps} == set(range(1, 7))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_job_ends_its_mlflow_run_and_leaves_no_worker(cluster, tmp_path, number):
    job = cluster.start(tmp_path, *STEADY, "--training.epochs", "60")
    run = run_folder(tmp_path / "runs")
    wait_for(lambda: (run / "epoch-0001").exists(), "first checkpoint")
    job.send_signal(number)
    output, _ = job.communicate(timeout=300)
    assert job.returncode != 0, output
    wait_for(lambda: not cluster.train_workers(), "end of the workers")
    from cdvae_ray.tracking.client import connect

    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("cdvae").experiment_id])
    assert tracked.info.status == "KILLED"


def test_a_non_finite_loss_ends_the_job_at_once_and_keeps_checkpoints(cluster, tmp_path):
    diverging = [*STEADY, "--training.learning-rate", "1e18"]
    done = cluster.train(tmp_path, *diverging)
    assert done.returncode == 1
    assert done.stderr.count("error: loss at epoch") == 1, done.stdout + done.stderr
    assert "got NaN or infinity" in done.stderr
    run = run_folder(tmp_path / "runs")
    assert not list(run.glob("results-*"))
    assert not list(run.glob(".partial-*"))


def test_resources_that_are_not_there_are_an_error(cluster, tmp_path):
    many = ["smoke", "--resources.num-workers", "8", "--resources.wait-seconds", "1"]
    done = cluster.train(tmp_path, *many, timeout=300)
    assert done.returncode == 1
    assert "resources for 8 workers: got 4 CPU, 0 GPU" in done.stderr
    done = cluster.train(
        tmp_path, "smoke", "--resources.device", "gpu", "--resources.wait-seconds", "1", timeout=300
    )
    assert done.returncode == 1
    assert "1 CPU and 1 GPU each, not 0" in done.stderr or "1 GPU each, not 0" in done.stderr


@contextlib.contextmanager
def every_cpu_held(cluster):
    """Another job has all CPUs of the cluster meanwhile."""
    code = (
        "import ray, time; ray.init(log_to_driver=False); until = time.time() + 120;"
        "hold = ray.remote(num_cpus=4)(lambda: time.sleep(600));"
        "held = hold.remote();"
        "\nwhile ray.available_resources().get('CPU', 0) and time.time() < until: time.sleep(0.1)"
        "\nassert not (free := ray.available_resources().get('CPU', 0)), free"
        "\nprint('held', flush=True); ray.get(held)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            yield
        finally:
            other.kill()


def test_a_job_that_waits_for_others_says_so_and_can_be_stopped(cluster, tmp_path):
    with every_cpu_held(cluster):
        job = cluster.start(tmp_path, "smoke", "--tracking.no-enabled")
        read_until(job, "waiting for 4 CPU, 0 GPU: others hold all but 0 CPU")
        read_until(job, "training:")
        job.send_signal(signal.SIGTERM)
        output, _ = job.communicate(timeout=120)
    assert job.returncode != 0, output


@pytest.mark.jobs
def test_a_job_waits_longer_than_ray_train_would(cluster, tmp_path):
    with every_cpu_held(cluster):
        job = cluster.start(tmp_path, "smoke", "--tracking.no-enabled")
        read_until(job, "training:")
        time.sleep(130)  # Ray Train's own patience is twice 60 s.
        assert job.poll() is None
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output


def test_a_cluster_that_does_not_answer_is_an_error_at_once(cluster, tmp_path):
    away = {**cluster.environment, "RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(
        cluster.command("smoke"),
        cwd=tmp_path,
        env=away,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "expected one at 127.0.0.1:9" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_tracking_trouble_does_not_stop_training(cluster, tmp_path):
    done = cluster.train(
        tmp_path, "smoke", "--tracking.uri", "http://127.0.0.1:9", "--summary", "s.json"
    )
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "s.json")["run_id"] is None


@pytest.mark.parametrize(("preset", "code"), [("smoke", 0), ("fast", 1)])
def test_a_submitted_job_passes_its_exit_code_through(cluster, tmp_path, preset, code):
    source = tmp_path / "source"
    for folder in ("cdvae_ray", "jobs"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    done = subprocess.run(
        [
            *("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", source),
            *("--", "python", "jobs/train.py", preset, "--storage", tmp_path / "runs"),
            *("--summary", tmp_path / "summary.json"),
        ],
        env=cluster.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    if code == 0:
        assert set(summary(tmp_path / "summary.json")["metrics"]) >= METRICS
        assert (tmp_path / "runs" / "mlflow.db").exists()
    else:
        assert "expected one of quickstart" in done.stdout + done.stderr
        assert not (tmp_path / "runs").exists()


def test_a_submitted_job_does_not_store_in_the_folder_that_ray_deletes(monkeypatch):
    from cdvae_ray.config.tracking import TrackingConfig
    from cdvae_ray.errors import ConfigError
    from cdvae_ray.runtime.tracked import require_lasting_places

    # pyarrow's in-memory filesystem stands for object storage.
    remote, none = "mock://bucket/runs", TrackingConfig(enabled=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for storage in ("./runs", remote):
        require_lasting_places(storage, TrackingConfig())
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    require_lasting_places("/shared/runs", TrackingConfig())
    require_lasting_places(remote, none)
    require_lasting_places(remote, TrackingConfig(uri="http://127.0.0.1:5000"))
    with pytest.raises(ConfigError, match="expected an absolute path"):
        require_lasting_places("./runs", none)
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI in the job's environment"):
        require_lasting_places(remote, TrackingConfig())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    require_lasting_places(remote, TrackingConfig())


def test_an_elastic_job_begins_with_what_the_cluster_has(cluster, tmp_path):
    # Two of three workers have room on four CPUs.
    elastic = ["--resources.num-workers", "3", "--resources.min-workers", "1"]
    wide = ["--resources.cpus-per-worker", "2", "--training.global-batch-size", "30"]
    done = cluster.train(tmp_path, *STEADY, *elastic, *wide, "--training.epochs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 to 3 x 2 threads on CPU" in done.stdout
    assert len(list((tmp_path / "runs").glob("train/cdvae-*/epoch-0001"))) == 1


def test_an_elastic_job_needs_a_batch_that_every_number_of_workers_divides(cluster, tmp_path):
    elastic = ["--resources.num-workers", "4", "--resources.min-workers", "2"]
    done = cluster.train(tmp_path, *STEADY, *elastic, timeout=300)
    assert done.returncode == 1
    assert "training.global_batch_size: got 32 with 3 workers, expected a multiple of 3" in (
        done.stderr
    )
    done = cluster.train(tmp_path, "smoke", "--resources.min-workers", "2", timeout=300)
    assert "resources.min_workers: got 2, expected a number in [1, 1]" in done.stderr
