"""All detections of a method, what was skipped and why, the report of them, and null controls."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cdvae_ray.config.attack import ThreatModelName
from cdvae_ray.config.classifier import InputKind
from cdvae_ray.config.detection import SplitSettings
from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.core.threat_models import THREAT_MODELS
from cdvae_ray.evaluation.adaptive_table import AdaptiveRow, known_threat, unknown_threat
from cdvae_ray.evaluation.bootstrap import Estimate
from cdvae_ray.evaluation.detection_controls import ControlRow, clean_controls
from cdvae_ray.evaluation.detection_metrics import detection_metrics
from cdvae_ray.evaluation.detection_protocol import (
    Detection,
    MethodScores,
    Mode,
    attack_free,
    reference,
    same_attack,
    split_images,
    unseen_matrix,
)
from cdvae_ray.evaluation.detection_report import detection_markdown
from cdvae_ray.evaluation.detection_run import (
    MethodDetections,
    detection_rows,
    reference_detections,
    space_differences,
    strict_detections,
)
from cdvae_ray.evaluation.detection_scores import LayerScores, ScoreTable
from cdvae_ray.evaluation.detection_table import DetectionRow, difference_row
from tests.evaluation.test_detection_protocol import detection_scores
from tests.evaluation.test_detection_table import detection

SPLIT = SplitSettings(seed=3)
SPACES: tuple[InputKind, ...] = ("images", "class_essential")
TARGETS: tuple[ThreatModelName, ...] = ("classifier", "class-essential")
Key = tuple[str, str, str, str]


def scores_of(success: dict[str, float], *, count: int = 200) -> MethodScores:
    """Scores of KD on attacks that fool so large a share of images."""
    return MethodScores(
        method="KD",
        space="class_essential",
        threat_model=THREAT_MODELS["class-essential"],
        dataset="cifar10",
        attacks={
            attack: {"h = 0.5": detection_scores(count, seed=seed, success=share)}
            for seed, (attack, share) in enumerate(success.items())
        },
    )


def key_of(each: Detection) -> Key:
    return each.mode, each.subset, each.trained_on, each.attack


@pytest.fixture(scope="module")
def three() -> MethodScores:
    return scores_of({"FGSM": 0.8, "BIM": 0.6, "C&W": 0.9})


@pytest.fixture(scope="module")
def found_of_three(three: MethodScores) -> MethodDetections:
    return strict_detections(three, SPLIT)


@pytest.fixture(scope="module")
def detected(found_of_three: MethodDetections) -> list[Detection]:
    assert found_of_three.skipped == []
    return found_of_three.detections


# --- every mode and subset ----------------------------------------------------------------------


def test_each_mode_and_subset_is_there_once_an_attack(detected: list[Detection]) -> None:
    attacks = ("FGSM", "BIM", "C&W")
    expected: list[Key] = []
    for attack in attacks:
        for subset in ("all", "successful"):
            expected += [
                ("attack_free", subset, "none", attack),
                ("same_attack", subset, attack, attack),
            ]
        expected += [
            ("unseen", "successful", attack, other) for other in attacks if other != attack
        ]
    assert Counter(map(key_of, detected)) == Counter(expected)
    assert {each.protocol for each in detected} == {"strict"}


def test_detections_are_those_of_the_protocol(
    three: MethodScores, detected: list[Detection]
) -> None:
    alone = unseen_matrix(three, split=SPLIT)
    for attack in three.attacks:
        alone.append(same_attack(three, attack, split=SPLIT, subset="all"))
        alone.append(attack_free(three, attack, split=SPLIT, subset="all"))
        alone.append(attack_free(three, attack, split=SPLIT))
    found = {key_of(each): each for each in detected}
    assert len(alone) == len(found) == 18
    for each in alone:
        same = found[key_of(each)]
        assert same.setting == each.setting
        for name in ("image_ids", "clean", "noisy", "adversarial", "successful"):
            np.testing.assert_array_equal(getattr(same, name), getattr(each, name))


def test_successful_attacks_are_some_of_all(three: MethodScores, detected: list[Detection]) -> None:
    found = {key_of(each): each for each in detected}
    for attack, by_setting in three.attacks.items():
        rows = by_setting["h = 0.5"]
        fooled = rows.image_ids[rows.successful]
        for mode, trained_on in (("attack_free", "none"), ("same_attack", attack)):
            every = found[mode, "all", trained_on, attack]
            some = found[mode, "successful", trained_on, attack]
            kept = np.isin(every.image_ids, fooled)
            assert 0 < kept.sum() < len(kept) == split_images(rows.image_ids, SPLIT).test.sum()
            np.testing.assert_array_equal(some.image_ids, every.image_ids[kept])
            for name in ("clean", "noisy", "adversarial"):
                np.testing.assert_array_equal(getattr(some, name), getattr(every, name)[kept])


def test_detections_of_a_mode_are_on_successful_attacks(
    found_of_three: MethodDetections,
) -> None:
    for mode, count in (("attack_free", 3), ("same_attack", 3), ("unseen", 6)):
        chosen = found_of_three.row_detections(mode)  # type: ignore[arg-type]
        assert [(each.mode, each.subset) for each in chosen] == [(mode, "successful")] * count


# --- what cannot be measured --------------------------------------------------------------------


def same_detections(found: Sequence[Detection], expected: Sequence[Detection]) -> None:
    assert list(map(key_of, found)) == list(map(key_of, expected))
    for first, second in zip(found, expected, strict=True):
        for name in ("image_ids", "clean", "noisy", "adversarial"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("share", [0.0, 0.015])
def test_an_attack_that_fools_almost_nobody_is_skipped_and_stops_no_other(
    share: float, detected: list[Detection]
) -> None:
    scores = scores_of({"FGSM": 0.8, "BIM": 0.6, "hopeless": share})
    hopeless_first = dict(reversed(scores.attacks.items()))
    found = strict_detections(dataclasses.replace(scores, attacks=hopeless_first), SPLIT)
    others = [each for each in detected if "C&W" not in (each.attack, each.trained_on)]
    same_detections(
        sorted((each for each in found.detections if each.attack != "hopeless"), key=key_of),
        sorted(others, key=key_of),
    )
    assert len(others) == 10
    (training,) = [reason for reason in found.skipped if ", training: " in reason]
    assert training.startswith(
        "KD in class_essential, hopeless on D(R(x)) through the whole CD-VAE, training: images in "
    )
    assert ": got " in training and ", expected " in training
    assert all("\n" not in reason and "hopeless" in reason for reason in found.skipped)
    assert not any(each.trained_on == "hopeless" for each in found.detections)


def test_what_needs_no_success_is_measured_on_an_attack_that_fools_nobody() -> None:
    found = strict_detections(scores_of({"FGSM": 0.8, "hopeless": 0.0}), SPLIT)
    kept = [key_of(each) for each in found.detections if each.attack == "hopeless"]
    assert kept == [("attack_free", "all", "none", "hopeless")]
    assert [reason.partition("CD-VAE, ")[2].partition(":")[0] for reason in found.skipped] == [
        "trained on FGSM",
        "attack-free",
        "training",
    ]


def test_attacks_that_all_fail_leave_reasons_alone() -> None:
    scores = scores_of({"FGSM": 0.0, "BIM": 0.0})
    for found in (strict_detections(scores, SPLIT), reference_detections(scores)):
        assert not [each for each in found.detections if each.subset == "successful"]
        assert {reason.split(" on ")[0] for reason in found.skipped} == {
            "KD in class_essential, FGSM",
            "KD in class_essential, BIM",
        }


def test_the_reference_protocol_is_run_on_every_attack_it_can_be() -> None:
    scores = scores_of({"FGSM": 0.8, "hopeless": 0.0, "BIM": 0.9}, count=300)
    found = reference_detections(scores)
    assert [each.attack for each in found.detections] == ["FGSM", "BIM"]
    assert {each.protocol for each in found.detections} == {"reference"}
    same_detections(found.detections, [reference(scores, name) for name in ("FGSM", "BIM")])
    (reason,) = found.skipped
    assert "hopeless on D(R(x)) through the whole CD-VAE, reference: images" in reason


# --- rows ---------------------------------------------------------------------------------------


def test_rows_add_whether_noise_is_flagged_to_each_attack_free_detection(
    detected: list[Detection],
) -> None:
    rows = detection_rows(detected, seed=0, num_resamples=10)
    assert len(rows) == len(detected) + 3
    for row, each in zip(rows, detected, strict=False):
        assert (row.mode, row.subset, row.trained_on, row.attack) == key_of(each)
        assert row.contrast == "adversarial against clean and noisy"
        assert row.clean_images == len(each.image_ids)
    controls = rows[len(detected) :]
    whole = [each for each in detected if (each.mode, each.subset) == ("attack_free", "all")]
    for row, each in zip(controls, whole, strict=True):
        assert (row.contrast, row.adversarial_images) == ("noisy against clean", 0)
        assert (row.mode, row.subset, row.attack) == ("attack_free", "all", each.attack)
        assert row.auroc.value == detection_metrics(each.clean, each.noisy).auroc
        assert row.paper_auroc is None


def two_by_two_detections() -> dict[tuple[ThreatModelName, InputKind], Detection]:
    """By attacked function and space; both spaces see one function's adversarial images."""
    cells = {}
    for place, target in enumerate(TARGETS):
        for shift, space in enumerate(SPACES, start=1):
            cells[target, space] = detection(
                target=target,
                space=space,
                shift=shift,
                seed=shift + 10 * place,
                first_id=20 * place,
            )
    return cells


