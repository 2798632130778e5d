"""Joining a Ray cluster, and checking that it has what a job asks for."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import ray
import torch
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RpcError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cdvae_ray.errors import ConfigError, ResourceError
from cdvae_ray.runtime.leftovers import give_back_of_ended_jobs

CPU_WORKER_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_ARENA_MAX": "1",
}
"""glibc's allocator keeps freed memory instead of giving each large activation back to the system
and faulting its pages in again at the next step. Other C libraries ignore these variables."""

OWN_RAY_ENVIRONMENT = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Seconds from one look for new logs to the next: nobody here is sent them.
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
    # From one look at what processes use to the next.
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
"""A Ray that only this job uses, on one machine, has nobody to report to and no node to lose: its
reporters and watchers would take their time from training. A cluster keeps its own settings."""


_is_own = False
_GIVING_BACK_SECONDS = 2.0
"""How long what a step before has given back may still count as taken."""


class Allocation(NamedTuple):
    """What each worker gets."""

    use_gpu: bool
    cpus_per_worker: int
    gpus_per_worker: float = 1.0
    """Where a GPU is used."""


class Wanted(Protocol):
    """What a job asks a cluster for, as its config says it."""

    @property
    def num_workers(self) -> int:
        """Workers."""

    @property
    def device(self) -> str:
        """auto, cpu or gpu."""

    @property
    def cpus_per_worker(self) -> int | Literal["auto"]:
        """CPUs of a worker."""

    @property
    def wait_seconds(self) -> float:
        """How long to wait for them."""


def connect() -> None:
    """Runs on the driver. Joins the cluster that RAY_ADDRESS names, or starts one on this machine.

    A submitted job has RAY_ADDRESS; by hand, RAY_ADDRESS=auto joins what `ray start` started here.

    Raises:
        ResourceError: the named cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise hide GPUs from tasks without one by an environment variable, and warns.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The controller looks after its workers, and takes their reports, this often.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1.0")
    # What a cluster lacks is found before this counts: who finds its places taken waits for them.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(7 * 24 * 3600))
    # A Ray of our own would run its workers behind every other process of the machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Workers stay in the driver's folder: relative paths mean the same everywhere.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    global _is_own
    if ray.is_initialized():
        return
    # "local" and not None: Ray would otherwise try for minutes to join a cluster that it has a
    # note of, even one that died long ago.
    address = os.environ.get("RAY_ADDRESS", "") or "local"
    _require_answer(address)
    if address == "local":
        for name, value in OWN_RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    try:
        # Progress reaches the driver through a mailbox; Ray's copies of worker logs are noise.
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
        )
    except AuthenticationError as error:
        raise _no_entry(address, error) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        if "Version mismatch" in str(error):
            raise _other_versions(address, error) from error
        raise _no_cluster(address, str(error)) from error
    _is_own = address == "local"


def is_own() -> bool:
    """Whether this process started the Ray that it is on, which ends with it."""
    return _is_own


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
    try:
        # `ray.init` tries a refused token again for half a minute, and then names no reason. Of no
        # token at all the client would die, and with it this process.
        ensure_token_if_auth_enabled(create_token_if_missing=False)
        GcsClient(address=address)
    except AuthenticationError as error:
        raise _no_entry(address, error) from error
    except RpcError as error:
        raise _no_cluster(address, str(error)) from error


def _no_entry(address: str, error: Exception) -> ResourceError:
    reason = str(error).partition(" Ensure that")[0].strip()
    return ResourceError(
        f"Ray cluster at {address}",
        got=f"no entry ({reason.removesuffix('.')})",
        expected="the token that the cluster was started with",
        remedy="set RAY_AUTH_MODE=token, and have the token in ~/.ray/auth_token, in the file that "
        "RAY_AUTH_TOKEN_PATH names, or in RAY_AUTH_TOKEN",
    )


def _other_versions(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"Ray cluster at {address}",
        got=" ".join(str(error).split()),
        expected="the same versions of Ray and Python on both sides",
        remedy="let the cluster run the job with its own (`ray job submit`), or install its "
        "versions here",
    )


def _no_cluster(address: str, got: str) -> ResourceError:
    return ResourceError(
        "Ray cluster",
        got=got,
        expected="a cluster on this machine" if address == "local" else f"one at {address}",
        remedy="start it with `ray start`, or correct or unset RAY_ADDRESS",
    )


