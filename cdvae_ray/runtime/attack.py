"""Adversarial sets on Ray Data: plan, find what is there, attack the rest, check, track."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
import torch

from cdvae_ray.config.attack import SUITES, AttackConfig
from cdvae_ray.config.attack_job import (
    AttackJobConfig,
    adversarial_set_identity,
    set_name,
)
from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.core.attacks.probe import is_stochastic
from cdvae_ray.core.threat_models import AttackedModel, attacked_model
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import load_split
from cdvae_ray.evaluation.attack_picture import attack_picture
from cdvae_ray.evaluation.attack_report import (
    AttackCounts,
    AttackRow,
    Check,
    StrengthCounts,
    attack_columns,
    attack_row,
    check_columns,
    count_rows,
    sanity_checks,
    strength_variants,
)
from cdvae_ray.evaluation.image_source import StoredSet
from cdvae_ray.runtime.attack_actor import (
    AttackActor,
    AttackDone,
    AttackTask,
    AttackWork,
    PlannedSet,
    decode_done,
    encode_task,
)
from cdvae_ray.runtime.parts import (
    defense_at,
    network_at,
    require_fit,
    require_same_cdvae,
)
from cdvae_ray.runtime.pool import PoolLines, Say, connect_pool, run_on_pool
from cdvae_ray.runtime.shared_images import share_images
from cdvae_ray.runtime.tracked import (
    embedded_root,
    ending,
    require_lasting_places,
    tracking_address,
)
from cdvae_ray.storage.adversarial_set import (
    SHARDS,
    AdversarialImages,
    find_shard,
    read_shard,
    seal_set,
    stored_set_facts,
)
from cdvae_ray.storage.artifact import write_artifact
from cdvae_ray.storage.shards import ShardFacts, shard_ranges, tidy_shards
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.tracking import Writer, metric_name, open_writer
from cdvae_ray.training.checkpoint import cdvae_of, classifier_of

REPORT_KIND = "attack-report"
_PICTURE_IMAGES = 8
_PROBE_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class AttackOutcome:
    """What an attack job came to."""

    run_id: str | None
    config_digest: str
    metrics: dict[str, float]
    rows: list[AttackRow]
    checks: dict[str, list[Check]]
    sets: dict[str, str]
    """The folder of each attack's set."""
    report: str
    """The folder of table, checks and picture."""


@dataclass
class _Plan:
    """One adversarial set on its way."""

    config: AttackConfig
    identity: dict[str, Any]
    digest: str
    store: Store
    num_images: int
    """The first ones of the job's images."""
    shard_size: int
    is_further: bool = False
    """Not of the job's suite: no look at its strength is wanted."""
    found: dict[str, ShardFacts] = dataclasses.field(default_factory=dict)
    counts: AttackCounts = dataclasses.field(default_factory=AttackCounts)
    variants: dict[str, AttackConfig] = dataclasses.field(default_factory=dict)
    strength: dict[str, AttackCounts] = dataclasses.field(default_factory=dict)
    content_digest: str = ""

    @property
    def shards(self) -> dict[str, range]:
        """The ids in each file, in order."""
        return shard_ranges(self.num_images, self.shard_size)

    @property
    def is_whole(self) -> bool:
        return len(self.found) == len(self.shards)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Everything resolved: what is attacked, with which parts, on which images."""

    config: AttackJobConfig
    preset: str
    images: ImageSet
    model: AttackedModel
    digests: dict[str, str | None]
    is_stochastic: bool
    plans: list[_Plan]
    root: Store

    @property
    def digest(self) -> str:
        """The identity of the report: the sets, and the checks made on them."""
        return digest_of(
            {
                "kind": REPORT_KIND,
                "sets": [[plan.config.label, plan.digest] for plan in self.plans],
                "strength_images": self.config.checks.strength_images,
            }
        )

    @property
    def name(self) -> str:
        return f"attack-{self.preset}-{self.digest[:12]}"


class MadeSet(NamedTuple):
    """A whole set, with what it came to."""

    stored: StoredSet
    attack: AttackConfig
    counts: AttackCounts
    strength: StrengthCounts | None
    """None where no variants were run."""
    is_stochastic: bool
    """Whether the attacked function answers at random."""


def attack(config: AttackJobConfig, *, preset: str, say: Say) -> AttackOutcome:
    """Runs on the driver. Makes or finds one adversarial set an attack, and reports on them.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    require_lasting_places(config.storage, config.tracking)
    parts = _parts(config, say)
    say(f"data: loading {config.data.source}")
    images = load_split(config.data, config.split)
    say(f"data: {images.name} {len(images):,} images")
    job = _plan(config, preset, parts, images)
    for plan in job.plans:
        _find_stored(job, plan, say)
    writer = open_writer(
        config.tracking,
        embedded_root=embedded_root(config.storage),
        run_name=job.name,
        tags={"job": "attack", "preset": preset, "config_digest": job.digest},
    )
    with ending(writer):
        _describe(writer, job)
        _attack_missing(job, say)
        return _report(job, writer)


