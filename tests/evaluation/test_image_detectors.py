"""Calibrated detectors of images: the attack-free protocol, as functions of images."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from cdvae_ray.config.classifier import ClassifierConfig, InputKind
from cdvae_ray.config.detection import DetectorsConfig, SplitSettings
from cdvae_ray.config.model import ModelConfig
from cdvae_ray.core.cdvae import build_cdvae
from cdvae_ray.core.classifier import build_classifier
from cdvae_ray.core.detectors.image_detector import DetectorMethod
from cdvae_ray.core.feature_extractor import FeatureExtractor, feature_extractor
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.errors import ConfigError, DataError
from cdvae_ray.evaluation.adaptive_table import FALSE_POSITIVE_RATES
from cdvae_ray.evaluation.detection_protocol import (
    DetectionScores,
    MethodScores,
    Split,
    attack_free,
    split_images,
)
from cdvae_ray.evaluation.detection_scores import ScoreTable, SetRows, score_table
from cdvae_ray.evaluation.detector_fit import SpaceDetectors, fit_space
from cdvae_ray.evaluation.image_computations import FeatureColumns
from cdvae_ray.evaluation.image_detectors import (
    FLAGGED_CLEAN,
    CalibratedDetector,
    calibrated_detectors,
)
from cdvae_ray.storage.row_set import ImageRows

CLASSES = ("a", "b", "c")
CONFIG = DetectorsConfig(
    magnitudes=(0.0,), num_neighbours=(15, 10), lid_references=80, bandwidths=(0.1, 0.3)
)
SPLIT = SplitSettings(seed=3)
# Test images need not be the first of their dataset.
IDS = torch.arange(150) * 2 + 5
METHODS: dict[InputKind, list[str]] = {
    "class_essential": ["KD", "LID", "MD", "residual"],
    "images": ["KD", "LID", "MD"],
}


class Calibrated(NamedTuple):
    """All that calibration takes and makes in one space."""

    extractor: FeatureExtractor
    fitted: SpaceDetectors
    images: Tensor
    table: ScoreTable
    found: dict[DetectorMethod, CalibratedDetector]


def some_images(count: int, *, seed: int) -> Tensor:
    """Images of different brightness and contrast, so that untrained features differ, too."""
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.rand(count, 3, 1, 1, generator=generator)
    noise = torch.rand(count, 3, 16, 16, generator=generator) - 0.5
    return (0.5 + contrast * noise).clamp(0, 1)


def tiny_extractor(space: InputKind) -> FeatureExtractor:
    if space == "images":
        network = build_classifier(
            ClassifierConfig(depth=10, widen_factor=1),
            input_kind="images",
            image_size=16,
            class_names=CLASSES,
            seed=0,
        )
        return feature_extractor("images", classifier=network)
    config = ModelConfig(vae_width=4, latent_size=8, classifier_depth=10, classifier_widen_factor=1)
    return feature_extractor(
        "class_essential", cdvae=build_cdvae(config, image_size=16, class_names=CLASSES, seed=0)
    )


@pytest.fixture(scope="module", params=METHODS)
def calibrated(request: pytest.FixtureRequest) -> Calibrated:
    space: InputKind = request.param
    extractor = tiny_extractor(space)
    compute = FeatureColumns(extractor)

    def rows_of(images: Tensor, ids: Tensor) -> ImageRows:
        return ImageRows(ids, compute(images, torch.arange(len(images)) % 3, ids))

    training = rows_of(some_images(120, seed=0), torch.arange(120))
    fitted = fit_space([training], CONFIG, space=space, num_images=120, num_classes=3, seed=0)
    images = some_images(150, seed=1)
    table = score_table(SetRows(features=rows_of(images, IDS)), fitted, CONFIG)
    found = calibrated_detectors(
        extractor, fitted, table, IDS, split=SPLIT, false_positive_rates=FALSE_POSITIVE_RATES
    )
    return Calibrated(extractor, fitted, images, table, found)


def parts() -> Split:
    return split_images(IDS.numpy(), SPLIT)


def combined(calibrated: Calibrated, method: DetectorMethod) -> np.ndarray:
    """Scores of the clean images by the stored combination."""
    scores = next(iter(calibrated.table[method].values()))
    columns = dict(zip(scores.layers, torch.from_numpy(scores.values).T, strict=True))
    return calibrated.found[method].detector.combination.score(columns).numpy()


def recalibrated(
    calibrated: Calibrated, table: ScoreTable
) -> dict[DetectorMethod, CalibratedDetector]:
    return calibrated_detectors(
        calibrated.extractor,
        calibrated.fitted,
        table,
        IDS,
        split=SPLIT,
        false_positive_rates=FALSE_POSITIVE_RATES,
    )


def test_each_method_has_a_detector_of_its_own_layers(calibrated: Calibrated) -> None:
    assert list(calibrated.found) == METHODS[calibrated.fitted.space]
    for method, each in calibrated.found.items():
        assert each.detector.method == method and not each.detector.training
        assert each.detector.extractor is calibrated.extractor
        layers = next(iter(calibrated.table[method].values())).layers
        assert each.detector.combination.names == layers
        assert each.detector.num_neighbours == (15 if method == "LID" else 0)


def test_scores_are_those_of_the_attack_free_protocol(calibrated: Calibrated) -> None:
    test = parts().test
    right = np.ones(len(IDS), dtype=bool)
    for method in calibrated.found:
        settings = calibrated.table[method]
        scores = MethodScores(
            method=method,
            space=calibrated.fitted.space,
            threat_model=THREAT_MODELS["class-essential"],
            dataset="digits",
            attacks={
                "FGSM": {
                    setting: DetectionScores(
                        image_ids=IDS.numpy(),
                        layers=layers,
                        clean=values,
                        noisy=values + 0.1,
                        adversarial=values * 1.5,
                        clean_correct=right,
                        noisy_correct=right,
                        success=right,
                    )
                    for setting, (layers, values) in settings.items()
                }
            },
        )
        expected = attack_free(scores, "FGSM", split=SPLIT)
        assert expected.setting == next(iter(settings))
        found = combined(calibrated, method)[test]
        np.testing.assert_allclose(found, expected.clean, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(np.argsort(found), np.argsort(expected.clean))
        assert len(np.unique(found)) > 0.9 * len(found)


def test_a_detector_of_images_says_what_the_table_says(calibrated: Calibrated) -> None:
    for method, each in calibrated.found.items():
        with torch.no_grad():
            scores = each.detector.score(calibrated.images)
        np.testing.assert_allclose(scores, combined(calibrated, method), rtol=1e-4, atol=1e-4)
        flags = each.detector.flags(calibrated.images)
        assert torch.equal(flags, scores > each.detector.threshold)
        assert 0 < flags.sum() < 40


def test_thresholds_leave_the_asked_share_of_the_selection_part_above(
    calibrated: Calibrated,
) -> None:
    for method, each in calibrated.found.items():
        scores = combined(calibrated, method)[parts().selection]
        assert list(each.thresholds) == list(FALSE_POSITIVE_RATES)
        assert each.detector.threshold == each.thresholds[FLAGGED_CLEAN]
        for rate, threshold in each.thresholds.items():
            assert (scores > threshold).mean() <= rate
            assert threshold in scores
            lower = scores[scores < threshold].max()
            assert (scores > lower).mean() > rate


def changed(table: ScoreTable, rows: np.ndarray) -> ScoreTable:
    """The table with the scores of some images turned around and made five-fold."""
    found: ScoreTable = {}
    for method, by_setting in table.items():
        found[method] = {}
        for setting, scores in by_setting.items():
            values = scores.values.copy()
            values[rows] = 5 * values[rows][::-1]
            found[method][setting] = scores._replace(values=values)
    return found


def test_each_part_of_the_images_decides_what_it_is_there_for(calibrated: Calibrated) -> None:
    train, selection, test = (
        recalibrated(calibrated, changed(calibrated.table, p)) for p in parts()
    )
    for method, before in calibrated.found.items():
        mean, std = before.detector.combination.mean, before.detector.combination.std
        for after, is_kept in ((train, False), (selection, True), (test, True)):
            combination = after[method].detector.combination
            assert torch.equal(combination.mean, mean) == is_kept
            assert torch.equal(combination.std, std) == is_kept
        assert test[method].thresholds == before.thresholds
        assert selection[method].thresholds != before.thresholds


def test_other_settings_than_the_first_change_nothing(calibrated: Calibrated) -> None:
    table = {
        method: {
            setting: scores if place == 0 else scores._replace(values=scores.values * np.nan)
            for place, (setting, scores) in enumerate(by_setting.items())
        }
        for method, by_setting in calibrated.table.items()
    }
    assert list(calibrated.table["LID"]) == ["k = 15", "k = 10"]
    for method, after in recalibrated(calibrated, table).items():
        assert after.thresholds == calibrated.found[method].thresholds


def test_what_is_no_detector_of_one_network_is_left_out(calibrated: Calibrated) -> None:
    # A disagreement is of two networks; it is in the table, and has no such detector.
    table = {**calibrated.table, "disagreement": calibrated.table["KD"]}
    assert list(recalibrated(calibrated, table)) == METHODS[calibrated.fitted.space]


def test_too_few_images_or_scores_that_never_vary_are_refused(calibrated: Calibrated) -> None:
    def refused(message: str, table: ScoreTable, ids: Tensor) -> None:
        with pytest.raises(DataError, match=message) as caught:
            calibrated_detectors(
                calibrated.extractor,
                calibrated.fitted,
                table,
                ids,
                split=SPLIT,
                false_positive_rates=(FLAGGED_CLEAN,),
            )
        assert "\n" not in str(caught.value)

    (density,) = calibrated.table["KD"].values()
    constant = density._replace(values=np.full_like(density.values, 0.5))
    refused("one value for all images in penultimate", {"KD": {"h = 1": constant}}, IDS)
    few = density._replace(values=density.values[:2])
    refused("parts of the split", {"KD": {"h = 1": few}}, IDS[:2])


def test_configs_of_detectors_start_with_what_needs_no_choice() -> None:
    # What the first setting of each method rests on.
    assert CONFIG.magnitudes[0] == DetectorsConfig().magnitudes[0] == 0
    with pytest.raises(ConfigError, match="0 first"):
        dataclasses.replace(CONFIG, magnitudes=(0.1, 0.0))
