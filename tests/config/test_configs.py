"""Configs are checked when they are made, come back from JSON, and name what they determine."""

from dataclasses import replace

import pytest
import torch

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.classifier_presets import CLASSIFIER_PRESETS
from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.config.model import RESNET_DEPTHS, ModelConfig
from cdvae_ray.config.presets import PRESETS, preset
from cdvae_ray.config.serialize import digest_of, from_dict, to_dict
from cdvae_ray.config.train_job import (
    TrainConfig,
    evaluation_identity,
    run_name,
    training_identity,
)
from cdvae_ray.config.training import EvaluationConfig, ResourcesConfig, TrainingConfig
from cdvae_ray.core.cdvae import CDVAE, build_cdvae
from cdvae_ray.core.classifier import ImageClassifier, build_classifier
from cdvae_ray.errors import ConfigError, NonFiniteLossError

ONE_LINE = r"^[^\n]*: got [^\n]*, expected [^\n]*; [^\n]*$"
VQ = {"generator": "vq_vae"}
RESNET = {
    "classifier_network": "resnet",
    "classifier_depth": 18,
    "classifier_widen_factor": 1,
    "classifier_dropout": 0.0,
}
PLAIN_RESNET = {"network": "resnet", "depth": 18, "widen_factor": 1, "dropout": 0.0}
STREAMED = {"source": "parquet", "path": "x", "streaming": True}


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


