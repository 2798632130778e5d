"""The same tables of several seeds side by side: each number of each seed, mean and interval.

The interval over seeds is Student's t of the seeds' values: it holds what training, attacks and
samples vary by, on the same images. What the images vary by stands in each seed's own interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from scipy import stats  # type: ignore[import-untyped]

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.headlines import MAIN_CONTRAST
from cdvae_ray.evaluation.layout import markdown_table

Columns = Mapping[str, Sequence[Any]]
"""A table by column."""
Tables = Mapping[str, Mapping[str, Columns]]
"""Tables of a reproduction by part and name."""
Unit = Literal["%", ""]

_SAME_IMAGES = {
    "mode": "same_attack",
    "subset": "successful",
    "contrast": MAIN_CONTRAST,
}
OBJECTIVES = {
    "class_essential_accuracy": "accuracy of D(R(x))",
    "reconstruction_accuracy": "reconstruction accuracy of G(x)",
    **{
        f"detection_auroc_{method.lower()}{suffix}": f"AUROC of {method} on R(x), attacks on {of}"
        for suffix, of in (("", "D(x)"), ("_essential", "D(R(x))"))
        for method in ("KD", "LID", "MD")
    },
    "defense_accuracy": "accuracy of G(x)'s classifier, attacks on D(x)",
}
"""What Figure 4 has against gamma, and how people call it."""


class View(NamedTuple):
    """What of which table is compared over seeds."""

    title: str
    part: str
    table: str
    keys: tuple[str, ...]
    """Columns that say which line it is."""
    values: tuple[str, ...]
    """Columns of numbers."""
    unit: Unit = "%"
    where: Mapping[str, Any] = {}
    """Columns that must hold these values, which the title says."""
    paper: Mapping[str, str] = {}
    """The column of the paper's number beside a column of ours."""
    images: str = "images"
    """The column of n, where a number has none of its own."""


VIEWS: tuple[View, ...] = (
    View(
        "Table 1: cosine and Frechet distance of x and x', by parts",
        "study",
        "similarity",
        ("attack", "compared", "features"),
        ("cosine", "frechet", "frechet_null"),
        "",
        paper={"cosine": "paper_cosine", "frechet": "paper_frechet"},
    ),
    View(
        "Table 2: norms",
        "study",
        "norms",
        ("attack", "part", "units"),
        ("l1", "l2", "linf"),
        "",
        paper={"l1": "paper_l1", "l2": "paper_l2", "linf": "paper_linf"},
    ),
    View(
        "Table 3: accuracy of a classifier trained on one part and tested on another",
        "study",
        "cross",
        ("trained_on", "tested_on"),
        ("top1", "top5"),
        paper={"top1": "paper_top1", "top5": "paper_top5"},
    ),
    View(
        "Figure 3: Pearson's r of z and z' by dimension",
        "study",
        "latents",
        ("attack",),
        ("median", "five_percent", "significant_share"),
        "",
    ),
    *(
        View(
            f"Table 4 or 5, {protocol} protocol, trained on the same attack, successful attacks",
            part,
            "detection",
            ("attacked", "attack", "method", "space"),
            ("auroc", "tnr_at_95_tpr"),
            where=_SAME_IMAGES,
            paper={"auroc": "paper_auroc", "tnr_at_95_tpr": "paper_tnr_at_95_tpr"},
            images="clean_images",
        )
        for part, protocol in (("detection", "strict"), ("detection-reference", "reference"))
    ),
    View(
        "Table 4 or 5, strict protocol, no attack seen by the detector, successful attacks",
        "detection",
        "detection",
        ("attacked", "attack", "method", "space"),
        ("auroc", "tnr_at_95_tpr"),
        where=_SAME_IMAGES | {"mode": "attack_free"},
        images="clean_images",
    ),
    View(
        "Table 4 or 5, who knows the detector: wrong class and passed by it",
        "detection",
        "adaptive",
        ("method", "space", "attack", "false_positive_rate", "threat_model"),
        ("success",),
    ),
    *(
        View(
            f"Table {number}: accuracy of defences",
            part,
            "numbers",
            ("threat_model", "defense", "quantity"),
            ("accuracy",),
            paper={"accuracy": "paper"},
        )
        for number, part in ((6, "grey-box"), (7, "white-box"))
    ),
    View(
        "Figure 4: objectives against gamma",
        "search",
        "trials",
        ("gamma",),
        tuple(OBJECTIVES),
    ),
)


class SeedRow(NamedTuple):
    """One number over the seeds."""

    view: str
    key: tuple[str, ...]
    quantity: str
    unit: Unit
    images: int | None
    """The least n of any seed."""
    values: tuple[float | None, ...]
    """In the order of the seeds; None where a seed has no such number."""
    mean: float
    low: float | None
    """95 % interval over seeds; None of fewer than two."""
    high: float | None
    images_low: float | None
    """The least lower and the greatest upper end of the seeds' own intervals over images."""
    images_high: float | None
    paper: float | None


