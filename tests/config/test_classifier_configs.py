"""The classifier's settings: what they refuse, and what names a run."""

from dataclasses import replace

import pytest

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.classifier_job import (
    ClassifierEvaluationConfig,
    ClassifierJobConfig,
    classifier_evaluation_identity,
    classifier_identity,
    classifier_run_name,
)
from cdvae_ray.config.classifier_presets import CLASSIFIER_PRESETS, classifier_preset
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.presets import preset
from cdvae_ray.config.serialize import digest_of, from_dict, to_dict
from cdvae_ray.config.training import ResourcesConfig, TrainingConfig
from cdvae_ray.errors import ConfigError

ONE_LINE = r"^[^\n]*: got [^\n]*, expected [^\n]*; [^\n]*$"


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ClassifierConfig, {"depth": 12}),
        (ClassifierConfig, {"widen_factor": 0}),
        (ClassifierConfig, {"dropout": 1.0}),
        (ClassifierConfig, {"pixel_std": (0.2, 0.0, 0.2)}),
        (ClassifierEvaluationConfig, {"batch_size": 0}),
        (ClassifierJobConfig, {"resume": True, "overwrite": True}),
        (ClassifierJobConfig, {"storage": ""}),
        (ClassifierJobConfig, {"input": "class_redundant"}),
        (ClassifierJobConfig, {"input": "class_essential"}),
        (ClassifierJobConfig, {"cdvae": "runs:/abc"}),
        (
            ClassifierJobConfig,
            {
                "augmentation": AugmentationConfig(mixup_alpha=2.0),
                "training": TrainingConfig(global_batch_size=6),
                "resources": ResourcesConfig(num_workers=2),
            },
        ),
    ],
)
def test_wrong_settings_are_one_line_errors(kind, wrong):
    with pytest.raises(ConfigError, match=ONE_LINE):
        kind(**wrong)


@pytest.mark.parametrize("name", CLASSIFIER_PRESETS)
def test_every_preset_has_the_data_and_the_d_of_the_main_job(name):
    mine, main = classifier_preset(name), preset(name)
    assert (mine.data, mine.augmentation) == (main.data, main.augmentation)
    assert mine.model.pixel_mean == main.model.pixel_mean
    assert mine.model.depth == main.model.classifier_depth
    assert mine.training.cosine_period_epochs == mine.training.epochs
    for section in ("data", "augmentation", "model", "training", "evaluation"):
        value = getattr(mine, section)
        assert from_dict(type(value), to_dict(value)) == value


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'cifar10-released', expected one of quickstart.*class"):
        classifier_preset("cifar10-released")


def digest(config, precision="float32", images="i", cdvae="c"):
    return digest_of(
        classifier_identity(config, precision=precision, train_digest=images, cdvae_digest=cdvae)
    )


def test_the_identity_holds_the_cdvae_and_not_its_path():
    base = replace(classifier_preset("quickstart"), input="class_redundant", cdvae="here")
    same = [
        replace(base, cdvae="there", storage="elsewhere", resume=True),
        replace(base, resources=ResourcesConfig(num_workers=2)),
        replace(base, evaluation=ClassifierEvaluationConfig(batch_size=3)),
    ]
    other = [
        replace(base, input="class_essential"),
        replace(base, training=replace(base.training, seed=1)),
        replace(base, model=replace(base.model, dropout=0.5)),
        replace(base, augmentation=AugmentationConfig()),
    ]
    assert {digest(config) for config in same} == {digest(base)}
    digests = {digest(config) for config in other} | {digest(base)}
    digests |= {digest(base, cdvae="d"), digest(base, images="j"), digest(base, "bfloat16")}
    assert len(digests) == len(other) + 4
    assert classifier_run_name(digest(base)) == f"classifier-{digest(base)[:12]}"
    evaluations = {
        digest_of(classifier_evaluation_identity(each, training_digest="t", test_digest="u"))
        for each in (base, same[2])
    }
    assert len(evaluations) == 2
