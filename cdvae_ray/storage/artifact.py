"""Stored artifacts: a folder of files with a manifest of what made them and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cdvae_ray.config.serialize import digest_of
from cdvae_ray.errors import StorageError
from cdvae_ray.storage.store import Store, to_json_bytes

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


class Artifact(NamedTuple):
    """A verified artifact."""

    facts: dict[str, Any]
    """What made it, as it was given to `write_artifact`."""
    files: dict[str, bytes]
    """The content of the files that were asked for."""


def write_artifact(
    store: Store, name: str, *, kind: str, files: Mapping[str, bytes], facts: Mapping[str, Any]
) -> None:
    """Writes files and their manifest as the folder `name`, whole or not at all.

    Args:
        store: the folder that holds the artifact.
        name: the artifact's own folder.
        kind: what it is, such as "cdvae-checkpoint".
        files: content by file name.
        facts: what determined it, JSON values.
    """
    manifest = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "facts": dict(facts),
        "files": {
            file: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for file, content in files.items()
        },
    }
    sealed = to_json_bytes(seal(manifest))
    store.write_folder(name, {**files, MANIFEST: sealed}, last=MANIFEST)


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its own digest, so that damage to it is seen too."""
    open_manifest = {key: value for key, value in manifest.items() if key != "digest"}
    return {**open_manifest, "digest": digest_of(open_manifest)}


def has_artifact(store: Store, name: str) -> bool:
    """Whether an artifact of that name was written to its end, sound or damaged since.

    In object storage an interrupted writer leaves files without their manifest, which do not count.
    """
    return store.child(name).exists(MANIFEST)


def read_artifact(
    store: Store, name: str, *, kind: str, only: tuple[str, ...] | None = None
) -> Artifact:
    """Reads an artifact and verifies every file read against the manifest.

    Args:
        store: the folder that holds the artifact.
        name: the artifact's own folder.
        kind: what it must be.
        only: read just these files.

    Raises:
        StorageError: it is absent, incomplete, damaged or of another kind.
    """
    manifest, folder = read_manifest(store, name, kind=kind), store.child(name)
    wanted = tuple(manifest["files"]) if only is None else only
    files = {}
    for file in wanted:
        if file not in manifest["files"]:
            raise StorageError(
                folder.location(file),
                got="no such file in the manifest",
                expected=f"one of {', '.join(manifest['files'])}",
                remedy="use an artifact that holds it",
            )
        content, promised = folder.read(file), manifest["files"][file]
        if len(content) != promised["bytes"]:
            raise _damaged(folder, file, f"{len(content)} bytes", f"{promised['bytes']} bytes")
        digest = hashlib.sha256(content).hexdigest()
        if digest != promised["sha256"]:
            raise _damaged(folder, file, f"SHA-256 {digest[:12]}…", promised["sha256"][:12] + "…")
        files[file] = content
    return Artifact(facts=manifest["facts"], files=files)


def read_manifest(store: Store, name: str, *, kind: str) -> dict[str, Any]:
    """An artifact's manifest.

    Raises:
        StorageError: it is absent, damaged or of another kind, or names a file outside its folder.
    """
    folder = store.child(name)
    if not folder.exists(MANIFEST):
        raise StorageError(
            folder.uri,
            got=f"no {MANIFEST} in it",
            expected=f"a complete {kind}",
            remedy="give the folder of a finished artifact",
        )
    manifest = folder.read_json(MANIFEST)
    if not isinstance(manifest, dict) or "digest" not in manifest:
        raise _damaged(folder, MANIFEST, "other content", "a manifest with its digest")
    if (digest := seal(manifest)["digest"]) != manifest["digest"]:
        raise _damaged(
            folder, MANIFEST, f"content of digest {digest[:12]}", str(manifest["digest"])[:12]
        )
    found, version = manifest.get("kind"), manifest.get("format_version")
    if found != kind or version != FORMAT_VERSION:
        raise StorageError(
            folder.uri,
            got=f"{found} in format {version}",
            expected=f"{kind} in format {FORMAT_VERSION}",
            remedy="give another artifact, or read it with the version that wrote it",
        )
    for part in ("facts", "files"):
        if not isinstance(manifest.get(part), dict):
            raise _damaged(folder, MANIFEST, f"no {part}", f"{part} by their names")
    for file in manifest["files"]:
        folder.path(file)
    return manifest


def _damaged(folder: Store, file: str, got: str, expected: str) -> StorageError:
    return StorageError(
        folder.location(file),
        got=got,
        expected=expected,
        remedy="the file is damaged: use an earlier artifact or make it again",
    )
