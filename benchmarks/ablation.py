"""What each measure for the training step's speed brings: our step with one of them changed.

python benchmarks/ablation.py [--rounds N] [--threads N] [--only VARIANT ...]

Each variant is timed in a process of its own, in turns with the others; ratios to ours of the same
round, medians over rounds. The model is that of cifar10-small at batch 128.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from record import spread, write_record
from train import BATCH, ROOT, STEPS, epoch_of, made_up_images, task_for

from cdvae_ray.runtime.cluster import CPU_WORKER_ENVIRONMENT
from cdvae_ray.training.state import TrainState

OURS = "ours"


class Variant(NamedTuple):
    """Our step with one thing changed."""

    what: str
    environment: Mapping[str, str] = CPU_WORKER_ENVIRONMENT
    training: Mapping[str, Any] = {}
    """Settings of the training."""
    change: Callable[[TrainState], None] | None = None
    """Made to the state before the first step."""


def optimiser_one_by_one(state: TrainState) -> None:
    """Replaces the fused optimiser by PyTorch's loop over parameters."""
    (group,) = state.optimizer.param_groups
    state.optimizer = torch.optim.AdamW(
        group["params"],
        lr=group["lr"],
        betas=group["betas"],
        weight_decay=group["weight_decay"],
        foreach=False,
    )


VARIANTS = {
    OURS: Variant("as workers run it"),
    "allocator": Variant("glibc's own allocator settings", environment={}),
    "layout": Variant("channels first", training={"channels_last": False}),
    "optimiser": Variant("AdamW parameter by parameter", change=optimiser_one_by_one),
    "passive": Variant(
        "threads that sleep while they wait",
        environment=CPU_WORKER_ENVIRONMENT | {"OMP_WAIT_POLICY": "PASSIVE"},
    ),
    "compiled": Variant("torch.compile", training={"compile": True}),
}


def main() -> None:
    """Times every variant and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", choices=tuple(VARIANTS))
    parser.add_argument("--variant", choices=tuple(VARIANTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        torch.set_num_threads(arguments.threads)
        print(rate(VARIANTS[arguments.variant]))
        return
    names = list(dict.fromkeys([OURS, *(arguments.only or VARIANTS)]))
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            rates[name].append(rate_in_a_process(name, arguments.threads))
        shown = ", ".join(f"{name} {seen[-1]:.0f}" for name, seen in rates.items())
        print(f"round {number + 1}, images/s: {shown}", flush=True)
    ratios = {
        name: spread([a / b for a, b in zip(seen, rates[OURS], strict=True)])
        for name, seen in rates.items()
        if name != OURS
    }
    for name, ratio in ratios.items():
        print(f"{VARIANTS[name].what:<40} {ratio['median']:.3f} of our rate")
    path = write_record(
        "ablation",
        {
            "what": "images/s of our training step with one thing changed / as it is",
            "threads": arguments.threads,
            "variants": {name: VARIANTS[name].what for name in names},
            "ratio": ratios,
            "images_per_second": {name: spread(seen) for name, seen in rates.items()},
        },
    )
    print(f"record: {path.relative_to(ROOT)}")


def rate_in_a_process(name: str, threads: int) -> float:
    """Images/s of a variant in a process of its own, whose environment glibc reads as it starts."""
    inherited = {key: value for key, value in os.environ.items() if key[:4] != "OMP_"}
    done = subprocess.run(
        [sys.executable, __file__, "--threads", str(threads), "--variant", name],
        env={**inherited, **VARIANTS[name].environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def rate(variant: Variant) -> float:
    """Images/s of a variant's step, warmed up."""
    images = made_up_images(BATCH * STEPS)
    task = task_for(images)
    task = replace(task, training=replace(task.training, **variant.training))
    state = TrainState(task, torch.device("cpu"))
    if variant.change is not None:
        variant.change(state)
    run = epoch_of(state, images)
    run()  # warm up
    started = time.perf_counter()
    run()
    return BATCH * STEPS / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
