"""Lets what Ray runs beside a training have only the time that training leaves."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

_HELPERS = (
    "ray::_AutoscalingCoordinatorActor",
    "ray::DashboardAgent",
    "ray::DatasetManager",
    "ray::_Mailbox",
    "ray::PlacementGroupCleaner",
    "ray::SynchronizationActor",
    "ray::TrainController",
)
"""How their titles begin. A process of Ray's looks a hundred times a second for an interrupt."""
_SCRIPTS = ("log_monitor.py", "monitor.py", "dashboard.py")


def helpers_stand_back() -> None:
    """Runs on a driver whose Ray is its own. Its helpers' main threads run where a core is idle.

    The threads of a step wait for each other: what takes one core for a moment holds up all. The
    helpers' other threads, which answer Ray's signs of life, keep their turn. Does nothing where
    the system has no such schedule (it is Linux's SCHED_IDLE).
    """
    if not hasattr(os, "SCHED_IDLE"):
        return
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if _is_helper(process.cmdline()):
                os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))


def _is_helper(command: list[str]) -> bool:
    title = command[0] if command else ""
    if title.startswith(_HELPERS):
        return True
    return any(Path(part).name in _SCRIPTS for part in command[1:4])
