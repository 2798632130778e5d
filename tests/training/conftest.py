"""A tiny task on made-up images, so that training takes milliseconds."""

import functools

import pytest
import torch

from cdvae_ray.config.adversarial_objective import AdversarialObjectiveConfig
from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.config.baseline import BASELINES, RecipeConfig
from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.storage.store import Store
from cdvae_ray.training.baseline_task import PurifierTask, RobustClassifierTask
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.finetune_task import FinetuneTask
from cdvae_ray.training.fit import fit, resume
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.frozen_classifier import FrozenClassifier
from cdvae_ray.training.state import TrainState
from cdvae_ray.training.task import TrainBatch

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


@functools.cache
def tiny_classifier(input_kind="images", class_names=("a", "b", "c"), *, seed=1, behind=None):
    """A frozen classifier without dropout that answers each class for some images.

    Args:
        input_kind: what it is trained on.
        behind: the frozen CD-VAE whose G(x) it sees; none: it sees x.
    """
    classifier = build_classifier(
        ClassifierConfig(depth=10, widen_factor=1, dropout=0.0),
        input_kind=input_kind,
        image_size=16,
        class_names=class_names,
        seed=seed,
        cdvae_digest=behind.digest if behind and input_kind != "images" else None,
    )
    inputs = _some_images()
    with torch.no_grad():
        if behind is not None:
            cdvae = behind.build(CPU, memory_format=torch.contiguous_format)
            inputs = cdvae.decompose(inputs).class_redundant
        _settle(classifier, inputs)
        linear, logits = classifier.network.linear, classifier(inputs)
        scale = 1 / logits.std(dim=0)
        linear.weight.mul_(scale[:, None])
        linear.bias.sub_(logits.mean(dim=0)).mul_(scale)
    return FrozenClassifier.of(classifier, "f" * 64)


@functools.cache
def settled_cdvae(**model):
    """A tiny CD-VAE, by itself without dropout, with the running statistics of its images."""
    frozen = tiny_cdvae(**({"classifier_dropout": 0.0} | model))
    cdvae = frozen.build(CPU, memory_format=torch.contiguous_format)
    _settle(cdvae, _some_images(), torch.zeros(48, cdvae.config.latent_size))
    return FrozenCdvae.of(cdvae, frozen.digest)


def _some_images():
    return torch.rand(48, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _settle(model, *inputs):
    """Gives every batch normalisation the statistics of these inputs, and leaves eval mode."""
    layers = [each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    momenta = [each.momentum for each in layers]
    for each in layers:
        each.reset_running_stats()
        each.momentum = None  # the average over all passes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.train()(*inputs)
    for each, momentum in zip(layers, momenta, strict=True):
        each.momentum = momentum
    model.eval()


def tiny_finetune_task(
    *, attack=None, adversarial=None, clean_weight=1.0, cdvae=None, classifier=None, **training
):
    """Fine-tuning of a tiny CD-VAE and a tiny D_G, without dropout."""
    inner = {"norm": "linf", "epsilon": 8 / 255, "num_steps": 2, "confidence": 10.0}
    cdvae = cdvae or settled_cdvae()
    return FinetuneTask(
        cdvae=cdvae,
        classifier=classifier or tiny_classifier(behind=cdvae),
        adversarial=AdversarialObjectiveConfig(**(adversarial or {})),
        clean=ObjectiveConfig(),
        clean_weight=clean_weight,
        attack=AttackConfig(
            attack="margin_pgd", label="inner", keep="last", **(inner | (attack or {}))
        ),
        training=TrainingConfig(
            **({"epochs": 2, "global_batch_size": 16, "channels_last": False} | training)
        ),
        augmentation=AugmentationConfig(),
    )


def tiny_baseline_task(name, *, recipe=None, images=None, start=None, classifier=None, **training):
    """A baseline on tiny networks with two steps of its inner attack, without dropout."""
    chosen = BASELINES[name]
    small = {"num_steps": 2} | ({"width": 4} if chosen.is_purifier else {})
    settings = {
        "baseline": name,
        "recipe": chosen.recipe(RecipeConfig(**(small | (recipe or {})))),
        "training": TrainingConfig(
            **({"epochs": 2, "global_batch_size": 16, "channels_last": False} | training)
        ),
        "augmentation": AugmentationConfig(),
    }
    if chosen.is_purifier:
        return PurifierTask(classifier=classifier or tiny_classifier(), **settings)
    images = images or tiny_images()
    return RobustClassifierTask(
        model=ClassifierConfig(depth=10, widen_factor=1, dropout=0.0),
        image_size=16,
        class_names=images.class_names,
        start=start,
        labels=images.labels if name == "sat" else None,
        validation=tiny_images(20) if name == "oia" else None,
        **settings,
    )


def tiny_batch(count=9, *, epoch=0, first_id=0):
    """A batch as a loss sees it: made-up images of three classes with consecutive ids."""
    ids = torch.arange(first_id, first_id + count)
    labels = ids % 3
    return TrainBatch(
        images=torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3)),
        labels=labels,
        partner_labels=labels,
        mixup_weight=1.0,
        image_ids=ids,
        epoch=epoch,
    )


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


class KilledError(Exception):
    """What stops a run in the middle."""


def kill_after(name):
    """A callback that stops a run once a checkpoint is written."""

    def on_checkpoint(saved, report):
        if saved == name:
            raise KilledError

    return on_checkpoint


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

    def resume(self, **told):
        return resume(self.store, self.state, config_digest=self.digest, **told)

    def fit(
        self,
        *,
        epochs_done=0,
        checkpoint_every=1,
        overlap_checkpoints=False,
        on_epoch=lambda report: None,
        on_checkpoint=lambda name, report: None,
    ):
        def keep(report):
            self.epochs.append(report)
            on_epoch(report)

        fit(
            self.state,
            self.source,
            self.store,
            epochs_done=epochs_done,
            checkpoint_every=checkpoint_every,
            overlap_checkpoints=overlap_checkpoints,
            config_digest=self.digest,
            identity={"kind": "test"},
            on_epoch=keep,
            on_progress=lambda progress: None,
            on_checkpoint=on_checkpoint,
        )
        return self


@pytest.fixture
def make_run():
    return Run
