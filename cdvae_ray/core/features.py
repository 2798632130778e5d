"""Features of a classifier, one vector an image and layer: what the detectors look at.

As in Lee et al. (2018), a layer's feature is the spatial mean of its activation. All functions are
differentiable in the images. Features describe images one by one only in eval mode.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.network import ClassifierNetwork
from cdvae_ray.errors import DataError

POOLED_LAYERS = ("conv1", "layer1", "layer2", "layer3")
"""Layers whose spatial mean is a feature; a WideResNet's layer3 is taken before its last
normalisation. A ResNet has layer4 besides."""
FEATURE_NAMES = (*POOLED_LAYERS, "penultimate", "logits")
"""All features of a WideResNet by name, in the order in which it computes them."""
_LAST_OF_RESNET = "layer4"


def pooled_layers(names: Collection[str], *, prefix: str = "") -> tuple[str, ...]:
    """The layers whose spatial mean is a feature, of a network that has these names.

    Args:
        names: of activations, features or columns.
        prefix: of the names.
    """
    last = (_LAST_OF_RESNET,) if prefix + _LAST_OF_RESNET in names else ()
    return (*POOLED_LAYERS, *last)


def layer_features(network: ClassifierNetwork, normalized_images: Tensor) -> dict[str, Tensor]:
    """f_l = mean over height and width of the activation of layer l.

    Args:
        network: in eval mode an image's features depend on it alone.
        normalized_images: float, (N, 3, H, W), in the network's own units.

    Returns:
        All that the network has in their order, each (N, d_l): its `pooled_layers`, penultimate,
        which is what the linear layer sees, and logits.

    Raises:
        DataError: the images are not floating point of shape (N, 3, H, W).
    """
    _check_images(normalized_images)
    activations = network.activations(normalized_images)
    pooled = {name: activations[name].mean(dim=(2, 3)) for name in pooled_layers(activations)}
    return {name: pooled.get(name, value) for name, value in activations.items()}


def normalized_essential(cdvae: CDVAE, images: Tensor, noise: Tensor | None = None) -> Tensor:
    """R(x) = x - G(x) in the networks' own units, which is what a CD-VAE's D looks at.

    Args:
        cdvae: the model, in the mode it is in.
        images: float, (N, 3, S, S), in [0, 1].
        noise: the N(0, I) of the reparameterisation, (N, Z), as in `CDVAE.forward`.

    Returns:
        (N, 3, S, S); times `cdvae.pixel_std` it is in pixel units.

    Raises:
        DataError: the images are not floating point of shape (N, 3, S, S).
    """
    _check_images(images, cdvae.image_size)
    normalized = (images - cdvae.pixel_mean) / cdvae.pixel_std
    reconstruction, _ = cdvae.reconstruct(normalized, noise)
    return normalized - reconstruction


def features_of_essential(
    cdvae: CDVAE, images: Tensor, noise: Tensor | None = None
) -> dict[str, Tensor]:
    """Features of D on R(x) = x - G(x) inside a CD-VAE; the logits are those of `cdvae(images)`.

    Args, Raises: as `normalized_essential`.

    Returns:
        As `layer_features`.
    """
    return layer_features(cdvae.classifier, normalized_essential(cdvae, images, noise))


def features_of_classifier(classifier: ImageClassifier, inputs: Tensor) -> dict[str, Tensor]:
    """Features of a plain classifier on x, G(x) or R(x).

    Args:
        classifier: the model, in the mode it is in.
        inputs: float, (N, 3, S, S), in pixel units: what `classifier_input` makes of images.

    Returns:
        As `layer_features`.

    Raises:
        DataError: the inputs are not floating point of shape (N, 3, S, S).
    """
    _check_images(inputs, classifier.image_size)
    normalized = (inputs - classifier.pixel_mean) / classifier.pixel_std
    return layer_features(classifier.network, normalized)


def _check_images(images: Tensor, image_size: int | None = None) -> None:
    size = ("H", "W") if image_size is None else (image_size, image_size)
    right_shape = images.dim() == 4 and images.shape[1] == 3
    if image_size is not None:
        right_shape = right_shape and tuple(images.shape[2:]) == size
    if not right_shape or not images.is_floating_point():
        raise DataError(
            "images to take features of",
            got=f"{images.dtype} of shape {tuple(images.shape)}",
            expected=f"floating point of shape (N, 3, {size[0]}, {size[1]})",
            remedy="divide uint8 images by 255 and resize them to the model's size",
        )
