"""Which store a job writes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.errors import ConfigError
from cdvae_ray.tracking import artifact_location, redact, tracking_uri


def test_the_config_wins_over_the_environment_and_that_over_the_embedded_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(TrackingConfig(), tmp_path) == embedded
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(TrackingConfig(), tmp_path) == "http://server:5000"
    assert tracking_uri(TrackingConfig(uri="https://other"), tmp_path) == "https://other"


def test_a_relative_database_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrackingConfig(uri="sqlite:///here.db")
    assert tracking_uri(config, tmp_path) == f"sqlite:///{tmp_path}/here.db"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/a/mlruns", "file:///a/mlruns"])
def test_a_folder_is_refused_with_the_remedy(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"use sqlite:////.* or the http address"):
        tracking_uri(TrackingConfig(uri=uri), tmp_path)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in a file"):
        tracking_uri(TrackingConfig(uri=uri), tmp_path)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://server:5000", ""),
        ("databricks", ""),
        ("sqlite:////somewhere/mlflow.db", "file:///somewhere/mlartifacts"),
        ("postgresql+psycopg2://user:word@host/db", "file:///embedded/mlartifacts"),
    ],
)
def test_where_an_experiment_keeps_its_files(uri: str, expected: str) -> None:
    assert artifact_location(uri, Path("/embedded")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:p@ss@host:5000/x", "http://host:5000/x"),
        ("postgresql+psycopg2://user:word@host/db", "postgresql+psycopg2://host/db"),
        ("call of https://a:b@c/d?token=e failed", "call of https://c/d?... failed"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
        ("http://host", "http://host"),
    ],
)
def test_passwords_are_cut_out(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "fields", [{"experiment": ""}, {"experiment": " "}, {"experiment": "x" * 501}, {"uri": " x"}]
)
def test_the_config_is_checked(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tracking"):
        TrackingConfig(**fields)  # type: ignore[arg-type]
