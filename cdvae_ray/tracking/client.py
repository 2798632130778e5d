"""MLflow's client: how it is made, what it may print, and which of its failures pass."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

from cdvae_ray.tracking.address import sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

THREAD_NAME = "cdvae-tracking"

_DEFAULTS = {
    # MLflow's own (7 retries of 120 s) would keep one call busy for a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# They report each failed attempt (with a traceback) and the creation of tables; the writer
# reports trouble itself, once.
_NOISY_LOGGERS = ("urllib3.connectionpool", "mlflow.store.db.utils", "mlflow.utils.rest_utils")

_OUTAGE_CODES = (
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "CANCELLED",
)


class Failure(Enum):
    """What a failed call to MLflow calls for."""

    OUTAGE = "the store, its files or the way there are down: the same call works later"
    UNCLEAR = "the store's trouble or the call's own: worth some retries"
    PERMANENT = "the same call fails again"


class _NotOnTheWritersThread(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.threadName != THREAD_NAME


_quiet = _NotOnTheWritersThread()


def connect(uri: str) -> MlflowClient:
    """A client of the store at an address, without any global MLflow state.

    Imports MLflow, which takes about two seconds. Environment variables that are already set win
    over this module's defaults.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if database := sqlite_file(uri):
        database.parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    for logger in _NOISY_LOGGERS:
        logging.getLogger(logger).addFilter(_quiet)
    return MlflowClient(tracking_uri=uri)


def classify(error: BaseException) -> Failure:
    """Tells an outage from a call that will never work, by the error and what caused it."""
    import requests
    import sqlalchemy.exc
    import urllib3
    from mlflow.exceptions import MlflowException

    outages = (
        ConnectionError,
        TimeoutError,
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
        urllib3.exceptions.HTTPError,
        sqlalchemy.exc.OperationalError,
        sqlalchemy.exc.TimeoutError,
    )
    addresses = (
        requests.exceptions.InvalidURL,
        requests.exceptions.MissingSchema,
        requests.exceptions.InvalidSchema,
    )
    unclear = False
    for link in _causes(error):
        if isinstance(link, MlflowException):
            if link.error_code in _OUTAGE_CODES:
                return Failure.OUTAGE
            # INTERNAL_ERROR is also what MLflow raises by default: the cause may say more.
            if link.error_code != "INTERNAL_ERROR":
                return Failure.PERMANENT
        elif isinstance(link, addresses):
            return Failure.PERMANENT
        elif isinstance(link, requests.HTTPError) and link.response is not None:
            return _by_status(link.response.status_code)
        elif isinstance(link, requests.exceptions.RetryError):
            return Failure.UNCLEAR  # the server answered 5xx to each attempt
        elif isinstance(link, outages):
            return Failure.OUTAGE
        elif not isinstance(link, OSError):
            return Failure.UNCLEAR if unclear else Failure.PERMANENT
        unclear = True
    return Failure.UNCLEAR


def _by_status(status: int) -> Failure:
    if status in (408, 425, 429, 502, 503, 504):
        return Failure.OUTAGE
    return Failure.UNCLEAR if status >= 500 else Failure.PERMANENT


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
