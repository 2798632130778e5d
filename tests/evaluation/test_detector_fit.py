"""Detectors from stored features: oracles, whatever the shards, and what cannot be fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import KernelDensity as SklearnKernelDensity
from torch import Tensor

from cdvae_ray.config.detection import DetectorsConfig
from cdvae_ray.core.detectors.bandwidth import choose_bandwidth
from cdvae_ray.core.detectors.local_dimensionality import fit_lid
from cdvae_ray.core.detectors.mahalanobis import fit_mahalanobis
from cdvae_ray.core.detectors.moments import class_moments
from cdvae_ray.core.features import POOLED_LAYERS
from cdvae_ray.errors import CdvaeError, ConfigError, DataError
from cdvae_ray.evaluation.detector_fit import SpaceDetectors, fit_space, reference_mask
from cdvae_ray.storage.row_set import ImageRows
from tests.core.detectors.synthetic import NUM_CLASSES, gaussian_classes

# Widths of which `gaussian_classes` has covariances of a condition below 1,000.
WIDTHS = {"conv1": 5, "layer1": 6, "layer2": 8, "layer3": 9, "penultimate": 12}
CONFIG = DetectorsConfig(
    magnitudes=(0.0,), num_neighbours=(20, 10), lid_references=200, bandwidths=(0.3, 0.6, 1.2)
)
UNEVEN = (1, 3, 40, 200, 7, 100, 150, 99)


def feature_rows(count: int, *, seed: int = 0, shift: float = 0.0) -> ImageRows:
    """Rows as `FeatureColumns` makes them, of Gaussian classes; one prediction of 20 is wrong."""
    columns = {}
    for layer, width in WIDTHS.items():
        # Labels are drawn first: they are those of the seed in every layer.
        features, labels = gaussian_classes(count, width, seed=seed, shift=shift)
        columns[f"features/{layer}"] = features.float()
    ids = torch.arange(count)
    prediction = torch.where(ids % 20 == 19, (labels + 1) % NUM_CLASSES, labels)
    return ImageRows(ids, {"label": labels, "prediction": prediction, **columns})


def with_fifth_layer(rows: ImageRows, seed: int) -> ImageRows:
    """A ResNet's rows."""
    features, _ = gaussian_classes(len(rows), 10, seed=seed)
    columns = {**rows.columns, "features/layer4": features.float()}
    return ImageRows(rows.image_ids, columns)


def in_shards(rows: ImageRows, sizes: Sequence[int]) -> list[ImageRows]:
    return [rows.select(places) for places in torch.arange(len(rows)).split(list(sizes))]


def fit(
    shards: Sequence[ImageRows],
    config: DetectorsConfig = CONFIG,
    *,
    num_images: int = 600,
    num_classes: int = NUM_CLASSES,
    seed: int = 0,
) -> SpaceDetectors:
    return fit_space(
        shards,
        config,
        space="images",
        num_images=num_images,
        num_classes=num_classes,
        seed=seed,
    )


def all_scores(fitted: SpaceDetectors, queries: ImageRows) -> dict[str, Tensor]:
    scores = {
        f"MD {layer}": fitted.mahalanobis[layer].score(queries[f"features/{layer}"])
        for layer in POOLED_LAYERS
    }
    for layer in POOLED_LAYERS:
        by_k = fitted.dimensionality[layer].scores(queries[f"features/{layer}"], (20, 10))
        scores[f"LID {layer}"] = by_k
    density = queries[f"features/{fitted.density_layer}"]
    return {**scores, "KD": fitted.density.score(density, queries["prediction"])}


def reference_ids(fitted: SpaceDetectors) -> list[list[int]]:
    return [each.index.ids.tolist() for each in fitted.dimensionality.values()]


# --- the same whatever the shards ---------------------------------------------------------------


