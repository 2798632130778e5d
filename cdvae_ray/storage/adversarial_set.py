"""Adversarial sets: Parquet shards, one row an image, and a manifest over them."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cdvae_ray.errors import StorageError
from cdvae_ray.storage.artifact import FORMAT_VERSION, MANIFEST, read_manifest, seal
from cdvae_ray.storage.store import Store

KIND = "adversarial-set"
SHARDS = "images"
"""The folder of the Parquet files inside a set's folder, readable by any Parquet reader."""
_IDENTITY, _CONTENT = b"identity", b"content"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AdversarialImages:
    """Adversarial images with what became of each; equal rows belong together."""

    image_ids: Tensor
    """(N,) int64: the position of the image in its dataset."""
    images: Tensor
    """(N, 3, S, S) float32 in [0, 1], bit for bit what the attack returned."""
    labels: Tensor
    """(N,) int64, the true classes."""
    clean_predictions: Tensor
    """(N,) int64: the attacked function's answer to the clean image."""
    predictions: Tensor
    """(N,) int64: its answer to the adversarial image."""
    success: Tensor
    """(N,) bool: the attack's own verdict."""
    loss: Tensor
    """(N,) float32: what the attack maximised."""
    norm: Tensor
    """(N,) float32: the perturbation in the attack's own measure."""
    linf: Tensor
    """(N,) float32: its L-infinity norm in pixel units."""
    l2: Tensor
    """(N,) float32: its L2 norm in pixel units."""
    zero_gradient: Tensor
    """(N,) bool: the gradient vanished before the image was fooled."""
    nonfinite_gradient: Tensor
    """(N,) bool: a gradient was NaN or infinite."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def row_digests(self) -> list[str]:
        """SHA-256 of each image's id, label, predictions and pixels."""
        pixels = np.ascontiguousarray(self.images.numpy()).reshape(len(self), -1)
        facts = torch.stack(
            [self.image_ids, self.labels, self.clean_predictions, self.predictions], dim=1
        ).numpy()
        return [
            hashlib.sha256(row.tobytes() + image.tobytes()).hexdigest()
            for row, image in zip(facts, pixels, strict=True)
        ]


class ShardFacts(NamedTuple):
    """What the driver keeps of a stored shard."""

    name: str
    row_digests: list[str]
    sha256: str
    num_bytes: int


_INTEGERS = ("image_ids", "labels", "clean_predictions", "predictions")
_FLOATS = ("loss", "norm", "linf", "l2")
_FLAGS = ("success", "zero_gradient", "nonfinite_gradient")
_COLUMNS = {
    "image_ids": "image_id",
    "labels": "label",
    "clean_predictions": "clean_prediction",
    "predictions": "adversarial_prediction",
    "images": "image",
}
"""Names of columns that hold one value a row, where they differ from the fields'."""


def shard_name(index: int) -> str:
    """The file of a shard."""
    return f"shard-{index:05d}.parquet"


def shard_bytes(
    rows: AdversarialImages, *, identity_digest: str, labels: Mapping[str, str | int]
) -> bytes:
    """A shard as a Parquet file.

    Args:
        rows: in the order of their ids.
        identity_digest: of the set; a shard of another set is never taken for one of this.
        labels: further columns that say in each row where it comes from.
    """
    size = rows.images[0].numel()
    pixels = pa.array(np.ascontiguousarray(rows.images.numpy()).reshape(-1))
    columns: dict[str, pa.Array] = {
        _COLUMNS.get(name, name): pa.array(getattr(rows, name).numpy())
        for name in (*_INTEGERS, *_FLAGS, *_FLOATS)
    }
    for name, value in labels.items():
        columns[name] = pa.array([value] * len(rows)).dictionary_encode()
    columns["image"] = pa.FixedSizeListArray.from_arrays(pixels, size)
    table = pa.table(columns).replace_schema_metadata(
        {
            _IDENTITY: identity_digest.encode(),
            _CONTENT: _combined(rows.row_digests()).encode(),
            b"image_shape": ",".join(map(str, rows.images.shape[1:])).encode(),
        }
    )
    sink = io.BytesIO()
    # Perturbed pixels hardly compress: zstd's fastest level still saves the constant columns.
    pq.write_table(table, sink, compression="zstd", compression_level=1)
    return sink.getvalue()


def read_shard(store: Store, name: str, *, identity_digest: str) -> AdversarialImages:
    """The rows of a shard, verified against the digest of its content.

    Args:
        store: the set's folder of shards.
        name: of the file.
        identity_digest: of the set that it must belong to.

    Raises:
        StorageError: it is absent, damaged or of another set.
    """
    return _parse(store, name, store.read(name), identity_digest)


