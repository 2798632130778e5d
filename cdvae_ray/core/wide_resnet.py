"""WideResNet (Zagoruyko and Komodakis, 2016), laid out as in the authors' released weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cdvae_ray.core.network import ClassifierNetwork


class WideBlock(nn.Module):
    """Pre-activation block: bn1, relu, conv1 3x3, dropout, bn2, relu, conv2 3x3 (strided).

    The shortcut is a 1x1 convolution on the raw input where the shape changes. The stride is in
    conv2, as in the released code (in the original paper it is in conv1).
    """

    def __init__(self, in_planes: int, planes: int, *, dropout: float, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride=stride))

    def forward(self, features: Tensor) -> Tensor:
        # In place where autograd keeps nothing of the input: activations are most of the memory.
        out: Tensor = self.dropout(self.conv1(F.relu(self.bn1(features), inplace=True)))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        out += self.shortcut(features)
        return out


class WideResNet(ClassifierNetwork):
    """WideResNet-depth-widen_factor: normalised images (N, 3, H, W) to logits (N, classes).

    Args:
        depth: 6 n + 4.
        widen_factor: multiplies the widths 16, 32, 64.
        num_classes: number of logits.
        dropout: probability inside the blocks.
    """

    def __init__(
        self, *, depth: int, widen_factor: int, num_classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1)
        self.layer1 = _stage(widths[0], widths[1], blocks, dropout=dropout, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, dropout=dropout, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, dropout=dropout, stride=2)
        # The released code sets this momentum on the last normalisation alone.
        self.bn1 = nn.BatchNorm2d(widths[3], momentum=0.9)
        self.linear = nn.Linear(widths[3], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        features = F.relu(self.bn1(features), inplace=True)
        # At 32 x 32 this mean is the released code's average pooling over 8 x 8.
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits

    def activations(self, images: Tensor) -> dict[str, Tensor]:
        """What `forward` computes on its way, by name and in its order; differentiable.

        Returns:
            conv1, layer1, layer2, layer3 (N, planes, height, width), layer3 before the last
            normalisation; penultimate (N, planes), what the linear layer sees; logits (N, classes).
        """
        conv1: Tensor = self.conv1(images)
        layer1: Tensor = self.layer1(conv1)
        layer2: Tensor = self.layer2(layer1)
        layer3: Tensor = self.layer3(layer2)
        penultimate = F.relu(self.bn1(layer3), inplace=True).mean(dim=(2, 3))
        return {
            "conv1": conv1,
            "layer1": layer1,
            "layer2": layer2,
            "layer3": layer3,
            "penultimate": penultimate,
            "logits": self.linear(penultimate),
        }


def _stage(
    in_planes: int, planes: int, blocks: int, *, dropout: float, stride: int
) -> nn.Sequential:
    first = WideBlock(in_planes, planes, dropout=dropout, stride=stride)
    rest = (WideBlock(planes, planes, dropout=dropout, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
