"""Scripts run in the test process: starting Python and PyTorch for each case takes seconds."""

import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdvae_ray.config.classifier import ClassifierConfig
from cdvae_ray.config.data import AugmentationConfig
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.config.objective import ObjectiveConfig
from cdvae_ray.config.training import TrainingConfig
from cdvae_ray.storage.store import Store
from cdvae_ray.training.cdvae_task import CdvaeTask
from cdvae_ray.training.classifier_task import ClassifierTask
from cdvae_ray.training.state import TrainState
from tests.stored_checkpoints import save_checkpoint

ROOT = Path(__file__).parents[2]
DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture
def run_script(monkeypatch, capsys):
    """A function that runs jobs/<name>.py in a folder, and gives what a process would give."""

    def run(name, folder, *arguments):
        command = [f"{name}.py", *map(str, arguments)]
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
        output = capsys.readouterr()
        return subprocess.CompletedProcess(command, stopped.value.code, output.out, output.err)

    return run


@pytest.fixture
def refused(run_script, tmp_path):
    """Asserts that a script refuses arguments in one line, with exit code 1, and writes nothing."""

    def check(name, arguments, complaint):
        before = sorted(tmp_path.rglob("*"))
        done = run_script(name, tmp_path, *arguments)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 1, done.stderr
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ")
        assert complaint in lines[0]
        for part in ("got ", ", expected ", "; "):
            assert part in lines[0]
        assert sorted(tmp_path.rglob("*")) == before

    return check


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Untrained checkpoints: CD-VAEs of digits, of other classes, that samples; a classifier."""
    folder = tmp_path_factory.mktemp("checkpoints")
    settings = {
        "training": TrainingConfig(epochs=1),
        "augmentation": AugmentationConfig(),
        "image_size": 16,
    }
    small = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1)
    cdvae = {"model": small, "objective": ObjectiveConfig(), **settings}
    tasks = {
        "digits": CdvaeTask(class_names=DIGITS, **cdvae),
        "letters": CdvaeTask(class_names=("a", "b"), **cdvae),
        "sampling": CdvaeTask(
            class_names=DIGITS, **(cdvae | {"model": replace(small, evaluation_latent="sample")})
        ),
        "classifier": ClassifierTask(
            input_kind="images",
            cdvae=None,
            model=ClassifierConfig(depth=10, widen_factor=1),
            class_names=DIGITS,
            **settings,
        ),
    }
    for name, task in tasks.items():
        save_checkpoint(
            Store.at(folder / name),
            TrainState(task, torch.device("cpu")),
            epochs_done=1,
            config_digest=name,
            identity={},
            metrics={},
        )
    return {name: folder / name / "epoch-0001" for name in tasks}
