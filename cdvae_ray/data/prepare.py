"""Encoded images of a folder or of Parquet files, chosen, ordered and checked, for new shards.

Nothing is held in memory but the images' names and the encoded images of one group, so that
datasets that do not fit in memory pass through. `storage.prepared_images` writes the shards.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol, TypeAlias

import torch

from cdvae_ray.config.prepare_job import PrepareConfig
from cdvae_ray.config.restricted_imagenet import ClassMap, restrict_classes
from cdvae_ray.core.random import image_keys
from cdvae_ray.data.decode import decode_image
from cdvae_ray.data.folder import EXTENSIONS
from cdvae_ray.data.parquet import (
    LABEL_COLUMN,
    MAX_UNNAMED_CLASSES,
    TEST_PREFIXES,
    broken_file,
    declared_class_names,
    image_column,
)
from cdvae_ray.errors import DataError, StorageError

Split: TypeAlias = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
TEST_FOLDERS = ("val", "test")
"""The first of these with class folders is the test half; ILSVRC2012's own test is unlabelled."""
IMAGES_PER_GROUP = 100
"""Encoded images read and checked at a time; a row group of the shards, as Hugging Face writes."""
SECONDS_BETWEEN_LINES = 5.0
SHOWN = 5
_BUFFER_BYTES = 8 * 2**20  # Parquet is read in pieces of this size, however large its row groups
_ROWS_PER_BATCH = 128

Say: TypeAlias = Callable[[str], None]


class SourceImage(NamedTuple):
    """One image of a source, not yet read."""

    class_name: str
    """Its class in the source."""
    place: int
    """Its number among the chosen images of its split, in the order of the source."""
    label: int
    """Its new label."""
    name: str
    """What messages call it: its file below the source, or file and row."""
    path: str | None
    """What goes with it as its path: class folder and file, or what the source says."""


Read: TypeAlias = Callable[[SourceImage], bytes]
"""Reads an image's encoded bytes; called from many threads."""


class Selection(NamedTuple):
    """The chosen images of a source."""

    class_names: tuple[str, ...]
    """By new label."""
    images: dict[Split, list[SourceImage]]
    """In the order in which they are written."""


class ImageSource(Protocol):
    """Where encoded images come from."""

    digest: str
    """SHA-256 over the names and sizes of the source's files, hexadecimal."""

    def select(self) -> Selection:
        """The chosen images, in order.

        Raises:
            DataError: no class is chosen, a class has no training images, or a label is wrong.
        """
        ...

    def reading(
        self, split: Split, selection: Selection, *, scratch: Path | None, say: Say
    ) -> AbstractContextManager[Read]:
        """What reads the images of a split, in any order.

        Args:
            split: which half.
            selection: from `select`.
            scratch: an existing local folder with room for a copy of the chosen images, which only
                Parquet sources take; None for the system's temporary folder.
            say: gets lines of progress.
        """
        ...


class CheckedImage(NamedTuple):
    """An image that was read and decoded."""

    image: SourceImage
    encoded: bytes
    """As the source holds it."""
    unusable: Literal["", "undecodable", "too_small"]
    """Why it cannot be used; empty where it can."""
    trouble: DataError | None
    """The same as an error."""


class Progress:
    """Says every few seconds how far long work is.

    Args:
        say: gets the lines.
        what: is done, for example "train: written".
        total: how much there is to do.
        unit: of it.
    """

    def __init__(self, say: Say, what: str, total: int, unit: str = "images") -> None:
        self._say, self._what, self._total, self._unit = say, what, total, unit
        self._done, self._started = 0, time.monotonic()
        self._next = self._started + SECONDS_BETWEEN_LINES

    def add(self, count: int) -> None:
        """Counts what was done since the last call."""
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SECONDS_BETWEEN_LINES
        rate = self._done / (now - self._started)
        left = (self._total - self._done) / rate if rate else 0.0
        self._say(
            f"  {self._what} {self._done:,} of {self._total:,} {self._unit}, "
            f"{rate:,.0f} a second, about {left:,.0f} seconds left"
        )


