"""The attack job on a real cluster: one row an image whatever happens to actors and drivers."""

import contextlib
import json
import re
import subprocess
import sys

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from cdvae_ray.storage.adversarial_set import read_adversarial_set
from cdvae_ray.storage.store import Store

from .conftest import ROOT, kill, run_folder, summary, wait_for

pytestmark = pytest.mark.jobs

# Sets of the last iterate: every image takes all the steps, so that there is time to kill.
STEADY = [
    *("detection", "--attacks", "PGD-Linf", "--num-steps", "100"),
    *("--data.source", "digits", "--data.path", "", "--data.image-size", "16"),
    *("--data.train-limit", "256", "--data.test-limit", "100"),
    *("--pool.shard-size", "10", "--pool.cpus-per-worker", "1"),
]
SHARDS = 10


class Attacks:
    """The attack job on the session's cluster, against one checkpoint."""

    def __init__(self, cluster, checkpoint):
        self.cluster, self.checkpoint = cluster, checkpoint

    def command(self, *arguments):
        job = [sys.executable, str(ROOT / "jobs/attack.py"), *map(str, arguments)]
        return [*job, "--checkpoint", str(self.checkpoint)]

    def run(self, folder, *arguments):
        return subprocess.run(
            self.command(*arguments),
            cwd=folder,
            env=self.cluster.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def start(self, folder, *arguments):
        return subprocess.Popen(
            self.command(*arguments),
            cwd=folder,
            env=self.cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def actors(self):
        """This cluster's attacking actors."""
        found = []
        for process in psutil.Process(self.cluster.head.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "AttackActor" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def attacks(cluster, tmp_path_factory):
    """A trained smoke model to attack."""
    folder = tmp_path_factory.mktemp("trained")
    # Long enough that it tells digits apart, and so has something to lose.
    done = cluster.train(
        folder,
        *("smoke", "--tracking.no-enabled", "--training.epochs", "25"),
        *("--training.cosine-period-epochs", "25", "--resources.checkpoint-every", "25"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Attacks(cluster, run_folder(folder / "runs") / "epoch-0025")


@pytest.fixture(scope="module")
def undisturbed(attacks, tmp_path_factory):
    """The set that nothing happened to, with its folder and the job's output."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = attacks.run(folder, *STEADY, "--tracking.no-enabled", "--summary", "summary.json")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def set_folder(folder):
    return next(iter(folder.glob("runs/adversarial/pgd-*")))


def stored(folder):
    return read_adversarial_set(Store.at(set_folder(folder)))


def stored_shards(folder):
    return sorted(folder.glob("runs/adversarial/pgd-*/images/shard-*.parquet"))


def test_every_image_has_one_row(undisturbed):
    folder, done = undisturbed
    frame = pq.read_table(set_folder(folder) / "images").to_pandas()
    assert sorted(frame["image_id"]) == list(range(100))
    assert set(frame["attack"]) == {"PGD-Linf"}
    assert set(frame["threat_model"]) == {"class-essential"}
    assert frame["source_cdvae"].nunique() == 1
    rows = stored(folder).rows
    assert rows.linf.max() <= 8 / 255 + 1e-6
    assert rows.images.min() >= 0
    assert rows.images.max() <= 1
    assert "threat model: class-essential: D(R(x)) through the whole CD-VAE" in done.stdout
    assert "sanity report" in done.stdout
    assert re.search(r"\d+/10  PGD-Linf done", done.stdout)
    numbers = summary(folder / "summary.json")
    assert numbers["job"] == "attack"
    assert numbers["metrics"]["pgd-linf.accuracy"] <= numbers["metrics"]["pgd-linf.clean_accuracy"]


def test_workers_batches_and_shards_change_no_image(attacks, tmp_path):
    paper = [*STEADY, "--num-steps", "5", "--tracking.no-enabled"]
    other = ("--pool.num-workers", "4", "--pool.batch-size", "3", "--pool.shard-size", "17")
    sets = []
    for name, arguments in (("one", paper), ("four", [*paper, *other])):
        folder = tmp_path / name
        folder.mkdir()
        done = attacks.run(folder, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        sets.append((set_folder(folder).name, stored(folder).rows))
    (name, theirs), (other_name, ours) = sets
    assert name == other_name
    assert torch.equal(ours.image_ids, theirs.image_ids)
    assert torch.equal(ours.labels, theirs.labels)
    # The starts are equal to the bit. Convolutions may round otherwise for another batch size,
    # and each sign of a gradient carries that on: the tolerance is for the paper's 5 steps.
    assert (ours.images == theirs.images).float().mean() >= 0.99
    assert (ours.images - theirs.images).abs().max() <= 2 * 8 / 255 + 1e-6
    assert (ours.success == theirs.success).float().mean() >= 0.99


def test_four_workers_make_the_set_of_one_bit_for_bit(attacks, undisturbed, tmp_path):
    done = attacks.run(tmp_path, *STEADY, "--pool.num-workers", "4", "--tracking.no-enabled")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        stored(tmp_path).facts["content_digest"] == stored(undisturbed[0]).facts["content_digest"]
    )


@pytest.mark.faults
def test_a_killed_actor_costs_its_shard_and_changes_nothing(attacks, undisturbed, tmp_path):
    job = attacks.start(tmp_path, *STEADY, "--pool.num-workers", "2", "--tracking.no-enabled")
    wait_for(lambda: len(stored_shards(tmp_path)) >= 2, "two shards")
    victim = wait_for(attacks.actors, "an actor")[0]
    kill(victim)
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    ours = stored(tmp_path)
    assert ours.rows.image_ids.tolist() == list(range(100))
    assert ours.facts["content_digest"] == stored(undisturbed[0]).facts["content_digest"]
    assert len(stored_shards(tmp_path)) == SHARDS


@pytest.mark.faults
def test_a_killed_job_makes_only_what_is_missing(attacks, undisturbed, tmp_path):
    job = attacks.start(tmp_path, *STEADY, "--tracking.no-enabled")
    wait_for(lambda: len(stored_shards(tmp_path)) >= 3, "three shards")
    kill(job)
    job.communicate()
    wait_for(lambda: not attacks.actors(), "end of the actors")
    before = {path: path.stat().st_mtime_ns for path in stored_shards(tmp_path)}
    assert 3 <= len(before) < SHARDS
    assert not (set_folder(tmp_path) / "manifest.json").exists()
    # One of them was damaged, too: it is made again.
    damaged = next(iter(before))
    damaged.write_bytes(damaged.read_bytes()[:-7])

    done = attacks.run(tmp_path, *STEADY, "--tracking.no-enabled")
    assert done.returncode == 0, done.stdout + done.stderr
    found = len(before) - 1
    assert f"PGD-Linf: {found} of 10 shards are there, {10 - found} to make" in done.stdout
    assert f"attacking: {10 - found} tasks" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in stored_shards(tmp_path)}
    assert len(after) == SHARDS
    assert all(after[path] == time for path, time in before.items() if path != damaged)
    assert (
        stored(tmp_path).facts["content_digest"] == stored(undisturbed[0]).facts["content_digest"]
    )


def test_a_finished_set_is_found_and_its_table_tracked(attacks, undisturbed):
    folder, first = undisturbed
    done = attacks.run(folder, *STEADY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PGD-Linf: 10 of 10 shards are there, 0 to make" in done.stdout
    assert "attacking: " not in done.stdout
    row = next(line for line in first.stdout.splitlines() if line.startswith("  PGD-Linf"))
    assert row in done.stdout
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'cdvae'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["job"] == "attack"
    assert run.data.params["threat_model"] == "class-essential"
    assert run.data.params["sets.PGD-Linf.digest"] == stored(folder).facts["identity_digest"]
    tables = {file.path for file in client.list_artifacts(run.info.run_id, "tables")}
    assert tables == {"tables/attacks.json", "tables/checks.json"}
    table = json.loads(
        (folder / "mlartifacts")
        .joinpath(
            *next((folder / "mlartifacts").rglob("attacks.json"))
            .relative_to(folder / "mlartifacts")
            .parts
        )
        .read_text()
    )
    assert stored(folder).facts["content_digest"] in str(table)


def test_a_failed_check_is_an_exit_code(attacks, tmp_path):
    # One step from a random start is beaten by two: the report must say so.
    quick = [
        *("quick", "--attacks", "PGD-Linf", "--num-steps", "1", "--epsilon", "0.05"),
        *("--data.source", "digits", "--data.image-size", "16"),
        *("--data.train-limit", "256", "--data.test-limit", "100", "--tracking.no-enabled"),
    ]
    done = attacks.run(tmp_path, *quick, "--summary", "summary.json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "fail    twice the steps change robust accuracy" in done.stdout
    assert "error: sanity report: got " in done.stderr.splitlines()[-1]
    assert summary(tmp_path / "summary.json")["job"] == "attack"
    allowed = attacks.run(tmp_path, *quick, "--checks.allow-failed")
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr
