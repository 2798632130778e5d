"""What every actor does that computes numbers of images: one task is one shard of rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import ray
import torch

from cdvae_ray.errors import CdvaeError
from cdvae_ray.evaluation.answers import answering
from cdvae_ray.evaluation.image_source import ImageSource
from cdvae_ray.runtime.cluster import worker_device
from cdvae_ray.runtime.pool import decode_error, encode_error
from cdvae_ray.runtime.shared_images import fetch_images
from cdvae_ray.storage.row_set import ROWS, ImageRows, rows_bytes
from cdvae_ray.storage.shards import ShardFacts, shard_facts
from cdvae_ray.storage.store import Store

_CLEAN = ImageSource(kind="clean")


class RowTask(NamedTuple):
    """A shard to make, by any actor, again if it was lost."""

    number: int
    """Which of the job's sets it belongs to."""
    shard: str
    start: int
    """Places among the set's image ids."""
    stop: int


@dataclass(frozen=True, kw_only=True)
class PlannedRows:
    """A set as actors need to know it."""

    root: str
    uri: str
    identity_digest: str
    source: ImageSource
    images: int
    """Which of the job's image sets."""
    image_ids: Sequence[int]
    computation: int
    """Which of the job's computations."""
    labels: dict[str, str | int]
    is_paired: bool
    """The computation is given the clean images first."""


@dataclass(frozen=True, kw_only=True)
class RowWork:
    """All that an actor is told; image sets and computations travel once a node."""

    sets: tuple[PlannedRows, ...]
    images: tuple[Any, ...]
    computations: tuple[Any, ...]
    filesystem: Any
    batch_size: int
    channels_last: bool
    use_gpu: bool
    threads: int


class RowDone(NamedTuple):
    """What an actor answers."""

    task: RowTask
    facts: ShardFacts | None
    error: CdvaeError | None


class RowActor:
    """Runs on every worker. Holds images and networks; takes tasks."""

    def __init__(self, work: RowWork) -> None:
        torch.set_num_threads(work.threads)
        self.work = work
        self.device = worker_device(work.use_gpu)
        self.layout = torch.channels_last if work.channels_last else torch.contiguous_format
        self.images = [fetch_images(reference) for reference in work.images]
        self.computations = [
            ray.get(reference).to(self.device).to(memory_format=self.layout).eval()
            for reference in work.computations
        ]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Does the tasks of a batch of JSON texts, and answers in JSON."""
        return {"done": [encode_done(self.do(decode_task(text))) for text in batch["task"]]}

    def do(self, task: RowTask) -> RowDone:
        """Computes and stores the task's rows; an error of the project's own is an answer, too."""
        try:
            return self._do(task)
        except CdvaeError as error:
            return RowDone(task, None, error)

    def _do(self, task: RowTask) -> RowDone:
        planned = self.work.sets[task.number]
        clean, compute = self.images[planned.images], self.computations[planned.computation]
        image_ids = torch.tensor(list(planned.image_ids[task.start : task.stop]))
        parts = []
        for ids in torch.split(image_ids, self.work.batch_size):
            sources = [_CLEAN, planned.source] if planned.is_paired else [planned.source]
            shown = [
                each.load(clean, ids).to(self.device).contiguous(memory_format=self.layout)
                for each in sources
            ]
            # A stochastic model answers alike whichever actor asks, and after whatever.
            with answering(0, planned.identity_digest, int(ids[0]), device=self.device):
                columns = compute(*shown, clean.labels[ids].to(self.device), ids)
            parts.append({name: values.cpu() for name, values in columns.items()})
        rows = ImageRows(
            image_ids, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        )
        content = rows_bytes(rows, identity_digest=planned.identity_digest, labels=planned.labels)
        store = Store(self.work.filesystem, planned.root, planned.uri).child(ROWS)
        store.write(task.shard, content)
        return RowDone(task, shard_facts(task.shard, rows.row_digests(), content), None)


def encode_task(task: RowTask) -> str:
    """A task as JSON: what Ray Data carries without pickling."""
    return json.dumps(task)


def decode_task(text: str) -> RowTask:
    """The inverse of `encode_task`."""
    return RowTask(*json.loads(text))


def encode_done(done: RowDone) -> str:
    """An answer as JSON."""
    return json.dumps({**done._asdict(), "error": encode_error(done.error)})


def decode_done(text: str) -> RowDone:
    """The inverse of `encode_done`."""
    values = json.loads(text)
    return RowDone(
        RowTask(*values["task"]),
        ShardFacts(*values["facts"]) if values["facts"] else None,
        decode_error(values["error"]),
    )
