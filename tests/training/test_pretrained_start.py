"""Training that starts from a file: D has its weights, and the run another identity."""

from dataclasses import replace

import pytest
import torch
from torchvision.models import resnet18

from cdvae_ray.config.classifier_job import classifier_identity
from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.config.presets import preset
from cdvae_ray.config.train_job import training_identity
from cdvae_ray.core.pretrained import read_pretrained
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.classifier_task import ClassifierTask

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18(num_classes=3).state_dict(), path)
    return read_pretrained(str(path))


def test_d_of_a_cdvae_starts_there_and_g_does_not_change(pretrained):
    config = preset("restricted-smoke")
    task = CdvaeTask(
        model=replace(config.model, classifier_depth=18),
        objective=config.objective,
        training=config.training,
        augmentation=config.augmentation,
        image_size=32,
        class_names=CLASSES,
    )
    fresh, started = task.build_model(), replace(task, pretrained=pretrained).build_model()
    for name, value in started.classifier.state_dict().items():
        assert torch.equal(value, pretrained.tensors[name]), name
    for name, value in fresh.generator.state_dict().items():
        assert torch.equal(value, started.generator.state_dict()[name]), name


def test_a_classifier_starts_there(pretrained):
    config = classifier_preset("restricted-smoke")
    model = ClassifierTask(
        input_kind="images",
        cdvae=None,
        model=replace(config.model, depth=18),
        training=config.training,
        augmentation=config.augmentation,
        image_size=32,
        class_names=CLASSES,
        pretrained=pretrained,
    ).build_model()
    assert torch.equal(model.network.state_dict()["fc.bias"], pretrained.tensors["fc.bias"])


def test_the_start_is_part_of_the_identity_and_its_absence_is_not(pretrained):
    known = {"precision": "float32", "train_digest": "0" * 64}
    config, other = preset("restricted-smoke"), classifier_preset("restricted-smoke")
    fresh = training_identity(config, **known)
    assert "pretrained" not in fresh
    started = training_identity(config, **known, pretrained_digest=pretrained.digest)
    assert started == {**fresh, "pretrained": pretrained.digest}
    fresh = classifier_identity(other, **known, cdvae_digest=None)
    started = classifier_identity(
        other, **known, cdvae_digest=None, pretrained_digest=pretrained.digest
    )
    assert "pretrained" not in fresh
    assert started == {**fresh, "pretrained": pretrained.digest}
