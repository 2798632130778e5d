"""Interrupted and resumed equals undisturbed; trouble stops training and keeps checkpoints."""

import math
from dataclasses import replace

import pyarrow.fs
import pytest
import torch

from cdvae_ray.config.data import AugmentationConfig, DataConfig
from cdvae_ray.core.metrics import Tally
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.load import load_splits
from cdvae_ray.errors import (
    CheckpointError,
    DataError,
    NonFiniteLossError,
    StorageError,
    TrainingError,
)
from cdvae_ray.storage.store import Store
from cdvae_ray.training.checkpoint import (
    checkpoint_names,
    load_model,
    newest_sound_checkpoint,
    read_checkpoint,
)
from cdvae_ray.training.run_folder import store_results, stored_results
from cdvae_ray.training.schedule import learning_rate
from cdvae_ray.training.state import TrainState, resolve_precision


class _KilledError(Exception):
    pass


def kill_after(name):
    def on_checkpoint(saved, report):
        if saved == name:
            raise _KilledError

    return on_checkpoint


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_resumed_equals_undisturbed_to_the_bit(tmp_path, make_run):
    whole = make_run(tmp_path / "whole").fit()
    with pytest.raises(_KilledError):
        make_run(tmp_path / "cut").fit(on_checkpoint=kill_after("epoch-0002"))
    torch.rand(100)  # whatever happens between the two processes
    again = make_run(tmp_path / "cut")
    done = again.resume()
    assert done == 2
    again.fit(epochs_done=done)
    assert_same_tensors(whole.state.model_tensors(), again.state.model_tensors())
    assert_same_tensors(whole.state.optimizer_tensors(), again.state.optimizer_tensors())
    assert whole.epochs[2].metrics["train_loss"] == again.epochs[0].metrics["train_loss"]


def test_a_checkpoint_every_n_epochs_and_after_the_last(tmp_path, make_run):
    run = make_run(tmp_path, epochs=5).fit(checkpoint_every=2)
    assert checkpoint_names(run.store) == ["epoch-0002", "epoch-0004", "epoch-0005"]
    assert [report.epoch for report in run.epochs] == [0, 1, 2, 3, 4]
    assert {report.images for report in run.epochs} == {64}  # 70 images in batches of 16


def test_training_learns_real_digits(tmp_path, make_run):
    digits = load_splits(DataConfig(source="digits", image_size=16, train_limit=512)).train
    run = make_run(tmp_path, epochs=4, learning_rate=5e-3)
    run.state = TrainState(
        replace(
            run.state.task,
            class_names=digits.class_names,
            augmentation=AugmentationConfig(),
        ),
        run.state.device,
    )
    run.source = InMemoryBatches(digits, global_batch_size=16, seed=0, rank=0, world_size=1)
    run.fit(checkpoint_every=4)
    first, last = run.epochs[0].metrics, run.epochs[-1].metrics
    assert last["train_accuracy"] > 0.7 > first["train_accuracy"]
    assert last["train_reconstruction"] < 0.8 * first["train_reconstruction"]


def test_a_checkpoint_loads_as_the_trained_model(tmp_path, make_run):
    run = make_run(tmp_path).fit(checkpoint_every=3)
    loaded = load_model(run.store, "epoch-0003")
    assert not loaded.training
    assert loaded.class_names == ("a", "b", "c")
    images = torch.rand(4, 3, 16, 16)
    run.state.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, run.state.model(images).logits)


def damage(folder, name, file, change):
    path = folder / name / file
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "manifest.json"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:-90] + bytes([content[-90] ^ 1]) + content[-89:],
    ],
    ids=["truncated", "empty", "one bit"],
)
def test_damage_is_named_and_the_previous_checkpoint_is_used(
    tmp_path, make_run, file, change, caplog
):
    run = make_run(tmp_path).fit()
    damage(tmp_path, "epoch-0003", file, change)
    with pytest.raises(CheckpointError, match=r"epoch-0003.*: got .*, expected .*; "):
        read_checkpoint(run.store, "epoch-0003")
    again, told = make_run(tmp_path), []
    assert again.resume(on_damaged=told.append) == 2
    assert "epoch-0003" in caplog.text
    assert [type(error) for error in told] == [CheckpointError]
    again.fit(epochs_done=2)
    assert newest_sound_checkpoint(again.store).name == "epoch-0003"


