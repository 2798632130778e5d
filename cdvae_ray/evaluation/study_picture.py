"""Figures 2 and 3, and how the parts of a perturbation grow with its radius."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.evaluation.correlation import LatentCorrelation
from cdvae_ray.evaluation.layout import png_bytes
from cdvae_ray.evaluation.study_table import NormRow
from cdvae_ray.training.frozen_cdvae import latent_noise


def parts_picture(
    model: CDVAE,
    clean: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    answers: tuple[Tensor, Tensor],
    *,
    caption: str,
    seed: int = 0,
) -> bytes:
    """Figure 2, a PNG: a column an image; x, G, R, the same of x', and the three differences.

    R is drawn around mid-grey. All differences share one gain, so that they compare.

    Args:
        model: in eval mode, on the CPU.
        clean: x, float, (N, 3, S, S), in [0, 1].
        adversarial: x', likewise.
        labels: int64, (N,).
        answers: of the attacked function to x and to x', (N,) each.
        caption: a line below the picture that says what was attacked.
        seed: keys the latent noise of a CD-VAE that samples; x and x' share it, as in the tables.
    """
    ids = torch.arange(len(clean))
    with torch.inference_mode():
        noise = latent_noise(model, ids, purpose="analyze.latent", seed=seed, epoch=0)
        first, second = (model(images, noise) for images in (clean, adversarial))
        redundant, redundant_attacked = (
            output.reconstruction * model.pixel_std + model.pixel_mean for output in (first, second)
        )
    essential, essential_attacked = clean - redundant, adversarial - redundant_attacked
    differences = {
        "$\\delta$": clean - adversarial,
        "$\\delta_G$": redundant - redundant_attacked,
        "$\\delta_R$": essential - essential_attacked,
    }
    largest = max(float(each.abs().amax()) for each in differences.values())
    gain = 0.5 / largest if largest > 0 else 1.0
    rows = {
        "$x$": clean,
        "$G(x)$": redundant,
        "$R(x)$": 0.5 + essential,
        "$x'$": adversarial,
        "$G(x')$": redundant_attacked,
        "$R(x')$": 0.5 + essential_attacked,
        **{f"{name}\n({gain:.3g} fold)": 0.5 + gain * each for name, each in differences.items()},
    }
    told = {
        "$x$": answers[0],
        "$R(x)$": first.logits.argmax(dim=1),
        "$x'$": answers[1],
        "$R(x')$": second.logits.argmax(dim=1),
    }
    figure, axes = _grid(len(rows), len(clean))
    for row, (title, pictures) in enumerate(rows.items()):
        for column, picture in enumerate(pictures):
            axis = axes[row][column]
            axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), vmin=0, vmax=1)
            if title in told:
                answer, truth = int(told[title][column]), int(labels[column])
                axis.set_title(
                    model.class_names[answer],
                    fontsize=8,
                    color="black" if answer == truth else "crimson",
                    pad=2,
                )
        axes[row][0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=10)
    note = "above x, x': what the attacked function answers; above R: D(R(.)); red where wrong."
    figure.supxlabel(_wrapped(f"{note} {caption}", figure), fontsize=8)
    return png_bytes(figure)


def latent_picture(correlations: Mapping[str, LatentCorrelation], *, caption: str) -> bytes:
    """Figure 3, a PNG: a panel an attack; the histogram of r over latent dimensions.

    All panels share the axis of r, which begins at or below the smallest r of all.

    Args:
        correlations: by attack, at least one.
        caption: a line below the picture that says what was attacked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(correlations))
    rows = -(-len(correlations) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(correlations) :]:
        axis.set_axis_off()
    smallest = min(float(each.defined.min()) for each in correlations.values())
    low = max(-1.0, np.floor(10 * smallest) / 10 - 0.1)
    for axis, (attack, each) in zip(axes, correlations.items(), strict=False):
        counts = each.histogram(low)
        edges = np.linspace(low, 1, len(counts) + 1)
        axis.stairs(counts, edges, fill=True, color="tab:blue")
        axis.axvline(float(np.median(each.defined)), color="black", linewidth=1)
        axis.set_xlim(low, 1)
        axis.set_title(f"{attack}: median r = {np.median(each.defined):.3f}", fontsize=9)
        axis.set_xlabel(
            f"r of z and z', {len(each.defined):,} dimensions, n = {each.images:,}; "
            f"p < 0.05 / {len(each.defined):,} in {100 * each.significant_share:.1f} %",
            fontsize=7,
        )
        axis.set_ylabel("dimensions", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.supxlabel(_wrapped(caption, figure), fontsize=8)
    return png_bytes(figure)


def radius_picture(norms: Sequence[NormRow], *, measure: str, caption: str) -> bytes:
    """A PNG: L2 of delta, delta_G and delta_R by the attack's radius.

    Args:
        norms: of one attack at several radii.
        measure: what the radius is measured in.
        caption: a line below the picture that says what was attacked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    looks = {"delta": ("black", "o"), "delta_G": ("tab:green", "s"), "delta_R": ("tab:red", "D")}
    for part, (color, marker) in looks.items():
        rows = sorted(
            (row for row in norms if row.part == part and row.epsilon is not None),
            key=lambda row: row.epsilon or 0.0,
        )
        radii = [row.epsilon or 0.0 for row in rows]
        means = np.array([row.l2 for row in rows])
        stds = np.array([row.l2_std for row in rows])
        axis.fill_between(radii, means - stds, means + stds, color=color, alpha=0.15, linewidth=0)
        axis.plot(radii, means, color=color, marker=marker, markersize=4, label=_math(part))
    axis.set_xlabel(f"epsilon ({measure})", fontsize=8)
    axis.set_ylabel(f"L2, {norms[0].units} units", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    axis.legend(frameon=False, fontsize=9)
    figure.supxlabel(_wrapped(f"{caption} Band: deviation between images.", figure), fontsize=8)
    return png_bytes(figure)


def _math(part: str) -> str:
    return f"$\\{part}$"


def _grid(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * columns + 1.3, 1.18 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def _wrapped(text: str, figure: Any) -> str:
    return "\n".join(textwrap.wrap(text, max(30, int(12 * figure.get_figwidth()))))
