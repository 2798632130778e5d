"""An answer counts only where it is one, and is the same whenever it is asked for."""

import math

import pytest
import torch

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.answers import answering, predictions
from cdvae_ray.evaluation.image_computations import PredictionColumns

CPU = torch.device("cpu")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_no_answer(value):
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 0.0]])
    assert predictions(logits).tolist() == [1, 0, 0]
    logits[2, 1] = value
    with pytest.raises(DataError, match="got NaN or infinity for 1 of 3 images, expected finite"):
        predictions(logits)


def test_draws_depend_on_what_is_asked_alone():
    def draw(*what):
        with answering(3, *what, device=CPU):
            return torch.rand(4)

    before = torch.get_rng_state()
    first = draw("set", 0)
    torch.manual_seed(1)
    torch.rand(10)
    assert torch.equal(draw("set", 0), first)
    assert not torch.equal(draw("set", 128), first)
    torch.set_rng_state(before)
    draw("set", 0)
    assert torch.equal(torch.get_rng_state(), before)


class Coin(torch.nn.Module):
    """Answers class 1 in three of five draws, and surely then."""

    def forward(self, images):
        heads = (torch.rand(len(images)) < 0.6).float()
        return torch.stack([1 - heads, heads], dim=1) * 10


def test_of_a_stochastic_defence_the_mean_answer_counts():
    images, labels = torch.rand(200, 3, 8, 8), torch.ones(200, dtype=torch.int64)
    with answering(0, "coin", device=CPU):
        once = PredictionColumns(Coin())(images, labels, labels)["prediction"]
        often = PredictionColumns(Coin(), samples=51)(images, labels, labels)["prediction"]
    assert 0.45 < (once == labels).float().mean() < 0.75
    assert (often == labels).float().mean() > 0.85
