"""The main job where no RAY_ADDRESS is: it starts a Ray, whose helpers leave the cores to it."""

import os
import subprocess
import sys

import psutil
import pytest

from .conftest import ROOT, read_until, wait_for

JOB = [
    *("smoke", "--training.epochs", "40", "--tracking.no-enabled"),
    *("--resources.cpus-per-worker", "1"),
]
HELPERS = ("ray::TrainController", "ray::PlacementGroupCleaner", "log_monitor.py")


def schedules(driver):
    """The schedule of each process below a driver, by its command line."""
    found = {}
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            found[" ".join(process.cmdline())] = os.sched_getscheduler(process.pid)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this schedule is Linux's")
def test_helpers_of_a_ray_of_its_own_stand_back_and_the_job_ends_well(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "jobs/train.py"), *JOB],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as job:
        lines = read_until(job, "epoch")

        def standing_back():
            return {
                helper
                for command, schedule in schedules(job).items()
                for helper in HELPERS
                if helper in command and schedule == os.SCHED_IDLE
            }

        wait_for(lambda: standing_back() == set(HELPERS) or job.poll() is not None, "helpers")
        others = [
            schedule
            for command, schedule in schedules(job).items()
            if command.startswith("ray::RayTrainWorker") or "/raylet " in command
        ]
        rest, _ = job.communicate(timeout=300)
    assert job.returncode == 0, "".join(lines) + rest
    assert others == [os.SCHED_OTHER] * 2, (others, lines)
