"""Files under one root, on a local disk or in object storage, never half-written."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs

from cdvae_ray.data.object_store import SECRETS_IN_ADDRESS, open_uri, trouble
from cdvae_ray.errors import StorageError, holds_secrets


class Store:
    """A folder, reached through pyarrow's filesystems.

    Names that its methods take lead inside it: whatever a manifest says, nothing outside is read,
    written or deleted by them.

    Args:
        filesystem: a pyarrow filesystem.
        root: the folder's path on it.
        uri: how a person names the folder.
    """

    def __init__(self, filesystem: pyarrow.fs.FileSystem, root: str, uri: str) -> None:
        self.filesystem, self.root = filesystem, root.rstrip("/")
        self._address, self._options = _options_apart(uri)
        self.uri = self._address + self._options

    @classmethod
    def at(cls, location: str | Path) -> Store:
        """The store at a local path or an object-storage URI such as s3://bucket/folder.

        Raises:
            StorageError: no filesystem answers to that URI, or it holds credentials.
        """
        text = str(location)
        if "://" not in text:
            path = str(Path(text).expanduser().resolve())
            return cls(pyarrow.fs.LocalFileSystem(), path, path)
        if holds_secrets(text):
            raise StorageError(text, **SECRETS_IN_ADDRESS._asdict())
        try:
            filesystem, root = open_uri(text)
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise StorageError(
                text,
                got=str(error),
                expected="a URI of a known filesystem, such as s3:// or gs://",
                remedy="correct --storage",
            ) from error
        return cls(filesystem, root, text)

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine's own filesystem."""
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def child(self, name: str) -> Store:
        """The sub-folder of that name, which need not exist.

        Raises:
            StorageError: the name leads outside.
        """
        return Store(self.filesystem, self.path(name), self.location(name))

    def parent(self) -> tuple[Store, str]:
        """The folder that holds this one, and this one's name in it."""
        root, _, name = self.root.rpartition("/")
        address = self._address.rpartition("/")[0]
        return Store(self.filesystem, root, address + self._options), name

    def location(self, name: str) -> str:
        """How a person names a file or folder inside, and `at` finds it."""
        return f"{self._address}/{name}{self._options}"

    def path(self, name: str) -> str:
        """The path of a file or folder inside on the filesystem.

        Raises:
            StorageError: the name is no relative one, or leads outside by dots or a link.
        """
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise self._outside(name, f"the name {name!r}")
        path = f"{self.root}/{name}"
        if self.is_local:
            try:
                real = Path(path).resolve()
                inside = real.is_relative_to(Path(self.root or "/").resolve())
            except (OSError, RuntimeError) as error:  # a link that leads to itself
                raise self._outside(name, str(error)) from error
            if not inside:
                raise self._outside(name, f"a link to {real}")
        return path

    def _outside(self, name: str, got: str) -> StorageError:
        return StorageError(
            self.location(name).replace("\0", "\\0"),
            got=got,
            expected=f"a relative name of something inside {self._address}",
            remedy="the manifest or folder that names it is foreign or damaged: make it again, or "
            "give the folder that a link leads to",
        )

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; none if it does not exist."""
        selector = pyarrow.fs.FileSelector(self.root, allow_not_found=True)
        with self._guard(self.uri, "a folder that can be listed"):
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name is inside."""
        path = self.path(name)
        with self._guard(self.location(name), "a path that can be looked up"):
            info = self.filesystem.get_file_info(path)
        return bool(info.type != pyarrow.fs.FileType.NotFound)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            StorageError: it is absent, unreadable or outside.
        """
        path = self.path(name)
        with (
            self._guard(self.location(name), "a readable file"),
            self.filesystem.open_input_stream(path) as stream,
        ):
            content: bytes = stream.read()
        return content

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            StorageError: it is absent, unreadable or no JSON.
        """
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise StorageError(
                self.location(name),
                got=f"no JSON ({error})",
                expected="a JSON file",
                remedy="delete it, or restore it from a copy",
            ) from error

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all.

        Raises:
            StorageError: the root is read-only, full or out of reach, or the name leads outside.
        """
        target = self.path(name)
        with self._guard(self.location(name), "a writable place with room"):
            self.filesystem.create_dir(self.root, recursive=True)
            if not self.is_local:
                # Object stores show an object only once it is complete.
                self._write_stream(target, content)
                return
            aside = f"{self.root}/.partial-{name}-{uuid.uuid4().hex[:8]}"
            self._write_stream(aside, content)
            self.filesystem.move(aside, target)

    def write_json(self, name: str, values: Any) -> None:
        """Writes values as indented JSON, whole or not at all."""
        self.write(name, to_json_bytes(values))

    def write_folder(self, name: str, files: Mapping[str, bytes], *, last: str) -> None:
        """Writes a folder of files whole or not at all, in place of one of the same name.

        Locally it is written aside and renamed. In object storage, which has no renaming, the
        file named `last` is written last: without it the folder does not count.

        Raises:
            StorageError: the root is read-only, full or out of reach, or a name leads outside.
        """
        target = self.path(name)
        for file in files:
            self.path(f"{name}/{file}")
        with self._guard(self.location(name), "a writable place with room"):
            if self.exists(name):
                self.delete(name)
            folder = target
            if self.is_local:
                folder = f"{self.root}/.partial-{name}-{uuid.uuid4().hex[:8]}"
            self.filesystem.create_dir(folder, recursive=True)
            for file in sorted(files, key=lambda file: (file == last, file)):
                self._write_stream(f"{folder}/{file}", files[file])
            if folder != target:
                self.filesystem.move(folder, target)

    def delete(self, name: str) -> None:
        """Deletes a file or folder ("" for this folder itself); absent ones are no error."""
        path = self.path(name) if name else self.root
        what = self.location(name) if name else self.uri
        # Absent, too, is what another job has moved or deleted meanwhile.
        with self._guard(what, "a path that can be deleted"), suppress(FileNotFoundError):
            kind = self.filesystem.get_file_info(path).type
            if kind == pyarrow.fs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == pyarrow.fs.FileType.File:
                self.filesystem.delete_file(path)

    def delete_partial(self, *, older_than_seconds: float = 0.0) -> None:
        """Deletes what an interrupted writer left aside.

        Args:
            older_than_seconds: where others may be writing: what they have in hand is younger.
        """
        newest = time.time() - older_than_seconds
        selector = pyarrow.fs.FileSelector(self.root, allow_not_found=True)
        with self._guard(self.uri, "a folder that can be listed"):
            found = self.filesystem.get_file_info(selector)
        for info in found:
            if is_partial(info.base_name) and (
                not older_than_seconds or (info.mtime and info.mtime.timestamp() < newest)
            ):
                self.delete(info.base_name)

    def _write_stream(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    @contextmanager
    def _guard(self, what: str, expected: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            if known := trouble(self.filesystem, self.root, error):
                raise StorageError(what, **known._asdict()) from error
            raise StorageError(
                what,
                got=str(error),
                expected=expected,
                remedy="check the path, its permissions and the space left on it",
            ) from error


def is_partial(name: str) -> bool:
    """Whether a file or folder is one that a writer has in hand, or left."""
    return name.startswith(".partial-")


def _options_apart(uri: str) -> tuple[str, str]:
    """An address, and its options with their question mark; a local path has none."""
    address, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return address.rstrip("/"), mark + options


def to_json_bytes(values: Any) -> bytes:
    """Values as indented JSON text; NaN and infinity are refused, being no JSON."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()
