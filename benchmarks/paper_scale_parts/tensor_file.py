"""Tensors by name in one file, in the safetensors format and without its library.

Eight bytes with the header's length, the header in JSON, then the numbers. Nothing is unpickled.
Files are written aside and renamed, so that a reader meets a whole file or none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdvae_ray.errors import CheckpointError

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BY_NAME = {name: dtype for dtype, name in _TYPES.items()}
_LENGTH_BYTES = 8


class TensorFile(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    """By name, on the CPU."""
    facts: dict[str, Any]
    """What was written beside them: JSON values."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Writes tensors and facts whole or not at all; returns the file's SHA-256 (hex)."""
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(facts, sort_keys=True)}}
    start, parts = 0, []
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # Scalars too, and BF16, which NumPy does not know.
        data = tensor.reshape(-1).view(torch.uint8)
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + len(data)],
        }
        start += len(data)
        parts.append(data)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _LENGTH_BYTES)
    digest = hashlib.sha256()
    aside = path.with_suffix(".partial")
    with aside.open("wb") as file:
        for block in (len(encoded).to_bytes(_LENGTH_BYTES, "little"), encoded):
            file.write(block)
            digest.update(block)
        for data in parts:
            buffer = data.numpy().data
            file.write(buffer)
            digest.update(buffer)
    aside.replace(path)
    return digest.hexdigest()


def read_tensors(path: Path, *, sha256: str | None = None) -> TensorFile:
    """Reads what `write_tensors` wrote.

    Args:
        path: of the file.
        sha256: what it has to be; None to take it as it is.

    Raises:
        CheckpointError: it is absent, another file than expected, or damaged.
    """
    if not path.is_file():
        raise _bad(path, "no file")
    data = bytearray(path.read_bytes())
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise _bad(path, f"SHA-256 {found[:12]}", expected=sha256[:12])
    try:
        body = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        header = json.loads(data[_LENGTH_BYTES:body])
        facts = json.loads(header.pop("__metadata__")["facts"])
        tensors = {name: _tensor(data, body, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _bad(path, f"{type(error).__name__}: {error}") from error
    return TensorFile(tensors, facts)


def _tensor(data: bytearray, body: int, entry: dict[str, Any]) -> Tensor:
    first, last = entry["data_offsets"]
    dtype = _BY_NAME[entry["dtype"]]
    if first == last:
        return torch.empty(entry["shape"], dtype=dtype)
    # A copy, for a view of the file's bytes need not be aligned.
    flat = torch.frombuffer(data, dtype=torch.uint8, count=last - first, offset=body + first)
    return flat.clone().view(dtype).reshape(entry["shape"])


def _bad(path: Path, got: str, *, expected: str = "a whole file of tensors") -> CheckpointError:
    return CheckpointError(
        str(path), got=got, expected=expected, remedy="copy it again, or delete its folder"
    )
