"""Tables 1, 2 and 3 and Figure 3 as rows: ours with intervals, the paper's beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from cdvae_ray.config.classifier import INPUT_KINDS, InputKind
from cdvae_ray.evaluation.correlation import LatentCorrelation
from cdvae_ray.evaluation.detection_table import SPACE_SYMBOLS
from cdvae_ray.evaluation.intervals import NORMAL_975, Interval, wilson
from cdvae_ray.evaluation.layout import aligned_table, markdown_table
from cdvae_ray.evaluation.study_columns import NORMS, PARTS, Norm
from cdvae_ray.evaluation.study_statistics import StudySums, frechet_pair
from cdvae_ray.storage.row_set import ImageRows

PaperDataset = Literal["none", "cifar10", "restricted-imagenet"]

# --- the paper's numbers ------------------------------------------------------------------------
# Yang et al., "Class-Disentanglement and Applications in Adversarial Detection and Defense"
# (NeurIPS 2021). Tables 1 and 2 are of ImageNet alone.

_PAIRS = (("G(x)", "G(x')"), ("R(x)", "R(x')"))
_PAPER_SIMILARITY: dict[str, dict[str, tuple[float, float, float]]] = {
    # Table 1: mean and deviation of the cosine, Frechet inception distance.
    "restricted-imagenet": {"G(x)": (0.9997, 0.0003, 0.90), "R(x)": (0.9460, 0.0260, 22.31)}
}
_PAPER_NORMS: dict[str, dict[str, tuple[float, ...]]] = {
    # Table 2: mean and deviation of L1 / 1000, L2, L-infinity.
    "restricted-imagenet": {
        "x": (142.83, 37.02, 427.99, 92.59, 2.49, 0.20),
        "G(x)": (133.68, 37.07, 397.77, 92.14, 2.08, 0.11),
        "R(x)": (36.76, 11.75, 127.95, 37.27, 2.45, 0.46),
        "x'": (142.74, 36.57, 427.91, 91.19, 2.53, 0.18),
        "G(x')": (133.52, 36.96, 397.26, 91.85, 2.08, 0.11),
        "R(x')": (38.13, 11.06, 131.20, 35.37, 2.46, 0.45),
        "delta": (13.65, 0.88, 39.09, 1.40, 0.14, 0.00),
        "delta_G": (4.15, 0.65, 16.56, 2.47, 0.39, 0.17),
        "delta_R": (13.78, 0.92, 40.97, 1.87, 0.48, 0.16),
    }
}
_PAPER_CROSS: dict[str, dict[InputKind, dict[InputKind, tuple[float, float]]]] = {
    # Table 3: top-1 and top-5, by what was trained on, then by what was tested on. Its header
    # leaves open which is which; so read, it says what its text says.
    "cifar10": {
        "images": {
            "images": (96.01, 99.84),
            "class_essential": (92.68, 99.65),
            "class_redundant": (18.86, 67.93),
        },
        "class_essential": {
            "images": (95.81, 99.81),
            "class_essential": (96.20, 99.82),
            "class_redundant": (18.12, 66.30),
        },
        "class_redundant": {
            "images": (51.84, 86.52),
            "class_essential": (25.67, 68.98),
            "class_redundant": (75.25, 97.39),
        },
    },
    "restricted-imagenet": {
        "images": {
            "images": (82.53, 96.88),
            "class_essential": (11.17, 25.61),
            "class_redundant": (65.26, 88.94),
        },
        "class_essential": {
            "images": (63.33, 82.14),
            "class_essential": (82.14, 96.47),
            "class_redundant": (5.36, 12.01),
        },
        "class_redundant": {
            "images": (44.46, 69.13),
            "class_essential": (1.71, 5.02),
            "class_redundant": (74.08, 93.37),
        },
    },
}


# --- rows ---------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """What stands beside x: x' of an attack, or noise."""

    label: str
    epsilon: float | None
    """Radius of the attack in its own measure; None without one."""


class AttackedRow(NamedTuple):
    """What the attack did: the ground of all other rows of it."""

    attack: str
    epsilon: float | None
    attacked: str
    images: int
    accuracy: float
    """Of the attacked function on x."""
    accuracy_adversarial: float
    """On x'."""
    essential_accuracy: float
    """Of D(R(x))."""
    essential_accuracy_adversarial: float


