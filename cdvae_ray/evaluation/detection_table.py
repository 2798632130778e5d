"""The tables of adversarial detection: each number with its interval, and the paper's beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from cdvae_ray.config.attack import ThreatModelName
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection import Protocol
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.bootstrap import NUM_RESAMPLES, Estimate, bootstrap
from cdvae_ray.evaluation.detection_metrics import (
    DetectionMetrics,
    FloatArray,
    IntArray,
    RankedScores,
    all_metrics,
    auroc,
    rank_scores,
    tnr_at_95_tpr_reference,
)
from cdvae_ray.evaluation.detection_protocol import Detection, Mode, Subset

Contrast = Literal[
    "adversarial against clean and noisy", "adversarial against clean", "noisy against clean"
]
"""Positives against negatives. The last is a control: a detector of attacks should not see it."""

SPACE_SYMBOLS: dict[str, str] = {
    "images": "x",
    "class_essential": "R(x)",
    "class_redundant": "G(x)",
}

# --- the paper's numbers ------------------------------------------------------------------------

_PAPER_ATTACKS = ("FGSM", "BIM", "C&W", "PGD-Linf", "PGD-L2")
_PAPER: dict[tuple[str, str, InputKind], tuple[tuple[float, float], ...]] = {
    # Yang et al., "Class-Disentanglement and Applications in Adversarial Detection and Defense"
    # (NeurIPS 2021): TNR at 95 % TPR and AUC in percent; Table 4.
    ("cifar10", "KD", "images"): (
        (42.38, 85.74), (74.54, 94.82), (73.33, 94.75), (73.12, 94.59), (70.62, 93.62),
    ),
    ("cifar10", "KD", "class_essential"): (
        (57.10, 89.69), (96.79, 99.27), (94.67, 98.73), (96.56, 99.30), (97.04, 99.32),
    ),
    ("cifar10", "LID", "images"): (
        (69.05, 93.60), (77.73, 95.20), (74.98, 94.32), (71.52, 93.19), (72.57, 93.46),
    ),
    ("cifar10", "LID", "class_essential"): (
        (92.60, 98.59), (86.42, 97.29), (76.42, 95.10), (87.54, 97.57), (87.63, 97.38),
    ),
    ("cifar10", "MD", "images"): (
        (94.91, 98.69), (88.33, 97.66), (86.30, 97.36), (77.23, 95.38), (76.70, 95.33),
    ),
    ("cifar10", "MD", "class_essential"): (
        (99.68, 99.36), (98.92, 99.74), (98.94, 99.68), (99.13, 99.79), (99.13, 99.77),
    ),
    # Table 5.
    ("restricted-imagenet", "KD", "images"): (
        (8.76, 70.25), (99.26, 99.82), (99.22, 99.77), (99.25, 99.80), (44.02, 82.81),
    ),
    ("restricted-imagenet", "KD", "class_essential"): (
        (99.40, 99.63), (100.0, 100.0), (100.0, 100.0), (100.0, 100.0), (92.85, 98.40),
    ),
    ("restricted-imagenet", "LID", "images"): (
        (44.28, 85.91), (97.92, 99.57), (97.58, 99.49), (97.80, 99.51), (53.78, 87.37),
    ),
    ("restricted-imagenet", "LID", "class_essential"): (
        (99.91, 99.93), (99.46, 99.81), (98.24, 99.40), (99.43, 99.73), (61.32, 89.18),
    ),
    ("restricted-imagenet", "MD", "images"): (
        (34.69, 84.96), (99.33, 99.78), (98.72, 99.61), (99.18, 99.70), (44.16, 82.61),
    ),
    ("restricted-imagenet", "MD", "class_essential"): (
        (100.0, 99.99), (100.0, 99.99), (100.0, 99.98), (99.99, 99.95), (95.42, 98.86),
    ),
}  # fmt: skip
_PAPER_TARGET: dict[InputKind, ThreatModelName] = {
    "images": "classifier",
    "class_essential": "class-essential",
}
"""What was attacked in the paper's rows on x and on R(x), by its footnote 2 and its code."""


class PaperValue(NamedTuple):
    """What the paper prints, as shares; the positive is the clean image."""

    tnr_at_95_tpr: float
    auroc: float


def paper_value(dataset: str, method: str, space: InputKind, attack: str) -> PaperValue | None:
    """The paper's numbers in Table 4 (cifar10) or 5 (restricted-imagenet); None where it has none.

    Args:
        dataset: e.g. "cifar10".
        method: KD, LID or MD.
        space: images or class_essential.
        attack: a label of the paper's suite of attacks for detection.
    """
    printed = _PAPER.get((dataset, method, space))
    if printed is None or attack not in _PAPER_ATTACKS:
        return None
    tnr, auc = printed[_PAPER_ATTACKS.index(attack)]
    return PaperValue(tnr / 100, auc / 100)


# --- rows ---------------------------------------------------------------------------------------


