"""Features with known properties."""

import torch

NUM_CLASSES = 3


def gaussian_classes(count, width=8, *, seed=0, shift=0.0, dtype=torch.float64):
    """Features (count, width) of correlated Gaussian classes, and their labels."""
    fixed = torch.Generator().manual_seed(99)
    means = 2 * torch.randn(NUM_CLASSES, width, generator=fixed, dtype=torch.float64)
    mixing = torch.randn(width, width, generator=fixed, dtype=torch.float64) / width**0.5
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (count,), generator=drawn)
    labels[:NUM_CLASSES] = torch.arange(NUM_CLASSES)
    noise = torch.randn(count, width, generator=drawn, dtype=torch.float64)
    return (means[labels] + noise @ mixing + shift).to(dtype), labels
