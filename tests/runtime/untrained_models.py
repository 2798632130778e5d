"""Checkpoints for jobs that start from models, without the time that training them takes."""

import torch

from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.config.presets import preset
from cdvae_ray.data.images import ImageSet
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.state import TrainState
from tests.stored_checkpoints import save_checkpoint


def untrained(folder, data: ImageSet):
    """Checkpoints of the smoke presets' CD-VAE and classifier, without training them."""
    facts = {"image_size": data.image_size, "class_names": data.class_names}
    config, plain = preset("smoke"), classifier_preset("smoke")
    tasks = {
        "cdvae": CdvaeTask(
            model=config.model,
            objective=config.objective,
            training=config.training,
            augmentation=config.augmentation,
            **facts,
        ),
        "classifier": ClassifierTask(
            input_kind="images",
            cdvae=None,
            model=plain.model,
            training=plain.training,
            augmentation=plain.augmentation,
            **facts,
        ),
    }
    for name, task in tasks.items():
        save_checkpoint(
            Store.at(folder / name),
            TrainState(task, torch.device("cpu")),
            epochs_done=1,
            config_digest="d",
            identity={},
            metrics={},
        )
