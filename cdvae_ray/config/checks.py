"""Checks that configs apply to their fields at construction."""

from __future__ import annotations

import math

from cdvae_ray.errors import ConfigError


def require(condition: bool, what: str, *, got: object, expected: str, remedy: str) -> None:
    """Raises ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(what, got=got, expected=expected, remedy=remedy)


def at_least(what: str, value: float, minimum: float) -> None:
    """Requires a finite value >= minimum."""
    require(
        math.isfinite(value) and value >= minimum,
        what,
        got=value,
        expected=f"a finite number >= {minimum:g}",
        remedy=f"set --{what.replace('_', '-')} to such a number",
    )


def above(what: str, value: float, bound: float) -> None:
    """Requires a finite value > bound."""
    require(
        math.isfinite(value) and value > bound,
        what,
        got=value,
        expected=f"a finite number > {bound:g}",
        remedy=f"set --{what.replace('_', '-')} to such a number",
    )


def within(what: str, value: float, low: float, high: float) -> None:
    """Requires low <= value <= high."""
    require(
        math.isfinite(value) and low <= value <= high,
        what,
        got=value,
        expected=f"a number in [{low:g}, {high:g}]",
        remedy=f"set --{what.replace('_', '-')} to such a number",
    )
