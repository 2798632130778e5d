"""Which network a plain classifier is, and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cdvae_ray.config.checks import above
from cdvae_ray.config.model import Network, Triple, check_network
from cdvae_ray.config.serialize import later

InputKind = Literal["images", "class_redundant", "class_essential"]
"""What a classifier is shown: x, G(x) or R(x) = x - G(x)."""

INPUT_KINDS: tuple[InputKind, ...] = ("images", "class_redundant", "class_essential")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """A classifier on its own: on images, on their class-redundant or class-essential part."""

    depth: int = 28
    """Depth. A WideResNet has 6 n + 4: 10, 16, 22, 28, ...; a ResNet 10, 18, 34, 50, 101, 152."""
    widen_factor: int = 10
    """Widening factor of the WideResNet; a ResNet has 1."""
    dropout: float = 0.3
    """Dropout probability inside the WideResNet's blocks, in [0, 1); a ResNet has 0."""
    pixel_mean: Triple = (0.4914, 0.4822, 0.4465)
    """Mean of each channel, in [0, 1], subtracted from x and G(x), not from R(x)."""
    pixel_std: Triple = (0.2470, 0.2435, 0.2616)
    """Standard deviation of each channel, > 0: the model divides its input by it."""
    network: Network = later("wide_resnet")
    """A WideResNet, or torchvision's ResNet."""

    def __post_init__(self) -> None:
        check_network(
            "model.",
            self.network,
            depth=self.depth,
            widen_factor=self.widen_factor,
            dropout=self.dropout,
        )
        for std in self.pixel_std:
            above("model.pixel_std", std, 0.0)
