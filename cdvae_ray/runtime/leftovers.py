"""What jobs must not leave on a cluster: places of placement groups that nobody gives back.

Ray removes a placement group when both its job and the actor that made it have ended. A group that
an actor asks for after its job has ended never has an ended job: its CPUs and GPUs are taken until
the cluster is shut down. Ray Train's controller asks for one as soon as it misses its workers, and
all processes of an ended job are killed in no order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

_ANSWER_SECONDS = 2.0
_LAST_WORDS_SECONDS = 0.3
_DEAD = gcs_pb2.ActorTableData.ActorState.DEAD
_REMOVED = gcs_pb2.PlacementGroupTableData.PlacementGroupState.REMOVED
_log = logging.getLogger(__name__)


def end_own_actors(seconds: float = 2.0) -> None:
    """Ends the actors of this process, and by them theirs, while their job still lives.

    What a job that is stopped does first. Places that these actors held are given back.

    Args:
        seconds: how long to wait for their end.
    """
    if not ray.is_initialized():
        return
    context = ray.get_runtime_context()
    try:
        gcs = _Gcs(context.gcs_address)
        family = gcs.family(context.get_job_id(), context.get_worker_id())
        for actor in family:
            if actor.owner_address.worker_id.hex() == context.get_worker_id():
                gcs.kill(actor.actor_id)
        ids = {actor.actor_id for actor in family}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and ids - gcs.dead_actors():
            time.sleep(0.05)
        # An actor is taken for dead before its process is: what it asks for last comes later.
        quiet = time.monotonic() + _LAST_WORDS_SECONDS
        while time.monotonic() < min(quiet, deadline):
            for group in gcs.groups():
                if group.creator_actor_id in ids:
                    gcs.remove(group.placement_group_id)
            time.sleep(0.05)
    except grpc.RpcError as error:
        # The cluster is going as well, and takes its actors along. The job's own end goes on.
        _log.warning("actors were not ended: %s", error)


def give_back_of_ended_jobs() -> int:
    """Removes the placement groups that nobody uses any more: their jobs and makers have ended.

    Returns:
        How many there were; 0 where the cluster's head has no time to answer.
    """
    try:
        gcs = _Gcs(ray.get_runtime_context().gcs_address)
        # Of a detached actor, which outlives its job, the maker is not dead.
        return gcs.give_back(of_jobs=gcs.ended_jobs())
    except grpc.RpcError as error:
        _log.warning("places of ended jobs were not given back: %s", error)
        return 0


@contextmanager
def giving_back_of_ended_trials(every_seconds: float = 2.0) -> Iterator[None]:
    """Removes, while the block runs, the placement groups of this job whose makers have ended.

    A stopped trial's training controller dies with it, and Ray gives its places back only when the
    job ends too. Ray Train has a cleaner for that, which asks the dashboard: not every cluster has
    one, and a Ray of a job's own has none.
    """
    done = threading.Event()
    context = ray.get_runtime_context()
    own = {bytes.fromhex(context.get_job_id())}
    gcs = _Gcs(context.gcs_address)

    def tidy() -> None:
        while not done.wait(every_seconds):
            try:
                gcs.give_back(of_jobs=own)
            except grpc.RpcError as error:
                _log.warning("places of ended trials were not given back: %s", error)

    thread = threading.Thread(target=tidy, name="giving back", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Gcs:
    """The tables of a cluster's head, each question with a time limit."""

    def __init__(self, address: str) -> None:
        channel = init_grpc_channel(address)
        self._actors = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
        self._groups = gcs_service_pb2_grpc.PlacementGroupInfoGcsServiceStub(channel)
        self._jobs = gcs_service_pb2_grpc.JobInfoGcsServiceStub(channel)

    def family(self, job: str, worker: str) -> list[gcs_pb2.ActorTableData]:
        """The actors that a worker owns and, in turn, theirs; none of those that outlive it."""
        of_job = [
            actor
            for actor in self._all_actors()
            if actor.job_id.hex() == job and not actor.is_detached and actor.state != _DEAD
        ]
        found: list[gcs_pb2.ActorTableData] = []
        owners = {worker}
        while members := [
            actor
            for actor in of_job
            if actor.owner_address.worker_id.hex() in owners and actor not in found
        ]:
            found += members
            owners = {actor.address.worker_id.hex() for actor in members}
        return found

    def dead_actors(self) -> set[bytes]:
        """Ids of actors that have ended."""
        return {actor.actor_id for actor in self._all_actors() if actor.state == _DEAD}

    def ended_jobs(self) -> set[bytes]:
        """Ids of jobs that have ended."""
        request = gcs_service_pb2.GetAllJobInfoRequest(
            skip_submission_job_info_field=True, skip_is_running_tasks_field=True
        )
        reply = self._jobs.GetAllJobInfo(request, timeout=_ANSWER_SECONDS)
        return {job.job_id for job in reply.job_info_list if job.is_dead}

    def groups(self) -> Iterable[gcs_pb2.PlacementGroupTableData]:
        """The placement groups that hold or want places, but for those that outlive their job."""
        request = gcs_service_pb2.GetAllPlacementGroupRequest()
        reply = self._groups.GetAllPlacementGroup(request, timeout=_ANSWER_SECONDS)
        return [
            group
            for group in reply.placement_group_table_data
            if group.state != _REMOVED and not group.is_detached
        ]

    def give_back(self, *, of_jobs: set[bytes]) -> int:
        """Removes the placement groups of these jobs whose makers have ended; how many."""
        dead = self.dead_actors()
        abandoned = [
            group.placement_group_id
            for group in self.groups()
            if group.creator_job_id in of_jobs and group.creator_actor_id in dead
        ]
        for each in abandoned:
            self.remove(each)
        return len(abandoned)

    def kill(self, actor: bytes) -> None:
        """Ends an actor now and for good."""
        request = gcs_service_pb2.KillActorViaGcsRequest(
            actor_id=actor, force_kill=True, no_restart=True
        )
        self._actors.KillActorViaGcs(request, timeout=_ANSWER_SECONDS)

    def remove(self, group: bytes) -> None:
        """Gives a placement group's places back."""
        request = gcs_service_pb2.RemovePlacementGroupRequest(placement_group_id=group)
        self._groups.RemovePlacementGroup(request, timeout=_ANSWER_SECONDS)

    def _all_actors(self) -> Iterable[gcs_pb2.ActorTableData]:
        request = gcs_service_pb2.GetAllActorInfoRequest(show_dead_jobs=True)
        reply = self._actors.GetAllActorInfo(request, timeout=_ANSWER_SECONDS)
        return list(reply.actor_table_data)
