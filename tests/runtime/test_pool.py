"""A task that kills every actor it is given to ends the job, in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

SCRIPT = Path(__file__).with_name("poisoned_pool.py")


@pytest.mark.jobs
def test_a_task_that_kills_its_actors_is_not_tried_for_ever(cluster, tmp_path):
    tries = tmp_path / "tries"
    done = subprocess.run(
        [sys.executable, SCRIPT, tries],
        cwd=tmp_path,
        env=cluster.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "error: attack generation: got " in done.stdout, done.stdout + done.stderr
    assert "expected actors that finish their shards" in done.stdout
    assert tries.read_text().split().count("poison") == 4
