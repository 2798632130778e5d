"""Which networks make up a CD-VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import above, at_least, require
from cdvae_ray.config.serialize import later

Triple = tuple[float, float, float]
Network = Literal["wide_resnet", "resnet"]
"""wide_resnet: for small images, as in the released code. resnet: torchvision's, for ImageNet."""
RESNET_DEPTHS = (10, 18, 34, 50, 101, 152)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """G, an autoencoder, and D, a classifier of the class-essential part."""

    vae_width: int = 32
    """Feature planes d of G (32 in the released code): an even number."""
    latent_size: int = 2048
    """Number of latent factors z of the convolutional VAE (conv_vae only)."""
    classifier_depth: int = 28
    """Depth of D: of a WideResNet 6 n + 4 (10, 16, 22, ...), of a ResNet 10, 18, 34, 50, ..."""
    classifier_widen_factor: int = 10
    """Widening factor of the WideResNet; a ResNet has 1."""
    classifier_dropout: float = 0.3
    """Dropout probability inside the WideResNet's blocks, in [0, 1); a ResNet has 0."""
    pixel_mean: Triple = (0.4914, 0.4822, 0.4465)
    """Mean of each channel, in [0, 1]: the model normalises its input with it."""
    pixel_std: Triple = (0.2470, 0.2435, 0.2616)
    """Standard deviation of each channel, > 0: the model normalises its input with it."""
    evaluation_latent: Literal["mean", "sample"] = "mean"
    """What G decodes in eval mode: the posterior mean (deterministic), or a sample of it (a
    randomised model, which attacks must meet with expectation over transformation)."""
    generator: Literal["conv_vae", "vq_vae"] = later("conv_vae")
    """G: a convolutional VAE with a Gaussian latent, or a VQ-VAE with a grid of codes."""
    codebook_size: int = later(512)
    """Number of codes K of the VQ-VAE (vq_vae only): >= 2."""
    commitment: float = later(0.25)
    """Weight of the commitment term beside the code book's (vq_vae only): >= 0."""
    classifier_network: Network = later("wide_resnet")
    """D: a WideResNet, or torchvision's ResNet."""

    @property
    def noise_size(self) -> int:
        """Latent factors that are drawn: Z of the convolutional VAE, none of a VQ-VAE."""
        return self.latent_size if self.generator == "conv_vae" else 0

    def __post_init__(self) -> None:
        require(
            self.vae_width >= 2 and self.vae_width % 2 == 0,
            "model.vae_width",
            got=self.vae_width,
            expected="an even number >= 2",
            remedy="set --model.vae-width to such a number",
        )
        at_least("model.latent_size", self.latent_size, 1)
        at_least("model.codebook_size", self.codebook_size, 2)
        at_least("model.commitment", self.commitment, 0.0)
        self._check_generator()
        check_network(
            "model.classifier_",
            self.classifier_network,
            depth=self.classifier_depth,
            widen_factor=self.classifier_widen_factor,
            dropout=self.classifier_dropout,
        )
        for std in self.pixel_std:
            above("model.pixel_std", std, 0.0)

    def _check_generator(self) -> None:
        """Nothing is set that this G has not."""
        strangers = (
            ("codebook_size", "commitment")
            if self.generator == "conv_vae"
            else ("latent_size", "evaluation_latent")
        )
        for name in strangers:
            default = type(self).__dataclass_fields__[name].default
            require(
                getattr(self, name) == default,
                f"model.{name}",
                got=f"{getattr(self, name)} with generator {self.generator}",
                expected=f"{default}, as {self.generator} has no such thing",
                remedy=f"leave out --model.{name.replace('_', '-')}, or change --model.generator",
            )


def check_network(
    prefix: str, network: Network, *, depth: int, widen_factor: int, dropout: float
) -> None:
    """Requires settings that a network can have; the prefix makes their names in messages."""
    flag = prefix.replace("_", "-")
    if network == "wide_resnet":
        require(
            depth >= 10 and (depth - 4) % 6 == 0,
            f"{prefix}depth",
            got=depth,
            expected="6 n + 4 with n >= 1",
            remedy="choose 10, 16, 22, 28, ...",
        )
        at_least(f"{prefix}widen_factor", widen_factor, 1)
        require(
            0.0 <= dropout < 1.0,
            f"{prefix}dropout",
            got=dropout,
            expected="a number in [0, 1)",
            remedy=f"set --{flag}dropout to such a number",
        )
        return
    require(
        depth in RESNET_DEPTHS,
        f"{prefix}depth",
        got=f"{depth} for a ResNet",
        expected=f"one of {', '.join(map(str, RESNET_DEPTHS))}",
        remedy=f"set --{flag}depth to one of them",
    )
    for name, value, only in (("widen_factor", widen_factor, 1), ("dropout", dropout, 0.0)):
        require(
            value == only,
            f"{prefix}{name}",
            got=f"{value} for a ResNet",
            expected=f"{only:g}, as torchvision's ResNets have no other",
            remedy=f"set --{flag}{name.replace('_', '-')} {only:g}",
        )
