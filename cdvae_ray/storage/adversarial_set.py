"""Adversarial sets: Parquet shards, one row an image, and a manifest over them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cdvae_ray.errors import StorageError
from cdvae_ray.storage.artifact import MANIFEST, read_manifest
from cdvae_ray.storage.shards import (
    ShardFacts,
    parse_table,
    parsing,
    require_content,
    seal_shards,
    shard_facts,
    stored_facts,
    table_bytes,
    vectors,
)
from cdvae_ray.storage.store import Store

KIND = "adversarial-set"
SHARDS = "images"
"""The folder of the Parquet files inside a set's folder, readable by any Parquet reader."""
_SHAPE = b"image_shape"
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

    def select(self, rows: Tensor) -> AdversarialImages:
        """Some of the rows, by a mask or by places."""
        return AdversarialImages(
            **{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)}
        )

    @classmethod
    def concatenate(cls, parts: Sequence[AdversarialImages]) -> AdversarialImages:
        """The rows of several shards, in the order given."""
        return cls(
            **{
                field.name: torch.cat([getattr(part, field.name) for part in parts])
                for field in dataclasses.fields(cls)
            }
        )

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


def shard_bytes(
    rows: AdversarialImages, *, identity_digest: str, labels: Mapping[str, str | int]
) -> bytes:
    """A shard as a Parquet file.

    Args:
        rows: in the order of their ids.
        identity_digest: of the set; a shard of another set is never taken for one of this.
        labels: further columns that say in each row where it comes from.
    """
    columns: dict[str, pa.Array] = {
        _COLUMNS.get(name, name): pa.array(getattr(rows, name).numpy())
        for name in (*_INTEGERS, *_FLAGS, *_FLOATS)
    }
    for name, value in labels.items():
        columns[name] = pa.array([value] * len(rows)).dictionary_encode()
    return table_bytes(
        {**columns, "image": vectors(rows.images)},
        identity_digest=identity_digest,
        row_digests=rows.row_digests(),
        metadata={_SHAPE: ",".join(map(str, rows.images.shape[1:])).encode()},
    )


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
    return StoredShard(rows, shard_facts(name, rows.row_digests(), content))


def seal_set(store: Store, shards: list[ShardFacts], *, facts: Mapping[str, Any]) -> str:
    """Writes the manifest that makes stored shards a set; returns the set's content digest.

    Args:
        store: the set's folder.
        shards: all of them, in order.
        facts: what made the set, JSON values.
    """
    return seal_shards(store, shards, kind=KIND, folder=SHARDS, facts=facts)


def stored_set_facts(store: Store) -> dict[str, Any] | None:
    """What made a set that is complete, and what it came to; None if it is not there.

    Raises:
        StorageError: its manifest is damaged.
    """
    return stored_facts(store, KIND)


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
    facts = _facts_of(store)
    return AdversarialSet(AdversarialImages.concatenate(list(_shards(store, facts))), facts)


def read_outcomes(store: Store) -> AdversarialImages:
    """A whole set as `read_adversarial_set`, with images of no pixel: it fits wherever ids do."""
    return AdversarialImages.concatenate(
        [
            # A copy: a view of no pixel would keep all of them.
            dataclasses.replace(part, images=part.images[:, :0].clone())
            for part in _shards(store, _facts_of(store))
        ]
    )


def _facts_of(store: Store) -> dict[str, Any]:
    parent, name = store.parent()
    facts: dict[str, Any] = read_manifest(parent, name, kind=KIND)["facts"]
    return facts


def _shards(store: Store, facts: Mapping[str, Any]) -> Iterator[AdversarialImages]:
    """Shard by shard, verified; their whole once the last is out."""
    parent, name = store.parent()
    digests: list[str] = []
    for file in read_manifest(parent, name, kind=KIND)["files"]:
        folder, _, shard = file.rpartition("/")
        rows = read_shard(store.child(folder), shard, identity_digest=facts["identity_digest"])
        digests += rows.row_digests()
        yield rows
    require_content(store, MANIFEST, digests, facts["content_digest"])


def _parse(store: Store, name: str, content: bytes, identity_digest: str) -> AdversarialImages:
    with parsing(store, name):
        shard = parse_table(store, name, content, identity_digest)
        shape = tuple(int(side) for side in shard.metadata[_SHAPE].decode().split(","))
        rows = AdversarialImages(
            images=shard.matrix("image").view(-1, *shape),
            **{
                field: shard.column(_COLUMNS.get(field, field))
                for field in (*_INTEGERS, *_FLAGS, *_FLOATS)
            },
        )
        promised = shard.content_digest
    require_content(store, name, rows.row_digests(), promised)
    return rows
