"""Tables of scores: what the detectors say, row by row, and the null controls behind them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KernelDensity as SklearnKernelDensity

from cdvae_ray.config.detection import REFERENCE_NEIGHBOURS, DetectorsConfig
from cdvae_ray.core.detectors.local_dimensionality import reference_lid
from cdvae_ray.core.features import POOLED_LAYERS
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.detection_scores import (
    LayerScores,
    Outcomes,
    ScoreTable,
    SetRows,
    disagreement_table,
    method_scores,
    reference_kept,
    reference_tables,
    score_table,
)
from cdvae_ray.evaluation.detector_fit import SpaceDetectors, fit_space
from cdvae_ray.evaluation.image_computations import step_column
from cdvae_ray.storage.row_set import ImageRows
from tests.core.detectors.synthetic import NUM_CLASSES
from tests.evaluation.test_detector_fit import feature_rows

CONFIG = DetectorsConfig(
    magnitudes=(0.0, 0.01, 0.0014),
    num_neighbours=(20, 10, 30),
    lid_references=3000,
    bandwidths=(0.5, 1.0),
)
STEPLESS = DetectorsConfig(magnitudes=(0.0,), num_neighbours=(20, 90))
SETTINGS = {
    "LID": ["k = 20", "k = 10", "k = 30"],
    "MD": ["m = 0", "m = 0.01", "m = 0.0014"],
}


@pytest.fixture(scope="module")
def fitted() -> SpaceDetectors:
    return fit_space(
        [feature_rows(3000)],
        CONFIG,
        space="class_essential",
        num_images=3000,
        num_classes=NUM_CLASSES,
        seed=0,
    )


def set_rows(count: int, *, seed: int, shift: float = 0.0) -> SetRows:
    """A set with steps, whose scores here are random numbers of their own."""
    features = feature_rows(count, seed=seed, shift=shift)
    generator = torch.Generator().manual_seed(seed)
    columns = {
        step_column(magnitude, layer): torch.rand(count, generator=generator, dtype=torch.float64)
        for magnitude in (0.0014, 0.01)
        for layer in reversed(POOLED_LAYERS)
    }
    return SetRows(features=features, steps=ImageRows(features.image_ids, columns))


def with_column(rows: ImageRows, name: str, values: torch.Tensor) -> ImageRows:
    return ImageRows(rows.image_ids, {**rows.columns, name: values})


def areas(negatives: LayerScores, positives: LayerScores) -> list[float]:
    """AUROC of each layer."""
    assert negatives.layers == positives.layers
    truth = np.repeat([0, 1], [len(negatives.values), len(positives.values)])
    columns = np.concatenate([negatives.values, positives.values]).T
    return [float(roc_auc_score(truth, column)) for column in columns]


def sum_area(negatives: LayerScores, positives: LayerScores) -> float:
    """AUROC of the sum of layers, standardised by the negatives."""
    mean, std = negatives.values.mean(axis=0), negatives.values.std(axis=0)
    sums = [((each.values - mean) / std).sum(axis=1) for each in (negatives, positives)]
    truth = np.repeat([0, 1], [len(each) for each in sums])
    return float(roc_auc_score(truth, np.concatenate(sums)))


# --- the strict table ---------------------------------------------------------------------------


def test_the_table_holds_what_the_detectors_say(fitted: SpaceDetectors) -> None:
    rows = set_rows(70, seed=1)
    table = score_table(rows, fitted, CONFIG)
    assert list(table) == ["KD", "LID", "MD"]
    (density,) = table["KD"].values()
    assert list(table["KD"]) == [f"h = {fitted.bandwidth.bandwidth:g}"]
    assert density.layers == ("penultimate",)
    features, predictions = rows.features, rows.features["prediction"]
    expected = fitted.density.score(features["features/penultimate"], predictions)
    np.testing.assert_array_equal(density.values[:, 0], expected)
    # By the predicted class, which is not the true one everywhere.
    by_label = fitted.density.score(features["features/penultimate"], features["label"])
    wrong = predictions != features["label"]
    assert wrong.any() and bool((expected != by_label)[wrong].all())
    for k, (setting, scores) in zip((20, 10, 30), table["LID"].items(), strict=True):
        assert (setting, scores.layers) == (f"k = {k}", POOLED_LAYERS)
        for place, layer in enumerate(POOLED_LAYERS):
            alone = fitted.dimensionality[layer].score(features[f"features/{layer}"], k)
            np.testing.assert_array_equal(scores.values[:, place], alone)
    distances = table["MD"]["m = 0"]
    assert distances.layers == POOLED_LAYERS
    for place, layer in enumerate(POOLED_LAYERS):
        alone = fitted.mahalanobis[layer].score(features[f"features/{layer}"])
        np.testing.assert_array_equal(distances.values[:, place], alone)


def test_mahalanobis_with_a_step_takes_the_columns_of_that_step(fitted: SpaceDetectors) -> None:
    rows = set_rows(40, seed=1)
    table = score_table(rows, fitted, CONFIG)["MD"]
    assert rows.steps is not None
    for magnitude in (0.01, 0.0014):
        scores = table[f"m = {magnitude:g}"]
        assert scores.layers == POOLED_LAYERS
        for place, layer in enumerate(POOLED_LAYERS):
            stepped = rows.steps[step_column(magnitude, layer)]
            np.testing.assert_array_equal(scores.values[:, place], stepped)
    unstepped = DetectorsConfig(magnitudes=(0.0,), num_neighbours=(20,))
    alone = score_table(SetRows(features=rows.features), fitted, unstepped)["MD"]
    assert list(alone) == ["m = 0"]
    np.testing.assert_array_equal(alone["m = 0"].values, table["m = 0"].values)


def test_the_first_settings_are_those_of_the_config_and_no_step(fitted: SpaceDetectors) -> None:
    table = score_table(set_rows(40, seed=1), fitted, CONFIG)
    assert {method: list(table[method]) for method in SETTINGS} == SETTINGS
    other = DetectorsConfig(magnitudes=(0.0,), num_neighbours=(7, 20))
    again = score_table(set_rows(40, seed=1), fitted, other)
    assert list(again["LID"]) == ["k = 7", "k = 20"]
    np.testing.assert_array_equal(again["LID"]["k = 20"].values, table["LID"]["k = 20"].values)


def test_the_residual_is_there_where_it_was_stored(fitted: SpaceDetectors) -> None:
    rows = set_rows(40, seed=1)
    l2, linf = torch.rand(2, 40, generator=torch.Generator().manual_seed(0))
    columns = {**rows.features.columns, "residual_linf": linf, "residual_l2": l2}
    features = ImageRows(rows.features.image_ids, columns)
    table = score_table(SetRows(features=features, steps=rows.steps), fitted, CONFIG)
    assert list(table) == ["KD", "LID", "MD", "residual"]
    (scores,) = table["residual"].values()
    assert scores.layers == ("residual_l2", "residual_linf")
    np.testing.assert_array_equal(scores.values, torch.stack([l2, linf], dim=1).double())


def test_an_images_scores_do_not_depend_on_the_others(fitted: SpaceDetectors) -> None:
    rows = set_rows(60, seed=1)
    assert rows.steps is not None
    some = torch.arange(60).flip(0)[::3]
    part = SetRows(features=rows.features.select(some), steps=rows.steps.select(some))
    whole, parted = (score_table(each, fitted, CONFIG) for each in (rows, part))
    for method, by_setting in whole.items():
        for setting, scores in by_setting.items():
            np.testing.assert_allclose(
                parted[method][setting].values, scores.values[some.numpy()], rtol=1e-9
            )


def test_disagreement_is_the_divergence_of_two_predictions() -> None:
    ids = torch.arange(3)
    same = torch.tensor([1.0, -2.0])
    opposite = torch.tensor([1000.0, 0.0])
    on_images = ImageRows(ids, {"features/logits": torch.stack([same, opposite, opposite])})
    on_redundant = ImageRows(
        ids, {"features/logits": torch.stack([same + 3, opposite.flip(0), torch.zeros(2)])}
    )
    table = disagreement_table(on_images, on_redundant)
    (scores,) = table["disagreement"].values()
    assert (list(table), scores.layers) == (["disagreement"], ("logits",))
    # (1, 0) against (1/2, 1/2): 1/2 log 4/3 + 1/4 log 2/3 + 1/4 log 2.
    mixed = 0.5 * math.log(4 / 3) + 0.25 * math.log(4 / 3)
    np.testing.assert_allclose(scores.values[:, 0], [0, math.log(2), mixed], atol=1e-6)
    backwards = disagreement_table(on_redundant, on_images)["disagreement"]["Jensen-Shannon"]
    np.testing.assert_allclose(backwards.values, scores.values, atol=1e-7)


# --- the reference's table ----------------------------------------------------------------------


def test_reference_density_is_scikit_learns_of_the_predicted_class(
    fitted: SpaceDetectors,
) -> None:
    sets = {name: set_rows(60, seed=place) for place, name in enumerate(("clean", "noisy"), 1)}
    tables = reference_tables(sets, fitted, CONFIG.magnitudes)
    training = feature_rows(3000)
    for name, rows in sets.items():
        assert list(tables[name]["KD"]) == ["h = 0.26"]
        scores = tables[name]["KD"]["h = 0.26"]
        asked = rows.features["features/penultimate"].double().numpy()
        predictions = rows.features["prediction"]
        for label in range(NUM_CLASSES):
            references = training["features/penultimate"][training["label"] == label]
            oracle = SklearnKernelDensity(bandwidth=0.26, leaf_size=10**9)
            oracle.fit(references.double().numpy())
            chosen = (predictions == label).numpy()
            np.testing.assert_allclose(
                scores.values[chosen, 0], -oracle.score_samples(asked[chosen]), rtol=1e-6
            )
    assert fitted.density.bandwidth != 0.26


def test_reference_dimensionality_is_of_the_kept_images_own_minibatches(
    fitted: SpaceDetectors,
) -> None:
    names = ("clean", "noisy", "adversarial")
    sets = {name: set_rows(230, seed=place, shift=0.2 * place) for place, name in enumerate(names)}
    tables = reference_tables(sets, fitted, CONFIG.magnitudes)
    assert list(tables) == list(names)
    clean = sets["clean"].features
    for name, rows in sets.items():
        table = tables[name]["LID"]
        assert list(table) == [f"k = {k}" for k in range(10, 91, 10)]
        for place, layer in enumerate(POOLED_LAYERS):
            expected = reference_lid(
                rows.features[f"features/{layer}"], clean[f"features/{layer}"], REFERENCE_NEIGHBOURS
            )
            found = np.stack([scores.values[:, place] for scores in table.values()], axis=1)
            np.testing.assert_array_equal(found, expected)
    # Other images kept, other scores of the same image: its minibatch is not the same.
    kept = torch.arange(230) % 2 == 0
    fewer = {
        name: SetRows(features=rows.features.select(kept), steps=rows.steps.select(kept))
        for name, rows in sets.items()
        if rows.steps is not None
    }
    again = reference_tables(fewer, fitted, CONFIG.magnitudes)["clean"]
    assert not np.isclose(
        again["LID"]["k = 10"].values, tables["clean"]["LID"]["k = 10"].values[kept.numpy()]
    ).any()
    for method in ("KD", "MD"):
        for setting, scores in again[method].items():
            whole = tables["clean"][method][setting].values
            np.testing.assert_allclose(scores.values, whole[kept.numpy()], rtol=1e-9)


def test_reference_mahalanobis_is_the_strict_one(fitted: SpaceDetectors) -> None:
    rows = set_rows(60, seed=1)
    found = reference_tables({"clean": rows}, fitted, CONFIG.magnitudes)["clean"]["MD"]
    strict = score_table(rows, fitted, CONFIG)["MD"]
    assert list(found) == list(strict) == SETTINGS["MD"]
    for setting, scores in strict.items():
        np.testing.assert_array_equal(found[setting].values, scores.values)


# --- null controls ------------------------------------------------------------------------------


def test_fresh_clean_images_against_clean_ones_are_a_coin_toss(fitted: SpaceDetectors) -> None:
    clean, fresh, shifted = (
        score_table(SetRows(features=feature_rows(3000, seed=seed, shift=shift)), fitted, STEPLESS)
        for seed, shift in ((1, 0.0), (2, 0.0), (2, 2.0))
    )
    for method in ("KD", "LID", "MD"):
        for setting, scores in clean[method].items():
            # The deviation of each is 0.0075.
            for area in areas(scores, fresh[method][setting]):
                assert 0.47 < area < 0.53, (method, setting)
            # And yet they see what there is to see.
            assert max(areas(scores, shifted[method][setting])) > 0.8, (method, setting)


def test_the_references_dimensionality_takes_fresh_clean_images_for_adversarial_ones(
    fitted: SpaceDetectors,
) -> None:
    clean, fresh = (SetRows(features=feature_rows(1000, seed=seed)) for seed in (1, 2))
    tables = reference_tables(
        {"clean": clean, "noisy": clean, "adversarial": fresh}, fitted, (0.0,)
    )
    lid = {name: table["LID"] for name, table in tables.items()}
    assert min(areas(lid["clean"]["k = 10"], lid["adversarial"]["k = 10"])) > 0.6
    for setting, least in (("k = 10", 0.7), ("k = 20", 0.6)):
        assert sum_area(lid["clean"][setting], lid["adversarial"][setting]) > least
        np.testing.assert_array_equal(lid["clean"][setting].values, lid["noisy"][setting].values)
    strict = [score_table(each, fitted, STEPLESS)["LID"]["k = 20"] for each in (clean, fresh)]
    assert 0.44 < sum_area(*strict) < 0.56
    # The other two, on the same images, do not; the deviation is 0.013.
    for method in ("KD", "MD"):
        (setting,) = tables["clean"][method]
        found = areas(tables["clean"][method][setting], tables["adversarial"][method][setting])
        assert all(0.44 < area < 0.56 for area in found)


# --- by method and attack -----------------------------------------------------------------------


def numbered(ids: torch.Tensor, layers: tuple[str, ...], offset: float) -> LayerScores:
    """Scores that say whose they are."""
    columns = [ids.double() + offset + 1000 * place for place in range(len(layers))]
    return LayerScores(layers, torch.stack(columns, dim=1).numpy())


def test_scores_outcomes_and_ids_of_an_attack_stay_together() -> None:
    ids = {"FGSM": torch.tensor([2, 3, 7, 8]), "BIM": torch.tensor([1, 2, 9])}
    methods = {
        "MD": (("conv1", "layer1"), ("m = 0", "m = 0.01")),
        "KD": (("penultimate",), ("h = 0.5",)),
    }
    sets = ("clean", "noisy", "adversarial")

    def offset(attack: str, name: str, method: str, setting: str) -> float:
        place = sets.index(name) + 3 * (attack == "BIM") + 10 * (method == "KD")
        return 1e5 * place + 50 * (setting == "m = 0.01")

    def table(attack: str, name: str) -> ScoreTable:
        return {
            method: {
                setting: numbered(ids[attack], layers, offset(attack, name, method, setting))
                for setting in settings
            }
            for method, (layers, settings) in methods.items()
        }

    flags = {"FGSM": [True, False, True, True], "BIM": [False, True, True]}
    outcomes = {
        attack: Outcomes(
            np.array(right), np.array(right[::-1]), np.array([not each for each in right])
        )
        for attack, right in flags.items()
    }
    found = method_scores(
        {attack: {name: table(attack, name) for name in sets} for attack in ids},
        outcomes,
        ids,
        space="class_essential",
        threat_model=THREAT_MODELS["class-essential"],
        dataset="digits",
    )
    assert [each.method for each in found] == ["MD", "KD"]
    for each in found:
        layers, settings = methods[each.method]
        assert (each.space, each.dataset) == ("class_essential", "digits")
        assert each.threat_model == THREAT_MODELS["class-essential"]
        assert list(each.attacks) == ["FGSM", "BIM"]
        for attack, by_setting in each.attacks.items():
            assert list(by_setting) == list(settings)
            for setting, rows in by_setting.items():
                assert rows.layers == layers
                np.testing.assert_array_equal(rows.image_ids, ids[attack])
                for name in sets:
                    expected = numbered(
                        ids[attack], layers, offset(attack, name, each.method, setting)
                    )
                    np.testing.assert_array_equal(getattr(rows, name), expected.values)
                for name, values in outcomes[attack]._asdict().items():
                    np.testing.assert_array_equal(getattr(rows, name), values)


# --- what is refused ----------------------------------------------------------------------------


def test_scores_that_are_not_finite_are_refused(fitted: SpaceDetectors) -> None:
    rows = set_rows(40, seed=1)
    assert rows.steps is not None
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = torch.zeros(40)
        broken[7] = bad
        name = step_column(0.01, "layer2")
        steps = with_column(rows.steps, name, broken)
        for run in (
            lambda s=steps: score_table(SetRows(features=rows.features, steps=s), fitted, CONFIG),
            lambda s=steps: reference_tables(
                {"clean": SetRows(features=rows.features, steps=s)}, fitted, CONFIG.magnitudes
            ),
        ):
            with pytest.raises(DataError, match="scores of conv1, layer1, layer2, layer3"):
                run()
        residual = with_column(
            with_column(rows.features, "residual_l2", broken), "residual_linf", torch.zeros(40)
        )
        with pytest.raises(DataError, match="scores of residual_l2, residual_linf"):
            score_table(SetRows(features=residual, steps=rows.steps), fitted, CONFIG)
        for layer in ("conv1", "penultimate"):
            values = rows.features[f"features/{layer}"].clone()
            values[7, 1] = bad
            features = with_column(rows.features, f"features/{layer}", values)
            with pytest.raises(DataError, match="NaN or infinity in 1 of 40"):
                score_table(SetRows(features=features, steps=rows.steps), fitted, CONFIG)


@pytest.mark.parametrize(
    "name", ["features/conv1", "features/penultimate", "prediction", "m = 0.01/layer3"]
)
def test_columns_that_are_missing_are_refused(fitted: SpaceDetectors, name: str) -> None:
    rows = set_rows(40, seed=1)
    assert rows.steps is not None
    features, steps = (
        ImageRows(each.image_ids, {key: own for key, own in each.columns.items() if key != name})
        for each in (rows.features, rows.steps)
    )
    with pytest.raises(DataError, match=f"expected {name} among them"):
        score_table(SetRows(features=features, steps=steps), fitted, CONFIG)


def test_images_of_other_layers_or_classes_are_refused(fitted: SpaceDetectors) -> None:
    rows = set_rows(40, seed=1)
    narrow = with_column(rows.features, "features/conv1", rows.features["features/layer1"])
    with pytest.raises(DataError, match=r"\(N, 5\)"):
        score_table(SetRows(features=narrow, steps=rows.steps), fitted, CONFIG)
    foreign = with_column(rows.features, "prediction", rows.features["prediction"] + 1)
    with pytest.raises(DataError, match="predictions: got classes"):
        score_table(SetRows(features=foreign, steps=rows.steps), fitted, CONFIG)
    with pytest.raises(DataError, match="reference local dimensionality"):
        reference_tables({"clean": set_rows(102, seed=1)}, fitted, CONFIG.magnitudes)


def test_the_reference_keeps_no_minibatch_that_its_lid_has_no_value_for() -> None:
    right = np.ones(250, dtype=np.bool_)
    for wanted, kept in ((250, 250), (203, 203), (202, 200), (201, 200), (200, 200), (1, 0)):
        success = np.arange(250) < wanted
        found = reference_kept(Outcomes(right, right, success))
        assert int(found.sum()) == kept
        assert found[:kept].all()
    # All three conditions count.
    half = np.arange(250) % 2 == 0
    assert int(reference_kept(Outcomes(half, right, right)).sum()) == 125
    assert int(reference_kept(Outcomes(right, half, right)).sum()) == 125