class DetectionRow(NamedTuple):
    """A line of the table; it cannot be made without threat model, protocol, mode and counts."""

    dataset: str
    method: str
    space: InputKind
    attack: str
    threat_model: ThreatModelName
    attacked: str
    """The function that was attacked."""
    protocol: Protocol
    mode: Mode
    trained_on: str
    subset: Subset
    contrast: Contrast
    setting: str
    converged: bool
    """Of the combiner's regression."""
    clean_images: int
    noisy_images: int
    adversarial_images: int
    tnr_at_95_tpr: Estimate
    auroc: Estimate
    aupr_adversarial: Estimate
    aupr_clean: Estimate
    fpr_at_95_tpr: Estimate
    tpr_at_01_fpr: Estimate
    tpr_at_1_fpr: Estimate
    tpr_at_5_fpr: Estimate
    paper_tnr_at_95_tpr: float | None
    paper_auroc: float | None


class DifferenceRow(NamedTuple):
    """By how much one detector is better than another on the same images, first less second."""

    dataset: str
    first: str
    second: str
    first_attacked: str
    second_attacked: str
    contrast: Contrast
    images: int
    """Of either, each counted once."""
    tnr_at_95_tpr: Estimate
    auroc: Estimate


def detection_row(
    detection: Detection,
    *,
    seed: int,
    contrast: Contrast = "adversarial against clean and noisy",
    num_resamples: int = NUM_RESAMPLES,
) -> DetectionRow:
    """The row of one detection, intervals by the paired bootstrap over its images.

    Args:
        detection: scores of the test part.
        seed: of the evaluation.
        contrast: positives against negatives.
        num_resamples: resamples behind the intervals.
    """
    ranked = _ranked(detection, contrast, detection.image_ids)
    estimates = bootstrap(
        lambda weights: all_metrics(ranked.counts(weights)),
        len(detection.image_ids),
        seed=seed,
        num_resamples=num_resamples,
    )
    paper = _paper_value(detection, contrast)
    count = len(detection.image_ids)
    return DetectionRow(
        dataset=detection.dataset,
        method=detection.method,
        space=detection.space,
        attack=detection.attack,
        threat_model=detection.threat_model.name,
        attacked=detection.threat_model.attacked,
        protocol=detection.protocol,
        mode=detection.mode,
        trained_on=detection.trained_on,
        subset=detection.subset,
        contrast=contrast,
        setting=detection.setting,
        converged=detection.combiner.converged,
        clean_images=count,
        noisy_images=count if "noisy" in contrast else 0,
        adversarial_images=count if "adversarial" in contrast else 0,
        paper_tnr_at_95_tpr=paper.tnr_at_95_tpr if paper else None,
        paper_auroc=paper.auroc if paper else None,
        **dict(zip(DetectionMetrics._fields, estimates, strict=True)),
    )


def difference_row(
    first: Detection,
    second: Detection,
    *,
    seed: int,
    contrast: Contrast = "adversarial against clean and noisy",
    num_resamples: int = NUM_RESAMPLES,
) -> DifferenceRow:
    """The difference of two detections of one dataset, paired: an image counts alike for both.

    Args:
        first, second: scores of the test part; their images need not all be the same.
        seed: of the evaluation.
        contrast: positives against negatives.
        num_resamples: resamples behind the intervals.

    Raises:
        DataError: they are of two datasets, whose image ids have nothing to do with each other.
    """
    if first.dataset != second.dataset:
        raise DataError(
            "datasets of two detections",
            got=f"{first.dataset} and {second.dataset}",
            expected="one",
            remedy="compare detections of one dataset",
        )
    pool = np.union1d(first.image_ids, second.image_ids)
    ranked = [_ranked(each, contrast, pool) for each in (first, second)]

    def differences(weights: IntArray) -> FloatArray:
        ours, theirs = (
            np.stack([tnr_at_95_tpr_reference(counts), auroc(counts)], axis=1)
            for counts in (each.counts(weights) for each in ranked)
        )
        difference: FloatArray = ours - theirs
        return difference

    tnr, area = bootstrap(differences, len(pool), seed=seed, num_resamples=num_resamples)
    return DifferenceRow(
        dataset=first.dataset,
        first=_described(first),
        second=_described(second),
        first_attacked=first.threat_model.attacked,
        second_attacked=second.threat_model.attacked,
        contrast=contrast,
        images=len(pool),
        tnr_at_95_tpr=tnr,
        auroc=area,
    )


