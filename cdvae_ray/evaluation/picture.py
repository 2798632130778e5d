"""The picture of a decomposition: rows x, G(x), R(x)."""

from __future__ import annotations

import torch
from torch import Tensor

from cdvae_ray.core.cdvae import CDVAE
from cdvae_ray.evaluation.layout import png_bytes


def decomposition_picture(model: CDVAE, images: Tensor, labels: Tensor, *, caption: str) -> bytes:
    """A PNG with one column an image: x, G(x), and R(x) drawn around mid-grey.

    Args:
        model: in eval mode, on the CPU.
        images: uint8, (N, 3, S, S).
        labels: int64, (N,).
        caption: a line below the picture that says what model this is.
    """
    # Only a person's jobs draw: the agg canvas needs no display and touches no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with torch.inference_mode():
        floats = images.float() / 255
        parts = model.decompose(floats)
    rows = (
        ("$x$", floats),
        ("$G(x)$\nredundant", parts.class_redundant),
        ("$R(x)$\nessential", 0.5 + parts.class_essential),
    )
    columns = len(images)
    figure = Figure(figsize=(1.15 * columns + 1.1, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (title, pictures) in enumerate(rows):
        for column in range(columns):
            axis = axes[row][column]
            axis.imshow(pictures[column].clamp(0, 1).permute(1, 2, 0).numpy(), vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        axes[row][0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=11)
    predicted = parts.logits.argmax(dim=1)
    for column in range(columns):
        truth = model.class_names[int(labels[column])]
        guess = model.class_names[int(predicted[column])]
        axes[0][column].set_title(truth, fontsize=9)
        axes[-1][column].set_xlabel(
            guess, fontsize=9, color="black" if guess == truth else "crimson"
        )
    figure.supxlabel(
        f"above: class, below: D(R(x)); R(x) is drawn as 0.5 + R(x). {caption}", fontsize=8
    )
    return png_bytes(figure, dpi=130)
