"""The picture of defences: accuracy with and without attack, a panel a threat model."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.defense_table import (
    MEAN_OF_ALL,
    DefenseBlock,
    DefenseNumber,
    defense_blocks,
)
from cdvae_ray.evaluation.layout import png_bytes

_MARKERS = "osD^vP"
"""One for each ten defences: light colours are told from dark ones more easily."""
_LINE_INCHES = 0.13
"""Height of a defence within a group."""
_PANEL_INCHES = 5.0
_CHARACTERS_PER_INCH = 12.0
"""Of the small type of titles, legend and caption."""


def defense_picture(numbers: Sequence[DefenseNumber], *, caption: str) -> bytes:
    """A PNG: a panel a threat model, a group a quantity, a dot with its interval a defence.

    The paper's numbers are open markers on the same lines.

    Args:
        numbers: of any number of defences.
        caption: a line below the picture that says what was evaluated.

    Raises:
        DataError: there is none, or two of one meaning.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = defense_blocks(numbers)
    if not blocks:
        raise DataError("numbers to draw", got="none", expected="at least one", remedy="pass some")
    defenses = {name: place for place, name in enumerate(dict.fromkeys(n.defense for n in numbers))}
    groups = max(len(_quantities(block)) for block in blocks)
    lines = max(len(block.lines) for block in blocks)
    width = 0.8 + _PANEL_INCHES * len(blocks)
    figure = Figure(
        figsize=(width, 1.6 + groups * (0.2 + _LINE_INCHES * lines)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(blocks), squeeze=False)[0]
    for axis, block in zip(axes, blocks, strict=True):
        _draw_block(axis, block, defenses)
    _draw_legend(figure, defenses, width, with_paper=any(n.paper is not None for n in numbers))
    figure.supxlabel(_wrapped(caption, width), fontsize=8)
    return png_bytes(figure)


def _draw_block(axis: Any, block: DefenseBlock, defenses: Mapping[str, int]) -> None:
    quantities = _quantities(block)
    # A group is as high as its lines and a gap, in units of a line.
    height = len(block.lines) + 0.2 / _LINE_INCHES
    for group, quantity in enumerate(quantities):
        top = group * height + (height - len(block.lines) + 1) / 2
        for place, line in enumerate(block.lines):
            if number := line.numbers.get(quantity):
                _draw_number(axis, number, top + place, defenses[line.defense])
        if group:
            axis.axhline(group * height, color="lightgrey", linewidth=0.6)
    axis.set_ylim(len(quantities) * height, 0)
    axis.set_yticks([(group + 0.5) * height for group in range(len(quantities))], quantities)
    axis.set_xlim(-2, 102)
    axis.set_xticks(range(0, 101, 20))
    axis.tick_params(labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="lightgrey", linewidth=0.5)
    axis.set_axisbelow(True)
    counts = sorted({line.images for line in block.lines})
    of_images = f"n = {', '.join(f'{count:,}' for count in counts)}"
    axis.set_xlabel(f"right, percent of images ({of_images}; 95 % intervals)", fontsize=8)
    axis.set_title(_wrapped(block.threat_model, _PANEL_INCHES), fontsize=9)


def _draw_number(axis: Any, number: DefenseNumber, place: float, defense: int) -> None:
    color, marker = _look(defense)
    axis.plot(
        [100 * number.low, 100 * number.high], [place, place], color=color, linewidth=1.2, zorder=2
    )
    axis.plot(100 * number.accuracy, place, marker=marker, color=color, markersize=4, zorder=3)
    if number.paper is not None:
        axis.plot(
            100 * number.paper,
            place,
            marker=marker,
            markersize=5,
            markerfacecolor="none",
            markeredgecolor=color,
            clip_on=False,
            zorder=4,
        )


def _draw_legend(
    figure: Any, defenses: Mapping[str, int], width: float, *, with_paper: bool
) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name, place in defenses.items():
        color, marker = _look(place)
        handles.append(
            Line2D([], [], color=color, marker=marker, markersize=4, linewidth=1.2, label=name)
        )
    if with_paper:
        handles.append(
            Line2D(
                [],
                [],
                color="grey",
                marker="o",
                markersize=5,
                markerfacecolor="none",
                linewidth=0,
                label="the paper's number",
            )
        )
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(width * _CHARACTERS_PER_INCH // (longest + 8)))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(columns, len(handles)),
        fontsize=8,
        frameon=False,
    )


def _look(place: int) -> tuple[Any, str]:
    """Colour and marker of a defence: ten dark colours, then ten light ones."""
    from matplotlib import colormaps

    shade = 2 * (place % 10) + place // 10 % 2
    return colormaps["tab20"](shade), _MARKERS[place // 10 % len(_MARKERS)]


def _quantities(block: DefenseBlock) -> list[str]:
    return [each for each in block.quantities if each != MEAN_OF_ALL]


def _wrapped(text: str, inches: float) -> str:
    return "\n".join(textwrap.wrap(text, max(20, int(inches * _CHARACTERS_PER_INCH))))
