"""Datasets as verified in-memory images, and the batches made of them."""

from cdvae_ray.data.batches import (
    Batch,
    BatchSource,
    InMemoryBatches,
    epoch_order,
    evaluation_batches,
)
from cdvae_ray.data.decode import decode_all, decode_image, to_square
from cdvae_ray.data.images import ImageSet, Splits
from cdvae_ray.data.load import load_split, load_splits

__all__ = [
    "Batch",
    "BatchSource",
    "ImageSet",
    "InMemoryBatches",
    "Splits",
    "decode_all",
    "decode_image",
    "epoch_order",
    "evaluation_batches",
    "load_split",
    "load_splits",
    "to_square",
]
