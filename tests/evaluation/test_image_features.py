"""Features for the Frechet distance: those of the named layer, and files that are no weights."""

import hashlib
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import inception_v3

from cdvae_ray.core.features import features_of_classifier
from cdvae_ray.errors import CheckpointError
from cdvae_ray.evaluation.image_features import (
    INCEPTION_SIZE,
    CdvaeFeatures,
    ClassifierFeatures,
    InceptionFeatures,
    inception_features,
)
from tests.evaluation.small_networks import image_pairs, small_cdvae, small_classifier

# A classifier's.


@pytest.mark.parametrize("kind", ["images", "class_essential"])
def test_a_classifiers_features_are_what_its_linear_layer_sees(kind):
    classifier, (images, _) = small_classifier(kind), image_pairs(5)
    with torch.no_grad():
        found = ClassifierFeatures(classifier)(images)
        assert torch.equal(found, features_of_classifier(classifier, images)["penultimate"])
        torch.testing.assert_close(classifier.network.linear(found), classifier(images))
    assert found.shape == (5, 64) and found.std() > 0


def test_a_cdvaes_features_are_those_of_its_d_on_normalised_images():
    cdvae, (images, _) = small_cdvae(), image_pairs(5)
    with torch.no_grad():
        found = CdvaeFeatures(cdvae)(images)
        logits = cdvae.classifier((images - cdvae.pixel_mean) / cdvae.pixel_std)
        torch.testing.assert_close(cdvae.classifier.linear(found), logits)
    assert found.shape == (5, 64) and found.std() > 0


# Inception's.


@pytest.fixture(scope="module")
def network():
    """torchvision's Inception v3 with weights of He's size, that signals pass it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = inception_v3(
            weights=None, aux_logits=True, transform_input=False, init_weights=False
        )
        for layer in built.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data.mul_(6**0.5)
    return built.eval()


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """Its state dict in both formats."""
    folder = tmp_path_factory.mktemp("inception")
    tensors = network.state_dict()
    torch.save(tensors, folder / "weights.pth")
    save_file({name: each.contiguous() for name, each in tensors.items()}, folder / "w.safetensors")
    return {".pth": folder / "weights.pth", ".safetensors": folder / "w.safetensors"}


@pytest.fixture(scope="module")
def images():
    return image_pairs(2)[0]


@pytest.fixture(scope="module")
def expected(network, images):
    """The network itself, its last layer left out, on inputs in [-1, 1] of 299 x 299 pixels."""
    classify, network.fc = network.fc, nn.Identity()
    with torch.inference_mode():
        shown = F.interpolate(
            2 * images - 1, size=(INCEPTION_SIZE, INCEPTION_SIZE), mode="bilinear", antialias=True
        )
        features = network(shown)
    network.fc = classify
    assert shown.min() < -0.9 and shown.max() > 0.9
    assert features.std() > 1e-3 and (features[0] - features[1]).abs().max() > 1e-3
    return features


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_inceptions_features_are_those_of_the_network_of_the_file(files, images, expected, suffix):
    file = files[suffix]
    found = inception_features(str(file))
    assert found.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "Inception v3" in found.name
    with torch.inference_mode():
        features = found.module(images)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_the_digest_tells_other_weights_and_not_another_path(files, tmp_path):
    first = inception_features(str(files[".pth"]))
    copy = tmp_path / "elsewhere.pth"
    copy.write_bytes(files[".pth"].read_bytes())
    assert inception_features(str(copy)).digest == first.digest
    tensors = torch.load(copy, weights_only=True)
    tensors["fc.bias"] += 1
    torch.save(tensors, copy)
    assert inception_features(str(copy)).digest != first.digest


def test_one_images_features_depend_on_it_alone(network, images, expected):
    # Dropout and batch statistics are off, though nobody called eval().
    module = InceptionFeatures(network.state_dict())
    assert not any(each.training for each in module.modules())
    with torch.inference_mode():
        torch.testing.assert_close(module(images[1:]), expected[1:], rtol=1e-4, atol=1e-5)


def refusal(path):
    with pytest.raises(CheckpointError) as refused:
        inception_features(str(path))
    message = str(refused.value)
    assert message.startswith(f"{path}: got ") and "\n" not in message
    assert "expected torchvision's inception_v3 weights" in message
    assert message.endswith("or leave out --inception")
    return message


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "."])
def test_no_file_is_refused(tmp_path, name):
    assert "got no such file" in refusal(tmp_path / name)


def test_half_a_file_is_refused(files, tmp_path):
    content = files[".pth"].read_bytes()
    half = tmp_path / "half.pth"
    half.write_bytes(content[: len(content) // 2])
    assert "got a file that is none" in refusal(half)


@pytest.mark.parametrize("content", [b"", b"no weights", b"<!DOCTYPE html>", b"PK\x03\x04"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    assert "got a file that is none" in refusal(file)


@pytest.mark.parametrize(
    "content", [b"Report of 1 May\n", b"Gone\n"], ids=["IndexError", "struct.error"]
)
def test_a_file_that_pickles_opcodes_stumble_over_is_refused(tmp_path, content):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    refusal(file)


@pytest.mark.parametrize("damage", ["empty", "text", "half"])
def test_a_damaged_safetensors_file_is_refused(files, tmp_path, damage):
    content = files[".safetensors"].read_bytes()
    file = tmp_path / "weights.safetensors"
    file.write_bytes(
        {"empty": b"", "text": b"no weights", "half": content[: len(content) // 2]}[damage]
    )
    refusal(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_another_networks_weights_are_refused(tmp_path, suffix):
    file = tmp_path / f"other{suffix}"
    tensors = {"fc.weight": torch.ones(3, 2)}
    if suffix == ".pth":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    assert "got a file that is none (RuntimeError)" in refusal(file)


@pytest.mark.parametrize(
    "thing",
    [[1, 2], 3, {1: 2}, torch.ones(3), nn.Linear(2, 2)],
    ids=lambda thing: type(thing).__name__,
)
def test_a_file_of_no_state_dict_is_refused(tmp_path, thing):
    file = tmp_path / "thing.pth"
    torch.save(thing, file)
    assert "got a file that is none" in refusal(file)


class Touches:
    """Its pickle, once loaded, leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_runs_no_code(tmp_path):
    file, trace = tmp_path / "weights.pth", tmp_path / "trace"
    file.write_bytes(pickle.dumps(Touches(trace), protocol=2))
    refusal(file)
    assert not trace.exists()
