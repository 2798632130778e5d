"""From nothing, or from what is there, to tables, figures and one page: jobs/reproduce.py.

Every step is the job that its own command would run, with the settings of its config: what is
stored is found by the digest of all that determines it, so nothing made otherwise can slip in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdvae_ray.config.baseline import BASELINE_NAMES, baseline
from cdvae_ray.config.reproduce_job import Norm, Part, ReproduceConfig, Step
from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.evaluation.attack_report import Check, Outcome
from cdvae_ray.evaluation.headlines import (
    Headline,
    defense_headlines,
    detection_headlines,
    headline_columns,
    search_headlines,
    study_headlines,
)
from cdvae_ray.evaluation.html_report import (
    ReportLink,
    ReportSection,
    ReportStep,
    report_html,
)
from cdvae_ray.runtime import analyze, detect, evaluate_defense, search
from cdvae_ray.runtime.finetune import finetune
from cdvae_ray.runtime.search import everywhere
from cdvae_ray.runtime.tracked import (
    embedded_root,
    ending,
    require_lasting_places,
    tracking_address,
)
from cdvae_ray.runtime.train import train
from cdvae_ray.runtime.train_baseline import train_baseline
from cdvae_ray.runtime.train_classifier import train_classifier
from cdvae_ray.runtime.training_job import Say, TrainOutcome
from cdvae_ray.runtime.tune import tune_objective
from cdvae_ray.storage.artifact import read_artifact, write_artifact
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.tracking import (
    Writer,
    environment_facts,
    git_commit,
    metric_name,
    open_writer,
    run_links,
)

_Outcome = (
    analyze.StudyOutcome
    | detect.DetectionOutcome
    | evaluate_defense.DefenseOutcome
    | search.SearchOutcome
)
REPORT_KIND = "reproduction-report"
PAGE = "report.html"
TABLES = "tables.json"
"""Every table of every part, as columns: what `jobs/compare_seeds.py` reads."""
_TITLES: dict[Part, str] = {
    "study": "What G(x) and R(x) hold",
    "detection": "Detection",
    "detection-reference": "Detection by the reference protocol",
    "grey-box": "Grey-box defence",
    "white-box": "White-box defence",
    "search": "The search for gamma",
}


@dataclass(frozen=True, kw_only=True)
class ReproductionOutcome:
    """What a reproduction came to."""

    run_id: str | None
    config_digest: str
    metrics: dict[str, float]
    headlines: list[Headline]
    report: str
    """The folder of the page and of its numbers."""


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A step that is done."""

    step: Step
    settings: str
    digest: str
    run_id: str | None
    was_stored: bool = False
    location: str = ""
    """Of a model's checkpoint, or of a report's folder."""
    headlines: Sequence[Headline] = ()
    checks: Mapping[Outcome, int] | None = None


def reproduce(
    config: ReproduceConfig, *, space: Path, preset: str, say: Say
) -> ReproductionOutcome:
    """Runs on the driver. Makes every table and figure asked for, and the page of them.

    Args:
        config: the job.
        space: of gamma, where the config names none.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each. What was made until then
            is found by the next call.
    """
    require_lasting_places(config.storage, config.tracking)
    config = _lasting(config)
    results = [result for part in config.parts for result in config.results_of(part)]
    say(f"results: {', '.join(results)}")
    writer = open_writer(
        config.tracking,
        embedded_root=embedded_root(config.storage),
        run_name=f"reproduce-{preset}",
        tags={"job": "reproduce", "preset": preset},
    )
    with ending(writer):
        writer.log_config(
            {
                "preset": preset,
                "results": results,
                "recipe": to_dict(config.recipe),
                "data": to_dict(config.data),
                "seed": config.seed,
                "storage": config.storage,
            }
        )
        parent = writer.run_id(timeout_seconds=60) or ""
        nested = replace(config, tracking=replace(config.tracking, parent_run=parent))
        made = _Steps(nested, space, say).make_all()
        return _report(config, writer, made, preset=preset)


def _lasting(config: ReproduceConfig) -> ReproduceConfig:
    """The config with locations that hold in every step's working folder."""
    tracking = config.tracking
    if tracking.enabled:
        tracking = replace(tracking, uri=tracking_address(tracking, config.storage))
    return replace(
        config,
        storage=everywhere(config.storage),
        data=replace(config.data, path=everywhere(config.data.path)),
        tracking=tracking,
    )


