"""Bad input to jobs/train_classifier.py: one line on stderr, exit code 1, nothing written.

All of it is found before a cluster is started, so these tests start none.
"""

import pytest
import torch

from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.state import TrainState
from tests.stored_checkpoints import save_checkpoint

from .conftest import ROOT

DIGITS = tuple("0123456789")


def cdvae_at(folder, *, image_size=16, class_names=DIGITS):
    task = CdvaeTask(
        model=ModelConfig(
            vae_width=2, latent_size=2, classifier_depth=10, classifier_widen_factor=1
        ),
        objective=ObjectiveConfig(),
        training=TrainingConfig(epochs=1),
        augmentation=AugmentationConfig(),
        image_size=image_size,
        class_names=class_names,
    )
    save_checkpoint(
        Store.at(folder),
        TrainState(task, torch.device("cpu")),
        epochs_done=1,
        config_digest="d",
        identity={},
        metrics={},
    )
    return folder


def behind(cdvae):
    return ["smoke", "--input", "class_redundant", "--cdvae", cdvae]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (lambda f: ["cifar10-released"], "preset: got 'cifar10-released', expected one of quick"),
        (lambda f: ["smoke", "--input", "class_essential"], "cdvae: got nothing, expected the CD"),
        (lambda f: ["smoke", "--cdvae", "runs:/a"], "cdvae: got runs:/a, expected none for a"),
        (lambda f: behind(f / "nothing"), "got nothing there"),
        (lambda f: behind(cdvae_at(f / "c", image_size=32)), "a CD-VAE of 32x32 images, expected"),
        (
            lambda f: behind(cdvae_at(f / "c", class_names=("cat", "dog"))),
            "a CD-VAE of the classes cat, dog, expected the classes of",
        ),
        (
            lambda f: [*behind("runs:/abc"), "--tracking.uri", f"sqlite:///{f}/none.db"],
            "none.db",
        ),
        (lambda f: ["smoke", "--model.depth", "11"], "model.depth: got 11"),
        (
            lambda f: ["smoke", "--training.global-batch-size", "7", "--resources.num-workers", 2],
            "got 7 with 2 workers",
        ),
    ],
    ids=[
        "unknown preset",
        "missing CD-VAE",
        "superfluous CD-VAE",
        "no such CD-VAE",
        "other image size",
        "other classes",
        "no tracking database",
        "wrong depth",
        "batch not divisible",
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(refused, tmp_path, arguments, complaint):
    refused("train_classifier", arguments(tmp_path), complaint)


def test_an_unknown_input_is_refused(run_script, tmp_path):
    done = run_script("train_classifier", tmp_path, "smoke", "--input", "essential")
    assert done.returncode == 2
    assert "class_essential" in done.stdout + done.stderr


def test_the_help_lists_presets_and_every_flag(run_script):
    done = run_script("train_classifier", ROOT, "--help")
    assert done.returncode == 0
    for word in ("quickstart", "cifar10-small", "--input", "--cdvae", "--model.depth", "--summary"):
        assert word in done.stdout
