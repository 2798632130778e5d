"""What the model of scaling is fed with, and what it must predict, measured on two cores.

python benchmarks/scale_points.py [--rounds N] [--steps N] [--batch N]

Two processes of one thread each run every case in turn, round after round; medians over rounds:

- one worker alone, at the whole batch and at half of it, with its own batch normalisation and with
  the synchronised layers in a group of one;
- two that train side by side and do not talk: what sharing the machine costs;
- two that train together by gloo: at twice the batch (weak scaling) and at the same (strong);
- an all-reduce of several sizes, the attack of one process and of two, a call to MLflow.

The model is the CD-VAE of the preset cifar10-small on made-up images; the loop is `train_epoch`.
Run it on a machine that does nothing else. It takes about four minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from record import spread, write_record
from scale_model import FEWEST_ROUNDS, TOLERANCE, predicted_points
from torch.multiprocessing.spawn import spawn

from cdvae_ray.config.presets import preset
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.core.attacks.pgd import pgd
from cdvae_ray.core.sync_batch_norm import synchronize_batch_norm
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.runtime.cluster import CPU_WORKER_ENVIRONMENT
from cdvae_ray.tracking import open_writer
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.epoch import train_epoch
from cdvae_ray.training.state import TrainState

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
WARM_UP_STEPS = 2
REDUCED_FLOATS = (1, 256, 16_384, 262_144, 1_048_576, 4_194_304)
REDUCE_REPEATS = 20
ATTACK_IMAGES, ATTACK_STEPS = 64, 5
METRICS = {f"metric_{number}": float(number) for number in range(12)}
TRACKING_CALLS = 100


class Barrier(Protocol):
    """Where two processes wait for each other."""

    def wait(self) -> int:
        """Until both are there."""


class Case(NamedTuple):
    """A training to time."""

    name: tuple[str, ...]
    """Its place in the record."""
    processes: int
    """That run at once."""
    group: int
    """Workers that train together; 0: without torch.distributed."""
    share: float
    """Of the batch, for each worker."""
    is_synchronised: bool = False


CASES = (
    # What is compared stands side by side, so that both see the same machine.
    Case(("one_worker", "own", "whole_batch"), 1, 0, 1.0),
    Case(("apart",), 2, 0, 1.0),
    Case(("two_workers", "own", "weak"), 2, 2, 1.0),
    Case(("one_worker", "own", "half_batch"), 1, 0, 0.5),
    Case(("two_workers", "own", "strong"), 2, 2, 0.5),
    Case(("one_worker", "synchronised", "whole_batch"), 1, 1, 1.0, True),
    Case(("two_workers", "synchronised", "weak"), 2, 2, 1.0, True),
    Case(("one_worker", "synchronised", "half_batch"), 1, 1, 0.5, True),
    Case(("two_workers", "synchronised", "strong"), 2, 2, 0.5, True),
)


def main() -> None:
    """Measures everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS)
    parser.add_argument("--steps", type=int, default=6, help="of a timed epoch")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    started = time.perf_counter()
    # glibc reads it as a process starts: what the trainer's workers set for themselves.
    os.environ |= CPU_WORKER_ENVIRONMENT
    results: dict[str, Any] = {
        "what": "train_epoch of cifar10-small's CD-VAE in one and in two processes of one thread; "
        "whole_batch is that of one worker, weak twice it over two, strong the same over two",
        "batch": arguments.batch,
        "steps": arguments.steps,
        "rounds": arguments.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        barrier = multiprocessing.get_context("spawn").Barrier(2)
        plan = (arguments.rounds, arguments.steps, arguments.batch)
        spawn(run, args=(barrier, folder, *plan), nprocs=2)  # type: ignore[no-untyped-call]
        results |= json.loads((Path(folder) / "0.json").read_text())
        results["tracking_seconds"] = tracking_seconds(Path(folder))
    results["tolerance"] = TOLERANCE
    points = predicted_points(results)
    results["points"] = {point.name: {**point._asdict(), "error": point.error} for point in points}
    for point in points:
        print(
            f"{point.name}: measured {point.measured:.4g} {point.unit}, "
            f"predicted {point.predicted:.4g} ({point.error:+.1%})"
        )
    print(f"tolerance stated beforehand: {TOLERANCE:.0%}")
    path = write_record("scale-points", results)
    print(f"record: {path.relative_to(ROOT)}, after {time.perf_counter() - started:.0f} s")


def run(rank: int, barrier: Barrier, folder: str, rounds: int, steps: int, batch: int) -> None:
    """Runs in each of two processes: every case, in rounds. The first writes what came."""
    torch.set_num_threads(1)
    seconds: dict[tuple[str, ...], list[float]] = {case.name: [] for case in CASES}
    epochs: dict[tuple[str, ...], list[float]] = {case.name: [] for case in CASES}
    slowdowns: list[float] = []
    rates: dict[str, list[float]] = {"one_process": [], "two_processes": []}
    # What a process does for the first time is no part of the first case.
    time_case(rank, barrier, Path(folder) / "warm-up", CASES[0]._replace(processes=2), steps, batch)
    for number in range(rounds):
        for case in CASES:
            place = Path(folder) / f"group-{number}-{'-'.join(case.name)}"
            epoch = time_case(rank, barrier, place, case, steps, batch)
            epochs[case.name].append(epoch)
            seconds[case.name].append(epoch / steps)
        if rank == 0:
            alone = seconds["one_worker", "own", "whole_batch"][-1]
            slowdowns.append(seconds["apart",][-1] / alone)
        for name, processes in (("one_process", 1), ("two_processes", 2)):
            rates[name].append(time_attack(rank, barrier, Path(folder), processes))
        if rank == 0:
            print(f"round {number + 1} of {rounds} done", flush=True)
    reduced = time_all_reduce(rank, barrier, Path(folder) / "group-reduce")
    barrier.wait()
    if rank:
        return
    state = TrainState(task(batch, is_synchronised=False), CPU)
    results: dict[str, Any] = {
        "parameters": sum(each.numel() for each in state.model.parameters()),
        # The layers of core/sync_batch_norm.py: once forward, once backward.
        "sync_calls": 2 * count_batch_norms(state.model),
        "contention": spread(slowdowns),
        "all_reduce": reduced,
        "attack_images_per_second": {name: spread(values) for name, values in rates.items()},
    }
    for keys, timed in seconds.items():
        inner = results
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = {
            "step_seconds": spread(timed),
            "epoch_seconds": spread(epochs[keys]),
        }
    (Path(folder) / "0.json").write_text(json.dumps(results))


# --- training -----------------------------------------------------------------------------------


def task(global_batch: int, *, is_synchronised: bool) -> CdvaeTask:
    """The preset's training on CIFAR-sized images."""
    config = preset("cifar10-small")
    return CdvaeTask(
        model=config.model,
        objective=config.objective,
        training=replace(
            config.training, global_batch_size=global_batch, sync_batch_norm=is_synchronised
        ),
        augmentation=config.augmentation,
        image_size=32,
        class_names=tuple("abcdefghij"),
    )


def made_up_images(count: int) -> ImageSet:
    """Noise with ten classes: speed does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).to(torch.uint8)
    return ImageSet.build(pixels, torch.arange(count) % 10, tuple("abcdefghij"), "noise/train")


def count_batch_norms(model: torch.nn.Module) -> int:
    """Layers that two workers synchronise."""
    return sum(isinstance(each, torch.nn.BatchNorm2d) for each in model.modules())


@contextmanager
def group(place: Path, rank: int, workers: int) -> Iterator[None]:
    """A gloo group of workers that meet at a file; none where there are none."""
    if workers == 0:
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=workers)
    try:
        yield
        # Gloo aborts now and then where one rank takes the group down under the other's feet.
        dist.barrier()
    finally:
        dist.destroy_process_group()


def time_case(
    rank: int, barrier: Barrier, place: Path, case: Case, steps: int, batch: int
) -> float:
    """Seconds of this rank's epoch; 0 on an idle rank."""
    barrier.wait()
    epoch = 0.0
    if rank < case.processes:
        workers = max(case.group, 1)
        global_batch = int(case.share * batch) * workers
        with group(place, rank, case.group):
            state = TrainState(task(global_batch, is_synchronised=case.is_synchronised), CPU)
            if case.is_synchronised and case.group == 1:
                # A lone worker has no need of these layers; here their own cost is wanted.
                synchronize_batch_norm(state.model, CPU)
            for count in (WARM_UP_STEPS, steps):
                source = InMemoryBatches(
                    made_up_images(count * global_batch),
                    global_batch_size=global_batch,
                    seed=0,
                    rank=rank if case.group > 1 else 0,
                    world_size=workers,
                )
                if case.processes == 2:
                    barrier.wait()
                report = train_epoch(state, source, 0, on_progress=lambda progress: None)
                epoch = report.seconds
    barrier.wait()
    return epoch


# --- the rest -----------------------------------------------------------------------------------


def time_all_reduce(rank: int, barrier: Barrier, place: Path) -> dict[str, Any]:
    """Median seconds by size, and what they come to: latency, and bytes/s at the largest."""
    barrier.wait()
    medians: dict[int, float] = {}
    with group(place, rank, 2):
        for floats in REDUCED_FLOATS:
            values, seen = torch.ones(floats), []
            for _ in range(REDUCE_REPEATS):
                dist.barrier()
                started = time.perf_counter()
                dist.all_reduce(values)
                seen.append(time.perf_counter() - started)
                values.fill_(1.0)
            medians[4 * floats] = statistics.median(seen)
    largest, latency = max(medians), medians[min(medians)]
    return {
        "seconds_by_bytes": {str(size): each for size, each in medians.items()},
        "latency_seconds": latency,
        "bytes_per_second": largest / (medians[largest] - latency),
    }


def time_attack(rank: int, barrier: Barrier, folder: Path, processes: int) -> float:
    """Images/s of PGD on D(R(x)), over all processes, each with images of its own."""
    barrier.wait()
    mine = folder / f"attack-{rank}"
    if rank < processes:
        model = TrainState(task(ATTACK_IMAGES, is_synchronised=False), CPU).model.eval()
        source = made_up_images(ATTACK_IMAGES)
        images = source.images.float().div(255).to(memory_format=torch.channels_last)
        if processes == 2:
            barrier.wait()
        started = time.perf_counter()
        pgd(
            model.classify_essential,  # type: ignore[arg-type]
            images,
            source.labels,
            epsilon=8 / 255,
            num_steps=ATTACK_STEPS,
            keep="last",
        )
        mine.write_text(str(time.perf_counter() - started))
    barrier.wait()
    slowest = max(float((folder / f"attack-{each}").read_text()) for each in range(processes))
    return processes * ATTACK_IMAGES / slowest


def tracking_seconds(folder: Path) -> float:
    """Seconds of a call that logs an epoch's metrics, on a database beside the run."""
    writer = open_writer(
        TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
        embedded_root=folder,
        run_name="points",
    )
    writer.run_id(timeout_seconds=120)
    started = time.perf_counter()
    for step in range(TRACKING_CALLS):
        writer.log_metrics(METRICS, step)
    writer.close("FINISHED")
    return (time.perf_counter() - started) / TRACKING_CALLS


if __name__ == "__main__":
    main()
