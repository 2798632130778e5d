"""Manifests: Kubernetes' own schemas, KubeRay's fields, and what pods may do.

kubernetes-validate carries Kubernetes' schemas. KubeRay's are in no Python package: the fields that
its releases 1.6 and 1.7 have and that we might use are written down here; others are refused.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from referencing import Registry, Resource

from infra.checks.files import MANIFESTS, RAYCLUSTER, RAYJOB, Fault, Files, document, documents
from infra.checks.shell import option

KUBERNETES = "1.34"
"""The release whose schemas are used."""

Schema = dict[str, Any]
_DEFINITIONS = "https://kubernetes.io/api/_definitions.json#/$defs/io.k8s."


def _core(name: str) -> Schema:
    return {"$ref": f"{_DEFINITIONS}{name}"}


def _closed(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT: Schema = {"type": "string", "minLength": 1}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_POD = _core("api.core.v1.PodTemplateSpec")
_AUTOSCALER = _closed(
    version={"enum": ["v1", "v2"]},
    idleTimeoutSeconds=_COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    image=_TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    resources=_core("api.core.v1.ResourceRequirements"),
    securityContext=_core("api.core.v1.SecurityContext"),
    env={"type": "array", "items": _core("api.core.v1.EnvVar")},
    envFrom={"type": "array", "items": _core("api.core.v1.EnvFromSource")},
    volumeMounts={"type": "array", "items": _core("api.core.v1.VolumeMount")},
)
_HEAD = _closed(
    ("template", "rayStartParams"),
    template=_POD,
    rayStartParams=_TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    headService=_core("api.core.v1.Service"),
    enableIngress=_FLAG,
    labels=_TEXTS,
    resources=_TEXTS,
)
_WORKERS = _closed(
    ("groupName", "minReplicas", "maxReplicas", "template", "rayStartParams"),
    groupName=_TEXT,
    replicas=_COUNT,
    minReplicas=_COUNT,
    maxReplicas=_COUNT,
    numOfHosts=_COUNT,
    idleTimeoutSeconds=_COUNT,
    rayStartParams=_TEXTS,
    template=_POD,
    labels=_TEXTS,
    resources=_TEXTS,
)
_CLUSTER = _closed(
    ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=_TEXT,
    authOptions=_closed(mode={"enum": ["disabled", "token"]}, enableK8sTokenAuth=_FLAG),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions=_AUTOSCALER,
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS, "minItems": 1},
    headServiceAnnotations=_TEXTS,
    suspend=_FLAG,
)
_JOB = _closed(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=_TEXT,
    runtimeEnvYAML=_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterPodTemplate=_POD,
    submitterConfig=_closed(backoffLimit=_COUNT),
    backoffLimit=_COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    metadata=_TEXTS,
    rayClusterSpec=_CLUSTER,
    suspend=_FLAG,
)


def _kuberay(kind: str, spec: Schema) -> Schema:
    return _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_core("apimachinery.pkg.apis.meta.v1.ObjectMeta"),
        spec=spec,
    )


_KUBERAY = {"RayCluster": _kuberay("RayCluster", _CLUSTER), "RayJob": _kuberay("RayJob", _JOB)}


@cache
def _registry() -> Registry[Any]:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    text = (folder / f"v{KUBERNETES}.0-local-strict" / "_definitions.json").read_text("utf-8")
    return Resource.from_contents(json.loads(text)) @ Registry()


def schema(files: Files) -> list[Fault]:
    """Every manifest has the fields of its kind, of the right types, and no others."""
    return [
        Fault(
            what=f"{path} {manifest.get('kind')} {problem.json_path}",
            got=problem.message[:200],
            expected=f"what Kubernetes {KUBERNETES} and KubeRay take",
            remedy="correct it: unknown fields are dropped or refused",
        )
        for path in MANIFESTS
        for manifest in documents(files, path)
        for problem in _problems(manifest)
    ]


def _problems(manifest: dict[str, Any]) -> Iterator[jsonschema.ValidationError]:
    if kuberay := _KUBERAY.get(manifest.get("kind", "")):
        validator = jsonschema.Draft202012Validator(kuberay, registry=_registry())
        yield from validator.iter_errors(manifest)
        return
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except jsonschema.ValidationError as error:
        yield error
    except kubernetes_validate.SchemaNotFoundError as error:
        yield jsonschema.ValidationError(error.message)


def cluster_specs(files: Files) -> dict[str, dict[str, Any]]:
    """The cluster of each KubeRay manifest, by path."""
    job = document(files, RAYJOB)["spec"]["rayClusterSpec"]
    return {RAYCLUSTER: document(files, RAYCLUSTER)["spec"], RAYJOB: job}


def autoscaling(files: Files) -> list[Fault]:
    """Ray's autoscaler, which runs in the head's pod, can read each cluster."""
    faults = []
    for path, spec in cluster_specs(files).items():
        manifest = {"metadata": {"name": "cdvae", "namespace": "cdvae"}, "spec": spec}
        try:
            _derive_autoscaling_config_from_ray_cr(manifest)
        except (jsonschema.ValidationError, KeyError, ValueError, AssertionError) as error:
            faults.append(
                Fault(
                    what=f"{path} autoscaling",
                    got=f"{type(error).__name__}: {str(error)[:200]}",
                    expected="groups that Ray's autoscaler understands",
                    remedy="correct rayStartParams, resources and replicas",
                )
            )
        if not (spec.get("enableInTreeAutoscaling") and spec.get("autoscalerOptions")):
            faults.append(
                Fault(
                    what=f"{path} enableInTreeAutoscaling, autoscalerOptions",
                    got="one of them absent",
                    expected="both",
                    remedy="lost workers are replaced by the autoscaler: set them",
                )
            )
        groups = spec["workerGroupSpecs"]
        for group in groups:
            least, now, most = (group.get(f"{w}eplicas", 0) for w in ("minR", "r", "maxR"))
            if not 0 <= least <= now <= most or not most:
                faults.append(
                    Fault(
                        what=f"{path} {group['groupName']} minReplicas, replicas, maxReplicas",
                        got=f"{least}, {now}, {most}",
                        expected="0 <= minReplicas <= replicas <= maxReplicas, which is 1 at least",
                        remedy="correct them: the autoscaler starts maxReplicas pods at most",
                    )
                )
        if not any(_limits(group).get("nvidia.com/gpu") for group in groups):
            faults.append(
                Fault(
                    what=f"{path} workerGroupSpecs",
                    got="no group with a GPU",
                    expected="one",
                    remedy="set limits: {nvidia.com/gpu: ...} in a group's container",
                )
            )
    return faults


def environment(files: Files) -> list[Fault]:
    """Heads, where drivers run, know MLflow; results go where they outlast the cluster."""
    faults = []
    for path, spec in cluster_specs(files).items():
        container = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
        found = {each["name"]: each.get("value", "") for each in container.get("env", [])}
        if not re.fullmatch(r"https?://.+", found.get("MLFLOW_TRACKING_URI", "")):
            faults.append(
                Fault(
                    what=f"{path} head MLFLOW_TRACKING_URI",
                    got=found.get("MLFLOW_TRACKING_URI", "nothing"),
                    expected="the address of an MLflow server",
                    remedy="set it in the head's env",
                )
            )
        # The RayJob's command line names it; a cluster that stays gives it to jobs as a variable.
        storage = found.get("CDVAE_STORAGE", "")
        if path == RAYJOB:
            entrypoint = document(files, RAYJOB)["spec"]["entrypoint"]
            storage = option(shlex.split(entrypoint), "--storage")
        if not re.fullmatch(r"(s3|gs)://.+", storage):
            faults.append(
                Fault(
                    what=f"{path} storage",
                    got=storage or "nothing",
                    expected="a folder in object storage",
                    remedy="set CDVAE_STORAGE in the head's env, --storage in the entrypoint",
                )
            )
    return faults


def _limits(group: dict[str, Any]) -> dict[str, Any]:
    container = group["template"]["spec"]["containers"][0]
    return dict(container.get("resources", {}).get("limits", {}))


def pod_templates(files: Files) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's spec, with its place."""
    for path, spec in cluster_specs(files).items():
        yield f"{path} head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield f"{path} {group['groupName']}", group["template"]["spec"]
    submitter = document(files, RAYJOB)["spec"].get("submitterPodTemplate")
    # Without a template of ours the operator's own has neither limits nor a security context.
    yield f"{RAYJOB} submitter", submitter["spec"] if submitter else {"containers": [{}]}