def test_differences_are_within_a_target_and_as_the_paper_pairs_them() -> None:
    cells = two_by_two_detections()
    pairs = (
        (cells["classifier", "class_essential"], cells["classifier", "images"]),
        (cells["class-essential", "class_essential"], cells["class-essential", "images"]),
        (cells["class-essential", "class_essential"], cells["classifier", "images"]),
    )
    expected = [difference_row(*pair, seed=5, num_resamples=30) for pair in pairs]
    # Neither other modes and subsets nor other methods and attacks take part.
    noise = [
        dataclasses.replace(each, **change)  # type: ignore[arg-type]
        for each in cells.values()
        for change in (
            {"mode": "attack_free"},
            {"mode": "unseen"},
            {"subset": "all"},
        )
    ]
    lonely = [
        dataclasses.replace(cells["classifier", "class_essential"], method="LID"),
        dataclasses.replace(cells["classifier", "images"], method="MD"),
        dataclasses.replace(cells["class-essential", "class_essential"], attack="BIM"),
        dataclasses.replace(cells["class-essential", "images"], attack="C&W"),
        dataclasses.replace(cells["class-essential", "images"], space="class_redundant"),
    ]
    found, skipped = space_differences([*noise, *cells.values(), *lonely], seed=5, num_resamples=30)
    assert skipped == []
    assert found == expected
    assert [row.first_attacked == row.second_attacked for row in found] == [True, True, False]
    assert [row.images for row in found] == [150, 150, 170]
    assert all(row.auroc.value > 0 for row in found)


