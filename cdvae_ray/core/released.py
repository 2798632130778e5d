"""Reads the weights that the paper's authors published into a CDVAE.

The layout is that of `CVAE_cifar` in the authors' repository (kai-wen-yang/CD-VAE, commit
a33b507): a plain state dict, its keys with or without DataParallel's prefix `module.`.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.errors import CheckpointError

_GENERATOR_PARTS = ("encoder.", "decoder.", "xi_bn.", "fc11.", "fc12.", "fc21.")
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
    state = _strip_prefix(_read_state_dict(Path(path)), path)
    for name in (
        "encoder.0.weight",
        "fc11.weight",
        "classifier.conv1.weight",
        "classifier.linear.weight",
    ):
        if name not in state:
            raise _not_released(path, f"no tensor {name}")
    config, image_size, num_classes = _infer_sizes(state, path)
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


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(
            str(path),
            got="no such file",
            expected="the authors' checkpoint",
            remedy="check the path",
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise _not_released(path, f"an unreadable file ({type(error).__name__})") from error
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise _not_released(path, f"a {type(content).__name__} that is no state dict of tensors")
    return content


def _strip_prefix(state: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    prefixed = [name for name in state if name.startswith("module.")]
    if prefixed and len(prefixed) != len(state):
        raise _not_released(path, "the prefix module. on some keys only")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _infer_sizes(state: dict[str, Tensor], path: str | Path) -> tuple[ModelConfig, int, int]:
    width = 2 * state["encoder.0.weight"].shape[0]
    latent_size, flat = state["fc11.weight"].shape
    side = round((flat / width) ** 0.5)
    num_classes, last_planes = state["classifier.linear.weight"].shape
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


def _not_released(path: str | Path, got: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        got=got,
        expected="a state dict of the authors' CVAE_cifar",
        remedy="use the authors' file, or cdvae_ray.load for checkpoints of this project",
    )
