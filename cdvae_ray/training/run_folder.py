"""A run's folder: what made it, its checkpoints, its results, and where it is tracked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cdvae_ray.errors import ConfigError, redact
from cdvae_ray.storage.artifact import has_artifact, read_artifact, write_artifact
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.training.checkpoint import checkpoint_names

RESULTS_KIND = "cdvae-results"
_RUN_FILE, _TRACKING_FILE = "run.json", "tracking.json"
_RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"


def prepare_run(run: Store, *, facts: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Makes the run's folder ready to be written to. Runs on the driver.

    Raises:
        ConfigError: the run has checkpoints, and neither --resume nor --overwrite was given.
        StorageError: the storage cannot be written.
    """
    if overwrite:
        run.delete("")
    elif (names := checkpoint_names(run)) and not resume:
        raise ConfigError(
            f"run {run.uri}",
            got=f"an unfinished run with {names[-1]}",
            expected="no such run, or a word on what to do with it",
            remedy="pass --resume to go on or --overwrite to start anew",
        )
    run.delete_partial()
    # Checkpoints that verify are the only truth on resuming; Ray's own list of them could name
    # one that is damaged or gone.
    run.delete(_RAY_SNAPSHOT)
    run.write_json(_RUN_FILE, facts)


def store_results(
    run: Store,
    digest: str,
    *,
    identity: Mapping[str, Any],
    values: Mapping[str, Any],
    picture: bytes | None,
) -> None:
    """Stores the final numbers, and a picture if there is one, under the digest of what
    determined them."""
    write_artifact(
        run,
        _results_name(digest),
        kind=RESULTS_KIND,
        files={
            "results.json": to_json_bytes(values),
            **({} if picture is None else {"picture.png": picture}),
        },
        facts={"digest": digest, "identity": dict(identity)},
    )


def stored_results(run: Store, digest: str) -> dict[str, Any] | None:
    """The numbers of exactly this training and evaluation, or None if there are none.

    Raises:
        StorageError: they are damaged.
    """
    if not has_artifact(run, _results_name(digest)):
        return None
    artifact = read_artifact(run, _results_name(digest), kind=RESULTS_KIND)
    values: dict[str, Any] = json.loads(artifact.files["results.json"])
    return values


def results_folder(run: Store, digest: str) -> str:
    """Where the results lie, for a person."""
    return run.child(_results_name(digest)).uri


def remember_tracking(run: Store, *, run_id: str, uri: str) -> None:
    """Notes the MLflow run, so that a resumed job goes on in it; of the address no password."""
    run.write_json(_TRACKING_FILE, {"run_id": run_id, "uri": redact(uri)})


def remembered_tracking(run: Store, *, uri: str) -> str | None:
    """The MLflow run of this run in the store at that address, if there is one."""
    if not run.exists(_TRACKING_FILE):
        return None
    noted = run.read_json(_TRACKING_FILE)
    return str(noted["run_id"]) if redact(str(noted.get("uri"))) == redact(uri) else None


def _results_name(digest: str) -> str:
    return f"results-{digest[:12]}"
