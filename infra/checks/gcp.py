"""Compute Engine: what `ray up` would send to instances.insert, against Google's description.

google-api-python-client carries the discovery document; nothing here needs a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import googleapiclient

from infra.checks.files import GCP, Fault, Files, document

_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
_BY_RAY = {"sourceInstanceTemplate", "networkConfig"}
"""Keys that Ray takes out before it calls."""


@cache
def _schemas() -> dict[str, Any]:
    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    return dict(json.loads((folder / "compute.v1.json").read_text("utf-8"))["schemas"])


def node_configs(files: Files) -> list[Fault]:
    """Every node_config is a valid instance: names, types and choices."""
    faults = []
    for name, node_type in document(files, GCP)["available_node_types"].items():
        instance = {k: v for k, v in node_type["node_config"].items() if k not in _BY_RAY}
        faults += [
            Fault(
                what=f"{GCP} {name} {place}",
                got=got,
                expected=expected,
                remedy="correct it: instances.insert of Compute Engine would refuse it",
            )
            for place, got, expected in _problems(instance, {"$ref": "Instance"}, "node_config")
        ]
    return faults


def _problems(value: Any, schema: dict[str, Any], place: str) -> Iterator[tuple[str, str, str]]:
    """Place, what is there and what is expected, for everything that does not fit."""
    schema = _schemas()[schema["$ref"]] if "$ref" in schema else schema
    kind = schema.get("type")
    if kind == "object":
        if not isinstance(value, dict):
            yield place, f"{value!r}", "a mapping"
            return
        for key, inner in value.items():
            known = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if known is None:
                yield f"{place}.{key}", "an unknown key", ", ".join(sorted(schema["properties"]))
            else:
                yield from _problems(inner, known, f"{place}.{key}")
    elif kind == "array":
        if not isinstance(value, list):
            yield place, f"{value!r}", "a list"
            return
        for index, inner in enumerate(value):
            yield from _problems(inner, schema["items"], f"{place}[{index}]")
    elif not _fits(value, schema):
        yield place, f"{value!r}", f"a {kind}"
    elif "enum" in schema and value not in schema["enum"]:
        yield place, f"{value!r}", f"one of {', '.join(schema['enum'])}"


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    # 64-bit integers are strings in the description, and numbers in what people write.
    if schema.get("format") in ("int64", "uint64"):
        return str(value).isdigit()
    if isinstance(value, bool):
        return bool(schema["type"] == "boolean")
    return isinstance(value, _TYPES.get(schema["type"], object))