def test_a_detector_differs_from_itself_by_nothing() -> None:
    on_r = two_by_two_detections()["class-essential", "class_essential"]
    on_x = dataclasses.replace(on_r, space="images")
    as_in_the_paper = dataclasses.replace(on_x, threat_model=THREAT_MODELS["classifier"])
    found, _ = space_differences([on_r, on_x, as_in_the_paper], seed=0, num_resamples=30)
    nothing = Estimate(0.0, 0.0, 0.0)
    assert [(row.auroc, row.tnr_at_95_tpr) for row in found] == [(nothing, nothing)] * 2


def test_one_space_alone_has_no_difference() -> None:
    for space in SPACES:
        cells = [each for (_, own), each in two_by_two_detections().items() if own == space]
        assert space_differences(cells, seed=0, num_resamples=5) == ([], [])


def test_a_pair_that_some_resample_would_leave_empty_is_named_and_stops_no_other() -> None:
    few = detection(count=6, first_id=500)
    whole = detection(space="images", target="classifier")
    same = dataclasses.replace(few, space="images")
    found, skipped = space_differences([few, whole, same], seed=0, num_resamples=1000)
    assert len(found) == 1
    (reason,) = skipped
    assert "less x under attack on D(x)" in reason
    assert "images of a resample" in reason


