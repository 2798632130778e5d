"""Configs are checked when they are made, come back from JSON, and name what they determine."""

from dataclasses import replace

import pytest

from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.presets import PRESETS, preset
from cdvae_ray.config.serialize import digest_of, from_dict, to_dict
from cdvae_ray.config.train_job import (
    TrainConfig,
    evaluation_identity,
    run_name,
    training_identity,
)
from cdvae_ray.config.training import EvaluationConfig, ResourcesConfig, TrainingConfig
from cdvae_ray.errors import ConfigError, NonFiniteLossError

ONE_LINE = r"^[^\n]*: got [^\n]*, expected [^\n]*; [^\n]*$"


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ModelConfig, {"vae_width": 3}),
        (ModelConfig, {"latent_size": 0}),
        (ModelConfig, {"classifier_depth": 12}),
        (ModelConfig, {"classifier_widen_factor": 0}),
        (ModelConfig, {"classifier_dropout": 1.0}),
        (ModelConfig, {"pixel_std": (0.2, 0.0, 0.2)}),
        (DataConfig, {"image_size": 20}),
        (DataConfig, {"source": "folder"}),
        (DataConfig, {"source": "digits", "path": "somewhere"}),
        (DataConfig, {"source": "parquet", "path": "x", "download": True}),
        (DataConfig, {"train_limit": 0}),
        (AugmentationConfig, {"crop_padding": -1}),
        (AugmentationConfig, {"rand_augment_magnitude": 11}),
        (AugmentationConfig, {"mixup_alpha": float("inf")}),
        (TrainingConfig, {"epochs": 0}),
        (TrainingConfig, {"learning_rate": 0.0}),
        (TrainingConfig, {"global_batch_size": 1}),
        (TrainingConfig, {"seed": -1}),
        (EvaluationConfig, {"attack_epsilon": 2.0}),
        (ResourcesConfig, {"num_workers": 0}),
        (ResourcesConfig, {"cpus_per_worker": 0}),
        (TrainConfig, {"resume": True, "overwrite": True}),
        (TrainConfig, {"storage": ""}),
    ],
)
def test_wrong_settings_are_one_line_errors(kind, wrong):
    with pytest.raises(ConfigError, match=ONE_LINE):
        kind(**wrong)


def test_mixup_needs_an_even_share_a_worker():
    with pytest.raises(ConfigError, match="a multiple of 4"):
        TrainConfig(
            augmentation=AugmentationConfig(mixup_alpha=2.0),
            training=TrainingConfig(global_batch_size=6),
            resources=ResourcesConfig(num_workers=2),
        )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_from_json(name):
    config = PRESETS[name].config
    for section in ("data", "augmentation", "model", "objective", "training", "evaluation"):
        value = getattr(config, section)
        assert from_dict(type(value), to_dict(value)) == value


def test_from_dict_is_strict():
    values = to_dict(ModelConfig())
    with pytest.raises(ConfigError, match="version of cdvae_ray"):
        from_dict(ModelConfig, values | {"gama": 1})
    with pytest.raises(ConfigError, match="latent_size"):
        from_dict(ModelConfig, values | {"latent_size": 0})


def test_the_papers_preset_is_the_papers():
    config = preset("cifar10")
    assert (config.model.classifier_depth, config.model.classifier_widen_factor) == (28, 10)
    assert (config.objective.beta, config.training.weight_decay) == (0.2, 1e-6)
    assert config.training.epochs == 300
    released = preset("cifar10-released")
    assert released.objective.gamma == 0.2
    assert [released.objective.reconstruction_weight(e) for e in (0, 100, 200)] == [10, 5, 1]


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="'fast', expected one of quickstart"):
        preset("fast")


def digest(config, precision="float32", images="i"):
    return digest_of(training_identity(config, precision=precision, train_digest=images))


def test_the_identity_is_what_determines_the_weights_and_nothing_else():
    base = preset("quickstart")
    same = [
        replace(base, resources=ResourcesConfig(num_workers=2, checkpoint_every=7)),
        replace(base, storage="elsewhere", resume=True),
        replace(base, evaluation=EvaluationConfig(attack_images=3)),
    ]
    other = [
        replace(base, objective=replace(base.objective, gamma=1.0)),
        replace(base, training=replace(base.training, seed=1)),
        replace(base, model=replace(base.model, latent_size=65)),
        replace(base, augmentation=AugmentationConfig()),
    ]
    assert {digest(config) for config in same} == {digest(base)}
    digests = {digest(config) for config in other}
    digests |= {digest(base, precision="bfloat16"), digest(base, images="j"), digest(base)}
    assert len(digests) == len(other) + 3
    assert run_name(digest(base)) == f"cdvae-{digest(base)[:12]}"
    evaluations = {
        digest_of(evaluation_identity(each, training_digest="t", test_digest="u"))
        for each in (base, same[2])
    }
    assert len(evaluations) == 2


def test_errors_survive_the_way_from_a_worker():
    import pickle

    error = NonFiniteLossError("loss", got="NaN", expected="a\nnumber", remedy="lower it")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - in memory, as Ray sends it
    assert type(again) is NonFiniteLossError
    assert str(again) == str(error) == "loss: got NaN, expected a number; lower it"
