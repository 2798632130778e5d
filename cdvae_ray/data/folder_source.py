"""Image files in one folder a class, on disk or in object storage, as a source for new shards."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cdvae_ray.config.prepare_job import PrepareConfig
from cdvae_ray.data.folder import EXTENSIONS
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
from cdvae_ray.data.roots import head, list_folder
from cdvae_ray.errors import DataError

TEST_FOLDERS = ("val", "test")
"""The first of these with class folders is the test half; ILSVRC2012's own test is unlabelled."""


class FolderSource:
    """train/<class>/* and val/<class>/* or test/<class>/*.

    Args:
        filesystem: from `roots.open_root`.
        root: the folder's path there.
        config: of the job.
        say: gets lines of progress.

    Raises:
        DataError: the folder or one of its halves is missing, nothing is chosen of its classes,
            or a class folder is absent from a half or empty.
    """

    def __init__(self, filesystem: Any, root: str, config: PrepareConfig, say: Say) -> None:
        self._filesystem, self._root, self._config = filesystem, root, config
        self._folders, folders_of = self._class_folders()
        names = sorted(set(folders_of["train"]) | set(folders_of["test"]))
        self._class_map = chosen_classes(config, names)
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
        return Selection(self._class_map.class_names, in_order(images, self._config.seed))

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
        children = list_folder(self._filesystem, self._root, self._config.path, setting="path")
        present = [info.base_name for info in children if _is_folder(info)]
        folders: dict[Split, str] = {}
        class_folders: dict[Split, list[str]] = {}
        for split in SPLITS:
            candidates = ("train",) if split == "train" else TEST_FOLDERS
            found = [name for name in candidates if name in present]
            if not found:
                shown = head(sorted(info.base_name for info in children), 8)
                raise DataError(
                    f"path {self._config.path}",
                    got=f"a folder with {shown}" if shown else "no such folder, or an empty one",
                    expected=f"folders {' or '.join(candidates)} in it, each with a folder a class",
                    remedy="point --path at the folder that holds train and val",
                )
            for name in found:
                inside = list_folder(
                    self._filesystem, f"{self._root}/{name}", self._config.path, setting="path"
                )
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
                got=f"no folder of class {head(sorted(absent), 4)} ({len(absent)} absent)",
                expected="a folder for every class of the other half",
                remedy="fetch these classes, or remove them from the other half",
            )

    def _list_files(self, say: Say) -> list[tuple[Split, str, list[tuple[str, int]]]]:
        """Names and sizes of the images, by split and class, all sorted."""
        folders = [(split, name) for split in SPLITS for name in sorted(self._class_labels)]
        progress = Progress(say, "listed", len(folders), "class folders")

        def list_one(split: Split, class_name: str) -> list[tuple[str, int]]:
            folder = f"{self._folders[split]}/{class_name}"
            inside = list_folder(
                self._filesystem, f"{self._root}/{folder}", self._config.path, setting="path"
            )
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


def _is_folder(info: Any) -> bool:
    from pyarrow import fs

    return bool(info.type == fs.FileType.Directory)
