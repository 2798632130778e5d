"""Messages from workers to the driver, so that one process prints and tracks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cdvae_ray.errors import CdvaeError, CheckpointError
from cdvae_ray.training.epoch import EpochReport, Progress


class EpochDone(NamedTuple):
    """An epoch over all ranks is done."""

    report: EpochReport


class EpochProgress(NamedTuple):
    """An epoch has come this far."""

    progress: Progress


class CheckpointSaved(NamedTuple):
    """A checkpoint was written."""

    name: str
    report: EpochReport


class Resumed(NamedTuple):
    """The workers go on from this many epochs."""

    epochs_done: int


class PassedOver(NamedTuple):
    """A checkpoint is damaged, and the workers go on from an earlier one."""

    error: CheckpointError


class CorruptImages(NamedTuple):
    """Streamed images do not decode."""

    names: tuple[str, ...]


class Failed(NamedTuple):
    """A worker stops for good."""

    rank: int
    error: CdvaeError


Message = (
    EpochDone | EpochProgress | CheckpointSaved | Resumed | PassedOver | CorruptImages | Failed
)


class _Mailbox:
    """An actor on the driver's node that holds messages until the driver fetches them."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def post(self, message: Message) -> None:
        self._messages.append(message)

    def drain(self) -> list[Message]:
        messages, self._messages = self._messages, []
        return messages


def open_mailbox() -> Any:
    """Runs on the driver. A new mailbox beside it: workers call `post.remote(message)`."""
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(_Mailbox)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False))
        .remote()
    )


@contextlib.contextmanager
def reading(
    mailbox: Any, handle: Callable[[Message], None], *, every_seconds: float = 2.0
) -> Iterator[None]:
    """Runs on the driver. Handles messages on a thread while the block runs, the last ones too.

    What a handler raises is raised when the block ends, in place of an error that the block met
    after it; later messages are not handled. Tune stops a trial by a SystemExit out of its report,
    which a handler may make: the error of the training that then loses its processes only follows.
    """
    done = threading.Event()
    raised: list[BaseException] = []

    def read() -> None:
        while True:
            last_round = done.wait(every_seconds)
            try:
                # The mailbox dies with its node, and the driver with it: nothing is left to tell.
                with contextlib.suppress(RayError):
                    for message in ray.get(mailbox.drain.remote()):
                        handle(message)
            except BaseException as error:  # noqa: BLE001 - of the handler's: raised below
                raised.append(error)
                return
            if last_round:
                return

    reader = threading.Thread(target=read, name="mailbox", daemon=True)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join(timeout=30)
        if raised:
            raise raised[0]
