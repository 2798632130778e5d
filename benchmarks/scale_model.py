"""Time and cost of trainings, attacks and whole experiments on n GPUs: equations and a simulation.

Nothing here measures and nothing here knows a network: `scale.py` counts and feeds, and
`scale_points.py` measures what `predicted_points` predicts. No torch, no Ray, no MLflow.

    step     = max(compute, launches, input) + all-reduce left over + batch norms + fixed
    epoch    = max(steps * step, tracking)
    training = start + epochs * epoch + checkpoints
    pool     = shards over workers, the last of them late
    job      = start + pools one after another + driver
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

TOLERANCE = 0.25
"""Largest relative error of a useful prediction of two workers from one. Chosen before the first
measurement, and not touched since."""
FEWEST_ROUNDS = 5
"""Of measured points; fewer are a trial run, which shows that the command works."""
FLOAT_BYTES = 4
LAST_BUCKET_BYTES = 25 * 2**20
"""DDP's last bucket of gradients is ready when the backward pass ends: nothing hides it."""
SYNC_BYTES = 4096
"""Statistics of one batch normalisation, about: 512 channels of two numbers each."""

Part = Literal[
    "compute",
    "launches",
    "data",
    "all-reduce",
    "batch norm",
    "fixed",
    "tracking",
    "object store",
    "start",
    "shards",
    "driver",
]
"""What time goes to, and what scaling can end on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A way for bytes: latency + bytes / bandwidth."""

    bandwidth: float
    """Bytes/s of one worker."""
    latency: float
    """Seconds of one message."""

    def seconds(self, size: float) -> float:
        """Of one transfer of `size` bytes."""
        return self.latency + size / self.bandwidth


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """GPUs (or processes on CPUs), what joins them, and what they cost."""

    name: str
    peak_flops: float
    """FLOP/s of a GPU by its data sheet, in the precision of training."""
    launch_seconds: float
    """Host time of one operation: below it a small batch gains nothing."""
    gpus_per_node: int
    within: Link
    """Between GPUs of a node."""
    between: Link
    """Between nodes, one GPU's share."""
    collective_seconds: float
    """Host time of one collective, however small."""
    overlaps: bool
    """Whether gradients travel while the backward pass computes."""
    contention: float
    """How much longer a step takes while a neighbour computes on the same node; 1: no longer."""
    pixels_per_cpu: float
    """Pixels/s that one CPU reads, decodes and crops."""
    loader_cpus: int
    """CPUs of a GPU that do so."""
    host_bandwidth: float
    """Bytes/s of decoded images from host memory to a GPU."""
    store: Link
    """One client's way to the object store."""
    tracking_seconds: float
    """Of one call to the tracking server, made by the driver beside training."""
    start_seconds: float
    """Of a job: processes, model, compilation of kernels, data digests."""
    shard_seconds: float
    """Of a shard besides its computing: scheduling and writing aside."""
    usd_per_gpu_hour: float

    def slowdown(self, workers: int) -> float:
        """Of computing, by neighbours on the node."""
        return self.contention if min(workers, self.gpus_per_node) > 1 else 1.0

    def all_reduce(self, size: float, workers: int) -> float:
        """2 (n - 1) / n bytes / bandwidth of a ring, tree latencies, and a start.

        Args:
            size: bytes.
            workers: n.
        """
        if workers == 1:
            return 0.0
        nodes = math.ceil(workers / self.gpus_per_node)
        slowest = self.between if nodes > 1 else self.within
        hops = [
            (math.ceil(math.log2(min(workers, self.gpus_per_node))), self.within),
            (math.ceil(math.log2(nodes)), self.between),
        ]
        latency = sum(2 * count * link.latency for count, link in hops)
        volume = 2 * (workers - 1) / workers * size / slowest.bandwidth
        return self.collective_seconds + latency + volume


