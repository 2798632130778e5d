"""The picture of several seeds: a point each, and the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.defense_table import CLEAN, WORST_OF_ALL
from cdvae_ray.evaluation.detection_table import SPACE_SYMBOLS
from cdvae_ray.evaluation.headlines import MAIN_ATTACK
from cdvae_ray.evaluation.layout import png_bytes
from cdvae_ray.evaluation.seed_tables import OBJECTIVES, SeedRow


def seed_picture(rows: Sequence[SeedRow], *, caption: str) -> bytes:
    """A PNG: detection by detector and attacked function, defences by threat model, and gamma.

    Args:
        rows: of `compare_seeds`.
        caption: a line below the picture.

    Raises:
        DataError: the reports hold none of the three.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = (_detection(rows), _defences(rows, "Table 6"), _defences(rows, "Table 7"), _gamma(rows))
    panels = [panel for panel in drawn if panel]
    if not panels:
        raise DataError(
            "results to draw",
            got="neither detection, nor defences, nor a search",
            expected="at least one of Tables 4 to 7 and Figure 4",
            remedy="reproduce one of them",
        )
    figure = Figure(figsize=(6.2 * len(panels), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axis)
        axis.tick_params(labelsize=7)
        axis.grid(color="lightgrey", linewidth=0.5)
        axis.set_axisbelow(True)
    figure.supxlabel(caption, fontsize=8)
    return png_bytes(figure)


def _detection(rows: Sequence[SeedRow]) -> Callable[[Any], None] | None:
    chosen = {
        f"{method}({SPACE_SYMBOLS.get(space, space)}); {attacked}": row
        for row in rows
        if "strict protocol, trained" in row.view and row.quantity == "auroc"
        for attacked, attack, method, space in [row.key]
        if attack == MAIN_ATTACK
    }
    title = f"AUROC, strict protocol, {MAIN_ATTACK} against:"
    return _points(chosen, title=title, chance=50.0) if chosen else None


def _defences(rows: Sequence[SeedRow], table: str) -> Callable[[Any], None] | None:
    chosen = {
        f"{defense}, {quantity}; {threat.partition(':')[0]}": row
        for row in rows
        if row.view.startswith(table)
        for threat, defense, quantity in [row.key]
        if quantity in (CLEAN, WORST_OF_ALL)
    }
    return _points(chosen, title=f"Accuracy of defences ({table})", chance=None) if chosen else None


def _points(
    chosen: dict[str, SeedRow], *, title: str, chance: float | None
) -> Callable[[Any], None]:
    """Draws a line a name: small points of the seeds, a tick at their mean."""

    def draw(axis: Any) -> None:
        for place, row in enumerate(chosen.values()):
            values = [100 * value for value in row.values if value is not None]
            axis.plot(values, [place] * len(values), "o", markersize=4, alpha=0.6, color="C0")
            axis.plot([100 * row.mean], [place], "|", markersize=14, color="black")
        if chance is not None:
            axis.axvline(chance, color="grey", linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(chosen)), list(chosen))
        axis.invert_yaxis()
        axis.set_xlim(-2, 102)
        axis.set_xlabel("percent", fontsize=8)
        axis.set_title(title, fontsize=9)

    return draw


def _gamma(rows: Sequence[SeedRow]) -> Callable[[Any], None] | None:
    chosen = [row for row in rows if row.view.startswith("Figure 4")]
    if not chosen:
        return None

    def draw(axis: Any) -> None:
        for place, name in enumerate(dict.fromkeys(row.quantity for row in chosen)):
            of_name = sorted(
                (row for row in chosen if row.quantity == name), key=lambda row: float(row.key[0])
            )
            gammas = [float(row.key[0]) for row in of_name]
            color = f"C{place}"
            axis.plot(
                gammas,
                [100 * row.mean for row in of_name],
                color=color,
                linewidth=1.2,
                label=OBJECTIVES[name],
            )
            for gamma, row in zip(gammas, of_name, strict=True):
                values = [100 * value for value in row.values if value is not None]
                axis.plot([gamma] * len(values), values, "o", markersize=3, color=color)
        axis.set_xscale("log")
        # A reconstruction further from the image than nothing at all has an accuracy below zero.
        axis.set_ylim(min(0.0, axis.get_ylim()[0]) - 2, 102)
        axis.set_xlabel("gamma", fontsize=8)
        axis.set_ylabel("percent", fontsize=8)
        axis.set_title("Objectives against gamma (Figure 4)", fontsize=9)
        axis.legend(fontsize=6, frameon=False)

    return draw