def open_source(config: PrepareConfig, say: Say) -> ImageSource:
    """Lists the source's files.

    Args:
        config: of the job, with a path.
        say: gets lines of progress.

    Raises:
        DataError: the folder or one of its halves is missing; and for a folder also: nothing is
            chosen of its classes, or a class folder is absent from a half or empty.
    """
    filesystem, root = _open_root(config.path)
    if config.source == "folder":
        return _FolderSource(filesystem, root, config, say)
    return _ParquetSource(filesystem, root, config)


def checked_images(
    images: Sequence[SourceImage], read: Read, *, min_side: int, pool: Executor
) -> Iterator[list[CheckedImage]]:
    """Reads and decodes images, some at a time, in order.

    Args:
        images: which.
        read: reads one.
        min_side: a shorter side than this makes an image unusable, in pixels.
        pool: of the threads that do it.

    Yields:
        IMAGES_PER_GROUP images, at the end fewer. Nothing keeps them here afterwards.

    Raises:
        DataError: an image cannot be read at all.
    """

    def check(image: SourceImage) -> CheckedImage:
        encoded = read(image)
        try:
            width, height = decode_image(encoded, image.name).size
        except DataError as error:
            return CheckedImage(image, encoded, "undecodable", error)
        if min(width, height) >= min_side:
            return CheckedImage(image, encoded, "", None)
        small = DataError(
            image.name,
            got=f"an image of {width} x {height} pixels",
            expected=f"at least {min_side} pixels on the shorter side",
            remedy="replace or remove it, or set --min-side",
        )
        return CheckedImage(image, encoded, "too_small", small)

    for first in range(0, len(images), IMAGES_PER_GROUP):
        yield list(pool.map(check, images[first : first + IMAGES_PER_GROUP]))


class SplitCounts:
    """Counts what is written of a split and what is left out of it.

    Args:
        split: which half.
        images: all that were chosen.
        max_corrupt_fraction: the share of them that may be left out, in [0, 1].
    """

    def __init__(
        self, split: Split, images: Sequence[SourceImage], max_corrupt_fraction: float
    ) -> None:
        self._split, self._num_images, self._fraction = split, len(images), max_corrupt_fraction
        # The product of a fraction such as 0.29 and 100 must not fall short of 29.
        self._allowed = int(max_corrupt_fraction * len(images) + 1e-9)
        self._expected = Counter(image.class_name for image in images)
        self._written: Counter[str] = Counter()
        self.by_label: Counter[int] = Counter()
        """Images written, by new label."""
        self.skipped: Counter[str] = Counter({"undecodable": 0, "too_small": 0})
        """Images left out, by reason."""
        self.skipped_names: list[str] = []
        """The first of them, at most SHOWN."""

    def usable(self, group: Iterable[CheckedImage]) -> list[CheckedImage]:
        """Counts a group and gives those of its images that are to be written.

        Raises:
            DataError: more were left out than allowed.
        """
        kept = []
        for checked in group:
            if checked.trouble is None:
                kept.append(checked)
                self._written[checked.image.class_name] += 1
                self.by_label[checked.image.label] += 1
            else:
                self._skip(checked, checked.trouble)
        return kept

    def close(self) -> None:
        """Checks, at the end, that no class lost all its images.

        Raises:
            DataError: one did.
        """
        lost = sorted(set(self._expected) - set(self._written))
        if lost:
            raise DataError(
                f"class {lost[0]} of {self._split}",
                got=f"no usable image among {self._expected[lost[0]]}",
                expected="at least one",
                remedy="replace its images, or remove the class from both halves",
            )

    def _skip(self, checked: CheckedImage, trouble: DataError) -> None:
        self.skipped[checked.unusable] += 1
        if len(self.skipped_names) < SHOWN:
            self.skipped_names.append(checked.image.name)
        if self.skipped.total() <= self._allowed:
            return
        if self._allowed == 0:
            raise DataError(
                trouble.what,
                got=trouble.got,
                expected=trouble.expected,
                remedy=f"{trouble.remedy}, or leave some out with --max-corrupt-fraction",
            ) from trouble
        raise DataError(
            f"images of {self._split}",
            got=f"{self.skipped.total()} unusable ones so far: {', '.join(self.skipped_names)}"
            + (", ..." if self.skipped.total() > SHOWN else ""),
            expected=f"at most {self._allowed} of {self._num_images}, as max_corrupt_fraction "
            f"{self._fraction:g} says",
            remedy="replace or remove them, or raise --max-corrupt-fraction",
        )


