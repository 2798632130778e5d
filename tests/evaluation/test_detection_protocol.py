"""Protocols: no image in two parts, nothing of the test part in a fit, the reference literally."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score

from cdvae_ray.config.detection import SplitSettings
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.errors import ConfigError, DataError
from cdvae_ray.evaluation.bootstrap import bootstrap
from cdvae_ray.evaluation.detection_metrics import FloatArray, all_metrics, rank_scores
from cdvae_ray.evaluation.detection_protocol import (
    DetectionScores,
    MethodScores,
    attack_free,
    reference,
    same_attack,
    split_images,
    unseen_matrix,
)

SPLIT = SplitSettings(seed=3)


def detection_scores(
    count: int = 200, *, seed: int = 0, shift: float = 1.0, success: float = 0.8
) -> DetectionScores:
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(count, 3))
    return DetectionScores(
        image_ids=np.arange(count) * 2 + 5,
        layers=("conv", "block", "last"),
        clean=own + rng.normal(size=own.shape),
        noisy=own + rng.normal(size=own.shape),
        adversarial=own + rng.normal(size=own.shape) + shift * np.array([0.0, 1.0, 2.0]),
        clean_correct=rng.random(count) < 0.9,
        noisy_correct=rng.random(count) < 0.9,
        success=rng.random(count) < success,
    )


def method_scores(count: int = 200, *, shift: float = 1.0) -> MethodScores:
    return MethodScores(
        method="LID",
        space="class_essential",
        threat_model=THREAT_MODELS["class-essential"],
        dataset="digits",
        attacks={
            attack: {
                "k = 10": detection_scores(count, seed=seed, shift=0.3 * shift),
                "k = 20": detection_scores(count, seed=seed, shift=shift),
            }
            for seed, attack in enumerate(("FGSM", "BIM"))
        },
    )


def changed(
    scores: MethodScores, change: Callable[[DetectionScores], DetectionScores]
) -> MethodScores:
    return dataclasses.replace(
        scores,
        attacks={
            attack: {setting: change(rows) for setting, rows in by_setting.items()}
            for attack, by_setting in scores.attacks.items()
        },
    )


# --- the split ----------------------------------------------------------------------------------


def test_each_image_is_in_one_part_about_as_often_as_asked() -> None:
    parts = split_images(np.arange(20_000), SplitSettings(train_fraction=0.1))
    assert (np.sum(parts, axis=0) == 1).all()
    for part, share in zip(parts, (0.1, 0.2, 0.7), strict=True):
        assert abs(part.mean() - share) < 4 * np.sqrt(share * (1 - share) / 20_000)


def test_an_images_part_depends_on_its_id_and_the_seed_alone() -> None:
    ids = np.arange(1000)
    whole, some = split_images(ids, SPLIT), split_images(ids[300:700], SPLIT)
    for part, of_some in zip(whole, some, strict=True):
        np.testing.assert_array_equal(part[300:700], of_some)
    other = split_images(ids, SplitSettings(seed=4))
    assert not np.array_equal(other.test, whole.test)


def test_a_split_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(DataError, match="parts of the split"):
        split_images(np.arange(2), SPLIT)
    for fractions in ((0.0, 0.2), (0.5, 0.5), (0.2, -0.1)):
        with pytest.raises(ConfigError, match="fractions"):
            SplitSettings(train_fraction=fractions[0], selection_fraction=fractions[1])


# --- no leakage ---------------------------------------------------------------------------------


def test_nothing_of_the_test_part_reaches_a_fit() -> None:
    scores = method_scores()

    def scramble(rows: DetectionScores) -> DetectionScores:
        """Permutes the test images' scores and verdicts, and makes them 5-fold."""
        test = split_images(rows.image_ids, SPLIT).test
        order = np.arange(len(rows))
        order[test] = order[test][::-1]
        factor = np.where(test, 5.0, 1.0)[:, None]
        return dataclasses.replace(
            rows,
            clean=rows.clean[order] * factor,
            noisy=rows.noisy[order] * factor,
            adversarial=rows.adversarial[order] * factor,
            success=rows.success[order],
            clean_correct=rows.clean_correct[order],
        )

    def halve(rows: DetectionScores) -> DetectionScores:
        test = split_images(rows.image_ids, SPLIT).test
        return rows.select(~test | (np.arange(len(rows)) % 2 == 0))

    for protocol in (same_attack, attack_free):
        before = protocol(scores, "BIM", split=SPLIT)
        for change in (scramble, halve):
            after = protocol(changed(scores, change), "BIM", split=SPLIT)
            assert after.combiner.to_json() == before.combiner.to_json()
            assert after.setting == before.setting
            assert not np.array_equal(after.adversarial, before.adversarial)


