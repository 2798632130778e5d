"""A plain classifier D on x, G(x) or R(x), each in pixel units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cdvae_ray.config.classifier import ClassifierConfig, InputKind
from cdvae_ray.config.model import Triple
from cdvae_ray.core.build_network import build_network
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.inputs import register_pixel_units, require_dataset, require_images
from cdvae_ray.errors import ConfigError


class ImageClassifier(nn.Module):
    """A network on inputs in pixel units; the normalisation is inside.

    Images x and their class-redundant part G(x) are normalised as (input - mean) / std. The
    class-essential part is a difference of two images, in which the mean cancels: R(x) / std is
    exactly the difference of normalised images that D sees inside a CD-VAE.

    Args:
        config: the network.
        input_kind: what it is trained on, and so how its input is normalised.
        image_size: side S of the images it is trained on, at least 8.
        class_names: one name a class; their number is the number of logits.
        cdvae_digest: digest of the CD-VAE behind which it is trained; None for images.

    Raises:
        ConfigError: an image size or a number of classes that the network cannot have.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        config: ClassifierConfig,
        *,
        input_kind: InputKind,
        image_size: int,
        class_names: tuple[str, ...],
        cdvae_digest: str | None = None,
    ) -> None:
        super().__init__()
        require_dataset(image_size, class_names)
        self.config = config
        self.input_kind: InputKind = input_kind
        self.image_size = image_size
        self.class_names = class_names
        self.cdvae_digest = cdvae_digest
        self.network = build_network(
            config.network,
            depth=config.depth,
            widen_factor=config.widen_factor,
            dropout=config.dropout,
            num_classes=len(class_names),
        )
        register_pixel_units(self, _mean_of(input_kind, config), config.pixel_std)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, classes) for inputs in pixel units.

        Args:
            inputs: float, (N, 3, S, S): what `classifier_input` makes of images. No range is
                asked for: G(x) may leave [0, 1] slightly and R(x) lies around 0.

        Raises:
            DataError: the inputs are not floating point of that shape.
        """
        return self._logits(inputs, self.pixel_mean)

    def classify(self, inputs: Tensor, shown: InputKind) -> Tensor:
        """Logits for another input than that trained on, normalised as what it is (Table 3).

        The paper's networks live in normalised units: R(x) has no mean to subtract, whichever
        network looks at it, and x and G(x) have.

        Args:
            inputs: float, (N, 3, S, S), in pixel units.
            shown: what the inputs are.

        Returns:
            (N, classes); for the own kind of input, what `forward` gives.

        Raises:
            DataError: the inputs are not floating point of that shape.
        """
        mean = self.pixel_std.new_tensor(_mean_of(shown, self.config)).view_as(self.pixel_std)
        return self._logits(inputs, mean)

    def _logits(self, inputs: Tensor, mean: Tensor) -> Tensor:
        require_images(
            inputs, self.image_size, what="inputs of the classifier", units="pixel units"
        )
        logits: Tensor = self.network((inputs - mean) / self.pixel_std)
        return logits


def classifier_input(
    images: Tensor, input_kind: InputKind, cdvae: CDVAE | None, *, noise: Tensor | None = None
) -> Tensor:
    """What a classifier of this kind is shown of images: x, G(x) or R(x) = x - G(x).

    Differentiable in the images (through G) and clamped nowhere, so that G(x) + R(x) is x.

    Args:
        images: float, (N, 3, S, S), in [0, 1].
        input_kind: which of the three.
        cdvae: makes G(x) in the mode it is in; not used for "images".
        noise: the N(0, I) of the reparameterisation, (N, Z), as in `CDVAE.forward`.

    Returns:
        (N, 3, S, S) in pixel units; G(x) may leave [0, 1] slightly.

    Raises:
        ConfigError: there is no CD-VAE to make G(x) or R(x).
    """
    if input_kind == "images":
        return images
    if cdvae is None:
        raise ConfigError(
            "cdvae",
            got="none",
            expected=f"a CD-VAE, whose G makes the {input_kind.replace('_', '-')} part",
            remedy="load the CD-VAE that the classifier was trained behind",
        )
    class_redundant = _class_redundant(images, cdvae, noise)
    return class_redundant if input_kind == "class_redundant" else images - class_redundant


def build_classifier(
    config: ClassifierConfig,
    *,
    input_kind: InputKind,
    image_size: int,
    class_names: tuple[str, ...],
    seed: int,
    cdvae_digest: str | None = None,
) -> ImageClassifier:
    """A freshly initialised classifier whose weights depend on the seed alone."""
    # PyTorch's layers initialise from the global generator: fork it, so the caller's is unmoved.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ImageClassifier(
            config,
            input_kind=input_kind,
            image_size=image_size,
            class_names=class_names,
            cdvae_digest=cdvae_digest,
        )


def _mean_of(input_kind: InputKind, config: ClassifierConfig) -> Triple:
    """What is subtracted from an input of a kind: from R(x), a difference, nothing."""
    return (0.0, 0.0, 0.0) if input_kind == "class_essential" else config.pixel_mean


def _class_redundant(images: Tensor, cdvae: CDVAE, noise: Tensor | None) -> Tensor:
    """G(x) in pixel units, as `CDVAE.decompose` gives it, without the cost of D(R(x))."""
    reconstruction, _ = cdvae.reconstruct((images - cdvae.pixel_mean) / cdvae.pixel_std, noise)
    return reconstruction * cdvae.pixel_std + cdvae.pixel_mean
