"""Nested runs: found by MLflow as children, and none is left running."""

from mlflow import MlflowClient

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.tracking import end_nested_runs, open_writer


def test_a_runs_parent_is_the_one_that_its_settings_name(tmp_path):
    uri = f"sqlite:///{tmp_path}/m.db"
    ids = []
    for _ in range(3):
        config = TrackingConfig(uri=uri, parent_run=ids[-1] if ids else "")
        writer = open_writer(config, embedded_root=tmp_path, run_name="r")
        ids.append(writer.run_id(timeout_seconds=60))
        if len(ids) == 2:
            writer.close("FINISHED")
    client = MlflowClient(tracking_uri=uri)
    parents = [client.get_run(each).data.tags.get("mlflow.parentRunId") for each in ids]
    assert parents == [None, ids[0], ids[1]]
    # The one inside of a finished one still counts as running.
    assert end_nested_runs(uri, "cdvae", ids[0]) == 1
    states = [client.get_run(each).info.status for each in ids]
    assert states == ["RUNNING", "FINISHED", "KILLED"]
    assert end_nested_runs(uri, "cdvae", ids[0]) == 0


def test_an_absent_store_is_a_warning_and_no_error(caplog):
    assert end_nested_runs("http://someone:hidden@127.0.0.1:9", "cdvae", "r") == 0
    assert "may still count as running" in caplog.text
    assert "127.0.0.1" in caplog.text
    assert "hidden" not in caplog.text
