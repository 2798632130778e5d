"""How detectors fare against an attacker who knows them, beside one who does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection import AdaptiveConfig
from cdvae_ray.core.threat_models import ThreatModel
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_table import SPACE_SYMBOLS
from cdvae_ray.evaluation.intervals import wilson
from cdvae_ray.storage.row_set import ImageRows

FALSE_POSITIVE_RATES = (0.05, 0.5)
"""Shares of clean images flagged at which Bryniarski et al. (2022) report an attack's success."""


LINF = "L-inf, pixels"
"""The measure of an adaptive attack's radius, as `AttackConfig.measure` has it."""


class AdaptiveRow(NamedTuple):
    """A line of the table: one detector, one attack, one threshold."""

    method: str
    space: InputKind
    attack: str
    """The strategy, or the label of an attack that knows no detector."""
    threat_model: str
    """What the attacker knows and follows."""
    epsilon: float
    num_steps: int
    false_positive_rate: float
    """Asked for, on clean images of the selection part."""
    clean_flagged: float
    """Measured, on the clean images that were attacked."""
    threshold: float
    images: int
    """Right without an attack; success is a share of these."""
    fooled: float
    """Share that the classifier gets wrong."""
    success: float
    """Share that the classifier gets wrong and the detector lets pass."""
    success_low: float
    success_high: float
    zero_gradient: int
    """Images with a gradient that vanished at some step."""
    nonfinite_gradient: int
    measure: str
    """What epsilon is measured in."""

    @property
    def radius(self) -> str:
        """epsilon with its measure, for people."""
        if self.measure == LINF:
            return f"{255 * self.epsilon:.3g}/255"
        return f"{self.epsilon:.3g} ({self.measure})"


def adaptive_rows(
    rows: ImageRows,
    *,
    method: str,
    space: InputKind,
    attack: str,
    threat_model: str,
    config: AdaptiveConfig,
    thresholds: Mapping[float, float],
    measure: str = LINF,
) -> list[AdaptiveRow]:
    """A row a threshold, of the images that are right without an attack.

    Args:
        rows: label, clean_prediction, clean_score, fooled, detector_score, zero_gradient,
            nonfinite_gradient, one an image.
        method, space: of the detector.
        attack: of the attack.
        threat_model: for people.
        config: radius and steps.
        thresholds: by false positive rate.
        measure: what the radius is measured in.

    Raises:
        DataError: no image is right without an attack.
    """
    kept = rows["clean_prediction"] == rows["label"]
    count = int(kept.sum())
    if not count:
        raise DataError(
            "images for an adaptive attack",
            got="none that the classifier gets right",
            expected="at least one",
            remedy="attack more images, or train the classifier longer",
        )
    rows = rows.select(kept)
    found = []
    for rate, threshold in thresholds.items():
        passed = rows["fooled"] & (rows["detector_score"] <= threshold)
        success = int(passed.sum())
        low, high = wilson(success, count)
        found.append(
            AdaptiveRow(
                method=method,
                space=space,
                attack=attack,
                threat_model=threat_model,
                epsilon=config.epsilon,
                num_steps=config.num_steps,
                false_positive_rate=rate,
                clean_flagged=_share(rows["clean_score"] > threshold),
                threshold=threshold,
                images=count,
                fooled=_share(rows["fooled"]),
                success=success / count,
                success_low=low,
                success_high=high,
                zero_gradient=int(rows["zero_gradient"].sum()),
                nonfinite_gradient=int(rows["nonfinite_gradient"].sum()),
                measure=measure,
            )
        )
    return found


def best_of(runs: Sequence[ImageRows]) -> ImageRows:
    """For each image the run that fools with the lowest score, if any fools; else the first.

    Args:
        runs: of several attacks on one detector, rows of the same images.
    """
    scores = torch.stack([run["detector_score"].where(run["fooled"], torch.inf) for run in runs])
    chosen = scores.argmin(dim=0)
    places = torch.arange(len(chosen))
    columns = {
        name: torch.stack([run[name] for run in runs])[chosen, places] for name in runs[0].columns
    }
    for name in ("zero_gradient", "nonfinite_gradient"):
        columns[name] = torch.stack([run[name] for run in runs]).any(dim=0)
    return ImageRows(runs[0].image_ids, columns)


def known_threat(threat_model: ThreatModel) -> str:
    """The threat model of an attack that knows the detector."""
    return f"white-box on {threat_model.attacked} and on the detector"


def unknown_threat(threat_model: ThreatModel) -> str:
    """The threat model of an attack that does not."""
    return f"white-box on {threat_model.attacked}, unaware of the detector"


def adaptive_columns(rows: Sequence[AdaptiveRow]) -> dict[str, list[Any]]:
    """The table as columns, for tracking."""
    return {name: [getattr(row, name) for row in rows] for name in AdaptiveRow._fields}


def adaptive_text(rows: Sequence[AdaptiveRow]) -> str:
    """The table as aligned text, threat models below it."""
    notes = list(dict.fromkeys(row.threat_model for row in rows))
    names = [f"{row.method}({SPACE_SYMBOLS[row.space]})" for row in rows]
    wide = max(len("detector"), *(len(name) for name in names))
    attack_wide = max(len("attack"), *(len(row.attack) for row in rows))
    lines = [
        f"  {'detector':<{wide}}  {'attack':<{attack_wide}}  steps   FPR   clean flagged"
        "      n  fooled  fooled and let pass"
    ]
    for name, row in zip(names, rows, strict=True):
        lines.append(
            f"  {name:<{wide}}  {row.attack:<{attack_wide}}  {row.num_steps:5d}"
            f"  {row.false_positive_rate:4.0%}"
            f"  {row.clean_flagged:14.1%}  {row.images:5d}  {row.fooled:6.1%}"
            f"  {row.success:6.1%} [{row.success_low:6.1%}, {row.success_high:6.1%}]"
            f"  [{notes.index(row.threat_model) + 1}]"
        )
    lines += [f"  [{number}] {note}" for number, note in enumerate(notes, start=1)]
    lines.append(
        "  n images that are right without an attack; 95 % intervals by Wilson; thresholds from"
        " clean images of the selection part"
    )
    return "\n".join(lines)


def _share(flags: Tensor) -> float:
    return float(flags.to(torch.float64).mean())
