"""Features of images for the Frechet distance: Inception's where its weights are, else a D's."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.features import features_of_classifier, layer_features
from cdvae_ray.errors import CheckpointError

INCEPTION_SIZE = 299
_FEATURE = "penultimate"


class ImageFeatures(NamedTuple):
    """A function from images in [0, 1], (N, 3, S, S), to features (N, d), and which one it is."""

    module: nn.Module
    name: str
    """What people call it."""
    digest: str
    """Of its weights, which stands for their path."""


class ClassifierFeatures(nn.Module):
    """What the linear layer of a classifier on x sees of images."""

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to (N, d)."""
        return features_of_classifier(self.classifier, images)[_FEATURE]


class CdvaeFeatures(nn.Module):
    """What the linear layer of a CD-VAE's own D sees of images, were they R(x)."""

    def __init__(self, cdvae: CDVAE) -> None:
        super().__init__()
        self.cdvae = cdvae

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to (N, d)."""
        normalized = (images - self.cdvae.pixel_mean) / self.cdvae.pixel_std
        return layer_features(self.cdvae.classifier, normalized)[_FEATURE]


class InceptionFeatures(nn.Module):
    """The 2,048 pooled features of torchvision's Inception v3, at 299 x 299 pixels.

    Not the port of TensorFlow's graph that published FIDs use: close to it, not equal.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        from torchvision.models import inception_v3

        super().__init__()
        self.network = inception_v3(
            weights=None, aux_logits=True, transform_input=False, init_weights=False
        )
        self.network.load_state_dict(tensors)
        self.network.fc = nn.Identity()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to (N, 2048)."""
        size = (INCEPTION_SIZE, INCEPTION_SIZE)
        large = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        # transform_input comes to just this: inputs in [-1, 1].
        features: Tensor = self.network(2 * large - 1)
        return features


def inception_features(path: str) -> ImageFeatures:
    """Inception's features, its weights from a local file.

    Args:
        path: torchvision's inception_v3 state dict, .pth (read as tensors and nothing else) or
            .safetensors.

    Raises:
        CheckpointError: the file is absent, unreadable, or of another network.
    """
    file = Path(path)
    if not file.is_file():
        raise _not_inception(path, "no such file")
    content = file.read_bytes()
    try:
        tensors = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        module = InceptionFeatures(tensors)
    except (
        *(RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError),
        *(TypeError, AttributeError, IndexError, struct.error, SafetensorError),
    ) as error:
        raise _not_inception(path, f"a file that is none ({type(error).__name__})") from error
    return ImageFeatures(
        module, "Inception v3 (torchvision, ImageNet)", hashlib.sha256(content).hexdigest()
    )


def _not_inception(path: str, got: str) -> CheckpointError:
    return CheckpointError(
        path,
        got=got,
        expected="torchvision's inception_v3 weights, .pth or .safetensors",
        remedy="fetch inception_v3_google-0cc3c7bd.pth, or leave out --inception",
    )
