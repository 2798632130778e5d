"""Sets of rows on Ray Data: find what is there, compute the rest, seal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from torch import nn

from cdvae_ray.config.attack_job import PoolConfig
from cdvae_ray.config.serialize import digest_of
from cdvae_ray.data.images import ImageSet
from cdvae_ray.evaluation.image_source import ImageSource
from cdvae_ray.runtime.pool import PoolLines, Say, connect_pool, run_on_pool
from cdvae_ray.runtime.row_actor import (
    PlannedRows,
    RowActor,
    RowTask,
    RowWork,
    decode_done,
    encode_task,
)
from cdvae_ray.runtime.shared_images import share_images
from cdvae_ray.storage.row_set import ROWS, find_rows
from cdvae_ray.storage.shards import (
    ShardFacts,
    seal_shards,
    shard_ranges,
    stored_facts,
    tidy_shards,
)
from cdvae_ray.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class RowSetPlan:
    """A set to find or to make."""

    label: str
    """What people call it."""
    identity: dict[str, Any]
    """All that determines it; its `kind` is the set's."""
    root: Store
    """The folder that holds sets of its kind."""
    source: ImageSource
    images: ImageSet
    """The clean ones."""
    image_ids: Sequence[int]
    """Which of them, rising."""
    computation: str
    """By its name."""
    labels: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    """Further columns beside those of the source."""
    is_paired: bool = False
    """The computation is given the clean images first, then those of the source."""

    @property
    def digest(self) -> str:
        """The digest of the identity."""
        return digest_of(self.identity)

    @property
    def kind(self) -> str:
        """What the set is."""
        return str(self.identity["kind"])

    @property
    def store(self) -> Store:
        """The set's folder."""
        return self.root.child(f"{self.kind}-{self.digest[:12]}")


@dataclass
class _Progress:
    """A plan on its way."""

    plan: RowSetPlan
    shard_size: int
    found: dict[str, ShardFacts] = dataclasses.field(default_factory=dict)

    @property
    def shards(self) -> dict[str, range]:
        """Places among the image ids, by file."""
        return shard_ranges(len(self.plan.image_ids), self.shard_size)


def make_row_sets(
    plans: Sequence[RowSetPlan],
    computations: Mapping[str, nn.Module],
    *,
    pool: PoolConfig,
    doing: str,
    overwrite: bool,
    say: Say,
) -> None:
    """Runs on the driver. Makes every set whole: what is stored is kept, the rest is computed.

    Args:
        plans: the sets.
        computations: modules from images, labels and ids to columns, by name.
        pool: the actors.
        doing: as in "extracting features".
        overwrite: make sets again that are there.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    sets = [_find(plan, pool.shard_size, overwrite=overwrite) for plan in plans]
    tasks = [
        RowTask(number, name, places.start, places.stop)
        for number, each in enumerate(sets)
        for name, places in each.shards.items()
        if name not in each.found
    ]
    there = sum(len(each.found) == len(each.shards) for each in sets)
    say(f"{doing}: {there} of {len(sets)} sets are there")
    if tasks:
        _compute(sets, tasks, computations, pool=pool, doing=doing, say=say)
    for each in sets:
        _seal(each)


def _find(plan: RowSetPlan, shard_size: int, *, overwrite: bool) -> _Progress:
    store, shards = plan.store, plan.store.child(ROWS)
    if overwrite:
        store.delete("")
    facts = stored_facts(store, plan.kind)
    # The same rows, perhaps in other files: read them as they were sharded.
    progress = _Progress(plan, int(facts["shard_size"]) if facts else shard_size)
    tidy_shards(store, ROWS, progress.shards)
    for name, places in progress.shards.items():
        ids = plan.image_ids[places.start : places.stop]
        found = find_rows(shards, name, ids, identity_digest=plan.digest)
        if found is not None:
            progress.found[name] = found
    return progress


def _compute(
    sets: Sequence[_Progress],
    tasks: Sequence[RowTask],
    computations: Mapping[str, nn.Module],
    *,
    pool: PoolConfig,
    doing: str,
    say: Say,
) -> None:
    allocation = connect_pool(pool, say)
    plans = [each.plan for each in sets]
    images = list({id(plan.images): plan.images for plan in plans}.values())
    places = {id(each): place for place, each in enumerate(images)}
    names = list(dict.fromkeys(plan.computation for plan in plans))
    work = RowWork(
        sets=tuple(
            PlannedRows(
                root=plan.store.root,
                uri=plan.store.uri,
                identity_digest=plan.digest,
                source=plan.source,
                images=places[id(plan.images)],
                image_ids=plan.image_ids,
                computation=names.index(plan.computation),
                labels={**plan.source.labels(), **plan.labels},
                is_paired=plan.is_paired,
            )
            for plan in plans
        ),
        images=tuple(share_images(each) for each in images),
        computations=tuple(ray.put(computations[name]) for name in names),
        filesystem=plans[0].root.filesystem,
        batch_size=pool.batch_size,
        channels_last=pool.channels_last,
        use_gpu=allocation.use_gpu,
        threads=allocation.cpus_per_worker,
    )
    lines = PoolLines(
        [plan.label for plan in plans],
        [(task.number, task.stop - task.start) for task in tasks],
        doing=doing,
        say=say,
    )
    answers = run_on_pool(
        [encode_task(task) for task in tasks],
        RowActor,
        work,
        pool=pool,
        allocation=allocation,
        what=doing,
    )
    for done in map(decode_done, answers):
        if done.error is not None:
            raise done.error
        assert done.facts is not None
        sets[done.task.number].found[done.task.shard] = done.facts
        lines.done(done.task.number, done.task.stop - done.task.start)


def _seal(progress: _Progress) -> None:
    plan, shards = progress.plan, [progress.found[name] for name in progress.shards]
    seal_shards(
        plan.store,
        shards,
        kind=plan.kind,
        folder=ROWS,
        facts={
            "identity": plan.identity,
            "identity_digest": plan.digest,
            "label": plan.label,
            "images": len(plan.image_ids),
            "shard_size": progress.shard_size,
        },
    )
