"""Sets of one row an image: Parquet files in a folder, and a manifest over them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cdvae_ray.errors import DataError, StorageError
from cdvae_ray.storage.artifact import FORMAT_VERSION, MANIFEST, read_manifest, seal
from cdvae_ray.storage.store import Store, is_partial

_IDENTITY, _CONTENT = b"identity", b"content"
_STALE_SECONDS = 600.0
"""No writer takes as long over a shard."""


class ShardFacts(NamedTuple):
    """What the driver keeps of a stored shard."""

    name: str
    row_digests: list[str]
    sha256: str
    num_bytes: int


class ParsedShard(NamedTuple):
    """A shard of the right set, whose rows are not yet compared with its content digest."""

    table: pa.Table
    metadata: dict[bytes, bytes]

    @property
    def content_digest(self) -> str:
        """The digest that its rows must have."""
        return self.metadata[_CONTENT].decode()

    def column(self, name: str) -> Tensor:
        """A column of one value a row."""
        values = self.table.column(name).combine_chunks()
        return torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())

    def matrix(self, name: str) -> Tensor:
        """A column of one vector a row, (N, d)."""
        values = self.table.column(name).combine_chunks().flatten()
        flat = torch.from_numpy(values.to_numpy(zero_copy_only=False).copy())
        return flat.view(len(self.table), -1)


def shard_name(index: int) -> str:
    """The file of a shard."""
    return f"shard-{index:05d}.parquet"


def shard_ranges(num_images: int, shard_size: int) -> dict[str, range]:
    """The ids in each file, in order."""
    return {
        shard_name(number): range(first, min(first + shard_size, num_images))
        for number, first in enumerate(range(0, num_images, shard_size))
    }


def combined_digest(row_digests: Sequence[str]) -> str:
    """The digest of rows in order, however they are sharded."""
    return hashlib.sha256("\n".join(row_digests).encode()).hexdigest()


def vectors(values: Tensor) -> pa.Array:
    """(N, ...) as a Parquet column of one vector a row."""
    flat = pa.array(np.ascontiguousarray(values.numpy()).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values[0].numel())


def table_bytes(
    columns: Mapping[str, pa.Array],
    *,
    identity_digest: str,
    row_digests: Sequence[str],
    metadata: Mapping[bytes, bytes],
) -> bytes:
    """A shard as a Parquet file.

    Args:
        columns: by name, one value or vector a row.
        identity_digest: of the set; a shard of another set is never taken for one of this.
        row_digests: one a row.
        metadata: what else a reader needs.
    """
    table = pa.table(dict(columns)).replace_schema_metadata(
        {
            _IDENTITY: identity_digest.encode(),
            _CONTENT: combined_digest(row_digests).encode(),
            **metadata,
        }
    )
    sink = io.BytesIO()
    # Such floats hardly compress: zstd's fastest level still saves the constant columns.
    pq.write_table(table, sink, compression="zstd", compression_level=1)
    return sink.getvalue()


@contextmanager
def parsing(store: Store, name: str) -> Iterator[None]:
    """Turns whatever a damaged file makes its reader raise into a StorageError.

    A changed byte of the footer may rename a column, retype it, or spoil the metadata.
    """
    try:
        yield
    except (pa.ArrowException, DataError, OSError, LookupError, TypeError, ValueError) as error:
        got = f"{type(error).__name__} while reading ({error})"
        raise damaged(store, name, got, "a Parquet file as it was written") from error


def parse_table(store: Store, name: str, content: bytes, identity_digest: str) -> ParsedShard:
    """A shard's table, if it is one of this set; call it, and read from it, within `parsing`.

    Raises:
        StorageError: it is of another set.
    """
    table = pq.read_table(io.BytesIO(content))
    metadata = table.schema.metadata or {}
    found = metadata.get(_IDENTITY, b"none").decode()
    if found != identity_digest:
        raise damaged(store, name, f"a shard of set {found[:12]}", identity_digest[:12])
    return ParsedShard(table, metadata)


def require_content(
    store: Store, name: str, row_digests: Sequence[str], content_digest: str
) -> None:
    """Raises StorageError unless the rows are those that were written."""
    if (digest := combined_digest(row_digests)) != content_digest:
        raise damaged(store, name, f"content {digest[:12]}", content_digest[:12])


def shard_facts(name: str, row_digests: list[str], content: bytes) -> ShardFacts:
    """What the driver keeps of a shard."""
    return ShardFacts(name, row_digests, hashlib.sha256(content).hexdigest(), len(content))


def seal_shards(
    store: Store,
    shards: Sequence[ShardFacts],
    *,
    kind: str,
    folder: str,
    facts: Mapping[str, Any],
) -> str:
    """Writes the manifest that makes stored shards a set; returns the set's content digest.

    The digest is taken of the rows in order and not of the files, so that it does not depend on
    how rows were sharded.

    Args:
        store: the set's folder.
        shards: all of them, in order.
        kind: of the set.
        folder: of the shards, inside the set's.
        facts: what made the set, JSON values.
    """
    content = combined_digest([digest for shard in shards for digest in shard.row_digests])
    says = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "facts": {**facts, "content_digest": content},
        "files": {
            f"{folder}/{shard.name}": {"sha256": shard.sha256, "bytes": shard.num_bytes}
            for shard in shards
        },
    }
    if not _is_said(store, says):
        written = datetime.now(UTC).isoformat(timespec="seconds")
        store.write_json(MANIFEST, seal({**says, "written": written}))
    return content


def _is_said(store: Store, says: Mapping[str, Any]) -> bool:
    """Whether a sound manifest says just this: then another job may be reading by it."""
    if not store.exists(MANIFEST):
        return False
    parent, name = store.parent()
    try:
        found = read_manifest(parent, name, kind=says["kind"])
    except StorageError:
        return False
    # As JSON has it: tuples come back as lists.
    return bool({key: found[key] for key in says} == json.loads(json.dumps(says)))


def tidy_shards(store: Store, folder: str, wanted: Collection[str]) -> None:
    """Deletes what interrupted writers left in a set's folder, and shards that are none of its.

    Other jobs may be making the same set: what they are writing stays.

    Args:
        store: the set's folder.
        folder: of the shards, inside the set's.
        wanted: the shards' names. A job that sharded otherwise left others, whose rows a reader of
            the folder would count twice.
    """
    shards = store.child(folder)
    for each in (store, shards):
        each.delete_partial(older_than_seconds=_STALE_SECONDS)
    for name in shards.names():
        if name not in wanted and not is_partial(name):
            shards.delete(name)


def stored_facts(store: Store, kind: str) -> dict[str, Any] | None:
    """What made a set that is complete, and what it came to; None if it is not there.

    Raises:
        StorageError: its manifest is damaged.
    """
    if not store.exists(MANIFEST):
        return None
    parent, name = store.parent()
    facts: dict[str, Any] = read_manifest(parent, name, kind=kind)["facts"]
    return facts


def damaged(store: Store, name: str, got: str, expected: str) -> StorageError:
    """The error of a file that is not what its set promised."""
    return StorageError(
        store.location(name),
        got=got,
        expected=expected,
        remedy="the file is damaged or foreign: run the job that made it again, or with "
        "--overwrite",
    )
