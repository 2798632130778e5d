"""The study's sums over shards against numpy over all rows at once."""

import numpy as np
import pytest
import torch

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.frechet import feature_moments, frechet_distance
from cdvae_ray.evaluation.study_columns import COMPARED, NORMS
from cdvae_ray.evaluation.study_statistics import (
    AnswerCounts,
    frechet_pair,
    merge_study,
    reduce_study,
    study_sums,
)
from cdvae_ray.storage.row_set import ImageRows
from tests.evaluation.made_rows import cut, decomposition_rows


def assert_same_moments(found, expected, rtol=1e-12):
    assert found.count == expected.count
    for name in ("mean_a", "mean_b", "square_a", "square_b", "product"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=rtol, atol=rtol
        )


def with_columns(rows, **columns):
    return ImageRows(rows.image_ids, {**rows.columns, **columns})


def test_sums_of_one_shard_are_numpys():
    rows = decomposition_rows()
    sums = study_sums(rows)
    for norm in NORMS:
        values = rows[norm].double().numpy()
        np.testing.assert_allclose(sums.norms[norm].mean_a, values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(sums.norms[norm].std_a(), values.std(0, ddof=1), rtol=1e-12)
    cosines = rows["cosine"].numpy()
    np.testing.assert_allclose(sums.cosines.mean_a, cosines.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sums.cosines.std_a(), cosines.std(0, ddof=1), rtol=1e-12)
    z, other = rows["latent"].numpy(), rows["latent_adversarial"].numpy()
    expected = [np.corrcoef(z[:, i], other[:, i])[0, 1] for i in range(6)]
    np.testing.assert_allclose(sums.latents.correlation(), expected, rtol=1e-6)
    for part in COMPARED:
        features = rows[f"features/{part}"].double().numpy()
        moments = sums.of_part(part)
        assert moments.counts.tolist() == [40]
        np.testing.assert_allclose(moments.means[0], features.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(
            moments.scatter / 39, np.cov(features, rowvar=False), rtol=1e-10, atol=1e-12
        )


def test_answers_are_counted_by_who_gave_them():
    label = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    rows = with_columns(
        decomposition_rows(8),
        label=label,
        prediction=torch.where(torch.arange(8) < 7, label, 5),
        prediction_adversarial=torch.where(torch.arange(8) < 2, label, 5),
        essential_prediction=torch.where(torch.arange(8) < 5, label, 5),
        essential_prediction_adversarial=torch.where(torch.arange(8) < 3, label, 5),
    )
    expected = AnswerCounts(
        images=8,
        right=7,
        right_adversarial=2,
        essential_right=5,
        essential_right_adversarial=3,
    )
    assert study_sums(rows).counts == expected
    assert reduce_study(cut(rows, 3)).counts == expected


@pytest.mark.parametrize("shards", [1, 2, 7, 40])
def test_any_number_of_shards_gives_the_sums_of_one(shards):
    rows = decomposition_rows()
    found, expected = reduce_study(iter(cut(rows, shards))), study_sums(rows)
    assert found.counts == expected.counts
    for norm in NORMS:
        assert_same_moments(found.norms[norm], expected.norms[norm])
    assert_same_moments(found.cosines, expected.cosines)
    assert_same_moments(found.latents, expected.latents)
    assert set(found.features) == set(expected.features)
    for key, moments in expected.features.items():
        assert torch.equal(found.features[key].counts, moments.counts)
        np.testing.assert_allclose(found.features[key].means, moments.means, rtol=1e-12)
        np.testing.assert_allclose(
            found.features[key].scatter, moments.scatter, rtol=1e-11, atol=1e-11
        )
    for pair in (("G(x)", "G(x')"), ("R(x)", "R(x')")):
        np.testing.assert_allclose(
            frechet_pair(found, *pair), frechet_pair(expected, *pair), rtol=1e-9
        )


def test_merging_leaves_both_shards_as_they_were():
    first, second = (study_sums(each) for each in cut(decomposition_rows(), 2))
    before = {key: moments.counts.clone() for key, moments in first.features.items()}
    merged = merge_study(first, second)
    assert merged.counts.images == 40 and first.counts.images == second.counts.images == 20
    assert set(first.features) == set(before)
    for key, counts in before.items():
        assert torch.equal(first.features[key].counts, counts)


def test_halves_are_of_even_and_odd_ids_however_the_shards_are_cut():
    rows = decomposition_rows(21)
    for shards in (1, 4, 21):
        sums = reduce_study(cut(rows, shards))
        for half, count in ((0, 11), (1, 10)):
            moments = sums.features["R(x)", half]
            assert moments.counts.tolist() == [count]
            expected = rows["features/R(x)"][half::2].double().mean(dim=0)
            np.testing.assert_allclose(moments.means[0], expected, rtol=1e-12)


def test_the_frechet_pair_is_of_all_images_and_chance_of_two_halves():
    rows = decomposition_rows()
    sums = reduce_study(cut(rows, 3))
    for clean, adversarial in (("G(x)", "G(x')"), ("R(x)", "R(x')")):
        a, b = (rows[f"features/{part}"] for part in (clean, adversarial))
        found = frechet_pair(sums, clean, adversarial)
        direct = frechet_distance(feature_moments(a), feature_moments(b))
        halves = frechet_distance(feature_moments(a[::2]), feature_moments(a[1::2]))
        np.testing.assert_allclose(found, (direct, halves), rtol=1e-9)
        assert found.null is not None and found.null > 0


def test_equal_parts_are_at_no_distance_and_below_chance():
    rows = decomposition_rows()
    equal = with_columns(rows, **{"features/G(x')": rows["features/G(x)"].clone()})
    found = frechet_pair(study_sums(equal), "G(x)", "G(x')")
    assert found.distance < 1e-9 and found.null is not None and found.null > 0.1


@pytest.mark.parametrize(
    ("ids", "has_chance"),
    [
        ([0, 2, 4, 6], False),
        ([1, 3, 5], False),
        ([0, 2, 4, 5], False),
        ([0, 1, 2, 3], True),
    ],
)
def test_chance_needs_two_images_in_each_half(ids, has_chance):
    some = decomposition_rows().select(torch.tensor(ids))
    found = frechet_pair(reduce_study(cut(some, 2)), "R(x)", "R(x')")
    assert found.distance > 0
    assert (found.null is not None) == has_chance


def test_one_image_has_no_frechet_distance():
    sums = study_sums(decomposition_rows(1))
    with pytest.raises(DataError, match="images of a Frechet distance: got 1"):
        frechet_pair(sums, "G(x)", "G(x')")


def test_rows_that_lack_a_column_are_refused():
    rows = decomposition_rows()
    for name in rows.columns:
        rest = {key: values for key, values in rows.columns.items() if key != name}
        with pytest.raises(DataError, match="columns of rows by image") as refused:
            study_sums(ImageRows(rows.image_ids, rest))
        assert f"expected {name} among them" in str(refused.value)


@pytest.mark.parametrize("name", ["l1", "linf", "cosine", "latent_adversarial", "features/R(x)"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(name, value):
    rows = decomposition_rows()
    broken = rows[name].clone()
    broken[3, 1] = value
    with pytest.raises(DataError, match="NaN or infinity"):
        study_sums(with_columns(rows, **{name: broken}))


def test_no_shard_is_refused():
    with pytest.raises(DataError, match="shards of the study: got none"):
        reduce_study([])
