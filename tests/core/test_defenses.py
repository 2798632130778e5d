"""Defences as ordinary modules: what they compute, and which parts do not go together."""

import pytest
import torch
from torch import nn

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier, classifier_input
from cdvae_ray.core.defenses import JointModel, PurifiedClassifier, RedundantDefense
from cdvae_ray.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")


def cdvae(*, image_size=16, class_names=CLASSES, **model):
    settings = {
        "vae_width": 4,
        "latent_size": 8,
        "classifier_depth": 10,
        "classifier_widen_factor": 1,
        # Another normalisation than the classifier's: G(x) passes between them in pixel units.
        "pixel_mean": (0.4, 0.5, 0.6),
        "pixel_std": (0.2, 0.25, 0.3),
    }
    return build_cdvae(
        ModelConfig(**(settings | model)), image_size=image_size, class_names=class_names, seed=0
    ).eval()


def classifier(input_kind="class_redundant", *, image_size=16, class_names=CLASSES):
    return build_classifier(
        ClassifierConfig(depth=10, widen_factor=1),
        input_kind=input_kind,
        image_size=image_size,
        class_names=class_names,
        seed=1,
    ).eval()


def images(count=4, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


class Darken(nn.Module):
    """A purifier that can be computed by hand."""

    def forward(self, images):
        return images / 2


def test_the_defence_is_d_g_of_g():
    g, d_g = cdvae(), classifier()
    defense = RedundantDefense(g, d_g)
    expected = d_g(g.decompose(images()).class_redundant)
    torch.testing.assert_close(defense(images()), expected)
    torch.testing.assert_close(
        defense(images()), d_g(classifier_input(images(), "class_redundant", g))
    )
    assert (defense.image_size, defense.class_names) == (16, CLASSES)


def test_the_defence_is_differentiable_through_g():
    defense = RedundantDefense(cdvae(), classifier())
    variable = images().requires_grad_()
    (gradient,) = torch.autograd.grad(defense(variable).logsumexp(dim=1).sum(), variable)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()


def test_the_joint_model_is_the_defence_and_the_cdvae():
    defense = RedundantDefense(cdvae(), classifier())
    joint = JointModel(defense).eval()
    output = joint(images())
    torch.testing.assert_close(output.redundant_logits, defense(images()))
    torch.testing.assert_close(output.cdvae.logits, defense.cdvae.classify_essential(images()))
    noise = torch.randn(4, 8)
    noisy = joint(images(), noise)
    torch.testing.assert_close(noisy.cdvae.reconstruction, joint.cdvae(images(), noise)[1])
    assert not torch.allclose(noisy.redundant_logits, output.redundant_logits)
    alone = joint(images(), with_redundant=False)
    assert alone.redundant_logits is None
    torch.testing.assert_close(alone.cdvae.logits, output.cdvae.logits)


def test_the_joint_model_shares_weights_and_names_with_its_defence():
    defense = RedundantDefense(cdvae(), classifier())
    joint = JointModel(defense)
    assert joint.state_dict().keys() == defense.state_dict().keys()
    for name, tensor in joint.state_dict().items():
        assert tensor.data_ptr() == defense.state_dict()[name].data_ptr()
    again = joint.defense()
    assert again.cdvae is defense.cdvae and again.classifier is defense.classifier


def test_a_purified_classifier_is_d_of_p():
    d = classifier("images")
    defense = PurifiedClassifier(Darken(), d)
    torch.testing.assert_close(defense(images()), d(images() / 2))
    assert (defense.image_size, defense.class_names) == (16, CLASSES)


@pytest.mark.parametrize("kind", ["images", "class_essential"])
def test_d_g_has_to_see_the_redundant_part(kind):
    with pytest.raises(ConfigError) as caught:
        RedundantDefense(cdvae(), classifier(kind))
    message = str(caught.value)
    assert f"classifier: got one trained on {kind}, expected one trained on class_red" in message
    assert message.endswith("jobs/train_classifier.py --input class_redundant --cdvae ...")


@pytest.mark.parametrize("kind", ["class_redundant", "class_essential"])
def test_a_purifiers_classifier_has_to_see_images(kind):
    with pytest.raises(ConfigError) as caught:
        PurifiedClassifier(Darken(), classifier(kind))
    message = str(caught.value)
    assert f"classifier: got one trained on {kind}, expected one trained on images" in message
    assert message.endswith("jobs/train_classifier.py --input images")


@pytest.mark.parametrize(
    ("other", "got"),
    [
        ({"class_names": ("a", "b")}, "got 2 classes of 16 pixels"),
        ({"class_names": ("a", "b", "d")}, "got 3 classes of 16 pixels"),
        ({"image_size": 32}, "got 3 classes of 32 pixels"),
    ],
    ids=["fewer classes", "other classes", "other size"],
)
def test_parts_of_two_datasets_are_refused(other, got):
    with pytest.raises(ConfigError) as caught:
        RedundantDefense(cdvae(), classifier(**other))
    message = str(caught.value)
    assert f"classifier: {got}, expected the CD-VAE's 3 classes of 16 pixels" in message
    assert message.endswith("choose a classifier and a CD-VAE of one dataset")


@pytest.mark.parametrize("kind", ["redundant", "purified"])
def test_images_of_another_shape_are_refused(kind):
    defense = (
        RedundantDefense(cdvae(), classifier())
        if kind == "redundant"
        else PurifiedClassifier(Darken(), classifier("images"))
    )
    for wrong in (images(size=20), images()[0], images()[:, :1], (255 * images()).byte()):
        with pytest.raises(DataError, match=r"^images: got "):
            defense(wrong)