# --- training -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One training run."""

    name: str
    needs: tuple[str, ...] = ()
    """Names of what must be there before it starts."""
    flops: float
    """Of an image and step: every forward and backward pass, inner attacks included."""
    hiding_flops: float
    """Of these the last backward pass, behind which gradients travel."""
    operations: float
    """Launched in a step, however small its batch."""
    share_of_peak: float
    """Of a GPU's peak that these networks reach, in (0, 1]."""
    gradient_bytes: float
    sync_calls: int
    """Collectives of synchronised batch normalisation in a step; 0 without."""
    images: int
    """Of an epoch."""
    epochs: int
    global_batch: int
    pixels: int
    """Of an image: height times width."""
    encoded_bytes: float = 0.0
    """Of an image that is read and decoded while training; 0: decoded images lie in memory."""
    checkpoint_bytes: float = 0.0
    checkpoint_every: int = 1
    """Epochs."""
    tracking_calls: int = 1
    """Of an epoch."""
    fixed_seconds: float = 0.0
    """Of a step, whatever its batch."""

    @property
    def steps(self) -> int:
        """Of an epoch: an incomplete last batch is left out."""
        return self.images // self.global_batch

    @property
    def num_checkpoints(self) -> int:
        """Of the run; the last epoch always has one."""
        return math.ceil(self.epochs / self.checkpoint_every)

    def work_seconds(self, machine: Machine) -> float:
        """GPU-seconds of computing alone, over all workers."""
        images = self.epochs * self.steps * self.global_batch
        return images * self.flops / (machine.peak_flops * self.share_of_peak)


class StepTime(NamedTuple):
    """One step on every worker, part by part; of the first three the longest counts."""

    compute: float
    launches: float
    data: float
    all_reduce: float
    batch_norm: float
    fixed: float

    @property
    def busy(self) -> float:
        """Computing, launching or waiting for images: they go on side by side."""
        return max(self.compute, self.launches, self.data)

    @property
    def busy_part(self) -> Part:
        """Which of these is the longest."""
        parts: tuple[tuple[float, Part], ...] = (
            (self.compute, "compute"),
            (self.launches, "launches"),
            (self.data, "data"),
        )
        return max(parts, key=lambda each: each[0])[1]

    @property
    def total(self) -> float:
        """Seconds."""
        return self.busy + self.all_reduce + self.batch_norm + self.fixed


def step_time(training: Training, machine: Machine, workers: int) -> StepTime:
    """One step of a global batch over workers, with nothing that jitters."""
    mine = training.global_batch / workers
    rate = machine.peak_flops * training.share_of_peak / machine.slowdown(workers)
    reduce = machine.all_reduce(training.gradient_bytes, workers)
    if machine.overlaps:
        last = machine.all_reduce(min(training.gradient_bytes, LAST_BUCKET_BYTES), workers)
        reduce = max(last, reduce - mine * training.hiding_flops / rate)
    return StepTime(
        compute=mine * training.flops / rate,
        launches=training.operations * machine.launch_seconds,
        data=mine * image_seconds(training, machine),
        all_reduce=reduce,
        batch_norm=training.sync_calls * machine.all_reduce(SYNC_BYTES, workers),
        fixed=training.fixed_seconds * machine.slowdown(workers),
    )


def image_seconds(training: Training, machine: Machine) -> float:
    """Until a worker has one more image: decoded from the store, or copied from memory."""
    if not training.encoded_bytes:
        return 3 * training.pixels / machine.host_bandwidth
    decode = training.pixels / (machine.pixels_per_cpu * machine.loader_cpus)
    return max(decode, training.encoded_bytes / machine.store.bandwidth)


# --- jobs ---------------------------------------------------------------------------------------


class Shards(NamedTuple):
    """Equal pieces of work of which each goes to one worker."""

    number: int
    flops: float
    """Of a shard."""
    operations: float
    """Launched one after another for a shard."""
    bytes: float
    """That a shard writes to the object store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Attacks, features, answers: pools of shards, one pool after another."""

    name: str
    needs: tuple[str, ...] = ()
    share_of_peak: float
    pools: tuple[tuple[Shards, ...], ...]
    driver_seconds: float = 0.0
    """Of fitting, testing and drawing on the driver, where no GPU helps."""

    def work_seconds(self, machine: Machine) -> float:
        """GPU-seconds of computing alone, over all workers."""
        flops = sum(each.number * each.flops for pool in self.pools for each in pool)
        return flops / (machine.peak_flops * self.share_of_peak)


Work = Training | Evaluation


class JobTime(NamedTuple):
    """A job on a number of workers, part by part; the parts add up."""

    workers: int
    parts: Mapping[Part, float]

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.parts.values())

    @property
    def limit(self) -> Part:
        """The part that takes longest."""
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def overhead(self) -> Part:
        """The part that takes longest besides computing."""
        rest = {part: each for part, each in self.parts.items() if part != "compute"}
        return max(rest, key=lambda part: rest[part])


