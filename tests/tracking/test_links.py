"""Addresses of runs in the MLflow UI: right ones or none, and no password in any of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cdvae_ray.tracking import links, run_links

PASSWORD = "a-secret-word"


class Store:
    """What a client is asked for, and what it knows."""

    def __init__(self, experiments: dict[str, str], trouble: Exception | None = None) -> None:
        self.experiments, self.trouble = experiments, trouble
        self.addresses: list[str] = []

    def connect(self, uri: str) -> Store:
        self.addresses.append(uri)
        return self

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.experiments:
            raise self.trouble or LookupError(f"Run with id={run_id} not found")
        return SimpleNamespace(info=SimpleNamespace(experiment_id=self.experiments[run_id]))


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that puts a store in the place of MLflow's."""

    def put(store: Store) -> Store:
        monkeypatch.setattr(links, "connect", store.connect)
        return store

    return put


def test_runs_of_a_database_are_where_make_ui_shows_them(make_writer: Any, uri: str) -> None:
    writers = [make_writer(experiment=name) for name in ("tests", "others", "tests")]
    run_ids = [writer.run_id(60) for writer in writers]
    experiments = [links.connect(uri).get_run(each).info.experiment_id for each in run_ids]
    assert len(set(experiments)) == 2
    assert run_links(uri, run_ids) == {
        run_id: f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run_id}"
        for run_id, experiment in zip(run_ids, experiments, strict=True)
    }


@pytest.mark.parametrize(
    ("uri", "ui"),
    [
        ("http://server:5000", "http://server:5000"),
        ("http://server:5000/", "http://server:5000"),
        ("https://server/mlflow/", "https://server/mlflow"),
        (f"http://user:{PASSWORD}@server:5000", "http://server:5000"),
        (f"https://user:p@{PASSWORD}@server/mlflow", "https://server/mlflow"),
        (f"postgresql+psycopg2://user:{PASSWORD}@host/db", "http://127.0.0.1:5000"),
    ],
)
def test_a_servers_runs_are_at_its_address_without_a_password(use: Any, uri: str, ui: str) -> None:
    store = use(Store({"a": "3", "b": "0"}))
    assert run_links(uri, ["a", "b"]) == {
        "a": f"{ui}/#/experiments/3/runs/a",
        "b": f"{ui}/#/experiments/0/runs/b",
    }
    # The client itself needs the password.
    assert store.addresses == [uri]


@pytest.mark.parametrize("uri", ["databricks", "databricks://profile", "databricks-uc", "uc"])
def test_databricks_has_other_addresses_and_is_not_asked(
    use: Any, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = use(Store({"a": "3"}))
    assert run_links(uri, ["a"]) == {}
    assert not store.addresses
    assert not caplog.records


@pytest.mark.parametrize("uri", ["sqlite:////nowhere/m.db", "http://server:5000"])
def test_without_runs_no_store_is_asked(use: Any, uri: str) -> None:
    store = use(Store({}))
    assert run_links(uri, []) == {}
    assert not store.addresses


def test_a_failing_store_is_one_warning_without_a_password(
    use: Any, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"http://user:{PASSWORD}@server:5000"
    use(Store({}, trouble=ConnectionError(f"call of {uri}/api?token={PASSWORD} failed")))
    assert run_links(uri, ["a", "b", "c"]) == {}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no links to MLflow runs" in record.getMessage()
    assert "server:5000" in record.getMessage()
    assert PASSWORD not in caplog.text


def test_a_store_that_cannot_be_connected_to_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(uri: str) -> None:
        raise ValueError(f"cannot use {uri}")

    monkeypatch.setattr(links, "connect", fail)
    assert run_links(f"mysql://user:{PASSWORD}@host/db", ["a"]) == {}
    assert len(caplog.records) == 1
    assert PASSWORD not in caplog.text


def test_a_server_that_is_not_there_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert run_links(f"http://user:{PASSWORD}@127.0.0.1:9", ["a", "b"]) == {}
    warnings = [record for record in caplog.records if record.name == "cdvae_ray.tracking"]
    assert len(warnings) == 1
    assert PASSWORD not in caplog.text


def test_a_run_that_the_store_does_not_know_costs_its_own_link_alone(
    use: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # As of a step that was stored while another store was in use.
    use(Store({"a": "3", "c": "3"}))
    found = run_links("http://server", ["a", "lost", "c"])
    assert found == {
        "a": "http://server/#/experiments/3/runs/a",
        "c": "http://server/#/experiments/3/runs/c",
    }
    assert len(caplog.records) == 1