def test_scores_do_not_depend_on_the_shards() -> None:
    rows, queries = feature_rows(600), feature_rows(80, seed=1)
    whole, parted = fit([rows]), fit(in_shards(rows, UNEVEN))
    assert whole.bandwidth == parted.bandwidth
    assert (whole.num_images, whole.space, whole.density_layer) == (600, "images", "penultimate")
    expected, found = all_scores(whole, queries), all_scores(parted, queries)
    assert len(found) == 9
    for name, scores in found.items():
        assert scores.dtype == torch.float64 and len(scores.unique()) > 40
        torch.testing.assert_close(scores, expected[name], rtol=1e-12, atol=0)


def test_references_are_the_same_images_whatever_the_shards_and_depend_on_the_seed() -> None:
    rows = feature_rows(600)
    whole, parted, other = fit([rows]), fit(in_shards(rows, UNEVEN)), fit([rows], seed=1)
    (first, *_) = reference_ids(whole)
    assert len(first) == 200 and first == sorted(set(first))
    # One choice of images for all layers.
    assert reference_ids(whole) == reference_ids(parted) == [first] * 4
    assert reference_ids(other) != reference_ids(whole)
    for fitted in (whole, parted, other):
        for layer, each in fitted.dimensionality.items():
            expected = rows[f"features/{layer}"][each.index.ids]
            assert torch.equal(each.index.references, expected)


def test_references_are_drawn_evenly_and_fewer_are_some_of_more() -> None:
    some, more = (reference_mask(20_000, count, seed=3) for count in (2_000, 5_000))
    assert (int(some.sum()), int(more.sum())) == (2_000, 5_000)
    assert not bool((some & ~more).any())
    # 250 of each block of 1,000 are expected; the deviation is 13.
    assert bool(((more.view(20, 1_000).sum(dim=1) - 250).abs() < 60).all())


def test_more_references_than_images_are_all_images() -> None:
    fitted = fit([feature_rows(150)], num_images=150)
    assert reference_ids(fitted) == [list(range(150))] * 4
    assert bool(reference_mask(7, 7, seed=0).all()) and bool(reference_mask(7, 9, seed=0).all())


# --- oracles ------------------------------------------------------------------------------------


def test_mahalanobis_is_that_of_scikit_learns_covariance() -> None:
    rows, queries = feature_rows(600), feature_rows(50, seed=1)
    fitted = fit(in_shards(rows, UNEVEN))
    labels = rows["label"].numpy()
    for layer in POOLED_LAYERS:
        features = rows[f"features/{layer}"].double().numpy()
        means = np.stack([features[labels == label].mean(axis=0) for label in range(NUM_CLASSES)])
        oracle = EmpiricalCovariance(assume_centered=True).fit(features - means[labels])
        asked = queries[f"features/{layer}"].double().numpy()
        distances = np.stack([oracle.mahalanobis(asked - mean) for mean in means])
        found = fitted.mahalanobis[layer].score(queries[f"features/{layer}"])
        np.testing.assert_allclose(found, 0.5 * distances.min(axis=0), rtol=1e-9)


def test_density_is_of_the_true_classes_with_the_bandwidth_chosen_on_training_images() -> None:
    rows, queries = feature_rows(600), feature_rows(50, seed=1)
    for layer in ("penultimate", "layer3"):
        config = DetectorsConfig(density_layer=layer, bandwidths=(0.3, 0.6, 1.2))  # type: ignore[arg-type]
        fitted = fit(in_shards(rows, UNEVEN), config, seed=4)
        features, asked = rows[f"features/{layer}"], queries[f"features/{layer}"]
        choice = choose_bandwidth(features, rows["label"], NUM_CLASSES, config.bandwidths, seed=4)
        assert fitted.bandwidth == choice and fitted.density.bandwidth == choice.bandwidth
        scores = fitted.density.score(asked, queries["prediction"]).numpy()
        for label in range(NUM_CLASSES):
            oracle = SklearnKernelDensity(bandwidth=choice.bandwidth, leaf_size=10**9)
            oracle.fit(features[rows["label"] == label].double().numpy())
            chosen = (queries["prediction"] == label).numpy()
            expected = -oracle.score_samples(asked[chosen].double().numpy())
            np.testing.assert_allclose(scores[chosen], expected, rtol=1e-6)


