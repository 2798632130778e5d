"""Bad input to jobs/attack.py: one line on stderr, exit code 1, nothing written.

All of it is found before a cluster is started, so these tests start none.
"""

import pytest
import torch

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.checkpoint import save_checkpoint
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.state import TrainState

DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Untrained checkpoints: a CD-VAE of digits, one of other classes, a classifier on x."""
    folder = tmp_path_factory.mktemp("checkpoints")
    settings = {
        "training": TrainingConfig(epochs=1),
        "augmentation": AugmentationConfig(),
        "image_size": 16,
    }
    small = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1)
    cdvae = {"model": small, "objective": ObjectiveConfig(), **settings}
    tasks = {
        "digits": CdvaeTask(class_names=DIGITS, **cdvae),
        "letters": CdvaeTask(class_names=("a", "b"), **cdvae),
        "classifier": ClassifierTask(
            input_kind="images",
            cdvae=None,
            model=ClassifierConfig(depth=10, widen_factor=1),
            class_names=DIGITS,
            **settings,
        ),
    }
    for name, task in tasks.items():
        save_checkpoint(
            Store.at(folder / name),
            TrainState(task, torch.device("cpu")),
            epochs_done=1,
            config_digest=name,
            identity={},
            metrics={},
        )
    return {name: folder / name / "epoch-0001" for name in tasks}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["gray-box"], "preset: got 'gray-box', expected one of smoke"),
        (["smoke"], "checkpoint: got none, expected one for the threat model class-essential"),
        (["smoke", "--checkpoint", "nowhere"], "nowhere: got nothing there"),
        (["smoke", "--attacks", "CW"], "attacks: got CW, expected some of FGSM, PGD-Linf"),
        (["smoke", "--epsilon", "0.1"], "expected exactly one attack"),
        (["smoke", "--attacks", "FGSM", "--epsilon", "0"], "FGSM.epsilon: got 0.0"),
        (["smoke", "--attacks", "PGD-Linf", "--num-steps", "0"], "PGD-Linf.num_steps: got 0"),
        (["smoke", "--pool.num-workers", "0"], "pool.num_workers: got 0"),
        (["smoke", "--pool.gpus-per-worker", "2"], "pool.gpus_per_worker: got 2.0"),
        (["smoke", "--eot-samples", "0"], "eot_samples: got 0"),
        (["smoke", "--checkpoint", "{letters}"], "data: got 10 classes of 16 pixels"),
        (
            ["smoke", "--checkpoint", "{digits}", "--data.image-size", "24"],
            "data: got 10 classes of 24 pixels",
        ),
        (["smoke", "--checkpoint", "{classifier}"], "load_classifier"),
        (
            ["smoke", "--checkpoint", "{digits}", "--classifier", "{classifier}"],
            "classifier: got one, expected none for the threat model class-essential",
        ),
        (
            ["smoke", "--threat-model", "classifier", "--classifier", "{digits}"],
            "cdvae_ray.load",
        ),
        (
            [
                *("smoke", "--threat-model", "class-redundant"),
                *("--checkpoint", "{digits}", "--classifier", "{classifier}"),
            ],
            "classifier: got one trained on images, expected one trained on class_redundant",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(checkpoints, refused, arguments, complaint):
    filled = [
        str(argument).format(**checkpoints) if argument.startswith("{") else argument
        for argument in arguments
    ]
    refused("attack", filled, complaint)
