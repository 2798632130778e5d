"""Tables 6 and 7 on Ray Data: attack, ask every defence, count, check, track."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from cdvae_ray.config.defense_job import (
    DefenseJobConfig,
    defense_report_identity,
    prediction_set_identity,
)
from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.core.attacks.jpeg import jpeg_identity
from cdvae_ray.core.attacks.probe import is_stochastic
from cdvae_ray.core.attacks.recolor import recolor_identity
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import load_split
from cdvae_ray.errors import ConfigError
from cdvae_ray.evaluation.attack_report import AttackCounts, Check, StrengthCounts
from cdvae_ray.evaluation.defense_checklist import (
    DefenseEvidence,
    checklist_columns,
    defense_checklist,
)
from cdvae_ray.evaluation.defense_picture import defense_picture
from cdvae_ray.evaluation.defense_report import defense_page
from cdvae_ray.evaluation.defense_table import (
    AttackedDefense,
    DefenseNumber,
    DefenseOutcomes,
    defense_columns,
    defense_numbers,
    transfer_only,
)
from cdvae_ray.evaluation.image_computations import PredictionColumns
from cdvae_ray.evaluation.image_source import ImageSource
from cdvae_ray.loading import checkpoint_at
from cdvae_ray.runtime.attack import MadeSet, make_sets
from cdvae_ray.runtime.parts import LoadedDefense, defense_at, require_fit
from cdvae_ray.runtime.pool import Say
from cdvae_ray.runtime.row_sets import RowSetPlan, make_row_sets
from cdvae_ray.runtime.tracked import (
    embedded_root,
    ending,
    require_lasting_places,
    tracking_address,
)
from cdvae_ray.storage.adversarial_set import read_outcomes
from cdvae_ray.storage.artifact import write_artifact
from cdvae_ray.storage.row_set import read_row_set
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.tracking import Writer, metric_name, open_writer
from cdvae_ray.training.checkpoint import cdvae_of, model_digest

REPORT_KIND = "defense-report"
_PROBE_IMAGES = 8
_WHITE_BOX = "white-box: against the whole defence"
_TRANSFER = "transfer: made against D(x), which knows nothing of the defence"
_ZERO_STRENGTH: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "JPEG": ("jpeg at zero strength", jpeg_identity),
    "ReColorAdv": ("recolor at zero strength", recolor_identity),
}
"""What an attack's own transform does without any attack, by the attack's label."""


@dataclass(frozen=True, kw_only=True)
class DefenseOutcome:
    """What an evaluation of defences came to."""

    run_id: str | None
    config_digest: str
    metrics: dict[str, float]
    numbers: list[DefenseNumber]
    checks: dict[str, list[Check]]
    remarks: list[str]
    """What the numbers say beside each other."""
    report: str
    """The folder of tables, page and picture."""


@dataclass(frozen=True, kw_only=True)
class _Defense:
    """A defence to evaluate."""

    name: str
    location: str
    cdvae: str
    """Location of its CD-VAE; "" where its checkpoint holds all of it."""
    loaded: LoadedDefense
    is_stochastic: bool
    eot_samples: int


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Everything resolved: which defences, on which images."""

    config: DefenseJobConfig
    preset: str
    images: ImageSet
    defenses: list[_Defense]
    identity: dict[str, Any]
    storage: Store
    say: Say

    @property
    def digest(self) -> str:
        return digest_of(self.identity)

    @property
    def name(self) -> str:
        return f"defense-{self.preset}-{self.digest[:12]}"


