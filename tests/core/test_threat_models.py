"""Each threat model is the function that it names, and refuses parts that do not fit."""

import pytest
import torch

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier
from cdvae_ray.core.defenses import RedundantDefense
from cdvae_ray.core.threat_models import THREAT_MODELS, attacked_model
from cdvae_ray.errors import ConfigError

NAMES = ("a", "b", "c")


def cdvae(names=NAMES, size=16):
    config = ModelConfig(
        vae_width=4,
        latent_size=8,
        classifier_depth=10,
        classifier_widen_factor=1,
        classifier_dropout=0.0,
    )
    return build_cdvae(config, image_size=size, class_names=names, seed=0).eval()


def classifier(input_kind, names=NAMES, size=16):
    config = ClassifierConfig(depth=10, widen_factor=1, dropout=0.0)
    return build_classifier(
        config, input_kind=input_kind, image_size=size, class_names=names, seed=1
    ).eval()


def test_each_threat_model_is_the_function_that_it_names():
    images = torch.rand(2, 3, 16, 16)
    model, on_images = cdvae(), classifier("images")
    on_redundant = classifier("class_redundant")
    with torch.inference_mode():
        expected = {
            "classifier": on_images(images),
            "class-essential": model.decompose(images).logits,
            "class-redundant": on_redundant(model.decompose(images).class_redundant),
            "defense": on_redundant(model.decompose(images).class_redundant),
        }
        parts = {
            "classifier": (None, on_images),
            "class-essential": (model, None),
            "class-redundant": (model, on_redundant),
            "defense": (None, None, RedundantDefense(model, on_redundant)),
        }
        for name, (vae, head, *defense) in parts.items():
            attacked = attacked_model(
                name, cdvae=vae, classifier=head, defense=next(iter(defense), None)
            )
            torch.testing.assert_close(attacked(images), expected[name])
            assert (attacked.image_size, attacked.class_names) == (16, NAMES)
    assert set(THREAT_MODELS) == set(expected)


def test_gradients_reach_the_image_through_g():
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    attacked = attacked_model(
        "class-redundant", cdvae=cdvae(), classifier=classifier("class_redundant")
    )
    (gradient,) = torch.autograd.grad(attacked(images)[:, 0].sum(), images)
    assert (gradient != 0).any(dim=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("name", "vae", "head", "message"),
    [
        ("class-essential", False, None, "checkpoint: got none"),
        ("class-essential", True, "images", "classifier: got one, expected none"),
        ("classifier", False, None, "classifier: got none"),
        ("classifier", True, "images", "checkpoint: got one, expected none"),
        ("classifier", False, "class_redundant", "one trained on class_redundant"),
        ("class-redundant", True, "images", "one trained on images"),
        ("class-redundant", False, "class_redundant", "checkpoint: got none"),
    ],
)
def test_parts_that_do_not_fit_are_refused(name, vae, head, message):
    with pytest.raises(ConfigError, match=message):
        attacked_model(
            name,
            cdvae=cdvae() if vae else None,
            classifier=classifier(head) if head else None,
        )


def test_parts_of_two_datasets_are_refused():
    with pytest.raises(ConfigError, match="expected the CD-VAE's 3 classes of 16 pixels"):
        attacked_model(
            "class-redundant",
            cdvae=cdvae(),
            classifier=classifier("class_redundant", names=("a", "b")),
        )
