"""A search on Ray Tune: trials side by side, none of them twice, whatever is killed."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from cdvae_ray.config.search_job import SearchConfig
from cdvae_ray.config.search_space import SearchSpace
from cdvae_ray.config.serialize import digest_of, to_dict
from cdvae_ray.data.load import load_split
from cdvae_ray.errors import TrainingError
from cdvae_ray.evaluation.search_picture import parts_by_value, search_picture
from cdvae_ray.evaluation.search_table import (
    Measured,
    Trial,
    pareto_front,
    search_columns,
    search_page,
)
from cdvae_ray.loading import checkpoint_at
from cdvae_ray.runtime import cluster, leftovers
from cdvae_ray.runtime.search_trials import Search
from cdvae_ray.runtime.tracked import (
    embedded_root,
    ending,
    tracking_address,
)
from cdvae_ray.runtime.training_job import Say
from cdvae_ray.storage.artifact import has_artifact, read_manifest, write_artifact
from cdvae_ray.storage.store import Store, to_json_bytes
from cdvae_ray.tracking import Writer, end_nested_runs, open_writer
from cdvae_ray.training.checkpoint import cdvae_of
from cdvae_ray.training.epoch import EpochReport

TRIAL_KIND = "search-trial"
REPORT_KIND = "search-report"
_TRIAL_RESOURCES = {"node:__internal_head__": 0.001}
"""A trial drives trainings and computes nothing itself: it takes no CPU from them, and lives where
the head is."""
_VALUE = "value"
_EPOCH_ACCURACY = "train_accuracy"
_PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search came to."""

    run_id: str | None
    config_digest: str
    metrics: dict[str, float]
    trials: list[Trial]
    space: SearchSpace
    report: str
    """The folder of table, page and pictures."""


def lasting(config: SearchConfig) -> dict[str, Any]:
    """What of a search's settings trials, which have another working folder, must find as well."""
    tracking = config.tracking
    if tracking.enabled:
        tracking = replace(tracking, uri=tracking_address(tracking, config.storage))
    return {
        "storage": everywhere(config.storage),
        "data": replace(config.data, path=everywhere(config.data.path)),
        "classifier": everywhere(config.classifier),
        "tracking": tracking,
    }


def everywhere(location: str) -> str:
    """A local path as an absolute one; addresses (s3://..., runs:/..., models:/...) as they are."""
    if not location or ":/" in location:
        return location
    return str(Path(location).expanduser().absolute())


def search(job: Search, *, preset: str, say: Say) -> SearchOutcome:
    """Runs on the driver. Makes every trial that is not stored, and reports on all.

    Args:
        job: what is tried, with settings of `lasting`, in places that last.
        preset: the name it was started from, for people.
        say: takes lines of progress.

    Raises:
        CdvaeError: anything that a person can put right, one line each; no trial finished.
    """
    config = job.config
    settings = job.known_settings()
    say("ray: connecting")
    # Tune's tables come besides the lines of this job.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # What is searched for stands in a trial's last report alone, and not in its epochs'.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    # An interrupt ends the job as one: Tune's own handler would report what there is as a success.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    cluster.connect()
    digest = digest_of({"search": job.name, "space": to_dict(job.space), "settings": settings})
    writer = open_writer(
        config.tracking,
        embedded_root=embedded_root(config.storage),
        run_name=f"{job.name}-{preset}-{digest[:12]}",
        tags={"job": job.name, "preset": preset, "config_digest": digest},
    )
    with ending(writer):
        writer.log_config(
            {
                "preset": preset,
                "space": to_dict(job.space),
                "strategy": config.strategy,
                "scheduler": config.scheduler,
                "data": to_dict(config.data),
                "seed": config.seed,
                "storage": config.storage,
            }
        )
        parent = writer.run_id(timeout_seconds=60) or ""
        job.prepare(say)
        stored = _stored_trials(job)
        others: list[Trial] = []
        try:
            others = _run_missing(job, stored, parent=parent, say=say)
        finally:
            if parent:
                uri = tracking_address(config.tracking, config.storage)
                end_nested_runs(uri, config.tracking.experiment, parent)
        trials = sorted([*_stored_trials(job), *others], key=lambda trial: trial.value)
        return _report(job, writer, trials, digest=digest, preset=preset)


# --- trials -------------------------------------------------------------------------------------


def _trials_root(job: Search) -> Store:
    return Store.at(job.config.storage).child("search")


def _trial_name(job: Search, value: float) -> str:
    return f"trial-{digest_of(job.identity(value))[:12]}"


