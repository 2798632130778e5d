"""Throughput of jobs/attack.py with one worker against the bare attack loop.

python benchmarks/attack_job.py [--rounds N] [--threads N]

Both attack the same images with the same model, steps and threads; the bare loop is one process
that neither stores nor tracks anything. Seconds run from the end of the first shard to the end of
the last, so that neither side's start counts. Interleaved in one run; medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import spread, write_record

from cdvae_ray.config.attack_job import AttackJobConfig
from cdvae_ray.config.data import DataConfig
from cdvae_ray.core.threat_models import attacked_model
from cdvae_ray.data.load import load_splits
from cdvae_ray.evaluation.attack_run import attack_images
from cdvae_ray.loading import load
from cdvae_ray.runtime.cluster import CPU_WORKER_ENVIRONMENT

ROOT = Path(__file__).parents[1]
SHARD, BATCH = 128, 128
CONFIG = AttackJobConfig(
    suite="detection",
    attacks=("PGD-Linf",),
    num_steps=10,
    data=DataConfig(source="digits", image_size=32, test_limit=None),
    split="train",
)
FLAGS = (
    *("detection", "--attacks", "PGD-Linf", "--num-steps", "10", "--split", "train"),
    *("--data.source", "digits", "--data.path", "", "--data.image-size", "32"),
    *("--pool.shard-size", str(SHARD), "--pool.batch-size", str(BATCH)),
)


def main() -> None:
    """Runs everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--bare-loop", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare_loop:
        torch.set_num_threads(arguments.threads)
        print(bare_loop(arguments.bare_loop))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_record("attack-job", compare(Path(folder), arguments))
    print(f"record: {path.relative_to(ROOT)}")


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Images/s of both sides over the rounds."""
    run_job("train.py", folder, "cifar10-small", *small_training())
    (run,) = (folder / "runs/train").glob("cdvae-*")
    checkpoint = run / "epoch-0001"
    rates: dict[str, list[float]] = {"bare": [], "job": []}
    for number in range(arguments.rounds):
        bare = subprocess.run(
            [
                *(sys.executable, __file__, "--threads", str(arguments.threads)),
                *("--bare-loop", str(checkpoint)),
            ],
            env={**os.environ, **CPU_WORKER_ENVIRONMENT},
            check=True,
            capture_output=True,
            text=True,
        )
        rates["bare"].append(float(bare.stdout))
        storage = folder / f"round-{number}"
        run_job(
            "attack.py",
            folder,
            *FLAGS,
            *("--checkpoint", str(checkpoint), "--storage", str(storage)),
            *("--pool.cpus-per-worker", str(arguments.threads), "--checks.allow-failed"),
        )
        rates["job"].append(stored_rate(storage))
        print(
            f"round {number + 1}: bare loop {rates['bare'][-1]:.1f} images/s, "
            f"job {rates['job'][-1]:.1f} images/s"
        )
    ratios = [job / bare for job, bare in zip(rates["job"], rates["bare"], strict=True)]
    print(f"the job attacks at {spread(ratios)['median']:.1%} of the bare loop's rate")
    return {
        "what": "images/s in steady state: jobs/attack.py with 1 worker, storing and tracking / "
        "the same attack in a plain loop (PGD L-inf, 10 steps, D(R(x)) of cifar10-small)",
        "threads": arguments.threads,
        "ratio": spread(ratios),
        "images_per_second": {name: spread(values) for name, values in rates.items()},
    }


def small_training() -> tuple[str, ...]:
    """Flags that make a model of the right size quickly; what it has learnt does not matter."""
    return (
        *("--data.source", "digits", "--data.path", "", "--data.image-size", "32"),
        *("--data.train-limit", "256", "--data.test-limit", "64", "--training.epochs", "1"),
        *("--evaluation.attack-images", "8", "--evaluation.attack-num-steps", "1"),
        "--tracking.no-enabled",
    )


def run_job(job: str, folder: Path, *flags: str) -> None:
    """Runs a job as a person does."""
    subprocess.run(
        [sys.executable, str(ROOT / "jobs" / job), *flags],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def stored_rate(storage: Path) -> float:
    """Images/s from the end of the first shard to the end of the last."""
    ends = sorted(path.stat().st_mtime for path in storage.rglob("shard-*.parquet"))
    images = len(load_splits(CONFIG.data).train)
    return (images - SHARD) / (ends[-1] - ends[0])


def bare_loop(checkpoint: Path) -> float:
    """Images/s of the attack alone, shard by shard, in this process."""
    images = load_splits(CONFIG.data).train
    model = attacked_model(CONFIG.threat_model, cdvae=load(checkpoint), classifier=None)
    model = model.to(memory_format=torch.channels_last)
    (config,) = CONFIG.chosen_attacks()
    ends = []
    for first in range(0, len(images), SHARD):
        attack_images(
            model,
            images,
            range(first, min(first + SHARD, len(images))),
            config,
            seed=CONFIG.seed,
            eot_samples=1,
            batch_size=BATCH,
            device=torch.device("cpu"),
            channels_last=True,
        )
        ends.append(time.perf_counter())
    return (len(images) - SHARD) / (ends[-1] - ends[0])


if __name__ == "__main__":
    main()
