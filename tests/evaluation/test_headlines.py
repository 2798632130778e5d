"""Numbers at a glance: chosen by rule, carried over unchanged, none without its threat model."""

import json
import re
from pathlib import Path

import pytest

from cdvae_ray.config.classifier import INPUT_KINDS
from cdvae_ray.config.search_space import SearchSpace, read_space
from cdvae_ray.evaluation.adaptive_table import AdaptiveRow
from cdvae_ray.evaluation.bootstrap import Estimate
from cdvae_ray.evaluation.correlation import latent_correlation
from cdvae_ray.evaluation.defense_table import NO_ATTACK as CLEAN_THREAT
from cdvae_ray.evaluation.defense_table import DefenseNumber
from cdvae_ray.evaluation.detection_table import DetectionRow
from cdvae_ray.evaluation.headlines import (
    NO_ATTACK,
    Headline,
    defense_headlines,
    detection_headlines,
    headline_columns,
    headline_text,
    search_headlines,
    study_headlines,
)
from cdvae_ray.evaluation.search_table import Measured, Trial
from cdvae_ray.evaluation.study_table import (
    attacked_row,
    cross_rows,
    latent_row,
    mean_interval,
    norm_rows,
    similarity_rows,
)
from tests.evaluation.made_rows import (
    ATTACK,
    NOISE,
    cross_columns,
    cut,
    decomposition_rows,
    sums_of,
)

ATTACKED = "D(x), a plain classifier"
ON_R = "D(R(x)) through the whole CD-VAE"
STUDY_RESULTS = ("Table 1", "Table 2", "Table 3", "Figure 3")
KNOWN = f"white-box on {ON_R} and on the detector"
UNKNOWN = f"white-box on {ON_R}, unaware of the detector"
TRANSFER = "transfer: made against D(x), which knows nothing of the defence"
WHITE_BOX = "white-box: against the whole defence"


# Rows by hand.


def study_tables(paper="restricted-imagenet", count=40, kinds=INPUT_KINDS):
    """The study of an attack and of noise."""
    found = {title: [] for title in ("The attack", "Table 1", "Table 2", "Figure 3")}
    for seed, compared in enumerate((ATTACK, NOISE)):
        sums = sums_of(decomposition_rows(count, seed=seed))
        found["The attack"].append(attacked_row(sums, compared, ATTACKED))
        found["Table 1"] += similarity_rows(sums, compared, features="D(x)", paper=paper)
        found["Table 2"] += norm_rows(sums, compared, units="pixel", paper=paper)
        found["Figure 3"].append(latent_row(latent_correlation(sums.latents), compared))
    found["Table 3"] = cross_rows(cut(cross_columns(count, kinds), 3), kinds, paper=paper)
    return found


def detection(auroc, *, space="class_essential", target="class-essential", **changes):
    """A line of the table; metrics besides the AUROC have values that no headline may show."""
    other = Estimate(-1.0, -2.0, -3.0)
    values = {
        "dataset": "cifar10",
        "method": "MD",
        "space": space,
        "attack": "PGD-Linf",
        "threat_model": target,
        "attacked": ATTACKED if target == "classifier" else ON_R,
        "protocol": "strict",
        "mode": "same_attack",
        "trained_on": "PGD-Linf",
        "subset": "successful",
        "contrast": "adversarial against clean and noisy",
        "setting": "0.001",
        "converged": True,
        "clean_images": 120,
        "noisy_images": 121,
        "adversarial_images": 122,
        "auroc": Estimate(auroc, auroc - 0.02, auroc + 0.01),
        "paper_tnr_at_95_tpr": -4.0,
        "paper_auroc": None,
        **dict.fromkeys(
            (
                *("tnr_at_95_tpr", "aupr_adversarial", "aupr_clean", "fpr_at_95_tpr"),
                *("tpr_at_01_fpr", "tpr_at_1_fpr", "tpr_at_5_fpr"),
            ),
            other,
        ),
    }
    return DetectionRow(**{**values, **changes})


