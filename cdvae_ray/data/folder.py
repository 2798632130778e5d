"""Image files in one folder a class: path/train/<class>/* and path/test/<class>/*."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cdvae_ray.data.decode import Encoded, decode_all
from cdvae_ray.data.images import ImageSet, Splits
from cdvae_ray.errors import DataError

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
)  # in any case


def load_folder(path: str, image_size: int) -> Splits:
    """Images in class folders; the sorted names of the training folders are the class list.

    Other and hidden files are ignored, and so are images in deeper folders. Images are numbered
    by class, then by file name. The test half may leave out classes.

    Args:
        path: the local folder that holds `train` and `test`.
        image_size: side of the images, in pixels; see `decode.to_square`.

    Raises:
        DataError: a folder is missing, a training class is empty, a test class is not among the
            training classes, or a file cannot be decoded.
    """
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
    return Splits(
        train=_load_split(root, "train", class_names, image_size),
        test=_load_split(root, "test", class_names, image_size),
    )


def _load_split(root: Path, split: str, class_names: Sequence[str], image_size: int) -> ImageSet:
    items: list[tuple[str, Encoded]] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        folder = root / split / class_name
        files = _image_files(folder) if folder.is_dir() else []
        if split == "train" and not files:
            raise _no_images(f"class folder {folder}")
        items += [(str(file), file.read_bytes) for file in files]
        labels += [label] * len(files)
    if not items:
        raise _no_images(f"folder {root / split}")
    return ImageSet.build(
        decode_all(items, image_size),
        torch.tensor(labels, dtype=torch.int64),
        class_names,
        f"folder/{split}",
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
