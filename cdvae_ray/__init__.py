"""Class-disentangled variational autoencoders (Yang et al., NeurIPS 2021), on Ray.

Importing this package imports neither Ray nor MLflow; the public names load what they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdvae_ray import attacks, detectors
    from cdvae_ray.core.cdvae import CDVAE, Decomposition
    from cdvae_ray.core.classifier import ImageClassifier
    from cdvae_ray.core.detectors.image_detector import ImageDetector
    from cdvae_ray.core.released import load_released_checkpoint
    from cdvae_ray.loading import (
        load,
        load_adversarial_set,
        load_classifier,
        load_defense,
        load_detector,
    )

__version__ = "0.1.0"
__all__ = [
    "CDVAE",
    "Decomposition",
    "ImageClassifier",
    "ImageDetector",
    "attacks",
    "detectors",
    "load",
    "load_adversarial_set",
    "load_classifier",
    "load_defense",
    "load_detector",
    "load_released_checkpoint",
]

_HOMES = {
    "CDVAE": "cdvae_ray.core.cdvae",
    "Decomposition": "cdvae_ray.core.cdvae",
    "ImageClassifier": "cdvae_ray.core.classifier",
    "ImageDetector": "cdvae_ray.core.detectors.image_detector",
    "load": "cdvae_ray.loading",
    "load_adversarial_set": "cdvae_ray.loading",
    "load_classifier": "cdvae_ray.loading",
    "load_defense": "cdvae_ray.loading",
    "load_detector": "cdvae_ray.loading",
    "load_released_checkpoint": "cdvae_ray.core.released",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("attacks", "detectors"):
        return importlib.import_module(f"cdvae_ray.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