class _FolderSource:
    """train/<class>/* and val/<class>/* or test/<class>/*."""

    def __init__(self, filesystem: Any, root: str, config: PrepareConfig, say: Say) -> None:
        self._filesystem, self._root, self._config = filesystem, root, config
        self._folders, folders_of = self._class_folders()
        names = sorted(set(folders_of["train"]) | set(folders_of["test"]))
        self._class_map = _chosen_classes(config, names)
        self._class_labels = {
            name: label
            for name, label in zip(names, self._class_map.new_labels, strict=True)
            if label is not None
        }
        for split in SPLITS:
            self._require_folders(split, set(self._class_labels) - set(folders_of[split]))
        self._files = self._list_files(say)
        digest = hashlib.sha256()
        for split, class_name, files in self._files:
            for file, size in files:
                digest.update(f"{split}/{class_name}/{file}\0{size}\0".encode())
        self.digest = digest.hexdigest()

    def select(self) -> Selection:
        images: dict[Split, list[SourceImage]] = {split: [] for split in SPLITS}
        for split, class_name, files in self._files:
            label, folder, listed = (
                self._class_labels[class_name],
                self._folders[split],
                images[split],
            )
            for file, _ in files:
                path = f"{class_name}/{file}"
                listed.append(SourceImage(class_name, len(listed), label, f"{folder}/{path}", path))
        return Selection(self._class_map.class_names, _in_order(images, self._config.seed))

    def reading(
        self, split: Split, selection: Selection, *, scratch: Path | None, say: Say
    ) -> AbstractContextManager[Read]:
        return nullcontext(self._read)

    def _read(self, image: SourceImage) -> bytes:
        import pyarrow as pa

        try:
            with self._filesystem.open_input_stream(f"{self._root}/{image.name}") as stream:
                content: bytes = stream.read()
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                image.name,
                got=error,
                expected="a readable file",
                remedy="check that it is there and may be read",
            ) from error
        return content

    def _class_folders(self) -> tuple[dict[Split, str], dict[Split, list[str]]]:
        """The folder of each split, and the class folders in it."""
        children = _list_folder(self._filesystem, self._root, self._config.path)
        present = [info.base_name for info in children if _is_folder(info)]
        folders: dict[Split, str] = {}
        class_folders: dict[Split, list[str]] = {}
        for split in SPLITS:
            candidates = ("train",) if split == "train" else TEST_FOLDERS
            found = [name for name in candidates if name in present]
            if not found:
                shown = _head(sorted(info.base_name for info in children), 8)
                raise DataError(
                    f"path {self._config.path}",
                    got=f"a folder with {shown}" if shown else "no such folder, or an empty one",
                    expected=f"folders {' or '.join(candidates)} in it, each with a folder a class",
                    remedy="point --path at the folder that holds train and val",
                )
            for name in found:
                inside = _list_folder(self._filesystem, f"{self._root}/{name}", self._config.path)
                classes = [
                    info.base_name
                    for info in inside
                    if _is_folder(info) and not info.base_name.startswith(".")
                ]
                if classes:
                    folders[split], class_folders[split] = name, classes
                    break
            else:
                raise DataError(
                    f"folder {self._config.path}/{found[0]}",
                    got="no class folders",
                    expected="one folder of images for each class",
                    remedy="sort the images into folders named for their classes",
                )
        return folders, class_folders

    def _require_folders(self, split: Split, absent: set[str]) -> None:
        if absent:
            raise DataError(
                f"folder {self._config.path}/{self._folders[split]}",
                got=f"no folder of class {_head(sorted(absent), 4)} ({len(absent)} absent)",
                expected="a folder for every class of the other half",
                remedy="fetch these classes, or remove them from the other half",
            )

    def _list_files(self, say: Say) -> list[tuple[Split, str, list[tuple[str, int]]]]:
        """Names and sizes of the images, by split and class, all sorted."""
        folders = [(split, name) for split in SPLITS for name in sorted(self._class_labels)]
        progress = Progress(say, "listed", len(folders), "class folders")

        def list_one(split: Split, class_name: str) -> list[tuple[str, int]]:
            folder = f"{self._folders[split]}/{class_name}"
            inside = _list_folder(self._filesystem, f"{self._root}/{folder}", self._config.path)
            return [
                (info.base_name, info.size)
                for info in inside
                if Path(info.base_name).suffix.lower() in EXTENSIONS
                and not info.base_name.startswith(".")
                and not _is_folder(info)
            ]

        listed: list[tuple[Split, str, list[tuple[str, int]]]] = []
        with ThreadPoolExecutor(self._config.num_threads, "list") as pool:
            found = pool.map(list_one, *zip(*folders, strict=True))
            for (split, class_name), files in zip(folders, found, strict=True):
                if not files:
                    raise DataError(
                        f"class folder {self._config.path}/{self._folders[split]}/{class_name}",
                        got="no images",
                        expected=f"at least one file ending in {', '.join(sorted(EXTENSIONS))}",
                        remedy="add images, or remove the class from both halves",
                    )
                listed.append((split, class_name, files))
                progress.add(1)
        return listed


