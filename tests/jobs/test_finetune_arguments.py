"""Bad input to jobs/finetune_adversarial.py: one line on stderr, exit code 1, nothing written.

All of it is found before a cluster is started, so these tests start none.
"""

import pytest
import torch

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.loading import checkpoint_digest, load
from cdvae_ray.runtime import cluster
from cdvae_ray.storage.store import Store
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.state import TrainState
from tests.stored_checkpoints import save_checkpoint

from .conftest import DIGITS, ROOT

PARTS = ("--cdvae", "{digits}", "--classifier", "{classifier}")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    def connect(*_, **__):
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(cluster, "connect", connect)


@pytest.fixture(scope="module")
def parts(checkpoints, tmp_path_factory):
    """The common checkpoints, and classifiers of G(x) and R(x): behind the CD-VAE or another."""
    folder = tmp_path_factory.mktemp("behind")
    digest = checkpoint_digest(checkpoints["digits"])
    found = dict(checkpoints)
    for name, kind, behind in (
        ("essential", "class_essential", digest),
        ("redundant", "class_redundant", digest),
        ("foreign", "class_redundant", "f" * 64),
    ):
        task = ClassifierTask(
            input_kind=kind,
            cdvae=FrozenCdvae.of(load(checkpoints["digits"]), behind),
            model=ClassifierConfig(depth=10, widen_factor=1),
            class_names=DIGITS,
            training=TrainingConfig(epochs=1),
            augmentation=AugmentationConfig(),
            image_size=16,
        )
        save_checkpoint(
            Store.at(folder / name),
            TrainState(task, torch.device("cpu")),
            epochs_done=1,
            config_digest=name,
            identity={},
            metrics={},
        )
        found[name] = folder / name / "epoch-0001"
    return found


