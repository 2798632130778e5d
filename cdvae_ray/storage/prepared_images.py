"""Parquet shards of encoded images, which `--data.source parquet` reads, and their manifest.

An output is a folder: `train-00000-of-00012.parquet`, `test-00000-of-00001.parquet`, ... in the
Hugging Face layout, and `manifest.json`, written last. Locally, shards lie under names beginning
with `.partial-`, which no reader takes for a dataset, until all of them are written. In object
storage, which has no renaming, an interrupted job may leave whole shards without a manifest; the
next call removes them.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from cdvae_ray.config.prepare_job import PREPARED_KIND, PrepareConfig, prepared_identity
from cdvae_ray.config.restricted_imagenet import RESTRICTED_IMAGENET
from cdvae_ray.config.serialize import digest_of
from cdvae_ray.data.image_source import ImageSource, Progress, Read, Say, Selection, SourceImage
from cdvae_ray.data.images import SPLITS, Split
from cdvae_ray.data.parquet import LABEL_COLUMN
from cdvae_ray.data.prepare import (
    IMAGES_PER_GROUP,
    CheckedImage,
    SplitCounts,
    checked_images,
    open_source,
)
from cdvae_ray.errors import CdvaeError, StorageError
from cdvae_ray.storage.artifact import FORMAT_VERSION, MANIFEST, read_manifest, seal
from cdvae_ray.storage.store import Store

_IMAGE_COLUMN = "image"
_IMAGE_FIELDS = [pa.field("bytes", pa.binary()), pa.field("path", pa.string())]
_SHARD_NAME = re.compile(r"(train|test)-\d{5,}-of-\d{5,}\.parquet")
_ASIDE = ".partial-"  # `Store.delete_partial` deletes what is named so
_MARKER = f"{_ASIDE}prepared-images"
"""Lies in the folder from before the first shard until after the manifest: shards beside it and
without a manifest are an interrupted job's, and may be deleted."""


class PreparedImages(NamedTuple):
    """A finished output."""

    folder: str
    """Where it lies: what --data.path takes."""
    found: bool
    """Whether an earlier call had made it."""
    facts: dict[str, Any]
    """The manifest's: identity, settings, source, class_names, and for each of the `splits` its
    images, shards, bytes, images by class, and what was skipped."""

    @property
    def config_digest(self) -> str:
        """Of all that determined the shards."""
        return str(self.facts["identity_digest"])

    @property
    def metrics(self) -> dict[str, float]:
        """Counts for the summary."""
        counts: dict[str, float] = {"classes": len(self.facts["class_names"])}
        for split, facts in self.facts["splits"].items():
            counts[f"{split}_images"] = facts["images"]
            counts[f"{split}_shards"] = facts["shards"]
            counts[f"{split}_bytes"] = facts["bytes"]
            for reason in ("undecodable", "too_small"):
                counts[f"{split}_{reason}"] = facts["skipped"][reason]
        return counts


class _Shard(NamedTuple):
    name: str
    images: int
    sha256: str
    num_bytes: int


def prepare_images(config: PrepareConfig, *, say: Say) -> PreparedImages:
    """Writes the shards of a source, or finds them where an earlier call wrote them.

    Encoded images are copied byte for byte. A shard holds `images_per_shard` consecutive images of
    the order that class, path and seed determine, less those that are left out. In memory are one
    encoded shard, two groups of images and the images' names.

    Args:
        config: of the job, with places.
        say: gets lines of progress.

    Raises:
        ConfigError: no places are given, or the output would be the source.
        DataError: the source is missing or incomplete, or has more unusable images than allowed.
        StorageError: the output cannot be written, or holds something else.
    """
    config.require_places()
    store = _output_store(config.out)
    say(f"listing {config.path}")
    source = open_source(config, say)
    _require_elsewhere(store, config)
    identity = prepared_identity(config, source.digest)
    facts = _finished_facts(store, identity, overwrite=config.overwrite)
    if facts is not None:
        say(f"found {store.uri}, finished earlier")
        return PreparedImages(store.uri, True, facts)
    selection = source.select()
    say(_selection_text(selection, config))
    parent, name = store.parent()
    is_new = not parent.exists(name)
    try:
        facts = _make(store, config, identity, source, selection, say)
    except BaseException:
        # Also when interrupted. What cannot be cleared up here is cleared up by the next call.
        with suppress(CdvaeError):
            _withdraw(store, is_new=is_new)
        raise
    return PreparedImages(store.uri, False, facts)


def _output_store(out: str) -> Store:
    try:
        return Store.at(out)
    except StorageError as error:
        raise StorageError(
            f"out {out}", got=error.got, expected=error.expected, remedy="correct --out"
        ) from error