class _ParquetSource:
    """Encoded images in the Hugging Face layout.

    Images are wanted in another order than the files have, and a row of Parquet costs its whole
    row group. So the chosen images of a split are copied once, in the order of the files, into an
    unnamed temporary file, and read from there.
    """

    def __init__(self, filesystem: Any, root: str, config: PrepareConfig) -> None:
        self._filesystem, self._config = filesystem, config
        self._files = _parquet_files(filesystem, root, config.path)
        digest = hashlib.sha256()
        for split in SPLITS:
            for info in self._files[split]:
                digest.update(f"{split}/{info.base_name}\0{info.size}\0".encode())
        self.digest = digest.hexdigest()

    def select(self) -> Selection:
        names = self._declared_names()
        if names is None:
            # As for --data.source parquet: the training labels say how many classes there are.
            labels = (row.label for row in self._rows("train", MAX_UNNAMED_CLASSES))
            names = tuple(str(label) for label in range(max(labels, default=-1) + 1))
        class_map = _chosen_classes(self._config, names)
        images: dict[Split, list[SourceImage]] = {split: [] for split in SPLITS}
        for split, listed in images.items():
            for row in self._rows(split, len(names)):
                new_label = class_map.new_labels[row.label]
                if new_label is not None:
                    listed.append(
                        SourceImage(names[row.label], len(listed), new_label, row.name, row.path)
                    )
            self._require_images(split, listed, names, class_map)
        return Selection(class_map.class_names, _in_order(images, self._config.seed))

    @contextmanager
    def reading(
        self, split: Split, selection: Selection, *, scratch: Path | None, say: Say
    ) -> Iterator[Read]:
        with ExitStack() as stack:
            with _full_disk_named(scratch):
                spool = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
                starts, sizes = self._copy(split, selection.images[split], spool, say)
            descriptor = spool.fileno()

            def read(image: SourceImage) -> bytes:
                return os.pread(descriptor, sizes[image.place], starts[image.place])

            yield read

    def _copy(
        self, split: Split, images: Sequence[SourceImage], spool: IO[bytes], say: Say
    ) -> tuple[array[int], array[int]]:
        """Where each image starts in the file, by place, and its size, in bytes."""
        wanted = {image.name: image.place for image in images}
        starts, sizes = array("Q", bytes(8 * len(wanted))), array("Q", bytes(8 * len(wanted)))
        progress = Progress(say, f"{split}: copied", len(wanted))
        for name, encoded in self._encoded(split):
            place = wanted.pop(name, None)
            if place is not None:
                starts[place], sizes[place] = spool.tell(), len(encoded)
                spool.write(encoded)
                progress.add(1)
        if wanted:
            raise broken_file(next(iter(wanted)), "no such row any more")
        spool.flush()
        return starts, sizes

    def _declared_names(self) -> tuple[str, ...] | None:
        """The class names of all files, None where none has any."""
        names: tuple[str, ...] | None = None
        for split in SPLITS:
            for info in self._files[split]:
                with _opened(self._filesystem, info.path) as parquet:
                    declared = declared_class_names(info.path, parquet.schema_arrow)
                if names is not None and declared is not None and declared != names:
                    raise DataError(
                        f"class names in {info.path}",
                        got=f"{len(declared)} names: {_head(declared, 4)}",
                        expected=f"those of the files before it, {len(names)}: {_head(names, 4)}",
                        remedy="use files of one dataset",
                    )
                names = names or declared
        return names

    def _rows(self, split: Split, num_classes: int) -> Iterator[_Row]:
        """Labels and paths of all rows, without their images."""
        for info in self._files[split]:
            with _opened(self._filesystem, info.path) as parquet:
                image = image_column(info.path, parquet.schema_arrow)
                has_path = parquet.schema_arrow.field(image).type.get_field_index("path") >= 0
                columns = [LABEL_COLUMN, *([f"{image}.path"] if has_path else [])]
                row = 0
                for batch in _batches(parquet, columns):
                    labels = batch.column(LABEL_COLUMN).to_pylist()
                    structs = batch.column(image).to_pylist() if has_path else [None] * len(labels)
                    for label, struct in zip(labels, structs, strict=True):
                        name = f"{info.base_name} row {row}"
                        if label is None or not 0 <= label < num_classes:
                            raise DataError(
                                f"label of {name}",
                                got="null" if label is None else label,
                                expected=f"a label in [0, {num_classes})",
                                remedy="correct the label or drop the row; unlabelled splits "
                                "cannot be used",
                            )
                        yield _Row(name, label, struct["path"] if struct else None)
                        row += 1

    def _encoded(self, split: Split) -> Iterator[tuple[str, bytes]]:
        """Name and encoded image of all rows; no bytes at all for a row without image."""
        for info in self._files[split]:
            with _opened(self._filesystem, info.path) as parquet:
                image = image_column(info.path, parquet.schema_arrow)
                row = 0
                for batch in _batches(parquet, [f"{image}.bytes"]):
                    for struct in batch.column(image):
                        encoded = struct.as_py() or {"bytes": None}
                        yield f"{info.base_name} row {row}", encoded["bytes"] or b""
                        row += 1

    def _require_images(
        self, split: Split, listed: list[SourceImage], names: Sequence[str], class_map: ClassMap
    ) -> None:
        """Images for all classes in the training half, and any at all in the test half."""
        present = {image.class_name for image in listed}
        absent = [
            name
            for name, label in zip(names, class_map.new_labels, strict=True)
            if label is not None and name not in present
        ]
        if not listed or (split == "train" and absent):
            raise DataError(
                f"{split} files of {self._config.path}",
                got=f"no row of class {_head(absent, 4)} ({len(absent)} absent)"
                if absent
                else "no rows",
                expected="images of every class" if split == "train" else "at least one image",
                remedy="use files that hold them",
            )


