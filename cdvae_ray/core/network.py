"""What every classifier network has besides its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ClassifierNetwork(nn.Module, ABC):
    """Normalised images (N, 3, H, W) to logits (N, classes), with the way there by name."""

    @abstractmethod
    def activations(self, images: Tensor) -> dict[str, Tensor]:
        """What `forward` computes on its way, by name and in its order; differentiable.

        Returns:
            The layers, (N, planes, height, width) each; then penultimate (N, planes), what the
            linear layer sees, and logits (N, classes).
        """
