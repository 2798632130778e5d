"""Reads the weights that the paper's authors published into a CDVAE.

The layouts are those of `CVAE_cifar` and `CVAE_imagenet` in the authors' repository
(kai-wen-yang/CD-VAE, commit a33b507): a plain state dict, its keys with or without DataParallel's
prefix `module.`.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from cdvae_ray.config.model import RESNET_DEPTHS, ModelConfig
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.pretrained import read_state_dict
from cdvae_ray.errors import CheckpointError

_GENERATOR_PARTS = (
    *("encoder.", "decoder."),
    *("xi_bn.", "fc11.", "fc12.", "fc21."),  # CVAE_cifar
    *("emb.", "L_bn."),  # CVAE_imagenet
)
# The published file says nothing of its images; the paper's are of this size.
_IMAGENET_SIZE = 299
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EXPECTED = "a state dict of the authors' CVAE_cifar or CVAE_imagenet"
_REMEDY = "use the authors' file, or cdvae_ray.load for checkpoints of this project"
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def load_released_checkpoint(path: str | Path) -> CDVAE:
    """A CDVAE in eval mode with the authors' published weights.

    The sizes of the networks are inferred from the tensors' shapes. Only tensors are read from
    the file (`weights_only`): nothing else that it may hold is unpickled.

    Args:
        path: a state dict saved by torch.save, alone or under the key "state_dict".

    Raises:
        CheckpointError: the file is absent, is no such state dict, or lacks or adds a key.
    """
    state = _strip_prefix(read_state_dict(Path(path), expected=_EXPECTED, remedy=_REMEDY), path)
    is_imagenet = "emb.weight" in state
    own = (
        ("emb.weight", "classifier.layer1.0.conv1.weight", "classifier.fc.weight")
        if is_imagenet
        else ("fc11.weight", "classifier.linear.weight")
    )
    for name in ("encoder.0.weight", *own):
        if name not in state:
            raise _not_released(path, f"no tensor {name}")
    infer = _infer_imagenet_sizes if is_imagenet else _infer_sizes
    config, image_size, num_classes = infer(state, path)
    names = (
        CIFAR10_CLASSES if num_classes == 10 else tuple(f"class {i}" for i in range(num_classes))
    )
    model = CDVAE(config, image_size=image_size, class_names=names)
    renamed = {
        f"generator.{name}" if name.startswith(_GENERATOR_PARTS) else name: tensor
        for name, tensor in state.items()
    }
    expected = model.state_dict()
    # Older PyTorch releases did not count batches; the count takes no part in the outputs.
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            renamed.setdefault(name, tensor)
    missing = sorted(set(expected) - set(renamed))
    left_over = sorted(set(renamed) - set(expected))
    if missing or left_over:
        raise _not_released(path, f"missing keys {missing[:4]}, keys left over {left_over[:4]}")
    for name, tensor in renamed.items():
        if tensor.shape != expected[name].shape:
            raise _not_released(
                path,
                f"{name} of shape {tuple(tensor.shape)} where the others imply "
                f"{tuple(expected[name].shape)}",
            )
    model.load_state_dict(renamed, strict=True)
    return model.eval()


def _strip_prefix(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    prefixed = [name for name in state if name.startswith("module.")]
    if prefixed and len(prefixed) != len(state):
        raise _not_released(path, "the prefix module. on some keys only")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _infer_sizes(state: dict[str, Tensor], path: str | Path) -> tuple[ModelConfig, int, int]:
    encoder, means, last = (
        state[name] for name in ("encoder.0.weight", "fc11.weight", "classifier.linear.weight")
    )
    if encoder.dim() != 4 or means.dim() != 2 or last.dim() != 2 or not encoder.numel():
        raise _not_released(path, "tensor shapes that no CVAE_cifar has")
    width = 2 * len(encoder)
    latent_size, flat = means.shape
    side = round((flat / width) ** 0.5)
    num_classes, last_planes = last.shape
    blocks = [
        int(match.group(1))
        for name in state
        if (match := re.match(r"classifier\.layer1\.(\d+)\.", name))
    ]
    if not blocks or side * side * width != flat or last_planes % 64 or side < 2:
        raise _not_released(path, "tensor shapes that no CVAE_cifar has")
    config = ModelConfig(
        vae_width=width,
        latent_size=latent_size,
        classifier_depth=6 * (max(blocks) + 1) + 4,
        classifier_widen_factor=last_planes // 64,
    )
    return config, 4 * side, num_classes


def _infer_imagenet_sizes(
    state: dict[str, Tensor], path: str | Path
) -> tuple[ModelConfig, int, int]:
    blocks: dict[str, int] = {}
    for name in state:
        if match := re.match(r"classifier\.layer([1-4])\.(\d+)\.", name):
            blocks[match[1]] = max(blocks.get(match[1], 0), int(match[2]) + 1)
    is_bottleneck = "classifier.layer1.0.conv3.weight" in state
    depths = {2 + (3 if is_bottleneck else 2) * sum(blocks.values())} & set(RESNET_DEPTHS)
    if not depths:
        raise _not_released(path, f"blocks {list(blocks.values())} that no ResNet has")
    book, last = state["emb.weight"], state["classifier.fc.weight"]
    if book.dim() != 2 or last.dim() != 2 or len(book) % 2 or min(*book.shape, len(last)) < 2:
        raise _not_released(path, "tensor shapes that no CVAE_imagenet has")
    width, size = book.shape
    config = ModelConfig(
        generator="vq_vae",
        vae_width=width,
        codebook_size=size,
        classifier_network="resnet",
        classifier_depth=depths.pop(),
        classifier_widen_factor=1,
        classifier_dropout=0.0,
        pixel_mean=_IMAGENET_MEAN,
        pixel_std=_IMAGENET_STD,
    )
    return config, _IMAGENET_SIZE, len(last)


def _not_released(path: str | Path, got: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        got=got,
        expected=_EXPECTED,
        remedy=_REMEDY,
    )
