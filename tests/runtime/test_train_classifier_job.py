"""The classifier's job on a real cluster: two workers behind a frozen CD-VAE, and what is left."""

import pytest
import torch

from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.presets import preset
from cdvae_ray.core.classifier import classifier_input
from cdvae_ray.data.load import load_splits
from cdvae_ray.errors import CheckpointError
from cdvae_ray.loading import checkpoint_digest, load, load_classifier
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.state import TrainState
from tests.stored_checkpoints import save_checkpoint

from .conftest import summary

pytestmark = pytest.mark.jobs

KINDS = ("images", "class_redundant", "class_essential")
METRICS = {
    "accuracy",
    "top5_accuracy",
    *(f"{name}_on_{kind}" for name in ("accuracy", "top5_accuracy") for kind in KINDS),
    "images_per_second",
}
SMOKE = [
    *("smoke", "--input", "class_redundant", "--cdvae", "cdvae"),
    *("--resources.num-workers", "2", "--resources.cpus-per-worker", "1"),
]


def untrained_cdvae(folder, data):
    """A checkpoint of the smoke preset's CD-VAE, without the minutes of training it."""
    config = preset("smoke")
    task = CdvaeTask(
        model=config.model,
        objective=config.objective,
        training=config.training,
        augmentation=config.augmentation,
        image_size=data.image_size,
        class_names=data.class_names,
    )
    state = TrainState(task, torch.device("cpu"))
    save_checkpoint(
        Store.at(folder), state, epochs_done=1, config_digest="d", identity={}, metrics={}
    )


@pytest.fixture(scope="module")
def digits():
    return load_splits(DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100))


@pytest.fixture(scope="module")
def trained(cluster, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    untrained_cdvae(folder / "cdvae", digits.train)
    done = cluster.train(folder, *SMOKE, "--summary", "summary.json", job="train_classifier")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_the_job_leaves_a_summary_a_table_and_a_run(trained):
    folder, done = trained
    values = summary(folder / "summary.json")
    assert set(values) == {"job", "run_id", "checkpoint", "config_digest", "metrics"}
    assert values["job"] == "train_classifier"
    assert set(values["metrics"]) == METRICS
    assert values["metrics"]["accuracy"] == values["metrics"]["accuracy_on_class_redundant"]
    (run,) = (folder / "runs" / "train").iterdir()
    assert run.name == f"classifier-{values['config_digest'][:12]}"
    assert "accuracy on G(x), its own input" in done.stdout
    assert done.stdout.count("n = 100") == 6
    assert sum(line.startswith("epoch ") for line in done.stdout.splitlines()) == 2


def test_the_numbers_are_those_of_the_loaded_classifier(trained, digits):
    folder, _ = trained
    values = summary(folder / "summary.json")
    model, cdvae = load_classifier(values["checkpoint"]), load(folder / "cdvae")
    assert model.cdvae_digest == checkpoint_digest(folder / "cdvae")
    assert model.input_kind == "class_redundant"
    images = digits.test.images.float() / 255
    for kind in KINDS:
        with torch.no_grad():
            answers = model.classify(classifier_input(images, kind, cdvae), kind).argmax(dim=1)
        accuracy = (answers == digits.test.labels).double().mean().item()
        # Batches of another size round otherwise, which may turn one answer in a hundred.
        assert values["metrics"][f"accuracy_on_{kind}"] == pytest.approx(accuracy, abs=0.011)
    with pytest.raises(CheckpointError, match="load_classifier"):
        load(values["checkpoint"])


def test_it_is_tracked_like_the_main_job(trained, monkeypatch):
    folder, _ = trained
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values = summary(folder / "summary.json")
    from cdvae_ray.tracking.client import connect

    client = connect(f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(values["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["job"] == "train_classifier"
    assert run.data.params["input"] == "class_redundant"
    assert run.data.params["cdvae_digest"] == checkpoint_digest(folder / "cdvae")
    assert {"train_loss", "train_accuracy", "final_accuracy"} <= set(run.data.metrics)
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted(model.name for model in models) == ["epoch-0001", "epoch-0002"]
    here, tracked = values["checkpoint"], f"runs:/{values['run_id']}"
    assert checkpoint_digest(tracked) == checkpoint_digest(here)
    first, second = load_classifier(here).state_dict(), load_classifier(tracked).state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_it_is_found_again_by_the_cdvae_and_not_by_its_path(cluster, trained):
    folder, _ = trained
    (folder / "cdvae").rename(folder / "moved")
    try:
        arguments = [*SMOKE, "--cdvae", "moved", "--summary", "again.json"]
        done = cluster.train(folder, *arguments, job="train_classifier")
    finally:
        (folder / "moved").rename(folder / "cdvae")
    assert done.returncode == 0, done.stderr
    assert "this run is complete" in done.stdout
    assert summary(folder / "again.json") == summary(folder / "summary.json")