class SimilarityRow(NamedTuple):
    """A row of Table 1."""

    attack: str
    epsilon: float | None
    compared: str
    images: int
    cosine: float
    cosine_std: float
    """Between images."""
    cosine_low: float
    """95 % interval of the mean."""
    cosine_high: float
    frechet: float
    frechet_null: float | None
    features: str
    """Whose features the distance is of."""
    paper_cosine: float | None
    paper_cosine_std: float | None
    paper_frechet: float | None


class NormRow(NamedTuple):
    """A row of Table 2: mean over images and deviation between them, by norm."""

    attack: str
    epsilon: float | None
    part: str
    images: int
    units: str
    l1: float
    l1_std: float
    l2: float
    l2_std: float
    linf: float
    linf_std: float
    paper_l1: float | None
    paper_l1_std: float | None
    paper_l2: float | None
    paper_l2_std: float | None
    paper_linf: float | None
    paper_linf_std: float | None


class LatentRow(NamedTuple):
    """Figure 3 in numbers: Pearson's r of z and z' over the latent dimensions."""

    attack: str
    epsilon: float | None
    images: int
    dimensions: int
    constant_dimensions: int
    smallest: float
    five_percent: float
    median: float
    largest: float
    significant_share: float
    """Of the dimensions that vary, r above chance at 5 % over all of them together."""


class CrossRow(NamedTuple):
    """A cell of Table 3."""

    trained_on: str
    tested_on: str
    images: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float
    top5_low: float
    top5_high: float
    paper_top1: float | None
    paper_top5: float | None


StudyRow = AttackedRow | SimilarityRow | NormRow | LatentRow | CrossRow


def attacked_row(sums: StudySums, compared: Compared, attacked: str) -> AttackedRow:
    """What the attack did."""
    counts = sums.counts
    return AttackedRow(
        attack=compared.label,
        epsilon=compared.epsilon,
        attacked=attacked,
        images=counts.images,
        accuracy=counts.right / counts.images,
        accuracy_adversarial=counts.right_adversarial / counts.images,
        essential_accuracy=counts.essential_right / counts.images,
        essential_accuracy_adversarial=counts.essential_right_adversarial / counts.images,
    )


def similarity_rows(
    sums: StudySums, compared: Compared, *, features: str, paper: PaperDataset
) -> list[SimilarityRow]:
    """Table 1 of one attack: G(x) with G(x'), R(x) with R(x').

    Args:
        sums: of all images.
        compared: what x' is.
        features: whose features the Frechet distance is of.
        paper: whose numbers stand beside ours.
    """
    rows = []
    stds = sums.cosines.std_a().tolist()
    for place, (clean, adversarial) in enumerate(_PAIRS):
        mean, std = float(sums.cosines.mean_a[place]), stds[place]
        distance, null = frechet_pair(sums, clean, adversarial)
        theirs = _PAPER_SIMILARITY.get(paper, {}).get(clean, (None, None, None))
        rows.append(
            SimilarityRow(
                attack=compared.label,
                epsilon=compared.epsilon,
                compared=f"{clean}, {adversarial}",
                images=sums.counts.images,
                cosine=mean,
                cosine_std=std,
                cosine_low=mean_interval(mean, std, sums.counts.images).low,
                cosine_high=mean_interval(mean, std, sums.counts.images).high,
                frechet=distance,
                frechet_null=null,
                features=features,
                paper_cosine=theirs[0],
                paper_cosine_std=theirs[1],
                paper_frechet=theirs[2],
            )
        )
    return rows


