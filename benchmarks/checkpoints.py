"""Checkpoints written while the next epoch trains, against checkpoints that are waited for.

python benchmarks/checkpoints.py [--rounds N] [--threads N]

A training of five epochs of the model of cifar10-small with a checkpoint after each, on the local
disk and in storage that takes as long for a checkpoint as an epoch takes to train (it sleeps: an
upload waits for the network). Interleaved in one run; medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow.fs
import torch
from allocator import keep_freed_memory
from record import spread, write_record
from train import BATCH, ROOT, STEPS, fit_quietly, made_up_images, task_for

from cdvae_ray.data.images import ImageSet
from cdvae_ray.storage.store import Store
from cdvae_ray.training.state import TrainState

EPOCHS = 5
PLACES = {"local disk": 0.0, "as slow as an epoch": 1.0}
"""Epochs that the storage takes for a checkpoint."""


class SlowStore(Store):
    """Storage that takes its time for a folder."""

    seconds = 0.0

    def write_folder(self, name: str, files: Mapping[str, bytes], *, last: str) -> None:
        """Writes it after that time."""
        time.sleep(self.seconds)
        super().write_folder(name, files, last=last)


def main() -> None:
    """Runs everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    path = write_record("checkpoints", compare(arguments.rounds, arguments.threads))
    print(f"record: {path.relative_to(ROOT)}")


def compare(rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of a training either way, and their ratios, by storage."""
    images = made_up_images(BATCH * STEPS)
    seconds: dict[str, dict[bool, list[float]]] = {place: {False: [], True: []} for place in PLACES}
    train(images, seconds_of_store=0.0, overlap=False)  # warm up
    for number in range(rounds):
        epoch = train(images, seconds_of_store=0.0, overlap=False) / EPOCHS
        for place, epochs in PLACES.items():
            for overlap, seen in seconds[place].items():
                seen.append(train(images, seconds_of_store=epochs * epoch, overlap=overlap))
            print(
                f"{place}, round {number + 1}: waited for {seconds[place][False][-1]:.1f} s, "
                f"overlapping {seconds[place][True][-1]:.1f} s",
                flush=True,
            )
    return {
        "what": f"seconds of a training of {EPOCHS} epochs with a checkpoint after each: written "
        "while the next epoch trains / waited for",
        "threads": threads,
        "ratio": {
            place: spread([a / b for a, b in zip(seen[True], seen[False], strict=True)])
            for place, seen in seconds.items()
        },
        "seconds": {
            place: {"waited for": spread(seen[False]), "overlapping": spread(seen[True])}
            for place, seen in seconds.items()
        },
    }


def train(images: ImageSet, *, seconds_of_store: float, overlap: bool) -> float:
    """Seconds of a training."""
    task = task_for(images)
    task = replace(task, training=replace(task.training, epochs=EPOCHS))
    state = TrainState(task, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        store = SlowStore(pyarrow.fs.LocalFileSystem(), f"{folder}/run", f"{folder}/run")
        store.seconds = seconds_of_store
        started = time.perf_counter()
        fit_quietly(state, images, store, checkpoint_every=1, overlap_checkpoints=overlap)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