def adaptive(success, attack, *, rate=0.05, threat=KNOWN, method="MD", space="class_essential"):
    return AdaptiveRow(
        measure="L-inf, pixels",
        method=method,
        space=space,
        attack=attack,
        threat_model=threat,
        epsilon=8 / 255,
        num_steps=40,
        false_positive_rate=rate,
        clean_flagged=0.06,
        threshold=1.5,
        images=61,
        fooled=0.99,
        success=success,
        success_low=success - 0.03,
        success_high=success + 0.04,
        zero_gradient=0,
        nonfinite_gradient=0,
    )


def defense(accuracy, quantity, *, name="Ours", threat=TRANSFER, paper=None):
    is_attack = "-" in quantity or quantity in ("JPEG", "StAdv")
    return DefenseNumber(
        defense=name,
        threat_model=threat,
        quantity=quantity,
        images=500,
        accuracy=accuracy,
        low=accuracy - 0.05,
        high=accuracy + 0.03,
        paper=paper,
        settings=f"{quantity}, 20 steps" if is_attack else "",
        set_digest="s" if is_attack else "",
    )


def space(*metrics, parameter="gamma"):
    return SearchSpace(
        parameter=parameter,
        values=(0.1, 1.0, 10.0),
        low=0.01,
        high=10.0,
        metrics=dict.fromkeys(metrics, "max"),
    )


def trial(value, numbers, state="finished"):
    metrics = {
        name: Measured(number, number - 0.1, number + 0.05, 90) for name, number in numbers.items()
    }
    return Trial(value=value, state=state, metrics=metrics, artifacts={})


def every_kind():
    """Headlines of every report."""
    return [
        *study_headlines(study_tables(), STUDY_RESULTS, attacked=ATTACKED),
        *detection_headlines(
            [detection(0.9, paper_auroc=0.99)], [adaptive(0.7, "orthogonal")], result="Table 4"
        ),
        *defense_headlines(
            [
                defense(0.9, "clean", threat=CLEAN_THREAT),
                defense(0.4, "PGD-Linf", paper=0.7705),
                defense(0.3, "worst of all"),
            ],
            result="Table 6",
        ),
        *search_headlines(
            [trial(0.1, {"defense_accuracy": 0.3}), trial(10.0, {"defense_accuracy": 0.6})],
            space("defense_accuracy"),
        ),
    ]


def by_quantity(headlines):
    found = {(each.quantity, each.threat_model): each for each in headlines}
    assert len(found) == len(headlines)
    return found


# All kinds.


def test_a_headline_cannot_be_made_without_saying_what_it_means():
    assert not Headline._field_defaults
    with pytest.raises(TypeError, match="threat_model"):
        Headline(
            result="Table 4",
            quantity="AUROC",
            images=1,
            value=0.5,
            low=None,
            high=None,
            paper=None,
            is_share=True,
        )


def test_every_headline_of_every_kind_has_a_threat_model_and_its_n():
    headlines = every_kind()
    assert {each.result for each in headlines} == {*STUDY_RESULTS, "Table 4", "Table 6", "Figure 4"}
    for each in headlines:
        assert each.threat_model.strip(), each
        assert each.images and each.images > 0, each
        assert each.quantity.strip(), each
    by_quantity(headlines)


def test_nothing_of_nothing():
    assert study_headlines({}, STUDY_RESULTS, attacked=ATTACKED) == []
    assert detection_headlines([], [], result="Table 4") == []
    assert defense_headlines([], result="Table 6") == []
    assert search_headlines([], space("defense_accuracy")) == []


# The study.


