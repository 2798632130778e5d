from __future__ import annotations

import pytest

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data import ImageSet, Splits, load, load_splits
from cdvae_ray.errors import DataError


def test_a_limit_beyond_the_dataset_is_an_error() -> None:
    with pytest.raises(DataError, match=r"limit on digits/test: got 361, .* \[1, 360\]"):
        load_splits(DataConfig(test_limit=361))


def _patch(monkeypatch: pytest.MonkeyPatch, train: ImageSet, test: ImageSet) -> None:
    monkeypatch.setattr(load, "load_digits", lambda image_size: Splits(train, test))


def test_halves_with_other_class_names_are_an_error(make_set, monkeypatch) -> None:
    _patch(monkeypatch, make_set(5, 3), make_set(5, 2))
    with pytest.raises(DataError, match=r"class names of made/train: got .*class 1"):
        load_splits(DataConfig())


def test_another_image_size_is_an_error(make_set, monkeypatch) -> None:
    _patch(monkeypatch, make_set(5), make_set(6))
    with pytest.raises(DataError, match=r"image size of made/train: got 2, expected 16"):
        load_splits(DataConfig())
