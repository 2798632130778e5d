"""`ray job submit` to two nodes, with a token: logs and exit codes come back, a stop stops all."""

import json
import shutil
import sqlite3
from contextlib import closing, suppress

import pytest

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.load import load_splits
from tests.runtime.test_search_job import MARGIN, margin_space
from tests.runtime.untrained_models import untrained

from .lab import BIN, DASHBOARD, ROOT, wait_for

DIGITS = (
    *("--data.source", "digits", "--data.path", "", "--data.image-size", "16"),
    *("--data.train-limit", "256", "--data.test-limit", "100"),
)
TWO = ("--resources.num-workers", "2", "--resources.cpus-per-worker", "1")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What is submitted: the package and its jobs."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("cdvae_ray", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def models(tmp_path):
    """Untrained models, and a space of margins, where every node finds them."""
    data = DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100)
    untrained(tmp_path, load_splits(data).train)
    margin_space(tmp_path, "0.0, 0.5, 1.0")
    return tmp_path


class Submit:
    """The job command line of Ray, from a shell on the head."""

    def __init__(self, lab, source):
        self._lab, self._source = lab, source
        self._extra = {"RAY_ADDRESS": f"http://127.0.0.1:{DASHBOARD}"}

    def ray(self, *command):
        return self._lab.shell(BIN / "ray", *command, extra=self._extra)

    def __call__(self, *job, options=()):
        submit = ("job", "submit", "--working-dir", self._source, *options)
        return self.ray(*submit, "--", "python", *job)


@pytest.fixture
def submit(lab, source):
    return Submit(lab, source)


def test_train_attack_and_tune_on_two_nodes(submit, models):
    runs = models / "runs"
    code, output = submit("jobs/train.py", "smoke", *TWO, "--storage", runs)
    assert code == 0, output
    assert "workers: 2 x 1 thread on CPU" in output
    assert "accuracy of D(R(x))" in output
    (checkpoint,) = runs.glob("train/cdvae-*/epoch-0002")
    code, output = submit(
        *("jobs/attack.py", "detection", "--attacks", "PGD-Linf", "--num-steps", "2", *DIGITS),
        *("--pool.num-workers", "2", "--pool.cpus-per-worker", "1", "--pool.shard-size", "25"),
        *("--checkpoint", checkpoint, "--storage", runs),
    )
    assert code == 0, output
    assert len(list(runs.glob("adversarial/pgd-*/images/shard-*.parquet"))) == 4
    code, output = submit(
        "jobs/tune_margin.py", *in_folder(models), "--storage", runs, "--max-concurrent", "2"
    )
    assert code == 0, output
    assert "on the Pareto front" in output
    assert len(list(runs.glob("search/trial-*/manifest.json"))) == 3
    assert statuses(runs) == {"FINISHED"}


def in_folder(folder):
    """The margin search's arguments with paths that hold on every node."""
    named = {"cdvae": folder / "cdvae", "classifier": folder / "classifier"}
    return [
        str(named.get(word, folder / word if word == "space.toml" else word)) for word in MARGIN
    ]


def test_the_exit_code_and_the_error_of_a_job_come_back(submit, tmp_path):
    code, output = submit("jobs/train.py", "smoke", "--storage", "runs")
    assert code != 0
    assert "error: storage: got the relative path runs in a submitted job" in output


def statuses(runs):
    """Of all MLflow runs. (A client of MLflow's would make the database with the job, at once.)"""
    with closing(sqlite3.connect(f"file:{runs}/mlflow.db?mode=ro", uri=True)) as database:
        return {status for (status,) in database.execute("select status from runs")}


LONG = {
    "train": ("jobs/train.py", "smoke", *TWO, "--training.epochs", "500"),
    "attack": (
        *("jobs/attack.py", "detection", "--attacks", "PGD-Linf", "--num-steps", "20000"),
        *(*DIGITS, "--pool.num-workers", "2", "--pool.cpus-per-worker", "1"),
    ),
    "tune": ("jobs/tune_margin.py",),
}
UNDER_WAY = {"train": "RayTrainWorker", "attack": "AttackActor", "tune": "RayTrainWorker"}


@pytest.mark.parametrize("job", LONG)
def test_a_stopped_job_leaves_no_process_no_placement_group_and_no_running_run(
    lab, submit, models, job, fault
):
    runs = models / "runs"
    arguments = {
        "train": (),
        "attack": ("--checkpoint", models / "cdvae"),
        "tune": (*in_folder(models)[:-1], "400", "--max-concurrent", "1"),
    }[job]
    name = f"stopped-{job}"
    code, output = submit(
        *(*LONG[job], *arguments, "--storage", runs),
        options=("--no-wait", "--submission-id", name),
    )
    assert code == 0, output
    wait_for(lambda: processes(lab, UNDER_WAY[job]) and running(runs), "a job under way")
    fault.strikes()
    code, output = submit.ray("job", "stop", name)
    assert code == 0, output
    assert "was stopped" in output
    with suppress(AssertionError):
        wait_for(lambda: not left(lab, LONG[job][0]), "end of the job's processes", seconds=30)
    assert left(lab, LONG[job][0]) == []
    fault.recovered()
    fault.lost("what the job had not stored")
    with suppress(AssertionError):
        wait_for(lambda: not placement_groups(submit), "end of placement groups", seconds=30)
    assert placement_groups(submit) == []
    assert statuses(runs) == {"KILLED"}


def processes(lab, word):
    """Processes on any node whose command line holds a word."""
    return [each for place in (lab.head, *lab.workers) for each in place.processes(word)]


def placement_groups(submit):
    """Those that there are."""
    code, output = submit.ray("list", "placement-groups", "--detail", "--format", "json")
    assert code == 0, output
    groups = json.loads(output[output.index("[") :])
    return [each for each in groups if each["state"] != "REMOVED"]


# Of a node and of the cluster, whatever jobs there are: agents, waiting workers, and the actors
# that Ray's libraries share between jobs.
RAYS_OWN = (
    *("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent"),
    *("ray::_AutoscalingCoordinatorActor", "ray::_StatsActor", "ray::ActorLocationTracker"),
)


def left(lab, script):
    """The command lines of a job's processes on any node."""
    found = lab.head.commands(script)
    for place in (lab.head, *lab.workers):
        found += [each for each in place.commands("ray::") if not each.startswith(RAYS_OWN)]
    return found


def running(runs):
    with suppress(sqlite3.OperationalError):  # It is not there yet, or has no tables yet.
        return "RUNNING" in statuses(runs)
    return False
