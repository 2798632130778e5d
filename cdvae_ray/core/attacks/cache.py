"""Work on large batches in parts that a processor's cache holds."""

from __future__ import annotations

from torch import Tensor

_CACHED_BYTES = 1 << 19  # a few temporaries of this size fit the caches of one core


def cache_slices(values: Tensor) -> list[slice]:
    """Consecutive rows of a tensor (N, ...), as many at once as pay on its device.

    A chain of elementwise operations over one slice after the other reads memory once, not once an
    operation. Other devices than CPUs get one slice: they pay for each launch instead.
    """
    count = len(values)
    if values.device.type != "cpu" or values.numel() == 0:
        return [slice(0, count)]
    row_bytes = values[0].numel() * values.element_size()
    rows = max(1, _CACHED_BYTES // row_bytes)
    return [slice(first, first + rows) for first in range(0, count, rows)]
