"""The picture of defences: that it is drawn, of what, and that no two labels overlap."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.defense_picture import defense_picture
from cdvae_ray.evaluation.defense_table import NO_ATTACK, PAPER_TABLE_7, DefenseNumber

TRANSFER = "transfer: made against D(x), which knows nothing of the defence"
WHITE_BOX = "white-box: a whole defence, through all of its parts"
ATTACKS = ("AutoAttack-Linf", "AutoAttack-L2", "JPEG", "ReColorAdv", "StAdv")


def number(
    defense: str, threat_model: str, quantity: str, accuracy: float, paper: float | None = None
) -> DefenseNumber:
    low, high = max(0.0, accuracy - 0.05), min(1.0, accuracy + 0.05)
    return DefenseNumber(
        defense, threat_model, quantity, 500, accuracy, low, high, paper, "settings", "digest"
    )


def some_numbers(
    defenses: tuple[str, ...] = ("HGD", "Ours"),
    threat_models: tuple[str, ...] = (TRANSFER, WHITE_BOX),
    *,
    less: float = 0.0,
) -> list[DefenseNumber]:
    found = []
    for place, name in enumerate(defenses):
        found.append(number(name, NO_ATTACK, "clean", 0.9, 0.87))
        for threat_model in threat_models:
            for row, quantity in enumerate(
                (*ATTACKS, "mean of unseen", "mean of all", "worst of all")
            ):
                accuracy = 0.02 * (place + 3 * row) % 0.7 + 0.3 - less
                paper = accuracy / 2 if quantity in ATTACKS else None
                found.append(number(name, threat_model, quantity, accuracy, paper))
    return found


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def drawn(numbers: list[DefenseNumber], monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure behind the picture."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(self: Figure, *args: Any, **settings: Any) -> None:
        figures.append(self)
        save(self, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", kept)
    defense_picture(numbers, caption="defense-cifar10-0123456789ab")
    (figure,) = figures
    return figure


def test_picture_is_a_png_that_depends_on_the_numbers_alone() -> None:
    first = defense_picture(some_numbers(), caption="report")
    assert first == defense_picture(some_numbers(), caption="report")
    image = pixels(first)
    assert image.shape[1] > 1000 and len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    other = pixels(defense_picture(some_numbers(less=0.2), caption="report"))
    assert other.shape == image.shape
    assert (np.abs(other - image).max(axis=2) > 60).mean() > 0.001


def test_each_threat_model_has_a_panel_and_each_number_a_dot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figure = drawn([*some_numbers(), number("Normal", NO_ATTACK, "clean", 0.95)], monkeypatch)
    titles = [" ".join(axis.get_title().split()) for axis in figure.axes]
    assert titles == [TRANSFER, WHITE_BOX, NO_ATTACK]
    for axis, groups, lines in zip(figure.axes, (8, 8, 1), (2, 2, 1), strict=True):
        names = [label.get_text() for label in axis.get_yticklabels()]
        expected = ["clean", *ATTACKS, "mean of unseen", "worst of all"][:groups]
        assert names == expected
        dots = [line for line in axis.get_lines() if line.get_marker() not in ("None", "", None)]
        full = [line for line in dots if line.get_markerfacecolor() != "none"]
        assert len(full) == groups * lines
        # The paper's: of clean images and of attacks.
        assert len(dots) - len(full) == (6 * lines if groups > 1 else 0)
        heights = [float(np.asarray(line.get_ydata())[0]) for line in full]
        assert len(set(heights)) == len(full), "no dot lies on another"
    clean = [
        float(np.asarray(line.get_xdata())[0])
        for line in figure.axes[0].get_lines()
        if line.get_marker() == "o" and line.get_markerfacecolor() != "none"
    ]
    assert clean[0] == 90.0


@pytest.mark.parametrize(
    ("defenses", "threat_models"),
    [
        (("Ours",), (WHITE_BOX,)),
        (("HGD", "Ours"), (TRANSFER, WHITE_BOX)),
        (tuple(PAPER_TABLE_7["cifar10"]), (WHITE_BOX,)),
        (tuple(PAPER_TABLE_7["cifar10"]), (TRANSFER, WHITE_BOX)),
        (tuple(f"a defence of number {place}" for place in range(25)), (WHITE_BOX,)),
    ],
)
def test_no_two_labels_overlap(
    defenses: tuple[str, ...], threat_models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = drawn(some_numbers(defenses, threat_models), monkeypatch)
    figure.set_dpi(120)  # as saved
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    texts += [figure._supxlabel]  # type: ignore[attr-defined]
    for axis in figure.axes:
        texts += [axis.title, axis.xaxis.label, *axis.get_yticklabels(), *axis.get_xticklabels()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    for (first, box), (second, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), f"{first} and {second}"
    width, height = figure.canvas.get_width_height()
    for name, box in boxes:
        assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height, name
    looks = [
        (line.get_color(), line.get_marker()) for legend in figure.legends for line in
        legend.get_lines()
    ]  # fmt: skip
    assert len(set(looks)) == len(defenses) + 1  # and the paper's


def test_picture_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="numbers to draw"):
        defense_picture([], caption="")
