"""Versions are pinned, and are those of constraints.txt and pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from infra.checks.files import COMPOSE, DOCKERFILES, MANIFESTS, Fault, Files, document, documents
from infra.checks.kubernetes import cluster_specs

_PIN = re.compile(r"(?<![\w.-])([A-Za-z][\w.-]*)==([\w.!+-]*\w)")
_IMAGE = re.compile(r"\b(cdvae-(?:ray|mlflow)):([\w.-]*\w)")


def constraints(files: Files) -> dict[str, str]:
    """Pinned versions by their packages' names."""
    return {_name(name): version for name, version in _PIN.findall(files["constraints.txt"])}


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def packages(files: Files) -> list[Fault]:
    """Packages are named with exact versions, and with the same everywhere."""
    known, faults = constraints(files), []
    for path, text in _of_infra(files):
        if path.startswith("infra/requirements-"):
            for line in text.splitlines():
                if found := _PIN.fullmatch(line):
                    known.setdefault(_name(found[1]), found[2])
                elif line and not line.startswith("#"):
                    faults.append(_other(f"{path} {line}", "no exact version", "name==version"))
    for path, text in _of_infra(files):
        for name, version in _PIN.findall(text):
            expected = known.get(_name(name), "a package that is pinned")
            if version != expected:
                faults.append(_other(f"{path} {name}", version, expected))
    return faults


def images(files: Files) -> list[Fault]:
    """Images are named with a tag that says their version, and none is `latest`."""
    pinned = constraints(files)
    own = tomllib.loads(files["pyproject.toml"])["project"]["version"]
    expected = {"cdvae-ray": f"{own}-ray{pinned['ray']}", "cdvae-mlflow": pinned["mlflow"]}
    faults = []
    for path, text in _of_infra(files):
        for name, tag in _IMAGE.findall(text):
            if tag != expected[name]:
                faults.append(_other(f"{path} {name}", tag, expected[name]))
    for what, image in _named_images(files):
        tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
        if tag in ("", "latest"):
            faults.append(_other(what, image, "an image with a tag that names its version"))
    return faults


def _named_images(files: Files) -> Iterator[tuple[str, str]]:
    for path, text in _of_infra(files):
        if path.endswith(".yaml"):
            for image in re.findall(r"^\s*(?:-\s*)?image:\s*(\S+)\s*$", text, re.MULTILINE):
                if not image.startswith(("&", "*")):
                    yield f"{path} image", image
    for path in DOCKERFILES:
        for base in re.findall(r"^(?:ARG BASE=|FROM )(\S+)", files[path], re.MULTILINE):
            if not base.startswith("$"):
                yield f"{path} base", base


def ray_version(files: Files) -> list[Fault]:
    """KubeRay is told the version of Ray that the image has."""
    pinned = constraints(files)["ray"]
    return [
        _other(f"{path} rayVersion", spec["rayVersion"], pinned)
        for path, spec in cluster_specs(files).items()
        if spec["rayVersion"] != pinned
    ]


def api_versions(files: Files) -> list[Fault]:
    """Manifests use KubeRay's stable interface; compose needs no version."""
    faults = [
        _other(f"{path} apiVersion", manifest["apiVersion"], "ray.io/v1")
        for path in MANIFESTS
        for manifest in documents(files, path)
        if manifest["kind"].startswith("Ray") and manifest["apiVersion"] != "ray.io/v1"
    ]
    if "version" in document(files, COMPOSE):
        faults.append(_other(f"{COMPOSE} version", "a version", "none: compose ignores it"))
    return faults


def _of_infra(files: Files) -> list[tuple[str, str]]:
    return [(path, text) for path, text in files.items() if path.startswith("infra/")]


def _other(what: str, got: str, expected: str) -> Fault:
    return Fault(
        what=what,
        got=got,
        expected=expected,
        remedy="take over the version of constraints.txt, pyproject.toml or infra/requirements-*",
    )