# --- the page -----------------------------------------------------------------------------------


def all_rows(dataset: str) -> list[DetectionRow]:
    """Both attacked functions in both spaces, in all modes, on two attacks."""
    found = []
    for target, space in ((target, space) for target in TARGETS for space in SPACES):
        for trained_on, attack in itertools.product(("none", "FGSM", "BIM"), ("FGSM", "BIM")):
            mode: Mode = "same_attack" if trained_on == attack else "unseen"
            every = dataclasses.replace(
                detection(target=target, space=space, seed=len(found)),
                dataset=dataset,
                attack=attack,
                trained_on=trained_on,
                mode="attack_free" if trained_on == "none" else mode,
                subset="all",
                successful=np.arange(150) % 3 > 0,
            )
            found += [every, every.of_successful()]
    return detection_rows(found, seed=0, num_resamples=5)


@pytest.fixture(scope="module")
def cifar_rows() -> list[DetectionRow]:
    return all_rows("cifar10")


def adaptive_row(attack: str, threat_model: str) -> AdaptiveRow:
    return AdaptiveRow(
        measure="L-inf, pixels",
        method="MD",
        space="class_essential",
        attack=attack,
        threat_model=threat_model,
        epsilon=8 / 255,
        num_steps=100,
        false_positive_rate=0.05,
        clean_flagged=0.061,
        threshold=3.0,
        images=47,
        fooled=0.9,
        success=0.125,
        success_low=0.042,
        success_high=0.313,
        zero_gradient=0,
        nonfinite_gradient=0,
    )


def page_of(rows: Sequence[DetectionRow], *, skipped: Sequence[str] = ()) -> str:
    on_r = THREAT_MODELS["class-essential"]
    return detection_markdown(
        title="Detection",
        facts={"dataset": "these images", "digest": "abc"},
        rows=rows,
        differences=space_differences(
            list(two_by_two_detections().values()), seed=0, num_resamples=5
        ).rows,
        controls=[ControlRow("KD", "class_essential", "h = 1", 123, Estimate(0.51, 0.48, 0.54))],
        adaptive=[
            adaptive_row("PGD-Linf", unknown_threat(on_r)),
            adaptive_row("orthogonal", known_threat(on_r)),
        ],
        skipped=skipped,
    )


def section(page: str, heading: str) -> str:
    (found,) = [part for part in page.split("\n## ") if part.startswith(heading + "\n")]
    return found


def table_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_page_names_what_was_attacked_in_every_table(cifar_rows: list[DetectionRow]) -> None:
    page = page_of(cifar_rows)
    assert page.startswith("# Detection\n\n- dataset: these images\n- digest: abc\n\n## ")
    assert page.endswith("\n") and not page.endswith("\n\n")
    attacked = [THREAT_MODELS[target].attacked for target in TARGETS]
    for heading in (
        "Each detector on attacks on its own function",
        "Attack target by detection space",
        "What looking at R(x) changes",
        "Without adversarial images to train on",
        "Null controls",
    ):
        text = section(page, heading)
        assert all(name in text for name in attacked), heading
    last = section(page, "Against an attacker who knows the detector")
    header, _, *lines = table_lines(last)
    for line, threat in zip(
        lines,
        (
            "white-box on D(R(x)) through the whole CD-VAE, unaware of the detector",
            "white-box on D(R(x)) through the whole CD-VAE and on the detector",
        ),
        strict=True,
    ):
        cells = dict(zip(cells_of(header), cells_of(line), strict=True))
        assert (cells["threat"], cells["success"]) == (threat, "12.5% [4.2%, 31.3%]")
        assert (cells["clean flagged"], cells["n"], cells["fooled"]) == ("6.1%", "47", "90.0%")
        assert (cells["radius"], cells["steps"]) == ("8/255", "100")