def evaluate_defense(config: DefenseJobConfig, *, preset: str, say: Say) -> DefenseOutcome:
    """Runs on the driver. Makes or finds all that the report needs, and reports.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    require_lasting_places(config.storage, config.tracking)
    config.require_parts()
    job = _resolve(config, preset, say)
    writer = open_writer(
        config.tracking,
        embedded_root=embedded_root(config.storage),
        run_name=job.name,
        tags={"job": "evaluate_defense", "preset": preset, "config_digest": job.digest},
    )
    with ending(writer):
        _describe(writer, job)
        return _evaluate(job, writer)


# --- what is evaluated --------------------------------------------------------------------------


def _resolve(config: DefenseJobConfig, preset: str, say: Say) -> _Job:
    address = tracking_address(config.tracking, config.storage)
    cdvaes, places = _cdvaes(config, address)
    loaded = {
        name: (location, defense_at(location, cdvaes, address))
        for name, location in config.named_defenses()
    }
    used = {each.cdvae_digest for _, each in loaded.values()}
    left_over = [place for digest, place in places.items() if digest not in used]
    if left_over:
        raise ConfigError(
            "cdvae",
            got=", ".join(left_over),
            expected="CD-VAEs of the defences that are a classifier of G(x)",
            remedy="leave it out",
        )
    say(f"data: loading {config.data.source}")
    images = load_split(config.data, "test")
    say(f"data: {images.name} {len(images):,} images")
    defenses = []
    for name, (location, each) in loaded.items():
        require_fit(name, each.module.class_names, each.module.image_size, images)
        stochastic = is_stochastic(each.module, images.images[:_PROBE_IMAGES].float() / 255)
        defenses.append(
            _Defense(
                name=name,
                location=location,
                cdvae=places.get(each.cdvae_digest or "", ""),
                loaded=each,
                is_stochastic=stochastic,
                eot_samples=config.eot_samples if stochastic else 1,
            )
        )
    source = (
        model_digest(checkpoint_at(config.source, tracking_uri=address)) if config.source else None
    )
    identity = defense_report_identity(
        config,
        defenses={
            each.name: f"{each.loaded.digest} {each.loaded.cdvae_digest or ''}".strip()
            for each in defenses
        },
        source_digest=source,
        test_digest=images.digest,
    )
    return _Job(
        config=config,
        preset=preset,
        images=images,
        defenses=defenses,
        identity=identity,
        storage=Store.at(config.storage),
        say=say,
    )


def _cdvaes(config: DefenseJobConfig, address: str) -> tuple[dict[str, CDVAE], dict[str, str]]:
    """The CD-VAEs that were given, and their locations, by their digests."""
    models, places = {}, {}
    for location in config.cdvae:
        checkpoint = checkpoint_at(location, tracking_uri=address)
        digest = model_digest(checkpoint)
        models[digest], places[digest] = cdvae_of(checkpoint), location
    return models, places


# --- outcomes -----------------------------------------------------------------------------------


def _evaluate(job: _Job, writer: Writer) -> DefenseOutcome:
    config, say = job.config, job.say
    transfer: list[MadeSet] = []
    if config.table == "grey-box":
        transfer = make_sets(config.transfer_job(), job.images, preset=job.preset, say=say)
    white_box = {each.name: _white_box(job, each) for each in job.defenses}
    right = _answers(job, transfer)
    numbers: list[DefenseNumber] = []
    checks: dict[str, list[Check]] = {}
    remarks: list[str] = []
    dataset = None if config.paper == "none" else config.paper
    for each in job.defenses:
        outcomes = _outcomes(job, each, transfer, white_box[each.name], right)
        numbers += defense_numbers(outcomes, table=config.table, dataset=dataset)
        if each.loaded.digest == job.identity["source"]:
            remarks.append(
                f"{each.name} is the attacked D(x) itself: its row under transfer is white-box."
            )
        elif (remark := transfer_only(outcomes)) is not None:
            remarks.append(remark)
        say(f"checking {each.name}")
        checks[each.name] = defense_checklist(
            _evidence(job, each, outcomes, transfer, white_box[each.name], right)
        )
    return _report(job, writer, numbers=numbers, checks=checks, remarks=remarks)


class _WhiteBox(NamedTuple):
    """Attacks on a defence itself."""

    table: list[MadeSet]
    sweep: list[MadeSet]
    """PGD L-infinity by rising radius, on the first images."""
    square: list[MadeSet]
    """Square on the first images, if it was run."""


def _white_box(job: _Job, each: _Defense) -> _WhiteBox:
    config = job.config.white_box_job(each.location, each.cdvae, eot_samples=each.eot_samples)
    sweep, square = job.config.evidence.sweep(), job.config.evidence.square()
    job.say(f"{each.name}: white-box attacks")
    made = make_sets(
        config,
        job.images,
        preset=job.preset,
        say=job.say,
        further=[*sweep, *square],
        further_images=min(job.config.evidence.images, len(job.images)),
    )
    first, second = len(made) - len(sweep) - len(square), len(made) - len(square)
    return _WhiteBox(made[:first], made[first:second], made[second:])


_Right = dict[tuple[str, str], Tensor]
"""Whether each defence is right, (n,) bool, by its name and what it was shown."""


def _answers(job: _Job, transfer: Sequence[MadeSet]) -> _Right:
    """Every defence's answers to clean, transferred and transformed images, on the pool."""
    shown: list[tuple[str, ImageSource, str]] = [("clean", ImageSource(kind="clean"), "")]
    shown += [
        (made.attack.label, ImageSource(kind="adversarial", adversarial=made.stored), "")
        for made in transfer
    ]
    wanted = {attack.label for attack in job.config.chosen_attacks()}
    shown += [
        (name, ImageSource(kind="clean"), label)
        for label, (name, _) in _ZERO_STRENGTH.items()
        if label in wanted and job.config.table == "white-box"
    ]
    plans: dict[tuple[str, str], RowSetPlan] = {}
    computations = {}
    for each in job.defenses:
        for what, source, transform in shown:
            computation = f"{each.name}, {transform or 'as it is'}"
            function = _ZERO_STRENGTH[transform][1] if transform else None
            computations[computation] = PredictionColumns(
                each.loaded.module, function, samples=each.eot_samples
            )
            plans[each.name, what] = RowSetPlan(
                label=f"{each.name} on {what}",
                identity=prediction_set_identity(
                    source.identity(),
                    defense_digest=each.loaded.digest,
                    cdvae_digest=each.loaded.cdvae_digest,
                    images_digest=job.images.digest,
                    transform=transform,
                    samples=each.eot_samples,
                ),
                root=job.storage.child("predictions"),
                source=source,
                images=job.images,
                image_ids=range(len(job.images)),
                computation=computation,
                labels={"defense": each.name},
            )
    make_row_sets(
        list(plans.values()),
        computations,
        pool=job.config.pool,
        doing="asking defences",
        overwrite=job.config.overwrite,
        say=job.say,
    )
    right = {}
    for key, plan in plans.items():
        rows = read_row_set(plan.store, plan.kind)
        right[key] = rows["prediction"] == rows["label"]
    return right


