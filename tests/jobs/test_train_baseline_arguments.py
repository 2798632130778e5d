"""Bad input to jobs/train_baseline.py: one line on stderr, exit code 1, nothing written.

All of it is found before a cluster is started, so these tests start none.
"""

import pytest

from cdvae_ray.config.baseline import BASELINE_NAMES, BASELINES
from cdvae_ray.runtime import cluster

from .conftest import ROOT


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    def connect(*_, **__):
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(cluster, "connect", connect)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["cifar10-released"], "preset: got 'cifar10-released', expected one of quickstart, smoke"),
        (["smoke", "--baseline", "madry"], "baseline: got 'madry', expected one of at-pgd-linf"),
        (
            ["smoke", "--baseline", "trades", "--recipe.width", "8"],
            "recipe.width: got 8, expected no such setting for TRADES; "
            "it takes epsilon, num_steps, step_size, weight",
        ),
        (["smoke", "--recipe.weight", "6"], "recipe.weight: got 6.0, expected no such setting"),
        (
            ["smoke", "--baseline", "pat", "--recipe.step-size", "0.1"],
            "recipe.step_size: got 0.1, expected no such setting for PAT; it takes epsilon, num_st",
        ),
        (
            ["smoke", "--baseline", "oia", "--recipe.target-momentum", "0.5"],
            "recipe.target_momentum: got 0.5, expected no such setting for OIA",
        ),
        (["smoke", "--recipe.epsilon", "0"], "recipe.epsilon: got 0.0, expected a finite number >"),
        (["smoke", "--recipe.num-steps", "0"], "recipe.num_steps: got 0"),
        (
            ["smoke", "--baseline", "sat", "--recipe.target-momentum", "1.5"],
            "recipe.target_momentum: got 1.5, expected a number in [0, 1]",
        ),
        (["smoke", "--baseline", "hgd", "--recipe.width", "7"], "recipe.width: got 7, expected an"),
        (["smoke", "--baseline", "hgd"], "classifier: got none, expected the trained classifier"),
        (["smoke", "--baseline", "ape-gan"], "that APE-GAN goes before; set --classifier"),
        (["smoke", "--baseline", "hgd", "--classifier", "nowhere"], "nowhere: got nothing there"),
        (
            ["smoke", "--augmentation.mixup-alpha", "1.0"],
            "augmentation.mixup_alpha: got 1.0, expected 0 where adversarial examples",
        ),
        (["smoke", "--baseline", "hgd", "--classifier", "{digits}"], "expected a plain classifier"),
        (["smoke", "--classifier", "{letters}"], "expected a plain classifier"),
        (
            ["smoke", "--classifier", "{classifier}", "--data.image-size", "24"],
            "classifier: got a classifier of 16x16 images, expected one of 24x24 images",
        ),
        (
            ["smoke", "--baseline", "oia"],
            "recipe.validation_images: got 1000, expected fewer than the 256 training images; "
            "lower --recipe.validation-images",
        ),
        (
            [
                *("smoke", "--baseline", "oia", "--recipe.validation-images", "200"),
                *("--training.global-batch-size", "64"),
            ],
            "training.global_batch_size: got 64, expected at most the 56 images",
        ),
        (
            ["smoke", "--training.schedule", "steps"],
            "training.step_epochs: got none, expected rising epochs",
        ),
        (["smoke", "--evaluation.attack-epsilon", "2"], "evaluation.attack_epsilon: got 2.0"),
        (["smoke", "--resume", "--overwrite"], "resume, overwrite: got both"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(checkpoints, refused, arguments, complaint):
    filled = [
        argument.format(**checkpoints) if argument.startswith("{") else argument
        for argument in arguments
    ]
    refused("train_baseline", filled, complaint)


def test_an_unknown_baseline_is_told_all_of_them_and_who_trains_the_rest(refused):
    refused("train_baseline", ["smoke", "--baseline", "normal"], ", ".join(BASELINE_NAMES))
    for job in ("jobs/train_classifier.py --input images", "jobs/finetune_adversarial.py"):
        refused("train_baseline", ["smoke", "--baseline", "ours"], job)


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_every_baseline_gets_as_far_as_the_data(refused, checkpoints, name):
    arguments = ["smoke", "--baseline", name, "--training.global-batch-size", "1000"]
    if BASELINES[name].is_purifier:
        arguments += ["--classifier", str(checkpoints["classifier"])]
    if name == "oia":
        arguments += ["--recipe.validation-images", "56"]
    images = 200 if name == "oia" else 256
    refused("train_baseline", arguments, f"got 1000, expected at most the {images} images")


def test_the_help_lists_presets_baselines_and_every_flag(run_script):
    done = run_script("train_baseline", ROOT, "--help")
    assert done.returncode == 0
    for word in (
        "quickstart",
        "smoke",
        "cifar10-small",
        "--baseline",
        "ape-gan",
        "--recipe.weight",
    ):
        assert word in done.stdout
    for word in ("--classifier", "--model.depth", "--evaluation.attack-images", "--summary"):
        assert word in done.stdout


def test_an_unknown_flag_is_refused(run_script, tmp_path):
    done = run_script("train_baseline", tmp_path, "smoke", "--recipe.wieght", "1")
    assert done.returncode == 2
    assert "--recipe.wieght" in done.stdout + done.stderr