# --- steps --------------------------------------------------------------------------------------


class _Steps:
    """Makes or finds each step; later ones take the locations of earlier ones."""

    def __init__(self, config: ReproduceConfig, space: Path, say: Say) -> None:
        self._config, self._space, self._say = config, space, say
        self._made: dict[Step, _Made] = {}

    def make_all(self) -> list[_Made]:
        steps = self._config.steps
        for number, step in enumerate(steps, start=1):
            self._say(f"\nstep {number} of {len(steps)}: {step}")
            self._made[step] = self._make(step)
        return list(self._made.values())

    def _at(self, kind: Any, option: str = "") -> str:
        """The location of an earlier step; "" where it was not needed."""
        step = Step(kind, option)
        return self._made[step].location if step in self._made else ""

    def _make(self, step: Step) -> _Made:
        makers: dict[str, Callable[[Step], _Made]] = {
            "study": self._study,
            "detection": self._detection,
            "detection-reference": self._detection,
            "grey-box": self._grey_box,
            "white-box": self._white_box,
            "search": self._search,
        }
        return makers.get(step.kind, self._model)(step)

    def _model(self, step: Step) -> _Made:
        config, recipe, say = self._config, self._config.recipe, self._say
        classifier, cdvae = self._at("classifier"), self._at("cdvae")
        defense_cdvae = self._at("defense-cdvae")
        outcome: TrainOutcome
        preset = recipe.classifier
        match step.kind:
            case "cdvae":
                preset = recipe.cdvae
                outcome = train(config.cdvae_job(), preset=preset, say=say)
            case "defense-cdvae":
                preset = recipe.cdvae
                outcome = train(config.defense_cdvae_job(), preset=preset, say=say)
            case "classifier":
                outcome = train_classifier(config.classifier_job(), preset=preset, say=say)
            case "redundant-classifier":
                job = config.classifier_job("class_redundant", cdvae)
                outcome = train_classifier(job, preset=preset, say=say)
            case "essential-classifier":
                job = config.classifier_job("class_essential", cdvae)
                outcome = train_classifier(job, preset=preset, say=say)
            case "defense-classifier":
                job = config.defense_classifier_job(defense_cdvae)
                outcome = train_classifier(job, preset=preset, say=say)
            case "baseline":
                preset = recipe.baseline
                name = next(each for each in BASELINE_NAMES if each == step.option)
                outcome = train_baseline(
                    config.baseline_job(name, classifier), preset=preset, say=say
                )
            case _:
                preset = recipe.finetune
                outcome = finetune(
                    config.finetune_job(_norm(step), defense_cdvae, classifier),
                    preset=preset,
                    say=say,
                )
        return _Made(
            step=step,
            settings=f"{_JOBS[step.kind]} {preset}",
            digest=outcome.config_digest,
            run_id=outcome.run_id,
            was_stored=outcome.was_stored,
            location=outcome.checkpoint,
        )

    def _study(self, step: Step) -> _Made:
        config = self._config
        job = config.study_job(
            self._at("cdvae"),
            self._at("classifier"),
            redundant=self._at("redundant-classifier"),
            essential=self._at("essential-classifier"),
        )
        outcome = analyze.analyze(job, preset=config.recipe.study, say=self._say)
        headlines = study_headlines(
            outcome.tables,
            config.results_of("study"),
            attacked=THREAT_MODELS[job.threat_model].attacked,
        )
        return _reported(step, outcome, f"analyze {config.recipe.study}", headlines)

    def _detection(self, step: Step) -> _Made:
        config, preset = self._config, self._config.recipe.detection
        by_reference = step.kind == "detection-reference"
        job = config.detection_job(
            self._at("cdvae"),
            self._at("classifier"),
            protocol="reference" if by_reference else "strict",
        )
        outcome = detect.detect(job, preset=preset, say=self._say)
        (result,) = config.results_of("detection-reference" if by_reference else "detection")
        headlines = detection_headlines(outcome.rows, outcome.adaptive, result=result)
        settings = f"detect {preset}{' --protocol reference' if by_reference else ''}"
        return _reported(step, outcome, settings, headlines)

    def _grey_box(self, step: Step) -> _Made:
        config, classifier = self._config, self._at("classifier")
        defenses = (
            f"Normal={classifier}",
            *(
                f"{baseline(name).label}={self._at('baseline', name)}"
                for name in config.recipe.grey_box_baselines
            ),
            f"Ours={self._at('defense-classifier')}",
        )
        job = config.grey_box_job(classifier, defenses, self._at("defense-cdvae"))
        outcome = evaluate_defense.evaluate_defense(
            job, preset=config.recipe.grey_box, say=self._say
        )
        return _defended(step, outcome, preset=config.recipe.grey_box, result="Table 6")

    def _white_box(self, step: Step) -> _Made:
        config = self._config
        names = {"linf": "Ours-Linf", "l2": "Ours-L2"}
        defenses = (
            f"Normal={self._at('classifier')}",
            *(
                f"{baseline(name).label}={self._at('baseline', name)}"
                for name in config.recipe.white_box_baselines
            ),
            *(
                f"{names[norm]}={self._at('finetuned', norm)}"
                for norm in config.recipe.white_box_norms
            ),
        )
        outcome = evaluate_defense.evaluate_defense(
            config.white_box_job(defenses), preset=config.recipe.white_box, say=self._say
        )
        return _defended(step, outcome, preset=config.recipe.white_box, result="Table 7")

    def _search(self, step: Step) -> _Made:
        config = self._config
        outcome = tune_objective(
            config.search_job(self._at("classifier")),
            parameter="gamma",
            space=self._space,
            preset=config.recipe.search,
            say=self._say,
        )
        wanted = "Figure 4" in config.results_of("search")
        headlines = search_headlines(outcome.trials, outcome.space) if wanted else []
        return _reported(step, outcome, f"tune_gamma {config.recipe.search}", headlines)


