"""Training images that stay in their Parquet files: where each of them lies, checked beforehand.

Opening reads footers and label columns, never an image. The images are read while training goes
on: `stream_order` says in which order, and `stream_read` reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cdvae_ray.config.checks import require
from cdvae_ray.config.prepare_job import PREPARED_KIND
from cdvae_ray.config.serialize import digest_of
from cdvae_ray.data.parquet import (
    LABEL_COLUMN,
    MAX_UNNAMED_CLASSES,
    broken_file,
    declared_class_names,
    image_column,
    opened_parquet,
)
from cdvae_ray.data.roots import head, open_root, parquet_files
from cdvae_ray.errors import DataError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

MAX_GROUP_ROWS = 1024
"""Rows of a row group at most: whoever reads one image holds the encoded images of its group."""
_MANIFEST = "manifest.json"
_LABELS_PER_BATCH = 64 * 1024
_PIECE_BYTES = 2**20  # files are read in pieces of this size for their digests
_NUM_THREADS = 4


class RowGroup(NamedTuple):
    """What is read at a time."""

    file: int
    """Index into the files."""
    group: int
    """Number of the row group in its file."""
    first_id: int
    """Image id of its first row; the rows have consecutive ids."""
    rows: int
    """How many, in [1, MAX_GROUP_ROWS]."""


@dataclass(frozen=True, kw_only=True)
class StreamedImages:
    """Labelled images in Parquet files: small, and sent to whoever reads them.

    The image id of an image is its row number over all files in order: its index in the ImageSet
    that `load_parquet` makes of the same files. `open_streamed` makes one.

    Raises:
        ConfigError: max_corrupt_fraction outside [0, 1).
    """

    filesystem: Any
    """The pyarrow filesystem that the files are in."""
    files: tuple[str, ...]
    """Their paths there, sorted by name."""
    groups: tuple[RowGroup, ...]
    """The row groups that have rows, in order; at least one."""
    class_names: tuple[str, ...]
    """The name of each class, by label; no name twice."""
    image_size: int
    """Side of the square RGB images that they are read as, in pixels."""
    name: str
    """What messages call it, for example "parquet/train"; no part of the digest."""
    digest: str
    """SHA-256 over image size, class names, and the files' names, rows and digests; hexadecimal."""
    max_corrupt_fraction: float
    """Share of the images that may turn out not to decode, in [0, 1); no part of the digest."""

    def __post_init__(self) -> None:
        require(
            0 <= self.max_corrupt_fraction < 1,
            "data.max_corrupt_fraction",
            got=self.max_corrupt_fraction,
            expected="a number in [0, 1)",
            remedy="set --data.max-corrupt-fraction to such a number",
        )

    def __len__(self) -> int:
        last = self.groups[-1]
        return last.first_id + last.rows

    @property
    def num_classes(self) -> int:
        """Length of the class list; a class may have no image here."""
        return len(self.class_names)


class _Footer(NamedTuple):
    groups_rows: tuple[int, ...]
    class_names: tuple[str, ...] | None


def open_streamed(
    path: str, image_size: int, *, max_corrupt_fraction: float, say: Callable[[str], None]
) -> StreamedImages:
    """Finds and checks the `train*.parquet` files of a folder or of its `data` folder.

    Class names come from the files' metadata; without any, the classes are "0", "1", ... up to the
    largest label. The files' digests come from the manifest of `jobs/prepare_data.py`; of files
    that no manifest lists, from reading them whole, which takes a while.

    Args:
        path: a local folder, or the URI of one in object storage, for example s3://bucket/folder.
        image_size: side of the images, in pixels.
        max_corrupt_fraction: share of the images that may turn out not to decode, in [0, 1).
        say: gets lines about what takes long.

    Raises:
        ConfigError: max_corrupt_fraction outside [0, 1).
        DataError: no such files, a file that is not Parquet or not in this layout, files of other
            classes, no rows at all, a row group that is too large, a null label or one outside
            the class list, or a file of another size than its manifest says.
    """
    filesystem, root = open_root(path, setting="data.path")
    infos = parquet_files(filesystem, root, path, setting="data.path")["train"]
    files = tuple(info.path for info in infos)
    with ThreadPoolExecutor(_NUM_THREADS, "parquet") as pool:
        footers = list(pool.map(partial(_read_footer, filesystem), files))
        groups = _row_groups(files, footers)
        class_names = _agreed_class_names(files, footers)
        num_classes = MAX_UNNAMED_CLASSES if class_names is None else len(class_names)
        largest = max(pool.map(partial(_largest_label, filesystem, num_classes), files))
        if class_names is None:
            class_names = tuple(str(label) for label in range(largest + 1))
        file_digests = _file_digests(filesystem, infos, pool, say)
    content = {
        "image_size": image_size,
        "class_names": list(class_names),
        "files": [
            [info.base_name, sum(footer.groups_rows), digest]
            for info, footer, digest in zip(infos, footers, file_digests, strict=True)
        ],
    }
    return StreamedImages(
        filesystem=filesystem,
        files=files,
        groups=groups,
        class_names=class_names,
        image_size=image_size,
        name="parquet/train",
        digest=digest_of(content),
        max_corrupt_fraction=max_corrupt_fraction,
    )


