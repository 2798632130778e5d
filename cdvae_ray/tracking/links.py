"""Where the MLflow UI shows a run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from cdvae_ray.tracking.address import is_server, redact, scheme
from cdvae_ray.tracking.client import Failure, classify, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `make ui` shows a database."""

logger = logging.getLogger("cdvae_ray.tracking")


def run_links(uri: str, run_ids: Collection[str]) -> dict[str, str]:
    """Addresses of runs in the UI, without any password that the store's address holds.

    A run that the store does not know is a warning and has no link; any other trouble is one
    warning for all that are left: a report is one without links as well.

    Args:
        uri: the store's address. A database has its UI where `make ui` opens it.
        run_ids: of the runs.
    """
    if not run_ids or (is_server(uri) and scheme(uri) not in ("http", "https")):
        # Databricks shows runs by other addresses.
        return {}
    ui = redact(uri).rstrip("/") if is_server(uri) else LOCAL_UI
    links = {}
    try:
        client = connect(uri)
        for run_id in run_ids:
            experiment = _experiment_of(client, run_id)
            if experiment is not None:
                links[run_id] = f"{ui}/#/experiments/{experiment}/runs/{run_id}"
    except Exception as error:  # noqa: BLE001 - a report must not be lost to its tracker
        logger.warning("no links to MLflow runs: %s", redact(str(error)))
    return links


def _experiment_of(client: MlflowClient, run_id: str) -> str | None:
    """The run's experiment; None where the store answers that it knows no such run."""
    try:
        return str(client.get_run(run_id).info.experiment_id)
    except Exception as error:
        # A stored step may remember a run of a store that has been cleaned up since.
        if classify(error) is Failure.PERMANENT:
            logger.warning("no link to MLflow run %s: %s", run_id, redact(str(error)))
            return None
        raise
