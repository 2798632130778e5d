"""The picture of an attack run: each attack's images and perturbations."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cdvae_ray.evaluation.layout import png_bytes
from cdvae_ray.storage.adversarial_set import AdversarialImages


def attack_picture(
    clean: Tensor,
    sets: Mapping[str, AdversarialImages],
    class_names: tuple[str, ...],
    *,
    caption: str,
) -> bytes:
    """A PNG with one column an image: x, then for each attack x' and its perturbation.

    Args:
        clean: uint8, (N, 3, S, S).
        sets: the first N rows or more of each attack, by its label.
        class_names: by label.
        caption: a line below the picture that says what was attacked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(clean)
    floats = clean.float() / 255
    rows: list[tuple[str, Tensor, list[tuple[str, str]]]] = []
    labels: list[str] = []
    for label, found in sets.items():
        images = found.images[:columns]
        delta = images - floats
        largest = float(delta.abs().amax())
        gain = 0.5 / largest if largest > 0 else 1.0
        titles = [
            (class_names[int(now)], "crimson" if int(now) != int(truth) else "black")
            for now, truth in zip(found.predictions[:columns], found.labels, strict=False)
        ]
        labels = [class_names[int(truth)] for truth in found.labels[:columns]]
        rows.append((f"$x'$\n{label}", images, titles))
        rows.append((f"$x'-x$\n({gain:.3g} fold)", 0.5 + gain * delta, []))
    rows.insert(0, ("$x$", floats, [(label, "black") for label in labels]))
    figure = Figure(figsize=(1.1 * columns + 1.4, 1.22 * len(rows) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (title, pictures, titles) in enumerate(rows):
        for column in range(columns):
            axis = axes[row][column]
            axis.imshow(pictures[column].clamp(0, 1).permute(1, 2, 0).numpy(), vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if titles:
                axis.set_title(titles[column][0], fontsize=8, color=titles[column][1], pad=2)
        axes[row][0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    figure.supxlabel(f"above each image: the answer, red where wrong. {caption}", fontsize=8)
    return png_bytes(figure)
