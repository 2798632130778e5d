"""Two gloo workers compute what one computes, and stop together."""

import json
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cdvae_ray.config.classifier_job import ClassifierEvaluationConfig
from cdvae_ray.core.sync_batch_norm import CrossRankBatchNorm2d
from cdvae_ray.data.batches import InMemoryBatches, evaluation_batches
from cdvae_ray.errors import CdvaeError, NonFiniteLossError, StorageError, TrainingError
from cdvae_ray.evaluation.after_training import evaluate_classifier_task
from cdvae_ray.evaluation.decomposition import clean_sums, evaluate_clean
from cdvae_ray.storage.store import Store
from cdvae_ray.training.distributed import all_reduce_sum, raise_together
from cdvae_ray.training.epoch import train_epoch
from cdvae_ray.training.fit import fit
from cdvae_ray.training.state import TrainState

from .conftest import CPU, tiny_cdvae, tiny_classifier_task, tiny_images, tiny_task


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(rank, world_size, port):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )


def finish():
    # Gloo aborts now and then where one rank takes the group down under the other's feet.
    dist.barrier()
    dist.destroy_process_group()


def spawn(function, world_size, folder):
    mp.spawn(function, args=(world_size, free_port(), str(folder)), nprocs=world_size)
    return [
        json.loads((folder / f"{world_size}-{rank}.json").read_text()) for rank in range(world_size)
    ]


def compute_in_float64():
    """So that rounding stays small: Adam makes whole steps of gradients that are nothing else."""
    torch.set_default_dtype(torch.float64)


def train_and_evaluate(rank, world_size, port, folder):
    start(rank, world_size, port)
    compute_in_float64()
    # Dropout draws from each rank's own generator; everything else is keyed by image id.
    task = tiny_task(epochs=2, max_gradient_norm=5.0)
    object.__setattr__(task.model, "classifier_dropout", 0.0)
    state = TrainState(task, CPU)
    source = InMemoryBatches(
        tiny_images(), global_batch_size=16, seed=0, rank=rank, world_size=world_size
    )
    losses = []
    for epoch in range(2):
        report = train_epoch(state, source, epoch, on_progress=lambda progress: None)
        losses.append({key: report.metrics[key] for key in ("train_loss", "train_accuracy")})
        assert report.images == 64
    state.model.eval()
    tally = evaluate_clean(
        state.model,
        evaluation_batches(tiny_images(71), batch_size=10, rank=rank, world_size=world_size),
        CPU,
    )
    tally.reduce(all_reduce_sum, clean_sums(state.model))
    weights = {name: tensor.double().sum().item() for name, tensor in state.model_tensors().items()}
    content = {
        "losses": losses,
        "count": tally.count,
        "evaluation": tally.means(),
        "weights": weights,
    }
    with open(f"{folder}/{world_size}-{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(content, file)
    finish()


@pytest.mark.timeout(240)
def test_two_workers_train_like_one_at_the_same_global_batch(tmp_path):
    (one,) = spawn(train_and_evaluate, 1, tmp_path)
    first, second = spawn(train_and_evaluate, 2, tmp_path)
    assert first == second
    assert one["count"] == first["count"] == 71
    for epoch in range(2):
        for key in ("train_loss", "train_accuracy"):
            assert first["losses"][epoch][key] == pytest.approx(one["losses"][epoch][key], rel=1e-6)
    assert first["evaluation"] == pytest.approx(one["evaluation"], rel=1e-6)
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-6, abs=1e-6)


