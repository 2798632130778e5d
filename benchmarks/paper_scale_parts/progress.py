"""Lines that tell a person who watches how far a call is."""

from __future__ import annotations

from collections.abc import Callable

from .clock import Clock

Say = Callable[[str], None]


def teller(clock: Clock) -> Say:
    """Prints lines that begin with the seconds that the call has left."""

    def say(line: str) -> None:
        print(f"[{clock.seconds_left:6.0f} s left] {line}", flush=True)

    return say
