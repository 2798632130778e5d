"""Peak memory of streamed images, and of a training on them, at 1 and at 4 times the data.

python benchmarks/streaming_memory.py [--images N] [--size S] [--photographs FOLDER]

The streams are epochs of `StreamedBatches` without a model, at 299 x 299: a stream alone can be
long enough for a leak to show. The trainings are `jobs/train.py` on shards of N and of 4 N images,
decoded at S x S, with a small network and one epoch. Memory is the sum, over the job and all
processes below it, of proportional set sizes (shared memory counted once), sampled twice a second.
Beside it stand what the decoded images would take in memory, and what the peak was made of, since
Ray keeps idle processes at hand, more or fewer, of half a gigabyte each. Without a folder of
photographs (Parquet, Hugging Face layout) the images are noise.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from record import write_record

from cdvae_ray.data.stream_order import StreamOrder
from cdvae_ray.data.streamed import open_streamed
from cdvae_ray.runtime import cluster
from cdvae_ray.runtime.streamed_batches import StreamedBatches

ROOT = Path(__file__).parents[1]
CLASSES = 8
ROWS = 100
STREAM_SIZE, STREAM_IMAGES = 299, 3200  # more than what 16 lanes hold
FLAGS = (
    "restricted-smoke",
    *("--data.streaming", "--data.train-limit", "None", "--data.test-limit", "16"),
    *("--training.epochs", "1", "--training.cosine-period-epochs", "1"),
    *("--training.global-batch-size", "16", "--model.vae-width", "2"),
    *("--model.classifier-network", "wide_resnet", "--model.classifier-depth", "10"),
    *("--evaluation.attack-images", "2", "--evaluation.batch-size", "8"),
    *("--resources.cpus-per-worker", "1", "--tracking.no-enabled"),
)


def main() -> None:
    """Runs both and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--only", choices=("stream", "training"), help="leave out the others")
    parser.add_argument("--consume", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consume:
        consume(arguments.consume)
        return
    encoded = encoded_images(arguments.photographs)
    plans = {
        "stream": ((1, 4), STREAM_IMAGES, STREAM_SIZE),
        "training": ((1, 4), arguments.images, arguments.size),
    }
    for kind, (factors, images, size) in plans.items():
        if arguments.only not in (None, kind):
            continue
        results: dict[str, Any] = {"size": size}
        for factor in factors:
            with tempfile.TemporaryDirectory() as folder:
                shards = Path(folder) / "shards"
                write_shards(shards, encoded, factor * images)
                results[f"{factor}x"] = run(kind, shards, size, Path(folder) / "run")
            print(f"{kind} {factor}x: {results[f'{factor}x']}", flush=True)
        results["peak_ratio"] = results[f"{factors[-1]}x"]["peak_mb"] / results["1x"]["peak_mb"]
        name = "streaming-memory" if kind == "training" else "streaming-memory-of-the-stream"
        print(f"record: {write_record(name, results)}")


def consume(path: str) -> None:
    """One epoch of batches, each of which is dropped."""
    images = open_streamed(path, STREAM_SIZE, max_corrupt_fraction=0.0, say=print)
    cluster.connect()
    order = StreamOrder(
        [group.rows for group in images.groups],
        global_batch_size=16,
        lanes=16,
        seed=0,
        rank=0,
        world_size=1,
    )
    batches = StreamedBatches(
        images, order, min_crop_area=0.0, seed=0, loader_cpus=1, on_corrupt=print
    )
    print(sum(len(batch.labels) for batch in batches.epoch_batches(0)))


def encoded_images(folder: Path | None) -> list[bytes]:
    """Encoded images to make shards of."""
    if folder is not None:
        (file, *_) = sorted(folder.glob("*.parquet"))
        return [row["bytes"] for row in pq.read_table(file).column("image").to_pylist()]
    random = np.random.default_rng(0)
    images = []
    for _ in range(64):
        coarse = random.integers(0, 256, (50, 50, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize((400, 400)).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    return images


def write_shards(folder: Path, encoded: list[bytes], count: int) -> None:
    """A training half of `count` images in shards of 400, and a small test half."""
    folder.mkdir()
    names = {"info": {"features": {"label": {"names": [f"class {i}" for i in range(CLASSES)]}}}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())], {"huggingface": json.dumps(names)})
    for split, total in (("train", count), ("test", 16)):
        for first in range(0, total, 400):
            numbers = range(first, min(first + 400, total))
            rows = [{"bytes": encoded[n % len(encoded)], "path": None} for n in numbers]
            table = pa.table(
                [pa.array(rows, kind), pa.array([n % CLASSES for n in numbers], pa.int64())],
                schema=schema,
            )
            pq.write_table(table, folder / f"{split}-{first:06d}.parquet", row_group_size=ROWS)


def run(kind: str, shards: Path, size: int, storage: Path) -> dict[str, Any]:
    """One epoch; its peak memory and what the images would take decoded."""
    training = [
        *(sys.executable, str(ROOT / "jobs" / "train.py"), *FLAGS),
        *("--data.path", str(shards), "--data.image-size", str(size), "--storage", str(storage)),
    ]
    stream = [sys.executable, str(Path(__file__).resolve()), "--consume", str(shards)]
    command = training if kind == "training" else stream
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    log = storage.with_suffix(".log")
    peak: dict[str, float] = {}
    started = time.monotonic()
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output) as job:
        while job.poll() is None:
            now = family_mb(job.pid)
            peak = max(peak, now, key=lambda each: sum(each.values()))
            time.sleep(0.5)
    if job.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {job.returncode}: {log.read_text()}")
    images = sum(pq.ParquetFile(file).metadata.num_rows for file in shards.glob("train*"))
    return {
        "peak_mb": round(sum(peak.values()), 1),
        "peak_without_idle_processes_mb": round(
            sum(value for name, value in peak.items() if name != "ray::IDLE"), 1
        ),
        "at_the_peak_mb": {
            name: round(peak[name], 1) for name in sorted(peak, key=lambda name: peak[name])[-6:]
        },
        "images": images,
        "decoded_mb": round(images * 3 * size * size / 2**20, 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def family_mb(pid: int) -> dict[str, float]:
    """Proportional set sizes of a process and all below it, in MiB, by their own names."""
    sizes: dict[str, float] = {}
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return sizes
    for process in family:
        try:
            name = "the job" if process.pid == pid else Path((process.cmdline() or ["?"])[0]).name
            sizes[name] = sizes.get(name, 0.0) + process.memory_full_info().pss / 2**20
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended between being listed and being asked
    return sizes


if __name__ == "__main__":
    main()
