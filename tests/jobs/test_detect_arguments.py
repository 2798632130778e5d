"""Bad input to the detection jobs: one line on stderr, exit code 1, nothing written.

All of it is found before a cluster is started, so these tests start none.
"""

import pytest


def filled(checkpoints, arguments):
    return [
        str(argument).format(**checkpoints) if argument.startswith("{") else argument
        for argument in arguments
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["table-4"], "preset: got 'table-4', expected one of quickstart"),
        (["smoke"], "checkpoint: got none, expected a CD-VAE"),
        (["smoke", "--checkpoint", "nowhere"], "nowhere: got nothing there"),
        (["smoke", "--checkpoint", "{classifier}"], "expected a CD-VAE"),
        (
            ["smoke", "--checkpoint", "{sampling}"],
            "got a CD-VAE that draws its latent anew at each look, expected one that decodes",
        ),
        (["smoke", "--checkpoint", "{letters}"], "data: got 10 classes of 16 pixels"),
        (
            ["smoke", "--checkpoint", "{digits}", "--classifier", "{digits}"],
            "expected a plain classifier",
        ),
        (
            [
                *("smoke", "--checkpoint", "{digits}", "--classifier", "{classifier}"),
                *("--redundant-classifier", "{classifier}"),
            ],
            "classifier for features of class_redundant: got one trained on images",
        ),
        (
            ["smoke", "--checkpoint", "{digits}", "--redundant-classifier", "{classifier}"],
            "redundant_classifier: got one, without a classifier on x",
        ),
        (["smoke", "--attacks", "CW"], "attacks: got CW, expected some of FGSM, PGD-Linf"),
        (["smoke", "--detectors.magnitudes", "0.1"], "detectors.magnitudes: got (0.1,)"),
        (["smoke", "--detectors.num-neighbours", "1"], "detectors.num_neighbours: got 1"),
        (["smoke", "--detectors.lid-references", "5"], "detectors.lid_references: got 5"),
        (["smoke", "--detectors.bandwidths", "0"], "detectors.bandwidths: got 0.0"),
        (["smoke", "--split.train-fraction", "0.9"], "got 0.9 and 0.2, expected both above 0"),
        (["smoke", "--adaptive.epsilon", "0"], "adaptive.epsilon: got 0.0"),
        (["smoke", "--adaptive.step-scales", "-1"], "adaptive.step_scales: got -1.0"),
        (["smoke", "--num-resamples", "0"], "num_resamples: got 0"),
        (["smoke", "--pool.num-workers", "0"], "pool.num_workers: got 0"),
    ],
)
def test_bad_input_to_detect_is_one_line(checkpoints, refused, arguments, complaint):
    refused("detect", filled(checkpoints, arguments), complaint)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["quick"], "preset: got 'quick', expected one of digits, smoke, cifar10"),
        (["smoke"], "cdvae for features of class_essential: got none, expected one"),
        (
            ["smoke", "--checkpoint", "{digits}", "--classifier", "{classifier}"],
            "classifier for features of class_essential: got one, expected none",
        ),
        (
            [
                *("smoke", "--space", "class_redundant", "--checkpoint", "{digits}"),
                *("--classifier", "{classifier}"),
            ],
            "got one trained on images, expected one trained on class_redundant",
        ),
        (["smoke", "--source", "adversarial"], "adversarial_set: got none, expected one"),
        (["smoke", "--adversarial-set", "somewhere"], "adversarial_set: got 'somewhere'"),
        (
            [
                *("smoke", "--checkpoint", "{digits}", "--source", "adversarial"),
                *("--adversarial-set", "nowhere"),
            ],
            "adversarial_set: got no complete set at nowhere",
        ),
        (["smoke", "--noise-std", "0"], "noise_std: got 0.0"),
        (["smoke", "--checkpoint", "{letters}"], "data: got 10 classes of 16 pixels"),
    ],
)
def test_bad_input_to_extract_features_is_one_line(checkpoints, refused, arguments, complaint):
    refused("extract_features", filled(checkpoints, arguments), complaint)
