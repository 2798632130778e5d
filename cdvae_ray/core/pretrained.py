"""Where a classifier network may start: weights that others trained, from a local file."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdvae_ray.core.network import ClassifierNetwork
from cdvae_ray.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pretrained:
    """Weights by name, which travel to the workers."""

    tensors: Mapping[str, Tensor]
    digest: str
    """SHA-256 over names, shapes and values; hexadecimal."""
    source: str
    """The file, for messages."""


def read_state_dict(path: Path, *, expected: str, remedy: str) -> dict[str, Tensor]:
    """A state dict that torch.save wrote, alone or under the key "state_dict".

    Only tensors are read (`weights_only`): nothing else that the file may hold is unpickled.

    Args:
        path: a local file.
        expected: what messages call the file that it should be.
        remedy: for messages.

    Raises:
        CheckpointError: it is absent, or no such file.
    """
    if not path.is_file():
        raise CheckpointError(
            str(path), got="no such file", expected=expected, remedy="check the path"
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            str(path),
            got=f"an unreadable file ({type(error).__name__})",
            expected=expected,
            remedy=remedy,
        ) from error
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise CheckpointError(
            str(path),
            got=f"a {type(content).__name__} that is no state dict of tensors",
            expected=expected,
            remedy=remedy,
        )
    return content


def read_pretrained(path: str) -> Pretrained:
    """Weights of a classifier network, for example torchvision's resnet50-....pth.

    Raises:
        CheckpointError: the file is absent, or holds no state dict.
    """
    tensors = read_state_dict(
        Path(path).expanduser(),
        expected="a state dict of the classifier's network",
        remedy="save network.state_dict() by torch.save, or fetch the file again",
    )
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return Pretrained(tensors=tensors, digest=digest.hexdigest(), source=path)


def start_from(network: ClassifierNetwork, pretrained: Pretrained) -> None:
    """Gives a network these weights; its last layer keeps its own where there are other classes.

    Raises:
        CheckpointError: a tensor is missing or left over, or has another shape.
    """
    own = network.state_dict()
    last = list(network.named_children())[-1][0]
    fresh = {
        name
        for name in own
        if name.startswith(f"{last}.")
        and name in pretrained.tensors
        and pretrained.tensors[name].shape != own[name].shape
    }
    wrong = set(own.keys() ^ pretrained.tensors.keys()) | {
        name
        for name in (own.keys() & pretrained.tensors.keys()) - fresh
        if own[name].shape != pretrained.tensors[name].shape
    }
    if wrong:
        raise CheckpointError(
            pretrained.source,
            got=f"missing, left over or of other shapes: {', '.join(sorted(wrong)[:3])}",
            expected=f"the weights of a {type(network).__name__} of the config's depth",
            remedy="use a file of that network, or change --model",
        )
    taken = {name: tensor for name, tensor in pretrained.tensors.items() if name not in fresh}
    network.load_state_dict({**own, **taken})
