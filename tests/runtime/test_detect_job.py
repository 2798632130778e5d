"""The detection jobs on a real cluster: one row an image whatever happens, one command a table."""

import contextlib
import json
import subprocess

import psutil
import pyarrow.parquet as pq
import pytest
import torch

import cdvae_ray
from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.load import load_splits
from cdvae_ray.storage.row_set import read_row_set
from cdvae_ray.storage.store import Store

from .conftest import kill, summary, wait_for

# The first test trains the models of all: minutes beside other work.
pytestmark = pytest.mark.jobs
IMAGES = ("--data.train-limit", "600", "--data.test-limit", "300")
QUIET = ("--tracking.no-enabled",)
SHARDED = ("--pool.cpus-per-worker", "1", "--pool.shard-size", "20", "--pool.batch-size", "20")


class Models:
    """Trained smoke models in one storage root, and the detection jobs on them."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        for job, epochs in (("train", "25"), ("train_classifier", "8")):
            done = cluster.train(
                folder,
                *("smoke", *QUIET, "--training.epochs", epochs, *IMAGES),
                *("--training.cosine-period-epochs", epochs),
                *("--resources.checkpoint-every", epochs, "--summary", f"{job}.json"),
                job=job,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        self.cdvae = summary(folder / "train.json")["checkpoint"]
        self.classifier = summary(folder / "train_classifier.json")["checkpoint"]

    def detect(self, *arguments):
        done = self.cluster.train(
            self.folder,
            *("smoke", "--checkpoint", self.cdvae, "--classifier", self.classifier, *IMAGES),
            *("--pool.cpus-per-worker", "1", *arguments),
            job="detect",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def extraction(self, folder, *arguments):
        return self.cluster.command(
            *("smoke", "--checkpoint", self.cdvae, *IMAGES, *QUIET, *SHARDED),
            *("--split", "train", "--storage", folder, *arguments),
            job="extract_features",
        )

    def extract(self, folder, *arguments):
        done = subprocess.run(
            self.extraction(folder, *arguments),
            cwd=self.folder,
            env=self.cluster.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_extraction(self, folder, *arguments):
        return subprocess.Popen(
            self.extraction(folder, *arguments),
            cwd=self.folder,
            env=self.cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def actors(self):
        found = []
        for process in psutil.Process(self.cluster.head.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "RowActor" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def models(cluster, tmp_path_factory):
    return Models(cluster, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def strict(models):
    """The strict report, tracked; its output and summary."""
    return models.detect("--summary", "strict.json"), summary(models.folder / "strict.json")


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory):
    """Features that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    models.extract(folder)
    return feature_store(folder)


def feature_store(folder):
    (found,) = folder.glob("features/feature-set-*")
    return Store.at(found)


def content(store):
    return store.read_json("manifest.json")["facts"]["content_digest"]


def stored_shards(folder):
    return sorted(folder.glob("features/feature-set-*/rows/shard-*.parquet"))


def test_one_command_fills_the_whole_report(models, strict):
    output, numbers = strict
    assert numbers["job"] == "detect"
    for name in (
        "md.class_essential.class-essential.pgd-linf.same_attack.auroc",
        "md.images.classifier.pgd-linf.attack_free.auroc",
        "kd.images.class-essential.pgd-linf.attack_free.tnr_at_95_tpr",
        "lid.class_essential.orthogonal.adaptive.success_at_5_fpr",
    ):
        assert 0 <= numbers["metrics"][name] <= 1, name
    for threat in (
        "attack on D(x), a plain classifier; protocol strict",
        "attack on D(R(x)) through the whole CD-VAE; protocol strict",
        "white-box on D(R(x)) through the whole CD-VAE and on the detector",
    ):
        assert threat in output
    (report,) = models.folder.glob("runs/detection/report-*")
    page = (report / "report.md").read_text()
    for heading in (
        "## Attack target by detection space",
        "## Trained on one attack, tested on another",
        "## Without adversarial images to train on",
        "## Null controls",
        "## Against an attacker who knows the detector",
    ):
        assert heading in page
    table = json.loads((report / "detection.json").read_text())
    assert set(table["attacked"]) == {
        "D(x), a plain classifier",
        "D(R(x)) through the whole CD-VAE",
    }
    intervals = zip(table["auroc_low"], table["auroc"], table["auroc_high"], strict=True)
    assert all(low <= value <= high for low, value, high in intervals)


