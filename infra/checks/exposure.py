"""What listens where: nothing on an address that others reach without the token or a tunnel."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterator
from typing import Any

from infra.checks.containers import unit_command
from infra.checks.files import (
    AWS,
    CLUSTERS,
    COMPOSE,
    GCP,
    MANIFESTS,
    NAMESPACE,
    README,
    UNIT,
    Fault,
    Files,
    document,
    documents,
    leaves,
)
from infra.checks.kubernetes import cluster_specs, pod_templates
from infra.checks.ray_cluster import filled
from infra.checks.shell import option, simple_commands

_EVERYBODY = re.compile(r"(?<![\d.])0\.0\.0\.0/0|(?<![\w:])::/0")
"""All of the Internet, as a source of traffic."""
_SAID = re.compile(
    _EVERYBODY.pattern + r"|(?:-p|--publish)[ =](?!127\.0\.0\.1:)\S*:\d|0\.0\.0\.0|\[?::\]?:\d"
)
"""In a how-to also: a port of a container, or an address, on all interfaces."""
_SHARES_THE_MACHINE = {"hostNetwork", "hostPort", "hostPID", "hostIPC", "enableIngress"}
_TUNNELS = ("aws ssm start-session", "gcloud compute start-iap-tunnel")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def ray_clusters(files: Files) -> list[Fault]:
    """Private addresses, ssh through a tunnel, the dashboard on loopback; with Ray's defaults."""
    faults = []
    for path in CLUSTERS:
        config = filled(files, path)
        starts = [
            words
            for line in config["head_start_ray_commands"]
            for words in simple_commands(line)
            if words[:2] == ["ray", "start"]
        ]
        # Ray's default file binds it to all addresses, so that silence is not enough.
        for words in starts or [["ray", "start"]]:
            host = option(words, "--dashboard-host")
            if not is_loopback(host):
                faults.append(_public(f"{path} head_start_ray_commands --dashboard-host", host))
        if config["provider"].get("use_internal_ips") is not True:
            faults.append(_public(f"{path} provider.use_internal_ips", "not true"))
        tunnel = config["auth"].get("ssh_proxy_command", "")
        if not tunnel.startswith(_TUNNELS):
            faults.append(
                Fault(
                    what=f"{path} auth.ssh_proxy_command",
                    got=tunnel or "nothing",
                    expected=f"one of {', '.join(_TUNNELS)}",
                    remedy="reach machines without public addresses through SSM or IAP",
                )
            )
        options = " ".join(config["docker"].get("run_options", []))
        if found := re.search(r"--privileged|--publish|(?<!\S)-p\b", options):
            faults.append(_public(f"{path} docker.run_options", found[0]))
    return [*faults, *_aws(files), *_gcp(files)]


def _aws(files: Files) -> Iterator[Fault]:
    config = document(files, AWS)
    for name, node_type in config["available_node_types"].items():
        node = node_type["node_config"]
        interfaces = node.get("NetworkInterfaces", [])
        if not interfaces or any(
            each.get("AssociatePublicIpAddress") is not False for each in interfaces
        ):
            yield _public(f"{AWS} {name} NetworkInterfaces", "a public address, or the subnet's")
        # Ray's own security group opens port 22 to everybody.
        if not all(each.get("Groups") for each in interfaces):
            yield _public(f"{AWS} {name} NetworkInterfaces.Groups", "the group that Ray makes")
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield Fault(
                what=f"{AWS} {name} MetadataOptions.HttpTokens",
                got=node.get("MetadataOptions", "nothing"),
                expected="required",
                remedy="set it: otherwise a forged request can read the role's credentials",
            )


def _gcp(files: Files) -> Iterator[Fault]:
    for name, node_type in document(files, GCP)["available_node_types"].items():
        interfaces = node_type["node_config"].get("networkInterfaces", [])
        if not interfaces:
            yield _public(f"{GCP} {name} networkInterfaces", "Ray's own, with a public address")
        for each in interfaces:
            if each.get("accessConfigs") or each.get("ipv6AccessConfigs"):
                yield _public(f"{GCP} {name} networkInterfaces", "a public address")