class _Row(NamedTuple):
    name: str
    label: int
    path: str | None


def _chosen_classes(config: PrepareConfig, class_names: Sequence[str]) -> ClassMap:
    if config.classes == "all":
        repeated = [name for name, count in Counter(class_names).items() if count > 1]
        if repeated:
            raise DataError(
                f"class names of {config.path}",
                got=f"{repeated[0]} more than once",
                expected="different names",
                remedy="rename or merge these classes",
            )
        return ClassMap(tuple(class_names), tuple(range(len(class_names))))
    return restrict_classes(class_names, config.labels)


def _in_order(images: dict[Split, list[SourceImage]], seed: int) -> dict[Split, list[SourceImage]]:
    """By class and place; training images then in an order that the seed alone determines."""
    ordered = {split: sorted(listed) for split, listed in images.items()}
    train = ordered["train"]
    keys = image_keys(seed, "prepare.order", 0, torch.arange(len(train)))
    ordered["train"] = [train[place] for place in keys.argsort().tolist()]
    return ordered


def _open_root(path: str) -> tuple[Any, str]:
    import pyarrow as pa
    from pyarrow import fs

    if "://" not in path:
        return fs.LocalFileSystem(), Path(path).expanduser().resolve().as_posix()
    try:
        filesystem, root = fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"path {path}",
            got=error,
            expected="a folder or an object-storage URI that pyarrow understands",
            remedy="write it as s3://bucket/folder, gs://bucket/folder or a local path",
        ) from error
    return filesystem, root.rstrip("/")


