"""Who is trained, chosen and tested on which images: the strict protocol, and the reference's.

Strict: an image, with its clean, noisy and adversarial rows, is in one part alone. The combiner is
fitted on the first part, its detector's setting chosen on the second, and all numbers come from the
third. Reference: as the paper's released code and Lee et al. (2018) do it.

Either way the combiner is trained on successful attacks: images that the attacked function got
right, and wrong after the attack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection import Protocol, SplitSettings
from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.core.threat_models import ThreatModel
from cdvae_ray.errors import ConfigError, DataError
from cdvae_ray.evaluation.detection_combiner import (
    Combiner,
    TrainingRows,
    attack_free_combiner,
    check_layer_scores,
    fit_combiner,
    fit_reference_combiner,
)
from cdvae_ray.evaluation.detection_metrics import (
    BoolArray,
    FloatArray,
    IntArray,
    auroc,
    roc_counts,
)

Mode = Literal["same_attack", "unseen", "attack_free"]
Subset = Literal["successful", "all"]
"""Test images: clean right and then fooled, with all their rows; or every one."""

REFERENCE_FRACTION = 0.1
"""Share of the images that the reference trains and selects on, half each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DetectionScores:
    """Scores by layer of the same images clean, noisy and attacked; equal rows belong together."""

    image_ids: IntArray
    """(N,), rising: positions in the dataset."""
    layers: tuple[str, ...]
    clean: FloatArray
    """(N, L), higher = more adversarial; so are all scores."""
    noisy: FloatArray
    """(N, L)."""
    adversarial: FloatArray
    """(N, L)."""
    clean_correct: BoolArray
    """(N,): the attacked function is right on the clean image."""
    noisy_correct: BoolArray
    """(N,): it is right on the noisy image."""
    success: BoolArray
    """(N,): it is wrong on the adversarial image."""

    def __post_init__(self) -> None:
        count = len(self.image_ids)
        if not count or (np.diff(self.image_ids) <= 0).any():
            raise DataError(
                "image ids of scores",
                got="none" if not count else "some twice or out of order",
                expected="rising ids, each once",
                remedy="sort the rows by image id",
            )
        for name in ("clean", "noisy", "adversarial"):
            check_layer_scores(getattr(self, name), self.layers, what=f"{name} scores by layer")
        lengths = {name: len(getattr(self, name)) for name in _ROWS}
        if set(lengths.values()) != {count}:
            raise DataError(
                "rows of scores",
                got=", ".join(f"{length} {name}" for name, length in lengths.items()),
                expected=f"{count} each, one an image",
                remedy="score the same images clean, noisy and attacked",
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def successful(self) -> BoolArray:
        """(N,): clean right, adversarial wrong."""
        kept: BoolArray = self.clean_correct & self.success
        return kept

    def select(self, rows: BoolArray) -> DetectionScores:
        """Some of the images, all that belongs to them.

        Raises:
            DataError: none is left.
        """
        return DetectionScores(
            image_ids=self.image_ids[rows],
            layers=self.layers,
            **{name: getattr(self, name)[rows] for name in _ROWS},
        )

    def stacked(self) -> TrainingRows:
        """All rows in the order clean, noisy, adversarial."""
        return TrainingRows(
            layers=self.layers,
            image_ids=np.tile(self.image_ids, 3),
            scores=np.concatenate([self.clean, self.noisy, self.adversarial]),
            is_adversarial=np.arange(3 * len(self)) >= 2 * len(self),
        )


_ROWS = ("clean", "noisy", "adversarial", "clean_correct", "noisy_correct", "success")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MethodScores:
    """What one method says in one space about attacks on one function."""

    method: str
    """E.g. "MD"."""
    space: InputKind
    """What it looks at: images x, class_essential R(x) or class_redundant G(x)."""
    threat_model: ThreatModel
    """What was attacked."""
    dataset: str
    attacks: Mapping[str, Mapping[str, DetectionScores]]
    """By attack, then by setting (e.g. "k = 20"). The first setting is the one for `attack_free`,
    which has no attack to choose by; all attacks have the same settings and layers."""

    def __post_init__(self) -> None:
        settings = {tuple(by_setting) for by_setting in self.attacks.values()}
        layers = {
            each.layers for by_setting in self.attacks.values() for each in by_setting.values()
        }
        if len(settings) != 1 or len(layers) != 1:
            raise DataError(
                f"scores of {self.method}",
                got=f"{len(self.attacks)} attacks with {len(settings)} lists of settings and "
                f"{len(layers)} lists of layers",
                expected="at least one attack, with one list of each for all",
                remedy="score all attacks by the same detectors",
            )

    def by_setting(self, attack: str) -> Mapping[str, DetectionScores]:
        """The scores on one attack.

        Raises:
            ConfigError: there is none of that name.
        """
        if attack not in self.attacks:
            raise ConfigError(
                "attack",
                got=attack,
                expected=f"one of {', '.join(self.attacks)}",
                remedy="name an attack that was scored",
            )
        return self.attacks[attack]


class Split(NamedTuple):
    """Parts of the images, (N,) each; every image is in exactly one."""

    train: BoolArray
    selection: BoolArray
    test: BoolArray


def split_images(image_ids: IntArray, settings: SplitSettings) -> Split:
    """Parts images by a keyed number each: its part depends on the seed and its id alone.

    So an image is in the same part for every attack and method, whichever images these are of, and
    the fractions hold on average.

    Args:
        image_ids: (N,).
        settings: seed and fractions.

    Raises:
        DataError: a part is left without images.
    """
    keys = image_keys(settings.seed, "detection.split", 0, torch.from_numpy(image_ids))
    draws = keyed_uniform(keys, 1)[:, 0].numpy()
    end = settings.train_fraction + settings.selection_fraction
    split = Split(
        draws < settings.train_fraction,
        (draws >= settings.train_fraction) & (draws < end),
        draws >= end,
    )
    if not all(part.any() for part in split):
        raise DataError(
            "images in the parts of the split",
            got=", ".join(f"{int(p.sum())} {n}" for n, p in zip(Split._fields, split, strict=True)),
            expected="some in each",
            remedy="detect on more images",
        )
    return split


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detection:
    """One detector's scores of the test part; equal rows belong together."""

    method: str
    space: InputKind
    threat_model: ThreatModel
    dataset: str
    attack: str
    """Tested on."""
    trained_on: str
    """The attack that the combiner saw and the setting was chosen by; "none" if none."""
    protocol: Protocol
    mode: Mode
    subset: Subset
    setting: str
    """The one chosen, by its name in `MethodScores.attacks`."""
    combiner: Combiner
    image_ids: IntArray
    """(N,), rising."""
    clean: FloatArray
    """(N,), higher = more adversarial; so are all scores."""
    noisy: FloatArray
    """(N,)."""
    adversarial: FloatArray
    """(N,)."""
    successful: BoolArray
    """(N,): clean right, adversarial wrong."""

    def of_successful(self) -> Detection:
        """The same detector's scores of the images that the attack fooled.

        Raises:
            DataError: it fooled none.
        """
        if not self.successful.any():
            raise _too_few(f"in the test part that {self.attack} fooled", 0)
        rows = {
            name: getattr(self, name)[self.successful]
            for name in ("image_ids", "clean", "noisy", "adversarial", "successful")
        }
        return dataclasses.replace(self, subset="successful", **rows)


class TrainedDetector(NamedTuple):
    """What training and selection leave."""

    combiner: Combiner
    setting: str
    trained_on: str


def same_attack(
    scores: MethodScores, attack: str, *, split: SplitSettings, subset: Subset = "successful"
) -> Detection:
    """Strict: trained, chosen and tested on one attack, with other images each.

    Args:
        scores: of the method.
        attack: its name.
        split: the parts.
        subset: which test images are reported.

    Raises:
        ConfigError: no such attack.
        DataError: too few images, or no successful attack, in a part.
    """
    detector = train_on(scores.by_setting(attack), attack, split)
    return evaluate_on(scores, attack, detector, split, subset, "same_attack")


def unseen_matrix(
    scores: MethodScores, *, split: SplitSettings, subset: Subset = "successful"
) -> list[Detection]:
    """Strict: trained and chosen on each attack, tested on all; an image stays in its part.

    Args:
        scores: of the method.
        split: the parts.
        subset: which test images are reported.

    Returns:
        By the attack trained on, then by that tested on, in the order of the scores. The diagonal
        is `same_attack` and says so.

    Raises:
        DataError: too few images, or no successful attack, in a part.
    """
    found = []
    for trained_on, by_setting in scores.attacks.items():
        detector = train_on(by_setting, trained_on, split)
        for attack in scores.attacks:
            mode: Mode = "same_attack" if attack == trained_on else "unseen"
            found.append(evaluate_on(scores, attack, detector, split, subset, mode))
    return found


def attack_free(
    scores: MethodScores, attack: str, *, split: SplitSettings, subset: Subset = "successful"
) -> Detection:
    """Strict: the standardised sum of layers, fitted to clean images of the train part alone.

    Nothing is chosen: the first setting is taken.

    Args:
        scores: of the method.
        attack: tested on.
        split: the parts.
        subset: which test images are reported.

    Raises:
        ConfigError: no such attack.
        DataError: too few images, no successful attack to test on, or a layer that never varies.
    """
    setting, rows = next(iter(scores.by_setting(attack).items()))
    clean = rows.clean[split_images(rows.image_ids, split).train]
    detector = TrainedDetector(attack_free_combiner(rows.layers, clean), setting, "none")
    return evaluate_on(scores, attack, detector, split, subset, "attack_free")


def reference(scores: MethodScores, attack: str) -> Detection:
    """The protocol of the paper's released code and of Lee et al. (2018), weaknesses included.

    Images are kept iff clean right, noisy right and adversarial wrong. Of n images in order the
    first floor(0.1 n) are for training (first half) and for choosing the setting by AUROC on the
    same attack (second half); the others are the test part. Where that number is odd, the
    reference's slices put rows of a middle image into both halves; so do these. Ranks by the
    regression's decision function, of which the reference's probability is a rising function.

    Args:
        scores: of the method.
        attack: trained, chosen and tested on.

    Raises:
        ConfigError: no such attack.
        DataError: too few such images.
    """
    best: tuple[float, Detection] | None = None
    for setting, every in scores.by_setting(attack).items():
        rows = _selected(every, every.successful & every.noisy_correct, "that the reference keeps")
        seen = int(len(rows) * REFERENCE_FRACTION)
        if seen < 2:
            raise _too_few(f"that the reference keeps, {seen} of them to train on", len(rows))
        places = np.arange(len(rows))
        first = rows.select(places < seen).stacked()
        train, selection = _reference_halves(len(first.scores))
        combiner = fit_reference_combiner(_rows_at(first, train))
        chosen = _rows_at(first, selection)
        combined = combiner.score(chosen.scores)
        area = _auroc(combined[~chosen.is_adversarial], combined[chosen.is_adversarial])
        if best is None or area > best[0]:
            detector = TrainedDetector(combiner, setting, attack)
            test = rows.select(places >= seen)
            best = (
                area,
                _detection(
                    scores, attack, detector, test, "successful", "same_attack", "reference"
                ),
            )
    assert best is not None
    return best[1]


def _reference_halves(count: int) -> tuple[IntArray, IntArray]:
    """Rows of (clean, noisy, adversarial) stacked: every other sixth, and the rest."""
    sixth = count // 6
    sixths = np.minimum(np.arange(count) // sixth, 5)
    return np.flatnonzero(sixths % 2 == 0), np.flatnonzero(sixths % 2 == 1)


def _rows_at(rows: TrainingRows, places: IntArray) -> TrainingRows:
    return TrainingRows(
        layers=rows.layers,
        image_ids=rows.image_ids[places],
        scores=rows.scores[places],
        is_adversarial=rows.is_adversarial[places],
    )


def train_on(
    by_setting: Mapping[str, DetectionScores], attack: str, split: SplitSettings
) -> TrainedDetector:
    """Strict: a combiner for each setting from the train part; the selection part's AUROC chooses.

    Args:
        by_setting: scores on the attack to train on.
        attack: its name.
        split: the parts.

    Raises:
        DataError: too few images, or no successful attack, in a part.
    """
    best: tuple[float, TrainedDetector] | None = None
    for setting, rows in by_setting.items():
        parts = split_images(rows.image_ids, split)
        train, selection = (
            _selected(rows, rows.successful & part, f"in the {name} part that {attack} fooled")
            for name, part in (("train", parts.train), ("selection", parts.selection))
        )
        combiner = fit_combiner(train.stacked())
        chosen = selection.stacked()
        combined = combiner.score(chosen.scores)
        area = _auroc(combined[~chosen.is_adversarial], combined[chosen.is_adversarial])
        if best is None or area > best[0]:
            best = area, TrainedDetector(combiner, setting, attack)
    assert best is not None
    return best[1]


def evaluate_on(
    scores: MethodScores,
    attack: str,
    detector: TrainedDetector,
    split: SplitSettings,
    subset: Subset,
    mode: Mode,
) -> Detection:
    """Strict: a trained detector on the test part of an attack.

    Args:
        scores: of the method.
        attack: tested on.
        detector: of the same method.
        split: the parts.
        subset: which test images are reported.
        mode: what to call it.

    Raises:
        ConfigError: no such attack.
        DataError: no such image in the test part.
    """
    rows = scores.by_setting(attack)[detector.setting]
    kept = split_images(rows.image_ids, split).test
    if subset == "successful":
        kept = kept & rows.successful
    test = _selected(rows, kept, f"in the test part that {attack} fooled")
    return _detection(scores, attack, detector, test, subset, mode, "strict")


def _detection(
    scores: MethodScores,
    attack: str,
    detector: TrainedDetector,
    test: DetectionScores,
    subset: Subset,
    mode: Mode,
    protocol: Protocol,
) -> Detection:
    return Detection(
        method=scores.method,
        space=scores.space,
        threat_model=scores.threat_model,
        dataset=scores.dataset,
        attack=attack,
        trained_on=detector.trained_on,
        protocol=protocol,
        mode=mode,
        subset=subset,
        setting=detector.setting,
        combiner=detector.combiner,
        image_ids=test.image_ids,
        clean=detector.combiner.score(test.clean),
        noisy=detector.combiner.score(test.noisy),
        adversarial=detector.combiner.score(test.adversarial),
        successful=test.successful,
    )


def _selected(rows: DetectionScores, kept: BoolArray, which: str) -> DetectionScores:
    if not kept.any():
        raise _too_few(which, 0)
    return rows.select(kept)


def _auroc(negatives: FloatArray, positives: FloatArray) -> float:
    return float(auroc(roc_counts(negatives, positives))[0])


def _too_few(which: str, count: int) -> DataError:
    return DataError(
        f"images {which}",
        got=count,
        expected="more",
        remedy="detect on more images, or choose an attack that succeeds",
    )
