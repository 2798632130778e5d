"""Detection from checkpoints to the table: attack, extract, fit, score, test, attack again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cdvae_ray.config.attack import SUITES
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection import REFERENCE_STD, AdaptiveStrategy
from cdvae_ray.config.detection_job import (
    DATASET_OF_TABLE,
    DetectionJobConfig,
    detection_identity,
)
from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.core.detectors.image_detector import DetectorMethod
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.data.images import ImageSet, Splits
from cdvae_ray.data.load import load_splits
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.adaptive_table import (
    FALSE_POSITIVE_RATES,
    LINF,
    AdaptiveRow,
    adaptive_columns,
    adaptive_rows,
    best_of,
    known_threat,
    unknown_threat,
)
from cdvae_ray.evaluation.detection_controls import ControlRow, clean_controls
from cdvae_ray.evaluation.detection_picture import detection_picture
from cdvae_ray.evaluation.detection_protocol import Detection, MethodScores, split_images
from cdvae_ray.evaluation.detection_report import detection_markdown
from cdvae_ray.evaluation.detection_run import (
    detection_rows,
    reference_detections,
    space_differences,
    strict_detections,
)
from cdvae_ray.evaluation.detection_scores import (
    LayerScores,
    Outcomes,
    ScoreTable,
    SetRows,
    disagreement_table,
    method_scores,
    reference_kept,
    reference_tables,
    score_table,
)
from cdvae_ray.evaluation.detection_table import (
    DetectionRow,
    DifferenceRow,
    detection_columns,
)
from cdvae_ray.evaluation.detector_files import store_detector
from cdvae_ray.evaluation.detector_fit import SpaceDetectors, fit_space
from cdvae_ray.evaluation.image_computations import (
    AdaptiveColumns,
    FeatureColumns,
    InputStepColumns,
)
from cdvae_ray.evaluation.image_detectors import CalibratedDetector, calibrated_detectors
from cdvae_ray.evaluation.image_source import ImageSource, StoredSet
from cdvae_ray.runtime.attack import make_sets
from cdvae_ray.runtime.extract import feature_plan
from cdvae_ray.runtime.parts import TARGET_SPACES, Space, require_fit, spaces_of
from cdvae_ray.runtime.pool import Say
from cdvae_ray.runtime.row_sets import RowSetPlan, make_row_sets
from cdvae_ray.runtime.tracked import embedded_root, ending, require_lasting_places
from cdvae_ray.storage.adversarial_set import AdversarialImages, read_outcomes
from cdvae_ray.storage.artifact import write_artifact
from cdvae_ray.storage.row_set import ImageRows, read_row_set, row_shards
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.tracking import Writer, metric_name, open_writer

Target = Literal["classifier", "class-essential"]
_Calibrated = Mapping[InputKind, Mapping[DetectorMethod, CalibratedDetector]]
REPORT_KIND = "detection-report"
REFERENCE_NOISE = {"fgsm": 0.0625}
"""Deviation of the reference's noise by kind of attack, in normalised units."""
REFERENCE_NOISE_OTHERWISE = 0.065