def test_a_missing_checkpoint_is_named(tmp_path, make_run):
    with pytest.raises(CheckpointError, match=r"epoch-0009.*no manifest.json"):
        load_model(make_run(tmp_path).store, "epoch-0009")


def test_when_nothing_is_sound_resuming_says_so(tmp_path, make_run):
    make_run(tmp_path, epochs=1).fit()
    damage(tmp_path, "epoch-0001", "model.safetensors", lambda content: b"")
    with pytest.raises(CheckpointError, match="all of them damaged"):
        make_run(tmp_path, epochs=1).resume()


def test_a_checkpoint_of_another_config_is_refused(tmp_path, make_run):
    make_run(tmp_path, epochs=1).fit()
    with pytest.raises(CheckpointError, match="config digest dddddddddddd, expected eeee"):
        make_run(tmp_path, digest="e" * 64, epochs=1).resume()


def test_a_checkpoint_whose_writing_was_cut_does_not_count(make_run, tmp_path):
    # In object storage, which has no renaming, files without their manifest are left.
    filesystem = pyarrow.fs._MockFileSystem()
    filesystem.create_dir("bucket")
    run, again = make_run(tmp_path, epochs=1), make_run(tmp_path, epochs=1)
    run.store = again.store = Store(filesystem, "bucket/run", "mock://bucket/run")
    run.store.child("epoch-0001").write("model.safetensors", b"the first bytes")
    assert checkpoint_names(run.store) == []
    assert run.resume() == 0
    run.fit()
    assert again.resume() == 1


def test_results_whose_writing_was_cut_do_not_count(tmp_path):
    filesystem = pyarrow.fs._MockFileSystem()
    filesystem.create_dir("bucket")
    run = Store(filesystem, "bucket/run", "mock://bucket/run")
    run.child(f"results-{'d' * 12}").write("results.json", b"{")
    assert stored_results(run, "d" * 64) is None
    values = {"metrics": {"accuracy": 0.5}}
    store_results(run, "d" * 64, identity={}, values=values, picture=None)
    assert stored_results(run, "d" * 64) == values


def test_a_folder_without_checkpoints_starts_at_zero(tmp_path, make_run):
    assert make_run(tmp_path / "nothing").resume() == 0


def test_a_non_finite_loss_stops_training_and_keeps_the_last_checkpoint(tmp_path, make_run):
    run = make_run(tmp_path, epochs=3)

    def poison(name, report):
        if name == "epoch-0001":
            with torch.no_grad():
                run.state.model.classifier.linear.weight.fill_(math.nan)

    with pytest.raises(NonFiniteLossError, match="loss at epoch 1, step 0: got NaN"):
        run.fit(on_checkpoint=poison)
    assert checkpoint_names(run.store) == ["epoch-0001"]
    assert make_run(tmp_path).resume() == 1


def test_weights_that_the_last_step_spoils_are_not_checkpointed(tmp_path, make_run):
    run = make_run(tmp_path, epochs=2)
    weight = run.state.model.classifier.linear.weight
    steps = 0

    def spoil(gradient):
        nonlocal steps
        steps += 1
        return gradient * (math.nan if steps == 2 * run.source.batches_per_epoch else 1.0)

    weight.register_hook(spoil)
    with pytest.raises(
        NonFiniteLossError, match=r"classifier\.linear\.weight after epoch 1: got NaN"
    ):
        run.fit()
    assert checkpoint_names(run.store) == ["epoch-0001"]


def test_what_is_not_finite_is_named(make_run, tmp_path):
    state = make_run(tmp_path, epochs=1).fit().state
    assert state.non_finite() is None
    state.model.classifier.bn1.running_var[0] = math.inf
    assert state.non_finite() == "classifier.bn1.running_var"
    state.model.classifier.bn1.running_var[0] = 1.0
    moments = state.optimizer.state[state.model.classifier.linear.bias]
    moments["exp_avg"][0] = math.nan
    assert state.non_finite() == "classifier.linear.bias/exp_avg"


