"""What a run was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cdvae_ray.tracking import environment_facts, git_commit


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_of_a_clean_and_of_a_dirty_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _git(tmp_path, "init")
    assert git_commit(tmp_path) == "unknown"  # nothing is committed yet
    (tmp_path / "file").write_text("1")
    (tmp_path / ".gitignore").write_text("ignored/\n")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "one")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "package").mkdir()
    (tmp_path / "ignored").mkdir()

    monkeypatch.setenv("CDVAE_GIT_COMMIT", "stale")
    assert git_commit(tmp_path) == git_commit(tmp_path / "package") == commit
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}+changes"
    monkeypatch.delenv("CDVAE_GIT_COMMIT")
    assert git_commit(tmp_path / "ignored") == "unknown"


def test_a_commands_own_results_are_no_change(tmp_path: Path) -> None:
    _git(tmp_path, "init")
    for name in ("records", "code"):
        (tmp_path / "tool" / name).mkdir(parents=True)
        (tmp_path / "tool" / name / "file").write_text("1")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "one")
    commit = _git(tmp_path, "rev-parse", "HEAD")

    (tmp_path / "tool/records/file").write_text("2")
    (tmp_path / "tool/records/new").write_text("1")
    assert git_commit(tmp_path / "tool", apart_from=["records"]) == commit
    assert git_commit(tmp_path / "tool") == f"{commit}+changes"
    (tmp_path / "elsewhere").write_text("1")
    assert git_commit(tmp_path / "tool", apart_from=["records"]) == f"{commit}+changes"


def test_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_commit(tmp_path) == "unknown"
    monkeypatch.setenv("CDVAE_GIT_COMMIT", "abc123")
    assert git_commit(tmp_path) == "abc123"


def test_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) == "unknown"


def test_facts_name_the_libraries_and_no_environment_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a-secret-word")
    facts = environment_facts()
    assert {"python", "platform", "torch", "torchvision", "ray", "mlflow", "numpy"} <= set(facts)
    assert all(facts.values())
    assert "a-secret-word" not in str(facts)
