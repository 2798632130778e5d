"""Where a job is tracked."""

from __future__ import annotations

from dataclasses import dataclass

from cdvae_ray.config.checks import require

MAX_EXPERIMENT_NAME_LENGTH = 500
"""MLflow's limit, in characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where a job is tracked with MLflow."""

    enabled: bool = True
    """Track the job. Off: nothing of MLflow is imported or written."""
    experiment: str = "cdvae"
    """MLflow experiment, created where it is absent: 1 to 500 characters."""
    uri: str = ""
    """MLflow store: a server (http, https) or a database (sqlite, postgresql, ...). Empty: the
    environment's MLFLOW_TRACKING_URI, else mlflow.db beside the working directory."""
    parent_run: str = ""
    """Id of the MLflow run that this job's run is nested in; empty: a run of its own."""

    def __post_init__(self) -> None:
        require(
            len(self.experiment.strip()) > 0 and len(self.experiment) <= MAX_EXPERIMENT_NAME_LENGTH,
            "tracking.experiment",
            got=repr(self.experiment),
            expected=f"a name of 1 to {MAX_EXPERIMENT_NAME_LENGTH} characters",
            remedy="set --tracking.experiment",
        )
        require(
            self.uri == self.uri.strip(),
            "tracking.uri",
            # The address may hold a password, so it is not repeated here.
            got="an address with blanks around it",
            expected="an address without blanks around it",
            remedy="set --tracking.uri again",
        )