def test_the_study_gives_both_parts_of_the_first_attack_and_not_the_noise():
    tables = study_tables()
    redundant, essential = tables["Table 1"][:2]
    found = study_headlines(tables, ["Table 1"], attacked=ATTACKED)
    assert [each.quantity for each in found] == [
        "cosine of G(x), G(x')",
        "Frechet distance of G(x), G(x'), by D(x)",
        "cosine of R(x), R(x')",
        "Frechet distance of R(x), R(x'), by D(x)",
    ]
    assert {each.threat_model for each in found} == {f"PGD-Linf on {ATTACKED}"}
    assert {each.images for each in found} == {40}
    assert not any(each.is_share for each in found)
    for place, row in ((0, redundant), (2, essential)):
        cosine, distance = found[place : place + 2]
        assert (cosine.value, cosine.low, cosine.high) == (
            *(row.cosine, row.cosine_low, row.cosine_high),
        )
        assert cosine.paper == row.paper_cosine is not None
        assert (distance.value, distance.low, distance.high) == (row.frechet, None, None)
        assert distance.paper == row.paper_frechet is not None


def test_table_2_gives_the_length_of_the_perturbation_and_of_its_parts():
    tables = study_tables()
    rows = {row.part: row for row in tables["Table 2"][:9]}
    found = study_headlines(tables, ["Table 2"], attacked=ATTACKED)
    assert [each.quantity for each in found] == [
        f"L2 of {part}, pixel units" for part in ("delta", "delta_G", "delta_R")
    ]
    for each, part in zip(found, ("delta", "delta_G", "delta_R"), strict=True):
        row = rows[part]
        assert (each.value, each.images, each.is_share) == (row.l2, 40, False)
        # Of the mean, and not the deviation between images.
        assert (each.low, each.high) == mean_interval(row.l2, row.l2_std, 40)
        assert each.paper == row.paper_l2 is not None
        assert each.threat_model == f"PGD-Linf on {ATTACKED}"


@pytest.mark.parametrize("paper", ["none", "cifar10"])
def test_table_3_gives_its_diagonal_and_r_of_x_on_x(paper):
    tables = study_tables(paper)
    rows = {(row.trained_on, row.tested_on): row for row in tables["Table 3"]}
    found = study_headlines(tables, ["Table 3"], attacked=ATTACKED)
    cells = [("x", "x"), ("G(x)", "G(x)"), ("R(x)", "R(x)"), ("R(x)", "x")]
    assert {each.quantity for each in found} == {
        f"top-1 trained on {trained}, tested on {tested}" for trained, tested in cells
    }
    assert len(found) == 4
    for each in found:
        trained, tested = re.findall(r"on (\S+?)(?:,|$)", each.quantity)
        row = rows[trained, tested]
        assert (each.value, each.low, each.high) == (row.top1, row.top1_low, row.top1_high)
        assert each.paper == row.paper_top1
        assert (each.paper is None) == (paper == "none")
        assert (each.threat_model, each.images, each.is_share) == (NO_ATTACK, 40, True)


def test_figure_3_is_the_median_over_dimensions():
    tables = study_tables()
    (found,) = study_headlines(tables, ["Figure 3"], attacked=ATTACKED)
    row = tables["Figure 3"][0]
    assert (found.value, found.images, found.is_share) == (row.median, 40, False)
    assert (found.low, found.high, found.paper) == (None, None, None)
    assert found.threat_model == f"PGD-Linf on {ATTACKED}"


@pytest.mark.parametrize("wanted", [(), ("Table 3",), ("Table 1", "Figure 3"), ("Figure 2",)])
def test_only_wanted_results_of_the_study_are_there(wanted):
    found = study_headlines(study_tables(), wanted, attacked=ATTACKED)
    assert {each.result for each in found} == set(wanted) - {"Figure 2"}
    every = study_headlines(study_tables(), STUDY_RESULTS, attacked=ATTACKED)
    assert found == [each for each in every if each.result in wanted]


def test_table_3_is_there_without_any_attack():
    tables = {"Table 3": study_tables()["Table 3"]}
    assert len(study_headlines(tables, STUDY_RESULTS, attacked=ATTACKED)) == 4


# Detection.


