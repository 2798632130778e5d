"""Which images are looked at, by id: clean, adversarial, or with noise; never all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cdvae_ray.config.feature_job import SourceKind
from cdvae_ray.core.noise import matched_noise, reference_noise
from cdvae_ray.data.images import ImageSet
from cdvae_ray.storage.adversarial_set import SHARDS, AdversarialImages, read_shard
from cdvae_ray.storage.shards import shard_name
from cdvae_ray.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class StoredSet:
    """A complete adversarial set, by where it lies and what it is."""

    store: Store
    identity_digest: str
    content_digest: str
    shard_size: int
    attack: str
    """Its label."""
    threat_model: str

    def rows(self, image_ids: Tensor) -> AdversarialImages:
        """The rows of these ids, which rise; only the shards that hold them are read.

        Raises:
            StorageError: a shard is absent or damaged.
        """
        shards = self.store.child(SHARDS)
        numbers = torch.unique(image_ids // self.shard_size).tolist()
        parts = [
            read_shard(shards, shard_name(number), identity_digest=self.identity_digest)
            for number in numbers
        ]
        kept = [part.select(torch.isin(part.image_ids, image_ids)) for part in parts]
        return AdversarialImages.concatenate(kept)


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Images in [0, 1] by their ids."""

    kind: SourceKind
    adversarial: StoredSet | None = None
    """For adversarial and matched-noise."""
    seed: int = 0
    """Of the noise."""
    noise_std: float = 0.0
    """Of gaussian-noise, in normalised units."""
    pixel_mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    pixel_std: tuple[float, ...] = (1.0, 1.0, 1.0)
    """Which units those are, for gaussian-noise."""

    @property
    def label(self) -> str:
        """What people call it."""
        if self.adversarial is None:
            return self.kind if self.kind == "clean" else f"{self.kind} {self.noise_std:g}"
        return f"{self.adversarial.attack} on {self.adversarial.threat_model}, {self.kind}"

    def identity(self) -> dict[str, Any]:
        """All that determines the images besides the clean ones, JSON values."""
        facts: dict[str, Any] = {"images": self.kind}
        if self.adversarial is not None:
            facts["adversarial_set"] = self.adversarial.identity_digest
            facts["content"] = self.adversarial.content_digest
        if self.kind in ("matched-noise", "gaussian-noise"):
            facts["seed"] = self.seed
        if self.kind == "gaussian-noise":
            facts["normalised_std"] = [self.noise_std, list(self.pixel_mean), list(self.pixel_std)]
        return facts

    def labels(self) -> dict[str, str | int]:
        """Columns that say in each row which set it is of."""
        sets = {"clean": "clean", "adversarial": "adversarial"}
        return {
            "set": sets.get(self.kind, "noisy"),
            "attack": self.adversarial.attack if self.adversarial else "",
            "threat_model": self.adversarial.threat_model if self.adversarial else "",
        }

    def load(self, clean: ImageSet, image_ids: Tensor) -> Tensor:
        """The images of these ids, which rise, float32 (N, 3, S, S) on the CPU.

        In [0, 1], but for gaussian-noise, whose clipping is the reference's.

        Raises:
            StorageError: a shard of the adversarial set is absent or damaged.
        """
        if self.kind == "adversarial":
            assert self.adversarial is not None
            return self.adversarial.rows(image_ids).images
        images = clean.images[image_ids].float() / 255
        if self.kind == "matched-noise":
            assert self.adversarial is not None
            lengths = self.adversarial.rows(image_ids).l2
            return matched_noise(images, lengths, image_ids, seed=self.seed)
        if self.kind == "gaussian-noise":
            mean, std = (
                torch.tensor(each).view(1, 3, 1, 1) for each in (self.pixel_mean, self.pixel_std)
            )
            return reference_noise(
                images,
                image_ids,
                std=self.noise_std,
                pixel_mean=mean,
                pixel_std=std,
                seed=self.seed,
            )
        return images