def norm_rows(
    sums: StudySums, compared: Compared, *, units: str, paper: PaperDataset
) -> list[NormRow]:
    """Table 2 of one attack."""
    rows = []
    means = {norm: sums.norms[norm].mean_a.tolist() for norm in NORMS}
    stds = {norm: sums.norms[norm].std_a().tolist() for norm in NORMS}
    scale: dict[Norm, float] = {"l1": 1e3, "l2": 1.0, "linf": 1.0}
    for place, part in enumerate(PARTS):
        theirs = _PAPER_NORMS.get(paper, {}).get(part)
        numbers: dict[str, Any] = {}
        for number, norm in enumerate(NORMS):
            numbers[norm], numbers[f"{norm}_std"] = means[norm][place], stds[norm][place]
            for offset, name in enumerate((f"paper_{norm}", f"paper_{norm}_std")):
                known = None if theirs is None else theirs[2 * number + offset] * scale[norm]
                numbers[name] = known
        rows.append(
            NormRow(
                attack=compared.label,
                epsilon=compared.epsilon,
                part=part,
                images=sums.counts.images,
                units=units,
                **numbers,
            )
        )
    return rows


def latent_row(correlation: LatentCorrelation, compared: Compared) -> LatentRow:
    """Figure 3 of one attack, in numbers."""
    quantiles = correlation.quantiles()
    return LatentRow(
        attack=compared.label,
        epsilon=compared.epsilon,
        images=correlation.images,
        dimensions=len(correlation.correlations),
        constant_dimensions=correlation.constant_dimensions,
        smallest=quantiles["min"],
        five_percent=quantiles["q05"],
        median=quantiles["median"],
        largest=quantiles["max"],
        significant_share=correlation.significant_share,
    )


def cross_rows(
    shards: Iterable[ImageRows], trained_on: Sequence[InputKind], *, paper: PaperDataset
) -> list[CrossRow]:
    """Table 3 from the shards of `CrossColumns`, counted one at a time."""
    images, right = 0, dict.fromkeys(_cells(trained_on), 0)
    for rows in shards:
        images += len(rows)
        for cell in right:
            right[cell] += int(torch.count_nonzero(rows["/".join(cell)]))
    found = []
    for kind in trained_on:
        for tested in INPUT_KINDS:
            top1, top5 = right[kind, tested, "top1"], right[kind, tested, "top5"]
            theirs = _PAPER_CROSS.get(paper, {}).get(kind, {}).get(tested)
            found.append(
                CrossRow(
                    trained_on=SPACE_SYMBOLS[kind],
                    tested_on=SPACE_SYMBOLS[tested],
                    images=images,
                    top1=top1 / images,
                    top1_low=wilson(top1, images).low,
                    top1_high=wilson(top1, images).high,
                    top5=top5 / images,
                    top5_low=wilson(top5, images).low,
                    top5_high=wilson(top5, images).high,
                    paper_top1=None if theirs is None else theirs[0] / 100,
                    paper_top5=None if theirs is None else theirs[1] / 100,
                )
            )
    return found


def _cells(trained_on: Sequence[InputKind]) -> list[tuple[InputKind, InputKind, str]]:
    return [
        (kind, tested, top)
        for kind in trained_on
        for tested in INPUT_KINDS
        for top in ("top1", "top5")
    ]


def mean_interval(mean: float, std: float, count: int) -> Interval:
    """The 95 % interval of a mean of many images; NaN for one image."""
    half = NORMAL_975 * std / math.sqrt(count)
    return Interval(mean - half, mean + half)


def row_columns(rows: Sequence[StudyRow]) -> dict[str, list[Any]]:
    """Rows of one kind as columns, for tracking and files; NaN becomes None, as JSON needs."""
    return {
        name: [_finite(getattr(row, name)) for row in rows]
        for name in (rows[0]._fields if rows else ())
    }


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- text ---------------------------------------------------------------------------------------


def study_markdown(tables: Mapping[str, Sequence[StudyRow]]) -> str:
    """All tables with their titles, in Markdown."""
    parts = []
    for title, rows in tables.items():
        if rows:
            parts.append(
                f"## {title}\n\n{_NOTES[type(rows[0])]}\n\n{markdown_table(*_cells_of(rows))}"
            )
    return "\n\n".join(parts)


def study_text(tables: Mapping[str, Sequence[StudyRow]]) -> str:
    """All tables as aligned text for a terminal."""
    return "\n\n".join(
        f"{title}\n{aligned_table(*_cells_of(rows))}" for title, rows in tables.items() if rows
    )


