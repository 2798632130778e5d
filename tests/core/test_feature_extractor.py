"""What a detector looks at in each space, against the functions that it is composed of."""

import pytest
import torch

from cdvae_ray.config.classifier import INPUT_KINDS, ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier, classifier_input
from cdvae_ray.core.feature_extractor import feature_extractor
from cdvae_ray.core.features import FEATURE_NAMES, features_of_classifier, features_of_essential
from cdvae_ray.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def cdvae(**changes):
    config = ModelConfig(
        vae_width=4,
        latent_size=8,
        classifier_depth=10,
        classifier_widen_factor=1,
        pixel_mean=MEAN,
        pixel_std=STD,
        **changes,
    )
    model = build_cdvae(config, image_size=16, class_names=CLASSES, seed=0).double().eval()
    # An untrained G hardly depends on the image; this one does, and leaves [0, 1].
    with torch.no_grad():
        model.generator.fc11.weight *= 10
        model.generator.fc21.weight *= 10
        model.generator.xi_bn.weight *= 4
    return model


def classifier(kind):
    # Its pixel units are not those of the CD-VAE, so that a mix-up of the two shows.
    config = ClassifierConfig(depth=10, widen_factor=1, pixel_mean=STD, pixel_std=MEAN)
    model = build_classifier(
        config, input_kind=kind, image_size=16, class_names=CLASSES, seed=1, cdvae_digest="d"
    )
    return model.double().eval()


def parts(space, **changes):
    """The parts of a space's extractor: in float64, so that other orders of sums hardly show."""
    return {
        "cdvae": None if space == "images" else cdvae(**changes),
        "classifier": None if space == "class_essential" else classifier(space),
    }


def composed_features(space, images, *, cdvae, classifier):
    if space == "class_essential":
        return features_of_essential(cdvae, images)
    return features_of_classifier(classifier, classifier_input(images, space, cdvae))


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 3, 16, 16, generator=generator, dtype=torch.float64)


# x - (x - G(x)) is G(x) up to rounding.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


@pytest.mark.parametrize("space", INPUT_KINDS)
def test_features_are_those_of_the_space_s_own_network(space, images):
    own = parts(space)
    extractor = feature_extractor(space, **own)
    expected = composed_features(space, images, **own)
    extraction = extractor(images)
    assert tuple(extraction.features) == FEATURE_NAMES
    for name in FEATURE_NAMES:
        torch.testing.assert_close(extraction.features[name], expected[name], **CLOSE)
        assert torch.equal(extractor.features(images)[name], extraction.features[name])
    assert extraction.logits is extraction.features["logits"]
    assert torch.equal(extractor.classify(images), extraction.logits)


