"""Fills docs/results/paper-scale.md, and the README's table of a GPU, from paper_scale.py's files.

python benchmarks/paper_scale.py combine --out OUT
python benchmarks/paper_scale_page.py [OUT]

Copies summary.json, combined.json and pictures.png of OUT beside the page, and fills it from them;
without OUT it fills it again from the copies.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from marks import fill

from cdvae_ray.evaluation.detection_table import SPACE_SYMBOLS
from cdvae_ray.evaluation.layout import markdown_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/results/paper-scale.md"
COPIES = {
    "summary.json": "paper-scale.json",
    "combined.json": "paper-scale-regressions.json",
    "pictures.png": "paper-scale.png",
}
COMMAND = "python benchmarks/paper_scale_page.py"
MAIN = "PGD-Linf"
OPERATIONS = {
    "convolutions": ("xmma", "conv", "implicit_gemm", "cutlass"),
    "batch normalisation": ("batch_norm",),
    "optimiser": ("adam", "multi_tensor", "optimizer"),
}
"""Kinds of kernels by words of their names. What the compiler fused (triton) is no convolution of
its own: its name says what it stands beside."""
RANGES = ("Optimizer.step#",)
"""How the names of ranges begin, which enclose kernels that are there too; in older records."""

Rows = list[dict[str, Any]]


def main() -> None:
    """Copies and fills."""
    if len(sys.argv) > 2:
        sys.exit("usage: python benchmarks/paper_scale_page.py [OUT]")
    for out in sys.argv[1:]:
        for file, copy in COPIES.items():
            shutil.copyfile(Path(out) / file, PAGE.parent / copy)
    summary = json.loads((PAGE.parent / COPIES["summary.json"]).read_text())
    regressions: Rows = json.loads((PAGE.parent / COPIES["combined.json"]).read_text())
    fill(PAGE, "tables", COMMAND, all_tables(summary, regressions))
    fill(ROOT / "README.md", "gpu", COMMAND, speed(stages_of(summary)["speed"]["results"]))


def all_tables(summary: dict[str, Any], regressions: Rows) -> str:
    """Markdown of all that summary.json and combined.json hold."""
    stages = stages_of(summary)
    parts = {
        "Speed of the training step": speed(stages["speed"]["results"]),
        "What was trained": trainings(stages),
        **tables(summary["rows"], regressions),
    }
    if "profile" in stages:
        parts["Where a step's time goes"] = profiles(stages["profile"]["results"]["forms"])
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts.items() if table)


def stages_of(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What each stage left, by its name."""
    return {stage["stage"]: stage for stage in summary["stages"]}


def speed(results: dict[str, Any]) -> str:
    """The forms of the step, measured in turn."""
    lines = [
        [
            name,
            form["precision"],
            f"{form['images_per_second']:,.0f} ({form['least']:,.0f} to {form['most']:,.0f})",
            _known(form["share_of_peak"], ".0%"),
            _known(form["times_plain_float32"], ".2f"),
            _known(form["times_plain_tf32"], ".2f"),
        ]
        for name, form in results["forms"].items()
    ]
    header = ["step", "precision", "images/s", "of the peak", "x float32", "x TF32"]
    peak = _known(results["peak_bfloat16_tflops"], ".0f")
    return (
        f"{markdown_table(header, lines)}\n\n{results['device']}, PyTorch {results['torch']}, "
        f"batch {results['batch']}, {results['gflop_per_image']:.1f} GFLOP an image; the peak is "
        f"measured: bfloat16 products of matrices, {peak} TFLOP/s."
    )


def profiles(forms: dict[str, Any]) -> str:
    """Milliseconds of a step by kind of kernel."""
    lines = []
    for name, form in forms.items():
        by_kind = dict.fromkeys([*OPERATIONS, "other"], 0.0)
        busy = form["busy_milliseconds"]
        for operation in form["operations"]:
            if operation["name"].startswith(RANGES):
                busy -= operation["milliseconds"]
            else:
                by_kind[_kind(operation["name"])] += operation["milliseconds"]
        by_kind["other"] += busy - sum(by_kind.values())
        lines.append(
            [
                name,
                f"{form['step_milliseconds']:.1f}",
                f"{busy:.1f}",
                *(f"{each:.1f}" for each in by_kind.values()),
            ]
        )
    table = markdown_table(["ms of a step", "whole", "device busy", *OPERATIONS, "other"], lines)
    return f"{table}\n\nBy kind: the forty longest kernels; what is shorter is among the other."