@pytest.mark.parametrize(
    ("kind", "wrong", "setting"),
    [
        (ModelConfig, {"codebook_size": 64}, "model.codebook_size"),
        (ModelConfig, {"commitment": 0.5}, "model.commitment"),
        (ModelConfig, VQ | {"codebook_size": 1}, "model.codebook_size"),
        (ModelConfig, VQ | {"commitment": -0.1}, "model.commitment"),
        (ModelConfig, VQ | {"commitment": float("nan")}, "model.commitment"),
        (ModelConfig, VQ | {"latent_size": 64}, "model.latent_size"),
        (ModelConfig, VQ | {"evaluation_latent": "sample"}, "model.evaluation_latent"),
        (ModelConfig, RESNET | {"classifier_depth": 16}, "model.classifier_depth"),
        (ModelConfig, RESNET | {"classifier_depth": 28}, "model.classifier_depth"),
        (ModelConfig, RESNET | {"classifier_widen_factor": 2}, "model.classifier_widen_factor"),
        (ModelConfig, RESNET | {"classifier_dropout": 0.3}, "model.classifier_dropout"),
        (ModelConfig, {"classifier_depth": 18}, "model.classifier_depth"),
        (ClassifierConfig, PLAIN_RESNET | {"depth": 28}, "model.depth"),
        (ClassifierConfig, PLAIN_RESNET | {"widen_factor": 10}, "model.widen_factor"),
        (ClassifierConfig, PLAIN_RESNET | {"dropout": 0.3}, "model.dropout"),
        (ClassifierConfig, {"depth": 50}, "model.depth"),
        (DataConfig, {"source": "parquet", "path": "x", "image_size": 15}, "data.image_size"),
        (DataConfig, {"streaming": True}, "data.streaming"),
        (DataConfig, {"source": "folder", "path": "x", "streaming": True}, "data.streaming"),
        (DataConfig, STREAMED | {"train_limit": 100}, "data.train_limit"),
        (DataConfig, STREAMED | {"lanes": 0}, "data.lanes"),
        (DataConfig, STREAMED | {"max_corrupt_fraction": 1.0}, "data.max_corrupt_fraction"),
        (DataConfig, STREAMED | {"max_corrupt_fraction": -0.1}, "data.max_corrupt_fraction"),
        (DataConfig, {"source": "parquet", "path": "x", "lanes": 8}, "data.lanes"),
        (DataConfig, {"max_corrupt_fraction": 0.0}, "data.max_corrupt_fraction"),
        (AugmentationConfig, {"min_crop_area": -0.1}, "augmentation.min_crop_area"),
        (AugmentationConfig, {"min_crop_area": 1.1}, "augmentation.min_crop_area"),
        (AugmentationConfig, {"min_crop_area": float("nan")}, "augmentation.min_crop_area"),
        (
            TrainConfig,
            {"augmentation": AugmentationConfig(min_crop_area=0.5)},
            "augmentation.min_crop_area",
        ),
        (ResourcesConfig, {"loader_cpus": 0}, "resources.loader_cpus"),
        (
            TrainingConfig,
            {"schedule": "cosine", "learning_rate": 1e-4, "minimum_learning_rate": 1e-3},
            "training.minimum_learning_rate",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(kind, wrong, setting):
    with pytest.raises(ConfigError, match=ONE_LINE) as caught:
        kind(**wrong)
    assert str(caught.value).startswith(f"{setting}: ")


def test_settings_that_go_together_are_taken():
    ModelConfig(**VQ, codebook_size=2, commitment=0.0)
    ModelConfig(evaluation_latent="sample", latent_size=1, **RESNET)
    for depth in RESNET_DEPTHS:
        ModelConfig(**(RESNET | VQ | {"classifier_depth": depth}))
        ClassifierConfig(**(PLAIN_RESNET | {"depth": depth}))
    DataConfig(source="parquet", path="x", image_size=299, train_limit=5)
    data = DataConfig(**STREAMED, lanes=1, max_corrupt_fraction=0.0, test_limit=5)
    for area in (0.0, 0.25, 1.0):
        TrainConfig(data=data, augmentation=AugmentationConfig(min_crop_area=area))


def test_a_vq_vae_draws_no_noise():
    assert ModelConfig(**VQ).noise_size == 0
    assert ModelConfig(latent_size=7).noise_size == 7


# The paper's networks are of 36 and 25 million weights: they are built, but hold no numbers.
BIG = ("cifar10", "cifar10-released", "restricted-imagenet")


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in BIG])
def test_the_networks_of_small_presets_take_their_images(name):
    config = preset(name)
    size, classes = config.data.image_size, ("a", "b", "c")
    images = torch.rand(2, 3, size, size)
    built = [build_cdvae(config.model, image_size=size, class_names=classes, seed=0).eval()]
    if name in CLASSIFIER_PRESETS:
        classifier = build_classifier(
            CLASSIFIER_PRESETS[name].config.model,
            input_kind="images",
            image_size=size,
            class_names=classes,
            seed=0,
        )
        built.append(classifier.eval())
        # It is D by itself.
        expected = {key: value.shape for key, value in built[0].classifier.state_dict().items()}
        found = {key: value.shape for key, value in classifier.network.state_dict().items()}
        assert found == expected
    with torch.no_grad():
        assert built[0].decompose(images).class_redundant.shape == images.shape
        for model in built:
            answer = model(images)
            assert getattr(answer, "logits", answer).shape == (2, 3)


@pytest.mark.parametrize("name", BIG)
def test_the_networks_of_the_papers_presets_have_its_sizes(name):
    config = preset(name)
    classes = tuple(map(str, range(203 if name == "restricted-imagenet" else 10)))
    with torch.device("meta"):
        cdvae = CDVAE(config.model, image_size=config.data.image_size, class_names=classes)
    # WRN-28-10, or ResNet-50 with 203 instead of 1,000 classes.
    expected = 25_557_032 - 797 * 2_049 if name == "restricted-imagenet" else 36_489_290
    assert count(cdvae.classifier) == expected
    if name in CLASSIFIER_PRESETS:
        with torch.device("meta"):
            classifier = ImageClassifier(
                CLASSIFIER_PRESETS[name].config.model,
                input_kind="images",
                image_size=config.data.image_size,
                class_names=classes,
            )
        assert count(classifier.network) == expected


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


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
