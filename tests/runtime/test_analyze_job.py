"""The empirical study on a real cluster: one command for the tables, and nothing made twice."""

import json

import pytest
import torch
from mlflow import MlflowClient

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.load import load_splits
from cdvae_ray.evaluation.study_columns import PARTS
from cdvae_ray.evaluation.study_statistics import reduce_study
from cdvae_ray.loading import load, load_classifier
from cdvae_ray.storage.row_set import row_shards
from cdvae_ray.storage.store import Store

from .conftest import summary
from .untrained_models import untrained

pytestmark = pytest.mark.jobs

IMAGES = ("--data.train-limit", "256", "--data.test-limit", "100")
STUDY = (
    *("smoke", "--checkpoint", "cdvae", "--classifier", "classifier", *IMAGES),
    *("--epsilons", "0.0157", "--paper", "cifar10", "--pool.cpus-per-worker", "1"),
)


@pytest.fixture(scope="module")
def digits():
    return load_splits(DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100))


@pytest.fixture(scope="module")
def studied(cluster, digits, tmp_path_factory):
    """A study of untrained models, its folder and its output."""
    folder = tmp_path_factory.mktemp("study")
    untrained(folder, digits.train)
    sharded = ("--pool.shard-size", "30", "--pool.num-workers", "2")
    done = cluster.train(folder, *STUDY, *sharded, "--summary", "study.json", job="analyze")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def report_of(folder):
    (report,) = (folder / "runs/study").glob("report-*")
    return report


def test_one_command_gives_tables_and_figures(studied):
    folder, output = studied
    report = report_of(folder)
    for title in ("Table 1", "Table 2", "Figure 3", "Table 3", "noise as long as PGD-Linf's"):
        assert title in output
    for picture in ("figure-2.png", "figure-3.png", "radius.png"):
        assert (report / picture).stat().st_size > 5_000
    norms = json.loads((report / "norms.json").read_text())
    assert len(norms["part"]) == 3 * len(PARTS)
    assert set(norms["images"]) == {100}
    cross = json.loads((report / "cross.json").read_text())
    assert cross["tested_on"] == ["x", "G(x)", "R(x)"]
    assert None not in cross["paper_top1"]
    page = (report / "report.md").read_text()
    assert "Tables 1 and 2 for ImageNet alone" in page
    assert "grey-box for a defence in front of D" in page


def test_the_numbers_are_those_of_the_loaded_models(studied, digits):
    folder, _ = studied
    cdvae, classifier = load(folder / "cdvae"), load_classifier(folder / "classifier")
    images = digits.test.images.float() / 255
    with torch.inference_mode():
        redundant = cdvae.decompose(images).class_redundant
        right = (classifier(images).argmax(dim=1) == digits.test.labels).double().mean()
    expected = ((redundant - cdvae.pixel_mean) / cdvae.pixel_std).flatten(1).norm(dim=1).mean()
    norms = json.loads((report_of(folder) / "norms.json").read_text())
    place = norms["part"].index("G(x)")
    assert norms["l2"][place] == pytest.approx(float(expected), rel=1e-4)
    attacked = json.loads((report_of(folder) / "attacked.json").read_text())
    assert attacked["accuracy"][0] == pytest.approx(float(right), abs=0.011)


def test_the_same_study_is_found_and_other_shards_say_the_same(cluster, studied, tmp_path):
    folder, _ = studied
    again = cluster.train(folder, *STUDY, job="analyze")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 of 4 sets are there" in again.stdout
    other = cluster.train(
        folder, *STUDY, "--storage", tmp_path, "--tracking.no-enabled", job="analyze"
    )
    assert other.returncode == 0, other.stdout + other.stderr
    stores = [
        Store.at(each)
        for root in (folder / "runs/study", tmp_path / "study")
        for each in sorted(root.glob("decomposition-set-*"))
    ]
    totals = [reduce_study(row_shards(store, "decomposition-set")) for store in stores]
    for one, two in zip(totals[: len(totals) // 2], totals[len(totals) // 2 :], strict=True):
        assert one.counts == two.counts
        torch.testing.assert_close(
            one.norms["l2"].mean_a, two.norms["l2"].mean_a, rtol=1e-4, atol=1e-6
        )


def test_it_is_tracked_with_its_tables_and_figures(studied):
    folder, _ = studied
    values = summary(folder / "study.json")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(values["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["pgd-linf.cosine_redundant"] == pytest.approx(
        values["metrics"]["pgd-linf.cosine_redundant"]
    )
    figures = {each.path for each in client.list_artifacts(values["run_id"], "figures")}
    assert figures == {"figures/figure-2.png", "figures/figure-3.png", "figures/radius.png"}
    assert len(client.list_artifacts(values["run_id"], "tables")) == 5
