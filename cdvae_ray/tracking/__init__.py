"""MLflow: the one sub-package that imports it, and only when a job is tracked."""

from cdvae_ray.tracking.address import artifact_location, named_store, redact, tracking_uri
from cdvae_ray.tracking.environment import environment_facts, git_commit
from cdvae_ray.tracking.links import run_links
from cdvae_ray.tracking.models import fetch_checkpoint
from cdvae_ray.tracking.names import metric_name
from cdvae_ray.tracking.nesting import end_nested_runs
from cdvae_ray.tracking.writer import NullWriter, RunWriter, Writer, open_writer

__all__ = [
    "NullWriter",
    "RunWriter",
    "Writer",
    "artifact_location",
    "end_nested_runs",
    "environment_facts",
    "fetch_checkpoint",
    "git_commit",
    "metric_name",
    "named_store",
    "open_writer",
    "redact",
    "run_links",
    "tracking_uri",
]
