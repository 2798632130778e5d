"""Training of a CD-VAE with a VQ-VAE: its loss falls, and the use of its codes is counted."""

import json

import pytest
import torch
from torch.distributions import Categorical

from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.checkpoint import load_model
from cdvae_ray.training.epoch import train_epoch
from cdvae_ray.training.state import TrainState

from .conftest import CPU, KilledError, assert_same_tensors, kill_after, tiny_images
from .test_two_workers import finish, spawn, start

CODES = 16


def vq_task(**training):
    """On 16 x 16 images: 16 codes an image, of 16."""
    return CdvaeTask(
        model=ModelConfig(
            generator="vq_vae",
            vae_width=4,
            codebook_size=CODES,
            commitment=0.5,
            classifier_depth=10,
            classifier_widen_factor=1,
            classifier_dropout=0.0,
        ),
        objective=ObjectiveConfig(),
        training=TrainingConfig(**({"epochs": 3, "global_batch_size": 16} | training)),
        augmentation=AugmentationConfig(),
        image_size=16,
        class_names=("a", "b", "c"),
    )


def seen_codes(state):
    """A list that is given all codes which training looks up from now on."""
    codes = []
    state.model.generator.emb.register_forward_hook(
        lambda module, inputs, output: codes.append(output.codes.flatten())
    )
    return codes


def use_of(codes):
    """Perplexity and number of codes, by hand."""
    counts = torch.tensor([sum(code == each for each in codes) for code in range(CODES)]).float()
    return Categorical(probs=counts).entropy().exp().item(), int((counts > 0).sum())


def reported(metrics):
    return metrics["train_codebook_perplexity"], metrics["train_codes_used"]


def test_training_lowers_the_loss(tmp_path, make_run):
    run = make_run(tmp_path, task=vq_task(epochs=8, learning_rate=5e-3))
    run.source = InMemoryBatches(
        tiny_images(32), global_batch_size=16, seed=0, rank=0, world_size=1
    )
    run.fit(checkpoint_every=8)
    first, last = run.epochs[0].metrics, run.epochs[-1].metrics
    assert last["train_loss"] < 0.9 * first["train_loss"]
    assert last["train_codebook"] < first["train_codebook"]
    assert "train_kl" not in last


def test_an_epoch_counts_its_own_codes(tmp_path, make_run):
    run = make_run(tmp_path, task=vq_task(learning_rate=1e-2))
    codes = seen_codes(run.state)
    run.fit()
    # 4 batches of 16 images in each of 3 epochs, 16 places an image.
    assert [len(batch) for batch in codes] == [256] * 12
    for epoch, report in enumerate(run.epochs):
        mine = torch.cat(codes[4 * epoch : 4 * epoch + 4]).tolist()
        assert reported(report.metrics) == pytest.approx(use_of(mine), rel=1e-5)
        assert 1 < report.metrics["train_codebook_perplexity"] <= CODES
    assert reported(run.epochs[0].metrics) != reported(run.epochs[1].metrics)


def test_resumed_equals_undisturbed_to_the_bit(tmp_path, make_run):
    whole = make_run(tmp_path / "whole", task=vq_task()).fit()
    with pytest.raises(KilledError):
        make_run(tmp_path / "cut", task=vq_task()).fit(on_checkpoint=kill_after("epoch-0002"))
    torch.rand(100)  # whatever happens between the two processes
    again = make_run(tmp_path / "cut", task=vq_task())
    again.fit(epochs_done=again.resume())
    assert_same_tensors(whole.state.model_tensors(), again.state.model_tensors())
    assert_same_tensors(whole.state.optimizer_tensors(), again.state.optimizer_tensors())
    assert [report.epoch for report in again.epochs] == [2]
    for name in ("train_loss", "train_codebook_perplexity", "train_codes_used"):
        assert whole.epochs[2].metrics[name] == again.epochs[0].metrics[name]
    loaded = load_model(again.store, "epoch-0003")
    assert loaded.config == whole.state.task.model
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        expected = whole.state.model.eval()(images)
        found = loaded(images)
    assert torch.equal(found.latent.codes, expected.latent.codes)
    torch.testing.assert_close(found.logits, expected.logits)


def uses_of_epochs(rank, world_size):
    """What two epochs report, beside all codes that this rank saw."""
    state = TrainState(vq_task(epochs=2), CPU)
    codes = seen_codes(state)
    source = InMemoryBatches(
        tiny_images(32), global_batch_size=16, seed=0, rank=rank, world_size=world_size
    )
    uses = []
    for epoch in range(2):
        report = train_epoch(state, source, epoch, on_progress=lambda progress: None)
        uses.append(
            {
                "reported": reported(report.metrics),
                "loss": report.metrics["train_codebook"],
                "codes": torch.cat(codes).tolist(),
            }
        )
        codes.clear()
    return uses


def count_codes(rank, world_size, port, folder):
    start(rank, world_size, port)
    uses = uses_of_epochs(rank, world_size)
    with open(f"{folder}/{world_size}-{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(uses, file)
    finish()


@pytest.mark.timeout(240)
def test_two_workers_report_the_codes_of_both(tmp_path):
    one = uses_of_epochs(0, 1)
    two = spawn(count_codes, 2, tmp_path)
    for alone, first, second in zip(one, *two, strict=True):
        assert len(first["codes"]) == len(second["codes"]) == 16 * 16
        both = use_of(first["codes"] + second["codes"])
        assert first["reported"] == second["reported"] == pytest.approx(both, rel=1e-5)
        # A code that hangs in the balance may turn with the last bits of a sum.
        assert both[0] == pytest.approx(alone["reported"][0], rel=1e-2)
        assert first["loss"] == pytest.approx(alone["loss"], rel=1e-2)
    # One rank's own codes are used otherwise.
    assert use_of(two[0][0]["codes"])[0] != pytest.approx(two[0][0]["reported"][0], rel=1e-5)
