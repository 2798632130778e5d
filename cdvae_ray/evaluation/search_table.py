"""What the trials of a search came to: the table, and the Pareto front of several objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from cdvae_ray.config.search_space import Mode, SearchSpace
from cdvae_ray.evaluation.layout import aligned_table, markdown_table

TrialState = Literal["finished", "failed", "stopped"]


class Measured(NamedTuple):
    """A number of a trial."""

    value: float
    low: float | None = None
    """95 % interval over the test images; None where none is known."""
    high: float | None = None
    images: int | None = None
    """n."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One value of the parameter."""

    value: float
    state: TrialState
    """stopped: by the scheduler."""
    metrics: Mapping[str, Measured]
    """By name. One that could not be measured, as detection where no attack succeeded, is absent
    from a finished trial as well."""
    artifacts: Mapping[str, str]
    """Locations of its checkpoints, by what they are."""
    reason: str = ""
    """Why it failed."""


def pareto_front(trials: Sequence[Trial], metrics: Mapping[str, Mode]) -> list[Trial]:
    """The finished trials that no other beats: at least as good in all metrics, better in one.

    Trials without one of the metrics are neither on the front nor beat any.

    Args:
        trials: in any order, which is kept.
        metrics: what counts, and which way.
    """
    finished = [
        trial
        for trial in trials
        if trial.state == "finished" and all(name in trial.metrics for name in metrics)
    ]
    scores = [
        [(1 if mode == "max" else -1) * trial.metrics[name].value for name, mode in metrics.items()]
        for trial in finished
    ]
    return [
        trial
        for trial, own in zip(finished, scores, strict=True)
        if not any(
            other != own and all(b >= a for a, b in zip(own, other, strict=True))
            for other in scores
        )
    ]


def search_columns(trials: Sequence[Trial], space: SearchSpace) -> dict[str, list[Any]]:
    """The table as columns, for tracking and files: values, intervals, states."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    front = pareto_front(trials, space.metrics)
    columns: dict[str, list[Any]] = {
        space.parameter: [trial.value for trial in trials],
        "state": [trial.state for trial in trials],
        "on_pareto_front": [trial in front for trial in trials],
        "reason": [trial.reason for trial in trials],
    }
    for name in names:
        found = [trial.metrics.get(name) for trial in trials]
        columns[name] = [None if each is None else each.value for each in found]
        columns[f"{name}_low"] = [None if each is None else each.low for each in found]
        columns[f"{name}_high"] = [None if each is None else each.high for each in found]
        columns[f"{name}_images"] = [None if each is None else each.images for each in found]
    return columns


def search_markdown(trials: Sequence[Trial], space: SearchSpace) -> str:
    """The table in Markdown: percent with 95 % intervals, a star on the Pareto front."""
    return markdown_table(*_cells(trials, space))


def search_text(trials: Sequence[Trial], space: SearchSpace) -> str:
    """The table as aligned text for a terminal."""
    return aligned_table(*_cells(trials, space))


def search_page(
    trials: Sequence[Trial],
    space: SearchSpace,
    *,
    title: str,
    facts: Mapping[str, str],
    pictures: Mapping[str, str],
) -> str:
    """The whole report in Markdown.

    Args:
        trials: of the search.
        space: what was searched.
        title: of the page.
        facts: what was run, by name.
        pictures: files beside the page, by what they show.
    """
    wanted = ", ".join(f"{name} ({mode})" for name, mode in space.metrics.items())
    reasons = [
        f"- {space.parameter} = {trial.value:g} {trial.state}: {trial.reason}"
        for trial in trials
        if trial.reason
    ]
    parts = [
        f"# {title}",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        f"A star marks the Pareto front over {wanted}. Percent, with 95 % intervals over test "
        "images where there are any; they hold nothing of what another seed of training changes.",
        search_markdown(trials, space),
        "\n".join(reasons),
        f"The paper: {space.paper}" if space.paper else "",
        "\n\n".join(f"![{shows}]({file})" for shows, file in pictures.items()),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _cells(trials: Sequence[Trial], space: SearchSpace) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    front = pareto_front(trials, space.metrics)
    header = [space.parameter, "state", *(name.replace("_", " ") for name in names)]
    lines = []
    for trial in trials:
        star = " *" if trial in front else ""
        numbers = [_number(trial.metrics.get(name)) for name in names]
        lines.append([f"{trial.value:.4g}{star}", trial.state, *numbers])
    return header, lines


def _number(measured: Measured | None) -> str:
    if measured is None:
        return ""
    text = f"{100 * measured.value:.2f}"
    if measured.low is None or measured.high is None:
        return text
    return f"{text} [{100 * measured.low:.2f}, {100 * measured.high:.2f}]"
