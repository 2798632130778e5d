"""Expectation over transformation, for models that answer at random (Athalye et al., 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from cdvae_ray.core.attacks.inputs import Classify
from cdvae_ray.errors import ConfigError


class Eot:
    """A stochastic classifier that attacks meet in expectation. Made by `eot`.

    Attacks of this package maximise the mean of the loss over `num_samples` draws, one backward
    pass a draw; the answer is the class of the highest mean probability over the draws.
    """

    def __init__(self, attacked: Classify, num_samples: int) -> None:
        self.attacked, self.num_samples = attacked, num_samples

    def draw(self, images: Tensor) -> Tensor:
        """The logits of one draw."""
        return self.attacked(images)

    def __call__(self, images: Tensor) -> Tensor:
        """The log of the mean probability over the draws, (N, classes)."""
        draws = [self.draw(images) for _ in range(self.num_samples)]
        return log_mean_probability(draws)


def eot(classify: Classify, *, num_samples: int = 20) -> Eot:
    """The same classifier for an attack that averages over its randomness.

    Attacks that would stop at the first iterate that fools do not under it (`drop_fooled`): that
    one may be a lucky draw. On a deterministic classifier it changes nothing else but the cost.

    Args:
        classify: images in [0, 1] to logits, at random.
        num_samples: draws a gradient, >= 1; 20 is what reviewers ask for at least.

    Raises:
        ConfigError: num_samples < 1.
    """
    if num_samples < 1:
        raise ConfigError(
            "num_samples", got=num_samples, expected=">= 1", remedy="pass such a number"
        )
    return Eot(classify, num_samples)


def log_mean_probability(draws: list[Tensor]) -> Tensor:
    """log of the mean of softmax(z) over draws of logits z (N, classes)."""
    if len(draws) == 1 or all(torch.equal(draws[0], each) for each in draws[1:]):
        # Equal answers are the answer: no rounding may come between them and a tie.
        return draws[0]
    stacked = torch.stack(draws).log_softmax(dim=-1)
    mean: Tensor = torch.logsumexp(stacked, dim=0) - torch.log(
        torch.tensor(float(len(draws)), dtype=stacked.dtype, device=stacked.device)
    )
    return mean