def test_only_test_images_are_reported() -> None:
    scores = method_scores()
    rows = scores.attacks["BIM"]["k = 20"]
    test = split_images(rows.image_ids, SPLIT).test
    every = same_attack(scores, "BIM", split=SPLIT, subset="all")
    np.testing.assert_array_equal(every.image_ids, rows.image_ids[test])
    fooled = same_attack(scores, "BIM", split=SPLIT)
    np.testing.assert_array_equal(
        fooled.image_ids, rows.image_ids[test & rows.clean_correct & rows.success]
    )
    # One detector, two sets of test images.
    assert fooled.combiner.to_json() == every.combiner.to_json()
    np.testing.assert_array_equal(
        fooled.adversarial, every.adversarial[np.isin(every.image_ids, fooled.image_ids)]
    )
    for name in ("image_ids", "clean", "noisy", "adversarial", "successful"):
        np.testing.assert_array_equal(getattr(every.of_successful(), name), getattr(fooled, name))
    assert every.of_successful().subset == "successful" and fooled.successful.all()
    np.testing.assert_array_equal(every.noisy, every.combiner.score(rows.noisy[test]))


def test_the_attack_reaches_no_attack_free_detector() -> None:
    scores = method_scores()
    stronger = changed(scores, lambda rows: dataclasses.replace(rows, adversarial=rows.noisy * 9))
    first, second = (attack_free(each, "BIM", split=SPLIT) for each in (scores, stronger))
    assert first.combiner.to_json() == second.combiner.to_json()
    assert first.setting == second.setting == "k = 10" and first.trained_on == "none"


# --- modes --------------------------------------------------------------------------------------


def test_the_better_setting_on_the_selection_part_is_chosen() -> None:
    assert same_attack(method_scores(), "BIM", split=SPLIT).setting == "k = 20"
    assert reference(method_scores(400), "BIM").setting == "k = 20"


def test_diagonal_of_the_unseen_matrix_is_same_attack() -> None:
    scores = method_scores()
    matrix = unseen_matrix(scores, split=SPLIT)
    assert [(each.trained_on, each.attack, each.mode) for each in matrix] == [
        ("FGSM", "FGSM", "same_attack"),
        ("FGSM", "BIM", "unseen"),
        ("BIM", "FGSM", "unseen"),
        ("BIM", "BIM", "same_attack"),
    ]
    for each in (matrix[0], matrix[3]):
        alone = same_attack(scores, each.attack, split=SPLIT)
        np.testing.assert_array_equal(each.adversarial, alone.adversarial)
        assert each.combiner.to_json() == alone.combiner.to_json()
    unseen = scores.attacks["BIM"][matrix[1].setting]
    kept = np.isin(unseen.image_ids, matrix[1].image_ids)
    np.testing.assert_array_equal(
        matrix[1].adversarial, matrix[0].combiner.score(unseen.adversarial[kept])
    )


def test_where_there_is_nothing_to_see_auroc_is_a_half() -> None:
    for found in (
        same_attack(method_scores(600, shift=0.0), "BIM", split=SPLIT),
        attack_free(method_scores(600, shift=0.0), "BIM", split=SPLIT),
        reference(method_scores(600, shift=0.0), "BIM"),
    ):
        places = np.arange(len(found.image_ids))
        ranked = rank_scores(
            np.r_[found.clean, found.noisy],
            found.adversarial,
            negative_images=np.r_[places, places],
            positive_images=places,
        )
        _, auroc, *_ = bootstrap(
            lambda weights, ranked=ranked: all_metrics(ranked.counts(weights)),
            len(places),
            seed=0,
            num_resamples=300,
        )
        assert auroc.low <= 0.5 <= auroc.high
        assert auroc.high - auroc.low < 0.15


# --- the reference ------------------------------------------------------------------------------


