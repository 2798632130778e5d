"""Bad input to the empirical study: one line on stderr, exit code 1, nothing written.

All of it is found before a cluster is started, so these tests start none.
"""

import pytest
import ray
import torch
from safetensors.torch import save_file

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.loading import load
from cdvae_ray.runtime import pool
from cdvae_ray.storage.store import Store
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.state import TrainState
from tests.jobs.test_detect_arguments import filled
from tests.stored_checkpoints import save_checkpoint

ON_D = ("smoke", "--checkpoint", "{digits}", "--classifier", "{classifier}")
THROUGH = ("smoke", "--threat-model", "class-essential", "--checkpoint")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """A cluster that is asked for fails the test."""

    def connect():
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(pool.cluster, "connect", connect)
    yield
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def elsewhere(checkpoints, tmp_path_factory):
    """Classifiers on G(x) and R(x) that were trained behind a CD-VAE of another digest."""
    folder = tmp_path_factory.mktemp("elsewhere")
    cdvae = load(checkpoints["digits"])
    found = {}
    for kind in ("class_redundant", "class_essential"):
        task = ClassifierTask(
            input_kind=kind,
            cdvae=FrozenCdvae.of(cdvae, "0123456789abcdef"),
            model=ClassifierConfig(depth=10, widen_factor=1),
            class_names=cdvae.class_names,
            training=TrainingConfig(epochs=1),
            augmentation=AugmentationConfig(),
            image_size=16,
        )
        save_checkpoint(
            Store.at(folder / kind),
            TrainState(task, torch.device("cpu")),
            epochs_done=1,
            config_digest=kind,
            identity={},
            metrics={},
        )
        found[kind] = folder / kind / "epoch-0001"
    return found


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["table-1"], "preset: got 'table-1', expected one of quickstart, smoke, cifar10"),
        (["smoke"], "checkpoint: got none, expected a CD-VAE"),
        (["smoke", "--classifier", "{classifier}"], "checkpoint: got none, expected a CD-VAE"),
        (["smoke", "--checkpoint", "{digits}"], "classifier: got none, expected a classifier on x"),
        ([*THROUGH[:3]], "checkpoint: got none, expected a CD-VAE"),
        ([*THROUGH, "nowhere"], "nowhere: got nothing there"),
        ([*THROUGH, "{classifier}"], "expected a CD-VAE"),
        ([*ON_D[:4], "nowhere"], "nowhere: got nothing there"),
        ([*ON_D[:4], "{digits}"], "expected a plain classifier"),
        (
            [*ON_D, "--redundant-classifier", "{classifier}"],
            "redundant_classifier: got one trained on images, expected one trained on "
            "class_redundant; train it by jobs/train_classifier.py --input class_redundant",
        ),
        (
            [*ON_D, "--essential-classifier", "{classifier}"],
            "essential_classifier: got one trained on images, expected one trained on "
            "class_essential",
        ),
        ([*ON_D, "--essential-classifier", "nowhere"], "nowhere: got nothing there"),
        (
            [*THROUGH, "{digits}", "--redundant-classifier", "{digits}"],
            "expected a plain classifier",
        ),
        (["smoke", "--attacks", "CW"], "attacks: got CW, expected some of FGSM, PGD-Linf"),
        (["smoke", "--suite", "white-box"], "attacks: got PGD-Linf, expected some of Auto"),
        (
            ["smoke", "--attacks", "FGSM", "PGD-Linf", "--epsilons", "0.1"],
            "epsilons: got radii for 2 attacks, expected exactly one attack",
        ),
        (
            ["smoke", "--attacks", "--epsilons", "0.1"],
            "epsilons: got radii for all attacks, expected exactly one attack",
        ),
        (["smoke", "--epsilons", "0"], "epsilons: got 0.0"),
        (["smoke", "--epsilons", "0.1", "-0.1"], "epsilons: got -0.1"),
        (["smoke", "--num-pictures", "0"], "num_pictures: got 0"),
        (["smoke", "--seed", "-1"], "seed: got -1"),
        (["smoke", "--storage", ""], "storage: got nothing"),
        (["smoke", "--pool.num-workers", "0"], "pool.num_workers: got 0"),
        ([*ON_D, "--inception", "absent.pth"], "absent.pth: got no such file"),
        ([*THROUGH, "{digits}", "--inception", "absent.safetensors"], "got no such file"),
        ([*THROUGH, "{letters}"], "data: got 10 classes of 16 pixels"),
        (
            [*THROUGH, "{digits}", "--data.image-size", "32"],
            "data: got 10 classes of 32 pixels (0, 1, 2, ...), expected the CD-VAE's 10 classes "
            "of 16 pixels",
        ),
        (
            ["smoke", "--checkpoint", "{letters}", "--classifier", "{classifier}"],
            "expected the CD-VAE's 2 classes",
        ),
        ([*ON_D, "--data.source", "folder", "--data.path", "nowhere"], "nowhere"),
        ([*ON_D, "--data.test-limit", "100000"], "digits/test: got"),
    ],
)
def test_bad_input_is_one_line(checkpoints, refused, arguments, complaint):
    refused("analyze", filled(checkpoints, arguments), complaint)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "notes.pth"])
def test_a_file_of_no_inception_weights_is_refused(checkpoints, refused, tmp_path, name):
    file = tmp_path / name
    if name == "weights.pth":
        torch.save({"fc.weight": torch.ones(2, 2)}, file)
    elif name == "weights.safetensors":
        save_file({"fc.weight": torch.ones(2, 2)}, file)
    else:
        file.write_text("no weights")
    refused(
        "analyze",
        filled(checkpoints, [*ON_D, "--inception", str(file)]),
        f"{file}: got a file that is none",
    )


@pytest.mark.parametrize("kind", ["class_redundant", "class_essential"])
def test_a_classifier_behind_another_cdvae_is_refused(checkpoints, refused, elsewhere, kind):
    flag = f"--{kind.removeprefix('class_')}-classifier"
    refused(
        "analyze",
        filled(checkpoints, [*ON_D, flag, str(elsewhere[kind])]),
        "classifier: got one trained behind CD-VAE 0123456789ab, expected one trained behind",
    )


def test_good_input_does_ask_for_a_cluster(checkpoints, run_script, tmp_path):
    # So that the tests above would see one asked for too early.
    arguments = filled(checkpoints, [*ON_D, "--data.test-limit", "8", "--tracking.no-enabled"])
    with pytest.raises(AssertionError, match="a cluster was asked for"):
        run_script("analyze", tmp_path, *arguments)
