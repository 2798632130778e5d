"""Tasks on a pool of Ray Data actors: handed out one by one, again if an actor is lost."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from cdvae_ray.config.attack_job import PoolConfig
from cdvae_ray.errors import AttackError, CdvaeError
from cdvae_ray.runtime import cluster
from cdvae_ray.runtime.progress import clock

Say = Callable[[str], None]
_QUIET_SECONDS = 10.0
_TASK_RETRIES = 3
"""How often a task is given to another actor after one was lost over it."""


def connect_pool(pool: PoolConfig, say: Say) -> cluster.Allocation:
    """Runs on the driver. Joins a cluster that has what the pool asks for.

    Raises:
        ResourceError: there is none.
    """
    if not ray.is_initialized():
        say("ray: connecting")
    cluster.connect()
    allocation = cluster.allocate(
        pool, say=say, gpus_per_worker=pool.gpus_per_worker, section="pool"
    )
    device = f"{allocation.gpus_per_worker:g} GPU" if allocation.use_gpu else "CPU"
    say(f"workers: {pool.num_workers} x {allocation.cpus_per_worker} CPU threads on {device}")
    return allocation


def run_on_pool(
    tasks: Sequence[str],
    actor: type,
    work: Any,
    *,
    pool: PoolConfig,
    allocation: cluster.Allocation,
    what: str,
) -> Iterator[str]:
    """Runs on the driver. Yields what the actors answer, in the order in which it comes.

    Args:
        tasks: texts, of which an actor takes one at a time in the column `task`.
        actor: constructed with `work`; called with a batch, it answers in the column `done`.
        work: all that an actor is told.
        pool: how many actors.
        allocation: what each of them gets.
        what: is being done, for messages.

    Raises:
        AttackError: the pool cannot go on.
    """
    silence_ray_data(DataContext.get_current())
    # A block a task: the pool hands them out one by one as actors become free.
    rows = [{"task": task} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    with warnings.catch_warnings():
        # Of Ray's deprecated ways to say something, the only one to say max_task_retries.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        dataset = dataset.map_batches(
            actor,
            fn_constructor_args=(work,),
            batch_size=1,
            compute=ActorPoolStrategy(size=pool.num_workers),
            num_cpus=allocation.cpus_per_worker,
            num_gpus=allocation.gpus_per_worker if allocation.use_gpu else 0,
            # Ray Data would try for ever a task that kills every actor it is given to.
            max_task_retries=_TASK_RETRIES,
            runtime_env={"env_vars": {} if allocation.use_gpu else cluster.CPU_WORKER_ENVIRONMENT},
        )
    try:
        for row in dataset.iter_rows():
            yield row["done"]
    except (RayError, ray.data.exceptions.UserCodeException) as error:
        raise AttackError(
            what,
            got=cluster.deepest_cause(error),
            expected="actors that finish their shards",
            remedy="run the same command again: it makes only the shards that are missing",
        ) from error


def silence_ray_data(context: DataContext) -> None:
    """A job has its own lines of progress; Ray Data's stay in its log files."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if handler.get_name() == "console":
            handler.setLevel(logging.ERROR)


def encode_error(error: CdvaeError | None) -> list[str] | None:
    """An error of the project's own as JSON values: Ray Data carries no exceptions as answers."""
    if error is None:
        return None
    return [type(error).__name__, error.what, str(error.got), error.expected, error.remedy]


def decode_error(values: list[str] | None) -> CdvaeError | None:
    """The inverse of `encode_error`."""
    if not values:
        return None
    kind, what, got, expected, remedy = values
    kinds = {each.__name__: each for each in _all_subclasses(CdvaeError)}
    return kinds[kind](what, got=got, expected=expected, remedy=remedy)


def _all_subclasses(kind: type[CdvaeError]) -> list[type[CdvaeError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _all_subclasses(child))]


class PoolLines:
    """How far a pool has come: a line when a set is done, and one every so often in between.

    Args:
        labels: of the sets.
        tasks: (set, images) of each task.
        doing: as in "attacking".
        say: takes lines.
    """

    def __init__(
        self, labels: Sequence[str], tasks: Sequence[tuple[int, int]], *, doing: str, say: Say
    ) -> None:
        self._labels, self._say = labels, say
        self._total, self._done = len(tasks), 0
        self._left = [sum(number == each for each, _ in tasks) for number in range(len(labels))]
        self._images_left = sum(images for _, images in tasks)
        self._width = max(len(label) for label in labels) + 5
        self._spoke = time.monotonic()
        # The rate counts from the first answer on: actors take seconds to start.
        self._first: float | None = None
        self._images = 0
        say(f"{doing}: {len(tasks)} tasks, {self._images_left:,} images")

    def done(self, number: int, images: int) -> None:
        """A task of a set is done."""
        now = time.monotonic()
        self._done += 1
        self._images_left -= images
        self._left[number] -= 1
        if self._first is None:
            self._first = now
        else:
            self._images += images
        is_last = self._left[number] == 0
        if not is_last and now - self._spoke < _QUIET_SECONDS:
            return
        self._spoke = now
        what = self._labels[number] + (" done" if is_last else "")
        line = f"{self._done:>{len(str(self._total))}}/{self._total}  {what:<{self._width}}"
        if self._images:
            rate = self._images / (now - self._first)
            line += f"{rate:8,.0f} images/s  left {clock(self._images_left / rate)}"
        self._say(line)
