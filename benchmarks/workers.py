"""Two workers against one, by the jobs that people run: training and attack generation.

python benchmarks/workers.py [--rounds N] [--only PART ...]

Every worker has one thread. Training divides the same batch of 128 among them (strong scaling); an
attack hands out the same shards. Seconds count in steady state: a training from its first to its
last checkpoint, an attack from the end of its first to that of its last shard. Interleaved in one
run; medians over rounds. On a machine of two cores two workers leave none to Ray's own processes,
and so the training has a third variant: one worker that has both cores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack_job import FLAGS, run_job, small_training, stored_rate
from record import spread, write_record
from train import ROOT, RUNS, epoch_between_checkpoints, job_flags

EPOCHS, CHECKPOINT_EVERY = 6, 2
"""Four epochs are measured: what is compared differs by much more than a checkpoint's cost."""
ONE, TWO, ONE_WIDE = "1 worker", "2 workers", "1 worker of 2 threads"


def main() -> None:
    """Runs everything and writes the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=("train", "attack"))
    arguments = parser.parse_args()
    parts: dict[str, Callable[[int], dict[str, Any]]] = {"train": training, "attack": attack}
    for part in arguments.only or parts:
        path = write_record(f"workers-{part}", parts[part](arguments.rounds))
        print(f"record: {path.relative_to(ROOT)}")


def training(rounds: int) -> dict[str, Any]:
    """Epochs an hour of jobs/train.py, relative to one worker of one thread."""
    shapes = {ONE: (1, 1), TWO: (2, 1), ONE_WIDE: (1, 2)}
    seconds: dict[str, list[float]] = {name: [] for name in shapes}
    for number in range(rounds):
        for name, (workers, threads) in shapes.items():
            with tempfile.TemporaryDirectory() as folder:
                run_job(
                    "train.py",
                    Path(folder),
                    *job_flags(EPOCHS, CHECKPOINT_EVERY),
                    *("--resources.num-workers", str(workers)),
                    *("--resources.cpus-per-worker", str(threads), "--tracking.no-enabled"),
                )
                runs = Path(folder) / RUNS
                seconds[name].append(
                    epoch_between_checkpoints(runs, lambda first, last: last - first)
                )
        say("an epoch of training", number, seconds, "s")
    return {
        "what": "seconds an epoch of jobs/train.py with 1 worker of 1 thread / with other workers "
        "(CD-VAE of cifar10-small, the same batch of 128, synchronised batch normalisation)",
        "ratio": {
            name: spread([a / b for a, b in zip(seconds[ONE], seconds[name], strict=True)])
            for name in (TWO, ONE_WIDE)
        },
        "seconds_an_epoch": {name: spread(values) for name, values in seconds.items()},
    }


def attack(rounds: int) -> dict[str, Any]:
    """Images/s of jobs/attack.py with two workers, relative to one."""
    rates: dict[str, list[float]] = {ONE: [], TWO: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_job("train.py", folder, "cifar10-small", *small_training())
        (run,) = (folder / "runs/train").glob("cdvae-*")
        for number in range(rounds):
            for workers, seen in enumerate(rates.values(), start=1):
                storage = folder / f"{workers}-workers-{number}"
                run_job(
                    "attack.py",
                    folder,
                    *FLAGS,
                    *("--checkpoint", str(run / "epoch-0001"), "--storage", str(storage)),
                    *("--pool.num-workers", str(workers), "--pool.cpus-per-worker", "1"),
                    *("--checks.allow-failed", "--tracking.no-enabled"),
                )
                seen.append(stored_rate(storage))
            say("an attack", number, rates, "images/s")
    return {
        "what": "images/s of jobs/attack.py with 2 workers of 1 thread / with 1 (PGD L-inf, 10 "
        "steps, D(R(x)) of cifar10-small)",
        "ratio": {TWO: spread([a / b for a, b in zip(rates[TWO], rates[ONE], strict=True)])},
        "images_per_second": {each: spread(values) for each, values in rates.items()},
    }


def say(what: str, number: int, values: dict[str, list[float]], unit: str) -> None:
    """A round's numbers in a line."""
    shown = ", ".join(f"{name} {seen[-1]:.2f} {unit}" for name, seen in values.items())
    print(f"{what}, round {number + 1}: {shown}", flush=True)


if __name__ == "__main__":
    main()
