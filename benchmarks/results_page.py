"""Fills the tables of docs/results/README.md and of the README from results of several seeds.

python jobs/compare_seeds.py --reports ... --storage <folder>
python benchmarks/results_page.py three-seeds=<folder>/seeds/report-... [NAME=REPORT ...]

Copies tables, page and picture of each report to docs/results under its name (three-seeds...), and
writes between the marks of both pages what all reports copied so far say; without arguments it
writes again. A cell is the mean over seeds +- half its 95 % interval over seeds; in parentheses the
paper's number where it means the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from marks import fill

from cdvae_ray.evaluation.defense_table import CLEAN, WORST_OF_ALL
from cdvae_ray.evaluation.detection_table import SPACE_SYMBOLS
from cdvae_ray.evaluation.layout import markdown_table
from cdvae_ray.evaluation.seed_tables import OBJECTIVES, SeedRow
from cdvae_ray.runtime.compare_seeds import REPORT_KIND
from cdvae_ray.storage.artifact import read_artifact
from cdvae_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
COMMAND = "python benchmarks/results_page.py"
NAME = "three-seeds"
COPIED = ("seeds.json", "report.md", "seeds.png")
IMAGES = """**The images are CIFAR-10 re-encoded as JPEG, not bit-identical to CIFAR-10, and the
networks far smaller than the paper's**: its numbers are for orientation ([more](README.md))."""
MAIN = "PGD-Linf"


class Pivot(NamedTuple):
    """A table of one quantity: which lines, which columns."""

    title: str
    view: str
    """How the title of the view begins."""
    quantity: str
    of: Callable[[tuple[str, ...]], tuple[str, str] | None]
    """A key's line and column; None leaves it out."""
    corner: str = ""


def _detectors(key: tuple[str, ...]) -> tuple[str, str] | None:
    attacked, attack, method, space = key
    if attack != MAIN or space not in SPACE_SYMBOLS:
        return None
    return f"{method} on {SPACE_SYMBOLS[space]}", f"attacks on {attacked}"


def _paper_pairs(key: tuple[str, ...]) -> tuple[str, str] | None:
    attacked, attack, method, space = key
    pairs = {"images": "D(x)", "class_essential": "D(R(x))"}
    if space not in pairs or not attacked.startswith(pairs[space]):
        return None
    return f"{method} on {SPACE_SYMBOLS[space]}, attacked: {pairs[space]}", attack


def _evasion(key: tuple[str, ...]) -> tuple[str, str] | None:
    method, space, attack, rate, threat = key
    if attack not in (MAIN, "best of these"):
        return None
    who = "does not know it" if "unaware" in threat else "knows it"
    return f"{method} on {SPACE_SYMBOLS.get(space, space)}", f"{who}, at {float(rate):.0%} FPR"


def _defences(threat: str) -> Callable[[tuple[str, ...]], tuple[str, str] | None]:
    """Of the attacks of one threat model, beside the accuracy without any."""

    def of(key: tuple[str, ...]) -> tuple[str, str] | None:
        made, defense, quantity = key
        return (defense, quantity) if quantity == CLEAN or made.startswith(threat) else None

    return of


