"""How much time a call has, and whether the next piece of work fits into it."""

from __future__ import annotations

import time


class OutOfBudgetError(Exception):
    """The next piece of work does not fit: what was done is stored, another call goes on."""


class Clock:
    """The time of one call.

    The first piece of a call is always done, so that calls with any budget at all make progress;
    every other is begun only if it is expected to end in time.

    Args:
        budget_seconds: of this call.
        started: on `time.perf_counter`'s clock; now, unless said.
    """

    def __init__(self, budget_seconds: float, *, started: float | None = None) -> None:
        self._started = time.perf_counter() if started is None else started
        self._budget_seconds = budget_seconds
        self._pieces = 0

    @property
    def seconds(self) -> float:
        """Since the call began."""
        return time.perf_counter() - self._started

    @property
    def seconds_left(self) -> float:
        """Until the budget is used up; 0 past that."""
        return max(0.0, self._budget_seconds - self.seconds)

    def fits(self, expected_seconds: float) -> bool:
        """Whether a piece of work may begin."""
        return self._pieces == 0 or self.seconds + expected_seconds < self._budget_seconds

    def begin(self, expected_seconds: float) -> None:
        """Counts a piece of work in.

        Raises:
            OutOfBudgetError: it does not fit.
        """
        if not self.fits(expected_seconds):
            raise OutOfBudgetError
        self._pieces += 1
