"""What every benchmark's record says of where it was made."""

from __future__ import annotations

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cdvae_ray.tracking import environment_facts, git_commit

RECORDS = Path(__file__).parent / "records"


def write_record(name: str, results: dict[str, Any]) -> Path:
    """Writes benchmarks/records/<name>.json: results, versions, commit, machine, date."""
    RECORDS.mkdir(exist_ok=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        # The records that one command wrote before this one are no change of what it measures.
        "commit": git_commit(RECORDS.parent, apart_from=[RECORDS.name]),
        "machine": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{os.cpu_count()} CPUs",
        "environment": environment_facts(),
        "results": results,
    }
    path = RECORDS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repeats": len(values),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
