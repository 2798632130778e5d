"""Cluster files of `ray up`: Ray's own schema, and the shape that jobs count on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from infra.checks.files import CLUSTERS, Fault, Files, document

_SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
_ASKED = (
    jsonschema.ValidationError,
    AssertionError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What Ray raises where it refuses a file."""


def filled(files: Files, path: str) -> dict[str, Any]:
    """A cluster file with Ray's defaults, as `ray up` uses it before it asks the cloud."""
    return dict(prepare_config(document(files, path)))


def schema(files: Files) -> list[Fault]:
    """Ray accepts each file, and knows each setting of its provider."""
    known = json.loads(_SCHEMA.read_text())["properties"]["provider"]["properties"]
    faults = []
    for path in CLUSTERS:
        try:
            validate_config(filled(files, path))
        except _ASKED as error:
            message = getattr(error, "message", None) or error
            faults.append(
                Fault(
                    what=f"{path} {getattr(error, 'json_path', '')}".strip(),
                    got=f"{type(error).__name__}: {str(message)[:200]}",
                    expected="a file that `ray up` accepts",
                    remedy="compare with ray/autoscaler/ray-schema.json",
                )
            )
        # Ray's schema lets unknown settings of a provider through, typing errors among them.
        faults += [
            Fault(
                what=f"{path} provider.{name}",
                got="a setting that Ray does not know",
                expected=f"one of {', '.join(sorted(known))}",
                remedy="correct its name",
            )
            for name in document(files, path).get("provider", {})
            if name not in known
        ]
    return faults


def is_spot(node_config: dict[str, Any]) -> bool:
    """Whether a node type is a spot machine, on either cloud."""
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    model = node_config.get("scheduling", {}).get("provisioningModel")
    return bool(market == "spot" or model == "SPOT")


def shape(files: Files) -> list[Fault]:
    """An on-demand head; GPU workers on spot machines; a least number of them, and a most."""
    faults = []
    for path in CLUSTERS:
        config = document(files, path)
        types = dict(config["available_node_types"])
        head = types.pop(config["head_node_type"], {"node_config": {}})
        if is_spot(head["node_config"]):
            faults.append(
                Fault(
                    what=f"{path} {config['head_node_type']}",
                    got="a spot machine as head",
                    expected="one on demand",
                    remedy="a lost head loses the cluster: take the spot setting out",
                )
            )
        if not any(each["resources"].get("GPU", 0) for each in types.values()):
            faults.append(
                Fault(
                    what=f"{path} available_node_types",
                    got="no worker type with a GPU",
                    expected="one",
                    remedy="add resources: {GPU: 1} to the type of a GPU machine",
                )
            )
        for name, each in types.items():
            faults += _worker_faults(f"{path} {name}", each, config["max_workers"])
    return faults


def _worker_faults(what: str, node_type: dict[str, Any], total: int) -> Iterator[Fault]:
    if not is_spot(node_type["node_config"]):
        yield Fault(
            what=what,
            got="a machine on demand",
            expected="a spot machine",
            remedy="set InstanceMarketOptions.MarketType or scheduling.provisioningModel",
        )
    least, most = node_type.get("min_workers", 0), node_type.get("max_workers", 0)
    if not 0 <= least <= most <= total or not most:
        yield Fault(
            what=f"{what} min_workers, max_workers",
            got=f"{least}, {most} of {total}",
            expected="0 <= min_workers <= max_workers, which is 1 to the cluster's max_workers",
            remedy="correct them: the autoscaler starts max_workers nodes at most",
        )


def container_environment(config: dict[str, Any]) -> dict[str, str]:
    """The variables that docker's run options set in every node's container."""
    words = [word for option in config["docker"]["run_options"] for word in shlex.split(option)]
    pairs = [
        words[index + 1] if word in ("--env", "-e") else word.removeprefix("--env=")
        for index, word in enumerate(words)
        if word in ("--env", "-e") or word.startswith("--env=")
    ]
    return dict(pair.partition("=")[::2] for pair in pairs)


def environment(files: Files) -> list[Fault]:
    """Nodes know where checkpoints go, where MLflow is, and the token that Ray asks for."""
    faults = []
    for path in CLUSTERS:
        config = document(files, path)
        found = container_environment(config)
        for name, pattern, expected in (
            ("RAY_AUTH_MODE", r"token", "token"),
            ("CDVAE_STORAGE", r"(s3|gs)://.+", "a folder in object storage"),
            ("MLFLOW_TRACKING_URI", r"https?://.+", "the address of an MLflow server"),
        ):
            if not re.fullmatch(pattern, found.get(name, "")):
                faults.append(
                    Fault(
                        what=f"{path} docker.run_options {name}",
                        got=found.get(name, "nothing"),
                        expected=expected,
                        remedy=f"add --env {name}=...",
                    )
                )
        mounts = config.get("file_mounts", {})
        if not any(inside.endswith("/.ray/auth_token") for inside in mounts):
            faults.append(
                Fault(
                    what=f"{path} file_mounts",
                    got=yaml.safe_dump(mounts, default_flow_style=True).strip(),
                    expected="the token's file at .ray/auth_token in the container's home",
                    remedy="mount ~/.ray/auth_token there",
                )
            )
    return faults
