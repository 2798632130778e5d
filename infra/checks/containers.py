"""Dockerfiles, the compose file and the systemd unit: known words, and what images are made of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from infra.checks.files import COMPOSE, DOCKERFILES, ROOT, UNIT, Fault, Files, document

_INSTRUCTIONS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
_TOP = {"name", "services", "networks", "volumes", "secrets"}
_SERVICE = {
    "build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image",
    "networks", "ports", "restart", "secrets", "security_opt", "volumes",
    # Known to compose, and for other checks to refuse.
    "network_mode", "privileged",
}  # fmt: skip
_INNER = {
    "build": {"context", "dockerfile", "args"},
    "healthcheck": {"test", "interval", "timeout", "retries", "start_period"},
}
_SECTIONS = {
    "Unit": {"Description", "Requires", "After"},
    "Service": {
        "User", "Group", "StateDirectory", "WorkingDirectory", "Environment", "ExecStart",
        "Restart", "RestartSec", "CapabilityBoundingSet", "LockPersonality", "NoNewPrivileges",
        "PrivateDevices", "PrivateTmp", "ProtectControlGroups", "ProtectHome",
        "ProtectKernelModules", "ProtectKernelTunables", "ProtectSystem",
        "RestrictAddressFamilies", "RestrictNamespaces", "RestrictSUIDSGID", "UMask",
    },
    "Install": {"WantedBy"},
}  # fmt: skip


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions and what follows each, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def dockerfiles(files: Files) -> list[Fault]:
    """Images are pinned, do not run as root, and copy what is there and is not ignored."""
    return [fault for path in DOCKERFILES for fault in _dockerfile_faults(files, path)]


def _dockerfile_faults(files: Files, path: str) -> Iterator[Fault]:
    found = instructions(files[path])
    for word, _ in found:
        if word not in _INSTRUCTIONS:
            yield _fault(f"{path} {word}", "an unknown instruction", "an instruction of Docker")
    users = [rest for word, rest in found if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:\d+)?", users[-1]):
        yield _fault(f"{path} USER", users[-1:] or "none", "the number of a user who is not root")
    kept = {
        line[1:]
        for line in files.get(f"{path}.dockerignore", "").splitlines()
        if line.startswith("!")
    }
    for word, rest in found:
        if word == "RUN":
            for line in rest.split("&&"):
                if "pip install" in line and not re.search(r"--constraint |--no-deps ", line):
                    yield _fault(
                        f"{path} pip install", "no --constraint", "that of constraints.txt"
                    )
        if word == "COPY":
            for source in shlex.split(rest)[:-1]:
                if not (ROOT / source).exists():
                    yield _fault(f"{path} COPY {source}", "no such file", "one in the repository")
                if source not in kept:
                    yield _fault(
                        f"{path}.dockerignore", f"nothing that keeps {source}", f"a line !{source}"
                    )


def compose_words(files: Files) -> list[Fault]:
    """The compose file has known keys, and names only networks, volumes and secrets it has."""
    config = document(files, COMPOSE)
    faults = [_unknown(f"{COMPOSE} {key}") for key in config if key not in _TOP]
    for name, service in config["services"].items():
        faults += [_unknown(f"{COMPOSE} {name}.{key}") for key in service if key not in _SERVICE]
        for outer, known in _INNER.items():
            inner = service.get(outer, {})
            faults += [_unknown(f"{COMPOSE} {name}.{outer}.{k}") for k in inner if k not in known]
        for kind, used in _used(service):
            if used not in (config.get(kind) or {}):
                faults.append(_fault(f"{COMPOSE} {name} {used}", f"none in {kind}", "one there"))
    for name, secret in (config.get("secrets") or {}).items():
        if not set(secret) & {"environment", "file"}:
            faults.append(_fault(f"{COMPOSE} secrets.{name}", secret, "environment or file"))
    if found := re.search(r"\$\{\w*PASSWORD\w*:?-[^}]*\}", files[COMPOSE]):
        faults.append(_fault(f"{COMPOSE} {found[0]}", "a default password", "none"))
    return faults


def _used(service: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in ("networks", "secrets"):
        yield from ((kind, each) for each in service.get(kind, []))
    for each in service.get("volumes", []):
        # Folders of the machine begin with a dot or a slash.
        if not each.startswith((".", "/")):
            yield "volumes", each.partition(":")[0]
    for each in service.get("depends_on", {}):
        yield "services", each


def unit_command(files: Files) -> str:
    """The command that the systemd unit runs."""
    found = re.search(r"^ExecStart=(.*)$", files[UNIT].replace("\\\n", " "), re.MULTILINE)
    return found[1] if found else ""


def unit_words(files: Files) -> list[Fault]:
    """The systemd unit has known sections and settings, runs as a user of its own, is hardened."""
    faults, section, found = [], "", set[str]()
    for line in files[UNIT].replace("\\\n", " ").splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
            if section not in _SECTIONS:
                faults.append(_unknown(f"{UNIT} [{section}]"))
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found |= {key, f"{key}={value}"}
            if key not in _SECTIONS.get(section, {key}):
                faults.append(_unknown(f"{UNIT} [{section}] {key}"))
    for needed in ("ExecStart", "User=mlflow", "NoNewPrivileges=yes", "ProtectSystem=strict"):
        if needed not in found:
            faults.append(_fault(f"{UNIT} [Service]", f"no {needed}", needed))
    return faults


def _unknown(what: str) -> Fault:
    return _fault(what, "an unknown word", "a known one (infra/checks/containers.py lists them)")


def _fault(what: str, got: object, expected: str) -> Fault:
    return Fault(what=what, got=got, expected=expected, remedy="correct it")
