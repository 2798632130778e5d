"""What every attacking actor does: one task is one shard, or one look at an attack's strength."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from cdvae_ray.config.attack import AttackConfig
from cdvae_ray.errors import CdvaeError
from cdvae_ray.evaluation.attack_report import AttackCounts, count_rows
from cdvae_ray.evaluation.attack_run import attack_images
from cdvae_ray.runtime.cluster import worker_device
from cdvae_ray.runtime.pool import decode_error, encode_error
from cdvae_ray.runtime.shared_images import fetch_images
from cdvae_ray.storage.adversarial_set import SHARDS, shard_bytes
from cdvae_ray.storage.shards import ShardFacts, shard_facts
from cdvae_ray.storage.store import Store


class AttackTask(NamedTuple):
    """A piece of work that any actor may do, again if it was lost."""

    plan: int
    """Which of the job's sets it belongs to."""
    shard: str
    """The file to write; empty: only count."""
    start: int
    stop: int
    variant: str
    """Of the attack, by name; empty: the attack itself."""


@dataclass(frozen=True, kw_only=True)
class PlannedSet:
    """A set as actors need to know it."""

    config: AttackConfig
    variants: dict[str, AttackConfig]
    root: str
    uri: str
    identity_digest: str
    labels: dict[str, str | int]
    """Columns that say in each row where it comes from."""


@dataclass(frozen=True, kw_only=True)
class AttackWork:
    """All that an actor is told; model and images travel once a node."""

    sets: tuple[PlannedSet, ...]
    model: Any
    images: Any
    filesystem: Any
    seed: int
    eot_samples: int
    batch_size: int
    channels_last: bool
    use_gpu: bool
    threads: int


class AttackDone(NamedTuple):
    """What an actor answers."""

    task: AttackTask
    counts: AttackCounts
    facts: ShardFacts | None
    error: CdvaeError | None


class AttackActor:
    """Runs on every worker. Holds the attacked model and the images; takes tasks."""

    def __init__(self, work: AttackWork) -> None:
        torch.set_num_threads(work.threads)
        self.work = work
        self.device = worker_device(work.use_gpu)
        self.images = fetch_images(work.images)
        layout = torch.channels_last if work.channels_last else torch.contiguous_format
        self.model = ray.get(work.model).to(self.device).to(memory_format=layout).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Does the tasks of a batch of JSON texts, and answers in JSON."""
        return {"done": [encode_done(self.do(decode_task(text))) for text in batch["task"]]}

    def do(self, task: AttackTask) -> AttackDone:
        """Attacks the task's images; an error of the project's own is an answer, too."""
        try:
            return self._do(task)
        except CdvaeError as error:
            return AttackDone(task, AttackCounts(), None, error)

    def _do(self, task: AttackTask) -> AttackDone:
        work, planned = self.work, self.work.sets[task.plan]
        config = planned.variants[task.variant] if task.variant else planned.config
        started = time.perf_counter()
        rows = attack_images(
            self.model,
            self.images,
            range(task.start, task.stop),
            config,
            seed=work.seed,
            eot_samples=work.eot_samples,
            batch_size=work.batch_size,
            device=self.device,
            channels_last=work.channels_last,
        )
        seconds = time.perf_counter() - started
        counts = count_rows(rows, config, seconds=seconds)
        if not task.shard:
            return AttackDone(task, counts, None, None)
        content = shard_bytes(rows, identity_digest=planned.identity_digest, labels=planned.labels)
        store = Store(work.filesystem, planned.root, planned.uri).child(SHARDS)
        store.write(task.shard, content)
        return AttackDone(task, counts, shard_facts(task.shard, rows.row_digests(), content), None)


def encode_task(task: AttackTask) -> str:
    """A task as JSON: what Ray Data carries without pickling."""
    return json.dumps(task)


def decode_task(text: str) -> AttackTask:
    """The inverse of `encode_task`."""
    return AttackTask(*json.loads(text))


def encode_done(done: AttackDone) -> str:
    """An answer as JSON."""
    return json.dumps(
        {
            "task": done.task,
            "counts": dataclasses.asdict(done.counts),
            "facts": done.facts,
            "error": encode_error(done.error),
        }
    )


def decode_done(text: str) -> AttackDone:
    """The inverse of `encode_done`."""
    values = json.loads(text)
    return AttackDone(
        AttackTask(*values["task"]),
        AttackCounts(**values["counts"]),
        ShardFacts(*values["facts"]) if values["facts"] else None,
        decode_error(values["error"]),
    )
