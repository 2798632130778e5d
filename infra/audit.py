"""Asks whether pinned packages have known vulnerabilities: python infra/audit.py

pip-audit asks PyPI's advisory service about each pin. Exits with 0 if every package was looked up
and has none, 1 if one has, or an entry of infra/audit.toml is wrong, and 2 if advisories could not
be reached, for all packages or some: that is no pass. pip-audit itself calls it one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

# So that `infra` is found from wherever the script is started.
sys.path.insert(0, str(Path(__file__).parents[1]))

from infra.checks.files import ROOT, Fault

PINS = ("constraints.txt", "infra/requirements-cluster.txt", "infra/requirements-mlflow.txt")
ACCEPTED = "infra/audit.toml"
OK, VULNERABLE, NOT_REACHED = 0, 1, 2
_SECONDS = 900
_SHOWN = 5


class Acceptance(NamedTuple):
    """A vulnerability that is accepted on purpose."""

    package: str
    id: str
    """The advisory's, or an alias such as CVE-2026-1234."""
    reason: str
    until: date
    """The last day on which it is accepted."""


class Verdict(NamedTuple):
    """What the audit comes to."""

    code: int
    lines: list[str]


def read_accepted(text: str) -> tuple[list[Acceptance], list[Fault]]:
    """The entries of infra/audit.toml, and what is wrong with others."""
    try:
        entries = tomllib.loads(text).get("accepted", [])
    except tomllib.TOMLDecodeError as error:
        return [], [_bad_entry("", str(error))]
    accepted, faults = [], []
    for entry in entries if isinstance(entries, list) else [entries]:
        match entry:
            case {
                "package": str(package),
                "id": str(id_),
                "reason": str(reason),
                "until": date() as until,
                **others,
            } if package and id_ and reason.strip() and not others:
                if isinstance(until, datetime):
                    until = until.date()
                accepted.append(Acceptance(package, id_, reason, until))
            case _:
                faults.append(_bad_entry("", json.dumps(entry, default=str)))
    return accepted, faults


def judge(report: Mapping[str, Any], accepted: Sequence[Acceptance], *, today: date) -> Verdict:
    """What pip-audit's report comes to.

    Args:
        report: its JSON.
        accepted: vulnerabilities that are.
        today: an entry of an earlier day is no longer valid.
    """
    packages = report["dependencies"]
    skipped = [each for each in packages if "skip_reason" in each]
    if len(skipped) == len(packages):
        why = skipped[0]["skip_reason"] if skipped else "pip-audit looked at no package"
        return not_reached(why)
    faults = [
        Fault(
            what=each["name"],
            got=f"not looked up ({each['skip_reason']})",
            expected="an answer of the advisory service",
            remedy="try again later, or pin a version that PyPI has",
        )
        for each in skipped
    ]
    code = NOT_REACHED if skipped else OK
    used = set()
    for package in packages:
        for found in package.get("vulns", []):
            names = {found["id"], *found.get("aliases", [])}
            entry = next(
                (e for e in accepted if e.package == package["name"] and e.id in names), None
            )
            if entry is not None:
                used.add(entry)
            else:
                code = VULNERABLE
                faults.append(_vulnerable(package, found))
    for entry in accepted:
        if entry.until < today:
            code = VULNERABLE
            faults.append(_bad_entry(entry.id, f"until {entry.until}, which is over"))
        elif entry not in used and not skipped:
            code = VULNERABLE
            faults.append(_bad_entry(entry.id, f"no such vulnerability of {entry.package}"))
    summary = f"{len(packages) - len(skipped)} of {len(packages)} packages looked up"
    if used:
        summary += f", accepted: {', '.join(sorted(f'{e.package} {e.id}' for e in used))}"
    return Verdict(code, [*map(str, faults), summary])


def not_reached(why: str) -> Verdict:
    """The verdict where nothing was looked up."""
    fault = Fault(
        what="advisories could not be reached",
        got=why,
        expected="an answer of PyPI's advisory service about each package",
        remedy="run make audit where the Internet can be reached; nothing is known until then",
    )
    return Verdict(NOT_REACHED, [str(fault)])


def read_report(output: str, errors: str) -> dict[str, Any] | str:
    """pip-audit's report of what it printed, or why there is none."""
    try:
        report = json.loads(output)
    except ValueError:
        return (errors.strip().splitlines() or ["pip-audit printed nothing"])[-1]
    if isinstance(report, dict) and isinstance(report.get("dependencies"), list):
        return report
    return "a report in another format than that of pip-audit 2"


def audit() -> Verdict:
    """Runs pip-audit over all pins."""
    accepted, faults = read_accepted((ROOT / ACCEPTED).read_text("utf-8"))
    if faults:
        return Verdict(VULNERABLE, [str(fault) for fault in faults])
    pins = [word for path in PINS for word in ("--requirement", str(ROOT / path))]
    flags = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *pins, *flags],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return not_reached(str(error))
    report = read_report(done.stdout, done.stderr)
    if isinstance(report, str):
        return not_reached(report)
    return judge(report, accepted, today=datetime.now(UTC).date())


def main() -> int:
    """Prints what the audit comes to."""
    verdict = audit()
    print("\n".join(verdict.lines))  # noqa: T201 - its output
    return verdict.code


def _vulnerable(package: Mapping[str, Any], found: Mapping[str, Any]) -> Fault:
    fixed = ", ".join(found.get("fix_versions", [])[:_SHOWN])
    aliases = ", ".join(found.get("aliases", [])[:_SHOWN])
    return Fault(
        what=f"{package['name']} {package['version']}",
        got=found["id"] + (f" ({aliases})" if aliases else ""),
        expected=f"version {fixed}" if fixed else "a version without it; none is known",
        remedy=f"pin another version, or accept it in {ACCEPTED} with a reason and a date",
    )


def _bad_entry(name: str, got: str) -> Fault:
    return Fault(
        what=f"{ACCEPTED} {name}".strip(),
        got=got,
        expected="[[accepted]] with package, id, reason and until, of a vulnerability that exists",
        remedy="correct the entry, look at its reason again, or remove it",
    )


if __name__ == "__main__":
    sys.exit(main())
