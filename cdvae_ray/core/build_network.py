"""The classifier networks that a config can name."""

from __future__ import annotations

from cdvae_ray.config.model import Network
from cdvae_ray.core.network import ClassifierNetwork
from cdvae_ray.core.wide_resnet import WideResNet


def build_network(
    network: Network, *, depth: int, widen_factor: int, dropout: float, num_classes: int
) -> ClassifierNetwork:
    """A network of normalised images (N, 3, H, W) to logits (N, classes).

    Args:
        network: which family.
        depth, widen_factor, dropout: as `config.model.check_network` allows them.
        num_classes: number of logits.
    """
    if network == "wide_resnet":
        return WideResNet(
            depth=depth, widen_factor=widen_factor, num_classes=num_classes, dropout=dropout
        )
    # Only here: the rest of the core needs torch alone.
    from cdvae_ray.core.resnet import ResNet

    return ResNet(depth=depth, num_classes=num_classes)