def training_time(training: Training, machine: Machine, workers: int) -> JobTime:
    """A whole training run.

    Raises:
        ValueError: the global batch does not divide among the workers.
    """
    if training.global_batch % workers:
        raise ValueError(f"{training.global_batch} images do not divide among {workers} workers")
    step = step_time(training, machine, workers)
    steps = training.epochs * training.steps
    # Checkpoints are written by rank 0 while the others wait; tracking has a thread of its own.
    checkpoint = machine.store.seconds(training.checkpoint_bytes)
    tracking = training.epochs * training.tracking_calls * machine.tracking_seconds
    parts: dict[Part, float] = {
        step.busy_part: steps * step.busy,
        "all-reduce": steps * step.all_reduce,
        "batch norm": steps * step.batch_norm,
        "fixed": steps * step.fixed,
        "tracking": max(0.0, tracking - steps * step.total),
        "object store": training.num_checkpoints * checkpoint,
        "start": machine.start_seconds,
    }
    return JobTime(workers, parts)


def shard_time(shard: Shards, evaluation: Evaluation, machine: Machine) -> tuple[float, Part]:
    """Seconds of one shard on one worker, and on what most of them go."""
    compute = shard.flops / (machine.peak_flops * evaluation.share_of_peak)
    launches = shard.operations * machine.launch_seconds
    store = machine.store.seconds(shard.bytes)
    parts: tuple[tuple[float, Part], ...] = (
        (compute, "compute"),
        (launches, "launches"),
        (store, "object store"),
        (machine.shard_seconds, "fixed"),
    )
    total = max(compute, launches) + store + machine.shard_seconds
    return total, max(parts, key=lambda each: each[0])[1]


def pool_seconds(groups: Sequence[tuple[int, float]], workers: int) -> float:
    """Groups of (count, seconds) shards over workers: never less than greedy scheduling takes.

    The smaller of two bounds: each group waits for the one before, sum ceil(count / n) seconds; and
    Graham's W / n + (1 - 1/n) longest. For one group the first is exact.
    """
    if not groups:
        return 0.0
    waiting = sum(math.ceil(count / workers) * seconds for count, seconds in groups)
    work = sum(count * seconds for count, seconds in groups)
    graham = work / workers + (1 - 1 / workers) * max(seconds for _, seconds in groups)
    return min(waiting, graham)


def evaluation_time(evaluation: Evaluation, machine: Machine, workers: int) -> JobTime:
    """A whole evaluation job; `shards` is what its workers wait for the last ones."""
    parts: dict[Part, float] = {"shards": 0.0, "driver": evaluation.driver_seconds}
    slowdown = machine.slowdown(workers)
    for pool in evaluation.pools:
        timed = [(each.number, *shard_time(each, evaluation, machine)) for each in pool]
        groups = [(count, slowdown * seconds) for count, seconds, _ in timed]
        for (count, seconds), (_, _, part) in zip(groups, timed, strict=True):
            parts[part] = parts.get(part, 0.0) + count * seconds / workers
        work = sum(count * seconds for count, seconds in groups)
        parts["shards"] += pool_seconds(groups, workers) - work / workers
    parts["start"] = machine.start_seconds
    return JobTime(workers, parts)


def job_time(work: Work, machine: Machine, workers: int) -> JobTime:
    """A job on exactly so many workers."""
    if isinstance(work, Training):
        return training_time(work, machine, workers)
    return evaluation_time(work, machine, workers)


def allowed_workers(work: Work, gpus: int) -> list[int]:
    """Numbers of workers that a job can have on so many GPUs."""
    every = range(1, gpus + 1)
    if isinstance(work, Training):
        return [n for n in every if work.global_batch % n == 0]
    return list(every)


def best_time(work: Work, machine: Machine, gpus: int) -> JobTime:
    """A job on as many of the GPUs as make it fastest."""
    times = (job_time(work, machine, n) for n in allowed_workers(work, gpus))
    return min(times, key=lambda time: time.total)


class Ceiling(NamedTuple):
    """Where a job stops scaling."""

    workers: int
    """The most at which it is still at least half as efficient as on one GPU."""
    limit: Part | None
    """What takes most beyond that, besides computing; None: nothing within the GPUs looked at."""


