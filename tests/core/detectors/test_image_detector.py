"""A detector of images is its parts put together, and differentiable through all of them."""

import dataclasses
import functools

import pytest
import torch

from cdvae_ray import detectors
from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier
from cdvae_ray.core.detectors.image_detector import RESIDUAL_LAYERS
from cdvae_ray.core.features import POOLED_LAYERS
from cdvae_ray.errors import ConfigError, DataError

CLASSES = ("a", "b", "c")
SPACES = ("images", "class_essential", "class_redundant")
NUM_NEIGHBOURS = 5
LAYERS = {
    "KD": ("penultimate",),
    "LID": POOLED_LAYERS,
    "MD": POOLED_LAYERS,
    "residual": RESIDUAL_LAYERS,
}
CASES = [
    (method, space)
    for method in LAYERS
    for space in SPACES
    if (method, space) != ("residual", "images")
]
# One case a method where what is tested is the same in all spaces.
ONE_A_METHOD = [(method, "class_essential") for method in LAYERS]


def coloured_images(count, seed):
    """Noise of another strength in every channel, so that features vary widely."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, 16, 16, generator=generator, dtype=torch.float64)
    return pixels * torch.rand(count, 3, 1, 1, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def extractors():
    """By space, of untrained networks in float64: other batches then hardly show."""
    model = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1)
    network = ClassifierConfig(depth=10, widen_factor=1)
    cdvae = build_cdvae(model, image_size=16, class_names=CLASSES, seed=0).double()
    # An untrained G hardly depends on the image; this one varies by 0.02, the image by 0.2.
    with torch.no_grad():
        cdvae.generator.fc11.weight *= 10
        cdvae.generator.fc21.weight *= 10
    on = {
        kind: build_classifier(
            network, input_kind=kind, image_size=16, class_names=CLASSES, seed=1
        ).double()
        for kind in ("images", "class_redundant")
    }
    return {
        "images": detectors.feature_extractor("images", classifier=on["images"]),
        "class_essential": detectors.feature_extractor("class_essential", cdvae=cdvae),
        "class_redundant": detectors.feature_extractor(
            "class_redundant", cdvae=cdvae, classifier=on["class_redundant"]
        ),
    }


@pytest.fixture(scope="module")
def fitted(extractors):
    """A function from a method and a space to the arguments of its detector."""
    train, labels, ids = coloured_images(120, seed=0), torch.arange(120) % 3, torch.arange(120)

    def fit_layer(method, features):
        if method == "MD":
            return detectors.fit_mahalanobis(detectors.class_moments(features, labels, 3))
        if method == "LID":
            return detectors.fit_lid(features, ids)
        return detectors.fit_kernel_density(features, labels, 3, bandwidth=0.3)

    @functools.cache
    def fit(method, space):
        with torch.no_grad():
            extractor = extractors[space]
            features = extractor.features(train)
            layers = {}
            if method != "residual":
                layers = {name: fit_layer(method, features[name]) for name in LAYERS[method]}
            arguments = {
                "method": method,
                "layers": layers,
                "num_neighbours": NUM_NEIGHBOURS if method == "LID" else 0,
            }
            scores = by_hand(extractor, coloured_images(60, seed=1), **arguments)
        return {
            "extractor": extractor,
            **arguments,
            "combination": detectors.fit_standardizer(scores),
            "threshold": 1.5,
        }

    return fit


def by_hand(extractor, images, *, method, layers, num_neighbours):
    """Scores by layer, from the features and the fitted detectors alone."""
    if method == "residual":
        residual = extractor.cdvae.decompose(images).class_essential.flatten(1)
        return {
            "residual_l2": residual.square().sum(dim=1).sqrt(),
            "residual_linf": residual.abs().amax(dim=1),
        }
    features = extractor.features(images)
    more = {"MD": (), "LID": (num_neighbours,), "KD": (features["logits"].argmax(dim=1),)}[method]
    return {name: each.score(features[name], *more) for name, each in layers.items()}


def build(arguments, **changes):
    return detectors.ImageDetector(**{**arguments, **changes})


@pytest.mark.parametrize(("method", "space"), CASES)
def test_the_score_is_the_composition_of_the_parts(method, space, fitted):
    arguments = fitted(method, space)
    extractor, combination = arguments["extractor"], arguments["combination"]
    detector, images = build(arguments), coloured_images(30, seed=2)
    own = {name: arguments[name] for name in ("method", "layers", "num_neighbours")}
    with torch.no_grad():
        layers, found = by_hand(extractor, images, **own), detector.layer_scores(images)
        assert set(found) == set(layers) == set(LAYERS[method])
        for name in layers:
            torch.testing.assert_close(found[name], layers[name], rtol=1e-9, atol=1e-9)
        scores = detector.score(images)
        torch.testing.assert_close(scores, combination.score(layers), rtol=1e-9, atol=1e-9)
        assert torch.equal(detector(images), scores)
    columns = torch.stack([layers[name] for name in combination.names], dim=1)
    standard = ((columns - combination.mean) / combination.std).sum(dim=1)
    torch.testing.assert_close(scores, standard, rtol=1e-9, atol=1e-9)
    assert scores.shape == (30,) and scores.dtype == torch.float64
    assert len(scores.unique()) == 30


@pytest.mark.parametrize(("method", "space"), CASES)
def test_what_is_unlike_the_training_images_scores_higher(method, space, fitted):
    detector = build(fitted(method, space))
    stripes = torch.zeros(30, 3, 16, 16, dtype=torch.float64)
    stripes[:, :, ::2] = 1
    with torch.no_grad():
        clean = detector.score(coloured_images(30, seed=2))
        strange = detector.score((stripes + 0.1 * coloured_images(30, seed=3)).clamp(0, 1))
    # The residual is small wherever images are dark, and so is its score.
    assert strange.median() > clean.median()


@pytest.mark.parametrize(("method", "space"), ONE_A_METHOD)
def test_flags_are_scores_above_the_threshold_without_gradient(method, space, fitted):
    arguments, images = fitted(method, space), coloured_images(31, seed=2).requires_grad_()
    with torch.no_grad():
        scores = build(arguments).score(images)
    # One of the scores: it is not above itself.
    threshold = float(scores.sort().values[20])
    detector = build(arguments, threshold=threshold)
    flags = detector.flags(images)
    assert detector.threshold == threshold
    assert flags.dtype == torch.bool and not flags.requires_grad
    assert torch.equal(flags, scores > threshold)
    assert int(flags.sum()) == 10


@pytest.mark.parametrize("space", SPACES)
def test_a_detector_classifies_as_the_network_that_it_looks_into(space, fitted):
    detector, images = build(fitted("MD", space)), coloured_images(5, seed=2)
    logits = detector.classify(images)
    assert torch.equal(logits, detector.extractor.features(images)["logits"])
    assert logits.shape == (5, 3)


@pytest.mark.parametrize(("method", "space"), CASES)
def test_the_gradient_is_that_of_differences(method, space, fitted):
    detector, images = build(fitted(method, space)), coloured_images(6, seed=2)
    variable = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.score(variable).sum(), variable)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1) != 0).any(dim=1).all()
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    # So short that hardly ever a rectifier or a nearest reference changes on the way.
    step = 1e-8
    with torch.no_grad():
        above, below = (detector.score(images + sign * step * direction) for sign in (1, -1))
    slope = (gradient * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close((above - below) / (2 * step), slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("method", "space"), ONE_A_METHOD)
def test_float32_images_have_float64_scores_and_gradients_of_their_own_type(method, space, fitted):
    arguments = fitted(method, space)
    images = coloured_images(6, seed=2)
    expected = build(arguments).score(images)
    detector = build(arguments)
    detector.float()
    try:
        variable = images.float().requires_grad_()
        scores = detector.score(variable)
        (gradient,) = torch.autograd.grad(scores.sum(), variable)
    finally:
        detector.double()
    assert scores.dtype == torch.float64 and gradient.dtype == torch.float32
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(scores, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("method", "space"), CASES)
def test_an_image_s_score_does_not_depend_on_the_others(method, space, fitted):
    detector, images = build(fitted(method, space)), coloured_images(13, seed=2)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = detector.score(images)
        parts = torch.cat([detector.score(part) for part in images.split(4)])
        turned = detector.score(images[order])
    torch.testing.assert_close(parts, scores, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(turned, scores[order], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("method", "space"), ONE_A_METHOD)
def test_ill_shaped_and_infinite_images_are_refused(method, space, fitted):
    detector, images = build(fitted(method, space)), coloured_images(3, seed=2)
    for wrong in (images[0], images[:, :, :8], (images * 255).byte(), images * torch.inf):
        with pytest.raises(DataError):
            detector.score(wrong)


# --- parts that do not belong together ----------------------------------------------------------


def renamed(arguments, **changes):
    return {"combination": dataclasses.replace(arguments["combination"], **changes)}


@pytest.mark.parametrize("other", ["KD", "LID", "MD"])
@pytest.mark.parametrize("method", ["KD", "LID", "MD", "residual"])
def test_layers_of_another_method_are_refused(method, other, fitted):
    own, foreign = fitted(method, "class_essential"), fitted(other, "class_essential")
    if method == other:
        assert build(own, layers=foreign["layers"]).method == method
        return
    # All of them, then one among those of the method.
    (name, layer), *_ = foreign["layers"].items()
    mixed = {**own["layers"], name: layer}
    for layers, combination in ((foreign["layers"], foreign["combination"]), (mixed, None)):
        changes = {} if combination is None else {"combination": combination}
        refused(own, "layers of another method", layers=layers, **changes)


@pytest.mark.parametrize("method", ["KD", "LID", "MD"])
def test_a_detector_without_layers_is_refused(method, fitted):
    arguments = fitted(method, "images")
    refused(arguments, "no layer", layers={})
    empty = renamed(arguments, names=())
    refused(arguments, "no layer", layers={}, **empty)


@pytest.mark.parametrize("method", ["KD", "LID", "MD", "residual"])
def test_a_combination_of_other_layers_is_refused(method, fitted):
    arguments = fitted(method, "class_essential")
    names = arguments["combination"].names
    for others in (names[1:], (*names, "layer9"), ("layer9", *names[1:]), None):
        found = ", ".join(others or ())
        refused(arguments, f"got layers of {found}", **renamed(arguments, names=others))


def test_the_layers_may_be_named_in_any_order(fitted):
    arguments, images = fitted("MD", "class_essential"), coloured_images(4, seed=2)
    layers = dict(reversed(arguments["layers"].items()))
    assert tuple(layers) != tuple(arguments["layers"])
    with torch.no_grad():
        scores = build(arguments, layers=layers).score(images)
        assert torch.equal(scores, build(arguments).score(images))


@pytest.mark.parametrize("method", ["KD", "LID", "MD", "residual"])
@pytest.mark.parametrize("num_neighbours", [-1, 0, 1, 2, 20])
def test_neighbours_belong_to_the_dimensionality_alone(method, num_neighbours, fitted):
    arguments = fitted(method, "class_essential")
    fits = num_neighbours >= 2 if method == "LID" else num_neighbours == 0
    if fits:
        assert build(arguments, num_neighbours=num_neighbours).num_neighbours == num_neighbours
    else:
        refused(arguments, f"got {num_neighbours} neighbours", num_neighbours=num_neighbours)


def test_a_residual_needs_a_space_with_a_g(fitted, extractors):
    arguments = fitted("residual", "class_essential")
    refused(arguments, "the space of images", extractor=extractors["images"])
    assert build(arguments, extractor=extractors["class_redundant"]).method == "residual"


def test_all_that_is_wrong_is_named_at_once(fitted, extractors):
    arguments = fitted("residual", "class_essential")
    refused(
        arguments,
        "got layers of other; .*the space of images.*; 7 neighbours, expected",
        extractor=extractors["images"],
        num_neighbours=7,
        **renamed(arguments, names=("other",)),
    )


def refused(arguments, complaint, **changes):
    """Asserts a ConfigError of one line."""
    with pytest.raises(ConfigError, match=complaint) as caught:
        build(arguments, **changes)
    assert str(caught.value).startswith(f"parts of a {arguments['method']} detector: got ")
    assert "\n" not in str(caught.value)