def _kind(name: str) -> str:
    lowered = name.lower()
    for kind, words in OPERATIONS.items():
        is_fused = kind == "convolutions" and lowered.startswith("triton_")
        if not is_fused and any(word in lowered for word in words):
            return kind
    return "other"


def trainings(stages: dict[str, Any]) -> str:
    """What each stage came to on training batches."""
    lines = []
    for name, stage in stages.items():
        if history := stage["results"].get("history"):
            last = history[-1]
            lines.append(
                [
                    name,
                    stage["reached"],
                    f"{stage['seconds']:.0f}",
                    f"{last['train_loss']:.3f}",
                    f"{last['train_accuracy']:.1%}",
                ]
            )
    header = ["network", "epochs", "seconds", "loss, last epoch", "right in training, last epoch"]
    return markdown_table(header, lines)


def tables(rows: Rows, regressions: Rows) -> dict[str, str]:
    """By title."""
    of = {table: [row for row in rows if row["table"] == table] for table in _names(rows)}
    return {
        "Reconstruction (section 4.1)": _lines(
            ["", "D(R(x)) right", "reconstruction accuracy", "KL, nats", "n"],
            (
                [
                    row["row"],
                    f"{row['class_essential_accuracy']:.1%}",
                    f"{row['reconstruction_accuracy']:.1%}",
                    f"{row['kl_nats']:.0f}",
                    f"{row['n']:,}",
                ]
                for row in of.get("4.1", [])
            ),
        ),
        f"Table 1, {MAIN} on D(x): mean ± standard deviation over images": _lines(
            ["", "cosine", "Frechet distance", "n"],
            (
                [
                    row["row"],
                    f"{row['cosine_mean']:.4f} ± {row['cosine_std']:.4f}",
                    f"{row['frechet_distance']:.3g}",
                    f"{row['n']:,}",
                ]
                for row in of.get("1", [])
            ),
        ),
        f"Table 2, {MAIN} on D(x), normalised units: mean ± standard deviation over images": _lines(
            ["", "L1", "L2", "L-infinity", "n"],
            (
                [
                    row["row"],
                    *(
                        f"{row[f'{norm}_mean']:.4g} ± {row[f'{norm}_std']:.2g}"
                        for norm in ("l1", "l2", "linf")
                    ),
                    f"{row['n']:,}",
                ]
                for row in of.get("2", [])
            ),
        ),
        "Table 3, top-1 and top-5 in percent": _lines(
            ["", "top-1", "top-5", "n"],
            (
                [row["row"], _share(row["top1"]), _share(row["top5"]), f"{row['n']:,}"]
                for row in of.get("3", [])
            ),
        ),
        "Table 4, strict protocol, successful attacks: AUROC in percent": _detection(regressions),
        "The same 2 x 2 without any attack seen by the detector": _detection(of.get("4", [])),
        "Table 6: accuracy in percent": _lines(
            ["attack", "made against", "answered by", "threat model", "right", "n"],
            (
                [
                    row["attack"],
                    row["attacked"],
                    row["answers"],
                    _threat(row),
                    _share(row["accuracy"]),
                    f"{row['n']:,}",
                ]
                for row in of.get("6", [])
            ),
        ),
    }


def _names(rows: Rows) -> dict[str, None]:
    return dict.fromkeys(row["table"] for row in rows)


def _threat(row: dict[str, Any]) -> str:
    if row["attack"] == "none":
        return "none"
    return "white-box" if row["is_white_box"] else "grey-box: it does not know what answers"


def _detection(rows: Rows) -> str:
    chosen = [row for row in rows if row["n"] and row["subset"] == "successful"]
    attacks = list(dict.fromkeys(row["attack"] for row in chosen))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in chosen:
        line = f"{row['method']} on {SPACE_SYMBOLS[row['space']]}", row["attacked"]
        paper = "" if row["paper_auroc"] is None else f" ({100 * row['paper_auroc']:.1f})"
        cells.setdefault(line, {})[row["attack"]] = f"{_share(row['auroc'])}{paper}"
    lines = ([*line, *(found.get(each, "") for each in attacks)] for line, found in cells.items())
    return _lines(["detector", "attacked", *attacks], lines)


def _known(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _share(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _lines(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; nothing where there are no lines."""
    found = list(lines)
    return markdown_table(header, found) if found else ""


if __name__ == "__main__":
    main()