def test_detection_gives_each_detector_on_x_and_r_of_x_against_both_attacked_functions():
    rows = [
        detection(0.7, space="images", target="classifier", paper_auroc=0.9538),
        detection(0.8, space="class_essential", target="classifier"),
        detection(0.6, space="images", target="class-essential"),
        detection(0.9, space="class_essential", target="class-essential", paper_auroc=0.9979),
    ]
    found = detection_headlines(rows, [], result="Table 4")
    assert [(each.quantity, each.threat_model) for each in found] == [
        (f"AUROC of MD on {symbol}", f"PGD-Linf on {attacked}, which knows no detector")
        for symbol, attacked in (
            *(("x", ATTACKED), ("R(x)", ATTACKED)),
            *(("x", ON_R), ("R(x)", ON_R)),
        )
    ]
    for each, row in zip(found, rows, strict=True):
        assert (each.value, each.low, each.high) == row.auroc
        assert (each.paper, each.images) == (row.paper_auroc, 120)
        assert (each.result, each.is_share) == ("Table 4", True)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "unseen"},
        {"mode": "attack_free"},
        {"subset": "all"},
        {"contrast": "adversarial against clean"},
        {"contrast": "noisy against clean"},
        {"space": "class_redundant"},
        {"attack": "FGSM"},
    ],
)
def test_other_lines_of_the_detection_table_are_no_headlines(changes):
    own = detection(0.9)
    other = detection(0.99, **changes)
    expected = detection_headlines([own], [], result="Table 5")
    assert len(expected) == 1
    assert expected[0].result == "Table 5"
    for rows in ([own, other], [other, own]):
        assert detection_headlines(rows, [], result="Table 5") == expected


def test_the_main_attack_is_pgd_whatever_comes_first_and_whatever_came_out():
    rows = [detection(0.99, attack="FGSM"), detection(0.5), detection(0.1, attack="PGD-L2")]
    for some in (rows, rows[::-1]):
        (found,) = detection_headlines(some, [], result="Table 4")
        assert found.value == 0.5
    # Without it the first one, so that a report never lacks its headline.
    (found,) = detection_headlines([rows[0], rows[2]], [], result="Table 4")
    assert found.threat_model.startswith("FGSM on ")


def test_a_detector_is_evaded_by_the_strongest_attack_at_the_strictest_rate():
    rows = [
        adaptive(0.5, "unaware", threat=UNKNOWN),
        adaptive(0.6, "orthogonal"),
        adaptive(0.8, "selective"),
        adaptive(0.7, "joint"),
        # More successful, at a threshold that is not the one of the others.
        adaptive(0.9, "joint", rate=0.5),
        adaptive(0.2, "joint", method="KD", space="images"),
        adaptive(0.3, "unaware", method="KD", space="images", threat=UNKNOWN),
    ]
    for some in (rows, rows[::-1]):
        found = by_quantity(detection_headlines([], some, result="Table 4"))
        assert set(found) == {
            (
                "evaded: wrong class and passed by MD on R(x) at 5% FPR",
                f"selective: {KNOWN}",
            ),
            ("evaded: wrong class and passed by KD on x at 5% FPR", f"unaware: {UNKNOWN}"),
        }
        for (quantity, _), best in zip(sorted(found), (0.3, 0.8), strict=True):
            (each,) = [every for key, every in found.items() if key[0] == quantity]
            assert (each.value, each.low, each.high) == (best, best - 0.03, best + 0.04)
            assert (each.images, each.paper, each.is_share) == (61, None, True)
            assert each.result == "Table 4"


def test_whoever_knows_the_detector_stands_after_whoever_does_not():
    found = detection_headlines([detection(0.9)], [adaptive(0.7, "orthogonal")], result="Table 4")
    assert [each.quantity.partition(" ")[0] for each in found] == ["AUROC", "evaded:"]


# Defence.