def compose(files: Files) -> list[Fault]:
    """Published ports are on loopback; the database publishes none and is on its own network."""
    faults = []
    config = document(files, COMPOSE)
    for name, each in config["services"].items():
        faults += [
            _public(f"{COMPOSE} {name}.ports", port)
            for port in each.get("ports", [])
            if not is_loopback(_published_on(port))
        ]
        if each.get("network_mode"):
            faults.append(_public(f"{COMPOSE} {name}.network_mode", each["network_mode"]))
        if each.get("privileged"):
            faults.append(_public(f"{COMPOSE} {name}.privileged", "true"))
        if "postgres" in each["image"]:
            networks = config.get("networks", {})
            inside = each.get("networks", ["default"])
            if each.get("ports") or not all(networks.get(n, {}).get("internal") for n in inside):
                faults.append(
                    Fault(
                        what=f"{COMPOSE} {name}",
                        got="published ports, or a network that is not internal",
                        expected="a database that only the server reaches",
                        remedy="give it no ports, and networks with internal: true alone",
                    )
                )
    return faults


def _published_on(port: Any) -> str:
    """The address that a port is published on; empty for all."""
    if isinstance(port, dict):
        return str(port.get("host_ip", ""))
    # address:published:inside
    return "".join(str(port).rsplit(":", 2)[:-2])


def systemd_unit(files: Files) -> list[Fault]:
    """The server of the systemd unit listens on loopback."""
    host = option(shlex.split(unit_command(files)), "--host")
    return [] if is_loopback(host) else [_public(f"{UNIT} ExecStart --host", host)]


def kubernetes(files: Files) -> list[Fault]:
    """No service, ingress or host port leads out; a dashboard that others reach wants a token."""
    faults = []
    for path in MANIFESTS:
        for manifest in documents(files, path):
            if manifest["kind"] in ("Ingress", "Gateway", "HTTPRoute"):
                faults.append(_public(f"{path} kind", manifest["kind"]))
            for place, value in leaves(manifest):
                key = place.rpartition(".")[2]
                if (value and key in _SHARES_THE_MACHINE) or value in ("NodePort", "LoadBalancer"):
                    faults.append(_public(f"{path} {place}", value))
    guarded = any(
        each["kind"] == "NetworkPolicy"
        and "Ingress" in each["spec"].get("policyTypes", [])
        and each["spec"]["podSelector"]["matchLabels"].get("ray.io/is-ray-node") == "yes"
        and all(rule.get("from") for rule in each["spec"].get("ingress", []))
        for each in documents(files, NAMESPACE)
    )
    for path, spec in cluster_specs(files).items():
        host = spec["headGroupSpec"]["rayStartParams"].get("dashboard-host", "0.0.0.0")
        if not is_loopback(host) and not guarded:
            faults.append(
                Fault(
                    what=f"{NAMESPACE} NetworkPolicy",
                    got="none that selects Ray's pods and says who may enter",
                    expected=f"one, since the dashboard of {path} is on {host}",
                    remedy="restore the policy of namespace.yaml",
                )
            )
        if not (_operator_token(spec) or _own_token(files, path, spec)):
            faults.append(
                Fault(
                    what=f"{path} authentication",
                    got="containers of Ray without a token from a Secret",
                    expected="authOptions.mode: token, or RAY_AUTH_MODE: token and RAY_AUTH_TOKEN "
                    "from a secretKeyRef in every container and in autoscalerOptions.env",
                    remedy="add it: Ray runs any code that it is sent",
                )
            )
    return faults


def _operator_token(spec: dict[str, Any]) -> bool:
    return bool(spec.get("authOptions", {}).get("mode") == "token")


def _own_token(files: Files, path: str, spec: dict[str, Any]) -> bool:
    pods = [pod for what, pod in pod_templates(files) if what.startswith(f"{path} ")]
    environments = [pod["containers"][0].get("env", []) for pod in pods]
    environments.append(spec.get("autoscalerOptions", {}).get("env", []))
    return all(_has_token(each) for each in environments)


def _has_token(environment: list[dict[str, Any]]) -> bool:
    named = {each["name"]: each for each in environment}
    mode = named.get("RAY_AUTH_MODE", {}).get("value")
    source = named.get("RAY_AUTH_TOKEN", {}).get("valueFrom", {})
    return bool(mode == "token" and source.get("secretKeyRef"))


def how_tos(files: Files) -> list[Fault]:
    """No file or documented command opens something to all of the Internet."""
    faults = []
    for path, text in files.items():
        if not path.startswith("infra/"):
            continue
        pattern = _SAID if path == README else _EVERYBODY
        for number, line in enumerate(text.splitlines(), 1):
            if found := pattern.search(line):
                faults.append(_public(f"{path}:{number}", found[0]))
    return faults


def _public(what: str, got: object) -> Fault:
    return Fault(
        what=what,
        got=got or "nothing, which means all addresses",
        expected="nothing that others reach without authentication",
        remedy="bind it to loopback or a private address, or take it out",
    )