def test_dimensionality_is_that_of_the_references() -> None:
    rows, queries = feature_rows(600), feature_rows(50, seed=1)
    fitted = fit(in_shards(rows, UNEVEN), seed=2)
    ids = reference_mask(600, 200, seed=2).nonzero().flatten()
    for layer in POOLED_LAYERS:
        alone = fit_lid(rows[f"features/{layer}"][ids], ids)
        asked = queries[f"features/{layer}"]
        found = fitted.dimensionality[layer].scores(asked, (20, 10))
        assert torch.equal(found, alone.scores(asked, (20, 10)))


def test_a_resnets_fifth_layer_has_detectors_of_its_own() -> None:
    rows = with_fifth_layer(feature_rows(600), seed=0)
    queries = with_fifth_layer(feature_rows(50, seed=1), seed=1)
    whole, parted = fit([rows]), fit(in_shards(rows, UNEVEN))
    four = fit([feature_rows(600)])
    layers = [*POOLED_LAYERS, "layer4"]
    assert list(whole.mahalanobis) == list(whole.dimensionality) == layers
    assert list(four.mahalanobis) == list(four.dimensionality) == layers[:-1]
    features, asked = rows["features/layer4"], queries["features/layer4"]
    alone = fit_mahalanobis(class_moments(features, rows["label"], NUM_CLASSES))
    ids = reference_mask(600, 200, seed=0).nonzero().flatten()
    nearest = fit_lid(features[ids], ids)
    for fitted in (whole, parted):
        found = fitted.mahalanobis["layer4"].score(asked)
        torch.testing.assert_close(found, alone.score(asked), rtol=1e-9, atol=0)
        found = fitted.dimensionality["layer4"].scores(asked, (20, 10))
        torch.testing.assert_close(found, nearest.scores(asked, (20, 10)), rtol=1e-12, atol=0)
    # The others are what they are without it.
    for name, scores in all_scores(whole, queries).items():
        assert torch.equal(scores, all_scores(four, queries)[name]), name


def test_columns_that_no_detector_looks_at_may_be_missing() -> None:
    rows = feature_rows(600)
    kept = {name: values for name, values in rows.columns.items() if "penultimate" not in name}
    config = DetectorsConfig(density_layer="layer3")
    assert fit([ImageRows(rows.image_ids, kept)], config).density.references.shape == (600, 9)
    with pytest.raises(DataError, match="expected features/penultimate among them"):
        fit([ImageRows(rows.image_ids, kept)])


def test_duplicate_images_have_finite_scores() -> None:
    rows = feature_rows(60)
    # Each image ten times: every query, itself a reference, has ten neighbours at distance 0.
    places = torch.arange(600) % 60
    copies = ImageRows(
        torch.arange(600), {name: values[places] for name, values in rows.columns.items()}
    )
    config = DetectorsConfig(num_neighbours=(20, 10), bandwidths=CONFIG.bandwidths)
    fitted = fit(in_shards(copies, UNEVEN), config)
    for scores in all_scores(fitted, rows).values():
        assert bool(scores.isfinite().all())
    # All of the ten nearest lie at 0: a point has no dimension.
    assert bool((fitted.dimensionality["conv1"].score(rows["features/conv1"], 10) == 0).all())
    assert bool((fitted.dimensionality["conv1"].score(rows["features/conv1"], 20) > 0).all())


# --- what is refused ----------------------------------------------------------------------------


