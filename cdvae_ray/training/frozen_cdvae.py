"""A trained CD-VAE that other models are trained behind: it makes their input and never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.random import image_keys, keyed_normal
from cdvae_ray.training.state import load_weights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrozenCdvae:
    """A CD-VAE as settings and tensors, which travel to the workers and are rebuilt there."""

    config: ModelConfig
    image_size: int
    class_names: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    """Weights and buffers by name, on the CPU."""
    digest: str
    """Names its networks and weights, wherever they lie (`training.checkpoint.model_digest`)."""

    @classmethod
    def of(cls, model: CDVAE, digest: str) -> FrozenCdvae:
        """What a loaded model comes to."""
        return cls(
            config=model.config,
            image_size=model.image_size,
            class_names=model.class_names,
            tensors={name: tensor.cpu() for name, tensor in model.state_dict().items()},
            digest=digest,
        )

    def build(self, device: torch.device, *, memory_format: torch.memory_format) -> CDVAE:
        """The model on a device, in eval mode; its weights take no gradient."""
        model = CDVAE(self.config, image_size=self.image_size, class_names=self.class_names)
        load_weights(model, self.tensors)
        model.to(device).to(memory_format=memory_format)
        return model.eval().requires_grad_(False)


def latent_noise(
    cdvae: CDVAE, image_ids: Tensor, *, purpose: str, seed: int, epoch: int
) -> Tensor | None:
    """What a frozen G adds to the posterior mean: keyed noise if it samples, else nothing.

    Args:
        cdvae: in eval mode.
        image_ids: (N,) int64, on the device.
        purpose, seed, epoch: key the noise, as in `core.random.image_keys`.

    Returns:
        (N, Z), or None where the CD-VAE decodes the posterior mean.
    """
    if cdvae.config.evaluation_latent == "mean":
        return None
    return keyed_normal(image_keys(seed, purpose, epoch, image_ids), cdvae.config.noise_size)