def _require_elsewhere(store: Store, config: PrepareConfig) -> None:
    """With --overwrite, shards in the output's folder are deleted: they must not be the source."""
    source = Store.at(config.path)
    if store.root in (source.root, f"{source.root}/data"):
        raise StorageError(
            f"out {config.out}",
            got="the folder of the source's own files",
            expected="another folder",
            remedy="set --out to a new folder",
        )


def _selection_text(selection: Selection, config: PrepareConfig) -> str:
    counts = " and ".join(f"{len(selection.images[split]):,} {split}" for split in SPLITS)
    text = f"{counts} images of {len(selection.class_names)} classes"
    if config.classes == "restricted-imagenet":
        present = len({image.class_name for image in selection.images["train"]})
        text += f" ({present} of the {len(RESTRICTED_IMAGENET)} of restricted ImageNet)"
    return text


def _finished_facts(
    store: Store, identity: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
    """The facts of a finished output of this identity; None where it is to be made.

    Raises:
        StorageError: the folder holds something else, or a damaged output.
    """
    if not store.exists(MANIFEST):
        names = store.names()
        foreign = [
            name
            for name in names
            if not name.startswith(_ASIDE)
            and not (_MARKER in names and _SHARD_NAME.fullmatch(name))
        ]
        if foreign:
            raise _occupied(store, f"a folder with {', '.join(foreign[:4])}")
        return None
    content = store.read_json(MANIFEST)
    if not isinstance(content, dict) or content.get("kind") != PREPARED_KIND:
        raise _occupied(store, f"a folder with the {MANIFEST} of something else")
    if overwrite:
        return None
    parent, name = store.parent()
    manifest = read_manifest(parent, name, kind=PREPARED_KIND)
    facts: dict[str, Any] = manifest["facts"]
    other = [key for key, value in identity.items() if facts["identity"].get(key) != value]
    if other:
        raise StorageError(
            f"out {store.uri}",
            got=f"a finished output of another {', '.join(other)}",
            expected="one of these settings and this source, or a new folder",
            remedy="set --out to a new folder, or add --overwrite",
        )
    _require_files(store, manifest["files"])
    return facts


def _occupied(store: Store, got: str) -> StorageError:
    return StorageError(
        f"out {store.uri}",
        got=got,
        expected="a new or empty folder, or an earlier output of this job",
        remedy="set --out to a new folder",
    )


def _require_files(store: Store, files: Mapping[str, Mapping[str, Any]]) -> None:
    """All shards with their sizes; reading their content would take as long as copying it."""
    paths = [store.path(name) for name in files]
    try:
        infos = store.filesystem.get_file_info(paths)
    except (pa.ArrowException, OSError) as error:
        raise _unwritable(store, error) from error
    for (name, promised), info in zip(files.items(), infos, strict=True):
        if info.size != promised["bytes"]:
            absent = info.type == pyarrow.fs.FileType.NotFound
            raise StorageError(
                store.location(name),
                got="no such file" if absent else f"{info.size} bytes",
                expected=f"{promised['bytes']} bytes, as {MANIFEST} says",
                remedy="add --overwrite to make the shards anew",
            )


def _make(
    store: Store,
    config: PrepareConfig,
    identity: Mapping[str, Any],
    source: ImageSource,
    selection: Selection,
    say: Say,
) -> dict[str, Any]:
    """Writes all shards and the manifest; returns the manifest's facts."""
    store.delete_partial()
    store.write(_MARKER, b"")
    if not store.is_local:
        _delete_output(store)  # new shards may have the names of old ones
    scratch = Path(store.root) if store.is_local else None
    schema = _schema(selection.class_names)
    shards: list[_Shard] = []
    splits: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(config.num_threads, "prepare") as pool:
        for split in SPLITS:
            images = selection.images[split]
            counts = SplitCounts(split, images, config.max_corrupt_fraction)
            progress = Progress(say, f"{split}: written", len(images))
            with source.reading(split, selection, scratch=scratch, say=say) as read:
                writer = _SplitWriter(store, config, schema, pool, read, counts, progress)
                written = writer.write_all(split, images)
            shards += written
            facts = splits[split] = _split_facts(written, counts, selection.class_names)
            if names := facts["skipped"]["names"]:
                say(f"  {split}: left out {counts.skipped.total()} images: {', '.join(names)}")
    facts = {
        "identity_digest": digest_of(identity),
        "identity": dict(identity),
        "settings": _settings(config),
        "source": {"kind": config.source, "path": config.path, "digest": source.digest},
        "class_names": list(selection.class_names),
        "splits": splits,
    }
    if store.is_local:
        _delete_output(store)
        for shard in shards:
            _rename(store, _ASIDE + shard.name, shard.name)
    store.write_json(MANIFEST, seal(_manifest(facts, shards)))
    store.delete_partial()
    return facts


class _SplitWriter(NamedTuple):
    """What all shards of a split have in common."""

    store: Store
    config: PrepareConfig
    schema: pa.Schema
    pool: Executor
    read: Read
    counts: SplitCounts
    progress: Progress

    def write_all(self, split: Split, images: Sequence[SourceImage]) -> list[_Shard]:
        size = self.config.images_per_shard
        starts = range(0, len(images), size)
        shards = [
            self._write(
                f"{split}-{number:05d}-of-{len(starts):05d}.parquet", images[first : first + size]
            )
            for number, first in enumerate(starts)
        ]
        self.counts.close()
        return shards

    def _write(self, name: str, images: Sequence[SourceImage]) -> _Shard:
        # The file is built in memory because object storage takes a broken-off stream for whole.
        sink, num_images = io.BytesIO(), 0
        # Encoded images neither compress nor repeat.
        with pq.ParquetWriter(
            sink,
            self.schema,
            compression="none",
            use_dictionary=False,
            write_statistics=[LABEL_COLUMN],
        ) as writer:
            groups = checked_images(
                images, self.read, min_side=self.config.min_side, pool=self.pool
            )
            for group in groups:
                kept = self.counts.usable(group)
                if kept:
                    writer.write_table(_table(kept, self.schema), row_group_size=IMAGES_PER_GROUP)
                num_images += len(kept)
                self.progress.add(len(group))
        content = sink.getvalue()
        self.store.write(_ASIDE + name if self.store.is_local else name, content)
        return _Shard(name, num_images, hashlib.sha256(content).hexdigest(), len(content))


def _schema(class_names: Sequence[str]) -> pa.Schema:
    features = {
        _IMAGE_COLUMN: {"_type": "Image"},
        LABEL_COLUMN: {"names": list(class_names), "_type": "ClassLabel"},
    }
    return pa.schema(
        [pa.field(_IMAGE_COLUMN, pa.struct(_IMAGE_FIELDS)), pa.field(LABEL_COLUMN, pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _table(group: Sequence[CheckedImage], schema: pa.Schema) -> pa.Table:
    images = pa.StructArray.from_arrays(
        [
            pa.array([each.encoded for each in group], pa.binary()),
            pa.array([each.image.path for each in group], pa.string()),
        ],
        fields=_IMAGE_FIELDS,
    )
    labels = pa.array([each.image.label for each in group], pa.int64())
    return pa.table([images, labels], schema=schema)


def _split_facts(
    shards: Sequence[_Shard], counts: SplitCounts, class_names: Sequence[str]
) -> dict[str, Any]:
    return {
        "images": sum(shard.images for shard in shards),
        "shards": len(shards),
        "bytes": sum(shard.num_bytes for shard in shards),
        "classes": {name: counts.by_label[label] for label, name in enumerate(class_names)},
        "skipped": {**counts.skipped, "names": list(counts.skipped_names)},
    }


def _settings(config: PrepareConfig) -> dict[str, Any]:
    settings = {key: getattr(config, key) for key in config.__slots__}
    return {key: value for key, value in settings.items() if key not in ("overwrite", "summary")}


def _manifest(facts: Mapping[str, Any], shards: Sequence[_Shard]) -> dict[str, Any]:
    return {
        "kind": PREPARED_KIND,
        "format_version": FORMAT_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "facts": dict(facts),
        "files": {
            shard.name: {
                "sha256": shard.sha256,
                "bytes": shard.num_bytes,
                "images": shard.images,
            }
            for shard in shards
        },
    }


def _delete_output(store: Store) -> None:
    """Deletes an earlier output, its manifest first: without one, the folder does not count."""
    store.delete(MANIFEST)
    for name in store.names():
        if _SHARD_NAME.fullmatch(name):
            store.delete(name)


def _withdraw(store: Store, *, is_new: bool) -> None:
    """Clears up after a failure, but for an earlier output that is still whole."""
    if not store.exists(MANIFEST):
        _delete_output(store)
    store.delete_partial()
    if is_new and not store.names():
        store.delete("")


def _rename(store: Store, name: str, new_name: str) -> None:
    try:
        store.filesystem.move(store.path(name), store.path(new_name))
    except (pa.ArrowException, OSError) as error:
        raise _unwritable(store, error) from error


def _unwritable(store: Store, error: Exception) -> StorageError:
    return StorageError(
        store.uri,
        got=error,
        expected="a writable folder",
        remedy="check the path and its permissions",
    )
