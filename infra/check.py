"""Checks the files in infra/ without a network, a cloud account or Docker.

python infra/check.py

One line a check; a line of its own for each fault: what, got, expected, remedy. Exits with 1 if
there are any. Starts nothing.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

# So that `infra` and `cdvae_ray` are found from wherever the script is started.
sys.path.insert(0, str(Path(__file__).parents[1]))

from infra.checks import (
    aws,
    commands,
    containers,
    exposure,
    gcp,
    kubernetes,
    literals,
    ray_cluster,
    versions,
)
from infra.checks.files import Check, Fault, Files, read_files, readable

CHECKS: dict[str, Check] = {
    "Ray accepts the cluster files": ray_cluster.schema,
    "on-demand heads, spot GPU workers, minimum and maximum": ray_cluster.shape,
    "token, storage and MLflow reach every node": ray_cluster.environment,
    "EC2 would take the nodes": aws.node_configs,
    "IAM policies grant calls that exist, by name": aws.iam_policies,
    "Compute Engine would take the nodes": gcp.node_configs,
    "Kubernetes and KubeRay would take the manifests": kubernetes.schema,
    "Ray's autoscaler reads the manifests": kubernetes.autoscaling,
    "storage and MLflow reach jobs in Kubernetes": kubernetes.environment,
    "pods have no privileges, and have limits": kubernetes.privileges,
    "Dockerfiles": containers.dockerfiles,
    "compose file": containers.compose_words,
    "systemd unit": containers.unit_words,
    "clusters of machines are private": exposure.ray_clusters,
    "clusters in Kubernetes are private": exposure.kubernetes,
    "compose publishes on loopback": exposure.compose,
    "the systemd unit listens on loopback": exposure.systemd_unit,
    "nothing is open to everybody": exposure.how_tos,
    "package versions": versions.packages,
    "image versions": versions.images,
    "Ray's version in manifests": versions.ray_version,
    "versions of interfaces": versions.api_versions,
    "no secrets": literals.literals,
    "commands exist": commands.commands,
}


def run(files: Files) -> dict[str, list[Fault]]:
    """What each check finds. Nothing else is looked at while a file cannot be read."""
    unreadable = readable(files)
    if unreadable:
        return {"files can be read": unreadable}
    return {"files can be read": [], **{name: check(files) for name, check in CHECKS.items()}}


def main() -> int:
    """Runs all checks and prints what they find."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Ray says what it fills in
    try:
        results = run(read_files())
    finally:
        logging.disable(before)
    for name, faults in results.items():
        print(f"{'FAIL' if faults else 'ok':<6}{name}")
        for fault in faults:
            print(f"      {fault}")
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