PIVOTS = (
    Pivot(
        "Table 1, cosine (normalised units)",
        "Table 1",
        "cosine",
        lambda key: (key[1], key[0]),
        "compared",
    ),
    Pivot(
        "Table 1, Frechet distance", "Table 1", "frechet", lambda key: (key[1], key[0]), "compared"
    ),
    Pivot("Table 2, L2", "Table 2", "l2", lambda key: (f"{key[1]} ({key[2]})", key[0]), "of"),
    Pivot(
        "Table 3, top-1 in percent",
        "Table 3",
        "top1",
        lambda key: (key[0], f"tested on {key[1]}"),
        "trained on",
    ),
    Pivot(
        "Table 4 as the paper pairs it, strict protocol: AUROC in percent",
        "Table 4 or 5, strict protocol, trained",
        "auroc",
        _paper_pairs,
        "detector",
    ),
    Pivot(
        "Table 4 as the paper pairs it, strict protocol: TNR at 95 % TPR in percent",
        "Table 4 or 5, strict protocol, trained",
        "tnr_at_95_tpr",
        _paper_pairs,
        "detector",
    ),
    Pivot(
        "Table 4 as the paper pairs it, reference protocol: AUROC in percent",
        "Table 4 or 5, reference protocol",
        "auroc",
        _paper_pairs,
        "detector",
    ),
    Pivot(
        f"The 2 x 2 of Table 4, {MAIN}, strict protocol: AUROC in percent",
        "Table 4 or 5, strict protocol, trained",
        "auroc",
        _detectors,
        "detector",
    ),
    Pivot(
        f"The 2 x 2 of Table 4, {MAIN}, no attack seen by the detector: AUROC in percent",
        "Table 4 or 5, strict protocol, no attack",
        "auroc",
        _detectors,
        "detector",
    ),
    Pivot(
        f"The 2 x 2 of Table 4, {MAIN}, reference protocol: AUROC in percent",
        "Table 4 or 5, reference protocol",
        "auroc",
        _detectors,
        "detector",
    ),
    Pivot(
        "Wrong class and passed by the detector, in percent, by what the attacker knows",
        "Table 4 or 5, who knows",
        "success",
        _evasion,
        "detector",
    ),
    Pivot(
        "Table 6, attacks made on D(x), which know nothing of the defence: accuracy in percent",
        "Table 6",
        "accuracy",
        _defences("transfer"),
        "defence",
    ),
    Pivot(
        "Table 6, white-box attacks on the whole defence: accuracy in percent",
        "Table 6",
        "accuracy",
        _defences("white-box"),
        "defence",
    ),
    Pivot(
        "Table 7, white-box attacks on the whole defence: accuracy in percent",
        "Table 7",
        "accuracy",
        _defences("white-box"),
        "defence",
    ),
)


def main() -> None:
    """Copies the reports and fills both pages."""
    for argument in sys.argv[1:]:
        name, _, report = argument.partition("=")
        if not (name.startswith(NAME) and report):
            sys.exit(f"got {argument}, expected NAME=REPORT with a name that begins with {NAME}")
        copy_report(report, name)
    rows = committed_rows(RESULTS)
    fill(RESULTS / "README.md", "tables", COMMAND, all_tables(rows))
    fill(ROOT / "README.md", "front", COMMAND, front_table(rows))


def copy_report(report: str, name: str) -> None:
    """Tables, page and picture of a report, for the results' folder."""
    root, stored = Store.at(report).parent()
    artifact = read_artifact(root, stored, kind=REPORT_KIND)
    for file in COPIED:
        (RESULTS / f"{name}{Path(file).suffix}").write_bytes(artifact.files[file])
    page = RESULTS / f"{name}.md"
    page.write_text(say_which_images(page.read_text()))


def say_which_images(page: str) -> str:
    """A report's page with what its settings do not tell of the images, below its title."""
    title, _, rest = page.partition("\n")
    return f"{title}\n\n{IMAGES}\n{rest}"


def committed_rows(folder: Path) -> list[SeedRow]:
    """Rows of every report that was copied there; each must have tables of its own."""
    rows: list[SeedRow] = []
    for path in sorted(folder.glob(f"{NAME}*.json"), key=lambda each: each.stem):
        found = read_rows(path.read_bytes())
        if twice := {row.view for row in rows} & {row.view for row in found}:
            sys.exit(f"{path}: expected tables that no other report has, got {min(twice)}")
        rows += found
    return rows


def read_rows(content: bytes) -> list[SeedRow]:
    """Rows of a stored table."""
    columns = json.loads(content)
    columns |= {name: [tuple(each) for each in columns[name]] for name in ("key", "values")}
    lines = zip(*(columns[name] for name in SeedRow._fields), strict=True)
    return [SeedRow(*line) for line in lines]


