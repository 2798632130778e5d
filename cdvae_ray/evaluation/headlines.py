"""The few numbers of each report that say at a glance what came out, with what they hold against.

Chosen by rule and not by value, so that nothing is picked because of what it says: the strongest
attack of the paper's pairs, every detector, every defence, and beside each number of a weaker
adversary the one of a stronger adversary where the report has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cdvae_ray.config.search_space import SearchSpace
from cdvae_ray.evaluation.adaptive_table import AdaptiveRow
from cdvae_ray.evaluation.defense_table import CLEAN, WORST_OF_ALL, DefenseNumber
from cdvae_ray.evaluation.detection_table import SPACE_SYMBOLS, DetectionRow
from cdvae_ray.evaluation.layout import aligned_table
from cdvae_ray.evaluation.search_table import Trial
from cdvae_ray.evaluation.study_table import (
    CrossRow,
    LatentRow,
    NormRow,
    SimilarityRow,
    StudyRow,
    mean_interval,
)

NO_ATTACK = "none"
MAIN_ATTACK = "PGD-Linf"
MAIN_CONTRAST = "adversarial against clean and noisy"


class Headline(NamedTuple):
    """A number at a glance; it cannot be made without a threat model."""

    result: str
    """Table or figure of the paper, as "Table 4"."""
    quantity: str
    threat_model: str
    images: int | None
    """n; None where the report has none."""
    value: float
    low: float | None
    """95 % interval over images; None where the report has none."""
    high: float | None
    paper: float | None
    """The paper's, where it means the same."""
    is_share: bool
    """A share of one, which people read in percent."""


def study_headlines(
    tables: Mapping[str, Sequence[StudyRow]], results: Collection[str], *, attacked: str
) -> list[Headline]:
    """Tables 1-3 and Figure 3, of the first attack.

    Args:
        tables: of the study, by title.
        results: which tables and figures are wanted.
        attacked: the function that x' was made against.
    """
    rows = [row for each in tables.values() for row in each]
    first = next((row.attack for row in rows if not isinstance(row, CrossRow)), "")
    found: list[Headline] = []
    for row in rows:
        if isinstance(row, CrossRow):
            if row.trained_on == row.tested_on or (row.trained_on, row.tested_on) == ("R(x)", "x"):
                found.append(_cross_headline(row))
        elif row.attack != first:
            continue
        elif isinstance(row, SimilarityRow):
            found += _similarity_headlines(row, attacked)
        elif isinstance(row, NormRow) and row.part.startswith("delta"):
            found.append(_norm_headline(row, attacked))
        elif isinstance(row, LatentRow):
            found.append(
                Headline(
                    result="Figure 3",
                    quantity="Pearson's r of z and z', median over dimensions",
                    threat_model=f"{row.attack} on {attacked}",
                    images=row.images,
                    value=row.median,
                    low=None,
                    high=None,
                    paper=None,
                    is_share=False,
                )
            )
    return [each for each in found if each.result in results]


def detection_headlines(
    rows: Sequence[DetectionRow], adaptive: Sequence[AdaptiveRow], *, result: str
) -> list[Headline]:
    """Table 4 or 5: each detector by the paper's pairs, on the same images, and evaded.

    Args:
        rows, adaptive: of the report.
        result: "Table 4" or "Table 5".
    """
    chosen = [
        row
        for row in rows
        if (row.mode, row.subset, row.contrast) == ("same_attack", "successful", MAIN_CONTRAST)
        and row.space in ("images", "class_essential")
    ]
    main = _main_of(row.attack for row in chosen)
    found = [
        Headline(
            result=result,
            quantity=f"AUROC of {row.method} on {SPACE_SYMBOLS[row.space]}",
            threat_model=f"{row.attack} on {row.attacked}, which knows no detector",
            images=row.clean_images,
            value=row.auroc.value,
            low=row.auroc.low,
            high=row.auroc.high,
            paper=row.paper_auroc,
            is_share=True,
        )
        for row in chosen
        if row.attack == main
    ]
    strictest = min((row.false_positive_rate for row in adaptive), default=None)
    for method, space in dict.fromkeys((row.method, row.space) for row in adaptive):
        best = max(
            (
                row
                for row in adaptive
                if (row.method, row.space) == (method, space)
                and row.false_positive_rate == strictest
            ),
            key=lambda row: row.success,
        )
        found.append(
            Headline(
                result=result,
                quantity=f"evaded: wrong class and passed by {method} on {SPACE_SYMBOLS[space]} "
                f"at {best.false_positive_rate:.0%} FPR",
                threat_model=f"{best.attack}: {best.threat_model}",
                images=best.images,
                value=best.success,
                low=best.success_low,
                high=best.success_high,
                paper=None,
                is_share=True,
            )
        )
    return found