def test_spaces_differ(images):
    logits = [feature_extractor(space, **parts(space)).classify(images) for space in INPUT_KINDS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(logits[first], logits[second], rtol=1e-2)


def test_logits_are_what_the_networks_answer(images):
    own = {space: parts(space) for space in INPUT_KINDS}
    logits = {
        space: feature_extractor(space, **own[space]).classify(images) for space in INPUT_KINDS
    }
    essential, redundant = own["class_essential"]["cdvae"], own["class_redundant"]
    assert torch.equal(logits["class_essential"], essential.classify_essential(images))
    assert torch.equal(logits["images"], own["images"]["classifier"](images))
    shown = redundant["cdvae"].decompose(images).class_redundant
    torch.testing.assert_close(logits["class_redundant"], redundant["classifier"](shown), **CLOSE)


@pytest.mark.parametrize("space", ["class_essential", "class_redundant"])
def test_the_residual_is_what_g_leaves_over(space, images):
    own = parts(space)
    residual = feature_extractor(space, **own)(images).residual
    decomposition = own["cdvae"].decompose(images)
    torch.testing.assert_close(residual, decomposition.class_essential, **CLOSE)
    torch.testing.assert_close(images - residual, decomposition.class_redundant, **CLOSE)
    assert decomposition.class_redundant.amin() < 0 and decomposition.class_redundant.amax() > 1
    assert residual.abs().amax() > 0.1


def test_images_have_no_residual(images):
    assert feature_extractor("images", **parts("images"))(images).residual is None


@pytest.mark.parametrize("space", ["class_essential", "class_redundant"])
def test_a_sampling_cdvae_draws_once_for_features_and_residual(space, images):
    own = parts(space, evaluation_latent="sample")
    extractor = feature_extractor(space, **own)
    torch.manual_seed(3)
    extraction = extractor(images)
    torch.manual_seed(3)
    decomposition = own["cdvae"].decompose(images)
    torch.testing.assert_close(extraction.residual, decomposition.class_essential, **CLOSE)
    if space == "class_essential":
        expected = decomposition.logits
    else:
        expected = own["classifier"](images - extraction.residual)
    torch.testing.assert_close(extraction.logits, expected, **CLOSE)
    assert not torch.allclose(extractor(images).residual, extraction.residual)


@pytest.mark.parametrize("space", INPUT_KINDS)
def test_gradients_reach_the_images_as_through_the_composition(space, images):
    own = parts(space)
    extractor = feature_extractor(space, **own)
    variable = images.clone().requires_grad_()
    extraction, expected = extractor(variable), composed_features(space, variable, **own)
    for name in FEATURE_NAMES:
        found, wanted = (
            torch.autograd.grad(features[name].square().sum(), variable, retain_graph=True)[0]
            for features in (extraction.features, expected)
        )
        torch.testing.assert_close(found, wanted, **CLOSE)
        assert (wanted.flatten(1) != 0).any(dim=1).all()


def test_the_gradient_of_the_residual_goes_through_g(images):
    own = parts("class_essential")
    variable = images.clone().requires_grad_()
    found, wanted, without_g = (
        torch.autograd.grad(residual.square().sum(), variable)[0]
        for residual in (
            feature_extractor("class_essential", **own)(variable).residual,
            own["cdvae"].decompose(variable).class_essential,
            variable - own["cdvae"].decompose(variable).class_redundant.detach(),
        )
    )
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert not torch.allclose(found, without_g)


@pytest.mark.parametrize("space", INPUT_KINDS)
def test_an_image_s_features_do_not_depend_on_the_batch_whatever_mode_parts_came_in(space, images):
    own = parts(space)
    for part in own.values():
        if part is not None:
            part.train()
    extractor = feature_extractor(space, **own)
    whole = extractor.features(images)
    order = torch.tensor([3, 0, 4])
    for name in FEATURE_NAMES:
        torch.testing.assert_close(
            extractor.features(images[order])[name], whole[name][order], **CLOSE
        )


@pytest.mark.parametrize("space", INPUT_KINDS)
def test_an_extractor_holds_its_parts_and_keeps_their_type(space, images):
    own = [part for part in parts(space).values() if part is not None]
    extractor = feature_extractor(space, **parts(space))
    assert (extractor.space, extractor.image_size, extractor.class_names) == (space, 16, CLASSES)
    held = len(list(extractor.parameters()))
    assert held == sum(len(list(part.parameters())) for part in own)
    for dtype in (torch.float32, torch.float64):
        extraction = extractor.to(dtype)(images.to(dtype))
        assert {each.dtype for each in extraction.features.values()} == {dtype}
        assert extraction.residual is None or extraction.residual.dtype == dtype


@pytest.mark.parametrize(
    ("space", "given", "complaint"),
    [
        ("images", (), "classifier for features of images: got none, expected one"),
        ("images", ("cdvae",), "cdvae for features of images: got one, expected none"),
        ("images", ("cdvae", "images"), "cdvae for features of images: got one, expected none"),
        ("images", ("class_redundant",), "got one trained on class_redundant, expected .* images"),
        ("images", ("class_essential",), "got one trained on class_essential, expected .* images"),
        ("class_essential", (), "cdvae for features of class_essential: got none, expected one"),
        ("class_essential", ("class_essential",), "cdvae for .*: got none, expected one"),
        (
            "class_essential",
            ("cdvae", "class_essential"),
            "classifier for features of class_essential: got one, expected none",
        ),
        ("class_redundant", (), "cdvae for features of class_redundant: got none, expected one"),
        ("class_redundant", ("cdvae",), "classifier for .*: got none, expected one"),
        ("class_redundant", ("class_redundant",), "cdvae for .*: got none, expected one"),
        (
            "class_redundant",
            ("cdvae", "images"),
            "got one trained on images, expected one trained on class_redundant",
        ),
        ("class_redundant", ("cdvae", "class_essential"), "got one trained on class_essential"),
    ],
)
def test_parts_that_are_missing_left_over_or_of_another_kind_are_refused(space, given, complaint):
    kinds = [kind for kind in given if kind != "cdvae"]
    with pytest.raises(ConfigError, match=complaint) as caught:
        feature_extractor(
            space,
            cdvae=cdvae() if "cdvae" in given else None,
            classifier=classifier(kinds[0]) if kinds else None,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("space", INPUT_KINDS)
def test_ill_shaped_images_are_refused(space, images):
    extractor = feature_extractor(space, **parts(space))
    for wrong in (images[0], images[:, :1], images[:, :, :12, :12], (images * 255).byte()):
        with pytest.raises(DataError, match="images to take features of"):
            extractor(wrong)
