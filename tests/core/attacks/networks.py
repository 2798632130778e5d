"""The network that the attacks' own tests attack."""

import math

import torch
from torch import nn


def fixed_network(
    height: int, width: int, *, classes: int, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A convolutional network of fixed random weights, for images of this size."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(),
        nn.LazyLinear(classes),
    )  # fmt: skip
    model(torch.zeros(1, 3, height, width))
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()
