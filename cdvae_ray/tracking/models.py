"""Fetching a checkpoint back from MLflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cdvae_ray.errors import TrackingError
from cdvae_ray.tracking.address import redact, sqlite_file
from cdvae_ray.tracking.client import connect
from cdvae_ray.tracking.writer import STEP_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

_FORMS = (
    "runs:/<run id>, runs:/<run id>/<checkpoint name>, models:/<model id>, "
    "models:/<name>/<version> or models:/<name>@<alias>"
)


def fetch_checkpoint(uri: str, *, tracking_uri: str, into: Path) -> Path:
    """Downloads a checkpoint that `RunWriter.log_checkpoint` logged.

    Args:
        uri: `runs:/<run id>` (that run's checkpoint of the highest step),
            `runs:/<run id>/<checkpoint name>`, `models:/<model id>`, or a registered model:
            `models:/<name>/<version>`, `models:/<name>@<alias>`.
        tracking_uri: the store's address.
        into: folder to download into, created where it is absent.

    Returns:
        The local folder with the checkpoint's files.

    Raises:
        TrackingError: there is no such checkpoint, or the store does not answer.
    """
    database = sqlite_file(tracking_uri)
    # MLflow would create an empty database, only to find nothing in it.
    if database and not database.is_file():
        raise TrackingError(
            "tracking database",
            got=f"no file {database}",
            expected="the database of the job that logged the checkpoint",
            remedy="set --tracking.uri or MLFLOW_TRACKING_URI",
        )
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = connect(tracking_uri)
        location = _location(client, uri)
        into.mkdir(parents=True, exist_ok=True)
        # MLflow looks `models:/` addresses up in its global store, so it gets the place itself.
        folder = download_artifacts(
            artifact_uri=location, dst_path=str(into), tracking_uri=tracking_uri
        )
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise TrackingError(
            f"checkpoint {uri}",
            got=redact(f"{type(error).__name__}: {error}"),
            expected=f"a checkpoint in MLflow at {redact(tracking_uri)}",
            remedy="check the address and --tracking.uri (or MLFLOW_TRACKING_URI)",
        ) from error
    return Path(folder)


def _location(client: MlflowClient, uri: str) -> str:
    """Where a checkpoint's files lie."""
    kind, _, rest = uri.partition(":/")
    parts = rest.strip("/").split("/")
    if kind == "runs" and len(parts) <= 2 and parts[0]:
        return str(_of_run(client, uri, *parts).artifact_location)
    if kind == "models" and len(parts) <= 2 and parts[0]:
        return _of_model(client, uri)
    raise TrackingError("checkpoint address", got=uri, expected=_FORMS, remedy="use one of these")


def _of_run(client: MlflowClient, uri: str, run_id: str, name: str = "") -> LoggedModel:
    models = [model for model in _models_of(client, run_id) if STEP_TAG in model.tags]
    chosen = [model for model in models if name in ("", model.name)]
    if not chosen:
        names = ", ".join(sorted(model.name for model in models)) or "none"
        raise TrackingError(
            f"checkpoint {uri}",
            got=f"a run whose checkpoints are: {names}",
            expected="a checkpoint of that run",
            remedy="name one of them, or a run that has checkpoints",
        )
    return max(chosen, key=lambda model: int(model.tags[STEP_TAG]))


def _models_of(client: MlflowClient, run_id: str) -> Iterator[LoggedModel]:
    from mlflow.entities import LoggedModelStatus

    experiment_id = client.get_run(run_id).info.experiment_id
    token = None
    while True:
        page = client.search_logged_models(
            experiment_ids=[experiment_id],
            filter_string=f"source_run_id = '{run_id}'",
            page_token=token,
        )
        # A filter on the status finds nothing in a database, which keeps it as a number.
        yield from (model for model in page if model.status == LoggedModelStatus.READY)
        token = page.token
        if not token:
            return


def _of_model(client: MlflowClient, uri: str) -> str:
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    resolved = get_model_name_and_version(client, uri)
    if len(resolved) == 1:
        return str(client.get_logged_model(resolved[0]).artifact_location)
    name, version = resolved
    location = str(client.get_model_version_download_uri(name, version))
    # A version that was registered from a logged model points to that model.
    return _of_model(client, location) if location.startswith("models:/m-") else location
