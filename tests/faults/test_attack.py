"""An attack on two nodes: what a fault loses is the shards in flight, and no image differs."""

import pytest

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.load import load_splits
from cdvae_ray.storage.adversarial_set import read_adversarial_set
from cdvae_ray.storage.store import Store
from tests.runtime.untrained_models import untrained

from .lab import wait_for

# Sets of the last iterate: every image takes all the steps, so that there is time for a fault.
STEADY = [
    *("detection", "--attacks", "PGD-Linf", "--num-steps", "150", "--tracking.no-enabled"),
    *("--data.source", "digits", "--data.path", "", "--data.image-size", "16"),
    *("--data.train-limit", "256", "--data.test-limit", "100", "--pool.wait-seconds", "60"),
    *("--pool.shard-size", "5", "--pool.cpus-per-worker", "1", "--pool.num-workers", "2"),
]
SHARDS = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    data = DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100)
    untrained(folder, load_splits(data).train)
    return folder / "cdvae"


@pytest.fixture(scope="module")
def undisturbed(lab, checkpoint, tmp_path_factory):
    """The digest of the images that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    lab.ended(folder, *STEADY, "--checkpoint", checkpoint, job="attack")
    return digest(folder)


def shards(folder):
    return {
        path: path.stat().st_mtime_ns
        for path in folder.glob("runs/adversarial/pgd-*/images/shard-*.parquet")
    }


def digest(folder):
    (made,) = folder.glob("runs/adversarial/pgd-*")
    found = read_adversarial_set(Store.at(made))
    assert found.rows.image_ids.tolist() == list(range(100))
    return found.facts["content_digest"]


def under_way(lab, folder, *arguments):
    job = lab.job(folder, *STEADY, *arguments, job="attack")
    wait_for(lambda: len(shards(folder)) >= 4 or job.poll() is not None, "four shards")
    assert job.poll() is None, job.communicate()[0]
    return job


def test_a_node_cut_off_and_back_costs_its_shard(lab, checkpoint, undisturbed, tmp_path, fault):
    job = under_way(lab, tmp_path, "--checkpoint", checkpoint)
    lab.workers[1].unplug()
    fault.strikes()
    before = shards(tmp_path)
    wait_for(lambda: lab.head.alive_nodes() == 2, "loss of a node")
    lab.workers[1].plug()
    fault.ends()
    output, _ = job.communicate(timeout=240)
    fault.recovered()
    assert job.returncode == 0, output
    fault.lost("the shard in flight on that node")
    after = shards(tmp_path)
    assert len(after) == SHARDS
    # At most the one that was written and cut off before the driver had word of it.
    assert sum(after[path] != written for path, written in before.items()) <= 1
    assert digest(tmp_path) == undisturbed
    lab.wait_for_nodes(3)


def test_a_restarted_head_costs_the_job_and_its_shards_in_flight(
    lab, checkpoint, undisturbed, tmp_path, fault
):
    job = under_way(lab, tmp_path, "--checkpoint", checkpoint)
    fault.strikes()
    lab.restart()
    fault.ends()
    assert job.returncode != 0
    before = shards(tmp_path)
    again = lab.job(tmp_path, *STEADY, "--checkpoint", checkpoint, job="attack")
    wait_for(lambda: len(shards(tmp_path)) > len(before) or again.poll() is not None, "shard")
    fault.recovered()
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert f"{len(before)} of {SHARDS} shards are there" in output
    fault.lost("the two shards in flight; the job is submitted again")
    after = shards(tmp_path)
    assert all(after[path] == written for path, written in before.items())
    assert digest(tmp_path) == undisturbed


def test_a_slow_node_costs_an_attack_time_alone(lab, checkpoint, undisturbed, tmp_path, fault):
    job = under_way(lab, tmp_path, "--checkpoint", checkpoint)
    place = lab.workers[1]
    (actor,) = place.processes("AttackActor")
    fault.strikes()
    with place.slowed(actor):
        before = len(shards(tmp_path))
        wait_for(lambda: len(shards(tmp_path)) >= before + 4 or job.poll() is not None, "shards")
    fault.ends()
    output, _ = job.communicate(timeout=240)
    fault.recovered()
    assert job.returncode == 0, output
    fault.lost("nothing")
    assert digest(tmp_path) == undisturbed


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_storage_in_trouble_ends_the_attack_and_the_same_command_goes_on(
    lab, checkpoint, undisturbed, tmp_path, fault, trouble
):
    (tmp_path / "runs").symlink_to(lab.storage / tmp_path.name)
    where = ("--storage", lab.storage / tmp_path.name, "--checkpoint", checkpoint)
    job = under_way(lab, tmp_path, *where)
    fault.strikes()
    with lab.storage_trouble(trouble):
        output, _ = job.communicate(timeout=120)
    fault.ends()
    assert job.returncode == 1, output
    line = next(line for line in output.splitlines() if line.startswith("error: "))
    assert lab.complaint(trouble) in line
    before = shards(tmp_path)
    again = lab.job(tmp_path, *STEADY, *where, job="attack")
    wait_for(lambda: len(shards(tmp_path)) > len(before) or again.poll() is not None, "shard")
    fault.recovered()
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert f"{len(before)} of {SHARDS} shards are there" in output
    fault.lost("the two shards in flight; the job is submitted again")
    assert digest(tmp_path) == undisturbed
