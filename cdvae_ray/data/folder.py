"""Image files in one folder a class: path/train/<class>/* and path/test/<class>/*."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from cdvae_ray.data.decode import Encoded, decode_all
from cdvae_ray.data.images import LIMIT_SEED, ImageSet, Split, Splits, limited_order
from cdvae_ray.errors import DataError

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
)  # in any case


def load_folder(
    path: str, image_size: int, *, train_limit: int | None = None, test_limit: int | None = None
) -> Splits:
    """Images in class folders; the sorted names of the training folders are the class list.

    Other and hidden files are ignored, and so are images in deeper folders. Images are numbered
    by class, then by file name. The test half may leave out classes. Files beyond a limit are not
    read.

    Args:
        path: the local folder that holds `train` and `test`.
        image_size: side of the images, in pixels; see `decode.to_square`.
        train_limit: keep this many training images: those, in that order, that
            `ImageSet.limit(train_limit, LIMIT_SEED)` keeps of all. None: all.
        test_limit: the same for test images.

    Raises:
        DataError: a folder is missing or unreadable, a training class is empty, a test class is not
            among the training classes, there are fewer images than a limit, or a chosen file cannot
            be decoded.
    """
    with _readable(path):
        root, class_names = _listed_classes(path)
        return Splits(
            train=_load_split(root, "train", class_names, image_size, train_limit),
            test=_load_split(root, "test", class_names, image_size, test_limit),
        )


def load_folder_split(
    path: str, image_size: int, split: Split, *, limit: int | None = None
) -> ImageSet:
    """One half of what `load_folder` gives; of the other, only the class folders are looked at.

    Args:
        path: as for `load_folder`.
        image_size: as for `load_folder`.
        split: which half.
        limit: of that half, as for `load_folder`.

    Raises:
        DataError: as for `load_folder`, of the half and of the class folders of the other.
    """
    with _readable(path):
        root, class_names = _listed_classes(path)
        return _load_split(root, split, class_names, image_size, limit)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Makes one line of what the system refuses."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"data.path {path}",
            got=f"{error.strerror or error}: {error.filename or path}",
            expected="folders and files that can be read",
            remedy="check their permissions",
        ) from error


def _listed_classes(path: str) -> tuple[Path, list[str]]:
    """The folder and its training classes, which include those of the test half."""
    root = Path(path).expanduser()
    class_names = _class_names(_existing(root, root / "train"))
    test_names = _class_names(_existing(root, root / "test"))
    unknown = sorted(set(test_names) - set(class_names))
    if unknown:
        raise DataError(
            f"class folder {root / 'test' / unknown[0]}",
            got="a label outside the class list",
            expected=f"one of the {len(class_names)} class folders of {root / 'train'}",
            remedy="add training images of that class, or remove its test folder",
        )
    return root, class_names


def _load_split(
    root: Path, split: Split, class_names: Sequence[str], image_size: int, limit: int | None
) -> ImageSet:
    name = f"folder/{split}"
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        folder = root / split / class_name
        found = _image_files(folder) if folder.is_dir() else []
        if split == "train" and not found:
            raise _no_images(f"class folder {folder}")
        files += found
        labels += [label] * len(found)
    if not files:
        raise _no_images(f"folder {root / split}")
    if limit is not None:
        order = limited_order(len(files), limit, LIMIT_SEED, name).tolist()
        files, labels = [files[place] for place in order], [labels[place] for place in order]
    items: list[tuple[str, Encoded]] = [(str(file), file.read_bytes) for file in files]
    return ImageSet.build(
        decode_all(items, image_size), torch.tensor(labels, dtype=torch.int64), class_names, name
    )


def _existing(root: Path, folder: Path) -> Path:
    if folder.is_dir():
        return folder
    if not root.is_dir():
        got = "a file" if root.exists() else "no such folder"
    else:
        names = sorted(each.name for each in root.iterdir())
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        got = f"a folder with {shown}" if names else "an empty folder"
    raise DataError(
        f"data.path {root}",
        got=got,
        expected=f"a local folder with {folder.name}/<class>/ folders of images",
        remedy="point --data.path at the folder that holds train and test",
    )


def _class_names(folder: Path) -> list[str]:
    names = sorted(
        each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")
    )
    if not names:
        raise DataError(
            f"folder {folder}",
            got="no class folders",
            expected="one folder of images for each class",
            remedy="sort the images into folders named for their classes",
        )
    return names


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        each
        for each in folder.iterdir()
        if each.suffix.lower() in EXTENSIONS and not each.name.startswith(".") and each.is_file()
    )


def _no_images(what: str) -> DataError:
    return DataError(
        what,
        got="no images",
        expected=f"at least one file ending in {', '.join(sorted(EXTENSIONS))}",
        remedy="add images or remove the folder",
    )
