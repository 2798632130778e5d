"""Writes what faults cost into docs/reliability.md, from the record of `make faults`.

RELIABILITY_RECORD=faults.jsonl make faults
python benchmarks/reliability.py faults.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from marks import fill
from record import write_record

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reliability.md"


def row(facts: dict[str, Any]) -> str:
    """A line of the table: what the test's name says, and its numbers."""
    test = facts["test"]
    file, _, name = test.partition(".py")
    said = (
        name.lstrip(":")
        .removeprefix("test_")
        .replace("_", " ")
        .replace("[", " (")
        .replace("]", ")")
    )
    numbers = [
        f"{facts[key]:g}" if key in facts else "-" for key in ("lasted_seconds", "recovery_seconds")
    ]
    part = Path(file).name.removeprefix("test_").removesuffix("_job").replace("_", " ")
    return " | ".join([f"| {part}", said, facts["lost"], *numbers, f"`{test}` |"])


def table(record: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = (
        "| job | what happens | lost | fault | recovery | command |\n|---|---|---|---:|---:|---|\n"
    )
    return head + "".join(f"{row(facts)}\n" for facts in record if "lost" in facts)


def main() -> None:
    """Reads the record that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/reliability.py RECORD")
    record = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    fill(PAGE, "rows", "python benchmarks/reliability.py", table(record).rstrip())
    write_record("reliability", {"what": "what faults cost, in seconds", "faults": record})


if __name__ == "__main__":
    main()
