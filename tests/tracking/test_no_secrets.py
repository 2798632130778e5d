"""Planted secrets: none is in any byte that a job writes or prints.

Processes run with fake secrets in their environment, in a checkout whose remote has a password, and
write one of everything: a run's folder, an embedded MLflow store, warnings, errors. Then every file
and both outputs are searched. The same search finds what a deliberate leak writes.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

ROOT = Path(__file__).parents[2]
SECRETS = {
    name: f"planted/{name.lower()}+3f9"
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "RAY_AUTH_TOKEN",
        "HF_TOKEN",
        "GOOGLE_API_KEY",
    )
}
REMOTE, SERVER, STORAGE = "plantedRemotePassword", "plantedServerPassword", "plantedStorageSecret"
KEY = "AKIAPLANTEDACCESSKEY"
ALL = (*SECRETS.values(), REMOTE, SERVER, STORAGE, KEY)

WRITE_EVERYTHING = """
import logging, os, sys
from pathlib import Path
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
for noisy in ("alembic", "sqlalchemy", "matplotlib", "git"):
    logging.getLogger(noisy).setLevel(logging.WARNING)
import cdvae_ray.tracking.writer as writer_module
import cdvae_ray.training.run_folder as run_folder
import cdvae_ray.errors as errors
{leak}
from cdvae_ray.cli import write_summary
from cdvae_ray.config.presets import preset
from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.data.roots import open_root
from cdvae_ray.storage.artifact import write_artifact
from cdvae_ray.storage.store import Store
from cdvae_ray.tracking import artifact_location, tracking_uri, RunWriter

folder, config = Path.cwd(), preset("smoke")
server = "http://user:{server}@127.0.0.1:9"
run = Store.at(folder / "runs").child("train").child("run")
facts = {{"config_digest": digest_of(to_dict(config.model)), "identity": to_dict(config.model)}}
run_folder.prepare_run(run, facts=facts, resume=False, overwrite=False)
run_folder.remember_tracking(run, run_id="r", uri=server)
run_folder.store_results(run, "d" * 64, identity={{}}, values={{"a": 1}}, picture=b"")
write_artifact(run, "epoch-0001", kind="k", files={{"model": b"weights"}}, facts=facts)

def log(uri, seconds):
    writer = RunWriter(
        TrackingConfig(), uri=uri, experiment_artifacts=artifact_location(uri, folder),
        run_name="run", previous_run_id=None, tags={{"job": "train"}},
    )
    writer.log_config({{
        **{{name: to_dict(getattr(config, name)) for name in ("data", "model", "training")}},
        "storage": str(config.storage),
    }})
    writer.log_dataset("digits", "d" * 64, "digits", 10, 10)
    writer.log_metrics({{"loss": 1.0}}, 0)
    writer.log_checkpoint("epoch-0001", 1, {{"model": b"weights"}}, {{"width": 2}}, {{"loss": 1.0}})
    writer.log_table({{"a": [1]}}, "tables/a.json")
    writer.log_image(b"png", "figures/a.png")
    writer.log_text("text", "notes.txt")
    writer.close("FINISHED", timeout_seconds=seconds)
    return writer.run_id(0)

run_id = log(tracking_uri(TrackingConfig(), folder), 120)
assert run_id, "nothing is tracked"
log(server, 2)
address = "s3://{key}:{storage}@bucket/runs"
for attempt in (Store.at, lambda path: open_root(path, setting="data.path")):
    for text in (address, address.replace("{storage}", "a/{storage}")):
        try:
            attempt(text)
        except errors.CdvaeError as error:
            print(f"error: {{error}}")
            logging.warning("%s %s", error, vars(error))
        else:
            raise AssertionError("keys in an address were taken")
write_summary(folder / "summary.json", job="train", run_id=run_id, checkpoint=run.uri,
              config_digest="d", metrics={{"loss": 1.0}})
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its jobs in a checkout of their own, whose remote has a password."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("cdvae_ray", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (
        ("init", "--quiet"),
        ("add", "cdvae_ray/errors.py"),
        ("commit", "--quiet", "--message", "one"),
        ("remote", "add", "origin", f"https://user:{REMOTE}@host/repository.git"),
    ):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    return folder


