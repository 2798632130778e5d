"""One sqlite store for all tests of tracking: creating it takes some seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.tracking import RunWriter, artifact_location, tracking_uri
from cdvae_ray.tracking import client as tracking_client

MakeWriter = Callable[..., RunWriter]


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own server must not receive the tests' runs."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CDVAE_GIT_COMMIT", raising=False)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the embedded store."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def uri(root: Path) -> str:
    """The store's address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return tracking_uri(TrackingConfig(), root)


@pytest.fixture(scope="session")
def client(uri: str) -> Any:
    """A plain MLflow client that looks at what was written."""
    return tracking_client.connect(uri)


@pytest.fixture
def make_writer(uri: str, root: Path) -> Iterator[MakeWriter]:
    """Makes writers and closes them after the test."""
    made: list[RunWriter] = []

    def make(
        *, uri: str = uri, previous_run_id: str | None = None, experiment: str = "tests"
    ) -> RunWriter:
        writer = RunWriter(
            TrackingConfig(experiment=experiment),
            uri=uri,
            experiment_artifacts=artifact_location(uri, root),
            run_name="a run",
            previous_run_id=previous_run_id,
            tags={"job": "train"},
        )
        made.append(writer)
        return writer

    yield make
    for writer in made:
        writer.close("KILLED", timeout_seconds=5)