def _outcomes(
    job: _Job,
    each: _Defense,
    transfer: Sequence[MadeSet],
    white_box: _WhiteBox,
    right: _Right,
) -> DefenseOutcomes:
    clean = right[each.name, "clean"]
    attacked = [
        AttackedDefense(
            attack=made.attack,
            threat_model=_TRANSFER,
            is_white_box=False,
            # Transferred images know nothing of this defence: a wrong answer without them counts.
            correct=clean & right[each.name, made.attack.label],
            set_digest=made.stored.content_digest,
            eot_samples=1,
        )
        for made in transfer
    ]
    for made in white_box.table:
        rows = read_outcomes(made.stored.store)
        held = (rows.clean_predictions == rows.labels) & (rows.predictions == rows.labels)
        attacked.append(
            AttackedDefense(
                attack=made.attack,
                threat_model=_WHITE_BOX,
                is_white_box=True,
                # `clean` as well: a stochastic defence may answer otherwise at another look.
                correct=clean & held,
                set_digest=made.stored.content_digest,
                eot_samples=each.eot_samples,
            )
        )
    return DefenseOutcomes(
        name=each.name,
        digest=each.loaded.digest,
        trained_against=each.loaded.trained_against,
        clean_correct=clean,
        attacks=tuple(attacked),
        is_stochastic=each.is_stochastic,
        seed=job.config.seed,
    )


# --- the checklist ------------------------------------------------------------------------------


