"""The allocator settings of workers, for a benchmark's own process."""

from __future__ import annotations

import os
import sys

from cdvae_ray.runtime.cluster import CPU_WORKER_ENVIRONMENT


def keep_freed_memory() -> None:
    """Starts again with a worker's allocator settings: page faults would drown what is compared."""
    if any(os.environ.get(name) != value for name, value in CPU_WORKER_ENVIRONMENT.items()):
        os.environ.update(CPU_WORKER_ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, *sys.argv])
