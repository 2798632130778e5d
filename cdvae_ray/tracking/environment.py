"""What a run was made with: code and libraries. Environment variables are never recorded."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "ray", "mlflow", "numpy")
_COMMAND_SECONDS = 10.0


def environment_facts() -> dict[str, str]:
    """Python, platform, library versions, CPUs and GPUs of this process's machine."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": str(os.cpu_count() or "unknown"),
    }
    for package in _PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "absent"
    if gpu := _gpu_names():
        facts["gpu"] = gpu
    return facts


def git_commit(folder: Path, *, apart_from: Sequence[str] = ()) -> str:
    """The commit of the checkout around a folder, with "+changes" where the tree is dirty.

    Args:
        folder: a folder of the checkout.
        apart_from: paths below the folder whose changes do not count, such as a command's results.

    Returns:
        The commit's full hash; outside a checkout the value of CDVAE_GIT_COMMIT, which a job
        sets whose working copy travels without .git; else "unknown".
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    # A package inside an ignored folder (a virtual environment) is not that checkout's code.
    if not commit or _git(folder, "check-ignore", "."):
        return os.environ.get("CDVAE_GIT_COMMIT", "").strip()[:100] or "unknown"
    elsewhere = [":/", *(f":(exclude){path}" for path in apart_from)]
    changes = _git(folder, "status", "--porcelain", "--", *elsewhere)
    return commit + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    # GIT_DIR and its like, set while a git hook runs, would point git at another checkout.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    return _output(["git", "-C", str(folder), *arguments], environment)


def _gpu_names() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    # Asking torch for the name would initialise CUDA in the driver, which trains nothing.
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = _output(query, dict(os.environ)).splitlines()
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "unnamed"


def _output(command: list[str], environment: dict[str, str]) -> str:
    """Standard output of a command, or "" where it fails or does not exist."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
