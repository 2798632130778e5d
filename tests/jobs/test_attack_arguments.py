"""Bad input to jobs/attack.py: one line on stderr, exit code 1, nothing written.

All of it is found before a cluster is started, so these tests start none.
"""

import pytest


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
