"""Processes that take short turns on the same cores, so that a machine's drift meets all alike.

Rounds of minutes do not cancel what neighbours of a virtual machine do to it; turns of seconds do.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

TURN_SECONDS = 6.0
"""After a pause of 16 s Ray's processes took some 50 ms of a core more than in any other second:
below 1 % of a turn."""

PATIENCE_MILLISECONDS = str(10 * 60 * 1000)
PATIENT_RAY = {
    "RAY_grpc_keepalive_timeout_ms": PATIENCE_MILLISECONDS,
    "RAY_grpc_client_keepalive_timeout_ms": PATIENCE_MILLISECONDS,
    "RAY_health_check_timeout_ms": PATIENCE_MILLISECONDS,
}
"""A Ray whose processes do not give each other up while they wait for their turn."""


class Runner:
    """A process, and all that it starts, which runs in its turns alone."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self._command = " ".join(command)
        self._process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=subprocess.DEVNULL
        )
        self._turns: list[tuple[float, float]] = []
        """When its turns began and ended, as clock times."""
        self._began = time.time()

    def is_over(self) -> bool:
        """Whether it has ended, well.

        Raises:
            RuntimeError: it failed.
        """
        if self._process.poll() is None:
            return False
        if self._process.returncode:
            raise RuntimeError(f"{self._command} ended with {self._process.returncode}")
        return True

    def pause(self) -> None:
        """Its turn is over."""
        family = self._family()
        self._turns.append((self._began, time.time()))
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()

    def go_on(self) -> None:
        """Its turn begins."""
        for each in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()
        # A turn counts without the moments that many processes take to be found and woken.
        self._began = time.time()

    def end(self) -> None:
        """Kills what is left of it."""
        for each in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()

    def seconds_between(self, first: float, last: float) -> float:
        """How long it ran from one clock time to another."""
        turns = [*self._turns, (self._began, float("inf"))]
        return sum(max(0.0, min(end, last) - max(start, first)) for start, end in turns)

    def _family(self) -> list[psutil.Process]:
        try:
            head = psutil.Process(self._process.pid)
            return [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextlib.contextmanager
def ending(runners: Mapping[str, Runner]) -> Iterator[None]:
    """Leaves none of them behind."""
    try:
        yield
    finally:
        for each in runners.values():
            each.end()


def take_turns(runners: Sequence[Runner], seconds: float = TURN_SECONDS) -> None:
    """Lets each run in turn until all are over; all have been paused before."""
    left = list(runners)
    while left:
        for each in list(left):
            each.go_on()
            until = time.monotonic() + seconds
            while not (is_over := each.is_over()) and time.monotonic() < until:
                time.sleep(0.05)
            each.pause()
            if is_over:
                left.remove(each)
        # There and back, so that none is always the one after a certain other.
        left.reverse()
