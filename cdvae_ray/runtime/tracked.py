"""What every job on the driver shares in being tracked: where, and how a run ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.errors import ConfigError
from cdvae_ray.runtime import cluster, leftovers
from cdvae_ray.storage.store import Store
from cdvae_ray.tracking import Writer, named_store, tracking_uri


@contextmanager
def ending(writer: Writer) -> Iterator[None]:
    """Runs on the driver. Ends the run as FINISHED, FAILED (an error) or KILLED (stopped).

    A stopped job's actors end first: tracking may take its time.
    """
    status: Literal["FINISHED", "FAILED", "KILLED"] = "KILLED"
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    except BaseException:  # KeyboardInterrupt, SystemExit
        leftovers.end_own_actors()
        raise
    finally:
        writer.close(status, timeout_seconds=30)


def require_lasting_places(storage: str, tracking: TrackingConfig) -> None:
    """Refuses to store or track in the folder that Ray deletes after a submitted job.

    Raises:
        ConfigError: this is a submitted job, and the storage root is a relative path, or the
            storage is object storage and no MLflow store is named: an embedded one needs a disk.
    """
    cluster.require_lasting_storage(storage)
    needs_disk = tracking.enabled and not named_store(tracking)
    if needs_disk and cluster.is_submitted_job() and not Store.at(storage).is_local:
        raise ConfigError(
            "tracking",
            got=f"no MLflow store in a submitted job with the storage {storage}",
            expected="the address of one (the job's folder, where it would lie, is temporary)",
            remedy="set MLFLOW_TRACKING_URI in the job's environment, or pass "
            "--tracking.no-enabled",
        )


def tracking_address(tracking: TrackingConfig, storage: str) -> str:
    """Where a job with these settings looks for MLflow, whether it writes to it or not."""
    return tracking_uri(tracking, embedded_root(storage))


def embedded_root(storage: str) -> Path:
    """The folder of the embedded MLflow database.

    A submitted job's working directory is a copy that Ray deletes after it: the storage stays.
    """
    store = Store.at(storage)
    return Path(store.root) if cluster.is_submitted_job() and store.is_local else Path.cwd()