def test_a_defence_gives_clean_main_attack_and_worst_for_both_threat_models():
    numbers = [
        defense(0.91, "clean", threat=CLEAN_THREAT, paper=0.8681),
        defense(0.7, "StAdv"),
        defense(0.6, "PGD-Linf", paper=0.7705),
        defense(0.65, "mean of unseen"),
        defense(0.66, "mean of all"),
        defense(0.5, "worst of all"),
        defense(0.2, "PGD-Linf", threat=WHITE_BOX),
        defense(0.3, "C&W-Linf", threat=WHITE_BOX),
        defense(0.25, "mean of all", threat=WHITE_BOX),
        defense(0.1, "worst of all", threat=WHITE_BOX),
    ]
    found = defense_headlines(numbers, result="Table 6")
    assert [(each.quantity, each.threat_model, each.value) for each in found] == [
        ("accuracy of Ours, clean", NO_ATTACK, 0.91),
        ("accuracy of Ours, PGD-Linf", TRANSFER, 0.6),
        ("accuracy of Ours, worst of all", TRANSFER, 0.5),
        ("accuracy of Ours, PGD-Linf", WHITE_BOX, 0.2),
        ("accuracy of Ours, worst of all", WHITE_BOX, 0.1),
    ]
    assert [each.paper for each in found] == [0.8681, 0.7705, None, None, None]
    for each in found:
        assert (each.low, each.high) == (each.value - 0.05, each.value + 0.03)
        assert (each.result, each.images, each.is_share) == ("Table 6", 500, True)


@pytest.mark.parametrize(
    ("attacks", "main"),
    [
        (("StAdv", "AutoAttack-L2", "AutoAttack-Linf"), "AutoAttack-Linf"),
        (("AutoAttack-Linf", "PGD-Linf"), "PGD-Linf"),
        (("JPEG", "StAdv"), "JPEG"),
    ],
)
def test_the_main_attack_on_a_defence_is_chosen_by_its_name(attacks, main):
    numbers = [
        defense(0.9, "clean", threat=CLEAN_THREAT),
        *(defense(0.1 * place, each) for place, each in enumerate(attacks, start=1)),
        defense(0.0, "worst of all"),
    ]
    found = defense_headlines(numbers, result="Table 7")
    assert [each.quantity.partition(", ")[2] for each in found] == ["clean", main, "worst of all"]


def test_every_defence_is_there():
    numbers = [
        defense(accuracy, quantity, name=name, threat=threat)
        for name, accuracy in (("Normal", 0.96), ("TRADES", 0.85), ("Ours-Linf", 0.81))
        for quantity, threat in (("clean", CLEAN_THREAT), ("AutoAttack-Linf", WHITE_BOX))
    ]
    found = defense_headlines(numbers, result="Table 7")
    assert [each.quantity.split(",")[0] for each in found[::2]] == [
        *("accuracy of Normal", "accuracy of TRADES", "accuracy of Ours-Linf"),
    ]
    assert len(found) == 6


# The search.


def test_an_objective_that_could_not_be_measured_has_no_line():
    trials = [trial(0.1, {"defense_accuracy": 0.5}), trial(1.0, {"detection_auroc_md": 0.9})]
    found = search_headlines(trials, space("defense_accuracy", "detection_auroc_md"))
    assert [each.value for each in found] == [0.5, 0.9]


def test_a_search_gives_every_objective_at_both_ends():
    names = ("class_essential_accuracy", "detection_auroc_md", "defense_accuracy")
    trials = [
        trial(1.0, dict.fromkeys(names, 0.9)),
        trial(10.0, dict(zip(names, (0.5, 0.6, 0.7), strict=True))),
        trial(0.1, dict(zip(names, (0.2, 0.3, 0.4), strict=True))),
        # The ends of those that have numbers.
        trial(0.01, {}, "failed"),
        trial(99.0, {}, "stopped"),
    ]
    found = search_headlines(trials, space(*names))
    assert [(each.quantity, each.value) for each in found] == [
        ("class essential accuracy at gamma = 0.1", 0.2),
        ("class essential accuracy at gamma = 10", 0.5),
        ("detection auroc md at gamma = 0.1", 0.3),
        ("detection auroc md at gamma = 10", 0.6),
        ("defense accuracy at gamma = 0.1", 0.4),
        ("defense accuracy at gamma = 10", 0.7),
    ]
    threats = [each.threat_model for each in found[::2]]
    assert threats[0] == NO_ATTACK
    assert "PGD-Linf" in threats[1] and "knows no detector" in threats[1]
    assert "transfer" in threats[2] and "D(x)" in threats[2]
    for each in found:
        assert (each.low, each.high) == (each.value - 0.1, each.value + 0.05)
        assert (each.result, each.images, each.paper) == ("Figure 4", 90, None)
        assert each.is_share


