"""Which networks make up a CD-VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import above, at_least, require

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """G, a convolutional VAE, and D, a WideResNet on the class-essential part."""

    vae_width: int = 32
    """Feature planes d of the VAE (32 in the released code): an even number."""
    latent_size: int = 2048
    """Number of latent factors z of the VAE."""
    classifier_depth: int = 28
    """Depth of the WideResNet, 6 n + 4: 10, 16, 22, 28, ..."""
    classifier_widen_factor: int = 10
    """Widening factor of the WideResNet."""
    classifier_dropout: float = 0.3
    """Dropout probability inside the WideResNet's blocks, in [0, 1)."""
    pixel_mean: Triple = (0.4914, 0.4822, 0.4465)
    """Mean of each channel, in [0, 1]: the model normalises its input with it."""
    pixel_std: Triple = (0.2470, 0.2435, 0.2616)
    """Standard deviation of each channel, > 0: the model normalises its input with it."""
    evaluation_latent: Literal["mean", "sample"] = "mean"
    """What G decodes in eval mode: the posterior mean (deterministic), or a sample of it (a
    randomised model, which attacks must meet with expectation over transformation)."""

    def __post_init__(self) -> None:
        require(
            self.vae_width >= 2 and self.vae_width % 2 == 0,
            "model.vae_width",
            got=self.vae_width,
            expected="an even number >= 2",
            remedy="set --model.vae-width to such a number",
        )
        at_least("model.latent_size", self.latent_size, 1)
        check_wide_resnet(
            "model.classifier_",
            depth=self.classifier_depth,
            widen_factor=self.classifier_widen_factor,
            dropout=self.classifier_dropout,
        )
        for std in self.pixel_std:
            above("model.pixel_std", std, 0.0)


def check_wide_resnet(prefix: str, *, depth: int, widen_factor: int, dropout: float) -> None:
    """Requires settings that a WideResNet can have; the prefix makes their names in messages."""
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
        remedy=f"set --{prefix.replace('_', '-')}dropout to such a number",
    )
