"""Folders on disk or in object storage: opened, listed, and searched for Parquet files.

`setting` is the setting that holds the path, "data.path" or "path": what messages call it, and
with two dashes before it the flag that they point to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdvae_ray.data.images import Split
from cdvae_ray.data.object_store import SECRETS_IN_ADDRESS, open_uri, trouble
from cdvae_ray.errors import DataError, holds_secrets

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

TEST_PREFIXES = ("test", "validation", "valid")  # the first of these that has files


def open_root(path: str, *, setting: str) -> tuple[Any, str]:
    """The filesystem of a path or URI, and what the path is called there.

    Args:
        path: a local path, or the URI of a folder in object storage, for example
            s3://bucket/folder.
        setting: see the module's docstring.

    Returns:
        A pyarrow filesystem, and the folder's path in it without a trailing slash.

    Raises:
        DataError: a URI that pyarrow does not understand, whose storage cannot be reached, or that
            holds credentials.
    """
    import pyarrow as pa
    from pyarrow import fs

    if "://" not in path:
        return fs.LocalFileSystem(), Path(path).expanduser().resolve().as_posix()
    if holds_secrets(path):
        raise DataError(f"{setting} {path}", **SECRETS_IN_ADDRESS._asdict())
    try:
        filesystem, root = open_uri(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{setting} {path}",
            got=error,
            expected="a folder or an object-storage URI that pyarrow understands",
            remedy="write it as s3://bucket/folder, gs://bucket/folder or a local path",
        ) from error
    return filesystem, root.rstrip("/") or root


def list_folder(filesystem: Any, folder: str, path: str, *, setting: str) -> list[FileInfo]:
    """What is directly in a folder, sorted by base name; nothing if it does not exist.

    Args:
        filesystem: from `open_root`.
        folder: its path there.
        path: what messages call it: the path as it was given.
        setting: see the module's docstring.

    Raises:
        DataError: the folder cannot be listed.
    """
    import pyarrow as pa
    from pyarrow import fs

    try:
        infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    except (pa.ArrowException, OSError) as error:
        if known := trouble(filesystem, folder, error):
            raise DataError(f"{setting} {path}", **known._asdict()) from error
        raise DataError(
            f"{setting} {path}",
            got=error,
            expected="a folder that can be listed",
            remedy="check the path and the credentials of its storage",
        ) from error
    return sorted(infos, key=lambda info: str(info.base_name))


def parquet_files(
    filesystem: Any, root: str, path: str, *, setting: str
) -> dict[Split, list[FileInfo]]:
    """`train*.parquet` and `test*.parquet` of a folder or of its `data` folder, sorted by name.

    Where there is no test file, `validation*` or `valid*` files stand in.

    Args:
        filesystem: from `open_root`.
        root: the folder's path there, from `open_root`.
        path: what messages call it: the path as it was given.
        setting: see the module's docstring.

    Raises:
        DataError: a folder cannot be listed, or one of the halves has no file.
    """
    infos = list_folder(filesystem, root, path, setting=setting)
    if not _with_prefix(infos, "train"):
        infos = list_folder(filesystem, f"{root}/data", path, setting=setting) or infos
    train = _with_prefix(infos, "train")
    test = next((files for prefix in TEST_PREFIXES if (files := _with_prefix(infos, prefix))), [])
    if not train or not test:
        shown = head([info.base_name for info in infos])
        raise DataError(
            f"{setting} {path}",
            got=f"a folder with {shown}" if shown else "no such folder, or an empty one",
            expected="train*.parquet and test*.parquet, there or in its folder data",
            remedy=f"point --{setting} at the folder that holds both",
        )
    return {"train": train, "test": test}


def head(names: Sequence[str], count: int = 4) -> str:
    """The first names for a message, with dots where there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _with_prefix(infos: Sequence[FileInfo], prefix: str) -> list[FileInfo]:
    return [
        info
        for info in infos
        if info.base_name.startswith(prefix) and info.base_name.endswith(".parquet")
    ]
