"""No placement group stays behind a job that was stopped or killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, wait_for

SCRIPT = Path(__file__).with_name("place_maker.py")


@pytest.fixture
def job(cluster):
    def run(how):
        done = subprocess.run(
            [sys.executable, SCRIPT, how],
            env=cluster.environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == (how == "killed"), done.stderr
        return done.stdout.strip()

    return run


def test_a_job_that_ends_its_actors_first_leaves_no_group(job):
    for _ in range(3):
        job("orderly")
    wait_for(lambda: job("look") == "0", "end of groups", seconds=120)


def test_what_a_killed_job_left_is_given_back_and_nothing_else(job):
    job("detached")
    for _ in range(6):
        job("killed")
    left = int(job("look"))
    if left == 1:
        pytest.skip("Ray left no group of the killed jobs")
    assert job("give-back") == str(left - 1)
    assert job("look") == "1"
    job("end-detached")
    wait_for(lambda: job("look") == "0", "end of the lasting group")