def two_by_two(
    rows: Sequence[DetectionRow],
    *,
    method: str,
    attack: str,
    protocol: Protocol,
    mode: Literal["same_attack", "attack_free"],
    subset: Subset = "successful",
    contrast: Contrast = "adversarial against clean and noisy",
) -> list[DetectionRow]:
    """Attack target (a classifier of x, D(R(x))) by detection space (x, R(x)), target by target.

    The paper's rows on x and on R(x) are the first and last of the four, which differ in both: what
    the space brings is the difference within a target.

    Args:
        rows: that hold these four.
        method, attack, protocol, mode, subset, contrast: which.

    Raises:
        DataError: one of the four is missing, or there twice.
    """
    wanted = (method, attack, protocol, mode, subset, contrast)
    targets: tuple[ThreatModelName, ...] = ("classifier", "class-essential")
    spaces: tuple[InputKind, ...] = ("images", "class_essential")
    cells = []
    for target in targets:
        for space in spaces:
            found = [
                row
                for row in rows
                if (row.method, row.attack, row.protocol, row.mode, row.subset, row.contrast)
                == wanted
                and (row.threat_model, row.space) == (target, space)
            ]
            if len(found) != 1:
                raise DataError(
                    f"rows of {method} on {attack} with target {target} and space {space}",
                    got=len(found),
                    expected="one",
                    remedy="detect attacks on both functions in both spaces, once each",
                )
            cells += found
    return cells


def detection_columns(rows: Sequence[NamedTuple]) -> dict[str, list[Any]]:
    """Rows of one kind as columns; an estimate takes one each for value, low and high."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row._asdict().items():
            if isinstance(value, Estimate):
                for end, number in zip(("", "_low", "_high"), value, strict=True):
                    columns.setdefault(name + end, []).append(number)
            else:
                columns.setdefault(name, []).append(value)
    return columns


def detection_text(rows: Sequence[DetectionRow]) -> str:
    """The table as aligned text; threat models, protocol and what the numbers mean below it."""
    notes = list(dict.fromkeys(_note(row) for row in rows))
    names = [f"{row.method}({SPACE_SYMBOLS[row.space]})" for row in rows]
    wide = max([len("detector"), *(len(name) for name in names)])
    attack_wide = max([len("attack"), *(len(row.attack) for row in rows)])
    trained_wide = max([len("trained on"), *(len(row.trained_on) for row in rows)])
    lines = [
        f"  {'detector':<{wide}}  {'attack':<{attack_wide}}  {'trained on':<{trained_wide}}      n"
        f"  {'TNR@95TPR':<23}  {'AUROC':<23}  paper: TNR  AUROC"
    ]
    for name, row in zip(names, rows, strict=True):
        mark = "" if row.converged else " (regression stopped early)"
        lines.append(
            f"  {name:<{wide}}  {row.attack:<{attack_wide}}  {row.trained_on:<{trained_wide}}"
            f"  {row.clean_images:>5}  {_percent(row.tnr_at_95_tpr)}  {_percent(row.auroc)}"
            f"  {_or_none(row.paper_tnr_at_95_tpr):>10}  {_or_none(row.paper_auroc):>5}"
            f"  [{notes.index(_note(row)) + 1}]{mark}"
        )
    lines += [f"  [{number}] {note}" for number, note in enumerate(notes, start=1)]
    lines.append(
        "  percent; 95 % intervals by bootstrap over images, the detector as fitted; n images, "
        "each of them clean, noisy and attacked"
    )
    lines.append("  TNR: adversarial images rejected where about 95 % of the negatives pass")
    if any(row.paper_auroc is not None for row in rows):
        lines.append("  paper: Tables 4 and 5, of its own networks and attack settings")
    return "\n".join(lines)


def _ranked(detection: Detection, contrast: Contrast, pool: IntArray) -> RankedScores:
    """Sorts the scores that a contrast is about; images by their places in the pool."""
    places = np.searchsorted(pool, detection.image_ids)
    negatives, negative_images = detection.clean, places
    if contrast == "adversarial against clean and noisy":
        negatives = np.concatenate([detection.clean, detection.noisy])
        negative_images = np.tile(places, 2)
    return rank_scores(
        negatives,
        detection.noisy if contrast == "noisy against clean" else detection.adversarial,
        negative_images=negative_images,
        positive_images=places,
    )


def _paper_value(detection: Detection, contrast: Contrast) -> PaperValue | None:
    """Where a row means what the paper's means: same target, space, contrast and training."""
    if (
        contrast != "adversarial against clean and noisy"
        or (detection.mode, detection.subset) != ("same_attack", "successful")
        or _PAPER_TARGET.get(detection.space) != detection.threat_model.name
    ):
        return None
    return paper_value(detection.dataset, detection.method, detection.space, detection.attack)


def _described(detection: Detection) -> str:
    return (
        f"{detection.method}({SPACE_SYMBOLS[detection.space]}) on {detection.attack}, "
        f"{_conduct(detection.protocol, detection.mode, detection.subset)}, "
        f"trained on {detection.trained_on}"
    )


def _note(row: DetectionRow) -> str:
    return (
        f"attack on {row.attacked}; {_conduct(row.protocol, row.mode, row.subset)}; {row.contrast}"
        f"; {row.dataset}"
    )


def _conduct(protocol: Protocol, mode: Mode, subset: Subset) -> str:
    return f"protocol {protocol}, {mode.replace('_', ' ')}, {subset} attacks"


def _percent(estimate: Estimate) -> str:
    value, low, high = (100 * number for number in estimate)
    return f"{value:6.2f} [{low:6.2f}, {high:6.2f}]"


def _or_none(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