def _list_folder(filesystem: Any, folder: str, path: str) -> list[Any]:
    """What is directly in a folder, sorted by name; nothing if it does not exist."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"path {path}",
            got=error,
            expected="a folder that can be listed",
            remedy="check the path and the credentials of its storage",
        ) from error
    return sorted(infos, key=lambda info: str(info.base_name))


def _is_folder(info: Any) -> bool:
    from pyarrow import fs

    return bool(info.type == fs.FileType.Directory)


def _parquet_files(filesystem: Any, root: str, path: str) -> dict[Split, list[Any]]:
    infos = _list_folder(filesystem, root, path)

    def with_prefix(prefix: str) -> list[Any]:
        return [
            info
            for info in infos
            if info.base_name.startswith(prefix) and info.base_name.endswith(".parquet")
        ]

    if not with_prefix("train"):
        infos = _list_folder(filesystem, f"{root}/data", path) or infos
    train = with_prefix("train")
    test = next((files for prefix in TEST_PREFIXES if (files := with_prefix(prefix))), [])
    if not train or not test:
        shown = _head([info.base_name for info in infos], 4)
        raise DataError(
            f"path {path}",
            got=f"a folder with {shown}" if shown else "no such folder, or an empty one",
            expected="train*.parquet and test*.parquet, there or in its folder data",
            remedy="point --path at the folder that holds both",
        )
    return {"train": train, "test": test}


@contextmanager
def _opened(filesystem: Any, file: str) -> Iterator[Any]:
    """An open ParquetFile; whatever Arrow cannot read while it is open names the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with filesystem.open_input_file(file) as stream:
            yield pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise broken_file(file, error) from error


def _batches(parquet: Any, columns: Sequence[str]) -> Iterator[Any]:
    # One row group after another: the reader would otherwise be free to fetch them all ahead.
    for group in range(parquet.metadata.num_row_groups):
        yield from parquet.iter_batches(_ROWS_PER_BATCH, row_groups=[group], columns=columns)


@contextmanager
def _full_disk_named(scratch: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            str(scratch or tempfile.gettempdir()),
            got=error,
            expected="a writable folder with room for a copy of the images",
            remedy="free space, or set TMPDIR to a folder that has it",
        ) from error


def _head(names: Sequence[str], count: int) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
