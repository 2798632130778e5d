"""The empirical study on Ray Data: attack, split, compare, track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.config.study_job import (
    StudyJobConfig,
    cross_set_identity,
    decomposition_set_identity,
    study_identity,
)
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.core.classifier import ImageClassifier
from cdvae_ray.core.threat_models import THREAT_MODELS, attacked_model
from cdvae_ray.data.images import ImageSet
from cdvae_ray.data.load import load_split
from cdvae_ray.errors import ConfigError
from cdvae_ray.evaluation.correlation import LatentCorrelation, latent_correlation
from cdvae_ray.evaluation.image_features import (
    CdvaeFeatures,
    ClassifierFeatures,
    ImageFeatures,
    inception_features,
)
from cdvae_ray.evaluation.image_source import ImageSource
from cdvae_ray.evaluation.study_columns import CrossColumns, DecompositionColumns
from cdvae_ray.evaluation.study_picture import latent_picture, parts_picture, radius_picture
from cdvae_ray.evaluation.study_report import study_page
from cdvae_ray.evaluation.study_statistics import reduce_study
from cdvae_ray.evaluation.study_table import (
    AttackedRow,
    Compared,
    CrossRow,
    LatentRow,
    NormRow,
    SimilarityRow,
    StudyRow,
    attacked_row,
    cross_rows,
    latent_row,
    norm_rows,
    row_columns,
    similarity_rows,
)
from cdvae_ray.runtime.attack import MadeSet, make_sets
from cdvae_ray.runtime.parts import network_at, require_fit, require_same_cdvae
from cdvae_ray.runtime.pool import Say
from cdvae_ray.runtime.row_sets import RowSetPlan, make_row_sets
from cdvae_ray.runtime.tracked import (
    embedded_root,
    ending,
    require_lasting_places,
    tracking_address,
)
from cdvae_ray.storage.artifact import write_artifact
from cdvae_ray.storage.row_set import row_shards
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.tracking import Writer, metric_name, open_writer
from cdvae_ray.training.checkpoint import cdvae_of, classifier_of

REPORT_KIND = "study-report"


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """What the study came to."""

    run_id: str | None
    config_digest: str
    metrics: dict[str, float]
    tables: dict[str, list[StudyRow]]
    """By title."""
    report: str
    """The folder of tables, page and pictures."""


class _Classifier(NamedTuple):
    """A classifier, and the digest of its checkpoint."""

    module: ImageClassifier
    digest: str


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Everything resolved: which networks look at which images."""

    config: StudyJobConfig
    preset: str
    images: ImageSet
    cdvae: CDVAE
    cdvae_digest: str
    classifiers: dict[InputKind, _Classifier]
    features: ImageFeatures
    storage: Store
    say: Say

    @property
    def attacked_digest(self) -> str:
        """Of what x' is made against."""
        on_cdvae = self.config.threat_model == "class-essential"
        return self.cdvae_digest if on_cdvae else self.classifiers["images"].digest

    def attacked(self) -> nn.Module:
        """What x' is made against, as a function of images."""
        on_cdvae = self.config.threat_model == "class-essential"
        return attacked_model(
            self.config.threat_model,
            cdvae=self.cdvae if on_cdvae else None,
            classifier=None if on_cdvae else self.classifiers["images"].module,
        )


def analyze(config: StudyJobConfig, *, preset: str, say: Say) -> StudyOutcome:
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
        run_name=f"study-{preset}-{job.cdvae_digest[:12]}",
        tags={"job": "analyze", "preset": preset, "cdvae_digest": job.cdvae_digest},
    )
    with ending(writer):
        _describe(writer, job)
        return _analyze(job, writer)


