"""The picture of detection: that it is drawn, and of what."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_picture import detection_picture
from tests.evaluation.test_detection_table import detection


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_picture_is_a_png_that_depends_on_the_scores_alone() -> None:
    found = [detection(), detection(seed=1, space="images")]
    first = detection_picture(found, caption="attack on D(R(x))")
    assert first == detection_picture(found, caption="attack on D(R(x))")
    image = pixels(first)
    assert image.shape[0] > 400 and image.shape[1] > 1000
    # Clean, noisy and adversarial scores in their colours.
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    weaker = [dataclasses.replace(each, adversarial=each.adversarial - 2) for each in found]
    changed = np.abs(pixels(detection_picture(weaker, caption="attack on D(R(x))")) - image)
    assert (changed.max(axis=2) > 60).mean() > 0.01


def test_picture_of_scores_that_are_all_equal() -> None:
    same = np.zeros(150)
    found = dataclasses.replace(detection(), clean=same, noisy=same, adversarial=same)
    assert pixels(detection_picture([found], caption="")).std() > 0


def test_picture_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="detections"):
        detection_picture([], caption="")
