"""Files under one root, on a local disk or in object storage, never half-written."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs

from cdvae_ray.errors import StorageError


class Store:
    """A folder, reached through pyarrow's filesystems.

    Args:
        filesystem: a pyarrow filesystem.
        root: the folder's path on it.
        uri: how a person names the folder.
    """

    def __init__(self, filesystem: pyarrow.fs.FileSystem, root: str, uri: str) -> None:
        self.filesystem, self.root, self.uri = filesystem, root.rstrip("/"), uri.rstrip("/")

    @classmethod
    def at(cls, location: str | Path) -> Store:
        """The store at a local path or an object-storage URI such as s3://bucket/folder.

        Raises:
            StorageError: no filesystem answers to that URI.
        """
        text = str(location)
        if "://" not in text:
            path = str(Path(text).expanduser().resolve())
            return cls(pyarrow.fs.LocalFileSystem(), path, path)
        try:
            filesystem, root = pyarrow.fs.FileSystem.from_uri(text)
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
        """The sub-folder of that name, which need not exist."""
        return Store(self.filesystem, f"{self.root}/{name}", f"{self.uri}/{name}")

    def parent(self) -> tuple[Store, str]:
        """The folder that holds this one, and this one's name in it."""
        root, _, name = self.root.rpartition("/")
        return Store(self.filesystem, root, self.uri.rpartition("/")[0]), name

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted; none if it does not exist."""
        selector = pyarrow.fs.FileSelector(self.root, allow_not_found=True)
        with self._guard(self.uri, "a folder that can be listed"):
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def exists(self, name: str) -> bool:
        """Whether a file or folder of that name is inside."""
        with self._guard(f"{self.uri}/{name}", "a path that can be looked up"):
            info = self.filesystem.get_file_info(f"{self.root}/{name}")
        return bool(info.type != pyarrow.fs.FileType.NotFound)

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            StorageError: it is absent or unreadable.
        """
        with (
            self._guard(f"{self.uri}/{name}", "a readable file"),
            self.filesystem.open_input_stream(f"{self.root}/{name}") as stream,
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
                f"{self.uri}/{name}",
                got=f"no JSON ({error})",
                expected="a JSON file",
                remedy="delete it, or restore it from a copy",
            ) from error

    def write(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all.

        Raises:
            StorageError: the root is read-only, full or out of reach.
        """
        target = f"{self.root}/{name}"
        with self._guard(f"{self.uri}/{name}", "a writable place with room"):
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
            StorageError: the root is read-only, full or out of reach.
        """
        target = f"{self.root}/{name}"
        with self._guard(f"{self.uri}/{name}", "a writable place with room"):
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
        path = f"{self.root}/{name}".rstrip("/")
        with self._guard(f"{self.uri}/{name}", "a path that can be deleted"):
            kind = self.filesystem.get_file_info(path).type
            if kind == pyarrow.fs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == pyarrow.fs.FileType.File:
                self.filesystem.delete_file(path)

    def delete_partial(self) -> None:
        """Deletes what an interrupted writer left aside."""
        for name in self.names():
            if name.startswith(".partial-"):
                self.delete(name)

    def _write_stream(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    @contextmanager
    def _guard(self, what: str, expected: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            raise StorageError(
                what,
                got=str(error),
                expected=expected,
                remedy="check the path, its permissions and the space left on it",
            ) from error


def to_json_bytes(values: Any) -> bytes:
    """Values as indented JSON text; NaN and infinity are refused, being no JSON."""
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()