def _reported(
    step: Step,
    outcome: _Outcome,
    settings: str,
    headlines: Sequence[Headline],
    checks: Mapping[Outcome, int] | None = None,
) -> _Made:
    return _Made(
        step=step,
        settings=settings,
        digest=outcome.config_digest,
        run_id=outcome.run_id,
        location=outcome.report,
        headlines=headlines,
        checks=checks,
    )


def _defended(
    step: Step, outcome: evaluate_defense.DefenseOutcome, *, preset: str, result: str
) -> _Made:
    return _reported(
        step,
        outcome,
        f"evaluate_defense {preset}",
        defense_headlines(outcome.numbers, result=result),
        _counted(outcome.checks),
    )


_JOBS = {
    "classifier": "train_classifier",
    "cdvae": "train",
    "redundant-classifier": "train_classifier",
    "essential-classifier": "train_classifier",
    "defense-cdvae": "train",
    "defense-classifier": "train_classifier",
    "baseline": "train_baseline",
    "finetuned": "finetune_adversarial",
}


def _norm(step: Step) -> Norm:
    return "linf" if step.option == "linf" else "l2"


def _counted(checks: Mapping[str, Sequence[Check]]) -> dict[Outcome, int]:
    """Lines of the checklists by outcome, every outcome named."""
    found = Counter(check.outcome for each in checks.values() for check in each)
    every: tuple[Outcome, ...] = ("pass", "fail", "warn", "not run")
    return {outcome: found[outcome] for outcome in every}


# --- the page -----------------------------------------------------------------------------------


