from __future__ import annotations

import pytest

from cdvae_ray.config.data import DataConfig
from cdvae_ray.data import ImageSet, Splits, load, load_split, load_splits
from cdvae_ray.data.images import LIMIT_SEED
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


@pytest.mark.parametrize("half", ["train", "test"])
def test_one_half_is_that_of_both(half: str) -> None:
    config = DataConfig(train_limit=40, test_limit=30)
    one, both = load_split(config, half), load_splits(config)
    assert (one.digest, one.name) == (getattr(both, half).digest, f"digits/{half}")
    whole = load_split(DataConfig(), half)
    assert one.digest == whole.limit(len(one), LIMIT_SEED).digest


def test_one_half_asks_its_own_limit_alone() -> None:
    assert len(load_split(DataConfig(test_limit=361, train_limit=5), "train")) == 5
    with pytest.raises(DataError, match=r"limit on digits/test: got 361, .* \[1, 360\]"):
        load_split(DataConfig(test_limit=361), "test")


def test_one_half_of_halves_with_other_class_names_is_an_error(make_set, monkeypatch) -> None:
    _patch(monkeypatch, make_set(5, 3), make_set(5, 2))
    with pytest.raises(DataError, match=r"class names of made/train: got .*class 1"):
        load_split(DataConfig(), "test")
