"""Training speed: our step against a plain one, and Ray Train with tracking against a bare loop.

python benchmarks/train.py [--rounds N] [--threads N] [--only PART ...]

Every number is a ratio of measurements that were interleaved in this run; medians over rounds.
The model is that of the preset cifar10-small at batch 128.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from record import spread, write_record
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from turns import PATIENT_RAY, Runner, ending, take_turns

from cdvae_ray.config.presets import preset
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.objective import cdvae_loss
from cdvae_ray.data.batches import InMemoryBatches
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import load_splits
from cdvae_ray.runtime.cluster import CPU_WORKER_ENVIRONMENT
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.fit import fit
from cdvae_ray.training.state import TrainState

ROOT = Path(__file__).parents[1]
BATCH = 128
STEPS = 8
# An epoch of digits has 11 steps where one of CIFAR-10 has 391: a checkpoint every 110 steps is
# still more often than any preset for CIFAR-10 has one. The last ten epochs are measured.
EPOCHS, CHECKPOINT_EVERY = 20, 10
STEPS_AN_EPOCH = 1437 // BATCH
RUNS = "runs/train"
"""Where jobs/train.py stores its run, below the folder that it is started in."""
START_SECONDS = 40.0
"""Until a job trains, which it may do before turns begin."""


def job_flags(epochs: int = EPOCHS, checkpoint_every: int = CHECKPOINT_EVERY) -> tuple[str, ...]:
    """The training of jobs/train.py that is measured: cifar10-small on digits of 32 pixels."""
    return (
        *("cifar10-small", "--data.source", "digits", "--data.path", "", "--data.image-size", "32"),
        *("--training.epochs", str(epochs), "--training.cosine-period-epochs", str(epochs)),
        *("--resources.checkpoint-every", str(checkpoint_every)),
        *("--evaluation.attack-images", "8", "--evaluation.attack-num-steps", "1"),
    )


def main() -> None:
    """Runs everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--only", nargs="*", help="step, job_with_a_core_to_spare, job_on_all_cores"
    )
    parser.add_argument("--bare-loop", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.bare_loop:
        bare_loop(arguments.bare_loop)
        return
    if arguments.steps:
        time_steps(arguments.steps)
        return
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: compare_steps(2 * arguments.rounds + 1, arguments.threads),
        # One core is left to Ray's own processes, and then none is.
        "job_with_a_core_to_spare": lambda: compare_jobs(
            arguments.rounds, max(1, arguments.threads - 1)
        ),
        "job_on_all_cores": lambda: compare_jobs(arguments.rounds, arguments.threads),
    }
    for part in arguments.only or parts:
        path = write_record(f"train-{part}", parts[part]())
        print(f"record: {path.relative_to(ROOT)}")


# --- our step against a plain one ---------------------------------------------------------------


def compare_steps(rounds: int, threads: int) -> dict[str, Any]:
    """Images/s of our step as workers run it, and of the released recipe's manner of the same."""
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for round_number in range(rounds):
        for name, seen in rates.items():
            seen.append(steps_in_a_process(name, threads))
        print(
            f"step, round {round_number + 1}: ours {rates['ours'][-1]:.0f} images/s, "
            f"plain {rates['plain'][-1]:.0f} images/s"
        )
    ratios = [a / b for a, b in zip(rates["ours"], rates["plain"], strict=True)]
    print(f"our step is {spread(ratios)['median']:.2f} times as fast as the plain one")
    return {
        "what": "training step with its data: ours, with a worker's allocator settings / plain "
        "eager (per-sample PIL DataLoader, NCHW, unfused AdamW), a process each",
        "threads": threads,
        "ratio": spread(ratios),
        "images_per_second": {name: spread(values) for name, values in rates.items()},
    }