def make_sets(
    config: AttackJobConfig,
    images: ImageSet,
    *,
    preset: str,
    say: Say,
    further: Sequence[AttackConfig] = (),
    further_images: int = 0,
) -> list[MadeSet]:
    """Runs on the driver. The sets of a job, found or made, for a job that goes on with them.

    Args:
        config: the job; its tracking is left to `attack`.
        images: the clean images, of `config.data` and `config.split`.
        preset: the name it was started from, for people.
        say: takes lines of progress.
        further: attacks besides the job's own, by the same actors; their sets come last.
        further_images: on how many of the first images.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    parts = _parts(config, say)
    job = _plan(config, preset, parts, images)
    if further:
        job.plans.extend(
            _planned(job, parts, each, images.first(further_images), is_further=True)
            for each in further
        )
    for plan in job.plans:
        _find_stored(job, plan, say)
    _attack_missing(job, say)
    return [
        MadeSet(
            stored=StoredSet(
                store=plan.store,
                identity_digest=plan.digest,
                content_digest=plan.content_digest,
                shard_size=plan.shard_size,
                attack=plan.config.label,
                threat_model=config.threat_model,
            ),
            attack=plan.config,
            counts=plan.counts,
            strength=_strength(plan),
            is_stochastic=job.is_stochastic,
        )
        for plan in job.plans
    ]


class _Parts(NamedTuple):
    """The attacked function, and the digests of the checkpoints that it is made of."""

    model: AttackedModel
    cdvae_digest: str | None
    classifier_digest: str | None
    defense_digest: str | None


def _parts(config: AttackJobConfig, say: Say) -> _Parts:
    address = tracking_address(config.tracking, config.storage)
    cdvae, cdvae_digest = network_at(config.checkpoint, cdvae_of, address)
    classifier, classifier_digest = network_at(config.classifier, classifier_of, address)
    defense = None
    if config.defense:
        cdvaes = {} if cdvae is None or cdvae_digest is None else {cdvae_digest: cdvae}
        defense = defense_at(config.defense, cdvaes, address)
        if defense.cdvae_digest == cdvae_digest:
            cdvae = None  # It is inside the defence.
    model = attacked_model(
        config.threat_model,
        cdvae=cdvae,
        classifier=classifier,
        defense=None if defense is None else defense.module,
    )
    say(f"threat model: {config.threat_model}, attacking {model.threat_model.attacked}")
    require_same_cdvae(classifier, cdvae_digest)
    return _Parts(
        model, cdvae_digest, classifier_digest, None if defense is None else defense.digest
    )


def _plan(config: AttackJobConfig, preset: str, parts: _Parts, images: ImageSet) -> _Job:
    model = parts.model
    require_fit("the attacked model", model.class_names, model.image_size, images)
    stochastic = is_stochastic(model, images.images[:_PROBE_IMAGES].float() / 255)
    root = Store.at(config.storage).child("adversarial")
    job = _Job(
        config=config,
        preset=preset,
        images=images,
        model=model,
        digests={
            "cdvae": parts.cdvae_digest,
            "classifier": parts.classifier_digest,
            "defense": parts.defense_digest,
        },
        is_stochastic=stochastic,
        plans=[],
        root=root,
    )
    job.plans.extend(_planned(job, parts, each, images) for each in config.chosen_attacks())
    return job


def _planned(
    job: _Job,
    parts: _Parts,
    attack: AttackConfig,
    images: ImageSet,
    *,
    is_further: bool = False,
) -> _Plan:
    """The plan of one set on the job's images, or on the first of them."""
    if job.is_stochastic and attack.attack == "auto_attack" and attack.version is None:
        # Its standard version counts a lucky draw as robust.
        attack = dataclasses.replace(attack, version="rand")
    if job.is_stochastic or job.config.eot_samples > 1:
        attack = attack.without_dropping()
    identity = adversarial_set_identity(
        attack,
        job.config,
        cdvae_digest=parts.cdvae_digest,
        classifier_digest=parts.classifier_digest,
        defense_digest=parts.defense_digest,
        images_digest=images.digest,
        is_stochastic=job.is_stochastic,
    )
    digest = digest_of(identity)
    return _Plan(
        config=attack,
        identity=identity,
        digest=digest,
        store=job.root.child(set_name(attack, digest)),
        num_images=len(images),
        shard_size=job.config.pool.shard_size,
        is_further=is_further,
    )


# --- what is there --------------------------------------------------------------------------------