def _resolve(config: StudyJobConfig, preset: str, say: Say) -> _Job:
    address = tracking_address(config.tracking, config.storage)
    cdvae, cdvae_digest = network_at(config.checkpoint, cdvae_of, address)
    assert cdvae is not None
    assert cdvae_digest is not None
    locations: dict[InputKind, tuple[str, str]] = {
        "images": ("classifier", config.classifier),
        "class_redundant": ("redundant_classifier", config.redundant_classifier),
        "class_essential": ("essential_classifier", config.essential_classifier),
    }
    classifiers: dict[InputKind, _Classifier] = {}
    for kind, (flag, location) in locations.items():
        module, digest = network_at(location, classifier_of, address)
        if module is None or digest is None:
            continue
        if module.input_kind != kind:
            raise ConfigError(
                flag,
                got=f"one trained on {module.input_kind}",
                expected=f"one trained on {kind}",
                remedy=f"train it by jobs/train_classifier.py --input {kind}",
            )
        require_same_cdvae(module, cdvae_digest)
        classifiers[kind] = _Classifier(module.eval(), digest)
    features = _image_features(config, cdvae, cdvae_digest, classifiers)
    say(f"data: loading {config.data.source}")
    images = load_split(config.data, "test")
    say(f"data: {images.name} {len(images):,} images")
    require_fit("the CD-VAE", cdvae.class_names, cdvae.image_size, images)
    for kind, each in classifiers.items():
        require_fit(
            f"the classifier on {kind}", each.module.class_names, each.module.image_size, images
        )
    return _Job(
        config=config,
        preset=preset,
        images=images,
        cdvae=cdvae.eval(),
        cdvae_digest=cdvae_digest,
        classifiers=classifiers,
        features=features,
        storage=Store.at(config.storage),
        say=say,
    )


def _image_features(
    config: StudyJobConfig,
    cdvae: CDVAE,
    cdvae_digest: str,
    classifiers: Mapping[InputKind, _Classifier],
) -> ImageFeatures:
    if config.inception:
        return inception_features(config.inception)
    if "images" in classifiers:
        module, digest = classifiers["images"]
        return ImageFeatures(ClassifierFeatures(module), "D(x), before its last layer", digest)
    return ImageFeatures(
        CdvaeFeatures(cdvae), "the CD-VAE's D, before its last layer", cdvae_digest
    )


# --- numbers ------------------------------------------------------------------------------------


def _analyze(job: _Job, writer: Writer) -> StudyOutcome:
    config = job.config
    sets = make_sets(
        config.attack_job(),
        job.images,
        preset=job.preset,
        say=job.say,
        further=config.further_attacks(),
        further_images=len(job.images),
    )
    plans = {compared: _decomposition_plan(job, source) for compared, source in _sources(job, sets)}
    computations: dict[str, nn.Module] = {
        "decomposition": DecompositionColumns(
            job.cdvae,
            job.attacked(),
            job.features.module,
            units=config.units,
            seed=config.seed,
        )
    }
    cross = _cross_plan(job) if job.classifiers else None
    if cross is not None:
        computations["cross"] = CrossColumns(
            job.cdvae,
            {kind: each.module for kind, each in job.classifiers.items()},
            seed=config.seed,
        )
    make_row_sets(
        [*plans.values(), *([] if cross is None else [cross])],
        computations,
        pool=config.pool,
        doing="comparing parts",
        overwrite=config.overwrite,
        say=job.say,
    )
    return _report(job, writer, sets[0], plans, cross)


def _sources(job: _Job, sets: Sequence[MadeSet]) -> list[tuple[Compared, ImageSource]]:
    """What is compared with x: the attacks, noise beside those of the suite, further radii."""
    further = {each.label for each in job.config.further_attacks()}
    sources = []
    for made in sets:
        attack = made.attack
        sources.append(
            (
                Compared(attack.label, attack.epsilon),
                ImageSource(kind="adversarial", adversarial=made.stored),
            )
        )
        if job.config.noise_control and attack.label not in further:
            sources.append(
                (
                    Compared(f"noise as long as {attack.label}'s", None),
                    ImageSource(
                        kind="matched-noise", adversarial=made.stored, seed=job.config.seed
                    ),
                )
            )
    return sources


def _decomposition_plan(job: _Job, source: ImageSource) -> RowSetPlan:
    return RowSetPlan(
        label=f"parts, {source.label}",
        identity=decomposition_set_identity(
            job.config,
            source.identity(),
            cdvae_digest=job.cdvae_digest,
            attacked_digest=job.attacked_digest,
            features_digest=job.features.digest,
            images_digest=job.images.digest,
        ),
        root=job.storage.child("study"),
        source=source,
        images=job.images,
        image_ids=range(len(job.images)),
        computation="decomposition",
        is_paired=True,
    )


