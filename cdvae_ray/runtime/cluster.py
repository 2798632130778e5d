"""Joining a Ray cluster, and checking that it has what a job asks for."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ray
import torch

from cdvae_ray.config.training import ResourcesConfig
from cdvae_ray.errors import ConfigError, ResourceError

CPU_WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_ARENA_MAX": "1",
}
"""glibc's allocator keeps freed memory instead of giving each large activation back to the system
and faulting its pages in again at the next step. Other C libraries ignore these variables."""


class Allocation(NamedTuple):
    """What each worker gets."""

    use_gpu: bool
    cpus_per_worker: int


def connect() -> None:
    """Runs on the driver. Joins the cluster that RAY_ADDRESS names, or starts one on this machine.

    A submitted job has RAY_ADDRESS; by hand, RAY_ADDRESS=auto joins what `ray start` started here.

    Raises:
        ResourceError: the named cluster does not answer.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise hide GPUs from tasks without one by an environment variable, and warns.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The controller looks after its workers, and takes their reports, this often.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1.0")
    # A Ray of our own would run its workers behind every other process of the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Workers stay in the driver's folder: relative paths mean the same everywhere.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # "local" and not None: Ray would otherwise try for minutes to join a cluster that it has a
    # note of, even one that died long ago.
    address = os.environ.get("RAY_ADDRESS", "") or "local"
    _require_answer(address)
    try:
        # Progress reaches the driver through a mailbox; Ray's copies of worker logs are noise.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, str(error)) from error


def is_submitted_job() -> bool:
    """Whether this driver was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def require_lasting_storage(storage: str) -> None:
    """Refuses a storage root inside the folder that Ray deletes after a submitted job.

    Raises:
        ConfigError: the root is a relative path and this is a submitted job.
    """
    if is_submitted_job() and "://" not in storage and not Path(storage).is_absolute():
        raise ConfigError(
            "storage",
            got=f"the relative path {storage} in a submitted job",
            expected="an absolute path or an object-storage URI (the job's folder is temporary)",
            remedy="set --storage",
        )


def _require_answer(address: str) -> None:
    """Asks a host:port address for a sign of life, which Ray itself would do for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, got: str) -> ResourceError:
    return ResourceError(
        "Ray cluster",
        got=got,
        expected="a cluster on this machine" if address == "local" else f"one at {address}",
        remedy="start it with `ray start`, or correct or unset RAY_ADDRESS",
    )


def allocate(resources: ResourcesConfig, *, say: Callable[[str], None]) -> Allocation:
    """Runs on the driver. Decides what each worker gets, once the cluster has all of it.

    Raises:
        ResourceError: after `wait_seconds` the cluster still lacks something; says what.
    """
    deadline = time.monotonic() + resources.wait_seconds
    announced = False
    while True:
        allocation = _choose(resources)
        missing = _missing(resources.num_workers, allocation)
        if not missing:
            return allocation
        if time.monotonic() >= deadline:
            raise ResourceError(
                f"resources for {resources.num_workers} workers",
                got=_describe(ray.cluster_resources()),
                expected=missing,
                remedy="lower --resources.num-workers or --resources.cpus-per-worker, add nodes, "
                "or raise --resources.wait-seconds while nodes start",
            )
        if not announced:
            say(f"waiting up to {resources.wait_seconds:.0f} s for {missing}")
            announced = True
        time.sleep(0.5)


def gpu_has_bfloat16() -> bool:
    """Runs on the driver. Whether a GPU of the cluster computes in bfloat16."""
    ask = ray.remote(num_gpus=1, num_cpus=0, max_retries=1)(_bfloat16_here)
    return bool(ray.get(ask.remote()))


def _bfloat16_here() -> bool:
    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _choose(resources: ResourcesConfig) -> Allocation:
    nodes = _nodes()
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    use_gpu = resources.device == "gpu" or (
        resources.device == "auto" and gpus >= resources.num_workers
    )
    if resources.cpus_per_worker != "auto":
        return Allocation(use_gpu, resources.cpus_per_worker)
    # A worker gets the share of the smallest node that can host one.
    hosts = [node for node in nodes if not use_gpu or node.get("GPU", 0) >= 1] or nodes
    per_node = -(-resources.num_workers // max(len(hosts), 1))
    cpus = min((int(node.get("CPU", 0)) for node in hosts), default=1)
    return Allocation(use_gpu, max(1, cpus // per_node))


def _missing(num_workers: int, allocation: Allocation) -> str:
    """What a cluster that can run the workers has and this one lacks; empty if nothing."""
    places = 0
    for node in _nodes():
        by_cpu = int(node.get("CPU", 0)) // allocation.cpus_per_worker
        by_gpu = int(node.get("GPU", 0)) if allocation.use_gpu else by_cpu
        places += min(by_cpu, by_gpu)
    if places >= num_workers:
        return ""
    gpu = " and 1 GPU" if allocation.use_gpu else ""
    return f"{num_workers} places with {allocation.cpus_per_worker} CPU{gpu} each, not {places}"


def _describe(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