def train_classifier(rank, world_size, port, folder):
    start(rank, world_size, port)
    compute_in_float64()
    # A CD-VAE that samples, so that its noise too must be keyed by image and not by rank.
    cdvae = tiny_cdvae(evaluation_latent="sample")
    task = tiny_classifier_task(
        "class_essential", dropout=0.0, cdvae=cdvae, epochs=2, recalibration_steps=2
    )
    state = TrainState(task, CPU)
    source = InMemoryBatches(
        tiny_images(), global_batch_size=16, seed=0, rank=rank, world_size=world_size
    )
    reports = [
        train_epoch(state, source, epoch, on_progress=lambda progress: None) for epoch in range(2)
    ]
    config = ClassifierEvaluationConfig(batch_size=10)
    numbers = evaluate_classifier_task(state, tiny_images(71), config)
    content = {
        "losses": [report.metrics["train_loss"] for report in reports],
        "evaluation": numbers.metrics,
        "count": numbers.test_images,
    }
    with open(f"{folder}/{world_size}-{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(content, file)
    finish()


@pytest.mark.timeout(240)
def test_two_workers_train_a_classifier_like_one(tmp_path):
    (one,) = spawn(train_classifier, 1, tmp_path)
    first, second = spawn(train_classifier, 2, tmp_path)
    assert first == second
    assert one["count"] == first["count"] == 71
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert first["evaluation"] == one["evaluation"]


def train_without_synchronised_statistics(rank, world_size, port, folder):
    start(rank, world_size, port)
    state = TrainState(tiny_task(epochs=1, sync_batch_norm=False, recalibration_steps=2), CPU)
    source = InMemoryBatches(
        tiny_images(), global_batch_size=16, seed=0, rank=rank, world_size=world_size
    )
    train_epoch(state, source, 0, on_progress=lambda progress: None)
    tensors = state.model_tensors()
    content = {
        name: tensors[name].double().flatten().tolist()
        for name in ("classifier.bn1.running_mean", "classifier.linear.weight")
    }
    with open(f"{folder}/{world_size}-{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(content, file)
    finish()


@pytest.mark.timeout(240)
def test_ranks_with_statistics_of_their_own_end_an_epoch_with_those_of_the_checkpoint(tmp_path):
    first, second = spawn(train_without_synchronised_statistics, 2, tmp_path)
    assert first == second


def stop_together(rank, world_size, port, folder):
    start(rank, world_size, port)
    seen = {}
    # A loss that is NaN on one rank alone stops both.
    state = TrainState(tiny_task(epochs=1), CPU)
    source = InMemoryBatches(
        tiny_images(), global_batch_size=16, seed=0, rank=rank, world_size=world_size
    )
    step = state.train_step

    def poisoned(batch, **where):
        sums = step(batch, **where)
        if rank == 1 and where["index"] == 2:
            sums["loss"] = sums["loss"] * torch.nan
        return sums

    state.train_step = poisoned
    try:
        train_epoch(state, source, 0, on_progress=lambda progress: None)
    except NonFiniteLossError as error:
        seen["non_finite"] = str(error)
    # A storage that only rank 0 writes to stops both.
    for overlap in (False, True):
        state = TrainState(tiny_task(epochs=3), CPU)
        try:
            fit(
                state,
                source,
                Store.at(f"{folder}/file"),
                epochs_done=0,
                checkpoint_every=1,
                overlap_checkpoints=overlap,
                config_digest="d",
                identity={},
                on_epoch=lambda report: None,
                on_progress=lambda progress: None,
                on_checkpoint=lambda name, report: None,
            )
        except CdvaeError as error:
            seen[f"storage, overlap {overlap}"] = type(error).__name__
    raise_together(None, CPU, doing="nothing")
    with open(f"{folder}/{world_size}-{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(seen, file)
    finish()


@pytest.mark.timeout(240)
def test_trouble_on_one_rank_stops_all(tmp_path):
    (tmp_path / "file").write_text("in the way")
    first, second = spawn(stop_together, 2, tmp_path)
    assert "epoch 0, step 2" in first["non_finite"]
    assert first["non_finite"] == second["non_finite"]
    for overlap in (False, True):
        assert first[f"storage, overlap {overlap}"] == StorageError.__name__
        assert second[f"storage, overlap {overlap}"] == TrainingError.__name__


def batch_norm(layout, rank, world_size, port, folder):
    start(rank, world_size, port)
    torch.manual_seed(0)
    images = 5 + 3 * torch.randn(8, 6, 3, 3, dtype=torch.float64)
    layer = torch.nn.BatchNorm2d(6).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    if world_size > 1:
        layer.__class__ = CrossRankBatchNorm2d
    share = 8 // world_size
    mine = images[rank * share : (rank + 1) * share].clone(memory_format=layout).requires_grad_()
    output = layer(mine)
    # Each rank's loss is a sum over its own images, so that the ranks' gradients add up.
    (output.square() * torch.arange(1, 7).view(1, 6, 1, 1)).sum().backward()
    weight_gradient = all_reduce_sum(layer.weight.grad.clone())
    bias_gradient = all_reduce_sum(layer.bias.grad.clone())
    content = {
        "output": output.detach().tolist(),
        "input_gradient": mine.grad.tolist(),
        "weight_gradient": weight_gradient.tolist(),
        "bias_gradient": bias_gradient.tolist(),
        "mean": layer.running_mean.tolist(),
        "variance": layer.running_var.tolist(),
    }
    with open(f"{folder}/{world_size}-{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(content, file)
    finish()


def batch_norm_in_planes(*arguments):
    batch_norm(torch.contiguous_format, *arguments)


def batch_norm_in_pixels(*arguments):
    batch_norm(torch.channels_last, *arguments)


@pytest.mark.parametrize("layer", [batch_norm_in_planes, batch_norm_in_pixels])
def test_batch_norm_over_two_ranks_is_batch_norm_over_all_images(layer, tmp_path):
    (one,) = spawn(layer, 1, tmp_path)
    two = spawn(layer, 2, tmp_path)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    for key in ("output", "input_gradient"):
        both = torch.tensor(two[0][key] + two[1][key], dtype=torch.float64)
        torch.testing.assert_close(both, torch.tensor(one[key], dtype=torch.float64), **exact)
    for key in ("weight_gradient", "bias_gradient", "mean", "variance"):
        torch.testing.assert_close(
            torch.tensor(two[0][key], dtype=torch.float64),
            torch.tensor(one[key], dtype=torch.float64),
            **exact,
        )


def large_mean(rank, world_size, port, folder):
    """Small spread around a large mean, in float32, where E[x^2] - E[x]^2 is all rounding."""
    start(rank, world_size, port)
    torch.manual_seed(0)
    images = 1000 + 0.1 * torch.randn(64, 3, 8, 8)
    layer = torch.nn.BatchNorm2d(3)
    if world_size > 1:
        layer.__class__ = CrossRankBatchNorm2d
    share = 64 // world_size
    output = layer(images[rank * share : (rank + 1) * share])
    with open(f"{folder}/{world_size}-{rank}.json", "w") as file:  # noqa: PTH123
        json.dump({"std": output.std().item(), "mean": output.mean().item()}, file)
    finish()


def test_batch_norm_over_two_ranks_survives_a_large_mean(tmp_path):
    (one,) = spawn(large_mean, 1, tmp_path)
    for rank in spawn(large_mean, 2, tmp_path):
        assert rank["std"] == pytest.approx(one["std"], rel=0.02)
        assert rank["mean"] == pytest.approx(one["mean"], abs=0.02)
