"""Settings of the empirical study: what they refuse, and what names its numbers."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from cdvae_ray.config.attack import SUITES
from cdvae_ray.config.attack_job import PoolConfig, adversarial_set_identity
from cdvae_ray.config.data import DataConfig
from cdvae_ray.config.serialize import digest_of, from_dict, to_dict
from cdvae_ray.config.study_job import (
    STUDY_PRESETS,
    StudyJobConfig,
    cross_set_identity,
    decomposition_set_identity,
    study_identity,
    study_preset,
)
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.errors import ConfigError

ONE_LINE = r"^[^\n]*: got [^\n]*, expected [^\n]*; [^\n]*$"
ELSEWHERE = {
    "checkpoint": "there",
    "classifier": "there",
    "redundant_classifier": "there",
    "essential_classifier": "there",
    "inception": "there",
    "data": DataConfig(source="folder", path="there"),
    "pool": PoolConfig(num_workers=2, batch_size=7, shard_size=9),
    "tracking": TrackingConfig(experiment="other"),
    "storage": "elsewhere",
    "overwrite": True,
    "summary": Path("summary.json"),
}
"""Paths, resources and logs: digests stand for what lies at the paths."""


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"seed": -1}, "seed: got -1"),
        ({"num_pictures": 0}, "num_pictures: got 0"),
        ({"suite": "white"}, "suite: got 'white'"),
        ({"attacks": ("CW",)}, "attacks: got CW"),
        ({"attacks": ("PGD-Linf", "CW")}, "attacks: got CW"),
        ({"epsilons": (0.0,)}, "epsilons: got 0.0"),
        ({"epsilons": (0.1, -0.1)}, "epsilons: got -0.1"),
        ({"epsilons": (float("nan"),)}, "epsilons: got nan"),
        ({"epsilons": (float("inf"),)}, "epsilons: got inf"),
        ({"epsilons": (0.1,), "attacks": ()}, "epsilons: got radii for all attacks"),
        ({"epsilons": (0.1,), "attacks": ("FGSM", "BIM")}, "epsilons: got radii for 2 attacks"),
        ({"storage": ""}, "storage: got nothing"),
    ],
)
def test_wrong_settings_are_one_line_errors(wrong, complaint):
    with pytest.raises(ConfigError, match=ONE_LINE) as refused:
        StudyJobConfig(**wrong)
    assert str(refused.value).startswith(complaint)


def test_the_ends_of_the_ranges_are_taken():
    StudyJobConfig(seed=0, num_pictures=1, epsilons=(1e-6, 1.0))
    assert StudyJobConfig(attacks=()).further_attacks() == ()


@pytest.mark.parametrize("name", STUDY_PRESETS)
def test_every_preset_is_a_job_that_names_no_network(name):
    config = study_preset(name)
    assert config is STUDY_PRESETS[name].config and STUDY_PRESETS[name].summary
    assert not any(
        getattr(config, each)
        for each in (
            *("checkpoint", "classifier", "redundant_classifier", "essential_classifier"),
            *("inception", "overwrite"),
        )
    )
    assert config.attack_job().chosen_attacks() == SUITES[config.suite].choose(config.attacks)
    assert (config.paper == "cifar10") == (config.data.source == "cifar10")
    labels = [each.label for each in config.further_attacks()]
    assert len(labels) == len(set(labels)) == len(config.epsilons)
    with pytest.raises(ConfigError, match="checkpoint: got none"):
        config.require_parts()


def test_a_config_comes_back_from_json():
    for name in STUDY_PRESETS:
        config = study_preset(name)
        assert from_dict(StudyJobConfig, to_dict(config)) == config


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'table-1', expected one of quickstart.*analyze\.py"):
        study_preset("table-1")


def test_parts_are_asked_for_by_name():
    StudyJobConfig()  # a preset names neither
    with pytest.raises(ConfigError, match=r"checkpoint: got none.*train one by jobs/train\.py"):
        StudyJobConfig(classifier="there").require_parts()
    with pytest.raises(ConfigError, match=r"classifier: got none.*--threat-model class-essential"):
        StudyJobConfig(checkpoint="here").require_parts()
    StudyJobConfig(checkpoint="here", classifier="there").require_parts()
    StudyJobConfig(checkpoint="here", threat_model="class-essential").require_parts()


# Attacks.


def test_further_attacks_are_the_attack_at_other_radii():
    config = StudyJobConfig(epsilons=(2 / 255, 16 / 255, 0.05))
    (attack,) = SUITES["detection"].choose(("PGD-Linf",))
    found = config.further_attacks()
    assert [(each.label, each.epsilon) for each in found] == [
        ("PGD-Linf, eps 2/255", 2 / 255),
        ("PGD-Linf, eps 16/255", 16 / 255),
        ("PGD-Linf, eps 12.75/255", 0.05),
    ]
    for each in found:
        assert replace(each, label=attack.label, epsilon=attack.epsilon) == attack


def test_radii_that_are_no_pixel_steps_are_told_as_they_are():
    for suite, label, expected in (
        ("detection", "PGD-L2", "PGD-L2, eps 0.5"),
        ("quick", "StAdv", "StAdv, eps 0.5"),
    ):
        config = StudyJobConfig(suite=suite, attacks=(label,), epsilons=(0.5,))
        assert [each.label for each in config.further_attacks()] == [expected]


def test_the_attacks_own_radius_is_not_made_twice():
    assert StudyJobConfig(epsilons=(8 / 255,)).further_attacks() == ()
    assert len(StudyJobConfig(epsilons=(8 / 255, 4 / 255)).further_attacks()) == 1


@pytest.mark.parametrize("epsilons", [(4 / 255, 4 / 255), (0.05, 0.050001)])
def test_further_attacks_differ_in_their_labels(epsilons):
    try:
        labels = [each.label for each in StudyJobConfig(epsilons=epsilons).further_attacks()]
    except ConfigError:
        return
    assert len(labels) == len(set(labels))


def test_attacks_are_found_where_the_attack_job_puts_them():
    base = StudyJobConfig(checkpoint="here", classifier="there", seed=3, storage="s")
    on_d = base.attack_job()
    assert (on_d.threat_model, on_d.checkpoint, on_d.classifier) == ("classifier", "", "there")
    assert (on_d.seed, on_d.storage, on_d.data, on_d.pool) == (3, "s", base.data, base.pool)
    assert (on_d.split, on_d.eot_samples, on_d.checks.strength_images) == ("test", 1, 0)
    assert not on_d.tracking.enabled
    through = replace(base, threat_model="class-essential").attack_job()
    assert (through.checkpoint, through.classifier) == ("here", "")
    digests = {
        digest_of(
            adversarial_set_identity(
                job.chosen_attacks()[0],
                job,
                cdvae_digest=None,
                classifier_digest="d",
                images_digest="i",
                is_stochastic=False,
            )
        )
        for job in (on_d, through, replace(base, seed=4).attack_job())
    }
    assert len(digests) == 3


# Identities.


def set_digest(config, **other):
    arguments = {
        "source": {"images": "adversarial", "adversarial_set": "a"},
        "cdvae_digest": "c",
        "attacked_digest": "d",
        "features_digest": "f",
        "images_digest": "i",
    }
    return digest_of(decomposition_set_identity(config, **(arguments | other)))


def test_numbers_by_image_change_with_all_that_matters_and_with_nothing_else():
    base = StudyJobConfig()
    same = {
        **ELSEWHERE,
        "paper": "cifar10",
        "num_pictures": 3,
        "noise_control": False,
        "epsilons": (0.1,),
        # The source names the adversarial set, whichever suite it is of.
        "suite": "smoke",
        "attacks": ("FGSM",),
    }
    matters = {"threat_model": "class-essential", "units": "pixel", "seed": 1}
    assert {each.name for each in fields(base)} == {*same, *matters}
    for name, value in same.items():
        assert set_digest(replace(base, **{name: value})) == set_digest(base), name
    digests = [set_digest(base)]
    digests += [set_digest(replace(base, **{name: value})) for name, value in matters.items()]
    digests += [
        set_digest(base, source={"images": "adversarial", "adversarial_set": "b"}),
        set_digest(base, source={"images": "matched-noise", "adversarial_set": "a", "seed": 0}),
        set_digest(base, cdvae_digest="x"),
        set_digest(base, attacked_digest="x"),
        set_digest(base, features_digest="x"),
        set_digest(base, images_digest="x"),
        # Not one in another's place.
        set_digest(base, cdvae_digest="d", attacked_digest="c"),
        set_digest(base, features_digest="i", images_digest="f"),
    ]
    assert len(set(digests)) == len(digests)


def test_table_3s_answers_change_with_every_network_and_the_noise():
    def digest(classifiers=None, *, cdvae="c", images="i", seed=0):
        return digest_of(
            cross_set_identity(
                {"images": "d", "class_redundant": "e"} if classifiers is None else classifiers,
                cdvae_digest=cdvae,
                images_digest=images,
                seed=seed,
            )
        )

    digests = [
        digest(),
        digest({"images": "d"}),
        digest({"images": "e", "class_redundant": "d"}),
        digest({"images": "d", "class_essential": "e"}),
        digest(cdvae="x"),
        digest(images="x"),
        digest(seed=1),
    ]
    assert len(set(digests)) == len(digests)
    assert digest({"class_redundant": "e", "images": "d"}) == digest()


def report_digest(config, *, sets=None, cross: str | None = "t"):
    return digest_of(study_identity(config, sets=sets or {"PGD-Linf": "s"}, cross=cross))


def test_a_report_changes_with_all_that_matters_and_with_nothing_else():
    base = StudyJobConfig()
    # By the digests of the sets.
    same = {
        **ELSEWHERE,
        "threat_model": "class-essential",
        "units": "pixel",
        "seed": 1,
        "noise_control": False,
        "epsilons": (0.1,),
    }
    matters = {"suite": "smoke", "attacks": ("FGSM",), "paper": "cifar10", "num_pictures": 3}
    assert {each.name for each in fields(base)} == {*same, *matters}
    for name, value in same.items():
        assert report_digest(replace(base, **{name: value})) == report_digest(base), name
    digests = [report_digest(base)]
    digests += [report_digest(replace(base, **{name: value})) for name, value in matters.items()]
    digests += [
        report_digest(base, sets={"PGD-Linf": "x"}),
        report_digest(base, sets={"BIM": "s"}),
        report_digest(base, sets={"PGD-Linf": "s", "noise": "n"}),
        report_digest(base, cross="x"),
        report_digest(base, cross=None),
    ]
    assert len(set(digests)) == len(digests)


def test_the_three_identities_are_of_three_kinds():
    config = StudyJobConfig()
    kinds = {
        decomposition_set_identity(
            config,
            {},
            cdvae_digest="",
            attacked_digest="",
            features_digest="",
            images_digest="",
        )["kind"],
        cross_set_identity({}, cdvae_digest="", images_digest="", seed=0)["kind"],
        study_identity(config, sets={}, cross=None)["kind"],
    }
    assert kinds == {"decomposition-set", "cross-set", "study-report"}
