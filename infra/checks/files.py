"""What checks read and what they say: texts by path, and faults of one line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BESIDE = ("constraints.txt", "pyproject.toml", "Makefile")
"""What checks read outside infra/."""

AWS, GCP = "infra/aws/cluster.yaml", "infra/gcp/cluster.yaml"
CLUSTERS = (AWS, GCP)
RAYCLUSTER, RAYJOB = "infra/kuberay/raycluster.yaml", "infra/kuberay/rayjob.yaml"
NAMESPACE = "infra/kuberay/namespace.yaml"
MANIFESTS = (NAMESPACE, RAYCLUSTER, RAYJOB)
COMPOSE, UNIT = "infra/mlflow/compose.yaml", "infra/mlflow/mlflow.service"
DOCKERFILES = ("infra/Dockerfile", "infra/mlflow/Dockerfile")
README = "infra/README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that is wrong, and what to do about it."""

    what: str
    """The thing, by file and place."""
    got: object
    """What is there."""
    expected: str
    """What would be right."""
    remedy: str
    """What to do."""

    def __str__(self) -> str:
        line = f"{self.what}: got {self.got}, expected {self.expected}; {self.remedy}"
        return " ".join(line.split())


Files = Mapping[str, str]
"""Texts by their paths from the repository's root."""
Check = Callable[[Files], list[Fault]]


def read_files(root: Path = ROOT) -> dict[str, str]:
    """All texts that the checks look at."""
    paths = [path for path in sorted((root / "infra").rglob("*")) if _is_checked(path)]
    paths += [root / name for name in BESIDE]
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in paths}


def _is_checked(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".py", ".pyc")


def documents(files: Files, path: str) -> list[Any]:
    """The YAML documents of a file, empty ones left out."""
    return [each for each in yaml.safe_load_all(files[path]) if each is not None]


def document(files: Files, path: str) -> dict[str, Any]:
    """The one YAML document of a file."""
    (only,) = documents(files, path)
    return dict(only)


def policies(files: Files) -> list[str]:
    """The paths of all IAM policies."""
    return [path for path in files if path.startswith("infra/") and path.endswith(".json")]


def readable(files: Files) -> list[Fault]:
    """All files are there, and YAML and JSON parse."""
    needed = (*CLUSTERS, *MANIFESTS, COMPOSE, UNIT, *DOCKERFILES, README, *BESIDE)
    faults = [
        Fault(
            what=path,
            got="no such file",
            expected="one",
            remedy="restore it, or take it out of infra/checks/files.py",
        )
        for path in needed
        if path not in files
    ]
    for path, text in files.items():
        try:
            if path.endswith(".yaml"):
                list(yaml.safe_load_all(text))
            elif path.endswith(".json"):
                json.loads(text)
        except (yaml.YAMLError, json.JSONDecodeError) as error:
            faults.append(
                Fault(
                    what=path,
                    got=error,
                    expected="a file that parses",
                    remedy="correct it at the named line",
                )
            )
    return faults


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar inside lists and mappings, with its place, for example spec.env[0].value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{place}[{index}]")
    else:
        yield place, value
