"""A dataset in files that need neither pyarrow nor unpickling, in parts small enough to carry.

`prepare` runs at home, where the package's loaders have what they need; `read_prepared` elsewhere.
A folder holds dataset.json and, for each half, parts: tensors "images" (uint8), or with --encoded
the image files as they are, one after another and deflated, and their "lengths"; and "labels".
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data.decode import decode_all
from cdvae_ray.data.images import SPLITS, ImageSet, Splits
from cdvae_ray.errors import ConfigError, DataError

from .stage import write_json
from .tensor_file import read_tensors, write_tensors

Source = Literal["parquet", "cifar10"]
INDEX = "dataset.json"
_NOTES: dict[Source, str] = {
    "parquet": "pixels of encoded image files: a dataset that was encoded anew, as JPEG say, is "
    "not bit-identical to the published one",
    "cifar10": "the published files, by their checksums",
}
PART_BYTES = 56 * 2**20
"""Of images at most in one file."""


def load_source(source: Source, path: Path, image_size: int) -> Splits:
    """The package's own loading of a source; it needs pyarrow or torchvision."""
    from cdvae_ray.data.load import load_splits

    return load_splits(DataConfig(source=source, path=str(path), image_size=image_size))


def source_of(path: Path) -> Source:
    """What a folder of unprepared images holds.

    Raises:
        ConfigError: neither Parquet files nor torchvision's.
    """
    if any(path.rglob("*.parquet")):
        return "parquet"
    if (path / "cifar-10-batches-py").is_dir():
        return "cifar10"
    raise ConfigError(
        "--data",
        got=path,
        expected="a prepared folder, Parquet files, or torchvision's cifar-10-batches-py",
        remedy="give such a folder, or synthetic for the smoke preset",
    )


def prepare(data: Path, out: Path, *, encoded: bool, image_size: int = 32) -> dict[str, Any]:
    """Writes a dataset's parts and its index; returns the index."""
    source = source_of(data)
    if encoded and source != "parquet":
        raise ConfigError(
            "--encoded",
            got=f"a source {source}, whose images are not encoded",
            expected="Parquet files of encoded images",
            remedy="leave out --encoded: the parts are raw, each below 60 MiB",
        )
    splits = load_source(source, data, image_size)
    out.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {
        "name": data.name,
        "source": source,
        "class_names": list(splits.train.class_names),
        "image_size": image_size,
        "form": "encoded" if encoded else "raw",
        "splits": {},
    }
    for name, image_set in zip(SPLITS, splits, strict=True):
        parts = _encoded_parts(data, name) if encoded else _raw_parts(image_set.images)
        entries, start = [], 0
        for number, (tensors, count) in enumerate(parts):
            tensors["labels"] = image_set.labels[start : start + count]
            start += count
            path = out / f"{name}-{number:02d}.safetensors"
            sha256 = write_tensors(path, tensors, {})
            entries.append({"file": path.name, "bytes": path.stat().st_size, "sha256": sha256})
        if start != len(image_set):
            raise DataError(
                f"images of {data}, {name}",
                got=start,
                expected=f"the {len(image_set)} that were decoded",
                remedy="leave out --encoded",
            )
        index["splits"][name] = {
            "images": len(image_set),
            "digest": image_set.digest,
            "parts": entries,
        }
    write_json(out / INDEX, index)
    return index


def read_prepared(folder: Path) -> tuple[Splits, dict[str, Any]]:
    """The dataset of a folder that `prepare` wrote, and what to say of it.

    The digests of raw images must be those of the index. Encoded images were decoded by whatever
    decoder is here: digests that differ in that case are told, not refused.

    Raises:
        CheckpointError: a part is absent or another one.
        DataError: the images are others than were prepared.
    """
    index = json.loads((folder / INDEX).read_text())
    size, encoded = int(index["image_size"]), index["form"] == "encoded"
    facts: dict[str, Any] = {
        **{key: index[key] for key in ("name", "source", "form")},
        "note": _NOTES[index["source"]],
        "splits": {},
    }
    halves = []
    for name in SPLITS:
        entry = index["splits"][name]
        parts = [
            read_tensors(folder / part["file"], sha256=part["sha256"]).tensors
            for part in entry["parts"]
        ]
        images = torch.cat([_decoded(part, size) if encoded else part["images"] for part in parts])
        image_set = ImageSet.build(
            images,
            torch.cat([part["labels"] for part in parts]),
            tuple(index["class_names"]),
            f"{index['name']}/{name}",
        )
        same = image_set.digest == entry["digest"]
        if not same and not encoded:
            raise DataError(
                f"images of {folder}, {name}",
                got=f"digest {image_set.digest[:12]}",
                expected=entry["digest"][:12],
                remedy="prepare them again",
            )
        facts["splits"][name] = {
            "images": len(image_set),
            "digest": image_set.digest,
            "as_decoded_at_home": same,
        }
        halves.append(image_set)
    return Splits(*halves), facts


def _raw_parts(images: Tensor) -> Iterator[tuple[dict[str, Tensor], int]]:
    count = max(1, PART_BYTES // images[0].numel())
    for part in torch.split(images, count):
        yield {"images": part}, len(part)


def _encoded_parts(data: Path, split: str) -> Iterator[tuple[dict[str, Tensor], int]]:
    """The image files of a half in the order in which the package reads them."""
    for table in _tables(data, split):
        column = next(name for name in table.schema.names if name != "label")
        files = [row["bytes"] for row in table.column(column).to_pylist()]
        first, size = 0, 0
        for place, file in enumerate(files):
            size += len(file)
            if size >= PART_BYTES or place + 1 == len(files):
                some = files[first : place + 1]
                yield _joined(some), len(some)
                first, size = place + 1, 0


def _tables(data: Path, split: str) -> Iterator[Any]:
    import pyarrow.parquet

    for path in sorted(data.rglob("*.parquet")):
        if path.name.startswith(split):
            yield pyarrow.parquet.read_table(path)


def _joined(files: list[bytes]) -> dict[str, Tensor]:
    return {
        # Two thirds of a small JPEG are tables that are the same in all of them.
        "deflated": torch.frombuffer(bytearray(zlib.compress(b"".join(files))), dtype=torch.uint8),
        "lengths": torch.tensor([len(file) for file in files], dtype=torch.int64),
    }


def _decoded(part: dict[str, Tensor], size: int) -> Tensor:
    inflated = bytearray(zlib.decompress(part["deflated"].numpy().data))
    files = torch.split(torch.frombuffer(inflated, dtype=torch.uint8), part["lengths"].tolist())
    if importlib.util.find_spec("PIL") is not None:
        return decode_all(
            [(f"image {place}", bytes(file.numpy())) for place, file in enumerate(files)], size
        )
    from torchvision.io import ImageReadMode, decode_image

    images = torch.stack([decode_image(file, mode=ImageReadMode.RGB) for file in files])
    if images.shape[2:] != (size, size):
        raise DataError(
            "sides of the encoded images",
            got=tuple(images.shape[2:]),
            expected=f"{size} x {size}, as nothing here resizes them",
            remedy="prepare them without --encoded",
        )
    return images
