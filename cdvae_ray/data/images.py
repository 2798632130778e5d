"""The one in-memory form of every dataset: verified uint8 images with labels and a digest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from cdvae_ray.errors import DataError

Split: TypeAlias = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
LIMIT_SEED = 0  # fixed: a limit names the same images in every run


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled square RGB images in host memory, verified at construction.

    The image id of an image is its index here. `build` is the usual way to make one.

    Raises:
        DataError: a field is not what its docstring promises.
    """

    images: Tensor
    """(N, 3, H, H) uint8 in [0, 255], contiguous, on the CPU, N >= 1."""
    labels: Tensor
    """(N,) int64 in [0, num_classes), contiguous, on the CPU."""
    class_names: tuple[str, ...]
    """The name of each class, by label; no name twice."""
    name: str
    """What messages call it, for example "digits/train"; no part of the digest."""
    digest: str = field(init=False)
    """SHA-256 over shape, class names, image bytes and labels; hexadecimal."""

    def __post_init__(self) -> None:
        _verify_images(self.images, self.name)
        _verify_class_names(self.class_names, self.name)
        _verify_labels(self.labels, len(self.images), len(self.class_names), self.name)
        digest = _digest(self.images, self.labels, self.class_names)
        object.__setattr__(self, "digest", digest)  # the class is frozen for its users

    @classmethod
    def build(
        cls, images: Tensor, labels: Tensor, class_names: Sequence[str], name: str
    ) -> ImageSet:
        """Makes tensors contiguous and class names a tuple, then verifies and digests them.

        Args:
            images: (N, 3, H, H) uint8.
            labels: (N,) int64 in [0, len(class_names)).
            class_names: one name a class, by label.
            name: what messages call the set.

        Raises:
            DataError: a wrong dtype, device or shape, no images, a repeated class name, or a
                label outside the class list.
        """
        return cls(images.contiguous(), labels.contiguous(), tuple(class_names), name)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return int(self.images.shape[-1])

    @property
    def num_classes(self) -> int:
        """Length of the class list; a class may have no image here."""
        return len(self.class_names)

    def limit(self, count: int, seed: int) -> ImageSet:
        """The first `count` images of a seeded shuffle, in shuffled order, renumbered from 0.

        With one seed, a smaller limit is a prefix of a larger one.

        Args:
            count: how many to keep, in [1, len(self)].
            seed: of the shuffle.

        Raises:
            DataError: there are fewer than `count` images, or `count` is below 1.
        """
        return self._select(limited_order(len(self), count, seed, self.name), self.name)

    def first(self, count: int) -> ImageSet:
        """The first `count` images, in [1, len(self)], under their own ids."""
        assert 1 <= count <= len(self), f"{count} of {len(self)}"
        return self._select(torch.arange(count), self.name)

    def hold_out(self, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
        """Splits off `count` images of a seeded shuffle: (the others, these), renumbered from 0.

        Args:
            count: how many to hold out, in [1, len(self) - 1].
            seed: of the shuffle.

        Raises:
            DataError: not one image would be left, or `count` is below 1.
        """
        if not 1 <= count < len(self):
            raise DataError(
                f"images held out of {self.name}",
                got=count,
                expected=f"a number of images in [1, {len(self) - 1}]",
                remedy="hold out fewer",
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held, others = order[:count].sort().values, order[count:].sort().values
        return self._select(others, self.name), self._select(held, f"{self.name}, held out")

    def _select(self, kept: Tensor, name: str) -> ImageSet:
        return ImageSet.build(
            self.images.index_select(0, kept),
            self.labels.index_select(0, kept),
            self.class_names,
            name,
        )


class Splits(NamedTuple):
    """The two halves of a dataset, with one class list and one image size."""

    train: ImageSet
    """What models are fitted to."""
    test: ImageSet
    """What they are evaluated on."""


def limited_order(num_images: int, count: int, seed: int, name: str) -> Tensor:
    """Which images `ImageSet.limit` keeps, for readers that need not decode the others.

    Args:
        num_images: how many there are.
        count: how many to keep, in [1, num_images].
        seed: of the shuffle.
        name: what messages call the set.

    Returns:
        (count,) int64: the kept images by their numbers in [0, num_images), in their new order.

    Raises:
        DataError: there are fewer than `count` images, or `count` is below 1.
    """
    if not 1 <= count <= num_images:
        raise DataError(
            f"the limit on {name}",
            got=count,
            expected=f"a number of images in [1, {num_images}]",
            remedy="lower or leave out the limit",
        )
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))[:count]


def _verify_images(images: Tensor, name: str) -> None:
    square = images.dim() == 4 and images.shape[1] == 3 and images.shape[2] == images.shape[3]
    if not square or images.numel() == 0 or images.dtype != torch.uint8:
        raise DataError(
            f"images of {name}",
            got=f"{images.dtype} of shape {tuple(images.shape)}",
            expected="torch.uint8 of shape (N, 3, H, H) with at least one image",
            remedy="convert the images to square RGB bytes first",
        )
    _verify_storage("images", images, name)


def _verify_labels(labels: Tensor, num_images: int, num_classes: int, name: str) -> None:
    if labels.dtype != torch.int64 or labels.shape != (num_images,):
        raise DataError(
            f"labels of {name}",
            got=f"{labels.dtype} of shape {tuple(labels.shape)}",
            expected=f"torch.int64 of shape ({num_images},)",
            remedy="give every image one integer label",
        )
    _verify_storage("labels", labels, name)
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise DataError(
            f"label of image {row} of {name}",
            got=int(labels[row]),
            expected=f"a label in [0, {num_classes})",
            remedy="correct the label or extend the class list",
        )


def _verify_storage(what: str, tensor: Tensor, name: str) -> None:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        layout = "contiguous" if tensor.is_contiguous() else "strided"
        raise DataError(
            f"{what} of {name}",
            got=f"a {layout} tensor on {tensor.device}",
            expected="a contiguous tensor on the CPU",
            remedy="call .cpu() and use ImageSet.build",
        )


def _verify_class_names(class_names: tuple[str, ...], name: str) -> None:
    if not class_names:
        raise DataError(
            f"class names of {name}",
            got="none",
            expected="one name for each class",
            remedy="name the classes",
        )
    repeated = [each for each, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise DataError(
            f"class names of {name}",
            got=f"{', '.join(repeated[:8])} more than once",
            expected="different names",
            remedy="rename or merge these classes",
        )


def _digest(images: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> str:
    # JSON ends at its closing brace and the shape fixes both lengths: no two sets run together.
    header = {"shape": list(images.shape), "class_names": list(class_names)}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    # The array's own buffer: no copy, and hashlib releases the interpreter lock over it.
    digest.update(images.numpy().data)
    digest.update(labels.numpy().data)
    return digest.hexdigest()