def compare_seeds(tables: Sequence[Tables]) -> list[SeedRow]:
    """Every number of `VIEWS` that any seed has.

    Args:
        tables: of each seed's reproduction.

    Raises:
        DataError: a table has two lines of the same key, so that they cannot be told apart.
    """
    return [row for view in VIEWS for row in _rows(view, tables)]


def _rows(view: View, tables: Sequence[Tables]) -> list[SeedRow]:
    by_seed = [_lines(view, each.get(view.part, {}).get(view.table, {})) for each in tables]
    keys = list(dict.fromkeys(key for lines in by_seed for key in lines))
    rows = []
    for key in keys:
        for name in view.values:
            found = [lines.get(key) for lines in by_seed]
            values = tuple(_number(line, name) for line in found)
            known = [value for value in values if value is not None]
            if not known:
                continue
            mean = math.fsum(known) / len(known)
            half = _half_width(known)
            ends = [_interval(line, name) for line in found]
            counts = [count for line in found if (count := _count(view, line, name)) is not None]
            papers = [_number(line, view.paper.get(name, "")) for line in found]
            rows.append(
                SeedRow(
                    view=view.title,
                    key=key,
                    quantity=name,
                    unit=view.unit,
                    images=int(min(counts)) if counts else None,
                    values=values,
                    mean=mean,
                    low=None if half is None else mean - half,
                    high=None if half is None else mean + half,
                    images_low=min((low for low, _ in ends if low is not None), default=None),
                    images_high=max((high for _, high in ends if high is not None), default=None),
                    paper=next((each for each in papers if each is not None), None),
                )
            )
    return rows


def _lines(view: View, table: Columns) -> dict[tuple[str, ...], dict[str, Any]]:
    """The lines of a view's table by key."""
    if not table:
        return {}
    lines: dict[tuple[str, ...], dict[str, Any]] = {}
    for cells in zip(*table.values(), strict=True):
        line = dict(zip(table, cells, strict=True))
        if any(line[column] != wanted for column, wanted in view.where.items()):
            continue
        key = tuple(_said(line[column]) for column in view.keys)
        if key in lines:
            raise DataError(
                f"lines of {view.title}",
                got=f"two of {', '.join(key)}",
                expected="one of each",
                remedy="compare reports of this version of the package",
            )
        lines[key] = line
    return lines


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(line: Mapping[str, Any] | None, column: str) -> float | None:
    found = None if line is None else line.get(column)
    return None if found is None or not math.isfinite(found) else float(found)


def _count(view: View, line: Mapping[str, Any] | None, column: str) -> float | None:
    """n of a number: its own where the table has one for each."""
    own = _number(line, f"{column}_images")
    return _number(line, view.images) if own is None else own


def _interval(line: Mapping[str, Any] | None, column: str) -> tuple[float | None, float | None]:
    # A table of one number a line names its interval without the number.
    prefix = "" if line is not None and "low" in line else f"{column}_"
    return _number(line, f"{prefix}low"), _number(line, f"{prefix}high")


def _half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the mean, by Student's t."""
    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance / count)


def seed_columns(rows: Sequence[SeedRow]) -> dict[str, list[Any]]:
    """Rows as columns, for tracking and files."""
    return {name: [getattr(row, name) for row in rows] for name in SeedRow._fields}


def seed_page(rows: Sequence[SeedRow], *, seeds: Sequence[int], facts: Mapping[str, str]) -> str:
    """Everything as Markdown: a table a view.

    Args:
        rows: of `compare_seeds`.
        seeds: in the order of the rows' values.
        facts: of the runs.
    """
    lines = ["# The same results of several seeds", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [
        "",
        "Each number: the mean over seeds, its 95 % interval over seeds (Student's t: training, "
        "attacks and samples vary, the images do not), the seeds' values in order, from the least "
        "to the greatest end of the seeds' own 95 % intervals over images, and the paper's.",
    ]
    for title in dict.fromkeys(row.view for row in rows):
        of_view = [row for row in rows if row.view == title]
        view = next(each for each in VIEWS if each.title == title)
        header = [
            *(name.replace("_", " ") for name in view.keys),
            *("quantity", "n", "mean [over seeds]", ", ".join(f"seed {seed}" for seed in seeds)),
            *("over images", "paper"),
        ]
        lines += ["", f"## {title}", "", markdown_table(header, [_cells(row) for row in of_view])]
    return "\n".join(lines) + "\n"


def _cells(row: SeedRow) -> list[str]:
    def said(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{100 * value:.2f}" if row.unit == "%" else f"{value:.4g}"

    unit = f", {row.unit}" if row.unit else ""
    over_seeds = "" if row.low is None else f" [{said(row.low)}, {said(row.high)}]"
    over_images = (
        "" if row.images_low is None else f"[{said(row.images_low)}, {said(row.images_high)}]"
    )
    return [
        *row.key,
        f"{row.quantity.replace('_', ' ')}{unit}",
        "" if row.images is None else f"{row.images:,}",
        f"{said(row.mean)}{over_seeds}",
        ", ".join(said(value) for value in row.values),
        over_images,
        "" if row.paper is None else said(row.paper),
    ]