def test_a_storage_that_cannot_be_written_stops_training_with_one_line(tmp_path, make_run):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"epoch-0001: got .*; check the path"):
        make_run(tmp_path / "file").fit()


def losing(source, count, *, allowed):
    """The source, of which `count` images of an epoch do not decode, met one a batch."""
    whole = source.epoch_batches

    def epoch_batches(epoch):
        source.corrupt_images = 0
        for number, batch in enumerate(whole(epoch)):
            source.corrupt_images += number < count
            yield batch

    source.epoch_batches, source.max_corrupt_images = epoch_batches, allowed


def test_undecodable_images_are_counted_epoch_by_epoch(tmp_path, make_run):
    run = make_run(tmp_path)
    losing(run.source, 3, allowed=3)
    run.fit()
    assert [report.metrics["train_corrupt_images"] for report in run.epochs] == [3.0] * 3
    plain = make_run(tmp_path / "plain").fit()
    assert "train_corrupt_images" not in plain.epochs[0].metrics


def test_more_undecodable_images_than_allowed_stop_training(tmp_path, make_run):
    run = make_run(tmp_path)
    losing(run.source, 3, allowed=2)
    with pytest.raises(DataError, match=r"epoch 0: got 3 that do not decode, expected at most 2"):
        run.fit()
    assert not run.epochs


def test_a_source_that_loses_batches_is_noticed(tmp_path, make_run):
    run = make_run(tmp_path)
    whole = run.source.epoch_batches
    run.source.epoch_batches = lambda epoch: list(whole(epoch))[:-1]
    with pytest.raises(TrainingError, match="got 3 batches, expected 4"):
        run.fit()


def test_gradient_clipping_bounds_the_step(make_run, tmp_path):
    run = make_run(tmp_path, max_gradient_norm=1e-3)
    batch = next(iter(run.source.epoch_batches(0)))
    run.state.train_step(batch, epoch=0, index=0)
    gradients = [p.grad.norm() for p in run.state.model.parameters() if p.grad is not None]
    assert torch.stack(gradients).norm() <= 1e-3 * 1.001


def test_the_cosine_reaches_its_bottom_and_rises_again(make_run, tmp_path):
    config = make_run(
        tmp_path,
        schedule="cosine",
        learning_rate=1e-3,
        minimum_learning_rate=2e-4,
        cosine_period_epochs=50,
    ).state.task.training
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=2e-4)
    for epoch in range(120):
        assert learning_rate(config, epoch) == pytest.approx(reference.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        reference.step()


def test_bfloat16_is_refused_where_the_device_lacks_it(make_run, tmp_path):
    with pytest.raises(Exception, match="bfloat16 on cpu, expected a GPU"):
        make_run(tmp_path, precision="bfloat16")
    config = make_run(tmp_path).state.task.training
    assert resolve_precision(config, torch.device("cpu")) == "float32"


def test_the_model_compiles_to_the_same_step(make_run, tmp_path):
    plain, compiled = make_run(tmp_path), make_run(tmp_path, compile=True)
    batch = next(iter(plain.source.epoch_batches(0)))
    for run in (plain, compiled):
        run.state.model.classifier.eval()  # dropout draws differ between the two
    expected = plain.state.train_step(batch, epoch=0, index=0)
    sums = compiled.state.train_step(batch, epoch=0, index=0)
    torch.testing.assert_close(sums["loss"], expected["loss"], rtol=1e-4, atol=1e-4)
    assert compiled.state.model_tensors().keys() == plain.state.model_tensors().keys()


def test_tally_names_are_those_of_a_step(make_run, tmp_path):
    run = make_run(tmp_path)
    batch = next(iter(run.source.epoch_batches(0)))
    tally = Tally()
    tally.add(run.state.train_step(batch, epoch=0, index=0), 16)
    assert set(tally.sums()) == {"loss", "reconstruction", "kl", "classification", "correct"}