def all_tables(rows: list[SeedRow]) -> str:
    """Every pivot, and the search's."""
    parts = []
    for each in PIVOTS:
        chosen = [
            row for row in rows if row.view.startswith(each.view) and row.quantity == each.quantity
        ]
        if text := pivot(each, chosen):
            parts.append(f"### {each.title}\n\n{text}")
    searched = [row for row in rows if row.view.startswith("Figure 4")]
    if searched:
        names = dict.fromkeys(row.quantity for row in searched)
        gammas = Pivot("", "Figure 4", "", lambda key: (key[0], key[1]), "gamma")
        relabelled = [row._replace(key=(row.key[0], OBJECTIVES[row.quantity])) for row in searched]
        parts.append(
            f"### Figure 4, in percent ({len(names)} objectives)\n\n{pivot(gammas, relabelled)}"
        )
    return "\n\n".join(parts)


def pivot(table: Pivot, rows: Iterable[SeedRow]) -> str:
    """A Markdown table; empty where nothing belongs to it."""
    cells: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    counts: set[int] = set()
    for row in rows:
        place = table.of(row.key)
        if place is None:
            continue
        line, column = place
        columns[column] = None
        cells.setdefault(line, {})[column] = cell(row)
        if row.images is not None:
            counts.add(row.images)
    if not cells:
        return ""
    lines = [[name, *(found.get(each, "") for each in columns)] for name, found in cells.items()]
    n = f"{min(counts):,}" + (f" to {max(counts):,}" if len(counts) > 1 else "")
    least = f"n, of each number in the seed that had the fewest images: {n}."
    return f"{markdown_table([table.corner, *columns], lines)}\n\n{least}"


def cell(row: SeedRow) -> str:
    """Mean +- half the interval over seeds, and the paper's."""

    def said(value: float, digits: int) -> str:
        return f"{100 * value:.1f}" if row.unit == "%" else f"{value:.{digits}g}"

    # Rounding alone is no spread.
    width = 0.0 if row.high is None else row.high - row.mean
    half = "" if row.high is None else f" ± {said(width if width > 1e-9 else 0.0, 2)}"
    paper = "" if row.paper is None else f" ({said(row.paper, 4)})"
    return f"{said(row.mean, 4)}{half}{paper}"


def front_table(rows: list[SeedRow]) -> str:
    """The README's few lines, by rule: the main attack, the strict protocol, the worst case."""
    lines = []

    def add(what: str, threat: str, row: SeedRow) -> None:
        lines.append(
            [
                what,
                threat,
                cell(row._replace(paper=None)),
                "" if row.paper is None else cell(row).rpartition("(")[2].rstrip(")"),
                "" if row.images is None else f"{row.images:,}",
            ]
        )

    for row in rows:
        if row.view.startswith("Table 3") and row.quantity == "top1" and row.key[0] == row.key[1]:
            add(f"accuracy of a classifier trained on {row.key[0]}", "none", row)
    for row in rows:
        if (
            row.view.startswith("Table 4 or 5, strict protocol, trained")
            and row.quantity == "auroc"
            and row.key[1] == MAIN
            and row.key[2] in ("KD", "MD")
            and row.key[3] in ("images", "class_essential")
        ):
            add(
                f"AUROC of {row.key[2]} on {SPACE_SYMBOLS[row.key[3]]}",
                f"{MAIN} on {row.key[0]}, which knows no detector",
                row,
            )
    for row in rows:
        if (
            row.view.startswith("Table 4 or 5, who knows")
            and row.key[2:4] == ("best of these", "0.05")
            and row.key[0] in ("KD", "MD")
            and row.key[1] == "class_essential"
        ):
            add(
                f"evaded: wrong class and passed by {row.key[0]} on R(x) at 5 % FPR",
                "white-box on D(R(x)) and on the detector",
                row,
            )
    for row in rows:
        if (
            row.view.startswith("Table 6")
            and row.key[2] in (CLEAN, MAIN, WORST_OF_ALL)
            and row.key[1] in ("Normal", "Ours")
        ):
            add(f"accuracy of {row.key[1]}, {row.key[2]}", row.key[0], row)
    for row in rows:
        if (
            row.view.startswith("Table 7")
            and row.key[2] in (CLEAN, WORST_OF_ALL)
            and row.key[1] in ("AT PGD-Linf", "Ours-Linf")
        ):
            add(f"accuracy of {row.key[1]} (Table 7), {row.key[2]}", row.key[0], row)
    header = ["quantity", "threat model", "ours, percent", "paper", "n, least"]
    return markdown_table(header, lines)


if __name__ == "__main__":
    main()
