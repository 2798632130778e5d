"""Everything that `jobs/prepare_data.py` takes, and the identity of what it makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cdvae_ray.config.checks import at_least, require, within
from cdvae_ray.config.presets import Preset, chosen
from cdvae_ray.config.restricted_imagenet import Labelling

PREPARED_KIND = "prepared-images"
PREPARE_RECIPE_VERSION = 1
"""Raised when the same settings would give other shards: part of every output's identity."""
PrepareSource = Literal["folder", "parquet"]
ClassChoice = Literal["all", "restricted-imagenet"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Turns a dataset of encoded images into Parquet shards that --data.source parquet reads."""

    source: PrepareSource = "folder"
    """folder: train/<class>/* and val/<class>/* or test/<class>/*, as of ILSVRC2012. parquet:
    train*.parquet and test*.parquet or validation*.parquet in the Hugging Face layout."""
    path: str = ""
    """Where the source lies: a folder, or an object-storage URI such as s3://bucket/folder."""
    out: str = ""
    """Where the shards go, likewise: a new or empty folder, or an earlier output of this job."""
    classes: ClassChoice = "restricted-imagenet"
    """all classes of the source, or those of its classes that are among the 203 of restricted
    ImageNet, by their WordNet ids."""
    labels: Labelling = "fine"
    """fine: the source's classes. super: the nine super-classes of restricted ImageNet."""
    images_per_shard: int = 2000
    """Images in a shard, which is held in memory while it is written: >= 1."""
    max_corrupt_fraction: float = 0.0
    """Share of a split's images that may be unusable (they do not decode or are too small) and are
    then left out, in [0, 1]; more of them stop the job."""
    min_side: int = 8
    """An image with a side shorter than this is unusable, in pixels: >= 1."""
    seed: int = 0
    """Of the order of the training images, so that a shard holds all classes mixed: >= 0. Test
    images are in order of class and path."""
    num_threads: int = 8
    """Threads that read and decode, in [1, 256]; without influence on what is written."""
    overwrite: bool = False
    """Make the shards anew, also in place of those of other settings or another source."""
    summary: Path | None = None
    """Write the final numbers to this JSON file."""

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("source", self.source, get_args(PrepareSource)),
            ("classes", self.classes, get_args(ClassChoice)),
            ("labels", self.labels, get_args(Labelling)),
        ):
            require(
                value in choices,
                name,
                got=repr(value),
                expected=f"one of {', '.join(choices)}",
                remedy=f"set --{name} to one of them",
            )
        require(
            self.labels == "fine" or self.classes == "restricted-imagenet",
            "labels",
            got=f"{self.labels} with classes {self.classes}",
            expected="fine labels, where classes have no super-classes",
            remedy="set --labels fine, or --classes restricted-imagenet",
        )
        at_least("images_per_shard", self.images_per_shard, 1)
        within("max_corrupt_fraction", self.max_corrupt_fraction, 0.0, 1.0)
        at_least("min_side", self.min_side, 1)
        at_least("seed", self.seed, 0)
        within("num_threads", self.num_threads, 1, 256)

    def require_places(self) -> None:
        """Checks that it is said where to read and to write, which no preset does.

        Raises:
            ConfigError: it is not, or both are the same.
        """
        for name, value, expected in (
            ("path", self.path, f"where the {self.source} with the images lies"),
            ("out", self.out, "where the shards go: a folder or an object-storage URI"),
        ):
            require(bool(value), name, got="nothing", expected=expected, remedy=f"set --{name}")
        require(
            self.path.rstrip("/") != self.out.rstrip("/"),
            "out",
            got=f"the source's own {self.path}",
            expected="another folder",
            remedy="set --out to a new folder",
        )


def prepared_identity(config: PrepareConfig, source_digest: str) -> dict[str, Any]:
    """All that determines the shards: JSON values, without paths or resources.

    Args:
        config: of the job.
        source_digest: of the names and sizes of the source's files, which stands for its path.
    """
    return {
        "kind": PREPARED_KIND,
        "recipe_version": PREPARE_RECIPE_VERSION,
        "source": config.source,
        "source_digest": source_digest,
        "classes": config.classes,
        "labels": config.labels,
        "images_per_shard": config.images_per_shard,
        "max_corrupt_fraction": config.max_corrupt_fraction,
        "min_side": config.min_side,
        "seed": config.seed,
    }


PREPARE_PRESETS: dict[str, Preset[PrepareConfig]] = {
    "restricted-imagenet": Preset(
        "a folder of ILSVRC2012, its 203 restricted classes (the default)", PrepareConfig()
    ),
    "parquet": Preset(
        "Parquet files, all their classes", PrepareConfig(source="parquet", classes="all")
    ),
}


def prepare_preset(name: str) -> PrepareConfig:
    """The config of a preset.

    Raises:
        ConfigError: no preset has that name.
    """
    return chosen(PREPARE_PRESETS, name, job="jobs/prepare_data.py")
