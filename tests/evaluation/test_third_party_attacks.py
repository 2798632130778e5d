"""Other people's attacks on an exported defence: the documentation's examples, as they stand."""

import re
import warnings

import pytest
import torch

import cdvae_ray
from cdvae_ray import attacks
from cdvae_ray.config.classifier_presets import classifier_preset
from cdvae_ray.config.presets import preset
from cdvae_ray.core.defenses import RedundantDefense
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.load import load_splits
from cdvae_ray.loading import checkpoint_digest
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.fit import fit
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.state import TrainState
from tests.runtime.conftest import ROOT

COUNT = 300
EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 20
CPU = torch.device("cpu")

with warnings.catch_warnings():
    # foolbox 3.3.4 imports from a namespace that SciPy has renamed.
    warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
    import foolbox  # noqa: F401  (the example imports it again, without this warning)


def train(task, images, run):
    fit(
        TrainState(task, CPU),
        InMemoryBatches(images, global_batch_size=64, seed=0, rank=0, world_size=1),
        run,
        epochs_done=0,
        checkpoint_every=task.training.epochs,
        config_digest="0" * 64,
        identity={},
        on_epoch=lambda report: None,
        on_progress=lambda progress: None,
        on_checkpoint=lambda name, report: None,
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """D_G(G(x)) on digits, loaded as users load it, with 300 test images."""
    folder = tmp_path_factory.mktemp("defense")
    config, plain = preset("quickstart"), classifier_preset("quickstart")
    splits = load_splits(config.data)
    common = {"image_size": 16, "class_names": splits.train.class_names}
    short = {"epochs": 6, "learning_rate": 5e-3}
    vae = CdvaeTask(
        model=config.model,
        objective=type(config.objective)(gamma=0.002),
        training=type(config.training)(global_batch_size=64, **(short | {"epochs": 3})),
        augmentation=config.augmentation,
        **common,
    )
    train(vae, splits.train, Store.at(folder / "cdvae"))
    digest = checkpoint_digest(folder / "cdvae")
    classifier = ClassifierTask(
        input_kind="class_redundant",
        cdvae=FrozenCdvae.of(cdvae_ray.load(folder / "cdvae"), digest),
        model=plain.model,
        training=type(config.training)(global_batch_size=64, **short),
        augmentation=plain.augmentation,
        **common,
    )
    train(classifier, splits.train, Store.at(folder / "classifier"))
    defense = cdvae_ray.load_defense(folder / "classifier", cdvae=folder / "cdvae")
    assert isinstance(defense, RedundantDefense)
    images, labels = splits.test.images[:COUNT].float() / 255, splits.test.labels[:COUNT]
    with torch.inference_mode():
        clean = (defense(images).argmax(dim=1) == labels).float().mean()
    assert clean > 0.85, "the defence must be worth an attack"
    return defense, images, labels


def example(tool):
    """The documentation's example for a tool, as code."""
    text = (ROOT / "docs/defense.md").read_text()
    (code,) = re.findall(rf"^{tool}[^\n]*:\n\n```python\n(.*?)```", text, re.S | re.M)
    return code


def run_example(tool, defense, images, labels):
    names = {"defense": defense, "images": images, "labels": labels}
    exec(compile(example(tool), f"docs/defense.md, {tool}", "exec"), names)
    return names["adversarial"]


def accuracy(defense, images, labels):
    with torch.inference_mode():
        return (defense(images).argmax(dim=1) == labels).float().mean().item()


@pytest.mark.parametrize("tool", ["torchattacks", "foolbox"])
def test_a_third_partys_pgd_finds_what_ours_finds(case, tool):
    defense, images, labels = case
    torch.manual_seed(0)
    theirs = run_example(tool, defense, images, labels)
    assert (theirs - images).abs().max() <= EPSILON + 1e-6
    ours = attacks.pgd(
        defense,
        images,
        labels,
        epsilon=EPSILON,
        num_steps=STEPS,
        step_size=STEP_SIZE,
        keep="last",
    ).images
    clean = accuracy(defense, images, labels)
    robust = {name: accuracy(defense, each, labels) for name, each in (("t", theirs), ("o", ours))}
    assert robust["o"] < clean - 0.05, "the attack must do something"
    assert abs(robust["t"] - robust["o"]) <= 0.02


def test_auto_attack_takes_the_defence_as_it_is(case):
    defense, images, labels = case
    images, labels = images[:8], labels[:8]
    theirs = run_example("AutoAttack", defense, images, labels)
    assert (theirs - images).abs().max() <= EPSILON + 1e-6
    single = attacks.pgd(defense, images, labels, epsilon=EPSILON, num_steps=STEPS).success
    robust = accuracy(defense, theirs, labels)
    assert robust <= (~single).float().mean().item()
