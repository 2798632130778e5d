"""What a job tells its tracker can be read back from the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.errors import TrackingError
from cdvae_ray.tracking import NullWriter, RunWriter, Writer, fetch_checkpoint, open_writer
from cdvae_ray.tracking.writer import flatten

DIGEST = "0123456789abcdef" * 4
PNG = b"\x89PNG\r\n\x1a\n"


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _id(writer: Writer) -> str:
    run_id = writer.run_id(timeout_seconds=60)
    assert run_id
    return run_id


@pytest.fixture(scope="module")
def finished(root: Path, uri: str) -> str:
    """The id of a run that logged one of everything and three checkpoints."""
    writer = RunWriter(
        TrackingConfig(experiment="finished"),
        uri=uri,
        experiment_artifacts=(root / "mlartifacts").as_uri(),
        run_name="first",
        previous_run_id=None,
        tags={"job": "train"},
    )
    writer.log_config({"model": {"width": 2, "name": ""}, "betas": (0.9, 0.95), "long": "x" * 9000})
    writer.log_dataset("digits", DIGEST, "digits", 1437, 10)
    writer.log_dataset("digits-test", DIGEST[::-1], "digits", 360, 10, "test")
    for step, loss in enumerate((0.7, 0.2, 0.5)):
        writer.log_metrics({"loss": loss, "accuracy": 1 - loss}, step)
        writer.log_checkpoint(
            f"epoch-{step}",
            step,
            {"model.safetensors": bytes([step]) * 100, "sub/config.json": b"{}"},
            {"model": {"width": 2}},
            {"loss": loss, "robust_accuracy": loss / 2},
        )
    writer.log_table({"image": [1, 2], "label": ["a", "b"]}, "tables/errors.json")
    writer.log_image(PNG, "figures/curve.png")
    writer.log_text("naïve", "notes.txt")
    writer.close("FINISHED")
    return _id(writer)


def test_params_metrics_and_tags_come_back(finished: str, client: Any) -> None:
    run = client.get_run(finished)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    long = run.data.params.pop("long")
    assert len(long) == 6000 and long.endswith("x...")
    assert run.data.params == {"model.width": "2", "model.name": "", "betas": "[0.9, 0.95]"}
    assert run.data.metrics["loss"] == 0.5
    assert run.data.tags["job"] == "train"
    assert run.data.tags["environment.torch"]
    assert run.data.tags["git.commit"]
    # The checkpoint's metrics are the points that the epoch logged, not second ones.
    assert [(m.step, m.value) for m in client.get_metric_history(finished, "loss")] == [
        (0, 0.7),
        (1, 0.2),
        (2, 0.5),
    ]


def test_datasets_come_back_with_their_digests(finished: str, client: Any) -> None:
    run = client.get_run(finished)
    inputs = {entry.dataset.name: entry for entry in run.inputs.dataset_inputs}
    train = inputs["digits"]
    assert train.dataset.digest == DIGEST[:16]
    assert DIGEST in train.dataset.source
    assert '"num_images": 1437' in train.dataset.profile
    assert [tag.value for tag in train.tags] == ["train"]
    assert [tag.value for tag in inputs["digits-test"].tags] == ["test"]
    assert run.data.tags["dataset.train.digest"] == DIGEST


def test_artifacts_come_back(
    finished: str, client: Any, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(client.download_artifacts(finished, "", str(tmp_path)))
    files = _files(folder)
    assert files["figures/curve.png"] == PNG
    assert files["notes.txt"].decode() == "naïve"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # load_table asks for it
    table = client.load_table(client.get_run(finished).info.experiment_id, "tables/errors.json")
    assert table[["image", "label"]].to_dict("list") == {"image": [1, 2], "label": ["a", "b"]}


def test_checkpoints_are_logged_models_that_rank_by_metric(finished: str, client: Any) -> None:
    run = client.get_run(finished)
    models = client.search_logged_models(
        [run.info.experiment_id], order_by=[{"field_name": "metrics.loss", "ascending": True}]
    )
    assert [model.name for model in models] == ["epoch-1", "epoch-2", "epoch-0"]
    best = models[0]
    assert best.status == "READY" and best.source_run_id == finished
    assert best.params == {"model.width": "2"}
    assert {metric.key: metric.value for metric in best.metrics} == {
        "loss": 0.2,
        "robust_accuracy": 0.1,
    }
    outputs = {output.model_id: output.step for output in run.outputs.model_outputs}
    assert outputs == {model.model_id: int(model.name[-1]) for model in models}


def test_checkpoints_can_be_fetched_by_every_address(
    finished: str, client: Any, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_id = client.get_run(finished).outputs.model_outputs[0].model_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow's registration asks for it
    client.create_registered_model("registered")
    client.create_model_version("registered", f"models:/{model_id}", await_creation_for=0)
    client.set_registered_model_alias("registered", "best", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    step = client.get_logged_model(model_id).tags["step"]
    for number, (address, expected) in enumerate(
        {
            f"runs:/{finished}": 2,
            f"runs:/{finished}/epoch-1": 1,
            f"models:/{model_id}": int(step),
            "models:/registered/1": int(step),
            "models:/registered@best": int(step),
        }.items()
    ):
        folder = fetch_checkpoint(address, tracking_uri=uri, into=tmp_path / str(number))
        assert folder.is_relative_to(tmp_path)
        assert _files(folder) == {
            "model.safetensors": bytes([expected]) * 100,
            "sub/config.json": b"{}",
        }


def test_a_checkpoint_that_is_not_there_is_named_in_the_error(
    finished: str, uri: str, tmp_path: Path
) -> None:
    for address, message in {
        f"runs:/{finished}/epoch-9": "epoch-0, epoch-1, epoch-2",
        "runs:/0123456789abcdef0123456789abcdef": "not found",
        "models:/m-0123456789abcdef0123456789abcdef": "not found",
        "models:/nothing/1": "not found",
        "models:/nothing@best": "not found",
        "epoch-1": "checkpoint address",
    }.items():
        with pytest.raises(TrackingError, match=message):
            fetch_checkpoint(address, tracking_uri=uri, into=tmp_path)
    absent = tmp_path / "absent.db"
    with pytest.raises(TrackingError, match="no file"):
        fetch_checkpoint(f"runs:/{finished}", tracking_uri=f"sqlite:///{absent}", into=tmp_path)
    assert not absent.exists()


def test_a_reopened_run_goes_on_without_doubles(
    client: Any,
    uri: str,
    make_writer: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = {"seed": 1, "workers": 2}
    first = make_writer()
    first.log_config(config)
    first.log_checkpoint("epoch-0", 0, {"a": b"0"}, {}, {"loss": 1.0})
    first.log_table({"a": [1]}, "table.json")
    first.close("FAILED")
    run_id = _id(first)
    assert client.get_run(run_id).info.status == "FAILED"

    second = make_writer(previous_run_id=run_id)
    assert second.run_id(60) == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    second.log_config({**config, "workers": 4})
    second.log_checkpoint("epoch-0", 0, {"a": b"0"}, {}, {"loss": 1.0})
    second.log_checkpoint("epoch-1", 1, {"a": b"1"}, {}, {"loss": 0.5})
    second.log_table({"a": [1, 2]}, "table.json")
    second.close("FINISHED")

    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "workers": "2"}
    assert run.data.tags["resumed.workers"] == "4" and "resumed.seed" not in run.data.tags
    assert len(run.outputs.model_outputs) == 2
    assert not caplog.records
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # load_table asks for it
    table = client.load_table(run.info.experiment_id, "table.json", run_ids=[run_id])
    assert table["a"].to_list() == [1, 2]


def test_a_store_that_does_not_open_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(
        b"no database at all, but long enough to be looked at" * 99
    )
    with pytest.raises(TrackingError, match=r"checkpoint runs:/abc: got \w+: .*; check the"):
        fetch_checkpoint(
            "runs:/abc", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", into=tmp_path / "into"
        )


def test_a_previous_run_of_another_store_is_replaced_by_a_new_one(
    client: Any, make_writer: Any
) -> None:
    gone = "0123456789abcdef0123456789abcdef"
    writer = make_writer(previous_run_id=gone)
    run = client.get_run(_id(writer))
    assert run.info.run_id != gone
    assert run.data.tags["previous_run_id"] == gone


def test_a_checkpoint_left_half_logged_is_completed(client: Any, make_writer: Any) -> None:
    writer = make_writer()
    run_id = _id(writer)
    experiment_id = client.get_run(run_id).info.experiment_id
    half = client.create_logged_model(experiment_id, "epoch-0", run_id, tags={"step": "0"})
    writer.log_checkpoint("epoch-0", 0, {"a": b"0"}, {}, {"loss": 1.0})
    writer.close("FINISHED")
    assert client.get_logged_model(half.model_id).status == "READY"
    assert [o.model_id for o in client.get_run(run_id).outputs.model_outputs] == [half.model_id]


def test_flatten() -> None:
    nested = {"a": {"b": {"c": 1.5}, "d": {}}, "e": None, "f": [1, "x"], "g": True}
    assert flatten(nested) == {
        "a.b.c": "1.5",
        "a.d": "{}",
        "e": "None",
        "f": '[1, "x"]',
        "g": "True",
    }


def test_tracking_turned_off_writes_nothing(tmp_path: Path) -> None:
    writer = open_writer(TrackingConfig(enabled=False), embedded_root=tmp_path, run_name="x")
    assert isinstance(writer, NullWriter)
    writer.log_config({})
    writer.log_dataset("d", DIGEST, "digits", 1, 1)
    writer.log_metrics({"a": 1.0}, 0)
    writer.log_checkpoint("c", 0, {}, {}, {})
    writer.log_table({}, "t.json")
    writer.log_image(PNG, "i.png")
    writer.log_text("", "t.txt")
    assert writer.run_id(60) is None
    writer.close("FINISHED")
    assert not list(tmp_path.iterdir())


def test_open_writer_tracks_where_the_config_says(uri: str, client: Any, tmp_path: Path) -> None:
    config = TrackingConfig(uri=uri, experiment="tests")
    writer = open_writer(config, embedded_root=tmp_path, run_name="opened")
    writer.close("FINISHED")
    assert client.get_run(_id(writer)).info.status == "FINISHED"


def test_a_run_is_announced_before_anyone_waits_for_it(uri: str, tmp_path: Path) -> None:
    announced: list[str] = []
    config = TrackingConfig(uri=uri, experiment="tests")
    writer = open_writer(
        config, embedded_root=tmp_path, run_name="announced", on_run=announced.append
    )
    run_id = _id(writer)
    writer.close("FINISHED")
    assert announced == [run_id]


def test_an_announcement_that_fails_stops_no_tracking(
    uri: str, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run_id: str) -> None:
        raise OSError(f"no room for {run_id}")

    config = TrackingConfig(uri=uri, experiment="tests")
    writer = open_writer(config, embedded_root=tmp_path, run_name="refused", on_run=refuse)
    writer.close("FINISHED")
    assert client.get_run(_id(writer)).info.status == "FINISHED"
    assert "is not noted: OSError: no room for" in caplog.text


def test_importing_the_package_imports_neither_mlflow_nor_ray() -> None:
    code = (
        "import sys, cdvae_ray.tracking; assert not {'mlflow', 'ray', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