def steps_in_a_process(name: str, threads: int) -> float:
    """Images/s of one variant in a process of its own, where the allocator is its own too."""
    environment = {**os.environ, **(CPU_WORKER_ENVIRONMENT if name == "ours" else {})}
    done = subprocess.run(
        [sys.executable, __file__, "--threads", str(threads), "--steps", name],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def time_steps(name: str) -> None:
    """Prints the images/s of one variant."""
    images = made_up_images(BATCH * STEPS)
    run = {"ours": our_steps, "plain": plain_steps}[name](images)
    run()  # warm up
    started = time.perf_counter()
    run()
    print(BATCH * STEPS / (time.perf_counter() - started))


def made_up_images(count: int) -> ImageSet:
    """CIFAR-sized noise with ten classes: speed does not depend on what the images show."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).to(torch.uint8)
    return ImageSet.build(pixels, torch.arange(count) % 10, tuple("abcdefghij"), "noise/train")


def task_for(images: ImageSet) -> CdvaeTask:
    """The preset's task on these images."""
    config = preset("cifar10-small")
    return CdvaeTask(
        model=config.model,
        objective=config.objective,
        training=replace(
            config.training,
            global_batch_size=BATCH,
            epochs=EPOCHS,
            cosine_period_epochs=EPOCHS,
        ),
        augmentation=config.augmentation,
        image_size=images.image_size,
        class_names=images.class_names,
    )


def our_steps(images: ImageSet) -> Callable[[], None]:
    """An epoch of our training step."""
    return epoch_of(TrainState(task_for(images), torch.device("cpu")), images)


def epoch_of(state: TrainState, images: ImageSet) -> Callable[[], None]:
    """An epoch of a state's training step on these images."""
    state.model.train()
    source = InMemoryBatches(images, global_batch_size=BATCH, seed=0, rank=0, world_size=1)

    def run() -> None:
        for index, batch in enumerate(source.epoch_batches(0)):
            state.train_step(batch, epoch=0, index=index)

    return run


class PlainDataset(Dataset[tuple[Tensor, int]]):
    """Per-sample PIL transforms, as the released recipe feeds its model."""

    def __init__(self, images: ImageSet) -> None:
        from torchvision import transforms

        config = preset("cifar10-small").model
        self.images, self.labels = images.images.permute(0, 2, 3, 1).numpy(), images.labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(config.pixel_mean, config.pixel_std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def plain_steps(images: ImageSet) -> Callable[[], None]:
    """An epoch of the same model, objective and augmentation, written plainly."""
    task = task_for(images)
    model = build_cdvae(task.model, image_size=32, class_names=images.class_names, seed=0).train()
    # The loader normalises, as in the released code; so the model must not do it again.
    model.pixel_mean.zero_()
    model.pixel_std.fill_(1)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=task.training.learning_rate, weight_decay=1e-6, foreach=False
    )
    loader = DataLoader(PlainDataset(images), batch_size=BATCH, shuffle=True, num_workers=0)

    def run() -> None:
        total, correct = 0.0, 0
        for batch, labels in loader:
            optimizer.zero_grad()
            output = model(batch)
            loss = cdvae_loss(output, labels, objective=task.objective, epoch=0)
            loss.total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.total.item()
            correct += int((output.logits.argmax(dim=1) == labels).sum().item())

    return run


# --- Ray Train with tracking against a bare loop --------------------------------------------------


def compare_jobs(rounds: int, threads: int) -> dict[str, Any]:
    """Steady-state seconds an epoch of the same loop without Ray, on Ray, and tracked as well.

    All train at the same time, in turns of seconds: see benchmarks/turns.py.
    """
    commands = {
        "bare": [str(ROOT / "benchmarks/train.py"), "--threads", str(threads)],
        "ray": [str(ROOT / "jobs/train.py"), *job_flags(), "--tracking.no-enabled"],
        "ray and tracking": [str(ROOT / "jobs/train.py"), *job_flags()],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for round_number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            for what, found in run_in_turns(commands, Path(name), threads).items():
                seconds[what].append(found)
        shown = ", ".join(f"{what} {values[-1]:.2f} s" for what, values in seconds.items())
        print(f"an epoch on {threads} threads, round {round_number + 1}: {shown}", flush=True)
    ratios = {
        name: spread([a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)])
        for name in commands
        if name != "bare"
    }
    for name, ratio in ratios.items():
        print(f"{name} cost {ratio['median'] - 1:+.1%} an epoch")
    return {
        "what": "seconds an epoch of 11 steps in steady state, a checkpoint every ten epochs "
        "included, all at once in turns of seconds: jobs/train.py with 1 worker, without and "
        "with MLflow / the same fit() alone",
        "threads": threads,
        "ratio": ratios["ray and tracking"],
        "ratio_without_tracking": ratios["ray"],
        "seconds_an_epoch": {name: spread(values) for name, values in seconds.items()},
        "step_milliseconds": 1000 * statistics.median(seconds["bare"]) / STEPS_AN_EPOCH,
    }


def run_in_turns(
    commands: Mapping[str, Sequence[str]], folder: Path, threads: int
) -> dict[str, float]:
    """Seconds an epoch of each command, all of which train at the same time, in turns."""
    runners: dict[str, Runner] = {}
    places: dict[str, Path] = {}
    with ending(runners):
        for name, command in commands.items():
            places[name] = place = folder / name.replace(" ", "-")
            place.mkdir()
            own = (
                ["--bare-loop", str(place / RUNS / "cdvae-bare")]
                if name == "bare"
                else ["--resources.cpus-per-worker", str(threads)]
            )
            # What workers set for themselves, so that only Ray and tracking differ.
            extra = CPU_WORKER_ENVIRONMENT if name == "bare" else PATIENT_RAY
            runners[name] = Runner([sys.executable, *command, *own], place, {**os.environ, **extra})
            time.sleep(START_SECONDS)
            runners[name].pause()
        take_turns(list(runners.values()))
        return {
            name: epoch_between_checkpoints(places[name] / RUNS, each.seconds_between)
            for name, each in runners.items()
        }


def epoch_between_checkpoints(
    runs: Path, seconds_between: Callable[[float, float], float]
) -> float:
    """Seconds an epoch from the first to the last checkpoint of the run in a folder."""
    (run,) = runs.glob("cdvae-*")
    first, *_, last = sorted(run.glob("epoch-*"))
    written = [(each / "model.safetensors").stat().st_mtime for each in (first, last)]
    done: list[int] = [
        json.loads((each / "manifest.json").read_text())["facts"]["epochs_done"]
        for each in (first, last)
    ]
    return seconds_between(*written) / (done[1] - done[0])


def bare_loop(run: Path) -> None:
    """The same data, step and checkpoints in one plain process."""
    from cdvae_ray.config.data import DataConfig

    images = load_splits(DataConfig(source="digits", image_size=32)).train
    state = TrainState(task_for(images), torch.device("cpu"))
    fit_quietly(state, images, Store.at(run), checkpoint_every=CHECKPOINT_EVERY)


def fit_quietly(
    state: TrainState,
    images: ImageSet,
    run: Store,
    *,
    checkpoint_every: int,
    overlap_checkpoints: bool = False,
) -> None:
    """Trains from the start with nobody listening."""
    source = InMemoryBatches(
        images, global_batch_size=BATCH, seed=state.task.training.seed, rank=0, world_size=1
    )
    fit(
        state,
        source,
        run,
        epochs_done=0,
        checkpoint_every=checkpoint_every,
        overlap_checkpoints=overlap_checkpoints,
        config_digest="bare",
        identity={},
        on_epoch=lambda report: None,
        on_progress=lambda progress: None,
        on_checkpoint=lambda name, report: None,
    )


if __name__ == "__main__":
    main()