def test_tables_have_as_many_cells_in_each_line(cifar_rows: list[DetectionRow]) -> None:
    page = page_of(cifar_rows, skipped=["something"])
    blocks = [
        lines
        for block in page.split("\n\n")
        if (lines := block.splitlines()) and lines[0].startswith("|")
    ]
    assert len(blocks) == 8
    for header, rule, *lines in blocks:
        assert re.fullmatch(r"\|(---\|)+", rule)
        assert lines and {line.count("|") for line in (header, *lines)} == {rule.count("|")}


def test_the_papers_numbers_stand_beside_its_own_rows_alone(
    cifar_rows: list[DetectionRow],
) -> None:
    page = page_of(cifar_rows)
    papers = {
        ("KD(x)", "FGSM"): ("42.38", "85.74"),
        ("KD(x)", "BIM"): ("74.54", "94.82"),
        ("KD(R(x))", "FGSM"): ("57.10", "89.69"),
        ("KD(R(x))", "BIM"): ("96.79", "99.27"),
    }
    first = section(page, "Each detector on attacks on its own function")
    header, _, *lines = table_lines(first)
    assert len(lines) == 4
    for line in lines:
        cells = dict(zip(cells_of(header), cells_of(line), strict=True))
        name, attacked, attack = cells["detector"], cells["attacked"], cells["attack"]
        tnr, area = cells["TNR"], cells["AUROC"]
        detector = name.partition(",")[0]
        tnr_paper, area_paper = papers[detector, attack]
        assert tnr.endswith(f"({tnr_paper})") and area.endswith(f"({area_paper})")
        assert attacked == THREAT_MODELS[TARGETS[detector == "KD(R(x))"]].attacked
        (row,) = [
            row
            for row in cifar_rows
            if (row.mode, row.subset, row.attack, row.attacked)
            == ("same_attack", "successful", attack, attacked)
            and (row.space == "images") == (detector == "KD(x)")
        ]
        value, low, high = (100 * number for number in row.auroc)
        assert area.startswith(f"{value:.2f} [{low:.2f}, {high:.2f}]")
    in_parentheses = re.compile(r"\(\d+\.\d\d\)")
    assert len(in_parentheses.findall(page)) == len(in_parentheses.findall(first)) == 8


def test_no_number_of_the_paper_stands_beside_another_datasets() -> None:
    page = page_of(all_rows("digits"))
    assert not re.search(r"\(\d+\.\d\d\)", page)
    for number in ("42.38", "85.74", "57.10", "89.69"):
        assert number not in page
    assert len(table_lines(section(page, "Each detector on attacks on its own function"))) == 6


def test_what_was_skipped_is_listed(cifar_rows: list[DetectionRow]) -> None:
    found = strict_detections(scores_of({"FGSM": 0.8, "hopeless": 0.0}), SPLIT)
    page = page_of(cifar_rows, skipped=found.skipped)
    listed = section(page, "Not measured").strip().splitlines()[2:]
    assert listed == [f"- {reason}" for reason in found.skipped] and len(listed) == 3
    assert "Not measured" not in page_of(cifar_rows)


def test_a_page_of_nothing_but_reasons() -> None:
    page = detection_markdown(
        title="Detection",
        facts={"seed": "0"},
        rows=[],
        differences=[],
        controls=[],
        adaptive=[],
        skipped=["KD: no attack succeeds"],
    )
    assert page == "# Detection\n\n- seed: 0\n\n## Not measured\n\n- KD: no attack succeeds\n"


