"""A tiny task on made-up images, so that training takes milliseconds."""

import pytest
import torch

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.fit import fit, resume
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.state import TrainState

CPU = torch.device("cpu")


def tiny_task(**training):
    return CdvaeTask(
        model=ModelConfig(
            vae_width=4,
            latent_size=8,
            classifier_depth=10,
            classifier_widen_factor=1,
            classifier_dropout=0.1,
        ),
        objective=ObjectiveConfig(),
        training=TrainingConfig(**({"epochs": 3, "global_batch_size": 16} | training)),
        augmentation=AugmentationConfig(
            crop_padding=2, horizontal_flip=True, cutout_size=4, mixup_alpha=2.0
        ),
        image_size=16,
        class_names=("a", "b", "c"),
    )


def tiny_cdvae(class_names=("a", "b", "c"), **model):
    """A frozen CD-VAE whose statistics are those of some images, not of none."""
    settings = {
        "vae_width": 4,
        "latent_size": 8,
        "classifier_depth": 10,
        "classifier_widen_factor": 1,
    }
    cdvae = build_cdvae(
        ModelConfig(**(settings | model)), image_size=16, class_names=class_names, seed=0
    )
    with torch.no_grad():
        images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        cdvae(images, torch.zeros(16, cdvae.config.latent_size))
    return FrozenCdvae.of(cdvae, "c" * 64)


def tiny_classifier_task(input_kind="class_redundant", *, dropout=0.1, cdvae=None, **training):
    return ClassifierTask(
        input_kind=input_kind,
        cdvae=None if input_kind == "images" else cdvae or tiny_cdvae(),
        model=ClassifierConfig(depth=10, widen_factor=1, dropout=dropout),
        training=TrainingConfig(**({"epochs": 3, "global_batch_size": 16} | training)),
        augmentation=AugmentationConfig(
            crop_padding=2, horizontal_flip=True, cutout_size=4, mixup_alpha=2.0
        ),
        image_size=16,
        class_names=("a", "b", "c"),
    )


def tiny_images(count=70):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator)
    labels = torch.arange(count) % 3
    return ImageSet.build(images.to(torch.uint8), labels, ("a", "b", "c"), "made/train")


class Run:
    """One process's view of a run in a folder."""

    def __init__(self, folder, digest="d" * 64, task=None, **training):
        self.state = TrainState(task or tiny_task(**training), CPU)
        self.store = Store.at(folder)
        self.digest = digest
        self.source = InMemoryBatches(
            tiny_images(),
            global_batch_size=self.state.task.training.global_batch_size,
            seed=self.state.task.training.seed,
            rank=0,
            world_size=1,
        )
        self.epochs = []

    def resume(self):
        return resume(self.store, self.state, config_digest=self.digest)

    def fit(self, *, epochs_done=0, checkpoint_every=1, on_checkpoint=lambda name, report: None):
        fit(
            self.state,
            self.source,
            self.store,
            epochs_done=epochs_done,
            checkpoint_every=checkpoint_every,
            config_digest=self.digest,
            identity={"kind": "test"},
            on_epoch=self.epochs.append,
            on_progress=lambda progress: None,
            on_checkpoint=on_checkpoint,
        )
        return self


@pytest.fixture
def make_run():
    return Run
