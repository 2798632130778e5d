"""Models back from wherever a job put them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.errors import CheckpointError
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import load_model, newest_sound_checkpoint


def load(location: str | Path) -> CDVAE:
    """A trained CD-VAE, in eval mode on the CPU.

    Args:
        location: a checkpoint folder, a run folder (its newest sound checkpoint), both also in
            object storage, or an MLflow address: runs:/<run id>[/<checkpoint>], models:/....

    Raises:
        CheckpointError: there is no sound checkpoint.
        TrackingError: MLflow has none at that address.
    """
    text = str(location)
    if text.startswith(("runs:/", "models:/")):
        return _load_tracked(text)
    folder = Store.at(location)
    parent, name = folder.parent()
    if not parent.exists(name):
        raise CheckpointError(
            text,
            got="nothing there",
            expected="a checkpoint folder or a run folder",
            remedy="check the path",
        )
    found = None if folder.exists("manifest.json") else newest_sound_checkpoint(folder)
    return load_model(folder, found.name) if found else load_model(parent, name)


def _load_tracked(uri: str) -> CDVAE:
    # Importing MLflow takes seconds, which loading from a folder does not owe.
    from cdvae_ray.tracking import fetch_checkpoint, tracking_uri

    with tempfile.TemporaryDirectory() as folder:
        address = tracking_uri(TrackingConfig(), Path.cwd())
        parent, name = Store.at(
            fetch_checkpoint(uri, tracking_uri=address, into=Path(folder))
        ).parent()
        return load_model(parent, name)
