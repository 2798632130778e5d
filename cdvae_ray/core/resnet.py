"""torchvision's ResNet (He et al., 2016) with its activations by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from cdvae_ray.core.network import ClassifierNetwork

# Depth to blocks: Table 1 of the paper, and a small one in its manner.
_BLOCKS: dict[int, tuple[Any, list[int]]] = {
    10: (resnet.BasicBlock, [1, 1, 1, 1]),
    18: (resnet.BasicBlock, [2, 2, 2, 2]),
    34: (resnet.BasicBlock, [3, 4, 6, 3]),
    50: (resnet.Bottleneck, [3, 4, 6, 3]),
    101: (resnet.Bottleneck, [3, 4, 23, 3]),
    152: (resnet.Bottleneck, [3, 8, 36, 3]),
}


class ResNet(resnet.ResNet, ClassifierNetwork):  # type: ignore[misc]  # torchvision has no types
    """ResNet-depth: normalised images (N, 3, H, W) to logits (N, classes).

    Its weights have torchvision's names and shapes.

    Args:
        depth: 10, 18, 34, 50, 101 or 152.
        num_classes: number of logits.
    """

    conv1: nn.Module
    bn1: nn.Module
    relu: nn.Module
    maxpool: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    avgpool: nn.Module
    fc: nn.Module

    def __init__(self, *, depth: int, num_classes: int) -> None:
        block, layers = _BLOCKS[depth]
        super().__init__(block, layers, num_classes=num_classes)

    def activations(self, images: Tensor) -> dict[str, Tensor]:
        """What `forward` computes on its way, by name and in its order; differentiable.

        Returns:
            conv1, layer1, layer2, layer3, layer4 (N, planes, height, width), conv1 before its
            normalisation; penultimate (N, planes), what the linear layer sees; logits (N, classes).
        """
        conv1: Tensor = self.conv1(images)
        stem: Tensor = self.maxpool(self.relu(self.bn1(conv1)))
        layer1: Tensor = self.layer1(stem)
        layer2: Tensor = self.layer2(layer1)
        layer3: Tensor = self.layer3(layer2)
        layer4: Tensor = self.layer4(layer3)
        penultimate = torch.flatten(self.avgpool(layer4), 1)
        return {
            "conv1": conv1,
            "layer1": layer1,
            "layer2": layer2,
            "layer3": layer3,
            "layer4": layer4,
            "penultimate": penultimate,
            "logits": self.fc(penultimate),
        }