def _find_stored(job: _Job, plan: _Plan, say: Say) -> None:
    """Takes shards that an earlier job stored; only sound ones of exactly this set count."""
    label, shards = plan.config.label, plan.store.child(SHARDS)
    if job.config.overwrite:
        plan.store.delete("")
    facts = stored_set_facts(plan.store)
    if facts is not None:
        # The same rows, perhaps in other files: read them as they were sharded.
        plan.shard_size = int(facts["shard_size"])
    tidy_shards(plan.store, SHARDS, plan.shards)
    for name, ids in plan.shards.items():
        stored = find_shard(shards, name, ids, identity_digest=plan.digest)
        if stored is not None:
            plan.found[name] = stored.facts
            plan.counts += count_rows(stored.rows, plan.config)
    found, count = len(plan.found), len(plan.shards)
    if found:
        say(f"{label}: {found} of {count} shards are there, {count - found} to make")


# --- what is not --------------------------------------------------------------------------------


def _attack_missing(job: _Job, say: Say) -> None:
    wants_strength = SUITES[job.config.suite].claims_robustness
    strength_images = min(job.config.checks.strength_images, len(job.images))
    tasks: list[AttackTask] = []
    for number, plan in enumerate(job.plans):
        tasks += [
            AttackTask(number, name, ids.start, ids.stop, "")
            for name, ids in plan.shards.items()
            if name not in plan.found
        ]
        if wants_strength and strength_images and not plan.is_further:
            plan.variants = strength_variants(plan.config)
            step = job.config.pool.batch_size
            tasks += [
                AttackTask(number, "", first, min(first + step, strength_images), variant)
                for variant in plan.variants
                for first in range(0, strength_images, step)
            ]
    if tasks:
        lines = PoolLines(
            [plan.config.label for plan in job.plans],
            [(task.plan, task.stop - task.start) for task in tasks],
            doing="attacking",
            say=say,
        )
        for done in _run(job, tasks, say):
            plan = job.plans[done.task.plan]
            if done.error is not None:
                raise done.error
            if done.facts is None:
                before = plan.strength.get(done.task.variant, AttackCounts())
                plan.strength[done.task.variant] = before + done.counts
            else:
                plan.found[done.task.shard] = done.facts
                plan.counts += done.counts
            lines.done(done.task.plan, done.task.stop - done.task.start)
    for plan in job.plans:
        _seal(job, plan)


def _run(job: _Job, tasks: Sequence[AttackTask], say: Say) -> Iterator[AttackDone]:
    """Runs tasks on an actor pool; Ray Data gives a lost actor's task to another one."""
    pool = job.config.pool
    allocation = connect_pool(pool, say)
    work = AttackWork(
        sets=tuple(_planned_set(job, plan) for plan in job.plans),
        model=ray.put(job.model),
        images=share_images(job.images),
        filesystem=job.root.filesystem,
        seed=job.config.seed,
        eot_samples=job.config.eot_samples,
        batch_size=pool.batch_size,
        channels_last=pool.channels_last,
        use_gpu=allocation.use_gpu,
        threads=allocation.cpus_per_worker,
    )
    done = run_on_pool(
        [encode_task(task) for task in tasks],
        AttackActor,
        work,
        pool=pool,
        allocation=allocation,
        what="attack generation",
    )
    return map(decode_done, done)


def _planned_set(job: _Job, plan: _Plan) -> PlannedSet:
    return PlannedSet(
        config=plan.config,
        variants=plan.variants,
        root=plan.store.root,
        uri=plan.store.uri,
        identity_digest=plan.digest,
        labels={
            "attack": plan.config.label,
            "threat_model": job.config.threat_model,
            "seed": job.config.seed,
            "source_cdvae": job.digests["cdvae"] or "",
            "source_classifier": job.digests["defense"] or job.digests["classifier"] or "",
        },
    )


def _seal(job: _Job, plan: _Plan) -> None:
    assert plan.is_whole, f"{len(plan.found)} of {len(plan.shards)} shards"
    shards = [plan.found[name] for name in plan.shards]
    digests = [digest for shard in shards for digest in shard.row_digests]
    assert len(digests) == plan.num_images, f"{len(digests)} rows of {plan.num_images} images"
    facts = {
        "identity": plan.identity,
        "identity_digest": plan.digest,
        "label": plan.config.label,
        "threat_model": job.config.threat_model,
        "images": plan.num_images,
        "class_names": list(job.images.class_names),
        "shard_size": plan.shard_size,
        "success": plan.counts.success,
        "clean_correct": plan.counts.clean_correct,
        "robust": plan.counts.robust,
    }
    plan.content_digest = seal_set(plan.store, shards, facts=facts)


# --- what it came to ----------------------------------------------------------------------------


