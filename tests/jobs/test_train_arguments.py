"""Bad input to jobs/train.py: one line on stderr, exit code 1, nothing written.

All of it is found before a cluster is started, so these tests start none.
"""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdvae_ray.cli import write_summary
from cdvae_ray.errors import StorageError

from .conftest import ROOT


def png(size=16):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(folder, *, corrupt="", empty="", unknown=""):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(3):
                (folder / split / name / f"{index}.png").write_bytes(png())
    if corrupt:
        (folder / "train" / "cat" / corrupt).write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    if empty:
        (folder / "train" / empty).mkdir()
    if unknown:
        (folder / "test" / unknown).mkdir()
        (folder / "test" / unknown / "0.png").write_bytes(png())
    return folder


def from_folder(path):
    return ["smoke", "--data.source", "folder", "--data.path", path, "--data.train-limit", "None"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (lambda f: ["fast"], "preset: got 'fast', expected one of quickstart"),
        (lambda f: ["smoke", "--objective.gamma", "-1"], "objective.gamma: got -1.0, expected"),
        (lambda f: from_folder(f / "nothing"), "nothing"),
        (lambda f: from_folder(image_folder(f / "i", empty="mouse")), "mouse"),
        (lambda f: from_folder(image_folder(f / "i", corrupt="bad.jpg")), "bad.jpg"),
        (lambda f: from_folder(image_folder(f / "i", unknown="zebra")), "zebra"),
        (
            lambda f: ["smoke", "--training.global-batch-size", "7", "--resources.num-workers", 2],
            "training.global_batch_size: got 7 with 2 workers, expected a multiple of 2",
        ),
        (
            lambda f: ["smoke", "--training.global-batch-size", "1000"],
            "got 1000, expected at most the 256 images",
        ),
        (lambda f: ["smoke", "--resume", "--overwrite"], "resume, overwrite: got both"),
        (
            lambda f: ["smoke", "--data.source", "parquet", "--data.path", f / "none"],
            "none",
        ),
        (lambda f: ["smoke", "--summary", f], "got a folder, expected a file in a folder that"),
        (
            lambda f: ["smoke", "--summary", "/proc/version/summary.json"],
            "got /proc/version, which cannot be written to, expected a file",
        ),
    ],
    ids=[
        "unknown preset",
        "negative gamma",
        "wrong path",
        "empty class folder",
        "corrupt JPEG",
        "label outside the class list",
        "batch not divisible",
        "batch too large",
        "contradiction",
        "no Parquet",
        "summary is a folder",
        "summary below a file",
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(refused, tmp_path, arguments, complaint):
    refused("train", arguments(tmp_path), complaint)


def test_the_help_lists_presets_and_every_flag(run_script):
    done = run_script("train", ROOT, "--help")
    assert done.returncode == 0
    for word in ("quickstart", "cifar10-released", "--objective.gamma", "--summary", "--storage"):
        assert word in done.stdout


def test_a_summary_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(path, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match="got No space left on device, expected a writable"):
        write_summary(
            tmp_path / "new" / "s.json",
            job="train",
            run_id=None,
            checkpoint="",
            config_digest="d",
            metrics={},
        )
    assert not list((tmp_path / "new").iterdir())


def test_a_summary_below_a_folder_that_is_closed_is_one_line(run_script, tmp_path, monkeypatch):
    # Root may look into any folder, so the refusal is the system call's own.
    exists = Path.exists

    def refuse(path):
        if path.name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    done = run_script("train", tmp_path, "smoke", "--summary", tmp_path / "closed" / "s.json")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "got Permission denied: " in done.stderr


def test_an_unknown_flag_is_refused(run_script, tmp_path):
    done = run_script("train", tmp_path, "smoke", "--objective.gama", "1")
    assert done.returncode == 2
    assert "--objective.gama" in done.stdout + done.stderr
