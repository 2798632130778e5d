"""Adam (Kingma and Ba, 2015) for points that climb, with a state of its own for each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8


class Adam:
    """Moments of the gradients of a batch of points; beta 0.9 and 0.999, eps 1e-8.

    Every operation is elementwise, so that an image's path does not depend on the others.
    """

    def __init__(self, mean: Tensor, square: Tensor, *, step_size: float, num_taken: int) -> None:
        self.mean, self.square = mean, square
        self.step_size, self.num_taken = step_size, num_taken

    @classmethod
    def like(cls, points: Tensor, *, step_size: float) -> Adam:
        """Before the first step, for points (N, ...)."""
        return cls(
            torch.zeros_like(points), torch.zeros_like(points), step_size=step_size, num_taken=0
        )

    def ascend(self, points: Tensor, gradient: Tensor) -> Tensor:
        """The points one step up, p + a m^ / (sqrt(v^) + eps), Algorithm 1 with the sign turned.

        Takes the gradient into the moments.
        """
        self.num_taken += 1
        self.mean.lerp_(gradient, 1 - _BETA_1)
        self.square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        length = self.square.sqrt()
        length.div_(math.sqrt(1 - _BETA_2**self.num_taken)).add_(_EPS)
        rate = self.step_size / (1 - _BETA_1**self.num_taken)
        return torch.addcdiv(points, self.mean, length, value=rate)

    def select(self, rows: Tensor) -> Adam:
        """The state of some of the images, a copy."""
        return Adam(
            self.mean[rows],
            self.square[rows],
            step_size=self.step_size,
            num_taken=self.num_taken,
        )
