"""Figures 4 and 5: the curves of a search, and what its parameter does to the parts of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cdvae_ray.config.search_space import SearchSpace
from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.layout import png_bytes
from cdvae_ray.evaluation.search_table import Trial

_MARKERS = "osD^v<>P*Xhd"


def search_picture(trials: Sequence[Trial], space: SearchSpace, *, caption: str) -> bytes:
    """Figure 4, a PNG: each metric against the parameter, with its interval.

    What the Pareto front is over is drawn solid, the rest dashed.

    Args:
        trials: finished ones are drawn.
        space: what was searched.
        caption: a line below the picture.

    Raises:
        DataError: no trial is finished.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    finished = sorted(
        (trial for trial in trials if trial.state == "finished"), key=lambda trial: trial.value
    )
    if not finished:
        raise DataError(
            "trials to draw", got="none finished", expected="at least one", remedy="see the reasons"
        )
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    every = dict.fromkeys(name for trial in finished for name in trial.metrics)
    names = sorted(every, key=lambda name: name not in space.metrics)
    for place, name in enumerate(names):
        # A number that could not be measured has no point.
        known = [trial for trial in finished if name in trial.metrics]
        values = [trial.value for trial in known]
        measured = [trial.metrics[name] for trial in known]
        means = [100 * each.value for each in measured]
        lows = [100 * (each.value if each.low is None else each.low) for each in measured]
        highs = [100 * (each.value if each.high is None else each.high) for each in measured]
        color = f"C{place % 10}"
        axis.fill_between(values, lows, highs, color=color, alpha=0.15, linewidth=0)
        axis.plot(
            values,
            means,
            color=color,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4,
            linewidth=1.4 if name in space.metrics else 0.8,
            linestyle="-" if name in space.metrics else "--",
            label=name.replace("_", " "),
        )
    if space.log:
        axis.set_xscale("log")
    axis.set_xlabel(space.parameter, fontsize=9)
    axis.set_ylabel("percent", fontsize=9)
    axis.set_ylim(-2, 102)
    axis.tick_params(labelsize=8)
    axis.grid(color="lightgrey", linewidth=0.5)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    figure.supxlabel(caption, fontsize=8)
    return png_bytes(figure)


def parts_by_value(
    models: Mapping[float, CDVAE], images: Tensor, *, parameter: str, caption: str
) -> bytes:
    """Figure 5, a PNG: x above, then G(x) and R(x) for each value of the parameter.

    Args:
        models: by value, in eval mode, on the CPU.
        images: uint8, (N, 3, S, S).
        parameter: its name.
        caption: a line below the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    floats = images.float() / 255
    rows: list[tuple[str, Tensor]] = [("$x$", floats)]
    for value, model in sorted(models.items()):
        with torch.inference_mode():
            parts = model.decompose(floats)
        rows.append((f"$G(x)$\n{parameter} = {value:g}", parts.class_redundant))
        rows.append(("$R(x)$", 0.5 + parts.class_essential))
    columns = len(images)
    figure = Figure(figsize=(1.0 * columns + 1.6, 1.04 * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (title, pictures) in enumerate(rows):
        for axis, picture in zip(axes[row], pictures, strict=True):
            axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        axes[row][0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    figure.supxlabel(f"R(x) is drawn as 0.5 + R(x). {caption}", fontsize=8)
    return png_bytes(figure)