class StoredShard(NamedTuple):
    """A shard that is there and sound."""

    rows: AdversarialImages
    facts: ShardFacts


def find_shard(
    store: Store, name: str, image_ids: range, *, identity_digest: str
) -> StoredShard | None:
    """A shard that an earlier job stored; None if it must be made (again)."""
    if not store.exists(name):
        return None
    content = store.read(name)
    try:
        rows = _parse(store, name, content, identity_digest)
    except StorageError as error:
        _log.warning("making a shard again: %s", error)
        return None
    if rows.image_ids.tolist() != list(image_ids):
        return None
    return StoredShard(rows, shard_facts(name, rows, content))


def shard_facts(name: str, rows: AdversarialImages, content: bytes) -> ShardFacts:
    """What the driver keeps of a shard."""
    return ShardFacts(name, rows.row_digests(), hashlib.sha256(content).hexdigest(), len(content))


def seal_set(store: Store, shards: list[ShardFacts], *, facts: Mapping[str, Any]) -> str:
    """Writes the manifest that makes stored shards a set; returns the set's content digest.

    The digest is taken of the rows in order and not of the files, so that it does not depend on
    how rows were sharded.

    Args:
        store: the set's folder.
        shards: all of them, in order.
        facts: what made the set, JSON values.
    """
    content = _combined([digest for shard in shards for digest in shard.row_digests])
    manifest = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "facts": {**facts, "content_digest": content},
        "files": {
            f"{SHARDS}/{shard.name}": {"sha256": shard.sha256, "bytes": shard.num_bytes}
            for shard in shards
        },
    }
    store.write_json(MANIFEST, seal(manifest))
    return content


def stored_set_facts(store: Store) -> dict[str, Any] | None:
    """What made a set that is complete, and what it came to; None if it is not there.

    Raises:
        StorageError: its manifest is damaged.
    """
    if not store.exists(MANIFEST):
        return None
    parent, name = store.parent()
    facts: dict[str, Any] = read_manifest(parent, name, kind=KIND)["facts"]
    return facts


class AdversarialSet(NamedTuple):
    """A stored set with what made it."""

    rows: AdversarialImages
    facts: dict[str, Any]


def read_adversarial_set(store: Store) -> AdversarialSet:
    """A whole set, verified, in the order of image ids.

    Args:
        store: the set's folder.

    Raises:
        StorageError: it is absent, incomplete or damaged.
    """
    parent, name = store.parent()
    manifest = read_manifest(parent, name, kind=KIND)
    facts: dict[str, Any] = manifest["facts"]
    parts = []
    for file in manifest["files"]:
        folder, _, shard = file.rpartition("/")
        parts.append(
            read_shard(store.child(folder), shard, identity_digest=facts["identity_digest"])
        )
    rows = AdversarialImages(
        **{
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("images", *_INTEGERS, *_FLAGS, *_FLOATS)
        }
    )
    if (digest := _combined(rows.row_digests())) != facts["content_digest"]:
        raise _damaged(store, MANIFEST, f"content {digest[:12]}", facts["content_digest"][:12])
    return AdversarialSet(rows, facts)


def _parse(store: Store, name: str, content: bytes, identity_digest: str) -> AdversarialImages:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(store, name, str(error), "a Parquet file") from error
    metadata = table.schema.metadata or {}
    found = metadata.get(_IDENTITY, b"none").decode()
    if found != identity_digest:
        raise _damaged(store, name, f"a shard of set {found[:12]}", identity_digest[:12])
    shape = tuple(int(side) for side in metadata[b"image_shape"].decode().split(","))

    def column(name: str) -> Tensor:
        values = table.column(_COLUMNS.get(name, name)).combine_chunks()
        return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())

    pixels = table.column("image").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    rows = AdversarialImages(
        images=torch.from_numpy(pixels.copy()).view(-1, *shape),
        **{field: column(field) for field in (*_INTEGERS, *_FLAGS, *_FLOATS)},
    )
    digest, promised = _combined(rows.row_digests()), metadata[_CONTENT].decode()
    if digest != promised:
        raise _damaged(store, name, f"content {digest[:12]}", promised[:12])
    return rows


def _combined(row_digests: list[str]) -> str:
    return hashlib.sha256("\n".join(row_digests).encode()).hexdigest()


def _damaged(store: Store, name: str, got: str, expected: str) -> StorageError:
    return StorageError(
        f"{store.uri}/{name}",
        got=got,
        expected=expected,
        remedy="the file is damaged or foreign: run jobs/attack.py again, or with --overwrite",
    )