def _report(
    config: ReproduceConfig, writer: Writer, made: list[_Made], *, preset: str
) -> ReproductionOutcome:
    headlines = [headline for each in made for headline in each.headlines]
    parts: dict[str, Part] = {part: part for part in config.parts}
    reports = {parts[each.step.kind]: each for each in made if each.step.kind in parts}
    own = writer.run_id(timeout_seconds=15)
    links = _Links(config, [own, *(each.run_id for each in made)])
    files = {part: _files(part, each) for part, each in reports.items()}
    sections = [
        ReportSection(
            key=part,
            title=_TITLES[part],
            results=config.results_of(part),
            page=files[part]["report.md"].decode(),
            pictures={
                name: content for name, content in files[part].items() if name.endswith(".png")
            },
            run=links.to(each.run_id),
            checks=each.checks or {},
        )
        for part, each in reports.items()
    ]
    steps = [
        ReportStep(
            name=str(each.step),
            settings=each.settings,
            digest=each.digest,
            was_stored=each.was_stored,
            run=links.to(each.run_id),
        )
        for each in made
    ]
    identity = {
        "kind": REPORT_KIND,
        "recipe": to_dict(config.recipe),
        "results": [result for part in config.parts for result in config.results_of(part)],
        "reports": {part: each.digest for part, each in reports.items()},
    }
    digest = digest_of(identity)
    page = report_html(
        title=f"Class-disentanglement: {preset}",
        facts={
            "results": ", ".join(identity["results"]),
            "images": f"{config.data.source}, {config.data.image_size} x {config.data.image_size}",
            "seed": "the presets'" if config.seed is None else str(config.seed),
            "report": digest[:12],
            "MLflow run": own or "not tracked",
        },
        remarks=_remarks(config),
        headlines=headlines,
        sections=sections,
        steps=steps,
    )
    columns = headline_columns(headlines)
    root, name = Store.at(config.storage).child("reproductions"), f"report-{digest[:12]}"
    write_artifact(
        root,
        name,
        kind=REPORT_KIND,
        files={
            PAGE: page.encode(),
            "headlines.json": to_json_bytes(columns),
            TABLES: to_json_bytes({part: _tables(each) for part, each in files.items()}),
        },
        facts={
            "digest": digest,
            "identity": identity,
            "preset": preset,
            "seed": config.seed,
            "images": config.images,
            "made_by": environment_facts() | {"commit": git_commit(Path(__file__).parent)},
            "steps": [[str(each.step), each.settings, each.digest] for each in made],
        },
    )
    metrics = {
        "steps": float(len(made)),
        "steps_found": float(sum(each.was_stored for each in made)),
        "headlines": float(len(headlines)),
    }
    writer.log_metrics(metrics, step=0)
    writer.log_table(columns, "tables/headlines.json")
    for section in sections:
        for picture, content in section.pictures.items():
            writer.log_image(content, f"figures/{section.key}/{picture}")
    writer.log_text(page, PAGE)
    return ReproductionOutcome(
        run_id=own,
        config_digest=digest,
        metrics=metrics
        | {
            metric_name(each.result, each.quantity, each.threat_model): each.value
            for each in headlines
        },
        headlines=headlines,
        report=root.location(name),
    )


class _Links:
    """Where the MLflow UI shows the runs of the steps."""

    def __init__(self, config: ReproduceConfig, run_ids: Sequence[str | None]) -> None:
        tracking = config.tracking
        known = [run_id for run_id in run_ids if run_id]
        self._addresses = (
            run_links(tracking_address(tracking, config.storage), known) if tracking.enabled else {}
        )

    def to(self, run_id: str | None) -> ReportLink:
        if run_id is None:
            return ReportLink(text="not tracked")
        return ReportLink(text=run_id[:12], address=self._addresses.get(run_id, ""))


def _files(part: Part, made: _Made) -> dict[str, bytes]:
    """What a part's own report stored."""
    root, name = Store.at(made.location).parent()
    kinds = {
        "study": analyze.REPORT_KIND,
        "detection": detect.REPORT_KIND,
        "detection-reference": detect.REPORT_KIND,
        "grey-box": evaluate_defense.REPORT_KIND,
        "white-box": evaluate_defense.REPORT_KIND,
        "search": search.REPORT_KIND,
    }
    return read_artifact(root, name, kind=kinds[part]).files


def _tables(files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        name.removesuffix(".json"): json.loads(content)
        for name, content in files.items()
        if name.endswith(".json")
    }


def _remarks(config: ReproduceConfig) -> list[str]:
    remarks = []
    if config.recipe.cdvae not in ("cifar10", "cifar10-released"):
        remarks.append(
            "Small networks, trained for a short time: the paper's numbers, of WRN-28-10 and 300 "
            "epochs, stand beside ours for orientation and not as a target that this could meet."
            if config.data.source != "digits"
            else "Digits and small networks: a check that everything runs, not of the paper."
        )
    limits = [limit for limit in (config.data.train_limit, config.data.test_limit) if limit]
    if limits:
        remarks.append("Only a part of the images was used: the counts stand beside each number.")
    if "detection-reference" in config.parts:
        remarks.append(
            "The reference protocol keeps images by what the attack came to, adds noise of one "
            "size and compares LID within minibatches: what it gives beyond the strict protocol "
            "may come of that."
        )
    if {"grey-box", "white-box", "detection"} & set(config.parts):
        remarks.append(
            "A number holds for its threat model alone. Whoever knows a detector or a defence does "
            "better than whoever attacks the plain classifier: both stand below."
        )
    return remarks