def test_a_regression_that_stopped_early_says_so(cifar_rows: list[DetectionRow]) -> None:
    assert "stopped early" not in page_of(cifar_rows)
    stopped = [row._replace(converged=False) for row in cifar_rows]
    own = section(page_of(stopped), "Each detector on attacks on its own function")
    assert own.count("(regression stopped early)") == 4


# --- null controls ------------------------------------------------------------------------------


def draws_of(ids: torch.Tensor, seed: int) -> np.ndarray:
    """The numbers by which the controls halve the images."""
    keys = image_keys(seed, "detection.control", 0, ids)
    return keyed_uniform(keys, 1)[:, 0].double().numpy()


def clean_table(count: int, *, seed: int = 0) -> ScoreTable:
    """Scores without structure, layers of very different size."""
    rng = np.random.default_rng(seed)
    layers = ("conv1", "layer1", "layer2")
    return {
        "KD": {"h = 0.5": LayerScores(("penultimate",), rng.normal(size=(count, 1)))},
        "MD": {
            setting: LayerScores(layers, rng.gamma(2.0, size=(count, 3)) * [1.0, 1e3, 1e6])
            for setting in ("m = 0", "m = 0.01")
        },
    }


def test_halves_of_clean_images_are_alike() -> None:
    ids = torch.arange(4000) * 3 + 1
    rows = clean_controls(
        clean_table(4000), ids, space="class_essential", seed=0, num_resamples=200
    )
    assert [row[:4] for row in rows] == [
        ("KD", "class_essential", "h = 0.5", 4000),
        ("MD", "class_essential", "m = 0", 4000),
    ]
    for row in rows:
        # The deviation is 0.009, so that 0.5 +- 0.018 is the interval.
        assert abs(row.auroc.value - 0.5) < 0.03
        assert row.auroc.low < 0.5 < row.auroc.high
        assert row.auroc.low < row.auroc.value < row.auroc.high
        assert 0.025 < row.auroc.high - row.auroc.low < 0.05


def test_the_control_is_the_auroc_of_standardised_sums() -> None:
    ids, table = torch.arange(500), clean_table(500)
    first = draws_of(ids, 7) < 0.5
    rows = clean_controls(table, ids, space="images", seed=7, num_resamples=5)
    for row in rows:
        values = table[row.method][row.setting].values
        sums = ((values - values[first].mean(axis=0)) / values[first].std(axis=0)).sum(axis=1)
        assert row.auroc.value == pytest.approx(roc_auc_score(~first, sums), abs=1e-12)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    turned: ScoreTable = {
        method: {
            setting: LayerScores(scores.layers, scores.values[order.numpy()])
            for setting, scores in by_setting.items()
        }
        for method, by_setting in table.items()
    }
    again = clean_controls(turned, ids[order], space="images", seed=7, num_resamples=5)
    for row, same in zip(rows, again, strict=True):
        assert row.auroc.value == pytest.approx(same.auroc.value, abs=1e-12)


def test_the_control_sees_scores_that_depend_on_the_half() -> None:
    ids = torch.arange(1000)
    noise = np.random.default_rng(0).normal(size=(1000, 1))
    own = draws_of(ids, 4)[:, None]

    def control(values: np.ndarray, seed: int = 4) -> Estimate:
        table: ScoreTable = {"KD": {"h = 1": LayerScores(("penultimate",), values)}}
        (row,) = clean_controls(table, ids, space="images", seed=seed, num_resamples=100)
        return row.auroc

    assert control(own) == Estimate(1.0, 1.0, 1.0)
    assert control(-own) == Estimate(0.0, 0.0, 0.0)
    leaning = control(noise + 1.0 * (own >= 0.5))
    assert 0.5 < leaning.low < leaning.value and leaning.value == pytest.approx(0.76, abs=0.05)
    # Another seed has other halves, which these scores know nothing of.
    other = control(own, seed=5)
    assert other.low < 0.5 < other.high
    assert control(noise).low < 0.5 < control(noise).high
