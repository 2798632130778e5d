"""Everything that cdvae_ray raises on purpose.

CdvaeError
├── ConfigError          a setting, or a combination of settings, that cannot be run
├── DataError            a dataset that is absent, broken or not what was promised
├── CheckpointError      a checkpoint that is absent, damaged or of another configuration
├── StorageError         a storage root that cannot be read or written
├── ResourceError        a cluster that lacks what the job asks for
├── TrackingError        an MLflow address that cannot be resolved (never raised while training)
├── AttackError          attack generation that cannot go on
├── CheckError           results that failed their own checks
└── TrainingError        training that cannot go on
    └── NonFiniteLossError   the loss, a weight or a final number became NaN or infinite

Each message is one line: what, got, expected, remedy. No part of it shows a password, a key or the
options of an address.
"""

from __future__ import annotations

import re

_USER = re.compile(r"(\w[\w+.-]*://)[^/\s]*@")
_PASSWORD = re.compile(r"(\w[\w+.-]*://)[^/\s@:]*:(?!\d{1,5}(?:[/?#\s]|$))\S*@")
"""A user with a password, which may hold slashes that belong encoded; a port is none."""
_OPTIONS = re.compile(r"(\w://[^\s?]*)\?\S*")
_SECRET_OPTION = re.compile(r"\w://[^\s?]*\?\S*(?:secret|password|token|key|sig)[^=&\s]*=", re.I)


def redact(text: str) -> str:
    """The text with user, password and query cut out of every address in it."""
    for pattern, kept in ((_USER, r"\1"), (_PASSWORD, r"\1"), (_OPTIONS, r"\1?...")):
        text = pattern.sub(kept, text)
    return text


def holds_secrets(address: str) -> bool:
    """Whether an address has a password in it, or an option that is one by its name."""
    return bool(_PASSWORD.search(address) or _SECRET_OPTION.search(address))


class CdvaeError(Exception):
    """An error with a remedy, printed by every job as one line and exit code 1.

    Args:
        what: the thing that is wrong, by the name its user knows it by.
        got: what was found.
        expected: what would have been right.
        remedy: what to do about it.
    """

    def __init__(self, what: str, *, got: object, expected: str, remedy: str) -> None:
        self.what, self.got = redact(what), redact(str(got))
        self.expected, self.remedy = redact(expected), redact(remedy)
        super().__init__(
            _one_line(f"{self.what}: got {self.got}, expected {self.expected}; {self.remedy}")
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive an exception's default pickling between processes.
        return _rebuild, (type(self), self.what, self.got, self.expected, self.remedy)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _rebuild(kind: type[CdvaeError], what: str, got: str, expected: str, remedy: str) -> CdvaeError:
    return kind(what, got=got, expected=expected, remedy=remedy)


class ConfigError(CdvaeError):
    """A setting, or a combination of settings, that cannot be run."""


class DataError(CdvaeError):
    """A dataset that is absent, broken or not what was promised."""


class CheckpointError(CdvaeError):
    """A checkpoint that is absent, damaged or of another configuration."""


class StorageError(CdvaeError):
    """A storage root that cannot be read or written."""


class ResourceError(CdvaeError):
    """A cluster that lacks what the job asks for."""


class TrackingError(CdvaeError):
    """An MLflow address that cannot be resolved."""


class AttackError(CdvaeError):
    """Attack generation that cannot go on."""


class CheckError(CdvaeError):
    """Results that failed their own checks."""


class TrainingError(CdvaeError):
    """Training that cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""
