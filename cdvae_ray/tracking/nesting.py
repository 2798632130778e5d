"""Runs nested in others: the trials of a search."""

from __future__ import annotations

import logging

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.errors import redact
from cdvae_ray.tracking.client import connect

PARENT_TAG = "mlflow.parentRunId"
"""The tag by which MLflow nests runs."""

logger = logging.getLogger("cdvae_ray.tracking")


def nesting_tags(config: TrackingConfig) -> dict[str, str]:
    """What nests a job's run where its settings say so."""
    return {PARENT_TAG: config.parent_run} if config.parent_run else {}


def end_nested_runs(uri: str, experiment: str, parent_run: str) -> int:
    """Ends, as KILLED, every run nested in one, at any depth, that still counts as running.

    A trial that was stopped from outside could not end its own. Trouble with the store is one
    warning: the search's numbers do not depend on it.

    Args:
        uri: the store's address.
        experiment: its name.
        parent_run: id of the run.

    Returns:
        How many there were.
    """
    try:
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return 0
        ended, parents = 0, [parent_run]
        while parents:
            of_parent = f"tags.`{PARENT_TAG}` = '{parents.pop()}'"
            token = None
            while True:
                page = client.search_runs([found.experiment_id], of_parent, page_token=token)
                for run in page:
                    parents.append(run.info.run_id)
                    if run.info.status == "RUNNING":
                        client.set_terminated(run.info.run_id, "KILLED")
                        ended += 1
                token = page.token
                if not token:
                    break
    except Exception as error:  # noqa: BLE001 - a search must not be lost to its tracker
        said = redact(str(error))
        logger.warning("runs nested in %s may still count as running: %s", parent_run, said)
        return 0
    return ended