def verified_labels(
    labels: Sequence[int | None], file: str, first_row: int, num_classes: int
) -> Tensor:
    """Labels of consecutive rows of a file as a tensor.

    Args:
        labels: one a row, None for null.
        file: what messages call it.
        first_row: number of the first row in the file.
        num_classes: length of the class list.

    Returns:
        (len(labels),) int64 in [0, num_classes).

    Raises:
        DataError: a label is null or outside the class list.
    """
    for row, label in enumerate(labels, start=first_row):
        if label is None or not 0 <= label < num_classes:
            raise DataError(
                f"label of {file} row {row}",
                got="null" if label is None else label,
                expected=f"a label in [0, {num_classes})",
                remedy="correct the label or drop the row; unlabelled splits cannot be used",
            )
    return torch.tensor(labels, dtype=torch.int64)


def _read_footer(filesystem: Any, file: str) -> _Footer:
    with opened_parquet(filesystem, file) as parquet:
        image_column(file, parquet.schema_arrow)  # refuses other layouts
        metadata = parquet.metadata
        rows = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        return _Footer(rows, declared_class_names(file, parquet.schema_arrow))


def _row_groups(files: Sequence[str], footers: Sequence[_Footer]) -> tuple[RowGroup, ...]:
    groups: list[RowGroup] = []
    first_id = 0
    for number, (file, footer) in enumerate(zip(files, footers, strict=True)):
        for group, rows in enumerate(footer.groups_rows):
            if rows > MAX_GROUP_ROWS:
                raise DataError(
                    f"row group {group} of {file}",
                    got=f"{rows} rows",
                    expected=f"at most {MAX_GROUP_ROWS}, since a group is held in memory whole",
                    remedy="write it again by jobs/prepare_data.py, which writes groups of 100 "
                    "rows",
                )
            if rows:
                groups.append(RowGroup(number, group, first_id, rows))
                first_id += rows
    if not groups:
        raise DataError(
            head(files), got="no rows", expected="at least one image", remedy="use other files"
        )
    return tuple(groups)


def _agreed_class_names(files: Sequence[str], footers: Sequence[_Footer]) -> tuple[str, ...] | None:
    """The class names of all files that have any, None where none has."""
    declared = [
        (file, footer.class_names)
        for file, footer in zip(files, footers, strict=True)
        if footer.class_names is not None
    ]
    for (_, before), (file, names) in pairwise(declared):
        if names != before:
            raise DataError(
                f"class names in {file}",
                got=f"{len(names)} names: {head(names)}",
                expected=f"those of the files before it, {len(before)}: {head(before)}",
                remedy="use files of one dataset",
            )
    for file, names in declared[:1]:
        if len(set(names)) < len(names):
            raise DataError(
                f"class names in {file}",
                got=f"{head([name for name in sorted(set(names)) if names.count(name) > 1])} "
                "more than once",
                expected="different names",
                remedy="rename or merge these classes",
            )
        return names
    return None


def _largest_label(filesystem: Any, num_classes: int, file: str) -> int:
    """The largest label of a file, -1 where it has no rows."""
    largest, row = -1, 0
    with opened_parquet(filesystem, file) as parquet:
        for batch in parquet.iter_batches(
            _LABELS_PER_BATCH, columns=[LABEL_COLUMN], use_threads=False
        ):
            column = batch.column(LABEL_COLUMN).to_pylist()
            labels = verified_labels(column, file, row, num_classes)
            largest, row = max(largest, int(labels.max())), row + len(labels)
        if row != parquet.metadata.num_rows:
            raise broken_file(file, f"{row} of {parquet.metadata.num_rows} rows")
    return largest


def _file_digests(
    filesystem: Any, infos: Sequence[FileInfo], pool: Executor, say: Callable[[str], None]
) -> list[str]:
    """The SHA-256 of each file, from the manifest where it lists the file."""
    folder = infos[0].path.rpartition("/")[0]
    digests = _manifest_digests(filesystem, folder, infos)
    unlisted = [info for info in infos if info.base_name not in digests]
    if unlisted:
        megabytes = sum(info.size for info in unlisted) / 1e6
        say(
            f"no {_MANIFEST} of jobs/prepare_data.py lists "
            f"{head([info.base_name for info in unlisted])}: reading {len(unlisted)} files, "
            f"{megabytes:,.1f} MB, for their digests"
        )
        computed = pool.map(partial(_file_digest, filesystem), [info.path for info in unlisted])
        digests |= zip((info.base_name for info in unlisted), computed, strict=True)
    return [digests[info.base_name] for info in infos]


def _manifest_digests(filesystem: Any, folder: str, infos: Sequence[FileInfo]) -> dict[str, str]:
    """The manifest's digest of each file that it lists, by name; of none where there is none."""
    listed = _manifest_files(filesystem, f"{folder}/{_MANIFEST}")
    digests = {}
    for info in infos:
        match listed.get(info.base_name):
            case {"sha256": str(digest), "bytes": int(size)}:
                if size != info.size:
                    raise DataError(
                        info.path,
                        got=f"{info.size} bytes",
                        expected=f"the {size} that {_MANIFEST} beside it says",
                        remedy="fetch or write it again; it is damaged, or of another dataset",
                    )
                digests[info.base_name] = digest
    return digests


def _manifest_files(filesystem: Any, file: str) -> dict[str, Any]:
    import pyarrow as pa

    try:
        with filesystem.open_input_stream(file) as stream:
            manifest = json.loads(stream.read())
    except (pa.ArrowException, OSError, ValueError):
        return {}  # absent, or something else of this name: the files themselves are read
    match manifest:
        case {"kind": kind, "files": dict(files)} if kind == PREPARED_KIND:
            return files
    return {}


def _file_digest(filesystem: Any, file: str) -> str:
    import pyarrow as pa

    digest = hashlib.sha256()
    try:
        with filesystem.open_input_stream(file) as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
    except (pa.ArrowException, OSError) as error:
        raise broken_file(file, error) from error
    return digest.hexdigest()
