"""Encoded images of a folder or of Parquet files, chosen, ordered and checked, for new shards.

Nothing is held in memory but the images' names and the encoded images of one group, so that
datasets that do not fit in memory pass through. `storage.prepared_images` writes the shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Literal, NamedTuple

from cdvae_ray.config.prepare_job import PrepareConfig
from cdvae_ray.data.decode import decode_image
from cdvae_ray.data.folder_source import FolderSource
from cdvae_ray.data.image_source import ImageSource, Read, Say, SourceImage
from cdvae_ray.data.images import Split
from cdvae_ray.data.parquet_source import ParquetSource
from cdvae_ray.data.roots import open_root
from cdvae_ray.errors import DataError

IMAGES_PER_GROUP = 100
"""Encoded images read and checked at a time; a row group of the shards, as Hugging Face writes."""
SHOWN = 5


class CheckedImage(NamedTuple):
    """An image that was read and decoded."""

    image: SourceImage
    encoded: bytes
    """As the source holds it."""
    unusable: Literal["", "undecodable", "too_small"]
    """Why it cannot be used; empty where it can."""
    trouble: DataError | None
    """The same as an error."""


def open_source(config: PrepareConfig, say: Say) -> ImageSource:
    """Lists the source's files.

    Args:
        config: of the job, with a path.
        say: gets lines of progress.

    Raises:
        DataError: the folder or one of its halves is missing; and for a folder also: nothing is
            chosen of its classes, or a class folder is absent from a half or empty.
    """
    filesystem, root = open_root(config.path, setting="path")
    if config.source == "folder":
        return FolderSource(filesystem, root, config, say)
    return ParquetSource(filesystem, root, config)


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
