"""What a source of encoded images is to whoever makes shards of it.

A source names its images and reads one at a time, so that datasets that do not fit in memory pass
through. `folder_source` and `parquet_source` are the two there are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import torch

from cdvae_ray.config.prepare_job import PrepareConfig
from cdvae_ray.config.restricted_imagenet import ClassMap, restrict_classes
from cdvae_ray.core.random import image_keys
from cdvae_ray.data.images import Split
from cdvae_ray.errors import DataError

SECONDS_BETWEEN_LINES = 5.0

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


def chosen_classes(config: PrepareConfig, class_names: Sequence[str]) -> ClassMap:
    """Which classes of a source are kept, under which new labels.

    Args:
        config: of the job.
        class_names: of the source, by label.

    Raises:
        DataError: a name twice, or none of the classes that are wanted.
    """
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


def in_order(images: dict[Split, list[SourceImage]], seed: int) -> dict[Split, list[SourceImage]]:
    """By class and place; training images then in an order that the seed alone determines.

    Args:
        images: the chosen images of each split.
        seed: of the order.
    """
    ordered = {split: sorted(listed) for split, listed in images.items()}
    train = ordered["train"]
    keys = image_keys(seed, "prepare.order", 0, torch.arange(len(train)))
    ordered["train"] = [train[place] for place in keys.argsort().tolist()]
    return ordered