def _cross_plan(job: _Job) -> RowSetPlan:
    return RowSetPlan(
        label="Table 3's answers",
        identity=cross_set_identity(
            {kind: each.digest for kind, each in job.classifiers.items()},
            cdvae_digest=job.cdvae_digest,
            images_digest=job.images.digest,
            seed=job.config.seed,
        ),
        root=job.storage.child("study"),
        source=ImageSource(kind="clean"),
        images=job.images,
        image_ids=range(len(job.images)),
        computation="cross",
    )


class _Tables(NamedTuple):
    """The rows of each table, over all attacks."""

    attacked: list[AttackedRow]
    similarity: list[SimilarityRow]
    norms: list[NormRow]
    latents: list[LatentRow]
    cross: list[CrossRow]

    def titled(self) -> dict[str, list[StudyRow]]:
        """By the titles that people read."""
        return {
            "The attack": [*self.attacked],
            "Table 1: similarity": [*self.similarity],
            "Table 2: norms": [*self.norms],
            "Figure 3: correlation of z and z'": [*self.latents],
            "Table 3: trained on one part, tested on another": [*self.cross],
        }


def _tables(
    job: _Job, plans: Mapping[Compared, RowSetPlan], cross: RowSetPlan | None
) -> tuple[_Tables, dict[str, LatentCorrelation]]:
    config = job.config
    tables, correlations = _Tables([], [], [], [], []), {}
    attacked = THREAT_MODELS[config.threat_model].attacked
    for compared, plan in plans.items():
        sums = reduce_study(row_shards(plan.store, plan.kind))
        correlation = latent_correlation(sums.latents)
        correlations[compared.label] = correlation
        tables.attacked.append(attacked_row(sums, compared, attacked))
        tables.similarity.extend(
            similarity_rows(sums, compared, features=job.features.name, paper=config.paper)
        )
        tables.norms.extend(norm_rows(sums, compared, units=config.units, paper=config.paper))
        tables.latents.append(latent_row(correlation, compared))
    if cross is not None:
        shards = row_shards(cross.store, cross.kind)
        tables.cross.extend(cross_rows(shards, list(job.classifiers), paper=config.paper))
    return tables, correlations


# --- what it came to ----------------------------------------------------------------------------


def _report(
    job: _Job,
    writer: Writer,
    first: MadeSet,
    plans: Mapping[Compared, RowSetPlan],
    cross: RowSetPlan | None,
) -> StudyOutcome:
    config = job.config
    identity = study_identity(
        config,
        sets={compared.label: plan.digest for compared, plan in plans.items()},
        cross=None if cross is None else cross.digest,
    )
    digest = digest_of(identity)
    tables, correlations = _tables(job, plans, cross)
    caption = f"x' against {THREAT_MODELS[config.threat_model].attacked}; {job.images.name}"
    pictures = _pictures(job, first, tables, correlations, caption=caption)
    columns = {
        "attacked": row_columns(tables.attacked),
        "similarity": row_columns(tables.similarity),
        "norms": row_columns(tables.norms),
        "latents": row_columns(tables.latents),
        "cross": row_columns(tables.cross),
    }
    titled = tables.titled()
    page = study_page(
        titled,
        title="Parts of clean and adversarial images",
        facts={
            "images": f"{job.images.name}, {len(job.images):,}",
            "attacked": f"{THREAT_MODELS[config.threat_model].attacked}: "
            f"{THREAT_MODELS[config.threat_model].meaning}",
            "CD-VAE": job.cdvae_digest[:12],
            **{f"classifier on {kind}": each.digest[:12] for kind, each in job.classifiers.items()},
            "units of norms and cosines": config.units,
            "Frechet distance": f"features of {job.features.name}",
            "seed": str(config.seed),
            "report": digest[:12],
        },
        pictures={name.removesuffix(".png"): name for name in pictures},
        remarks=_remarks(config),
    )
    root, name = job.storage.child("study"), f"report-{digest[:12]}"
    write_artifact(
        root,
        name,
        kind=REPORT_KIND,
        files={
            **{f"{table}.json": to_json_bytes(rows) for table, rows in columns.items() if rows},
            **pictures,
            "report.md": page.encode(),
        },
        facts={"digest": digest, "identity": identity},
    )
    metrics = _metrics(tables)
    writer.log_metrics(metrics, step=0)
    for table, rows in columns.items():
        if rows:
            writer.log_table(rows, f"tables/{table}.json")
    for picture, content in pictures.items():
        writer.log_image(content, f"figures/{picture}")
    writer.log_text(page, "report.md")
    return StudyOutcome(
        run_id=writer.run_id(timeout_seconds=15),
        config_digest=digest,
        metrics=metrics,
        tables=titled,
        report=root.location(name),
    )