def _evidence(
    job: _Job,
    each: _Defense,
    outcomes: DefenseOutcomes,
    transfer: Sequence[MadeSet],
    white_box: _WhiteBox,
    right: _Right,
) -> DefenseEvidence:
    counts: dict[tuple[str, str], AttackCounts] = {}
    for threat_model, sets in ((_TRANSFER, transfer), (_WHITE_BOX, white_box.table)):
        counts |= {(threat_model, made.attack.label): made.counts for made in sets}
    strength: dict[str, StrengthCounts] = {
        made.attack.label: made.strength for made in white_box.table if made.strength is not None
    }
    n = len(job.images)
    return DefenseEvidence(
        outcomes=outcomes,
        counts=counts,
        epsilon_sweep=[
            (epsilon, made.counts.robust, made.counts.images)
            for epsilon, made in zip(job.config.evidence.epsilons, white_box.sweep, strict=False)
        ]
        or None,
        strength=strength,
        losses=_losses(white_box.table),
        zero_strength={
            label: (
                int(outcomes.clean_correct.sum()),
                int(right[each.name, name].sum()),
                n,
            )
            for label, (name, _) in _ZERO_STRENGTH.items()
            if (each.name, name) in right
        },
        black_box=next(
            ((made.counts.robust, made.counts.images) for made in white_box.square), None
        ),
        eot_samples=each.eot_samples,
        detector_aware=False,
    )


def _losses(white_box: Sequence[MadeSet]) -> frozenset[str]:
    """The losses that white-box attacks climbed."""
    of_attack = {
        "fgsm": ("cross-entropy",),
        "bim": ("cross-entropy",),
        "pgd": ("cross-entropy",),
        "margin_pgd": ("margin",),
        "stadv": ("margin",),
        "recolor": ("margin",),
        "jpeg": ("cross-entropy",),
        "carlini_wagner_l2": ("margin",),
        "auto_attack": ("cross-entropy", "DLR"),
    }
    return frozenset(loss for made in white_box for loss in of_attack[made.attack.attack])


# --- what it came to ----------------------------------------------------------------------------


def _report(
    job: _Job,
    writer: Writer,
    *,
    numbers: list[DefenseNumber],
    checks: dict[str, list[Check]],
    remarks: list[str],
) -> DefenseOutcome:
    picture = defense_picture(numbers, caption=job.name)
    table, lines = defense_columns(numbers), checklist_columns(checks)
    page = defense_page(
        numbers,
        checks,
        remarks,
        title=f"Defences, {job.config.table}",
        facts={
            "table": job.config.table,
            "images": f"{job.images.name}, {len(job.images):,}",
            "seed": str(job.config.seed),
            "report": job.digest[:12],
            **{each.name: each.loaded.digest[:12] for each in job.defenses},
        },
    )
    root, name = job.storage.child("defenses"), f"report-{job.digest[:12]}"
    write_artifact(
        root,
        name,
        kind=REPORT_KIND,
        files={
            "numbers.json": to_json_bytes(table),
            "checks.json": to_json_bytes(lines),
            "report.md": page.encode(),
            "picture.png": picture,
        },
        facts={"digest": job.digest, "identity": job.identity},
    )
    metrics = _metrics(numbers)
    writer.log_metrics(metrics, step=0)
    writer.log_table(table, "tables/defenses.json")
    writer.log_table(lines, "tables/checks.json")
    writer.log_text(page, "report.md")
    writer.log_image(picture, "figures/defenses.png")
    return DefenseOutcome(
        run_id=writer.run_id(timeout_seconds=15),
        config_digest=job.digest,
        metrics=metrics,
        numbers=numbers,
        checks=checks,
        remarks=remarks,
        report=root.location(name),
    )


def _metrics(numbers: Sequence[DefenseNumber]) -> dict[str, float]:
    """Numbers by "<defence>.<transfer or white_box>.<quantity>"."""
    metrics = {}
    for each in numbers:
        kind = each.threat_model.partition(":")[0].replace("-", "_") or "clean"
        metrics[metric_name(each.defense, kind, each.quantity)] = each.accuracy
    return metrics


def _describe(writer: Writer, job: _Job) -> None:
    config = job.config
    writer.log_config(
        {
            **{name: to_dict(getattr(config, name)) for name in ("data", "pool", "evidence")},
            "preset": job.preset,
            "table": config.table,
            "source": config.source,
            "attacks": [each.label for each in config.chosen_attacks()],
            "defenses": {metric_name(each.name): each.loaded.digest for each in job.defenses},
            "eot_samples": config.eot_samples,
            "seed": config.seed,
            "storage": config.storage,
        }
    )
    images = job.images
    writer.log_dataset(
        images.name, images.digest, config.data.source, len(images), images.num_classes, "test"
    )
