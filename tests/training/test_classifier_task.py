"""The trainer trains classifiers as it trains CD-VAEs; their checkpoints are not mixed up."""

from dataclasses import replace

import pytest
import torch

from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.core.classifier import classifier_input
from cdvae_ray.core.objective import cross_entropy_per_image
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.load import load_splits
from cdvae_ray.errors import CheckpointError
from cdvae_ray.loading import checkpoint_digest, load, load_classifier
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import MODEL_FILE, model_files, read_checkpoint
from cdvae_ray.training.state import TrainState
from cdvae_ray.training.task import TrainBatch

from .conftest import CPU, tiny_cdvae, tiny_classifier_task


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def a_batch(mixup_weight=0.7):
    generator = torch.Generator().manual_seed(3)
    return TrainBatch(
        images=torch.rand(6, 3, 16, 16, generator=generator),
        labels=torch.tensor([0, 1, 2, 0, 1, 2]),
        partner_labels=torch.tensor([1, 0, 0, 2, 2, 1]),
        mixup_weight=mixup_weight,
        image_ids=torch.arange(6),
        epoch=0,
    )


@pytest.mark.parametrize("kind", ["images", "class_redundant", "class_essential"])
def test_the_loss_is_cross_entropy_on_the_classifiers_input(kind):
    task = tiny_classifier_task(kind)
    state = TrainState(task, CPU)
    state.model.eval()
    batch = a_batch()
    step = task.loss_on(CPU)(state.replica, batch)
    shown = classifier_input(batch.images, kind, task.frozen_cdvae(CPU))
    logits = state.model(shown)
    expected = cross_entropy_per_image(logits, batch.labels, batch.partner_labels, 0.7)
    torch.testing.assert_close(step.total, expected.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step.sums["loss"], expected.sum(), rtol=1e-4, atol=1e-5)
    assert int(step.sums["correct"]) == int((logits.argmax(1) == batch.labels).sum())
    assert tuple(step.sums) == task.metric_sums


def test_the_cdvae_stays_as_it_was(make_run, tmp_path):
    frozen = tiny_cdvae()
    before = {name: tensor.clone() for name, tensor in frozen.tensors.items()}
    task = tiny_classifier_task(cdvae=frozen, epochs=1)
    run = make_run(tmp_path, task=task)
    cdvae = run.state.batch_loss.args[1]
    run.fit()
    assert_same_tensors(before, {name: tensor.cpu() for name, tensor in cdvae.state_dict().items()})
    assert not cdvae.training
    assert all(parameter.grad is None for parameter in cdvae.parameters())
    assert all("generator" not in name for name in run.state.model_tensors())


@pytest.mark.parametrize("kind", ["images", "class_essential"])
def test_training_learns_real_digits(tmp_path, make_run, kind):
    digits = load_splits(DataConfig(source="digits", image_size=16, train_limit=512)).train
    cdvae = None if kind == "images" else tiny_cdvae(digits.class_names)
    task = replace(
        tiny_classifier_task(kind, epochs=3, learning_rate=5e-3, cdvae=cdvae),
        class_names=digits.class_names,
        augmentation=AugmentationConfig(),
    )
    run = make_run(tmp_path, task=task)
    run.source = InMemoryBatches(digits, global_batch_size=16, seed=0, rank=0, world_size=1)
    run.fit(checkpoint_every=3)
    first, last = run.epochs[0].metrics, run.epochs[-1].metrics
    assert last["train_accuracy"] > 0.8 > first["train_accuracy"]
    assert last["train_loss"] < 0.6 * first["train_loss"]
    assert set(last) == {
        "train_loss",
        "train_accuracy",
        "learning_rate",
        "epoch_seconds",
        "images_per_second",
    }


class _KilledError(Exception):
    pass


def kill_after(name):
    def on_checkpoint(saved, report):
        if saved == name:
            raise _KilledError

    return on_checkpoint


def test_resumed_equals_undisturbed_to_the_bit(tmp_path, make_run):
    task = tiny_classifier_task("class_essential")
    whole = make_run(tmp_path / "whole", task=task).fit()
    with pytest.raises(_KilledError):
        make_run(tmp_path / "cut", task=task).fit(on_checkpoint=kill_after("epoch-0001"))
    torch.rand(100)
    again = make_run(tmp_path / "cut", task=task)
    assert again.resume() == 1
    again.fit(epochs_done=1)
    assert_same_tensors(whole.state.model_tensors(), again.state.model_tensors())
    assert_same_tensors(whole.state.optimizer_tensors(), again.state.optimizer_tensors())


