"""Encoded images in Parquet, on disk or in object storage, as a source for new shards."""

from __future__ import annotations

import hashlib
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from cdvae_ray.config.prepare_job import PrepareConfig
from cdvae_ray.config.restricted_imagenet import ClassMap
from cdvae_ray.data.image_source import (
    Progress,
    Read,
    Say,
    Selection,
    SourceImage,
    chosen_classes,
    in_order,
)
from cdvae_ray.data.images import SPLITS, Split
from cdvae_ray.data.parquet import (
    LABEL_COLUMN,
    MAX_UNNAMED_CLASSES,
    broken_file,
    declared_class_names,
    image_column,
    opened_parquet,
)
from cdvae_ray.data.roots import head, parquet_files
from cdvae_ray.errors import DataError, StorageError

_ROWS_PER_BATCH = 128


class ParquetSource:
    """Encoded images in the Hugging Face layout.

    Images are wanted in another order than the files have, and a row of Parquet costs its whole
    row group. So the chosen images of a split are copied once, in the order of the files, into an
    unnamed temporary file, and read from there.

    Args:
        filesystem: from `roots.open_root`.
        root: the folder's path there.
        config: of the job.

    Raises:
        DataError: the folder cannot be listed, or one of its halves has no files.
    """

    def __init__(self, filesystem: Any, root: str, config: PrepareConfig) -> None:
        self._filesystem, self._config = filesystem, config
        self._files = parquet_files(filesystem, root, config.path, setting="path")
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
        class_map = chosen_classes(self._config, names)
        images: dict[Split, list[SourceImage]] = {split: [] for split in SPLITS}
        for split, listed in images.items():
            for row in self._rows(split, len(names)):
                new_label = class_map.new_labels[row.label]
                if new_label is not None:
                    listed.append(
                        SourceImage(names[row.label], len(listed), new_label, row.name, row.path)
                    )
            self._require_images(split, listed, names, class_map)
        return Selection(class_map.class_names, in_order(images, self._config.seed))

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
                with opened_parquet(self._filesystem, info.path) as parquet:
                    declared = declared_class_names(info.path, parquet.schema_arrow)
                if names is not None and declared is not None and declared != names:
                    raise DataError(
                        f"class names in {info.path}",
                        got=f"{len(declared)} names: {head(declared, 4)}",
                        expected=f"those of the files before it, {len(names)}: {head(names, 4)}",
                        remedy="use files of one dataset",
                    )
                names = names or declared
        return names

    def _rows(self, split: Split, num_classes: int) -> Iterator[_Row]:
        """Labels and paths of all rows, without their images."""
        for info in self._files[split]:
            with opened_parquet(self._filesystem, info.path) as parquet:
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
            with opened_parquet(self._filesystem, info.path) as parquet:
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
                got=f"no row of class {head(absent, 4)} ({len(absent)} absent)"
                if absent
                else "no rows",
                expected="images of every class" if split == "train" else "at least one image",
                remedy="use files that hold them",
            )


class _Row(NamedTuple):
    name: str
    label: int
    path: str | None


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
