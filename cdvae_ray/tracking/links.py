"""Where the MLflow UI shows a run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from urllib.parse import urlsplit

from cdvae_ray.tracking.address import redact
from cdvae_ray.tracking.client import connect

LOCAL_UI = "http://127.0.0.1:5000"
"""Where `make ui` shows a database."""

logger = logging.getLogger("cdvae_ray.tracking")


def run_links(uri: str, run_ids: Collection[str]) -> dict[str, str]:
    """Addresses of runs in the UI, without any password that the store's address holds.

    Trouble with the store is one warning, and leaves out what it hits: a report is one without
    links as well.

    Args:
        uri: the store's address. A database has its UI where `make ui` opens it.
        run_ids: of the runs.
    """
    scheme = urlsplit(uri).scheme
    if not run_ids or scheme.startswith(("databricks", "uc")):
        # Those show runs by other addresses.
        return {}
    ui = redact(uri).rstrip("/") if scheme in ("http", "https") else LOCAL_UI
    links = {}
    try:
        client = connect(uri)
        for run_id in run_ids:
            experiment = client.get_run(run_id).info.experiment_id
            links[run_id] = f"{ui}/#/experiments/{experiment}/runs/{run_id}"
    except Exception as error:  # noqa: BLE001 - a report must not be lost to its tracker
        logger.warning("no links to MLflow runs: %s", redact(str(error)))
    return links
