"""Configs as JSON and back, and the digest that names what they determine.

A field that a config gained later (`later`) is left out while it has its default, which changes
nothing of what the config determined before: runs and checkpoints of earlier versions keep their
digests and are read as they are. Such a default must never change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any, TypeVar

from cdvae_ray.errors import ConfigError

Config = TypeVar("Config")
Value = TypeVar("Value")


_LATER = "later"


def later(default: Value) -> Value:
    """The default of a field that a config gained after runs of it were stored."""
    field: Value = dataclasses.field(default=default, metadata={_LATER: True})
    return field


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON values (tuples are lists), without later fields at their default."""
    plain: dict[str, Any] = json.loads(json.dumps(_plain(config)))
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not (field.metadata.get(_LATER) and getattr(value, field.name) == field.default)
        }
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def from_dict(kind: type[Config], values: dict[str, Any], *, what: str = "") -> Config:
    """Rebuilds a config from `to_dict`'s output, strictly but for later fields.

    Raises:
        ConfigError: a key is missing or left over, or a value fails the config's own checks.
    """
    what = what or kind.__name__
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = {field.name for field in fields}
    needed = {field.name for field in fields if not field.metadata.get(_LATER)}
    if not needed <= set(values) <= names:
        raise ConfigError(
            what,
            got=f"keys {sorted(values)}",
            expected=f"keys {sorted(names)}",
            remedy="read it with the version of cdvae_ray that wrote it",
        )
    hints = typing.get_type_hints(kind)
    parsed = {name: _parse(hints[name], value, f"{what}.{name}") for name, value in values.items()}
    return kind(**parsed)


def _parse(hint: Any, value: Any, what: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, what=what)
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_parse(inner[0], item, what) for item in value)
        return tuple(_parse(kind, item, what) for kind, item in zip(inner, value, strict=True))
    if origin in (typing.Union, types.UnionType):
        return value
    return float(value) if hint is float else value


def digest_of(values: Any) -> str:
    """The SHA-256 (hex) of JSON values in canonical form: sorted keys, no spaces."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
