"""What infra/audit.py makes of pip-audit's reports, offline: these are canned."""

import json
import subprocess
from datetime import date
from pathlib import Path

import pytest

from infra import audit
from infra.audit import (
    ACCEPTED,
    NOT_REACHED,
    OK,
    VULNERABLE,
    Acceptance,
    judge,
    read_accepted,
    read_report,
)

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 7, 1)
CLEAN = {"name": "numpy", "version": "2.0.0", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited"}
BAD = {
    "name": "requests",
    "version": "2.19.0",
    "vulns": [
        {
            "id": "PYSEC-2018-28",
            "fix_versions": ["2.20.0"],
            "aliases": ["CVE-2018-18074"],
            "description": "Sends a header\nto others.",
        }
    ],
}


def report(*packages):
    return {"dependencies": list(packages), "fixes": []}


def accepted(package="requests", id_="PYSEC-2018-28", until=date(2026, 12, 31)):
    return Acceptance(package, id_, "only used on loopback", until)


def entry(**changes):
    values = {"package": '"requests"', "id": '"X-1"', "reason": '"why"', "until": "2026-12-31"}
    return "[[accepted]]\n" + "".join(
        f"{name} = {value}\n" for name, value in (values | changes).items() if value
    )


def test_packages_without_known_vulnerabilities_pass():
    verdict = judge(report(CLEAN, CLEAN), [], today=TODAY)
    assert verdict == (OK, ["2 of 2 packages looked up"])


def test_a_vulnerability_fails_with_its_names_and_the_version_that_mends_it():
    verdict = judge(report(CLEAN, BAD), [], today=TODAY)
    assert verdict.code == VULNERABLE
    assert verdict.lines[0].startswith(
        "requests 2.19.0: got PYSEC-2018-28 (CVE-2018-18074), expected version 2.20.0; pin another"
    )


@pytest.mark.parametrize("name", ["PYSEC-2018-28", "CVE-2018-18074"])
def test_an_accepted_vulnerability_passes_and_is_named(name):
    verdict = judge(report(CLEAN, BAD), [accepted(id_=name)], today=TODAY)
    assert verdict == (OK, [f"2 of 2 packages looked up, accepted: requests {name}"])


def test_accepting_one_accepts_no_other():
    other = {**BAD["vulns"][0], "id": "PYSEC-2023-74", "aliases": []}
    both = {**BAD, "vulns": [*BAD["vulns"], other]}
    verdict = judge(report(both), [accepted()], today=TODAY)
    assert verdict.code == VULNERABLE
    assert "got PYSEC-2023-74, expected" in verdict.lines[0]
    elsewhere = judge(report(CLEAN, BAD), [accepted(package="numpy")], today=TODAY)
    assert elsewhere.code == VULNERABLE and len(elsewhere.lines) == 3


def test_an_acceptance_holds_until_its_day_and_no_longer():
    assert judge(report(BAD), [accepted(until=TODAY)], today=TODAY).code == OK
    verdict = judge(report(BAD), [accepted(until=date(2026, 6, 30))], today=TODAY)
    assert verdict.code == VULNERABLE
    assert "got until 2026-06-30, which is over" in verdict.lines[0]


def test_an_acceptance_of_nothing_that_is_there_fails():
    verdict = judge(report(CLEAN), [accepted()], today=TODAY)
    assert verdict.code == VULNERABLE
    assert "PYSEC-2018-28: got no such vulnerability of requests" in verdict.lines[0]


@pytest.mark.parametrize("packages", [(), (SKIPPED,), (SKIPPED, SKIPPED)])
def test_a_report_without_any_answer_is_no_pass(packages):
    verdict = judge(report(*packages), [], today=TODAY)
    assert verdict.code == NOT_REACHED
    assert verdict.lines[0].startswith("advisories could not be reached: got ")


def test_a_package_that_was_not_looked_up_is_named_and_no_pass():
    verdict = judge(report(CLEAN, SKIPPED), [], today=TODAY)
    assert verdict.code == NOT_REACHED
    assert verdict.lines[0].startswith("torch: got not looked up (Dependency not found on PyPI")
    assert judge(report(BAD, SKIPPED), [], today=TODAY).code == VULNERABLE


@pytest.mark.parametrize(
    ("output", "errors", "why"),
    [
        ("", "Traceback\nConnectionError: no route\n", "ConnectionError: no route"),
        ("", "", "pip-audit printed nothing"),
        ("", "python: No module named pip_audit\n", "No module named pip_audit"),
        ("[]", "", "another format"),
        ("{}", "", "another format"),
    ],
)
def test_output_that_is_no_report_says_why(output, errors, why):
    assert why in read_report(output, errors)


def test_what_pip_audit_prints_decides_the_exit_code(monkeypatch, capsys):
    printed = {"stdout": json.dumps(report(CLEAN)), "stderr": "", "returncode": 0}
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, **printed)

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.main() == OK
    assert capsys.readouterr().out == "1 of 1 packages looked up\n"
    for path in audit.PINS:
        assert str(ROOT / path) in commands[0]
    assert {"--no-deps", "--disable-pip"} <= set(commands[0])
    # pip-audit ends with 0 and "No known vulnerabilities found" where PyPI knows no package.
    printed["stdout"] = json.dumps(report(SKIPPED))
    assert audit.main() == NOT_REACHED
    assert capsys.readouterr().out.startswith("advisories could not be reached: got Dependency")
    printed["stdout"] = json.dumps(report(BAD))
    assert audit.main() == VULNERABLE
    printed.update(stdout="", stderr="ConnectionError: no route", returncode=1)
    assert audit.main() == NOT_REACHED
    assert "got ConnectionError: no route, expected" in capsys.readouterr().out


def test_pip_audit_that_does_not_end_is_no_pass(monkeypatch):
    def run(command, *, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.audit().code == NOT_REACHED


def test_the_committed_entries_are_sound():
    _, faults = read_accepted((ROOT / ACCEPTED).read_text())
    assert faults == []


def test_entries_are_read():
    assert read_accepted(entry()) == (
        [Acceptance("requests", "X-1", "why", date(2026, 12, 31))],
        [],
    )
    assert read_accepted("") == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        *(entry(**{name: None}) for name in ("package", "id", "reason", "until")),
        entry(reason='" "'),
        entry(until='"some day"'),
        entry(comment='"more"'),
        "accepted = 3",
        "[accepted]\nid = 'X-1'",
        "[[accepted]",
    ],
)
def test_an_entry_without_reason_or_date_fails(text, monkeypatch):
    accepted, faults = read_accepted(text)
    assert accepted == [] and len(faults) == 1
    assert "expected [[accepted]] with package, id, reason and until" in str(faults[0])
    monkeypatch.setattr(audit.Path, "read_text", lambda *_: text)
    assert audit.audit().code == VULNERABLE