def _stored_trials(job: Search) -> list[Trial]:
    """The finished trials of this search, whichever call made them."""
    root = _trials_root(job)
    trials = []
    for name in root.names():
        if not name.startswith("trial-") or not has_artifact(root, name):
            continue
        facts = read_manifest(root, name, kind=TRIAL_KIND)["facts"]
        value = float(facts["value"])
        if facts["identity"] != job.identity(value):
            continue
        if job.config.strategy == "grid" and value not in job.space.values:
            continue
        trials.append(
            Trial(
                value=value,
                state="finished",
                metrics={key: Measured(*each) for key, each in facts["metrics"].items()},
                artifacts=facts["artifacts"],
            )
        )
    return trials


def _run_missing(job: Search, stored: Sequence[Trial], *, parent: str, say: Say) -> list[Trial]:
    """Runs what is missing; returns the trials that did not finish."""
    config, space = job.config, job.space
    done = {trial.value for trial in stored}
    wanted = config.num_samples or space.num_samples
    missing = [value for value in space.values if value not in done]
    count = len(missing) if config.strategy == "grid" else max(0, wanted - len(stored))
    say(f"search: {len(stored)} trials are there, {count} to run")
    if not count:
        return []
    tunable = tune.with_resources(
        functools.partial(_try, job=job, parent=parent),
        tune.PlacementGroupFactory([_TRIAL_RESOURCES]),
    )
    lines = _Lines(space.parameter, say)
    with tempfile.TemporaryDirectory(prefix="cdvae-search-") as folder:
        tuner = tune.Tuner(
            tunable,
            param_space={_VALUE: tune.grid_search(missing)} if config.strategy == "grid" else {},
            tune_config=tune.TuneConfig(
                num_samples=1 if config.strategy == "grid" else count,
                max_concurrent_trials=config.max_concurrent,
                search_alg=None if config.strategy == "grid" else _sampler(job, stored),
                scheduler=_scheduler(job),
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name=job.name,
                # Nothing of Tune's is kept: its files are pickles, a finished trial has its own.
                storage_path=folder,
                callbacks=[lines],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        logging.getLogger("ray.tune").setLevel(logging.WARNING)
        with leftovers.giving_back_of_ended_trials():
            results = tuner.fit()
    finished = {trial.value for trial in _stored_trials(job)}
    others = []
    for result in results:
        config_of_trial = result.config or {}
        if _VALUE not in config_of_trial:  # it ended before it began
            say(f"a trial ended before it began: {cluster.deepest_cause(result.error)}")
            continue
        value = float(config_of_trial[_VALUE])
        if value in finished:
            continue
        reason = cluster.deepest_cause(result.error) if result.error else ""
        others.append(
            Trial(
                value=value,
                state="failed" if result.error else "stopped",
                metrics={},
                artifacts={},
                reason=reason,
            )
        )
    return others


def _try(sampled: dict[str, Any], *, job: Search, parent: str) -> None:
    """Runs on a worker: one trial, from its value to its stored numbers."""
    value, config = float(sampled[_VALUE]), job.config
    writer = open_writer(
        replace(config.tracking, parent_run=parent),
        embedded_root=embedded_root(config.storage),
        run_name=f"{job.space.parameter} = {value:g}",
        tags={"job": job.name, "trial": _trial_name(job, value)},
    )
    with ending(writer):
        writer.log_config({job.space.parameter: value})
        own = writer.run_id(timeout_seconds=60) or ""

        accuracy = 0.0

        def on_epoch(report: EpochReport) -> None:
            nonlocal accuracy
            accuracy = report.metrics[_EPOCH_ACCURACY]
            writer.log_metrics(report.metrics, step=report.epoch + 1)
            tune.report({_EPOCH_ACCURACY: accuracy, "epoch": report.epoch + 1})

        outcome = job.trial(value, replace(config.tracking, parent_run=own), on_epoch)
        numbers = {name: each.value for name, each in outcome.metrics.items()}
        write_artifact(
            _trials_root(job),
            _trial_name(job, value),
            kind=TRIAL_KIND,
            files={"metrics.json": to_json_bytes(numbers)},
            facts={
                "identity": job.identity(value),
                "value": value,
                "metrics": {name: list(each) for name, each in outcome.metrics.items()},
                "artifacts": outcome.artifacts,
            },
        )
        writer.log_metrics(numbers, step=job.epochs)
        # The last epoch's accuracy comes along: a scheduler wants its metric in every report.
        tune.report({**numbers, "epoch": job.epochs, _EPOCH_ACCURACY: accuracy})


def _scheduler(job: Search) -> Any:
    if job.config.scheduler == "none":
        return None
    return ASHAScheduler(
        time_attr="epoch",
        metric=_EPOCH_ACCURACY,
        mode="max",
        max_t=job.epochs + 1,
        grace_period=min(job.config.grace_epochs, job.epochs),
        reduction_factor=2,
    )


def _sampler(job: Search, stored: Sequence[Trial]) -> Any:
    """Optuna's sampler for several objectives, which knows the stored trials."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = job.space
    ranges = {_VALUE: optuna.distributions.FloatDistribution(space.low, space.high, log=space.log)}
    names, modes = list(space.metrics), list(space.metrics.values())
    memory = optuna.storages.InMemoryStorage()
    study = optuna.create_study(
        storage=memory,
        study_name="search",
        directions=["maximize" if mode == "max" else "minimize" for mode in modes],
    )
    for trial in stored:
        if not all(name in trial.metrics for name in names):
            continue  # Something could not be measured: there is nothing to compare it by.
        study.add_trial(
            optuna.trial.create_trial(
                params={_VALUE: trial.value},
                distributions=ranges,
                values=[trial.metrics[name].value for name in names],
            )
        )
    return OptunaSearch(
        space=ranges,
        metric=names,
        mode=modes,
        # Another seed for each call: the same one would draw the stored trials' values again.
        sampler=optuna.samplers.TPESampler(seed=job.config.seed + len(stored)),
        study_name="search",
        storage=memory,
    )


class _Lines(tune.Callback):  # type: ignore[misc]
    """What trials do, a line each."""

    def __init__(self, parameter: str, say: Say) -> None:
        self._parameter, self._say = parameter, say

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"{self._name(trial)}: begun")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._say(
            f"{self._name(trial)}: epoch {result['epoch']}, accuracy {result[_EPOCH_ACCURACY]:.2%}"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        done = sum(each.is_finished() for each in trials)
        self._say(f"{self._name(trial)}: done ({done} of {len(trials)} begun)")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(f"{self._name(trial)}: failed; the others go on")

    def _name(self, trial: Any) -> str:
        return f"{self._parameter} = {trial.config[_VALUE]:.4g}"


# --- what it came to ----------------------------------------------------------------------------


def _report(
    job: Search, writer: Writer, trials: list[Trial], *, digest: str, preset: str
) -> SearchOutcome:
    config, space = job.config, job.space
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        reasons = "; ".join(dict.fromkeys(trial.reason for trial in trials if trial.reason))
        raise TrainingError(
            "search",
            got=f"no finished trial of {len(trials)}: {reasons or 'all were stopped'}",
            expected="at least one",
            remedy="correct what the trials met; the same command tries them again",
        )
    caption = f"{job.name}, {preset}, {digest[:12]}"
    pictures = {"figure-4.png": search_picture(trials, space, caption=caption)}
    address = tracking_address(config.tracking, config.storage)
    models = {
        trial.value: cdvae_of(checkpoint_at(trial.artifacts["cdvae"], tracking_uri=address)).eval()
        for trial in finished
        if "cdvae" in trial.artifacts
    }
    if models:
        images = load_split(config.data, "test").images[:_PICTURES]
        pictures["figure-5.png"] = parts_by_value(
            models, images, parameter=space.parameter, caption=caption
        )
    columns = search_columns(trials, space)
    page = search_page(
        trials,
        space,
        title=f"Search for {space.parameter}",
        facts={
            "preset": preset,
            "images": config.data.source,
            "strategy": config.strategy,
            "scheduler": config.scheduler,
            "seed": str(config.seed),
            "search": digest[:12],
        },
        pictures={name.removesuffix(".png"): name for name in pictures},
    )
    identity = {
        "kind": REPORT_KIND,
        "search": digest,
        "trials": [_trial_name(job, trial.value) for trial in finished],
        "others": [[trial.value, trial.state] for trial in trials if trial not in finished],
    }
    root, name = _trials_root(job), f"report-{digest_of(identity)[:12]}"
    write_artifact(
        root,
        name,
        kind=REPORT_KIND,
        files={"trials.json": to_json_bytes(columns), "report.md": page.encode(), **pictures},
        facts={"digest": digest, "identity": identity},
    )
    front = pareto_front(trials, space.metrics)
    metrics = {
        "trials_finished": float(len(finished)),
        "trials_failed": float(sum(trial.state == "failed" for trial in trials)),
        "trials_stopped": float(sum(trial.state == "stopped" for trial in trials)),
        "pareto_front": float(len(front)),
    }
    writer.log_metrics(metrics, step=0)
    writer.log_table(columns, "tables/trials.json")
    for picture, content in pictures.items():
        writer.log_image(content, f"figures/{picture}")
    writer.log_text(page, "report.md")
    return SearchOutcome(
        run_id=writer.run_id(timeout_seconds=15),
        config_digest=digest,
        metrics=metrics,
        trials=trials,
        space=space,
        report=root.location(name),
    )
