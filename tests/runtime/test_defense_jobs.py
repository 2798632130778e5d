"""Defences on a real cluster: fine-tuned on two workers whatever dies, then attacked."""

import json

import pytest
import torch
from safetensors.torch import load_file

import cdvae_ray
from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import load_splits

from .conftest import kill, summary, wait_for
from .untrained_models import untrained

pytestmark = pytest.mark.jobs

FINETUNE = [
    *("smoke", "--cdvae", "cdvae", "--classifier", "classifier"),
    *("--training.epochs", "4", "--training.global-batch-size", "32"),
    *("--resources.num-workers", "2", "--resources.cpus-per-worker", "1"),
]


@pytest.fixture(scope="module")
def digits():
    return load_splits(DataConfig(source="digits", image_size=16, train_limit=256, test_limit=100))


@pytest.fixture(scope="module")
def finetuned(cluster, digits, tmp_path_factory):
    """The fine-tuning that nothing happens to, with its folder."""
    folder = tmp_path_factory.mktemp("finetune")
    untrained(folder, digits.train)
    done = cluster.train(folder, *FINETUNE, "--summary", "summary.json", job="finetune_adversarial")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def run_of(folder):
    return wait_for(lambda: next(iter((folder / "runs").glob("train/finetune-*")), None), "run")


def weights(folder):
    return load_file(run_of(folder) / "epoch-0004" / "model.safetensors")


def test_finetuning_says_what_the_defence_is_worth(finetuned):
    folder, done = finetuned
    assert "accuracy of the defence" in done.stdout
    assert "white-box on the whole defence: PGD" in done.stdout
    numbers = summary(folder / "summary.json")
    assert set(numbers["metrics"]) == {
        "accuracy",
        "attacked_clean_accuracy",
        "attacked_accuracy",
        "images_per_second",
    }


def test_a_defence_loads_from_folder_and_mlflow_alike(finetuned, digits, monkeypatch):
    folder, _ = finetuned
    images = digits.test.images[:8].float() / 255
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    run_id = summary(folder / "summary.json")["run_id"]
    with torch.inference_mode():
        answers = [
            cdvae_ray.load_defense(place)(images) for place in (run_of(folder), f"runs:/{run_id}")
        ]
    assert answers[0].shape == (8, 10)
    assert torch.equal(*answers)


@pytest.mark.faults
def test_a_killed_worker_changes_no_finetuned_weight(cluster, finetuned, digits, tmp_path):
    untrained(tmp_path, digits.train)
    job = cluster.start(tmp_path, *FINETUNE, job="finetune_adversarial")
    run = run_of(tmp_path)
    wait_for(lambda: (run / "epoch-0001").exists(), "first checkpoint")
    kill(wait_for(cluster.train_workers, "worker")[0])
    output, _ = job.communicate(timeout=600)
    assert job.returncode == 0, output
    assert "resuming after epoch" in output
    first, second = weights(tmp_path), weights(finetuned[0])
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # Two workers' gradients are summed in one order: equality is exact.
        assert torch.equal(tensor, second[name]), name


def test_two_tables_from_one_command_each(cluster, finetuned):
    folder, _ = finetuned
    defenses = ("--defenses", "Normal=classifier", f"Ours-Linf={run_of(folder)}")
    common = ("--pool.cpus-per-worker", "1", "--paper", "cifar10")
    for table, more in (
        ("white-box", ("--attacks", "StAdv")),
        ("grey-box", ("--attacks", "StAdv", "--source", "classifier")),
    ):
        arguments = ("smoke", "--table", table, *more, *common, *defenses)
        done = cluster.train(
            folder, *arguments, "--summary", f"{table}.json", job="evaluate_defense"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for text in ("Normal", "Ours-Linf", "StAdv", "worst of all", "not run"):
            assert text in done.stdout, done.stdout
        (report,) = set((folder / "runs/defenses").iterdir()) - seen(folder)
        page = (report / "report.md").read_text()
        numbers = json.loads((report / "numbers.json").read_text())
        assert (report / "picture.png").stat().st_size > 10_000
        assert set(numbers["defense"]) == {"Normal", "Ours-Linf"}
        assert ("made against D(x), which knows" in page) == (table == "grey-box")
        assert "white-box" in page
        assert all(
            low <= value <= high
            for low, value, high in zip(
                numbers["low"], numbers["accuracy"], numbers["high"], strict=True
            )
        )
        (folder / f"{report.name}.seen").touch()
        again = cluster.train(folder, *arguments, job="evaluate_defense")
        assert again.returncode == 0, again.stdout + again.stderr
        assert "0 to make" in again.stdout


def seen(folder):
    return {folder / "runs/defenses" / each.stem for each in folder.glob("*.seen")}


def test_models_of_another_dataset_are_refused(cluster, finetuned, tmp_path, digits):
    folder, _ = finetuned
    few = ImageSet.build(
        digits.train.images[:64], digits.train.labels[:64] % 2, ("even", "odd"), "parity/train"
    )
    untrained(tmp_path, few)
    for arguments, job, message in (
        (
            ("--cdvae", tmp_path / "cdvae", "--classifier", folder / "classifier"),
            "finetune_adversarial",
            "cdvae: got a CD-VAE of the classes even, odd, expected the classes of digits/train",
        ),
        (
            ("--baseline", "hgd", "--classifier", tmp_path / "classifier"),
            "train_baseline",
            "classifier: got a classifier of the classes even, odd",
        ),
        (
            ("--defenses", f"Normal={tmp_path / 'classifier'}"),
            "evaluate_defense",
            "data: got 10 classes of 16 pixels",
        ),
        (
            ("--defenses", f"Ours={folder / 'cdvae'}"),
            "evaluate_defense",
            "a CD-VAE alone defends nothing",
        ),
    ):
        done = cluster.train(tmp_path, "smoke", *arguments, job=job)
        assert done.returncode == 1, done.stdout + done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert message in line
        assert not (tmp_path / "runs").exists()