def literal_reference(by_setting: dict[str, DetectionScores]) -> tuple[str, FloatArray, FloatArray]:
    """Lee et al.'s slices over a file of adversarial, clean and noisy rows, row by row."""
    best = (0.0, "", np.zeros(0), np.zeros(0))
    for setting, rows in by_setting.items():
        kept = [
            i
            for i in range(len(rows))
            if rows.clean_correct[i] and rows.noisy_correct[i] and rows.success[i]
        ]
        n = len(kept)
        adv, clean, noisy = (
            [s[i] for i in kept] for s in (rows.adversarial, rows.clean, rows.noisy)
        )
        nt = int(n * 0.1)
        x_val = np.array(clean[:nt] + noisy[:nt] + adv[:nt])
        y_val = np.array([0] * nt + [0] * nt + [1] * nt)
        p = int(len(x_val) / 6)
        train = np.r_[0:p, 2 * p : 3 * p, 4 * p : 5 * p]
        held = np.r_[p : 2 * p, 3 * p : 4 * p, 5 * p : len(x_val)]
        with pytest.warns(FutureWarning):
            regression = LogisticRegressionCV().fit(x_val[train], y_val[train])
        auc = roc_auc_score(y_val[held], regression.predict_proba(x_val[held])[:, 1])
        if auc > best[0]:
            negatives = regression.decision_function(np.array(clean[nt:] + noisy[nt:]))
            positives = regression.decision_function(np.array(adv[nt:]))
            best = (auc, setting, negatives, positives)
    return best[1:]


@pytest.mark.parametrize("count", [400, 401, 413, 425])
def test_reference_protocol_is_the_literal_one(count: int) -> None:
    scores = method_scores(count, shift=0.4)
    found = reference(scores, "FGSM")
    setting, negatives, positives = literal_reference(dict(scores.attacks["FGSM"]))
    assert (found.setting, found.protocol, found.trained_on) == (setting, "reference", "FGSM")
    np.testing.assert_allclose(np.r_[found.clean, found.noisy], negatives, rtol=1e-12)
    np.testing.assert_allclose(found.adversarial, positives, rtol=1e-12)


# --- what is refused ----------------------------------------------------------------------------


def test_bad_scores_are_refused() -> None:
    rows = detection_scores(30)
    broken = rows.noisy.copy()
    broken[2, 0] = np.nan
    for message, changes in (
        ("rising ids", {"image_ids": np.zeros(30, dtype=np.int64)}),
        ("rising ids", {"image_ids": rows.image_ids[::-1]}),
        ("noisy scores by layer.*1 of 30", {"noisy": broken}),
        ("clean scores by layer", {"clean": rows.clean[:, :2]}),
        ("29 adversarial", {"adversarial": rows.adversarial[:29]}),
        ("20 success", {"success": rows.success[:20]}),
    ):
        with pytest.raises(DataError, match=message):
            dataclasses.replace(rows, **changes)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="none"):
        rows.select(np.zeros(30, dtype=bool))


def test_attacks_scored_by_different_detectors_are_refused() -> None:
    scores = method_scores(30)
    other = {"k = 30": detection_scores(30), "k = 20": detection_scores(30)}
    renamed = dataclasses.replace(detection_scores(30), layers=("a", "b", "c"))
    for attacks in (
        {},
        {**scores.attacks, "PGD": other},
        {"PGD": {"k = 10": detection_scores(30), "k = 20": renamed}},
        {"PGD": {}},
    ):
        with pytest.raises(DataError, match="scores of LID"):
            dataclasses.replace(scores, attacks=attacks)
    with pytest.raises(ConfigError, match="one of FGSM, BIM"):
        same_attack(scores, "PGD", split=SPLIT)


def test_an_attack_that_never_succeeds_is_refused() -> None:
    def fail(rows: DetectionScores) -> DetectionScores:
        return dataclasses.replace(rows, success=np.zeros(len(rows), dtype=bool))

    scores = changed(method_scores(), fail)
    for detect in (
        lambda: same_attack(scores, "BIM", split=SPLIT),
        lambda: attack_free(scores, "BIM", split=SPLIT),
        lambda: reference(scores, "BIM"),
    ):
        with pytest.raises(DataError, match="attack that succeeds"):
            detect()
    # Failed attacks can be reported all the same by what needs none to learn from.
    every = attack_free(scores, "BIM", split=SPLIT, subset="all")
    assert len(every.image_ids) > 100
    with pytest.raises(DataError, match="BIM fooled"):
        every.of_successful()


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="detect on more images"):
        same_attack(method_scores(12), "BIM", split=SPLIT)
    for count in (20, 40):
        with pytest.raises(DataError, match="detect on more images"):
            reference(method_scores(count), "BIM")