def run(checkout: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A Python process with all secrets in its environment, whose files go into the folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "MLFLOW_", "RAY_", "GIT_", "CDVAE_"))
    }
    (folder / "home").mkdir()
    environment = {
        **kept,
        **SECRETS,
        "AWS_ACCESS_KEY_ID": KEY,
        "MLFLOW_TRACKING_USERNAME": "user",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "home"),
        "PYTHONPATH": str(checkout),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, timeout=240
    )


def leaks(folder: Path, outputs: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Where secrets are, by file or output."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    found = {}
    for place, content in {**files, **outputs}.items():
        if seen := [secret for secret in ALL if any(form in content for form in forms(secret))]:
            found[place] = seen
    return found


def forms(secret: str) -> tuple[bytes, ...]:
    """A secret as it is, as part of an address, escaped as in JSON, and as HTTP sends it."""
    basic = base64.b64encode(f"user:{secret}".encode())
    escaped = secret.replace("/", "\\/").encode()
    return secret.encode(), quote(secret, safe="").encode(), escaped, basic


def write_everything(
    checkout: Path, folder: Path, leak: str = ""
) -> tuple[subprocess.CompletedProcess[bytes], dict[str, list[str]]]:
    script = WRITE_EVERYTHING.format(leak=leak, server=SERVER, key=KEY, storage=STORAGE)
    done = run(checkout, folder, "-c", script)
    return done, leaks(folder, {"stdout": done.stdout, "stderr": done.stderr})


def test_no_secret_is_in_any_byte_that_is_written(checkout: Path, tmp_path: Path) -> None:
    done, found = write_everything(checkout, tmp_path)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert found == {}
    # There was something to be searched: all files of a run, the commit, both warnings.
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"mlflow.db", "run.json", "tracking.json", "results.json", "summary.json"} <= names
    assert {"manifest.json", "a.json", "a.png", "notes.txt", "model"} <= names
    database = (tmp_path / "mlflow.db").read_bytes()
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, check=True
    ).stdout.strip()
    assert commit in database and b"environment.python" in database
    assert b"did not take everything" in done.stderr and b"127.0.0.1:9" in done.stderr
    assert done.stdout.count(b"got an address with credentials in it") == 4


def test_leaks_would_be_found(checkout: Path, tmp_path: Path) -> None:
    leaks_by_place = {
        "mlflow.db: environment": "writer_module.environment_facts = lambda: dict(os.environ)",
        "mlflow.db: remote": "writer_module.git_commit = lambda folder: os.popen("
        "f'git -C {folder} remote get-url origin').read()",
        "tracking.json": "run_folder.redact = lambda text: text",
        "warnings": "writer_module.redact = lambda text: text",
        "errors": "errors.redact = lambda text: text",
    }
    _, found = write_everything(checkout, tmp_path, "\n".join(leaks_by_place.values()))
    assert {*SECRETS.values(), KEY, REMOTE} <= set(found["mlflow.db"])
    assert found["runs/train/run/tracking.json"] == [SERVER]
    assert SERVER in found["stderr"]
    assert STORAGE in found["stdout"] and KEY in found["stdout"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--storage", f"s3://{KEY}:{STORAGE}@bucket/runs"],
            "error: storage: got credentials in the address s3://bucket/runs, expected",
        ),
        (
            ["--storage", f"s3://{KEY}:a/{STORAGE}@bucket/runs"],
            "error: storage: got credentials in the address s3://bucket/runs, expected",
        ),
        (
            ["--data.source", "parquet", "--data.path", f"s3://{KEY}:{STORAGE}@bucket/images"],
            "error: data.path: got credentials in the address s3://bucket/images, expected",
        ),
        (
            ["--tracking.uri", f"http://user:{SERVER}@host", "--training.global-batch-size", "999"],
            "error: training.global_batch_size: got 999, expected at most",
        ),
    ],
)
def test_a_job_that_refuses_its_command_line_shows_no_secret(
    checkout: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    done = run(checkout, tmp_path, str(checkout / "jobs" / "train.py"), "smoke", *arguments)
    assert leaks(tmp_path, {"stdout": done.stdout, "stderr": done.stderr}) == {}
    assert done.returncode == 1
    (line,) = done.stderr.decode().strip().splitlines()
    assert line.startswith(complaint)
    assert not list(tmp_path.glob("runs"))