def _report(job: _Job, writer: Writer) -> AttackOutcome:
    first = {plan.config.label: _first_rows(plan, _PICTURE_IMAGES) for plan in job.plans}
    rows = [
        attack_row(
            plan.config,
            plan.counts,
            threat_model=job.model.threat_model,
            set_digest=plan.content_digest,
        )
        for plan in job.plans
    ]
    checks = {plan.config.label: _checks(job, plan) for plan in job.plans}
    picture = attack_picture(
        job.images.images[:_PICTURE_IMAGES],
        first,
        job.images.class_names,
        caption=f"attacked: {job.model.threat_model.attacked} ({job.name})",
    )
    metrics = _metrics(rows)
    name = f"report-{job.digest[:12]}"
    table, lines = attack_columns(rows), check_columns(checks)
    write_artifact(
        job.root,
        name,
        kind=REPORT_KIND,
        files={
            "attacks.json": to_json_bytes(table),
            "checks.json": to_json_bytes(lines),
            "picture.png": picture,
        },
        facts={"digest": job.digest, "sets": {p.config.label: p.content_digest for p in job.plans}},
    )
    writer.log_metrics(metrics, step=0)
    writer.log_table(table, "tables/attacks.json")
    writer.log_table(lines, "tables/checks.json")
    writer.log_image(picture, "figures/attacks.png")
    return AttackOutcome(
        run_id=writer.run_id(timeout_seconds=15),
        config_digest=job.digest,
        metrics=metrics,
        rows=rows,
        checks=checks,
        sets={plan.config.label: plan.store.uri for plan in job.plans},
        report=job.root.location(name),
    )


def _first_rows(plan: _Plan, count: int) -> AdversarialImages:
    """The first rows of a set, at most `count` of them."""
    parts: list[AdversarialImages] = []
    for name in plan.shards:
        parts.append(read_shard(plan.store.child(SHARDS), name, identity_digest=plan.digest))
        if sum(len(part) for part in parts) >= count:
            break
    rows = AdversarialImages.concatenate(parts)
    return rows.select(torch.arange(min(count, len(rows))))


def _checks(job: _Job, plan: _Plan) -> list[Check]:
    why = "this suite's sets are what they are defined to be"
    if SUITES[job.config.suite].claims_robustness:
        why = "turned off (--checks.strength-images 0)"
        if not strength_variants(plan.config):
            why = "not an iterative climb"
    return sanity_checks(
        plan.counts,
        plan.config,
        is_stochastic=job.is_stochastic,
        eot_samples=job.config.eot_samples,
        strength=_strength(plan),
        why_no_strength=why,
    )


def _strength(plan: _Plan) -> StrengthCounts | None:
    if not plan.strength:
        return None
    images = next(iter(plan.strength.values())).images
    return StrengthCounts(
        images=images,
        robust=count_rows(_first_rows(plan, images), plan.config).robust,
        one_step=_robust(plan, "one_step"),
        twice_the_steps=_robust(plan, "twice_the_steps"),
        five_starts=_robust(plan, "five_starts"),
    )


def _robust(plan: _Plan, variant: str) -> int | None:
    counts = plan.strength.get(variant)
    return None if counts is None else counts.robust


def _metrics(rows: list[AttackRow]) -> dict[str, float]:
    """Numbers by "<attack>.<what>"."""
    metrics: dict[str, float] = {}
    for row in rows:
        of_attack = {
            "accuracy": row.accuracy,
            "clean_accuracy": row.clean_accuracy,
            "success_rate": row.success_rate,
            "mean_linf": row.mean_linf,
            "mean_l2": row.mean_l2,
            "images_per_second": row.images_per_second,
        }
        metrics |= {metric_name(row.attack, what): value for what, value in of_attack.items()}
    return metrics


def _describe(writer: Writer, job: _Job) -> None:
    config = job.config
    sections = ("data", "pool", "checks")
    writer.log_config(
        {
            **{name: to_dict(getattr(config, name)) for name in sections},
            "preset": job.preset,
            "suite": config.suite,
            "threat_model": config.threat_model,
            "attacked": job.model.threat_model.attacked,
            "split": config.split,
            "seed": config.seed,
            "eot_samples": config.eot_samples,
            "checkpoint": config.checkpoint,
            "checkpoint_digest": job.digests["cdvae"] or "",
            "classifier": config.classifier,
            "classifier_digest": job.digests["classifier"] or "",
            "storage": config.storage,
            "sets": {
                plan.config.label.replace("&", ""): {
                    "digest": plan.digest,
                    "settings": plan.config.describe(),
                }
                for plan in job.plans
            },
        }
    )
    writer.log_dataset(
        job.images.name,
        job.images.digest,
        config.data.source,
        len(job.images),
        job.images.num_classes,
        config.split,
    )
