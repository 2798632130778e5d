"""Class-disentangled variational autoencoders (Yang et al., NeurIPS 2021), on Ray.

Importing this package imports neither Ray nor MLflow; the public names load what they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdvae_ray.core.cdvae import CDVAE, Decomposition
    from cdvae_ray.core.released import load_released_checkpoint
    from cdvae_ray.loading import load

__version__ = "0.1.0"
__all__ = ["CDVAE", "Decomposition", "load", "load_released_checkpoint"]

_HOMES = {
    "CDVAE": "cdvae_ray.core.cdvae",
    "Decomposition": "cdvae_ray.core.cdvae",
    "load": "cdvae_ray.loading",
    "load_released_checkpoint": "cdvae_ray.core.released",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