def test_the_report_is_tracked(models, strict):
    _, numbers = strict
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{models.folder}/mlflow.db")
    run = client.get_run(numbers["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["job"] == "detect"
    assert run.data.params["protocol"] == "strict"
    files = {
        file.path
        for folder in ("tables", "figures")
        for file in client.list_artifacts(numbers["run_id"], folder)
    }
    assert {"tables/detection.json", "tables/adaptive.json", "tables/controls.json"} <= files
    assert "figures/pgd-linf-on-class-essential.png" in files


def test_a_stored_detector_takes_three_lines(models, strict):
    folder = next(models.folder.glob("runs/detectors/md-class-essential-*"))
    images = load_splits(DataConfig(test_limit=300)).test.images.float() / 255
    detector = cdvae_ray.load_detector(folder)
    flagged = detector.flags(images)
    assert flagged.shape == (300,)
    # Chosen to be 5 % on another part of the same images.
    assert 0.0 < flagged.float().mean() < 0.15
    assert torch.equal(detector.score(images) > detector.threshold, flagged)


def test_the_same_command_computes_nothing_again(models, strict):
    _, numbers = strict
    again = models.detect("--summary", "again.json", *QUIET)
    assert "extracting features: 20 of 20 sets are there" in again
    assert "ray: connecting" not in again
    assert summary(models.folder / "again.json")["metrics"] == numbers["metrics"]


def test_the_reference_protocol_is_named_as_such_and_finds_the_same_attacks(models, strict):
    output = models.detect("--protocol", "reference", "--summary", "reference.json", *QUIET)
    assert "attacking: " not in output
    assert "protocol reference" in output
    assert "protocol strict" not in output
    # Clean and adversarial features of both spaces are those of the strict report.
    assert "extracting features: 12 of 16 sets are there" in output
    numbers = summary(models.folder / "reference.json")["metrics"]
    assert numbers["lid.class_essential.class-essential.pgd-linf.same_attack.auroc"] > 0.5


def test_four_workers_extract_what_one_does_bit_for_bit(models, undisturbed, tmp_path):
    models.extract(tmp_path, "--pool.num-workers", "4")
    assert content(feature_store(tmp_path)) == content(undisturbed)


def test_other_shards_and_batches_give_the_same_features_up_to_rounding(
    models, undisturbed, tmp_path
):
    models.extract(tmp_path, "--pool.shard-size", "33", "--pool.batch-size", "7")
    store = feature_store(tmp_path)
    assert store.root.rpartition("/")[2] == undisturbed.root.rpartition("/")[2]
    ours, theirs = (read_row_set(each, "feature-set") for each in (store, undisturbed))
    assert torch.equal(ours.image_ids, theirs.image_ids)
    assert torch.equal(ours["label"], theirs["label"])
    for name in theirs.columns:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-4)


def test_features_are_one_row_an_image_and_plain_parquet(models, undisturbed):
    frame = pq.read_table(f"{undisturbed.root}/rows").to_pandas()
    assert sorted(frame["image_id"]) == list(range(600))
    assert set(frame["set"]) == {"clean"}
    assert set(frame["space"]) == {"class_essential"}
    assert {len(row) for row in frame["features/layer3"]} == {64}


@pytest.mark.faults
def test_a_killed_actor_costs_its_shard_and_changes_nothing(models, undisturbed, tmp_path):
    job = models.start_extraction(tmp_path, "--pool.num-workers", "2")
    wait_for(lambda: len(stored_shards(tmp_path)) >= 2, "two shards")
    kill(wait_for(models.actors, "an actor")[0])
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert content(feature_store(tmp_path)) == content(undisturbed)
    assert len(stored_shards(tmp_path)) == 30


@pytest.mark.faults
def test_a_killed_job_extracts_only_what_is_missing(models, undisturbed, tmp_path):
    job = models.start_extraction(tmp_path)
    wait_for(lambda: len(stored_shards(tmp_path)) >= 3, "three shards")
    kill(job)
    job.communicate()
    wait_for(lambda: not models.actors(), "end of the actors")
    before = {path: path.stat().st_mtime_ns for path in stored_shards(tmp_path)}
    damaged = next(iter(before))
    damaged.write_bytes(damaged.read_bytes()[:-5])
    del before[damaged]
    models.extract(tmp_path)
    after = {path: path.stat().st_mtime_ns for path in stored_shards(tmp_path)}
    assert len(after) == 30
    assert all(after[path] == time for path, time in before.items())
    assert content(feature_store(tmp_path)) == content(undisturbed)
