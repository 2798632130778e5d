"""Sets of named numbers by image, such as features and scores: Parquet shards and a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cdvae_ray.errors import DataError, StorageError
from cdvae_ray.storage.artifact import read_manifest
from cdvae_ray.storage.shards import (
    ShardFacts,
    parse_table,
    parsing,
    require_content,
    shard_facts,
    table_bytes,
    vectors,
)
from cdvae_ray.storage.store import Store

ROWS = "rows"
"""The folder of the Parquet files inside a set's folder, readable by any Parquet reader."""
_NAMES = b"columns"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageRows:
    """Numbers by image; equal rows belong together."""

    image_ids: Tensor
    """(N,) int64: the position of the image in its dataset."""
    columns: dict[str, Tensor]
    """(N,) or (N, d) each, on the CPU."""

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.columns.items()}
        if set(lengths.values()) - {len(self.image_ids)}:
            raise DataError(
                "columns of rows by image",
                got=", ".join(f"{length} of {name}" for name, length in lengths.items()),
                expected=f"{len(self.image_ids)} each, one an image",
                remedy="compute all columns of the same images",
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, name: str) -> Tensor:
        """A column.

        Raises:
            DataError: there is none of that name.
        """
        if name not in self.columns:
            raise DataError(
                "columns of rows by image",
                got=", ".join(self.columns),
                expected=f"{name} among them",
                remedy="extract with the settings that the reader has",
            )
        return self.columns[name]

    def select(self, rows: Tensor) -> ImageRows:
        """Some of the rows, by a mask or by places."""
        return ImageRows(
            self.image_ids[rows], {name: values[rows] for name, values in self.columns.items()}
        )

    def row_digests(self) -> list[str]:
        """SHA-256 of each row's id and numbers, with their names and types."""
        header = json.dumps([[name, str(each.dtype)] for name, each in self.columns.items()])
        parts = [
            np.ascontiguousarray(values.numpy()).reshape(len(self), -1).view(np.uint8)
            for values in (self.image_ids, *self.columns.values())
        ]
        named = hashlib.sha256(header.encode())
        digests = []
        for row in np.concatenate(parts, axis=1):
            digest = named.copy()
            digest.update(row.tobytes())
            digests.append(digest.hexdigest())
        return digests


def concatenate_rows(parts: Sequence[ImageRows]) -> ImageRows:
    """Rows of several shards, in the order given."""
    return ImageRows(
        torch.cat([part.image_ids for part in parts]),
        {name: torch.cat([part[name] for part in parts]) for name in parts[0].columns},
    )


def rows_bytes(rows: ImageRows, *, identity_digest: str, labels: Mapping[str, str | int]) -> bytes:
    """A shard as a Parquet file.

    Args:
        rows: in the order of their ids.
        identity_digest: of the set; a shard of another set is never taken for one of this.
        labels: further columns that say in each row where it comes from.
    """
    columns: dict[str, pa.Array] = {"image_id": pa.array(rows.image_ids.numpy())}
    for label, text in labels.items():
        columns[label] = pa.array([text] * len(rows)).dictionary_encode()
    for name, values in rows.columns.items():
        columns[name] = pa.array(values.numpy()) if values.dim() == 1 else vectors(values)
    return table_bytes(
        columns,
        identity_digest=identity_digest,
        row_digests=rows.row_digests(),
        metadata={_NAMES: json.dumps(list(rows.columns)).encode()},
    )


def read_rows(store: Store, name: str, *, identity_digest: str) -> ImageRows:
    """The rows of a shard, verified against the digest of its content.

    Args:
        store: the set's folder of shards.
        name: of the file.
        identity_digest: of the set that it must belong to.

    Raises:
        StorageError: it is absent, damaged or of another set.
    """
    return _parse(store, name, store.read(name), identity_digest)


def find_rows(
    store: Store, name: str, image_ids: Sequence[int], *, identity_digest: str
) -> ShardFacts | None:
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
    return shard_facts(name, rows.row_digests(), content)


def row_shards(store: Store, kind: str) -> Iterator[ImageRows]:
    """The shards of a complete set one by one, verified, in the order of image ids.

    Args:
        store: the set's folder.
        kind: what it must be.

    Raises:
        StorageError: it is absent, incomplete, damaged or of another kind.
    """
    parent, name = store.parent()
    manifest = read_manifest(parent, name, kind=kind)
    facts: dict[str, Any] = manifest["facts"]
    digests: list[str] = []
    for file in manifest["files"]:
        folder, _, shard = file.rpartition("/")
        rows = read_rows(store.child(folder), shard, identity_digest=facts["identity_digest"])
        digests += rows.row_digests()
        yield rows
    require_content(store, "its rows", digests, facts["content_digest"])


def read_row_set(store: Store, kind: str) -> ImageRows:
    """A whole set, as `row_shards`."""
    return concatenate_rows(list(row_shards(store, kind)))


def _parse(store: Store, name: str, content: bytes, identity_digest: str) -> ImageRows:
    with parsing(store, name):
        shard = parse_table(store, name, content, identity_digest)
        columns = {}
        for column in json.loads(shard.metadata[_NAMES]):
            is_vector = pa.types.is_fixed_size_list(shard.table.schema.field(column).type)
            columns[column] = shard.matrix(column) if is_vector else shard.column(column)
        rows = ImageRows(shard.column("image_id"), columns)
        promised = shard.content_digest
    require_content(store, name, rows.row_digests(), promised)
    return rows
