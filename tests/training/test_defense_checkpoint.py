"""Defences come back from their checkpoints as they were, and nothing else comes as a defence."""

import pytest
import torch
from safetensors.torch import save

from cdvae_ray.config.baseline import BASELINE_NAMES, BASELINES
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.defenses import PurifiedClassifier, RedundantDefense
from cdvae_ray.errors import CdvaeError, CheckpointError
from cdvae_ray.loading import (
    checkpoint_at,
    checkpoint_digest,
    load,
    load_classifier,
    load_defense,
)
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import MODEL_FILE
from cdvae_ray.training.defense_checkpoint import defense_of, trained_against
from cdvae_ray.training.frozen_cdvae import FrozenCdvae
from cdvae_ray.training.state import TrainState
from tests.stored_checkpoints import save_checkpoint

from .conftest import (
    CPU,
    tiny_baseline_task,
    tiny_classifier,
    tiny_classifier_task,
    tiny_finetune_task,
    tiny_task,
)

IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def store(folder, task):
    """An untrained checkpoint of a task, and the model that it holds in eval mode."""
    state = TrainState(task, CPU)
    save_checkpoint(
        Store.at(folder), state, epochs_done=1, config_digest="d", identity={}, metrics={}
    )
    return state.model.eval()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A CD-VAE, another one, and classifiers of G(x) and of R(x) behind the first."""
    folder = tmp_path_factory.mktemp("stored")
    cdvae = store(folder / "cdvae", tiny_task())
    store(folder / "other-cdvae", tiny_task(seed=1))
    frozen = FrozenCdvae.of(cdvae, checkpoint_digest(folder / "cdvae"))
    for kind in ("class_redundant", "class_essential", "images"):
        store(folder / kind, tiny_classifier_task(kind, cdvae=frozen))
    store(folder / "finetuned", tiny_finetune_task())
    return folder


def logits(model, images=IMAGES):
    with torch.no_grad():
        return model(images)


def refusal(*arguments, **options):
    with pytest.raises(CheckpointError) as caught:
        load_defense(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_every_baseline_comes_back_with_its_logits(tmp_path, name):
    # A classifier with another seed than the one that loading starts from.
    settings = {"classifier": tiny_classifier(seed=5)} if BASELINES[name].is_purifier else {}
    model = store(tmp_path, tiny_baseline_task(name, seed=3, **settings))
    expected = model.defense().eval() if BASELINES[name].is_purifier else model
    loaded = load_defense(tmp_path)
    kind = PurifiedClassifier if BASELINES[name].is_purifier else ImageClassifier
    assert isinstance(loaded, kind)
    assert not any(each.training for each in loaded.modules())
    assert (loaded.image_size, loaded.class_names) == (16, ("a", "b", "c"))
    assert torch.equal(logits(loaded), logits(expected))
    variable = IMAGES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loaded(variable).sum(), variable)
    assert (gradient != 0).any()
    assert trained_against(checkpoint_at(tmp_path)) == (BASELINES[name].trained_against,)


def test_a_robust_classifier_is_a_classifier_of_images(tmp_path):
    model = store(tmp_path, tiny_baseline_task("trades"))
    assert torch.equal(logits(load_classifier(tmp_path)), logits(model))


@pytest.mark.parametrize(("norm", "family"), [("linf", "linf"), ("l2", "l2")])
def test_a_finetuned_defence_says_what_it_has_seen(tmp_path, norm, family):
    store(tmp_path, tiny_finetune_task(attack={"norm": norm}))
    assert trained_against(checkpoint_at(tmp_path)) == (family,)
    assert isinstance(load_defense(tmp_path), RedundantDefense)


def test_a_plain_classifier_has_seen_no_attack(stored):
    plain = checkpoint_at(stored / "images")
    assert trained_against(plain) == ()
    assert isinstance(load_defense(stored / "images"), ImageClassifier)


def test_the_defence_of_a_classifier_of_g_is_both(stored):
    loaded = load_defense(stored / "class_redundant", cdvae=stored / "cdvae")
    assert isinstance(loaded, RedundantDefense)
    assert not any(each.training for each in loaded.modules())
    classifier = load_classifier(stored / "class_redundant")
    expected = classifier(load(stored / "cdvae").decompose(IMAGES).class_redundant)
    torch.testing.assert_close(logits(loaded), expected.detach())


def test_the_defence_of_a_classifier_of_g_needs_its_cdvae(stored):
    digest = checkpoint_digest(stored / "cdvae")
    message = refusal(stored / "class_redundant")
    assert f"got CD-VAE none, expected CD-VAE {digest[:12]}, behind which" in message
    assert message.endswith("give that CD-VAE as well (cdvae=..., --cdvae ...)")


def test_the_defence_of_a_classifier_of_g_refuses_another_cdvae(stored):
    digest, other = (checkpoint_digest(stored / name) for name in ("cdvae", "other-cdvae"))
    message = refusal(stored / "class_redundant", cdvae=stored / "other-cdvae")
    assert f"got CD-VAE {other[:12]}, expected CD-VAE {digest[:12]}" in message
    assert message.endswith("give that CD-VAE as well (cdvae=..., --cdvae ...)")
    # Among several it finds its own.
    cdvaes = {
        each: load(stored / name) for each, name in ((digest, "cdvae"), (other, "other-cdvae"))
    }
    assert defense_of(checkpoint_at(stored / "class_redundant"), cdvaes).cdvae is cdvaes[digest]


def test_a_classifier_of_the_essential_part_is_no_defence(stored):
    message = refusal(stored / "class_essential", cdvae=stored / "cdvae")
    assert "got a classifier trained on class_essential, expected one trained on images" in message
    assert message.endswith("train it by jobs/train_classifier.py --input class_redundant")


def test_a_cdvae_alone_is_no_defence(stored):
    message = refusal(stored / "cdvae")
    assert "got a cdvae-checkpoint, expected a defence: a classifier of x or G(x)" in message
    assert "train D_G by jobs/train_classifier.py --input class_redundant" in message
    assert message.endswith("or fine-tune it by jobs/finetune_adversarial.py")


def test_a_classifier_given_as_the_cdvae_is_refused(stored):
    message = refusal(stored / "class_redundant", cdvae=stored / "images")
    assert "got a classifier-checkpoint, expected a CD-VAE" in message


def test_a_place_without_a_checkpoint_is_refused(tmp_path):
    assert "got nothing there, expected a checkpoint folder" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("loader", [load, load_classifier])
@pytest.mark.parametrize("name", ["hgd", "ape-gan", "finetuned"])
def test_other_loaders_name_this_one(tmp_path, stored, loader, name):
    folder = stored / name if name == "finetuned" else tmp_path
    if name != "finetuned":
        store(folder, tiny_baseline_task(name))
    with pytest.raises(CheckpointError, match=r"load it by cdvae_ray.load_defense$"):
        loader(folder)


@pytest.mark.parametrize("name", ["hgd", "ape-gan", "finetuned"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path, stored, name):
    folder = stored / name if name == "finetuned" else tmp_path
    if name != "finetuned":
        store(folder, tiny_baseline_task(name))
    checkpoint = checkpoint_at(folder)
    tensors = checkpoint.tensors(MODEL_FILE)
    tensors.pop("classifier.network.linear.bias")
    with pytest.raises(CheckpointError, match=r"missing \['classifier.network.linear.bias'\]"):
        defense_of(checkpoint._replace(files={MODEL_FILE: save(tensors)}), {})


def test_digests_name_defences(tmp_path):
    tasks = {
        "hgd": tiny_baseline_task("hgd"),
        "wider": tiny_baseline_task("hgd", recipe={"width": 6}),
        "seed": tiny_baseline_task("hgd", seed=1),
        "classifier": tiny_baseline_task("hgd", classifier=tiny_classifier(seed=2)),
        "ape-gan": tiny_baseline_task("ape-gan"),
        "finetuned": tiny_finetune_task(),
    }
    for name, task in tasks.items():
        store(tmp_path / name, task)
    store(tmp_path / "again", tasks["hgd"])
    digests = {checkpoint_digest(tmp_path / name) for name in tasks}
    assert len(digests) == len(tasks)
    assert checkpoint_digest(tmp_path / "again") == checkpoint_digest(tmp_path / "hgd")


def test_errors_of_loading_are_the_projects_own(stored, tmp_path):
    store(tmp_path, tiny_baseline_task("hgd"))
    checkpoint = checkpoint_at(tmp_path)
    facts = {**checkpoint.facts, "classifier_model": {"depth": 10}}
    with pytest.raises(CdvaeError, match="classifier_model: got keys"):
        defense_of(checkpoint._replace(facts=facts), {})