def filled(parts, arguments):
    return [
        argument.format(**parts) if argument.startswith("{") else argument for argument in arguments
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["released"], "preset: got 'released', expected one of quickstart, smoke"),
        (
            ["smoke"],
            "cdvae: got none, expected a trained one to start from; "
            "set --cdvae to a run of jobs/train.py",
        ),
        (
            ["smoke", "--cdvae", "{digits}"],
            "classifier: got none, expected a trained one to start from; "
            "set --classifier to a run of jobs/train_classifier.py",
        ),
        (["smoke", "--classifier", "{classifier}"], "cdvae: got none"),
        (["smoke", "--cdvae", "nowhere", "--classifier", "{classifier}"], "nowhere: got nothing"),
        (["smoke", "--cdvae", "{digits}", "--classifier", "nowhere"], "nowhere: got nothing there"),
        (["smoke", "--cdvae", "{classifier}", "--classifier", "{classifier}"], "expected a CD-VAE"),
        (["smoke", "--cdvae", "{digits}", "--classifier", "{digits}"], "expected a plain classif"),
        (
            ["smoke", "--cdvae", "{letters}", "--classifier", "{classifier}"],
            "cdvae: got a CD-VAE of the classes a, b, expected the classes of digits/train",
        ),
        (
            ["smoke", *PARTS, "--data.image-size", "24"],
            "cdvae: got a CD-VAE of 16x16 images, expected one of 24x24 images",
        ),
        (
            ["smoke", "--cdvae", "{digits}", "--classifier", "{essential}"],
            "classifier: got one trained on class_essential, expected one trained on images or on",
        ),
        (
            ["smoke", "--cdvae", "{digits}", "--classifier", "{foreign}"],
            "classifier: got one trained on G(x) of CD-VAE ffffffffffff, expected one of",
        ),
        (
            ["smoke", "--adversarial.margin", "1.5"],
            "adversarial.margin: got 1.5, expected a number in [-1, 1] on probabilities",
        ),
        (["smoke", "--adversarial.margin", "-1.01"], "adversarial.margin: got -1.01"),
        (
            ["smoke", "--adversarial.margin", "nan", "--adversarial.margin-on", "logits"],
            "adversarial.margin: got nan",
        ),
        (["smoke", "--adversarial.gamma", "-1"], "adversarial.gamma: got -1.0"),
        (["smoke", "--adversarial.beta", "inf"], "adversarial.beta: got inf"),
        (["smoke", "--clean-weight", "-1"], "clean_weight: got -1.0"),
        (["smoke", "--attack.epsilon", "0"], "attack.epsilon: got 0.0"),
        (["smoke", "--attack.num-steps", "0"], "attack.num_steps: got 0"),
        (["smoke", "--attack.step-size", "0"], "attack.step_size: got 0.0"),
        (["smoke", "--attack.confidence", "-1"], "attack.confidence: got -1.0"),
        (
            ["smoke", "--augmentation.mixup-alpha", "0.5"],
            "augmentation.mixup_alpha: got 0.5, expected 0 where adversarial examples",
        ),
        (
            ["smoke", *PARTS, "--training.global-batch-size", "1000"],
            "training.global_batch_size: got 1000, expected at most the 256 images",
        ),
        (
            [
                *("smoke", *PARTS, "--training.global-batch-size", "7"),
                *("--resources.num-workers", "2"),
            ],
            "training.global_batch_size: got 7 with 2 workers, expected a multiple of 2",
        ),
        (["smoke", "--resume", "--overwrite"], "resume, overwrite: got both"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(parts, refused, arguments, complaint):
    refused("finetune_adversarial", filled(parts, arguments), complaint)


@pytest.mark.parametrize("flag", ["--objective.gamma", "--objective.beta"])
def test_the_remedy_for_the_clean_objective_names_its_flag(refused, flag):
    refused("finetune_adversarial", ["smoke", flag, "-1"], f"set {flag} to such a number")


@pytest.mark.parametrize("margin", ["1.5", "-20", "20"])
def test_any_margin_is_taken_on_logits(refused, margin):
    arguments = ["smoke", "--adversarial.margin-on", "logits", "--adversarial.margin", margin]
    # What is wrong is what comes after it.
    refused("finetune_adversarial", arguments, "cdvae: got none")


@pytest.mark.parametrize("margin", ["-1", "0", "1"])
def test_the_ends_of_the_range_are_taken_on_probabilities(refused, margin):
    refused("finetune_adversarial", ["smoke", "--adversarial.margin", margin], "cdvae: got none")


@pytest.mark.parametrize("classifier", ["classifier", "redundant"])
def test_d_g_may_start_from_x_or_from_g_of_this_cdvae(parts, refused, classifier):
    arguments = ["smoke", "--cdvae", "{digits}", "--classifier", f"{{{classifier}}}"]
    # Both are taken: what is wrong is what comes after them.
    arguments += ["--training.global-batch-size", "1000"]
    refused("finetune_adversarial", filled(parts, arguments), "got 1000, expected at most the 256")


@pytest.mark.parametrize("preset", ["quickstart", "cifar10", "cifar10-released"])
def test_every_preset_asks_for_its_models(refused, preset):
    refused("finetune_adversarial", [preset], "cdvae: got none")


def test_the_help_lists_presets_and_every_flag(run_script):
    done = run_script("finetune_adversarial", ROOT, "--help")
    assert done.returncode == 0
    for word in ("quickstart", "cifar10-small", "cifar10-released", "--cdvae", "--classifier"):
        assert word in done.stdout
    for word in ("--adversarial.margin-on", "--attack.norm", "--clean-weight", "--objective.gamma"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--adversarial.margin-on", "odds"),
        ("--attack.norm", "l1"),
        ("--adversarial.essential-class", "least_probable"),
        ("--adversarial.margn", "0"),
    ],
)
def test_an_unknown_choice_or_flag_is_refused(run_script, tmp_path, flag, value):
    done = run_script("finetune_adversarial", tmp_path, "smoke", flag, value)
    assert done.returncode == 2
    assert flag in done.stdout + done.stderr
