"""Every command that is documented or configured exists, with its options.

Programs that are here parse their own command lines (ray, mlflow, the jobs), for aws botocore's
model stands in, make's targets are read from the Makefile. Of the others only names are known.
"""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import click

from infra.checks.aws import cli_problem
from infra.checks.containers import unit_command
from infra.checks.files import (
    CLUSTERS,
    COMPOSE,
    RAYJOB,
    README,
    ROOT,
    UNIT,
    Fault,
    Files,
    document,
)
from infra.checks.job_commands import job_problem
from infra.checks.ray_cluster import filled
from infra.checks.shell import code_blocks, simple_commands

ELSEWHERE = {
    "apt-get", "cat", "chmod", "createdb", "createuser", "docker", "export", "gcloud", "git",
    "helm", "install", "journalctl", "kubectl", "openssl", "pip", "pytest", "ssh", "systemctl",
    "useradd",
}  # fmt: skip
"""Programs that cannot be asked here; their options are not checked."""
_PATH = re.compile(r"(?:^|[=/:@])((?:infra|jobs|docs|tests)/[\w./-]+|constraints\.txt)$")


def sources(files: Files) -> Iterator[tuple[str, str]]:
    """All command lines, each with its place."""
    for first, block in code_blocks(files[README], "bash"):
        for offset, line in enumerate(block.splitlines()):
            yield f"{README}:{first + offset}", line
    for path in CLUSTERS:
        config = filled(files, path)
        for kind in ("initialization_commands", "head_start_ray_commands"):
            for line in config[kind]:
                yield f"{path} {kind}", line
        for line in [*config["setup_commands"], *config["worker_start_ray_commands"]]:
            yield f"{path} commands of workers", line
    yield f"{RAYJOB} entrypoint", document(files, RAYJOB)["spec"]["entrypoint"]
    for name, service in document(files, COMPOSE)["services"].items():
        match service.get("command"):
            case ["sh", "-c", script]:
                yield f"{COMPOSE} {name}", script.replace("$$", "$")
    yield f"{UNIT} ExecStart", unit_command(files)


def commands(files: Files) -> list[Fault]:
    """Each command's program, sub-command, options and files exist."""
    faults = []
    for what, line in sources(files):
        try:
            found = simple_commands(line)
        except ValueError as error:
            faults.append(_fault(what, line, f"{error}"))
            continue
        for words in found:
            faults += [_fault(what, words, problem) for problem in problems(files, words)]
    return faults


def _fault(what: str, command: str | Sequence[str], problem: str) -> Fault:
    text = command if isinstance(command, str) else " ".join(command)
    return Fault(
        what=what,
        got=f"`{text[:80]}`: {problem}",
        expected="a command that exists",
        remedy="correct it, or name the program in infra/checks/commands.py",
    )


def problems(files: Files, words: Sequence[str]) -> Iterator[str]:
    """What is wrong with a simple command."""
    for word in words:
        if (path := _PATH.search(word)) and path[1] not in files and not (ROOT / path[1]).exists():
            yield f"no file {path[1]}"
    program, rest = PurePosixPath(words[0]).name, list(words[1:])
    if program == "sudo":
        yield from problems(files, rest[2:] if rest[:1] == ["-u"] else rest)
    elif program in _PROGRAMS:
        yield from _click_problems(files, program, rest)
    elif program == "aws":
        if problem := cli_problem(rest):
            yield problem
    elif program == "make":
        yield from _make_problems(files, rest)
    elif program in ("python", "python3"):
        yield from _python_problems(rest)
    elif program == "exec":
        yield from problems(files, rest)
    elif program not in ELSEWHERE:
        yield f"unknown program {program}"


_PROGRAMS = {"ray": "ray.scripts.scripts", "mlflow": "mlflow.cli"}
"""Modules that hold click's description of a program; importing them takes seconds."""


@cache
def _program(name: str) -> click.Command:
    with warnings.catch_warnings():
        # MLflow warns of its own type hints.
        warnings.simplefilter("ignore")
        command: click.Command = importlib.import_module(_PROGRAMS[name]).cli
    return command


def _click_problems(files: Files, program: str, words: list[str]) -> Iterator[str]:
    try:
        values = _click_values(program, words)
    except click.ClickException as error:
        yield error.format_message()
        return
    if (text := values.get("runtime_env_json")) is not None:
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            yield f"--runtime-env-json is no JSON: {error}"
    # Commands that are carried out elsewhere: `ray exec <file> CMD`, `ray job submit -- ...`.
    for inner in simple_commands(values.get("cmd") or ""):
        yield from problems(files, inner)
    if entrypoint := values.get("entrypoint"):
        yield from problems(files, list(entrypoint))


def _click_values(program: str, words: list[str]) -> dict[str, Any]:
    """The parameters of the innermost sub-command, as click itself parses them."""
    command, name, parent = _program(program), program, None
    while True:
        context = command.make_context(name, list(words), parent=parent)
        if not isinstance(command, click.Group):
            return context.params
        remaining = [*context._protected_args, *context.args]
        found, inner, words = command.resolve_command(context, remaining)
        if found is None or inner is None:
            raise click.UsageError(f"no command {' '.join(remaining)}")
        command, name, parent = inner, found, context


def _make_problems(files: Files, words: list[str]) -> Iterator[str]:
    for word in words:
        if word.startswith(("-", "ARGS=")):
            continue
        if not re.search(rf"^{re.escape(word)}:", files["Makefile"], re.MULTILINE):
            yield f"no target {word} in the Makefile"
            continue
        recipe = re.search(
            rf"^{re.escape(word)}:.*\n(?:\t.*\n)*?\t.*jobs/(\w+)\.py \$\(ARGS\)",
            files["Makefile"],
            re.MULTILINE,
        )
        given = [each.removeprefix("ARGS=") for each in words if each.startswith("ARGS=")]
        if recipe and (problem := job_problem(recipe[1], " ".join(given).split())):
            yield problem


def _python_problems(words: list[str]) -> Iterator[str]:
    script = words[0] if words else ""
    if job := re.fullmatch(r"(?:/app/)?jobs/(\w+)\.py", script):
        if problem := job_problem(job[1], words[1:]):
            yield problem
    elif script not in ("infra/check.py", "-m"):
        yield f"unknown script {script}"