_NOTES: dict[type, str] = {
    AttackedRow: "Accuracy in percent. Everything below is of these images, fooled or not.",
    SimilarityRow: "Mean cosine with its 95 % interval, ± the deviation between images. The "
    "Frechet distance is of images in [0, 1], R(x) around mid-grey; chance: between two halves of "
    "the clean ones. The paper's in parentheses.",
    NormRow: "Mean ± deviation between images. The paper's in parentheses.",
    LatentRow: "Pearson's r of each latent dimension (posterior means; of a VQ-VAE codes averaged "
    "over a grid of 8 x 8) between x and x', over the images. Above chance: at 5 % for all "
    "dimensions together (Bonferroni), two-sided.",
    CrossRow: "Accuracy in percent with 95 % intervals, the paper's in parentheses.",
}


def _cells_of(rows: Sequence[StudyRow]) -> tuple[list[str], list[list[str]]]:
    first = rows[0]
    if isinstance(first, AttackedRow):
        header = ["attack", "against", "n", "on x", "on x'", "D(R(x))", "D(R(x'))"]
    elif isinstance(first, SimilarityRow):
        header = ["attack", "compared", "n", "cosine", "Frechet", "chance", "features"]
    elif isinstance(first, NormRow):
        header = ["attack", "part", "n", "L1 / 1000", "L2", "L-inf", "units"]
    elif isinstance(first, LatentRow):
        header = ["attack", "n", "dimensions", "smallest r", "5 %", "median", "largest"]
        header.append("above chance")
    else:
        header = ["trained on", "tested on", "n", "top-1", "top-5"]
    return header, [_line(row) for row in rows]


def _line(row: StudyRow) -> list[str]:
    if isinstance(row, AttackedRow):
        accuracies = [f"{100 * value:.1f}" for value in row[4:]]
        return [row.attack, row.attacked, f"{row.images:,}", *accuracies]
    if isinstance(row, SimilarityRow):
        theirs = (
            ""
            if row.paper_cosine is None
            else f" ({row.paper_cosine:.4f} ± {row.paper_cosine_std:.4f})"
        )
        distance = "" if row.paper_frechet is None else f" ({row.paper_frechet:.2f})"
        return [
            row.attack,
            row.compared,
            f"{row.images:,}",
            f"{row.cosine:.4f} [{row.cosine_low:.4f}, {row.cosine_high:.4f}] "
            f"± {row.cosine_std:.4f}{theirs}",
            f"{row.frechet:.4g}{distance}",
            "" if row.frechet_null is None else f"{row.frechet_null:.4g}",
            row.features,
        ]
    if isinstance(row, NormRow):
        return [
            row.attack,
            row.part,
            f"{row.images:,}",
            _with_paper(row.l1, row.l1_std, row.paper_l1, row.paper_l1_std, 1e-3),
            _with_paper(row.l2, row.l2_std, row.paper_l2, row.paper_l2_std),
            _with_paper(row.linf, row.linf_std, row.paper_linf, row.paper_linf_std),
            row.units,
        ]
    if isinstance(row, LatentRow):
        varying = row.dimensions - row.constant_dimensions
        constant = f", {row.constant_dimensions} constant" if row.constant_dimensions else ""
        return [
            row.attack,
            f"{row.images:,}",
            f"{row.dimensions:,}{constant}",
            *(f"{r:.4f}" for r in (row.smallest, row.five_percent, row.median, row.largest)),
            f"{100 * row.significant_share:.1f} % of {varying:,}",
        ]
    return [
        row.trained_on,
        row.tested_on,
        f"{row.images:,}",
        _percent(row.top1, row.top1_low, row.top1_high, row.paper_top1),
        _percent(row.top5, row.top5_low, row.top5_high, row.paper_top5),
    ]


def _with_paper(
    mean: float, std: float, paper: float | None, paper_std: float | None, scale: float = 1.0
) -> str:
    theirs = "" if paper is None else f" ({paper * scale:.2f} ± {(paper_std or 0) * scale:.2f})"
    return f"{mean * scale:.4g} ± {std * scale:.3g}{theirs}"


def _percent(value: float, low: float, high: float, paper: float | None) -> str:
    theirs = "" if paper is None else f" ({100 * paper:.2f})"
    return f"{100 * value:.2f} [{100 * low:.2f}, {100 * high:.2f}]{theirs}"
