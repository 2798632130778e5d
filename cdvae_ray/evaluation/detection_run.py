"""All detections of one method: every mode and subset, and what could not be measured and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cdvae_ray.config.detection import SplitSettings
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_protocol import (
    Detection,
    MethodScores,
    Mode,
    attack_free,
    evaluate_on,
    reference,
    train_on,
)
from cdvae_ray.evaluation.detection_table import (
    DetectionRow,
    DifferenceRow,
    detection_row,
    difference_row,
)


class MethodDetections(NamedTuple):
    """What one method came to."""

    detections: list[Detection]
    skipped: list[str]
    """What has no number, with the reason: an attack that fools too few images."""

    def row_detections(self, mode: Mode) -> list[Detection]:
        """Those on successful attacks, of one mode."""
        return [
            each for each in self.detections if (each.mode, each.subset) == (mode, "successful")
        ]


def strict_detections(scores: MethodScores, split: SplitSettings) -> MethodDetections:
    """Same attack and attack-free on all and on successful attacks; unseen on successful ones.

    Args:
        scores: of the method, on all attacks on one function.
        split: the parts.
    """
    found: list[Detection] = []
    skipped: list[str] = []
    for attack in scores.attacks:
        try:
            every = attack_free(scores, attack, split=split, subset="all")
            found.append(every)
            found.append(every.of_successful())
        except DataError as error:
            skipped.append(_reason(scores, attack, "attack-free", error))
        try:
            detector = train_on(scores.by_setting(attack), attack, split)
        except DataError as error:
            skipped.append(_reason(scores, attack, "training", error))
            continue
        for tested in scores.attacks:
            mode: Mode = "same_attack" if tested == attack else "unseen"
            try:
                every = evaluate_on(scores, tested, detector, split, "all", mode)
                found += [every] if mode == "same_attack" else []
                found.append(every.of_successful())
            except DataError as error:
                skipped.append(_reason(scores, tested, f"trained on {attack}", error))
    return MethodDetections(found, skipped)


def reference_detections(scores: MethodScores) -> MethodDetections:
    """The reference protocol on every attack.

    Args:
        scores: of the method, on all attacks on one function.
    """
    found, skipped = [], []
    for attack in scores.attacks:
        try:
            found.append(reference(scores, attack))
        except DataError as error:
            skipped.append(_reason(scores, attack, "reference", error))
    return MethodDetections(found, skipped)


def detection_rows(
    detections: Sequence[Detection], *, seed: int, num_resamples: int
) -> list[DetectionRow]:
    """A row a detection; for attack-free ones a second that asks whether noise is flagged, too."""
    rows = [detection_row(each, seed=seed, num_resamples=num_resamples) for each in detections]
    rows += [
        detection_row(each, seed=seed, contrast="noisy against clean", num_resamples=num_resamples)
        for each in detections
        if (each.mode, each.subset) == ("attack_free", "all")
    ]
    return rows


class SpaceDifferences(NamedTuple):
    """What looking at R(x) changes."""

    rows: list[DifferenceRow]
    skipped: list[str]
    """Pairs without a number, with the reason."""


def space_differences(
    detections: Sequence[Detection], *, seed: int, num_resamples: int
) -> SpaceDifferences:
    """R(x) less x on the same adversarial images, and as the paper pairs them: each on its own.

    Args:
        detections: of all methods, spaces and targets.
        seed: of the evaluation.
        num_resamples: behind the intervals.
    """
    cells = {
        (each.method, each.attack, each.threat_model.name, each.space): each
        for each in detections
        if (each.mode, each.subset) == ("same_attack", "successful")
    }
    rows: list[DifferenceRow] = []
    skipped: list[str] = []
    for (method, attack, target, space), first in cells.items():
        if space != "class_essential":
            continue
        seconds = [cells.get((method, attack, target, "images"))]
        if target == "class-essential":
            seconds.append(cells.get((method, attack, "classifier", "images")))
        for second in seconds:
            if second is None:
                continue
            try:
                rows.append(difference_row(first, second, seed=seed, num_resamples=num_resamples))
            except DataError as error:
                # Some resample of the union holds no image of one of the two.
                skipped.append(
                    f"{method}, {attack}: R(x) under attack on {first.threat_model.attacked} less "
                    f"x under attack on {second.threat_model.attacked}: {error}"
                )
    return SpaceDifferences(rows, skipped)


def _reason(scores: MethodScores, attack: str, what: str, error: DataError) -> str:
    return (
        f"{scores.method} in {scores.space}, {attack} on {scores.threat_model.attacked}, "
        f"{what}: {error}"
    )