def _remarks(config: StudyJobConfig) -> list[str]:
    return (
        ["The paper gives Tables 1 and 2 for ImageNet alone: none of it stands beside ours."]
        if config.paper == "cifar10"
        else []
    )


def _pictures(
    job: _Job,
    first: MadeSet,
    tables: _Tables,
    correlations: Mapping[str, LatentCorrelation],
    *,
    caption: str,
) -> dict[str, bytes]:
    """PNGs by file name."""
    shown = min(job.config.num_pictures, len(job.images))
    ids = torch.arange(shown)
    cdvae = job.cdvae.cpu()
    clean, labels = job.images.images[:shown].float() / 255, job.images.labels[:shown]
    rows = first.stored.rows(ids)
    pictures = {
        "figure-2.png": parts_picture(
            cdvae,
            clean,
            rows.images,
            labels,
            (rows.clean_predictions, rows.predictions),
            caption=f"{first.attack.label}. {caption}",
            seed=job.config.seed,
        ),
        "figure-3.png": latent_picture(correlations, caption=caption),
    }
    if job.config.further_attacks():
        pictures["radius.png"] = radius_picture(
            tables.norms,
            measure=first.attack.measure,
            caption=f"{first.attack.label} at several radii. {caption}.",
        )
    return pictures


def _metrics(tables: _Tables) -> dict[str, float]:
    """Numbers by "<attack>.<quantity>"."""
    metrics = {}
    for attacked in tables.attacked:
        metrics[metric_name(attacked.attack, "accuracy_adversarial")] = (
            attacked.accuracy_adversarial
        )
    for similar in tables.similarity:
        part = "redundant" if similar.compared.startswith("G") else "essential"
        metrics[metric_name(similar.attack, f"cosine_{part}")] = similar.cosine
        metrics[metric_name(similar.attack, f"frechet_{part}")] = similar.frechet
    for norm in tables.norms:
        if norm.part.startswith("delta"):
            metrics[metric_name(norm.attack, f"{norm.part}_l2")] = norm.l2
    for latent in tables.latents:
        metrics[metric_name(latent.attack, "latent_correlation_median")] = latent.median
    for cell in tables.cross:
        trained, tested = cell.trained_on.partition("(")[0], cell.tested_on.partition("(")[0]
        metrics[metric_name("cross", f"{trained}_on_{tested}", "top1")] = cell.top1
    return metrics


def _describe(writer: Writer, job: _Job) -> None:
    config = job.config
    facts: dict[str, Any] = {name: to_dict(getattr(config, name)) for name in ("data", "pool")}
    writer.log_config(
        {
            **facts,
            "preset": job.preset,
            "threat_model": config.threat_model,
            "attacks": [each.label for each in config.attack_job().chosen_attacks()],
            "epsilons": list(config.epsilons),
            "noise_control": config.noise_control,
            "units": config.units,
            "features": job.features.name,
            "cdvae_digest": job.cdvae_digest,
            "classifiers": {kind: each.digest for kind, each in job.classifiers.items()},
            "seed": config.seed,
            "storage": config.storage,
        }
    )
    images = job.images
    writer.log_dataset(
        images.name, images.digest, config.data.source, len(images), images.num_classes, "test"
    )
