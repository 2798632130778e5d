"""Batch normalisation over the global batch of several ranks, on any device.

torch.nn.SyncBatchNorm runs on GPUs alone; this one also runs on gloo, which makes two CPU workers
compute what one worker computes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm


class _NormalizedOverRanks(torch.autograd.Function):
    """PyTorch's fused kernels of one rank, told the statistics of all ranks' images.

    Each way ranks meet once, and each pass over the images is a kernel's: written out in tensor
    operations it took as long as all of a small network's convolutions.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised images, and the mean and (biased) variance of all ranks' images."""
        own = torch.stack(torch.batch_norm_update_stats(images, None, None, 0.0))
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(every, own)
        means, variances = torch.stack(every).unbind(dim=1)
        mean = means.mean(dim=0)
        # Within ranks and between them (Chan et al., 1983): E[x^2] - E[x]^2 would cancel.
        variance = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        ctx.save_for_backward(images, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return batch_norm(images, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, gradient: Tensor, *_: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        """Of the images, and this rank's part of those of weight and bias."""
        images, weight, mean, variance = ctx.saved_tensors
        inverse = torch.rsqrt(variance + ctx.eps)
        of_images, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, images, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        own = torch.stack([of_weight, of_bias])
        total = own.clone()
        dist.all_reduce(total)
        # weight / std (g - mean(g) - x^ mean(g x^)), where the kernel took the means over this
        # rank's images alone.
        count = images.numel() // images.shape[1]
        slope, offset = weight * inverse * (own - total / dist.get_world_size()) / count
        of_images += batch_norm(images, mean, variance, slope, offset, eps=ctx.eps)
        return of_images, of_weight, of_bias, None


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
        normalized: Tensor
        normalized, mean, variance = _NormalizedOverRanks.apply(  # type: ignore[no-untyped-call]
            images, self.weight, self.bias, self.eps
        )
        with torch.no_grad():
            count = dist.get_world_size() * images.numel() // images.shape[1]
            unbiased = variance * (count / (count - 1))
            self.num_batches_tracked.add_(1)
            # As in PyTorch's layers, no momentum means a plain average over batches.
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(unbiased, share)
        return normalized


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
