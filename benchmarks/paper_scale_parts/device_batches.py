"""Training batches of images that lie on the device already: what a step never waits for."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cdvae_ray.data.batches import Batch, epoch_order
from cdvae_ray.data.images import ImageSet


class DeviceBatches:
    """A BatchSource of one rank: the batches of `InMemoryBatches`, gathered on the device.

    The ids stay on the CPU, where the augmentation draws by them.

    Args:
        image_set: what to train on; its images are copied to the device once.
        global_batch_size: images a step; an incomplete last batch is left out.
        seed: of the epochs' orders.
        device: where to gather.
    """

    corrupt_images = 0
    max_corrupt_images = None

    def __init__(
        self, image_set: ImageSet, *, global_batch_size: int, seed: int, device: torch.device
    ) -> None:
        self.num_images = len(image_set)
        self.batches_per_epoch = len(image_set) // global_batch_size
        self._images, self._labels = image_set.images.to(device), image_set.labels.to(device)
        self._size, self._seed, self._device = global_batch_size, seed, device

    def epoch_batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, in its order."""
        order = epoch_order(self.num_images, seed=self._seed, epoch=epoch)
        placed = order.to(self._device)
        for start in range(0, self.batches_per_epoch * self._size, self._size):
            rows = slice(start, start + self._size)
            yield Batch(
                self._images.index_select(0, placed[rows]),
                self._labels.index_select(0, placed[rows]),
                order[rows],
            )
