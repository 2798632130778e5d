"""Fields that configs gained later: earlier runs and checkpoints are named and read as before."""

from dataclasses import fields, replace

import pytest

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.classifier_job import ClassifierJobConfig, classifier_identity
from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.presets import preset
from cdvae_ray.config.serialize import digest_of, from_dict, to_dict
from cdvae_ray.config.train_job import TrainConfig, training_identity
from cdvae_ray.errors import ConfigError

# What version 0.1.0 stored of each default before it had later fields (commit 6923adc), and the
# digests that it gave: literals, from that version itself.
BEFORE = {
    ModelConfig: (
        {
            "vae_width": 32,
            "latent_size": 2048,
            "classifier_depth": 28,
            "classifier_widen_factor": 10,
            "classifier_dropout": 0.3,
            "pixel_mean": [0.4914, 0.4822, 0.4465],
            "pixel_std": [0.247, 0.2435, 0.2616],
            "evaluation_latent": "mean",
        },
        "9c12d77b2078ed0e7edce6425d538f7360e92751adc42779b920343059d66b6e",
    ),
    ClassifierConfig: (
        {
            "depth": 28,
            "widen_factor": 10,
            "dropout": 0.3,
            "pixel_mean": [0.4914, 0.4822, 0.4465],
            "pixel_std": [0.247, 0.2435, 0.2616],
        },
        "6606be754ea5a911398d3a032387f06f2a0f7ac053c70a9b3a7a11015dbef8fc",
    ),
    DataConfig: (
        {
            "source": "digits",
            "path": "",
            "image_size": 16,
            "download": False,
            "train_limit": None,
            "test_limit": None,
        },
        "d52b27c0b7ed32a0aa5cacaae073b400fa128f8f8ea5fb9b0a32a1e04cfa9fb4",
    ),
    AugmentationConfig: (
        {
            "crop_padding": 0,
            "horizontal_flip": False,
            "rand_augment_ops": 0,
            "rand_augment_magnitude": 10,
            "cutout_size": 0,
            "mixup_alpha": 0.0,
        },
        "6178f5f1b0f63cb54113e7a449c1361288e4e177fc6046f63e631ebe584c68d1",
    ),
}
RESNET = {"depth": 18, "widen_factor": 1, "dropout": 0.0}
CODES = ModelConfig(
    generator="vq_vae",
    codebook_size=64,
    commitment=0.5,
    classifier_network="resnet",
    classifier_depth=18,
    classifier_widen_factor=1,
    classifier_dropout=0.0,
)
STREAMED = DataConfig(
    source="parquet", path="x", image_size=299, streaming=True, lanes=4, max_corrupt_fraction=0.0
)
LATER = {
    CODES: {"generator", "codebook_size", "commitment", "classifier_network"},
    ClassifierConfig(network="resnet", **RESNET): {"network"},
    STREAMED: {"streaming", "lanes", "max_corrupt_fraction"},
    AugmentationConfig(min_crop_area=0.25): {"min_crop_area"},
}


@pytest.mark.parametrize("kind", BEFORE)
def test_a_default_is_stored_as_before_and_keeps_its_digest(kind):
    stored, digest = BEFORE[kind]
    assert to_dict(kind()) == stored
    assert list(to_dict(kind())) == list(stored)
    assert digest_of(to_dict(kind())) == digest_of(stored) == digest


def test_runs_keep_their_identity():
    cdvae = training_identity(TrainConfig(), precision="float32", train_digest="i")
    classifier = classifier_identity(
        ClassifierJobConfig(), precision="float32", train_digest="i", cdvae_digest="c"
    )
    assert [digest_of(identity) for identity in (cdvae, classifier)] == [
        "35d8c44185a4884af2d4ed48b90918f9729a789d2f53aa8e3716363ad8d22a02",
        "5a7a23ef740e9e00403cfc6717d88bb8c3a9eeb48ff682fcfd1325e0d74240f8",
    ]


@pytest.mark.parametrize("kind", BEFORE)
def test_what_was_stored_before_is_read_as_the_default(kind):
    stored, _ = BEFORE[kind]
    assert from_dict(kind, stored) == kind()


@pytest.mark.parametrize("config", LATER, ids=lambda config: type(config).__name__)
def test_other_values_are_stored_and_come_back(config):
    kind, names = type(config), LATER[config]
    before, _ = BEFORE[kind]
    stored = to_dict(config)
    assert set(before) | names == set(stored) == {field.name for field in fields(kind)}
    assert from_dict(kind, stored) == config
    for name in names:
        assert stored[name] == getattr(config, name) != getattr(kind(), name)


def test_each_later_value_names_another_run():
    base = preset("restricted-smoke")
    others = [
        replace(base, model=replace(base.model, codebook_size=17)),
        replace(base, model=replace(base.model, commitment=0.5)),
        replace(base, model=replace(base.model, generator="conv_vae", codebook_size=512)),
        replace(
            base,
            model=replace(base.model, classifier_network="wide_resnet", classifier_depth=10),
        ),
        replace(base, augmentation=AugmentationConfig(min_crop_area=0.5), data=STREAMED),
        replace(base, augmentation=AugmentationConfig(min_crop_area=0.25), data=STREAMED),
    ]
    digests = {
        digest_of(training_identity(each, precision="float32", train_digest="i"))
        for each in (base, *others)
    }
    assert len(digests) == 7


def test_a_value_that_is_set_to_its_default_is_left_out():
    # 0 and 0.0 are one setting, and so one run.
    assert to_dict(AugmentationConfig(min_crop_area=0)) == to_dict(AugmentationConfig())
    assert "codebook_size" not in to_dict(replace(CODES, codebook_size=512))


@pytest.mark.parametrize("kind", BEFORE)
def test_unknown_and_missing_keys_are_refused_still(kind):
    stored, _ = BEFORE[kind]
    with pytest.raises(ConfigError, match="version of cdvae_ray"):
        from_dict(kind, stored | {"gama": 1})
    for name in stored:
        less = {key: value for key, value in stored.items() if key != name}
        with pytest.raises(ConfigError, match="version of cdvae_ray"):
            from_dict(kind, less)


def test_a_later_value_is_checked_as_it_is_read():
    with pytest.raises(ConfigError, match=r"model\.commitment"):
        from_dict(ModelConfig, to_dict(CODES) | {"commitment": -1})