def allocate(
    resources: Wanted,
    *,
    say: Callable[[str], None],
    gpus_per_worker: float = 1.0,
    cpus_beside: int = 0,
    fewest: int | None = None,
    section: str = "resources",
) -> Allocation:
    """Runs on the driver. Decides what each worker gets, once the cluster has all of it.

    Args:
        resources: what the job asks for.
        say: takes lines of progress.
        gpus_per_worker: share of a GPU that a worker takes, in (0, 1].
        fewest: workers that are enough to begin with; None: all.
        cpus_beside: CPUs to leave for each worker's own tasks, beside those that it gets.
        section: of the config that holds these settings, for messages.

    Raises:
        ResourceError: after `wait_seconds` the cluster still lacks something; says what.
    """
    if given_back := give_back_of_ended_jobs():
        say(f"places of {given_back} groups that ended jobs had left taken are free again")
    enough = fewest or resources.num_workers
    deadline = time.monotonic() + resources.wait_seconds
    announced = False
    with _Demand() as demand:
        while True:
            allocation = _choose(resources, gpus_per_worker, cpus_beside, enough)
            missing = _missing(enough, allocation, cpus_beside)
            if not missing:
                _say_if_taken(_place(allocation, cpus_beside), enough, say)
                return allocation
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"resources for {enough} workers",
                    got=_describe(ray.cluster_resources()),
                    expected=missing,
                    remedy=f"lower --{section}.num-workers or --{section}.cpus-per-worker, "
                    f"add nodes, or raise --{section}.wait-seconds while nodes start",
                )
            if not announced:
                say(f"waiting up to {resources.wait_seconds:.0f} s for {missing}")
                announced = True
            demand.ask([_place(allocation, cpus_beside)] * enough)
            time.sleep(0.5)


def _say_if_taken(place: dict[str, float], count: int, say: Callable[[str], None]) -> None:
    """Tells why nothing happens for now, if others hold what the workers need."""
    wanted = {name: count * amount for name, amount in place.items()}
    deadline = time.monotonic() + _GIVING_BACK_SECONDS
    while True:
        free = ray.available_resources()
        if all(free.get(name, 0.0) >= amount for name, amount in wanted.items()):
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    say(f"waiting for {_describe(wanted)}: others hold all but {_describe(free)}")


class _Demand:
    """Places that a job waits for, as the cluster's autoscaler sees them: a placement group.

    Other than `request_resources`, of which a cluster has one, each job has its own, and a job
    that dies takes its own with it.
    """

    def __init__(self) -> None:
        self._asked: list[dict[str, float]] = []
        self._group: PlacementGroup | None = None

    def __enter__(self) -> _Demand:
        return self

    def __exit__(self, *_: object) -> None:
        self._withdraw()

    def ask(self, places: list[dict[str, float]]) -> None:
        """Asks for these places, in place of those asked for before."""
        if places != self._asked:
            self._withdraw()
            self._asked, self._group = places, placement_group(places)

    def _withdraw(self) -> None:
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def _place(allocation: Allocation, beside: int) -> dict[str, float]:
    cpus = {"CPU": float(allocation.cpus_per_worker + beside)}
    return {**cpus, "GPU": allocation.gpus_per_worker} if allocation.use_gpu else cpus


_CAUSE = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt)): .+")
_WRAPPERS = ("UserCodeException", "RayTaskError", "TrainingFailedError", "WorkerGroupError")


def deepest_cause(error: Exception) -> str:
    """The line that names the deepest error that Ray wrapped; its last line where none does."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # Ray Data ends its own with advice, and names itself after the error of the code it ran.
    named = [
        line
        for line in lines
        if (found := _CAUSE.match(line)) is not None and found[1] not in _WRAPPERS
    ]
    return (named or lines)[-1][:300]


def worker_device(use_gpu: bool) -> torch.device:
    """Runs on every worker. The device that an actor computes on: Ray shows it its GPU alone."""
    return torch.device("cuda", 0) if use_gpu else torch.device("cpu")


def gpu_has_bfloat16() -> bool:
    """Runs on the driver. Whether a GPU of the cluster computes in bfloat16."""
    ask = ray.remote(num_gpus=1, num_cpus=0, max_retries=1)(_bfloat16_here)
    return bool(ray.get(ask.remote()))


def _bfloat16_here() -> bool:
    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _choose(resources: Wanted, share: float, beside: int, enough: int) -> Allocation:
    nodes = _nodes()
    places = sum(int(node.get("GPU", 0)) * int(1 / share) for node in nodes)
    use_gpu = resources.device == "gpu" or (resources.device == "auto" and places >= enough)
    if resources.cpus_per_worker != "auto":
        return Allocation(use_gpu, resources.cpus_per_worker, share)
    # A worker gets the share of the smallest node that can host one.
    kind = "GPU" if use_gpu else "CPU"
    hosts = [node for node in nodes if node.get(kind, 0) >= 1] or nodes
    per_node = -(-resources.num_workers // max(len(hosts), 1))
    cpus = min((int(node.get("CPU", 0)) for node in hosts), default=1)
    return Allocation(use_gpu, max(1, cpus // per_node - beside), share)


def _missing(num_workers: int, allocation: Allocation, beside: int) -> str:
    """What a cluster that can run the workers has and this one lacks; empty if nothing."""
    places = 0
    for node in _nodes():
        by_cpu = int(node.get("CPU", 0)) // (allocation.cpus_per_worker + beside)
        by_gpu = by_cpu
        if allocation.use_gpu:
            by_gpu = int(node.get("GPU", 0)) * int(1 / allocation.gpus_per_worker)
        places += min(by_cpu, by_gpu)
    if places >= num_workers:
        return ""
    gpu = f" and {allocation.gpus_per_worker:g} GPU" if allocation.use_gpu else ""
    loading = f" and {beside} to load images" if beside else ""
    cpus = f"{allocation.cpus_per_worker} CPU{loading}"
    return f"{num_workers} places with {cpus}{gpu} each, not {places}"


def _describe(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