def defense_headlines(numbers: Sequence[DefenseNumber], *, result: str) -> list[Headline]:
    """Table 6 or 7: every defence clean, under the main attack, and in the worst case.

    Args:
        numbers: of the report.
        result: "Table 6" or "Table 7".
    """
    attacks = [each.quantity for each in numbers if each.settings and each.quantity != CLEAN]
    wanted = (CLEAN, _main_of(attacks), WORST_OF_ALL)
    return [
        Headline(
            result=result,
            quantity=f"accuracy of {each.defense}, {each.quantity}",
            threat_model=NO_ATTACK if each.quantity == CLEAN else each.threat_model,
            images=each.images,
            value=each.accuracy,
            low=each.low,
            high=each.high,
            paper=each.paper,
            is_share=True,
        )
        for each in numbers
        if each.quantity in wanted
    ]


def search_headlines(trials: Sequence[Trial], space: SearchSpace) -> list[Headline]:
    """Figure 4: every objective at the smallest and at the largest value that was tried.

    Args:
        trials: finished or not.
        space: what was searched.
    """
    finished = sorted(
        (trial for trial in trials if trial.state == "finished"), key=lambda trial: trial.value
    )
    ends = finished[:1] + finished[1:][-1:]
    return [
        Headline(
            result="Figure 4",
            quantity=f"{name.replace('_', ' ')} at {space.parameter} = {trial.value:g}",
            threat_model=_threat_of(name),
            images=trial.metrics[name].images,
            value=trial.metrics[name].value,
            low=trial.metrics[name].low,
            high=trial.metrics[name].high,
            paper=None,
            is_share=True,
        )
        for name in space.metrics
        for trial in ends
        if name in trial.metrics
    ]


def _threat_of(metric: str) -> str:
    """What a number of a trial holds against, by its name."""
    if metric.startswith("detection_"):
        attacked = "D(R(x))" if metric.endswith("_essential") else "D(x)"
        return f"{MAIN_ATTACK} on {attacked}, which knows no detector"
    if metric.startswith("defense_"):
        return f"transfer: {MAIN_ATTACK} made against D(x)"
    if metric.startswith("attacked_"):
        return f"white-box: {MAIN_ATTACK} on the whole defence"
    return NO_ATTACK


def headline_columns(headlines: Sequence[Headline]) -> dict[str, list[Any]]:
    """Headlines as columns, for tracking and files."""
    return {name: [getattr(each, name) for each in headlines] for name in Headline._fields}


def headline_text(headlines: Sequence[Headline]) -> str:
    """Headlines as aligned text for a terminal: shares in percent, the paper's beside ours."""
    lines = []
    for each in headlines:
        texts = [
            "" if number is None else f"{100 * number:.1f}" if each.is_share else f"{number:.4g}"
            for number in (each.value, each.low, each.high, each.paper)
        ]
        interval = f" [{texts[1]}, {texts[2]}]" if texts[1] and texts[2] else ""
        n = "" if each.images is None else f"{each.images:,}"
        unit = " %" if each.is_share else ""
        lines.append(
            [
                *(each.result, each.quantity, f"{texts[0]}{unit}{interval}", texts[3], n),
                each.threat_model,
            ]
        )
    return aligned_table(["result", "quantity", "ours", "paper", "n", "threat model"], lines)


def _similarity_headlines(row: SimilarityRow, attacked: str) -> list[Headline]:
    shared: dict[str, Any] = {
        "result": "Table 1",
        "threat_model": f"{row.attack} on {attacked}",
        "images": row.images,
        "is_share": False,
    }
    return [
        Headline(
            quantity=f"cosine of {row.compared}",
            value=row.cosine,
            low=row.cosine_low,
            high=row.cosine_high,
            paper=row.paper_cosine,
            **shared,
        ),
        Headline(
            quantity=f"Frechet distance of {row.compared}, by {row.features}",
            value=row.frechet,
            low=None,
            high=None,
            paper=row.paper_frechet,
            **shared,
        ),
    ]


def _norm_headline(row: NormRow, attacked: str) -> Headline:
    interval = mean_interval(row.l2, row.l2_std, row.images)
    return Headline(
        result="Table 2",
        quantity=f"L2 of {row.part}, {row.units} units",
        threat_model=f"{row.attack} on {attacked}",
        images=row.images,
        value=row.l2,
        low=interval.low,
        high=interval.high,
        paper=row.paper_l2,
        is_share=False,
    )


def _cross_headline(row: CrossRow) -> Headline:
    return Headline(
        result="Table 3",
        quantity=f"top-1 trained on {row.trained_on}, tested on {row.tested_on}",
        threat_model=NO_ATTACK,
        images=row.images,
        value=row.top1,
        low=row.top1_low,
        high=row.top1_high,
        paper=row.paper_top1,
        is_share=True,
    )


def _main_of(attacks: Iterable[str]) -> str:
    """PGD L-infinity, else AutoAttack in that norm, else the first."""
    every = list(dict.fromkeys(attacks))
    for wanted in (MAIN_ATTACK, "AutoAttack-Linf"):
        if wanted in every:
            return wanted
    return every[0] if every else ""