def ceiling(work: Work, machine: Machine, gpus: int) -> Ceiling:
    """Where a job's efficiency t(1) / (n t(n)) falls below one half, and on what."""
    alone = job_time(work, machine, 1).total
    good = 1
    for workers in allowed_workers(work, gpus):
        time = job_time(work, machine, workers)
        if alone < 0.5 * workers * time.total:
            return Ceiling(good, time.overhead)
        good = workers
    if good < gpus:
        return Ceiling(good, "shards" if isinstance(work, Evaluation) else "fixed")
    return Ceiling(good, None)


# --- the whole experiment -----------------------------------------------------------------------


class ExperimentTime(NamedTuple):
    """All jobs on a cluster."""

    gpus: int
    seconds: float
    usd: float
    """GPUs are paid for until the last job ends, idle or not."""
    busy_share: float
    """GPU-seconds that jobs held, of those paid for."""


def one_after_another(works: Sequence[Work], machine: Machine, gpus: int) -> ExperimentTime:
    """One command on the whole cluster: each job on as many GPUs as make it fastest."""
    times = [best_time(each, machine, gpus) for each in works]
    seconds = sum(each.total for each in times)
    held = sum(each.total * each.workers for each in times)
    return _experiment(machine, gpus, seconds, held)


def side_by_side(works: Sequence[Work], machine: Machine, gpus: int) -> ExperimentTime:
    """Jobs at once as soon as what they need is there, none on more than the best cap of GPUs."""
    caps = sorted({min(gpus, 2**k) for k in range(gpus.bit_length() + 1)})
    plans = []
    for cap in caps:
        times = {each.name: best_time(each, machine, cap) for each in works}
        jobs = [
            Job(each.name, times[each.name].total, times[each.name].workers, each.needs)
            for each in works
        ]
        plans.append(_experiment(machine, gpus, makespan(jobs, gpus), held_seconds(jobs)))
    return min(plans, key=lambda plan: plan.seconds)


def _experiment(machine: Machine, gpus: int, seconds: float, held: float) -> ExperimentTime:
    usd = gpus * seconds / 3600 * machine.usd_per_gpu_hour
    return ExperimentTime(gpus, seconds, usd, held / (gpus * seconds))


# --- simulation ---------------------------------------------------------------------------------


def simulate_steps(step: StepTime, *, workers: int, steps: int, jitter: float, seed: int) -> float:
    """Seconds of steps of which each waits for its slowest worker.

    Args:
        step: without jitter.
        workers: that meet at a barrier in each step.
        steps: how many.
        jitter: deviation of a worker's busy time, as a share of it; a worker is never faster.
        seed: of the draws.
    """
    draw = random.Random(seed)
    clocks = [0.0] * workers
    for _ in range(steps):
        late = max(clock + step.busy * (1 + jitter * abs(draw.gauss(0, 1))) for clock in clocks)
        clocks = [late + step.all_reduce + step.batch_norm + step.fixed] * workers
    return clocks[0]


def list_schedule(seconds: Sequence[float], workers: int) -> float:
    """When the last shard ends if each goes, in order, to the worker that is free first."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


class Job(NamedTuple):
    """A job as the cluster's scheduler sees it."""

    name: str
    seconds: float
    gpus: int
    needs: tuple[str, ...] = ()


def held_seconds(jobs: Sequence[Job]) -> float:
    """GPU-seconds of all jobs."""
    return sum(job.seconds * job.gpus for job in jobs)


def critical_path(jobs: Sequence[Job]) -> dict[str, float]:
    """Seconds from each job's start to the end of the last job that waits for it.

    Raises:
        ValueError: jobs wait for each other in a circle, or for one that is not there.
    """
    known = {job.name: job for job in jobs}
    followers: dict[str, list[str]] = {job.name: [] for job in jobs}
    for job in jobs:
        for need in job.needs:
            if need not in known:
                raise ValueError(f"{job.name} needs {need}, which no job makes")
            followers[need].append(job.name)
    lengths: dict[str, float] = {}
    pending = list(known)
    while pending:
        rest = [name for name in pending if any(each not in lengths for each in followers[name])]
        if len(rest) == len(pending):
            raise ValueError(f"jobs wait for each other: {', '.join(sorted(rest))}")
        for name in set(pending) - set(rest):
            after = max((lengths[each] for each in followers[name]), default=0.0)
            lengths[name] = known[name].seconds + after
        pending = rest
    return lengths


