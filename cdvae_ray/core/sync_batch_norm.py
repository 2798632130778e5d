"""Batch normalisation over the global batch of several ranks, on any device.

torch.nn.SyncBatchNorm runs on GPUs alone; this one also runs on gloo, which makes two CPU workers
compute what one worker computes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class CrossRankBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all ranks' images together.

    Every rank must hold equally many images, as training batches do.
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        ranks = dist.get_world_size()
        # Two passes, like the single-process layer: the one-pass E[x^2] - E[x]^2 cancels.
        mean = _sum_over_ranks(images.mean(dim=(0, 2, 3))) / ranks
        centred = images - mean.view(1, -1, 1, 1)
        variance = _sum_over_ranks(centred.square().mean(dim=(0, 2, 3))) / ranks
        with torch.no_grad():
            count = ranks * images.numel() // images.shape[1]
            unbiased = variance * (count / (count - 1))
            self.num_batches_tracked.add_(1)
            # As in PyTorch's layers, no momentum means a plain average over batches.
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(unbiased, share)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


def _sum_over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with every BatchNorm2d computing over all ranks; the state dict is unchanged."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # Only forward differs, so that parameters and buffers stay the very same objects.
            module.__class__ = CrossRankBatchNorm2d
    return model