def test_one_trial_alone_is_one_line_a_metric():
    names = ("class_essential_accuracy", "defense_accuracy")
    only = [trial(1.0, dict.fromkeys(names, 0.5)), trial(2.0, {}, "failed")]
    found = search_headlines(only, space(*names))
    assert [each.quantity for each in found] == [
        "class essential accuracy at gamma = 1",
        "defense accuracy at gamma = 1",
    ]


def test_metrics_besides_the_objectives_are_no_headlines():
    numbers = {"defense_accuracy": 0.5, "redundant_accuracy": 0.6}
    found = search_headlines([trial(1.0, numbers)], space("defense_accuracy"))
    assert [each.value for each in found] == [0.5]


def test_objectives_of_different_attacks_have_different_threat_models():
    # One is of attacks on D(x), the other of attacks on D(R(x)).
    names = ("detection_auroc_md", "detection_auroc_md_essential")
    found = search_headlines([trial(1.0, dict.fromkeys(names, 0.5))], space(*names))
    assert len({each.threat_model for each in found}) == 2


def test_every_objective_of_the_projects_space_that_is_attacked_says_so():
    file = Path(__file__).parents[2] / "tune_spaces" / "gamma.toml"
    found = read_space(file)
    numbers = dict.fromkeys(found.metrics, 0.5)
    for each in search_headlines([trial(1.0, numbers)], found):
        is_attacked = each.quantity.startswith(("detection", "defense"))
        assert (each.threat_model != NO_ATTACK) == is_attacked, each.quantity


# Columns and text.


def test_columns_are_json_of_one_length_and_lose_nothing():
    headlines = every_kind()
    columns = headline_columns(headlines)
    assert tuple(columns) == Headline._fields
    read = json.loads(json.dumps(columns, allow_nan=False))
    assert [Headline(*values) for values in zip(*read.values(), strict=True)] == headlines
    assert headline_columns([]) == {name: [] for name in Headline._fields}


def test_text_has_percent_for_shares_only_and_the_papers_beside_ours():
    shared = {"quantity": "q", "threat_model": "some threat", "low": None, "high": None}
    lines = headline_text(
        [
            Headline(
                result="Table 4",
                images=1234,
                value=0.98765,
                paper=0.9979,
                is_share=True,
                **{**shared, "low": 0.9, "high": 1.0},
            ),
            Headline(
                result="Table 2",
                images=None,
                value=0.98765,
                paper=None,
                is_share=False,
                **{**shared, "low": 0.9, "high": 1.0},
            ),
            Headline(result="Table 1", images=7, value=22.309, paper=0.9, is_share=False, **shared),
            Headline(result="Table 6", images=7, value=0.0, paper=0.0, is_share=True, **shared),
        ]
    ).splitlines()
    assert [re.split(r"\s{2,}", line.strip()) for line in lines] == [
        ["result", "quantity", "ours", "paper", "n", "threat model"],
        ["Table 4", "q", "98.8 % [90.0, 100.0]", "99.8", "1,234", "some threat"],
        ["Table 2", "q", "0.9877 [0.9, 1]", "some threat"],
        ["Table 1", "q", "22.31", "0.9", "7", "some threat"],
        ["Table 6", "q", "0.0 %", "0.0", "7", "some threat"],
    ]


def test_text_of_every_kind_is_a_line_a_headline():
    headlines = every_kind()
    lines = headline_text(headlines).splitlines()
    assert len(lines) == len(headlines) + 1
    for each, line in zip(headlines, lines[1:], strict=True):
        assert each.result in line and each.quantity in line
        assert line.endswith(each.threat_model)
        assert ("%" in line.replace(each.quantity, "")) == each.is_share