def privileges(files: Files) -> list[Fault]:
    """No pod runs as root or gains privileges, and each container has requests and limits."""
    faults = []
    for what, spec in pod_templates(files):
        pod = spec.get("securityContext", {})
        if not (pod.get("runAsNonRoot") and pod.get("runAsUser", 0) > 0):
            faults.append(
                Fault(
                    what=f"{what} securityContext",
                    got=f"runAsNonRoot {pod.get('runAsNonRoot')}, user {pod.get('runAsUser')}",
                    expected="runAsNonRoot: true and a user that is not 0",
                    remedy="set both",
                )
            )
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            faults.append(
                Fault(
                    what=f"{what} securityContext.seccompProfile",
                    got=pod.get("seccompProfile", "nothing"),
                    expected="type: RuntimeDefault",
                    remedy="set it: the namespace refuses the pod otherwise",
                )
            )
        for container in spec["containers"]:
            faults += _container_faults(f"{what} {container.get('name', '')}", container)
    for path, cluster in cluster_specs(files).items():
        options = cluster.get("autoscalerOptions", {})
        faults += _container_faults(f"{path} autoscaler", options)
    return faults


def _container_faults(what: str, container: dict[str, Any]) -> Iterator[Fault]:
    context = container.get("securityContext", {})
    dropped = context.get("capabilities", {}).get("drop", [])
    if context.get("allowPrivilegeEscalation") is not False or "ALL" not in dropped:
        yield Fault(
            what=f"{what} securityContext",
            got=context or "nothing",
            expected="allowPrivilegeEscalation: false and all capabilities dropped",
            remedy="set both",
        )
    for kind in ("requests", "limits"):
        amounts = container.get("resources", {}).get(kind, {})
        if missing := {"cpu", "memory"} - set(amounts):
            yield Fault(
                what=f"{what} resources.{kind}",
                got=f"none for {', '.join(sorted(missing))}",
                expected="cpu and memory",
                remedy="set them: Ray takes a node's size from its limits",
            )
