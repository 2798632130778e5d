"""The picture of adversarial detection: ROC curves of detectors, and where their scores lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_metrics import auroc, roc_counts
from cdvae_ray.evaluation.detection_protocol import Detection, Mode
from cdvae_ray.evaluation.detection_table import SPACE_SYMBOLS
from cdvae_ray.evaluation.layout import png_bytes

LOWEST_FPR = 1e-3
"""Left end of the logarithmic axis of false positive rates."""
_COLORS = {"clean": "tab:blue", "noisy": "tab:green", "adversarial": "crimson"}
_LINE_STYLES: dict[Mode, str] = {"same_attack": "-", "unseen": "--", "attack_free": ":"}
_NUM_BINS = 60
_OUTSIDE = 0.002
"""Share of the scores at either end that the outermost bins take in, however far they are."""


def detection_picture(detections: Sequence[Detection], *, caption: str) -> bytes:
    """A PNG: ROC curves of all detectors, then for each one histograms of its scores.

    Adversarial images are the positives; clean and noisy ones together are the negatives.

    Args:
        detections: at least one, best of one attack.
        caption: a line below the picture that says what was attacked and how that was tested.

    Raises:
        DataError: there is none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not detections:
        raise DataError(
            "detections to draw", got="none", expected="at least one", remedy="pass some"
        )
    columns = 3
    rows = max(2, -(-len(detections) // columns))
    figure = Figure(figsize=(5.6 + 2.7 * columns, 2.2 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, columns + 2)
    _draw_roc(figure.add_subplot(grid[: max(2, rows), :2]), detections)
    for place, detection in enumerate(detections):
        row, column = divmod(place, columns)
        axis = figure.add_subplot(grid[row, 2 + column])
        _draw_histograms(axis, detection)
        if place == 0:
            axis.legend(
                fontsize=7,
                frameon=False,
                loc="upper center",
                ncols=3,
                columnspacing=0.8,
                handlelength=1.2,
                borderaxespad=0.2,
            )
    figure.supxlabel(caption, fontsize=8)
    return png_bytes(figure)


def _draw_roc(axis: Any, detections: Sequence[Detection]) -> None:
    # One colour for what looks at the same thing, however it was combined.
    subjects = list(dict.fromkeys(_subject(each) for each in detections))
    for detection in detections:
        counts = roc_counts(
            np.concatenate([detection.clean, detection.noisy]), detection.adversarial
        )
        tpr = counts.true_positives[0] / counts.positives[0]
        fpr = counts.false_positives[0] / counts.negatives[0]
        area = float(auroc(counts)[0])
        axis.step(
            fpr.clip(LOWEST_FPR / 10),  # a logarithmic axis has no 0
            tpr,
            where="post",
            linewidth=1.3,
            linestyle=_LINE_STYLES[detection.mode],
            color=f"C{subjects.index(_subject(detection)) % 10}",
            label=f"{_name(detection)}, AUROC {area:.4f}",
        )
    chance = np.geomspace(LOWEST_FPR, 1, 50)
    axis.plot(chance, chance, color="grey", linewidth=0.8, linestyle="--", label="chance")
    axis.axvline(0.05, color="grey", linewidth=0.6)
    axis.set_xscale("log")
    axis.set_xlim(LOWEST_FPR, 1)
    axis.set_ylim(0, 1.01)
    axis.set_xlabel("clean and noisy images flagged (vertical line: 5 %)", fontsize=8)
    axis.set_ylabel("adversarial images found", fontsize=8)
    axis.tick_params(labelsize=7)
    # Below the axes: wherever it lay inside, some curve would pass behind it.
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)


def _draw_histograms(axis: Any, detection: Detection) -> None:
    sets = {name: getattr(detection, name) for name in _COLORS}
    every = np.concatenate(list(sets.values()))
    # A few far scores would squeeze all others into one bin: they are drawn in the outer bins.
    low, high = np.quantile(every, [_OUTSIDE, 1 - _OUTSIDE])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    bins = np.linspace(low, high, _NUM_BINS + 1)
    for name, scores in sets.items():
        weights = np.full(len(scores), 1 / len(scores))
        axis.hist(
            scores.clip(low, high),
            bins=bins,
            weights=weights,
            histtype="stepfilled",
            alpha=0.35,
            color=_COLORS[name],
            edgecolor=_COLORS[name],
            label=name,
        )
    axis.set_ylim(0, 1.2 * axis.get_ylim()[1])  # room for the legend
    axis.set_title(_name(detection), fontsize=8)
    axis.set_yticks([])
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlabel("score", fontsize=7)
    axis.tick_params(labelsize=7)


def _subject(detection: Detection) -> str:
    return f"{detection.method}({SPACE_SYMBOLS[detection.space]}), {detection.attack}"


def _name(detection: Detection) -> str:
    name = _subject(detection)
    if detection.mode == "attack_free":
        return f"{name}, attack-free"
    return name if detection.mode == "same_attack" else f"{name}, trained on {detection.trained_on}"