def makespan(jobs: Sequence[Job], gpus: int) -> float:
    """When the last job ends: whatever is ready and fits starts, longest path to the end first.

    Raises:
        ValueError: a job that never fits, or jobs in a circle.
    """
    if any(job.gpus > gpus for job in jobs):
        raise ValueError(f"a job wants more than {gpus} GPUs")
    first = critical_path(jobs)
    waiting = sorted(jobs, key=lambda job: (-first[job.name], job.name))
    running: list[tuple[float, str, int]] = []
    done: set[str] = set()
    now, free = 0.0, gpus
    while waiting or running:
        started = []
        for job in waiting:
            if job.gpus <= free and done.issuperset(job.needs):
                heapq.heappush(running, (now + job.seconds, job.name, job.gpus))
                free -= job.gpus
                started.append(job)
        waiting = [job for job in waiting if job not in started]
        now, name, given_back = heapq.heappop(running)
        free += given_back
        done.add(name)
    return now


# --- against measurements -----------------------------------------------------------------------


class Point(NamedTuple):
    """A measured number beside what the model says without having seen it."""

    name: str
    unit: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1


def predicted_points(results: Mapping[str, Any]) -> list[Point]:
    """Two workers on this machine, from one worker, two that do not talk, and an all-reduce.

    Args:
        results: of the record scale-points.json.
    """
    alone, together = results["one_worker"], results["two_workers"]
    batch = results["batch"]
    points = []
    for layers in ("own", "synchronised"):
        machine = measured_machine(results)
        whole = alone[layers]["whole_batch"]["step_seconds"]["median"]
        half = alone[layers]["half_batch"]["step_seconds"]["median"]
        # A step is fixed + batch * image; two batch sizes give both.
        image = max((whole - half) / (batch / 2), 0.0)
        training = Training(
            name=layers,
            flops=image,  # in seconds: this machine's peak is 1
            hiding_flops=0.0,
            operations=0,
            share_of_peak=1.0,
            gradient_bytes=FLOAT_BYTES * results["parameters"],
            sync_calls=results["sync_calls"] if layers == "synchronised" else 0,
            images=results["steps"] * batch,
            epochs=1,
            global_batch=batch,
            pixels=0,
            fixed_seconds=max(whole - batch * image, 0.0),
        )
        for scaling, factor in (("weak", 2), ("strong", 1)):
            grown = replace(training, images=factor * training.images, global_batch=factor * batch)
            step = step_time(grown, machine, 2).total
            seen = together[layers][scaling]
            name = f"training, {scaling} scaling, {layers} batch norm"
            points.append(Point(name, "s a step", seen["step_seconds"]["median"], step))
            if "epoch_seconds" in seen:
                epoch = results["steps"] * step
                measured = seen["epoch_seconds"]["median"]
                points.append(Point(f"{name}, epoch", "s an epoch", measured, epoch))
    attack = results["attack_images_per_second"]
    points.append(
        Point(
            "attack, two processes",
            "images/s",
            attack["two_processes"]["median"],
            2 * attack["one_process"]["median"] / results["contention"]["median"],
        )
    )
    return points


def measured_machine(results: Mapping[str, Any]) -> Machine:
    """This machine by its microbenchmarks: two processes of one thread each, joined by gloo."""
    link = Link(bandwidth=results["all_reduce"]["bytes_per_second"], latency=0.0)
    return Machine(
        name="measured",
        peak_flops=1.0,
        launch_seconds=0.0,
        gpus_per_node=2,
        within=link,
        between=link,
        # Of the smallest all-reduce, whatever it is made of.
        collective_seconds=results["all_reduce"]["latency_seconds"],
        # Every core computes already: what gloo's threads do is taken from it.
        overlaps=False,
        contention=results["contention"]["median"],
        pixels_per_cpu=1.0,
        loader_cpus=1,
        host_bandwidth=1.0,
        store=Link(bandwidth=1.0, latency=0.0),
        tracking_seconds=0.0,
        start_seconds=0.0,
        shard_seconds=0.0,
        usd_per_gpu_hour=0.0,
    )
