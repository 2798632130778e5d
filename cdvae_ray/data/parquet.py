"""Encoded images in Parquet, in the Hugging Face layout, on disk or in object storage.

A struct column `img` or `image` holds `bytes` (an encoded image), an integer column `label` the
class, and the schema's `huggingface` metadata the class names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdvae_ray.data.decode import Encoded, decode_into
from cdvae_ray.data.images import ImageSet, Splits
from cdvae_ray.errors import DataError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMN = "label"
TEST_PREFIXES = ("test", "validation", "valid")  # the first of these that has files
ROWS_PER_BATCH = 1024
MAX_UNNAMED_CLASSES = 100_000  # a larger label without a class list is taken for damage


class _Rows(NamedTuple):
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...] | None


def load_parquet(path: str, image_size: int) -> Splits:
    """`train*.parquet` and `test*.parquet` of a folder or of its `data` folder, sorted by name.

    Where there is no test file, `validation*` or `valid*` files stand in. Class names come from
    the metadata of the training files; without any, the classes are "0", "1", ... up to the
    largest training label. At most one batch of encoded images is held beside the result.

    Args:
        path: a local folder, or the URI of one in object storage, for example s3://bucket/folder.
        image_size: side of the images, in pixels; see `decode.to_square`.

    Raises:
        DataError: no such files, a file that is not Parquet or not in this layout, a null or
            broken image, or a null label or one outside the class list.
    """
    filesystem, root = _open_root(path)
    train_files, test_files = _find_files(filesystem, root, path)
    train = _read_files(filesystem, train_files, image_size, None)
    class_names = train.class_names
    if class_names is None:
        class_names = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    test = _read_files(filesystem, test_files, image_size, class_names)
    return Splits(
        train=ImageSet.build(train.images, train.labels, class_names, "parquet/train"),
        test=ImageSet.build(test.images, test.labels, class_names, "parquet/test"),
    )


def _open_root(path: str) -> tuple[Any, str]:
    import pyarrow as pa
    from pyarrow import fs

    if "://" not in path:
        return fs.LocalFileSystem(), Path(path).expanduser().resolve().as_posix()
    try:
        filesystem, root = fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"data.path {path}",
            got=error,
            expected="a folder or an object-storage URI that pyarrow understands",
            remedy="write it as s3://bucket/folder, gs://bucket/folder or a local path",
        ) from error
    return filesystem, root


def _find_files(filesystem: Any, root: str, path: str) -> tuple[list[str], list[str]]:
    names = _list_folder(filesystem, root, path)
    if not _split_files(names, "train"):
        names = _list_folder(filesystem, f"{root}/data", path) or names
    train = _split_files(names, "train")
    test = next((files for p in TEST_PREFIXES if (files := _split_files(names, p))), [])
    if not train or not test:
        shown = _head([name.rpartition("/")[2] for name in names])
        raise DataError(
            f"data.path {path}",
            got=f"a folder with {shown}" if shown else "no such folder, or an empty one",
            expected="train*.parquet and test*.parquet, there or in its folder data",
            remedy="point --data.path at the folder that holds both",
        )
    return train, test


def _list_folder(filesystem: Any, folder: str, path: str) -> list[str]:
    import pyarrow as pa
    from pyarrow import fs

    try:
        infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"data.path {path}",
            got=error,
            expected="a folder that can be listed",
            remedy="check the path and the credentials of its storage",
        ) from error
    return sorted(info.path for info in infos)


def _split_files(files: Sequence[str], prefix: str) -> list[str]:
    basenames = ((file, file.rpartition("/")[2]) for file in files)
    return [f for f, base in basenames if base.startswith(prefix) and base.endswith(".parquet")]


def _read_files(
    filesystem: Any, files: Sequence[str], image_size: int, class_names: tuple[str, ...] | None
) -> _Rows:
    """All rows of some files; `class_names` are those of an earlier split, None where unknown."""
    with ExitStack() as stack:
        opened = [(file, _open_file(filesystem, file, stack)) for file in files]
        for file, parquet in opened:
            class_names = _agreed_class_names(file, parquet.schema_arrow, class_names)
        num_rows = sum(parquet.metadata.num_rows for _, parquet in opened)
        images = torch.empty((num_rows, 3, image_size, image_size), dtype=torch.uint8)
        labels = torch.empty(num_rows, dtype=torch.int64)
        start = 0
        for file, parquet in opened:
            first = start
            for batch in _batches(file, parquet):
                stop = start + batch.num_rows
                labels[start:stop] = _batch_labels(batch, file, start - first, class_names)
                decode_into(_batch_images(batch, file, start - first), images[start:stop])
                start = stop
            if start - first != parquet.metadata.num_rows:
                raise broken_file(file, f"{start - first} of {parquet.metadata.num_rows} rows")
    if num_rows == 0:
        raise DataError(
            ", ".join(files), got="no rows", expected="at least one image", remedy="use other files"
        )
    return _Rows(images, labels, class_names)


def _open_file(filesystem: Any, file: str, stack: ExitStack) -> Any:
    """An open ParquetFile in the layout, closed with the stack."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(stack.enter_context(filesystem.open_input_file(file)))
    except (pa.ArrowException, OSError) as error:
        raise broken_file(file, error) from error
    image_column(file, parquet.schema_arrow)
    return parquet


def _agreed_class_names(
    file: str, schema: Any, class_names: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    declared = declared_class_names(file, schema)
    if declared is None or class_names is None:
        return class_names or declared
    if declared != class_names:
        raise DataError(
            f"class names in {file}",
            got=f"{len(declared)} names: {_head(declared)}",
            expected=f"those of the files before it, {len(class_names)}: {_head(class_names)}",
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


def _batches(file: str, parquet: Any) -> Iterator[Any]:
    import pyarrow as pa

    columns = [f"{image_column(file, parquet.schema_arrow)}.bytes", LABEL_COLUMN]
    try:
        # One row group after another: the reader would otherwise be free to fetch them all ahead.
        for group in range(parquet.metadata.num_row_groups):
            yield from parquet.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise broken_file(file, error) from error


def _batch_images(batch: Any, file: str, first_row: int) -> list[tuple[str, Encoded]]:
    column = next(name for name in IMAGE_COLUMNS if name in batch.schema.names)
    items: list[tuple[str, Encoded]] = []
    for row, value in enumerate(batch.column(column).to_pylist(), start=first_row):
        name = f"{file} row {row}"
        encoded = None if value is None else value["bytes"]
        if encoded is None:
            raise DataError(
                name,
                got=f"no bytes in column {column}",
                expected="an encoded image",
                remedy="embed the image in the file, or drop the row",
            )
        items.append((name, encoded))
    return items


def _batch_labels(
    batch: Any, file: str, first_row: int, class_names: tuple[str, ...] | None
) -> Tensor:
    num_classes = MAX_UNNAMED_CLASSES if class_names is None else len(class_names)
    labels = batch.column(LABEL_COLUMN).to_pylist()
    for row, label in enumerate(labels, start=first_row):
        if label is None or not 0 <= label < num_classes:
            raise DataError(
                f"label of {file} row {row}",
                got="null" if label is None else label,
                expected=f"a label in [0, {num_classes})",
                remedy="correct the label or drop the row; unlabelled splits cannot be used",
            )
    return torch.tensor(labels, dtype=torch.int64)


def _head(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


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