@dataclass(frozen=True, kw_only=True)
class DetectionOutcome:
    """What a detection job came to."""

    run_id: str | None
    config_digest: str
    metrics: dict[str, float]
    rows: list[DetectionRow]
    controls: list[ControlRow]
    adaptive: list[AdaptiveRow]
    skipped: list[str]
    detectors: dict[str, str]
    """The folder of each stored detector, by its name."""
    report: str
    """The folder of tables, pages and pictures."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Everything resolved: what detects what, on which images."""

    config: DetectionJobConfig
    preset: str
    splits: Splits
    spaces: list[Space]
    identity: dict[str, Any]
    storage: Store
    say: Say

    @property
    def digest(self) -> str:
        return digest_of(self.identity)

    @property
    def name(self) -> str:
        return f"detect-{self.preset}-{self.digest[:12]}"

    @property
    def targets(self) -> list[Target]:
        """The attacked functions: those whose own space is there."""
        names = [space.name for space in self.spaces]
        every: tuple[Target, ...] = ("classifier", "class-essential")
        return [target for target in every if TARGET_SPACES[target] in names]

    @property
    def dataset(self) -> str:
        table = self.config.paper_table
        return DATASET_OF_TABLE.get(table, self.splits.test.name.partition("/")[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Features:
    """What was extracted, by space and source."""

    plans: dict[tuple[InputKind, str], RowSetPlan]
    rows: dict[tuple[InputKind, str], ImageRows]
    """Of test images; those of training images are read shard by shard."""


def detect(config: DetectionJobConfig, *, preset: str, say: Say) -> DetectionOutcome:
    """Runs on the driver. Makes or finds all that the report needs, and reports.

    Args:
        config: the job.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each.
    """
    require_lasting_places(config.storage, config.tracking)
    job = _resolve(config, preset, say)
    writer = open_writer(
        config.tracking,
        embedded_root=embedded_root(config.storage),
        run_name=job.name,
        tags={"job": "detect", "preset": preset, "config_digest": job.digest},
    )
    with ending(writer):
        _describe(writer, job)
        return _detect(job, writer)


def _resolve(config: DetectionJobConfig, preset: str, say: Say) -> _Job:
    spaces = spaces_of(config)
    say(f"data: loading {config.data.source}")
    splits = load_splits(config.data)
    say(
        f"data: detectors are fitted to {len(splits.train):,} images and tested on "
        f"{len(splits.test):,}"
    )
    for space in spaces:
        extractor = space.extractor
        require_fit("the network", extractor.class_names, extractor.image_size, splits.test)
    identity = detection_identity(
        config,
        digests={space.name: space.classifier_digest or space.cdvae_digest for space in spaces},
        train_digest=splits.train.digest,
        test_digest=splits.test.digest,
    )
    return _Job(
        config=config,
        preset=preset,
        splits=splits,
        spaces=spaces,
        identity=identity,
        storage=Store.at(config.storage),
        say=say,
    )


def _detect(job: _Job, writer: Writer) -> DetectionOutcome:
    config, say = job.config, job.say
    sets = {
        target: [
            made.stored
            for made in make_sets(
                config.attack_job(target), job.splits.test, preset=job.preset, say=say
            )
        ]
        for target in job.targets
    }
    features = _extract(job, sets)
    say("fitting detectors")
    fitted = {space.name: _fit(job, space, features) for space in job.spaces}
    steps = _steps(job, features, fitted)
    tables: dict[tuple[InputKind, str], ScoreTable] = {}
    skipped: list[str] = []
    if config.protocol == "strict":
        tables = _strict_tables(job, features, fitted, steps)
        scores = _strict_scores(job, sets, features, tables)
    else:
        scores, skipped = _reference_scores(job, sets, features, fitted, steps)
    detections: list[Detection] = []
    rows: list[DetectionRow] = []
    for number, each in enumerate(scores, start=1):
        say(
            f"testing detectors, {number} of {len(scores)}: {each.method} in {each.space}, attacks "
            f"on {each.threat_model.attacked}"
        )
        found = (
            strict_detections(each, config.split)
            if config.protocol == "strict"
            else reference_detections(each)
        )
        detections += found.detections
        skipped += found.skipped
        rows += detection_rows(
            found.detections, seed=config.seed, num_resamples=config.num_resamples
        )
    differences, unpaired = space_differences(
        detections, seed=config.seed, num_resamples=config.num_resamples
    )
    skipped += unpaired
    controls: list[ControlRow] = []
    adaptive: list[AdaptiveRow] = []
    stored: dict[str, str] = {}
    if config.protocol == "strict":
        calibrated = {space.name: _calibrate(job, space, fitted, tables) for space in job.spaces}
        controls = _controls(job, tables)
        stored = _store_detectors(job, calibrated)
        adaptive, unattacked = _adaptive(job, sets, calibrated, tables)
        skipped += unattacked
    return _report(
        job,
        writer,
        rows=rows,
        differences=differences,
        controls=controls,
        adaptive=adaptive,
        skipped=skipped,
        detections=detections,
        stored=stored,
    )


# --- features -----------------------------------------------------------------------------------


def _extract(job: _Job, sets: Mapping[Target, Sequence[StoredSet]]) -> _Features:
    test, train = job.splits.test, job.splits.train
    plans = {}
    for space in job.spaces:
        plans[space.name, "train"] = feature_plan(
            space, ImageSource(kind="clean"), train, "train", job.storage
        )
        for source in _sources(job, space, sets):
            plans[space.name, _key(source)] = feature_plan(space, source, test, "test", job.storage)
    make_row_sets(
        list(plans.values()),
        {space.name: FeatureColumns(space.extractor) for space in job.spaces},
        pool=job.config.pool,
        doing="extracting features",
        overwrite=job.config.overwrite,
        say=job.say,
    )
    rows = {
        key: read_row_set(plan.store, plan.kind) for key, plan in plans.items() if key[1] != "train"
    }
    return _Features(plans=plans, rows=rows)


def _sources(
    job: _Job, space: Space, sets: Mapping[Target, Sequence[StoredSet]]
) -> list[ImageSource]:
    """Clean test images, and adversarial and noisy ones of every set."""
    sources = [ImageSource(kind="clean")]
    for each in (each for made in sets.values() for each in made):
        sources.append(ImageSource(kind="adversarial", adversarial=each))
        sources.append(_noise(job, space, each))
    return list({_key(source): source for source in sources}.values())


def _noise(job: _Job, space: Space, stored: StoredSet) -> ImageSource:
    """The noisy images that stand beside an adversarial set."""
    seed = job.config.seed
    if job.config.protocol == "strict":
        return ImageSource(kind="matched-noise", adversarial=stored, seed=seed)
    # In the units of the CD-VAE for every space, so that all look at the same images.
    mean, std = job.spaces[0].pixel_units
    kind = stored.store.parent()[1].partition("-")[0]
    return ImageSource(
        kind="gaussian-noise",
        seed=seed,
        noise_std=REFERENCE_NOISE.get(kind, REFERENCE_NOISE_OTHERWISE),
        pixel_mean=mean,
        pixel_std=std,
    )


def _key(source: ImageSource) -> str:
    return digest_of(source.identity())


_CLEAN = digest_of(ImageSource(kind="clean").identity())


def _fit(job: _Job, space: Space, features: _Features) -> SpaceDetectors:
    plan = features.plans[space.name, "train"]
    fitted = fit_space(
        row_shards(plan.store, plan.kind),
        job.config.detectors,
        space=space.name,
        num_images=len(job.splits.train),
        num_classes=job.splits.train.num_classes,
        seed=job.config.seed,
    )
    job.say(
        f"{space.name}: fitted to {fitted.num_images:,} images, KD's bandwidth "
        f"{fitted.bandwidth.bandwidth:g}"
    )
    return fitted


def _steps(
    job: _Job, features: _Features, fitted: Mapping[InputKind, SpaceDetectors]
) -> dict[tuple[InputKind, str], ImageRows]:
    """MD's scores of test images after a step, by space and source; none if no m is above 0."""
    magnitudes = [each for each in job.config.detectors.magnitudes if each > 0]
    if not magnitudes:
        return {}
    is_reference = job.config.protocol == "reference"
    plans: dict[tuple[InputKind, str], RowSetPlan] = {}
    computations: dict[str, nn.Module] = {}
    for space in job.spaces:
        _, std = space.pixel_units
        pixel_step = [
            each / (theirs if is_reference else 1.0)
            for each, theirs in zip(std, REFERENCE_STD, strict=True)
        ]
        computations[space.name] = InputStepColumns(
            space.extractor,
            fitted[space.name].mahalanobis,
            magnitudes,
            pixel_step=pixel_step,
            clip=not is_reference,
        )
        fit_on = features.plans[space.name, "train"].digest
        for (name, key), plan in features.plans.items():
            if name == space.name and key != "train":
                plans[name, key] = dataclasses.replace(
                    plan,
                    label=f"MD's steps, {plan.label}",
                    identity={
                        "kind": "input-step-set",
                        "recipe_version": 1,
                        "features": plan.digest,
                        "fitted_to": fit_on,
                        "magnitudes": magnitudes,
                        "pixel_step": pixel_step,
                        "clip": not is_reference,
                    },
                )
    make_row_sets(
        list(plans.values()),
        computations,
        pool=job.config.pool,
        doing="scoring steps of MD's input",
        overwrite=job.config.overwrite,
        say=job.say,
    )
    return {key: read_row_set(plan.store, plan.kind) for key, plan in plans.items()}


# --- scores -------------------------------------------------------------------------------------


def _strict_tables(
    job: _Job,
    features: _Features,
    fitted: Mapping[InputKind, SpaceDetectors],
    steps: Mapping[tuple[InputKind, str], ImageRows],
) -> dict[tuple[InputKind, str], ScoreTable]:
    """Scores of every set of test images in every space."""
    tables = {}
    for number, ((space, key), rows) in enumerate(features.rows.items(), start=1):
        tables[space, key] = score_table(
            SetRows(features=rows, steps=steps.get((space, key))),
            fitted[space],
            job.config.detectors,
        )
        if space == "class_redundant":
            tables[space, key] |= disagreement_table(features.rows["images", key], rows)
        if number % 10 == 0 or number == len(features.rows):
            job.say(f"scoring: {number} of {len(features.rows)} sets")
    return tables


def _strict_scores(
    job: _Job,
    sets: Mapping[Target, Sequence[StoredSet]],
    features: _Features,
    tables: Mapping[tuple[InputKind, str], ScoreTable],
) -> list[MethodScores]:
    found = []
    for target, made in sets.items():
        outcomes = {each.attack: _outcomes(job, target, each, features) for each in made}
        ids = {each.attack: torch.arange(len(job.splits.test)) for each in made}
        for space in job.spaces:
            found += method_scores(
                {
                    each.attack: {
                        name: tables[space.name, key]
                        for name, key in _keys(job, space, each).items()
                    }
                    for each in made
                },
                outcomes,
                ids,
                space=space.name,
                threat_model=THREAT_MODELS[target],
                dataset=job.dataset,
            )
    return found


def _reference_scores(
    job: _Job,
    sets: Mapping[Target, Sequence[StoredSet]],
    features: _Features,
    fitted: Mapping[InputKind, SpaceDetectors],
    steps: Mapping[tuple[InputKind, str], ImageRows],
) -> tuple[list[MethodScores], list[str]]:
    """Scores of the images that the reference keeps, which its LID depends on; what has none."""
    found: list[MethodScores] = []
    skipped: list[str] = []
    for target, made in sets.items():
        every = {each.attack: _outcomes(job, target, each, features) for each in made}
        kept = {attack: reference_kept(outcomes) for attack, outcomes in every.items()}
        usable = [each for each in made if kept[each.attack].any()]
        skipped += [
            f"{each.attack} on {THREAT_MODELS[target].attacked}: the reference keeps no image"
            for each in made
            if each not in usable
        ]
        for space in job.spaces if usable else ():
            tables = {}
            for each in usable:
                rows = torch.from_numpy(kept[each.attack])
                chosen = {
                    name: _selected(features, steps, space.name, key, rows)
                    for name, key in _keys(job, space, each).items()
                }
                tables[each.attack] = reference_tables(
                    chosen, fitted[space.name], job.config.detectors.magnitudes
                )
            found += method_scores(
                tables,
                {each.attack: every[each.attack].select(kept[each.attack]) for each in usable},
                {each.attack: torch.from_numpy(kept[each.attack].nonzero()[0]) for each in usable},
                space=space.name,
                threat_model=THREAT_MODELS[target],
                dataset=job.dataset,
            )
    return found, skipped


def _selected(
    features: _Features,
    steps: Mapping[tuple[InputKind, str], ImageRows],
    space: InputKind,
    key: str,
    kept: Tensor,
) -> SetRows:
    stepped = steps.get((space, key))
    return SetRows(
        features=features.rows[space, key].select(kept),
        steps=None if stepped is None else stepped.select(kept),
    )


def _keys(job: _Job, space: Space, stored: StoredSet) -> dict[str, str]:
    """The sources of one attack's three sets."""
    return {
        "clean": _CLEAN,
        "noisy": _key(_noise(job, space, stored)),
        "adversarial": _key(ImageSource(kind="adversarial", adversarial=stored)),
    }


def _outcomes(job: _Job, target: Target, stored: StoredSet, features: _Features) -> Outcomes:
    """What the attacked function made of an attack's images."""
    rows = read_outcomes(stored.store)
    space = next(space for space in job.spaces if space.name == TARGET_SPACES[target])
    noisy = features.rows[space.name, _keys(job, space, stored)["noisy"]]
    return Outcomes(
        clean_correct=(rows.clean_predictions == rows.labels).numpy(),
        noisy_correct=(noisy["prediction"] == noisy["label"]).numpy(),
        success=(rows.predictions != rows.labels).numpy(),
    )


# --- detectors without adversarial images -------------------------------------------------------


def _calibrate(
    job: _Job,
    space: Space,
    fitted: Mapping[InputKind, SpaceDetectors],
    tables: Mapping[tuple[InputKind, str], ScoreTable],
) -> dict[DetectorMethod, CalibratedDetector]:
    return calibrated_detectors(
        space.extractor,
        fitted[space.name],
        tables[space.name, _CLEAN],
        torch.arange(len(job.splits.test)),
        split=job.config.split,
        false_positive_rates=FALSE_POSITIVE_RATES,
    )


def _controls(job: _Job, tables: Mapping[tuple[InputKind, str], ScoreTable]) -> list[ControlRow]:
    return [
        row
        for space in job.spaces
        for row in clean_controls(
            tables[space.name, _CLEAN],
            torch.arange(len(job.splits.test)),
            space=space.name,
            seed=job.config.seed,
            num_resamples=job.config.num_resamples,
        )
    ]


def _store_detectors(job: _Job, calibrated: _Calibrated) -> dict[str, str]:
    """One folder a method and space; returns them by name."""
    root, stored = job.storage.child("detectors"), {}
    for space in job.spaces:
        for method, each in calibrated[space.name].items():
            label = f"{method.lower()}-{space.name.replace('_', '-')}"
            name = f"{label}-{job.digest[:12]}"
            store_detector(
                root,
                name,
                each.detector,
                parts=space.parts,
                facts={
                    "report": job.digest,
                    "fitted_images": len(job.splits.train),
                    "thresholds": {
                        f"{rate:g}": threshold for rate, threshold in each.thresholds.items()
                    },
                },
            )
            stored[label] = root.location(name)
    return stored


def _adaptive(
    job: _Job,
    sets: Mapping[Target, Sequence[StoredSet]],
    calibrated: _Calibrated,
    tables: Mapping[tuple[InputKind, str], ScoreTable],
) -> tuple[list[AdaptiveRow], list[str]]:
    """Each detector under attacks that know it, and under one that does not; what has no row."""
    config = job.config.adaptive
    ids = _adaptive_ids(job)
    if not len(ids):
        return [], []
    detectors = {
        (space.name, method): (space, each)
        for space in job.spaces
        if space.name in TARGET_SPACES.values()
        for method, each in calibrated[space.name].items()
    }
    plans: dict[tuple[InputKind, DetectorMethod, AdaptiveStrategy, float], RowSetPlan] = {}
    computations: dict[str, nn.Module] = {}
    for (name, method), (space, each) in detectors.items():
        for strategy in config.strategies:
            for scale in config.step_scales:
                label = f"{strategy} x{scale:g} on {method} in {name}"
                computations[label] = AdaptiveColumns(
                    each.detector, strategy, scale, config, job.config.seed
                )
                plans[name, method, strategy, scale] = _adaptive_plan(
                    job, space, method, strategy, scale, label, ids
                )
    # One batch a shard: these attacks are long, and few images are attacked.
    make_row_sets(
        list(plans.values()),
        computations,
        pool=dataclasses.replace(job.config.pool, shard_size=job.config.pool.batch_size),
        doing="attacking detectors",
        overwrite=job.config.overwrite,
        say=job.say,
    )
    outcomes = {
        target: read_outcomes(_unaware(made).store).select(ids) for target, made in sets.items()
    }
    rows: list[AdaptiveRow] = []
    skipped: list[str] = []
    for (name, method), (space, each) in detectors.items():
        target = _own_target(space)
        stored = _unaware(sets[target])
        runs = {
            strategy: best_of(
                [
                    read_row_set(plan.store, plan.kind)
                    for key, plan in plans.items()
                    if key[:3] == (name, method, strategy)
                ]
            )
            for strategy in config.strategies
        }
        known, unknown = (of(THREAT_MODELS[target]) for of in (known_threat, unknown_threat))
        # An attack that knows no detector has the steps and the radius of its suite.
        suite = next(a for a in SUITES[job.config.suite].attacks if a.label == stored.attack)
        own = dataclasses.replace(
            config,
            num_steps=suite.num_steps or 1,
            epsilon=config.epsilon if suite.epsilon is None else suite.epsilon,
        )
        keys = _keys(job, space, stored)
        unaware = _unaware_rows(
            each,
            outcomes[target],
            clean=tables[space.name, keys["clean"]][method],
            adversarial=tables[space.name, keys["adversarial"]][method],
        )
        for attack, found, threat in (
            (stored.attack, unaware, unknown),
            *((strategy, run, known) for strategy, run in runs.items()),
            ("best of these", best_of(list(runs.values())), known),
        ):
            try:
                rows += adaptive_rows(
                    found,
                    method=method,
                    space=name,
                    attack=attack,
                    threat_model=threat,
                    config=own if found is unaware else config,
                    thresholds=each.thresholds,
                    measure=suite.measure if found is unaware else LINF,
                )
            except DataError as error:
                skipped.append(f"{attack} on {method} in {name}: {error}")
    return rows, skipped


def _own_target(space: Space) -> Target:
    return "classifier" if space.name == "images" else "class-essential"


def _unaware(made: Sequence[StoredSet]) -> StoredSet:
    """The attack to compare with: L-infinity PGD if it is there, else the last one."""
    return next((each for each in made if each.attack == "PGD-Linf"), made[-1])


def _adaptive_ids(job: _Job) -> Tensor:
    """The first images of the test part."""
    every = torch.arange(len(job.splits.test))
    test = torch.from_numpy(split_images(every.numpy(), job.config.split).test)
    return every[test][: job.config.adaptive.num_images]


def _adaptive_plan(
    job: _Job,
    space: Space,
    method: DetectorMethod,
    strategy: AdaptiveStrategy,
    scale: float,
    label: str,
    ids: Tensor,
) -> RowSetPlan:
    config = job.config
    return RowSetPlan(
        label=label,
        identity={
            "kind": "adaptive-set",
            "recipe_version": 1,
            "cdvae": space.cdvae_digest,
            "classifier": space.classifier_digest,
            "space": space.name,
            "method": method,
            "strategy": strategy,
            "fitted_to": job.splits.train.digest,
            "images": job.splits.test.digest,
            "detectors": to_dict(config.detectors),
            "split": to_dict(config.split),
            "adaptive": {
                "num_images": len(ids),
                "num_steps": config.adaptive.num_steps,
                "epsilon": config.adaptive.epsilon,
                "step_scale": scale,
            },
            "seed": config.seed,
        },
        root=job.storage.child("adaptive"),
        source=ImageSource(kind="clean"),
        images=job.splits.test,
        image_ids=ids.tolist(),
        computation=label,
        labels={"space": space.name, "method": method, "strategy": strategy},
    )


def _unaware_rows(
    calibrated: CalibratedDetector,
    outcomes: AdversarialImages,
    *,
    clean: Mapping[str, LayerScores],
    adversarial: Mapping[str, LayerScores],
) -> ImageRows:
    """The same columns for an attack that knows no detector, from what is stored of it."""
    ids = outcomes.image_ids
    scores = {}
    for name, by_setting in (("clean", clean), ("adversarial", adversarial)):
        layers = next(iter(by_setting.values()))
        columns = torch.from_numpy(layers.values)[ids]
        scores[name] = calibrated.detector.combination.score(
            dict(zip(layers.layers, columns.T, strict=True))
        )
    return ImageRows(
        ids,
        {
            "label": outcomes.labels,
            "clean_prediction": outcomes.clean_predictions,
            "clean_score": scores["clean"],
            "fooled": outcomes.predictions != outcomes.labels,
            "detector_score": scores["adversarial"],
            "zero_gradient": outcomes.zero_gradient,
            "nonfinite_gradient": outcomes.nonfinite_gradient,
        },
    )


# --- what it came to ----------------------------------------------------------------------------


def _report(
    job: _Job,
    writer: Writer,
    *,
    rows: list[DetectionRow],
    differences: list[DifferenceRow],
    controls: list[ControlRow],
    adaptive: list[AdaptiveRow],
    skipped: list[str],
    detections: Sequence[Detection],
    stored: dict[str, str],
) -> DetectionOutcome:
    page = detection_markdown(
        title=f"Adversarial detection, {job.config.protocol} protocol",
        facts=_facts(job),
        rows=rows,
        differences=differences,
        controls=controls,
        adaptive=adaptive,
        skipped=skipped,
    )
    tables = {
        "detection": detection_columns(rows),
        "differences": detection_columns(differences),
        "controls": detection_columns(controls),
        "adaptive": adaptive_columns(adaptive),
    }
    tables = {name: columns for name, columns in tables.items() if columns}
    pictures = _pictures(job, detections)
    metrics = _metrics(rows, adaptive)
    root, name = job.storage.child("detection"), f"report-{job.digest[:12]}"
    write_artifact(
        root,
        name,
        kind=REPORT_KIND,
        files={
            "report.md": page.encode(),
            **{f"{key}.json": to_json_bytes(columns) for key, columns in tables.items()},
            **{f"{key}.png": picture for key, picture in pictures.items()},
        },
        facts={"digest": job.digest, "identity": job.identity, "detectors": stored},
    )
    writer.log_metrics(metrics, step=0)
    for key, columns in tables.items():
        writer.log_table(columns, f"tables/{key}.json")
    for key, picture in pictures.items():
        writer.log_image(picture, f"figures/{key}.png")
    writer.log_text(page, "report.md")
    return DetectionOutcome(
        run_id=writer.run_id(timeout_seconds=15),
        config_digest=job.digest,
        metrics=metrics,
        rows=rows,
        controls=controls,
        adaptive=adaptive,
        skipped=skipped,
        detectors=stored,
        report=root.location(name),
    )


def _facts(job: _Job) -> dict[str, str]:
    config = job.config
    return {
        "dataset": f"{job.splits.test.name}, detectors fitted to {len(job.splits.train):,} "
        f"training images, {len(job.splits.test):,} test images",
        "models": ", ".join(
            f"{space.name} {(space.classifier_digest or space.cdvae_digest or '')[:12]}"
            for space in job.spaces
        ),
        "protocol": config.protocol,
        "seed": str(config.seed),
        "parts of the images": f"{config.split.train_fraction:g} to train, "
        f"{config.split.selection_fraction:g} to choose, the rest to test (seed "
        f"{config.split.seed})"
        if config.protocol == "strict"
        else "the reference's: 5 % to train, 5 % to choose, 90 % to test",
        "bootstrap": f"{config.num_resamples} resamples by image",
        "digest": job.digest,
    }


def _pictures(job: _Job, detections: Sequence[Detection]) -> dict[str, bytes]:
    """ROC curves and histograms, one picture an attack and attacked function."""
    pictures = {}
    shown = [
        each for each in detections if (each.mode, each.subset) == ("same_attack", "successful")
    ]
    for key in dict.fromkeys((each.threat_model.name, each.attack) for each in shown):
        target, attack = key
        slug = f"{attack.lower().replace('&', '')}-on-{target}"
        pictures[slug] = detection_picture(
            [each for each in shown if (each.threat_model.name, each.attack) == key],
            caption=f"{attack} on {THREAT_MODELS[target].attacked}; protocol "
            f"{job.config.protocol}, trained and tested on successful attacks ({job.name})",
        )
    return pictures


def _metrics(rows: Sequence[DetectionRow], adaptive: Sequence[AdaptiveRow]) -> dict[str, float]:
    """The main numbers by "<method>.<space>.<target>.<attack>.<mode>.<what>"."""
    metrics = {}
    for row in rows:
        if (row.subset, row.contrast) != ("successful", "adversarial against clean and noisy"):
            continue
        if row.mode == "unseen":
            continue
        names = row.method, row.space, row.threat_model, row.attack, row.mode
        metrics[metric_name(*names, "auroc")] = row.auroc.value
        metrics[metric_name(*names, "tnr_at_95_tpr")] = row.tnr_at_95_tpr.value
    for each in adaptive:
        what = f"success_at_{each.false_positive_rate * 100:g}_fpr"
        metrics[metric_name(each.method, each.space, each.attack, "adaptive", what)] = each.success
    return metrics


def _describe(writer: Writer, job: _Job) -> None:
    config = job.config
    writer.log_config(
        {
            **{
                name: to_dict(getattr(config, name))
                for name in ("data", "pool", "detectors", "split", "adaptive")
            },
            "preset": job.preset,
            "protocol": config.protocol,
            "suite": config.suite,
            "seed": config.seed,
            "paper_table": config.paper_table,
            "checkpoint": config.checkpoint,
            "classifier": config.classifier,
            "redundant_classifier": config.redundant_classifier,
            "models": job.identity["models"],
            "storage": config.storage,
        }
    )
    for context, images in (("train", job.splits.train), ("test", job.splits.test)):
        _log_images(writer, config.data.source, images, "train" if context == "train" else "test")


def _log_images(
    writer: Writer, source: str, images: ImageSet, context: Literal["train", "test"]
) -> None:
    writer.log_dataset(images.name, images.digest, source, len(images), images.num_classes, context)
