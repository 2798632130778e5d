"""jobs/prepare_data.py: bad input is one line on stderr, exit code 1, and nothing is written."""

import json
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

FROG, DOG, TENCH = "n01641577", "n02085620", "n01440764"


def png(seed, side=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path):
    """A folder of three classes, two of them restricted, with two images in each half."""
    for split in ("train", "val"):
        for number, name in enumerate((FROG, DOG, TENCH)):
            folder = tmp_path / "source" / split / name
            folder.mkdir(parents=True)
            for image in range(2):
                (folder / f"{image}.JPEG").write_bytes(png(10 * number + image))
    return tmp_path / "source"


PLACES = ("--path", "source", "--out", "out")


def test_the_default_preset_makes_shards_and_a_summary(run_script, source, tmp_path):
    arguments = (*PLACES, "--images-per-shard", "3", "--summary", "summary.json")
    done = run_script("prepare_data", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["train", "4", "2", "2", "to", "2", "0", "2"] in [line[:8] for line in lines]
    assert ["test", "4", "2", "2", "to", "2", "0", "2"] in [line[:8] for line in lines]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        *(f"{split}-0000{n}-of-00002.parquet" for split in ("test", "train") for n in (0, 1)),
    ]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["job"] == "prepare_data"
    assert summary["metrics"]["classes"] == 2
    assert summary["metrics"]["train_images"] == summary["metrics"]["test_images"] == 4
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert summary["config_digest"] == manifest["facts"]["identity_digest"]
    again = run_script("prepare_data", tmp_path, *arguments)
    assert again.returncode == 0 and "finished earlier" in again.stdout


def test_the_preset_parquet_takes_what_the_other_made(run_script, source, tmp_path):
    assert run_script("prepare_data", tmp_path, *PLACES).returncode == 0
    done = run_script("prepare_data", tmp_path, "parquet", "--path", "out", "--out", "again")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again/manifest.json").exists()


def spoil(path):
    """Makes one kind of trouble in the source."""
    return {
        "no val": lambda: (path / "val").rename(path / "other"),
        "flat val": lambda: [each.rename(path / each.name) for each in (path / "val").iterdir()],
        "no class": lambda: (path / "val" / DOG).rename(path / "n0"),
        "empty class": lambda: [each.unlink() for each in (path / "train" / DOG).iterdir()],
        "truncated": lambda: (path / "train" / DOG / "1.JPEG").write_bytes(png(0)[:-200]),
        "tiny": lambda: (path / "val" / DOG / "1.JPEG").write_bytes(png(0, 7)),
    }


@pytest.mark.parametrize(
    ("trouble", "arguments", "complaint"),
    [
        (None, ["imagenet"], "preset: got 'imagenet', expected one of restricted-imagenet"),
        (None, [], "path: got nothing, expected where the folder with the images lies"),
        (None, ["--path", "source"], "out: got nothing"),
        (None, ["--path", "source", "--out", "source"], "out: got the source's own"),
        (None, ["--path", "absent", "--out", "out"], "path absent: got no such folder"),
        (None, [*PLACES, "--images-per-shard", "0"], "images_per_shard: got 0"),
        (None, [*PLACES, "--max-corrupt-fraction", "2"], "max_corrupt_fraction: got 2.0"),
        (None, [*PLACES, "--classes", "all", "--labels", "super"], "labels: got super with"),
        (None, ["--path", "source", "--out", "nowhere://x"], "out nowhere://x: got"),
        (None, ["--path", "nowhere://x", "--out", "out"], "path nowhere://x: got"),
        (None, ["--path", "source", "--out", "source/train"], "a folder with n0"),
        (None, ["parquet", *PLACES], "path source: got a folder with train, val"),
        ("no val", PLACES, "path source: got a folder with other, train, expected folders val or"),
        ("flat val", PLACES, "folder source/val: got no class folders"),
        ("no class", PLACES, f"folder source/val: got no folder of class {DOG} (1 absent)"),
        ("empty class", PLACES, f"class folder source/train/{DOG}: got no images"),
        ("truncated", PLACES, f"train/{DOG}/1.JPEG: got"),
        ("truncated", [*PLACES, "--max-corrupt-fraction", "0.24"], f"train/{DOG}/1.JPEG: got"),
        ("tiny", PLACES, f"val/{DOG}/1.JPEG: got an image of 7 x 7 pixels"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    source, refused, trouble, arguments, complaint
):
    if trouble is not None:
        spoil(source)[trouble]()
    refused("prepare_data", arguments, complaint)


def test_classes_without_a_restricted_one_are_refused(source, refused):
    for split in ("train", "val"):
        for number, name in enumerate((FROG, DOG)):
            (source / split / name).rename(source / split / f"class{number}")
    refused("prepare_data", PLACES, "class names: got 3: class0, class1, n01440764")


IMAGE = pa.struct({"bytes": pa.binary()})
EMPTY = {"image": pa.array([], IMAGE), "label": pa.array([], pa.int64())}
ABSENT = {"image": pa.array([{"bytes": None}], IMAGE), "label": [0]}


@pytest.mark.parametrize(
    ("train", "complaint"),
    [
        (b"", "source/train.parquet: got"),
        (b"not Parquet at all", "expected a complete Parquet file"),
        ({"image": [b"x"], "label": [0]}, "got image binary, label int64, expected img or image"),
        (EMPTY, "train files of source: got no rows"),
        ({"image": [{"bytes": b"broken"}], "label": [0]}, "train.parquet row 0: got 6 bytes that"),
        (ABSENT, "train.parquet row 0: got 0 bytes that"),
        ({"image": [{"bytes": png(0)}], "label": [-1]}, "label of train.parquet row 0: got -1"),
        ({"image": [{"bytes": png(0)}], "label": [1]}, "train files of source: got no row of cl"),
    ],
)
def test_bad_parquet_is_one_line_and_nothing_is_written(refused, tmp_path, train, complaint):
    write_halves(tmp_path / "source", train, test_label=0)
    refused("prepare_data", ["parquet", *PLACES], complaint)


def test_a_test_label_beyond_the_training_labels_is_refused(refused, tmp_path):
    train = {"image": [{"bytes": png(0)}], "label": [0]}
    write_halves(tmp_path / "source", train, test_label=1)
    refused("prepare_data", ["parquet", *PLACES], "label of test.parquet row 0: got 1, expected a")


def write_halves(folder, train, *, test_label):
    folder.mkdir()
    test = pa.table({"image": [{"bytes": png(1)}], "label": [test_label]})
    pq.write_table(test, folder / "test.parquet")
    if isinstance(train, bytes):
        (folder / "train.parquet").write_bytes(train)
    else:
        pq.write_table(pa.table(train), folder / "train.parquet")


@pytest.mark.parametrize(
    ("flag", "value"), [("--labels", "coarse"), ("--classes", "dogs"), ("--source", "zip")]
)
def test_an_unknown_choice_is_refused(run_script, tmp_path, flag, value):
    done = run_script("prepare_data", tmp_path, *PLACES, flag, value)
    assert done.returncode == 2
    assert flag in done.stdout + done.stderr


def test_the_help_lists_presets_and_every_flag(run_script, tmp_path):
    done = run_script("prepare_data", tmp_path, "--help")
    assert done.returncode == 0
    for word in ("restricted-imagenet", "parquet", "--path", "--out", "--images-per-shard"):
        assert word in done.stdout
    for word in ("--max-corrupt-fraction", "--min-side", "--num-threads", "--overwrite"):
        assert word in done.stdout
