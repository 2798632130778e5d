"""Attack settings: none is accepted and ignored, and identities hold what determines a set."""

import dataclasses
import inspect

import pytest

from cdvae_ray.config.attack import SUITES, TAKES, AttackConfig
from cdvae_ray.config.attack_job import (
    ATTACK_PRESETS,
    AttackJobConfig,
    PoolConfig,
    adversarial_set_identity,
    attack_preset,
)
from cdvae_ray.config.serialize import digest_of
from cdvae_ray.core.attacks.run import ATTACKS
from cdvae_ray.errors import ConfigError

PGD = AttackConfig(attack="pgd", label="PGD", epsilon=0.03, num_steps=10)


def test_the_settings_of_a_config_are_the_arguments_of_its_attack():
    for name, takes in TAKES.items():
        assert set(takes) <= set(inspect.signature(ATTACKS[name]).parameters), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "pgd2", "epsilon": 0.1}, "attack: got 'pgd2'"),
        ({"attack": "pgd", "num_steps": 5}, "X.epsilon"),
        ({"attack": "pgd", "epsilon": 0.0, "num_steps": 5}, "X.epsilon"),
        ({"attack": "pgd", "epsilon": 0.1}, "X.num_steps"),
        ({"attack": "pgd", "epsilon": 0.1, "num_steps": 0}, "X.num_steps"),
        ({"attack": "fgsm", "epsilon": 0.1, "num_steps": 5}, "X.num_steps"),
        ({"attack": "bim", "epsilon": 0.1, "num_steps": 5, "norm": "l2"}, "X.norm"),
        ({"attack": "pgd", "epsilon": 0.1, "num_steps": 5, "confidence": 1.0}, "X.confidence"),
        (
            {"attack": "margin_pgd", "epsilon": 0.1, "num_steps": 5, "confidence": -1.0},
            "X.confidence",
        ),
    ],
)
def test_settings_that_an_attack_does_not_take_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        AttackConfig(label="X", **settings)


def test_the_paper_s_settings():
    detection = {each.label: each for each in SUITES["detection"].attacks}
    assert set(detection) == {"FGSM", "BIM", "C&W", "PGD-Linf", "PGD-L2"}
    assert detection["FGSM"].sign_of_zero == 1
    assert detection["C&W"].confidence == 1000
    assert {each.num_steps for each in detection.values()} == {None, 5}
    assert all(each.step_size is None for each in detection.values())
    grey = SUITES["grey-box"]
    assert {each.num_steps for each in grey.attacks} == {100}
    assert {each.label for each in grey.attacks} == {
        "PGD-Linf", "PGD-L2", "C&W-Linf", "C&W-L2", "StAdv",
    }  # fmt: skip
    white = {each.label: each.epsilon for each in SUITES["white-box"].attacks}
    assert white == {
        "AutoAttack-Linf": 8 / 255,
        "AutoAttack-L2": 1.0,
        "JPEG": 0.125,
        "StAdv": 0.05,
        "ReColorAdv": 0.06,
    }


@pytest.mark.parametrize("name", list(ATTACK_PRESETS))
def test_every_preset_is_a_job(name):
    config = attack_preset(name)
    assert config.chosen_attacks() == SUITES[config.suite].attacks


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="preset: got 'gray-box'"):
        attack_preset("gray-box")


def test_overrides_need_one_attack():
    config = AttackJobConfig(suite="quick", attacks=("PGD-Linf",), epsilon=0.1, num_steps=7)
    (attack,) = config.chosen_attacks()
    assert (attack.epsilon, attack.num_steps) == (0.1, 7)
    with pytest.raises(ConfigError, match="exactly one attack"):
        AttackJobConfig(suite="quick", epsilon=0.1)
    with pytest.raises(ConfigError, match="attacks: got CW"):
        AttackJobConfig(suite="quick", attacks=("CW",))
    with pytest.raises(ConfigError, match=r"FGSM\.num_steps"):
        AttackJobConfig(suite="quick", attacks=("FGSM",), num_steps=7)


def identity(attack=PGD, *, is_stochastic=False, images="i", **changes):
    config = dataclasses.replace(AttackJobConfig(), **changes)
    return digest_of(
        adversarial_set_identity(
            attack,
            config,
            cdvae_digest="c",
            classifier_digest=None,
            images_digest=images,
            is_stochastic=is_stochastic,
        )
    )


def test_what_determines_a_set_is_in_its_identity():
    base = identity()
    assert base == identity(dataclasses.replace(PGD, label="another name"))
    assert base == identity(pool=PoolConfig(num_workers=4, batch_size=7, shard_size=9))
    assert base != identity(dataclasses.replace(PGD, epsilon=0.04))
    assert base != identity(dataclasses.replace(PGD, keep="last"))
    assert base != identity(seed=1)
    assert base != identity(images="j")
    assert base != identity(eot_samples=20)
    assert base != identity(threat_model="class-redundant")


def test_sets_whose_draws_belong_to_a_batch_name_the_batch():
    small = PoolConfig(batch_size=7)
    assert identity(is_stochastic=True) != identity(is_stochastic=True, pool=small)
    auto = AttackConfig(attack="auto_attack", label="AA", epsilon=0.03)
    assert identity(auto) != identity(auto, pool=small)
