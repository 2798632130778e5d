"""Which MLflow store a job writes to, and where the store keeps its files."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from cdvae_ray.config.tracking import TrackingConfig
from cdvae_ray.errors import ConfigError
from cdvae_ray.errors import redact as redact

_SQLITE = "sqlite:///"
_SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")


def named_store(config: TrackingConfig) -> str:
    """The store that settings or environment name, as they write it; "" where neither does."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()


def tracking_uri(config: TrackingConfig, embedded_root: Path) -> str:
    """The store's address: the config's, else MLFLOW_TRACKING_URI, else an embedded database.

    Args:
        config: the tracking section of the job's config.
        embedded_root: the folder in which the embedded database lies.

    Returns:
        An address that stays right when the process changes its directory.

    Raises:
        ConfigError: the address names a folder, or a database that is in memory only.
    """
    given = named_store(config)
    if not given:
        return f"{_SQLITE}{embedded_root.resolve()}/mlflow.db"
    if scheme(given) in ("", "file"):
        raise ConfigError(
            "tracking.uri",
            got=f"the folder {redact(given)}",
            expected="a database or a server (MLflow no longer writes to plain folders)",
            remedy="use sqlite:////absolute/path/mlflow.db or the http address of an MLflow server",
        )
    if scheme(given) != "sqlite":
        return given
    database = given.removeprefix(_SQLITE)
    if database in (given, "", ":memory:"):
        raise ConfigError(
            "tracking.uri",
            got=given,
            expected="a sqlite database in a file",
            remedy="use sqlite:////absolute/path/mlflow.db",
        )
    return f"{_SQLITE}{Path(database).resolve()}"


def artifact_location(uri: str, embedded_root: Path) -> str:
    """Where a new experiment keeps its files.

    Args:
        uri: what `tracking_uri` returned.
        embedded_root: the folder in which the embedded database lies.

    Returns:
        A file URI beside a sqlite database (under `embedded_root` for another database that is
        written to directly), or "" for a server, which decides itself.
    """
    if is_server(uri):
        return ""
    root = database.parent if (database := sqlite_file(uri)) else embedded_root.resolve()
    return (root / "mlartifacts").as_uri()


def sqlite_file(uri: str) -> Path | None:
    """The database file behind a sqlite address, None for other addresses."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def is_server(uri: str) -> bool:
    """Whether an address names a server rather than a database."""
    return scheme(uri) in _SERVERS


def scheme(uri: str) -> str:
    """An address's scheme without its driver; MLflow takes some bare names for schemes."""
    if uri in _SERVERS:
        return uri
    return urlsplit(uri).scheme.partition("+")[0]
