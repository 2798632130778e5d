"""Training from shards on a real cluster: order, workers, undecodable images, lost workers."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from .conftest import kill, run_folder, summary, wait_for
from .parquet_images import write

pytestmark = pytest.mark.jobs

CORRUPT = (7, 33, 215)
FLAGS = [
    "restricted-smoke",
    *("--data.image-size", "24", "--data.train-limit", "None", "--data.test-limit", "None"),
    *("--data.streaming", "--data.lanes", "4", "--data.max-corrupt-fraction", "0.02"),
    *("--model.vae-width", "4", "--evaluation.attack-images", "8"),
    *("--resources.cpus-per-worker", "1"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Training images of three shards, three of which do not decode, and test images."""
    folder = tmp_path_factory.mktemp("shards")
    for number, rows in enumerate((100, 100, 56)):
        corrupt = [index - 100 * number for index in CORRUPT if index // 100 == number]
        write(folder / f"train-{number}.parquet", rows, seed=number, corrupt=corrupt)
    write(folder / "test-0.parquet", 24, seed=9)
    return folder


def train(cluster, folder, shards, *flags):
    return cluster.train(folder, *FLAGS, "--data.path", str(shards), *flags)


@pytest.fixture(scope="module")
def undisturbed(cluster, shards, tmp_path_factory):
    """Four epochs on two workers."""
    folder = tmp_path_factory.mktemp("streamed")
    done = train(cluster, folder, shards, *TWO, "--summary", "summary.json")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


TWO = ["--resources.num-workers", "2", "--training.epochs", "4"]


def manifest(folder, epoch):
    [path] = (folder / "runs").glob(f"train/cdvae-*/epoch-{epoch:04d}/manifest.json")
    return json.loads(path.read_text())["facts"]


def test_each_epoch_counts_what_does_not_decode_and_the_job_names_it(undisturbed):
    folder, done = undisturbed
    for epoch in (1, 2, 3, 4):
        # All 256 images are visited, as 32 divides them.
        assert manifest(folder, epoch)["metrics"]["train_corrupt_images"] == len(CORRUPT)
    named = re.findall(r"does not decode, .*: .*(train-\d).parquet row (\d+)", done.stdout)
    assert {(f"train-{i // 100}", str(i % 100)) for i in CORRUPT} == set(named[: len(CORRUPT)])
    assert len(named) == 5
    assert "parquet/train 256 images" in done.stdout and "3 classes, streamed" in done.stdout


def test_the_code_book_is_reported(undisturbed):
    folder, done = undisturbed
    metrics = summary(folder / "summary.json")["metrics"]
    assert 1 <= metrics["codebook_perplexity"] <= metrics["codes_used"] <= 16
    assert "perplexity of the code book" in done.stdout
    assert 1 <= manifest(folder, 1)["metrics"]["train_codebook_perplexity"] <= 16


def test_one_worker_trains_as_two(cluster, undisturbed, shards, tmp_path):
    two, _ = undisturbed
    done = train(cluster, tmp_path, shards, "--training.epochs", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = manifest(two, 1)["metrics"], manifest(tmp_path, 1)["metrics"]
    # The same images in each step; sums over ranks are rounded otherwise.
    for name in ("train_loss", "train_reconstruction", "train_codebook"):
        assert first[name] == pytest.approx(second[name], rel=0.02), name
    assert first["train_corrupt_images"] == second["train_corrupt_images"]


def test_more_undecodable_images_than_allowed_stop_the_job(cluster, shards, tmp_path):
    done = train(cluster, tmp_path, shards, "--data.max-corrupt-fraction", "0.005")
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "training images in epoch 0: got 3 that do not decode, expected at most 1 of 256" in line
    assert "jobs/prepare_data.py" in line


def test_a_shard_that_cannot_be_read_ends_the_job_and_is_named(cluster, shards, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    with (damaged / "train-1.parquet").open("r+b") as file:
        file.seek(20_000)  # among the images: labels and footers are read before training
        file.write(b"\0" * 30_000)
    two = ("--resources.num-workers", "2", "--resources.max-failures", "1")
    done = train(cluster, tmp_path, damaged, *two)
    assert done.returncode == 1, done.stdout
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "train-1.parquet" in line


def test_ray_data_yields_what_reading_in_order_yields(cluster, shards):
    script = """
import sys, torch
from cdvae_ray.data.stream_order import StreamOrder
from cdvae_ray.data.stream_read import assemble, read_chunk
from cdvae_ray.data.streamed import open_streamed
from cdvae_ray.runtime import cluster
from cdvae_ray.runtime.streamed_batches import StreamedBatches
images = open_streamed(sys.argv[1], 24, max_corrupt_fraction=0.02, say=print)
cluster.connect()
for rank in (0, 1):
    order = StreamOrder([group.rows for group in images.groups], global_batch_size=32, lanes=4,
                        seed=3, rank=rank, world_size=2)
    crops = dict(min_crop_area=0.3, seed=3)
    corrupt = []
    streamed = StreamedBatches(images, order, loader_cpus=2, on_corrupt=corrupt.extend, **crops)
    for epoch in (0, 5):
        chunks = (read_chunk(images, each, epoch=epoch, **crops) for each in order.chunks(epoch))
        batches = 0
        pairs = zip(streamed.epoch_batches(epoch), assemble(chunks, order), strict=True)
        for found, wanted in pairs:
            assert all(torch.equal(a, b) for a, b in zip(found, wanted)), (rank, epoch, batches)
            batches += 1
        assert batches == streamed.batches_per_epoch == 8
        print("corrupt", rank, epoch, streamed.corrupt_images)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(shards)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.findall(r"corrupt (\d) (\d) (\d+)", done.stdout)
    for epoch in ("0", "5"):
        assert sum(int(n) for _, e, n in counts if e == epoch) == len(CORRUPT)


@pytest.mark.faults
def test_a_killed_worker_changes_nothing(cluster, undisturbed, shards, tmp_path):
    started = cluster.start(tmp_path, *FLAGS, "--data.path", str(shards), *TWO)
    folder = run_folder(tmp_path / "runs")
    wait_for((folder / "epoch-0002" / "manifest.json").is_file, "second checkpoint")
    kill(cluster.train_workers()[1])
    output, _ = started.communicate(timeout=600)
    assert started.returncode == 0, output
    last = "epoch-0004/model.safetensors"
    before = load_file(run_folder(undisturbed[0] / "runs") / last)
    after = load_file(folder / last)
    for name, tensor in before.items():
        assert tensor.equal(after[name]), name