def test_a_checkpoint_loads_as_the_trained_classifier(tmp_path, make_run):
    run = make_run(tmp_path, task=tiny_classifier_task("class_essential", epochs=2)).fit()
    run.state.model.eval()
    inputs = torch.rand(4, 3, 16, 16) - 0.5
    for location in (tmp_path, tmp_path / "epoch-0002"):
        loaded = load_classifier(location)
        assert not loaded.training
        assert (loaded.input_kind, loaded.cdvae_digest) == ("class_essential", "c" * 64)
        assert (loaded.class_names, loaded.image_size) == (("a", "b", "c"), 16)
        with torch.no_grad():
            torch.testing.assert_close(loaded(inputs), run.state.model(inputs))


def test_a_classifier_of_images_names_no_cdvae(tmp_path, make_run):
    make_run(tmp_path, task=tiny_classifier_task("images", epochs=1)).fit()
    loaded = load_classifier(tmp_path)
    assert (loaded.input_kind, loaded.cdvae_digest) == ("images", None)


def test_a_checkpoint_of_the_other_kind_names_its_loader(tmp_path, make_run):
    make_run(tmp_path / "classifier", task=tiny_classifier_task(epochs=1)).fit()
    make_run(tmp_path / "cdvae", epochs=1).fit()
    for folder in ("classifier", "classifier/epoch-0001"):
        with pytest.raises(CheckpointError, match=r"a CD-VAE .*cdvae_ray.load_classifier$"):
            load(tmp_path / folder)
    for folder in ("cdvae", "cdvae/epoch-0001"):
        with pytest.raises(CheckpointError, match=r"expected a plain classifier .*cdvae_ray.load$"):
            load_classifier(tmp_path / folder)


def test_a_digest_names_weights_and_settings_and_no_place_or_time(tmp_path, make_run):
    def trained(folder, **task):
        settings = {"input_kind": "images", "epochs": 1} | task
        make_run(tmp_path / folder, task=tiny_classifier_task(**settings)).fit()
        return checkpoint_digest(tmp_path / folder)

    first = trained("first")
    assert trained("again") == first
    assert checkpoint_digest(tmp_path / "first" / "epoch-0001") == first
    run = Store.at(tmp_path / "first")
    files = model_files(run, read_checkpoint(run, "epoch-0001", only=(MODEL_FILE,)))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in files.items():
        (copy / name).write_bytes(content)
    assert sorted(files) == ["manifest.json", MODEL_FILE]
    assert checkpoint_digest(copy) == first
    make_run(tmp_path / "cdvae", epochs=1).fit()
    # The same weights with another normalisation would be another model.
    task = tiny_classifier_task("images", epochs=1)
    other = replace(task, model=replace(task.model, pixel_mean=(0.5, 0.5, 0.5)))
    state = TrainState(other, CPU)
    state.load_tensors(
        read_checkpoint(run, "epoch-0001").tensors(MODEL_FILE),
        read_checkpoint(run, "epoch-0001").tensors("optimizer.safetensors"),
    )
    from tests.stored_checkpoints import save_checkpoint

    save_checkpoint(
        Store.at(tmp_path / "other"),
        state,
        epochs_done=1,
        config_digest="d",
        identity={},
        metrics={},
    )
    digests = {first, checkpoint_digest(tmp_path / "other"), checkpoint_digest(tmp_path / "cdvae")}
    assert len(digests | {trained("seed", seed=1)}) == 4


def test_resuming_reads_each_file_once(tmp_path, make_run, monkeypatch):
    make_run(tmp_path, epochs=2).fit()
    reads = []
    whole = Store.read

    def counted(self, name):
        reads.append(f"{self.root.rpartition('/')[2]}/{name}")
        return whole(self, name)

    monkeypatch.setattr(Store, "read", counted)
    assert make_run(tmp_path, epochs=2).resume() == 2
    weights = [name for name in reads if name.endswith(".safetensors")]
    assert sorted(weights) == ["epoch-0002/model.safetensors", "epoch-0002/optimizer.safetensors"]
