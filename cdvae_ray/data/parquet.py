"""Encoded images in Parquet, in the Hugging Face layout, on disk or in object storage.

A struct column `img` or `image` holds `bytes` (an encoded image), an integer column `label` the
class, and the schema's `huggingface` metadata the class names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cdvae_ray.data.decode import Encoded, decode_all
from cdvae_ray.data.images import LIMIT_SEED, SPLITS, ImageSet, Split, Splits, limited_order
from cdvae_ray.data.roots import head, open_root, parquet_files
from cdvae_ray.errors import DataError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMN = "label"
ROWS_PER_BATCH = 1024
BUFFER_BYTES = 8 * 2**20  # files are read in pieces of this size, however large a row group
MAX_UNNAMED_CLASSES = 100_000  # a larger label without a class list is taken for damage


class _File(NamedTuple):
    """A file of a split, by its footer."""

    path: str
    image_column: str
    metadata: Any

    @property
    def num_rows(self) -> int:
        return int(self.metadata.num_rows)


def load_parquet(
    path: str, image_size: int, *, train_limit: int | None = None, test_limit: int | None = None
) -> Splits:
    """`train*.parquet` and `test*.parquet` of a folder or of its `data` folder, sorted by name.

    Where there is no test file, `validation*` or `valid*` files stand in. Class names come from
    the metadata of the training files; without any, the classes are "0", "1", ... up to the
    largest training label. Rows beyond a limit are not decoded, and row groups without a chosen
    row not read. At most one batch of rows is held beside the result.

    Args:
        path: a local folder, or the URI of one in object storage, for example s3://bucket/folder.
        image_size: side of the images, in pixels; see `decode.to_square`.
        train_limit: keep this many training images: those, in that order, that
            `ImageSet.limit(train_limit, LIMIT_SEED)` keeps of all. None: all, as in the files.
        test_limit: the same for test images.

    Raises:
        DataError: no such files, a file that is not Parquet or not in this layout, fewer rows
            than a limit, or among the chosen rows a null or broken image, or a null label or one
            outside the class list.
    """
    dataset = _Dataset(path, SPLITS)
    return Splits(
        train=dataset.load("train", image_size, train_limit),
        test=dataset.load("test", image_size, test_limit),
    )


def load_parquet_split(
    path: str, image_size: int, split: Split, *, limit: int | None = None
) -> ImageSet:
    """One half of what `load_parquet` gives, without decoding the other.

    Of the training files the footers are always read, for the class names, and their labels
    where these say how many classes there are.

    Args:
        path: as for `load_parquet`.
        image_size: as for `load_parquet`.
        split: which half.
        limit: of that half, as for `load_parquet`.

    Raises:
        DataError: as for `load_parquet`, of the half alone and of the training files' footers.
    """
    return _Dataset(path, (split,)).load(split, image_size, limit)


class _Dataset:
    """The footers of a folder's files.

    Args:
        path: of the folder.
        splits: which halves are to be loaded.
    """

    def __init__(self, path: str, splits: Sequence[Split]) -> None:
        self._filesystem, root = open_root(path, setting="data.path")
        found = parquet_files(self._filesystem, root, path, setting="data.path")
        self._files: dict[Split, list[_File]] = {}
        self._files["train"], class_names = self._footers(found["train"], None)
        if class_names is None:
            class_names = tuple(str(label) for label in range(self._largest_training_label() + 1))
        if "test" in splits:
            self._files["test"], _ = self._footers(found["test"], class_names)
        self._class_names = class_names

    def load(self, split: Split, image_size: int, limit: int | None) -> ImageSet:
        """Reads and decodes the chosen rows of a half, in the order of the files."""
        name = f"parquet/{split}"
        num_rows = sum(file.num_rows for file in self._files[split])
        order = torch.arange(num_rows)
        if limit is not None:
            order = limited_order(num_rows, limit, LIMIT_SEED, name)
        rows, places = order.sort()  # the image of the row `rows[i]` is image `places[i]`
        images = torch.empty((len(rows), 3, image_size, image_size), dtype=torch.uint8)
        labels = torch.empty(len(rows), dtype=torch.int64)
        start = 0
        for file in self._files[split]:
            inside = _between(rows, start, start + file.num_rows)
            file_rows, file_places = rows[inside] - start, places[inside]
            start += file.num_rows
            columns = [f"{file.image_column}.bytes", LABEL_COLUMN]
            for first, batch in self._batches(file, file_rows, columns):
                inside = _between(file_rows, first, first + batch.num_rows)
                chosen, targets = file_rows[inside].tolist(), file_places[inside]
                found = _batch_labels(batch, file, first, chosen, len(self._class_names))
                labels[targets] = torch.tensor(found, dtype=torch.int64)
                encoded = _batch_images(batch, file, first, chosen)
                del batch  # or it would be held while the next one is read
                images[targets] = decode_all(encoded, image_size)
                del encoded
        return ImageSet.build(images, labels, self._class_names, name)

    def _footers(
        self, infos: Sequence[FileInfo], class_names: tuple[str, ...] | None
    ) -> tuple[list[_File], tuple[str, ...] | None]:
        """Files of a split, and the class names that they and `class_names` agree on, if any."""
        files = []
        for info in infos:
            with opened_parquet(self._filesystem, info.path) as parquet:
                schema = parquet.schema_arrow
                files.append(_File(info.path, image_column(info.path, schema), parquet.metadata))
            class_names = _agreed_class_names(info.path, schema, class_names)
        if not any(file.num_rows for file in files):
            raise DataError(
                ", ".join(file.path for file in files),
                got="no rows",
                expected="at least one image",
                remedy="use other files",
            )
        return files, class_names

    def _largest_training_label(self) -> int:
        largest = 0
        for file in self._files["train"]:
            for first, batch in self._batches(file, torch.arange(file.num_rows), [LABEL_COLUMN]):
                rows = range(first, first + batch.num_rows)
                labels = _batch_labels(batch, file, first, rows, MAX_UNNAMED_CLASSES)
                largest = max(largest, *labels)
        return largest

    def _batches(
        self, file: _File, rows: Tensor, columns: Sequence[str]
    ) -> Iterator[tuple[int, Any]]:
        """Batches of a file that hold some of its rows, and the number of their first row.

        Args:
            file: which.
            rows: (N,) ascending row numbers; row groups without any of them are not read, nor a
                file without any opened.
            columns: which to read.
        """
        if not len(rows):
            return
        with opened_parquet(self._filesystem, file.path, file.metadata) as parquet:
            start = 0
            # One row group after another: the reader would else be free to fetch them all ahead.
            for group in range(file.metadata.num_row_groups):
                first, start = start, start + file.metadata.row_group(group).num_rows
                if not _any_between(rows, first, start):
                    continue
                for batch in parquet.iter_batches(
                    ROWS_PER_BATCH, row_groups=[group], columns=columns
                ):
                    if _any_between(rows, first, first + batch.num_rows):
                        yield first, batch
                    first += batch.num_rows
                    del batch  # or it would be held while the next one is read
                if first != start:
                    raise broken_file(file.path, f"row group {group} without its last rows")


@contextmanager
def opened_parquet(filesystem: Any, file: str, metadata: Any = None) -> Iterator[Any]:
    """An open ParquetFile; whatever Arrow cannot read while it is open names the file.

    Args:
        filesystem: from `roots.open_root`.
        file: its path there.
        metadata: of the file, where it has been read before.

    Raises:
        DataError: the file is absent or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with filesystem.open_input_file(file) as stream:
            yield pq.ParquetFile(stream, metadata=metadata, buffer_size=BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise broken_file(file, error) from error


def _agreed_class_names(
    file: str, schema: Any, class_names: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    declared = declared_class_names(file, schema)
    if declared is None or class_names is None:
        return class_names or declared
    if declared != class_names:
        raise DataError(
            f"class names in {file}",
            got=f"{len(declared)} names: {head(declared)}",
            expected=f"those of the files before it, {len(class_names)}: {head(class_names)}",
            remedy="use files of one dataset",
        )
    return class_names


def image_column(file: str, schema: Any) -> str:
    """The column of encoded images of a file in this module's layout.

    Args:
        file: what messages call it.
        schema: its Arrow schema.

    Raises:
        DataError: the file has another layout.
    """
    import pyarrow as pa

    label = schema.get_field_index(LABEL_COLUMN)
    if label < 0 or not pa.types.is_integer(schema.field(label).type):
        raise _other_layout(file, schema)
    for name in IMAGE_COLUMNS:
        position = schema.get_field_index(name)
        if position < 0 or not pa.types.is_struct(schema.field(position).type):
            continue
        struct = schema.field(position).type
        inner = struct.get_field_index("bytes")
        if inner >= 0 and (
            pa.types.is_binary(struct.field(inner).type)
            or pa.types.is_large_binary(struct.field(inner).type)
        ):
            return name
    raise _other_layout(file, schema)


def declared_class_names(file: str, schema: Any) -> tuple[str, ...] | None:
    """The names of the label's ClassLabel in the metadata; None where there are none.

    Args:
        file: what messages call it.
        schema: its Arrow schema.

    Raises:
        DataError: metadata of another form.
    """
    encoded = (schema.metadata or {}).get(b"huggingface")
    if encoded is None:
        return None
    try:
        names = json.loads(encoded)["info"]["features"][LABEL_COLUMN].get("names")
    except KeyError:
        return None  # other metadata
    except (ValueError, TypeError, AttributeError) as error:
        raise _bad_metadata(file, f"{type(error).__name__} ({error})") from error
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _bad_metadata(file, f"class names {names!r}")
    return tuple(names)


def _batch_images(
    batch: Any, file: _File, first: int, rows: Sequence[int]
) -> list[tuple[str, Encoded]]:
    """Names and encoded images of some rows of the file, whose row `first` begins the batch."""
    column = batch.column(file.image_column)
    items: list[tuple[str, Encoded]] = []
    for row in rows:
        name = f"{file.path} row {row}"
        value = column[row - first].as_py()
        encoded = None if value is None else value["bytes"]
        if encoded is None:
            raise DataError(
                name,
                got=f"no bytes in column {file.image_column}",
                expected="an encoded image",
                remedy="embed the image in the file, or drop the row",
            )
        items.append((name, encoded))
    return items


def _batch_labels(
    batch: Any, file: _File, first: int, rows: Sequence[int], num_classes: int
) -> list[int]:
    """Labels of some rows of the file, whose row `first` begins the batch."""
    column = batch.column(LABEL_COLUMN).to_pylist()
    labels = [column[row - first] for row in rows]
    for row, label in zip(rows, labels, strict=True):
        if label is None or not 0 <= label < num_classes:
            raise DataError(
                f"label of {file.path} row {row}",
                got="null" if label is None else label,
                expected=f"a label in [0, {num_classes})",
                remedy="correct the label or drop the row; unlabelled splits cannot be used",
            )
    return labels


def _between(rows: Tensor, start: int, stop: int) -> slice:
    """Where in ascending `rows` those in [start, stop) are."""
    return slice(*torch.searchsorted(rows, torch.tensor([start, stop])).tolist())


def _any_between(rows: Tensor, start: int, stop: int) -> bool:
    return len(rows[_between(rows, start, stop)]) > 0


def broken_file(file: str, got: object) -> DataError:
    """The error for a file that cannot be read to its end."""
    return DataError(
        file, got=got, expected="a complete Parquet file", remedy="fetch or write it again"
    )


def _other_layout(file: str, schema: Any) -> DataError:
    columns = ", ".join(f"{column.name} {column.type}" for column in schema)
    return DataError(
        f"columns of {file}",
        got=columns or "none",
        expected="img or image struct<bytes: binary, ...> and an integer label",
        remedy="write the file in the Hugging Face image layout",
    )


def _bad_metadata(file: str, got: str) -> DataError:
    return DataError(
        f"huggingface metadata of {file}",
        got=got,
        expected=f"JSON with info.features.{LABEL_COLUMN}.names, a list of class names",
        remedy="write the file again, or remove this metadata",
    )
