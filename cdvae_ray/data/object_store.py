"""Object storage through pyarrow: opened without secrets in its address, and never waited for long.

Credentials come from where the store's own tools have them, never from an address: addresses are
written into manifests, reports and MLflow.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

CONNECT_SECONDS = 5.0
SILENT_SECONDS = 10.0
"""An S3 connection that carries nothing for this long is given up."""
ATTEMPTS = 3
"""Of each S3 request. Of a URI alone, pyarrow makes some thirty, which takes minutes."""

_SOURCES = (
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, else ~/.aws/credentials, "
    "else the machine's role"
)


class Trouble(NamedTuple):
    """What an error of a store means: the parts of a message."""

    got: str
    expected: str
    remedy: str


SECRETS_IN_ADDRESS = Trouble(
    "an address with credentials in it",
    "one without, since addresses are written into manifests and MLflow",
    f"take them out of it: S3's are read from {_SOURCES}",
)

_UNKNOWN_KEY = (
    "INVALID_ACCESS_KEY_ID|InvalidAccessKeyId|INVALID_CLIENT_TOKEN_ID|InvalidClientTokenId"
    "|InvalidToken|UNRECOGNIZED_CLIENT"
)
_MEANINGS = (
    (
        "ExpiredToken|EXPIRED_TOKEN|TokenRefreshRequired|REQUEST_EXPIRED",
        Trouble(
            "credentials that have expired",
            "credentials that are valid now",
            f"renew them; they are read from {_SOURCES}",
        ),
    ),
    (
        _UNKNOWN_KEY,
        Trouble(
            "credentials that are not known there",
            "an access key (and session token) that the store knows",
            f"correct them; they are read from {_SOURCES}",
        ),
    ),
    (
        "SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch",
        Trouble(
            "a secret key that is not the access key's",
            "the two that belong together",
            f"correct them; they are read from {_SOURCES}",
        ),
    ),
    (
        "REQUEST_TIME_TOO_SKEWED|RequestTimeTooSkewed",
        Trouble("a clock that is wrong", "this machine's clock to be right", "set the clock"),
    ),
    (
        "ACCESS_DENIED|AccessDenied",
        Trouble(
            "access denied",
            "credentials with permission for it",
            f"give them the permission, or use others; they are read from {_SOURCES}",
        ),
    ),
    (
        "NO_SUCH_BUCKET|NoSuchBucket|Bucket '[^']*' not found",
        Trouble("no such bucket", "a bucket that exists", "create it, or correct the address"),
    ),
    (
        "curlCode: 28|REQUEST_TIMEOUT",
        Trouble(
            "no answer in time",
            f"one within {SILENT_SECONDS:g} seconds, at the latest attempt of {ATTEMPTS}",
            "check the network, and endpoint_override or AWS_ENDPOINT_URL; then start again",
        ),
    ),
)


def open_uri(uri: str) -> tuple[Any, str]:
    """The filesystem of a URI without secrets, and what the path is called there.

    Raises:
        OSError, ValueError, pyarrow.ArrowException: as pyarrow does.
    """
    from pyarrow import fs

    filesystem, root = fs.FileSystem.from_uri(uri)
    return (_bounded(filesystem) if filesystem.type_name == "s3" else filesystem), root


def trouble(filesystem: Any, folder: str, error: Exception) -> Trouble | None:
    """What an error of S3 means; None of other stores and of anything that is not known.

    Args:
        filesystem: that raised it.
        folder: a path on it, of the bucket in question.
        error: that it raised.
    """
    if filesystem.type_name != "s3":
        return None
    text = str(error)
    if "No response body" in text:
        text = _reason(filesystem, folder) or text
    return next((meaning for words, meaning in _MEANINGS if re.search(words, text)), None)


def _bounded(filesystem: Any) -> Any:
    """The same with timeouts, which a URI cannot set. (Copies by pickling keep them.)"""
    from pyarrow import fs

    _, (options,) = filesystem.__reduce__()
    limits = {"connect_timeout": CONNECT_SECONDS, "request_timeout": SILENT_SECONDS}
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
    return fs.S3FileSystem(**{**options, **limits, "retry_strategy": retries})


def _reason(filesystem: Any, folder: str) -> str:
    """What S3 says of a listing that finds nothing: other answers have no body to say why."""
    import pyarrow as pa
    from pyarrow import fs

    nothing = fs.FileSelector(f"{folder.rstrip('/')}/.cdvae-no-such-name", allow_not_found=True)
    try:
        filesystem.get_file_info(nothing)
    except (pa.ArrowException, OSError) as error:
        return str(error)
    return ""
