"""A trained classifier that a defence is trained around, or starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cdvae_ray.config.classifier import ClassifierConfig, InputKind
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.training.state import load_weights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrozenClassifier:
    """A classifier as settings and tensors, which travel to the workers and are rebuilt there."""

    config: ClassifierConfig
    input_kind: InputKind
    image_size: int
    class_names: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    """Weights and buffers by name, on the CPU."""
    digest: str
    """Names its network and weights, wherever they lie (`training.checkpoint.model_digest`)."""
    cdvae_digest: str | None
    """Of the CD-VAE behind which it was trained; None for a classifier of images."""

    @classmethod
    def of(cls, model: ImageClassifier, digest: str) -> FrozenClassifier:
        """What a loaded model comes to."""
        return cls(
            config=model.config,
            input_kind=model.input_kind,
            image_size=model.image_size,
            class_names=model.class_names,
            tensors={name: tensor.cpu() for name, tensor in model.state_dict().items()},
            digest=digest,
            cdvae_digest=model.cdvae_digest,
        )

    def build(self, *, input_kind: InputKind | None = None) -> ImageClassifier:
        """The model on the CPU, with these weights.

        Args:
            input_kind: what it is to see from now on; None: what it was trained on. x and G(x) are
                normalised alike, so that a classifier of the one can start on the other.
        """
        model = ImageClassifier(
            self.config,
            input_kind=input_kind or self.input_kind,
            image_size=self.image_size,
            class_names=self.class_names,
        )
        load_weights(model, self.tensors)
        return model