def refused(error: type[CdvaeError], message: str, run: Callable[[], object]) -> None:
    with pytest.raises(error, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


def changed(rows: ImageRows, name: str, values: Tensor) -> ImageRows:
    return ImageRows(rows.image_ids, {**rows.columns, name: values})


def test_images_that_are_missing_doubled_or_out_of_order_are_refused() -> None:
    rows = feature_rows(600)
    first, second, third = in_shards(rows, (200, 300, 100))
    turned = second.select(torch.arange(300).flip(0))
    doubled = second.select(torch.arange(300).clamp(max=298))
    foreign = ImageRows(third.image_ids + 1, third.columns)
    for shards, got in (
        ([], "0 rows"),
        ([first, second], "500 rows"),
        ([first, third], "ids 500 to 599"),
        ([second, first, third], "ids 200 to 499"),
        ([first, second, second, third], "ids 200 to 499"),
        ([first, second, third, third], "ids 500 to 599"),
        ([first, turned, third], "ids 499 to 200"),
        ([first, doubled, third], "ids 200 to 498"),
        ([first, second, foreign], "ids 501 to 600"),
        ([first, second.select(torch.arange(299)), third], "ids 500 to 599"),
    ):
        complaint = f"got {got}( after \\d+ rows)?, expected all 600 images once, in order"
        refused(DataError, complaint, lambda s=shards: fit(s))  # type: ignore[misc]


def test_more_images_than_said_are_refused() -> None:
    rows = feature_rows(600)
    for shards in ([rows], in_shards(rows, (500, 100)), in_shards(rows, UNEVEN)):
        refused(
            DataError,
            "expected all \\d+ images once",
            lambda s=shards: fit(s, num_images=500),  # type: ignore[misc]
        )


def test_classes_without_images_are_refused() -> None:
    rows = feature_rows(600)
    few = rows["label"].clone()
    few[few == 2] = 1
    for one in (0, 1):
        few[:one] = 2
        shards = [changed(rows, "label", few)]
        refused(DataError, f"{one} of class 2", lambda s=shards: fit(s))  # type: ignore[misc]
    refused(DataError, "of class 3", lambda: fit([rows], num_classes=4))
    refused(DataError, "labels: got classes 0 to 2", lambda: fit([rows], num_classes=2))
    refused(ConfigError, "num_classes", lambda: fit([rows], num_classes=0))


@pytest.mark.parametrize("layer", WIDTHS)
def test_features_that_are_missing_or_not_finite_are_refused(layer: str) -> None:
    name, rows = f"features/{layer}", feature_rows(600)
    for bad in (torch.nan, torch.inf):
        broken = rows[name].clone()
        broken[321, 1] = bad
        shards = in_shards(changed(rows, name, broken), UNEVEN)
        refused(DataError, "NaN or infinity in 1 of", lambda s=shards: fit(s))  # type: ignore[misc]
    for absent in (name, "label"):
        kept = {key: values for key, values in rows.columns.items() if key != absent}
        refused(
            DataError,
            f"expected {absent} among them",
            lambda k=kept: fit([ImageRows(rows.image_ids, k)]),  # type: ignore[misc]
        )


@pytest.mark.parametrize("layer", POOLED_LAYERS)
def test_features_that_never_vary_are_refused(layer: str) -> None:
    rows, name = feature_rows(600), f"features/{layer}"
    dead = torch.full_like(rows[name], 0.7)
    by_class = rows["label"][:, None] * torch.ones_like(dead)
    for constant in (dead, by_class):
        shards = in_shards(changed(rows, name, constant), UNEVEN)
        refused(DataError, "no variation within any class", lambda s=shards: fit(s))  # type: ignore[misc]


def test_fewer_references_than_neighbours_are_refused_when_scoring() -> None:
    rows = feature_rows(19)
    fitted = fit([rows], num_images=19)
    lid = fitted.dimensionality["layer1"]
    refused(
        DataError,
        "got 19 besides the query itself, expected at least 20",
        lambda: lid.scores(rows["features/layer1"], CONFIG.num_neighbours),
    )
    assert lid.scores(rows["features/layer1"], (19, 10)).shape == (19, 2)
    refused(ConfigError, "lid_references", lambda: DetectorsConfig(lid_references=89))
