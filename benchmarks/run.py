"""All benchmarks by one command, compared with the committed record.

python benchmarks/run.py [--only NAME ...] [--rounds N] [--compare]

Runs each benchmark, which writes its record into benchmarks/records, then writes
benchmarks/records/summary.json (date, versions, commit, machine, every measure now and before) and
the tables of docs/performance.md and of the README. What is more than 10 % worse than in the record
that was committed last is pointed out, and the exit code is 1. --compare measures nothing: it
compares the records that are there. It wants a machine that does nothing else, and two hours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from marks import fill
from measures import MEASURES, REGRESSION, Comparison, changed_conditions, compare, table
from record import RECORDS, write_record
from speed_tables import speed_tables

from cdvae_ray.evaluation.layout import markdown_table

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs/performance.md", ROOT / "README.md"
BENCHMARKS = (
    *("profile_step", "ablation", "attacks", "detectors", "attack_job"),
    *("workers", "checkpoints", "train"),
)


def main() -> None:
    """Runs, compares, points out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, help="run these alone")
    parser.add_argument("--rounds", type=int, help="of each benchmark; none: its own number")
    parser.add_argument("--compare", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    rounds = [] if arguments.rounds is None else ["--rounds", str(arguments.rounds)]
    for name in () if arguments.compare else arguments.only or BENCHMARKS:
        started = time.monotonic()
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, str(ROOT / f"benchmarks/{name}.py"), *rounds], check=True)
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)
    before, now = committed_records(), records()
    comparisons = compare(before, now)
    other = changed_conditions(before, now)
    write_record("summary", summary(comparisons, other, now))
    rows = table(comparisons)
    fill_page(PAGE, {"measures": rows, "profile": profile_table(), "ablation": ablation_table()})
    fill_page(README, speed_tables(now))
    print(f"\n{rows}\n")
    for line in other:
        print(f"not the same conditions: {line}")
    worse = [each for each in comparisons if each.is_regression]
    for each in worse:
        print(f"more than {REGRESSION:.0%} worse: {each.measure.name} ({each.measure.record})")
    sys.exit(1 if worse else 0)


def names() -> list[str]:
    """The records that measures stand in."""
    return list(dict.fromkeys(each.record for each in MEASURES))


def records() -> dict[str, dict[str, Any]]:
    """The records that are there."""
    paths = {name: RECORDS / f"{name}.json" for name in names()}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def committed_records() -> dict[str, dict[str, Any]]:
    """The records as the last commit has them; none where this is no clone."""
    found = {}
    for name in names():
        shown = subprocess.run(
            ["git", "-C", str(ROOT), "show", f"HEAD:benchmarks/records/{name}.json"],
            capture_output=True,
            text=True,
        )
        if shown.returncode == 0:
            found[name] = json.loads(shown.stdout)
    return found


def summary(
    comparisons: list[Comparison], other: list[str], now: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Every measure as JSON values, with the day, commit and machine of its record."""
    return {
        "what": "ratios of what was measured in turns in one run; medians over rounds",
        "regression": REGRESSION,
        "other_conditions": other,
        "measures": [
            {
                "group": each.measure.group,
                "name": each.measure.name,
                "record": each.measure.record,
                "made": {
                    fact: now[each.measure.record][fact] for fact in ("date", "commit", "machine")
                },
                "better": each.measure.better,
                "now": each.now._asdict() if each.now else None,
                "before": each.before._asdict() if each.before else None,
                "change": each.change,
                "is_regression": each.is_regression,
                "is_within_noise": each.is_within_noise,
            }
            for each in comparisons
        ],
    }


def profile_table() -> str:
    """Where the time of a step goes, from its record."""
    results = record("profile")
    if results is None:
        return "Not measured."
    steps = ("training step", "attack step")
    kinds = sorted({kind for step in steps for kind in results[step]}, key=str)
    kinds.sort(key=lambda kind: -results[steps[0]].get(kind, 0.0))
    lines = [[kind, *(f"{results[step].get(kind, 0.0):.1%}" for step in steps)] for kind in kinds]
    return (
        f"{markdown_table(['', *steps], lines)}\n\nThe convolutions of a training step alone, with "
        f"nothing between them, take {results['convolutions_alone']:.0%} of its time "
        f"({results['device']}, {results['threads']} threads)."
    )


def ablation_table() -> str:
    """What each measure brings, from its record."""
    results = record("ablation")
    if results is None:
        return "Not measured."
    lines = [
        [
            results["variants"][name],
            f"{ratio['median']:.3f}",
            f"{ratio['min']:.3f} to {ratio['max']:.3f}",
        ]
        for name, ratio in results["ratio"].items()
    ]
    return markdown_table(["our training step with", "of our rate", "rounds"], lines)


def record(name: str) -> dict[str, Any] | None:
    """The results of a record that is there."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text())["results"] if path.exists() else None


def fill_page(page: Path, tables: dict[str, str]) -> None:
    """Puts tables between a page's marks."""
    for name, rows in tables.items():
        fill(page, name, "python benchmarks/run.py", rows)


if __name__ == "__main__":
    main()
