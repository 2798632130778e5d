"""Several seeds side by side: means, Student's intervals, and lines that some seed lacks."""

import math

import numpy as np
import pytest
from scipy import stats

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.seed_picture import seed_picture
from cdvae_ray.evaluation.seed_tables import VIEWS, compare_seeds, seed_columns, seed_page


def defences(accuracy, *, defenses=("Normal", "Ours"), threat="white-box: all of it"):
    """A part of Table 6 with one number a defence."""
    count = len(defenses)
    return {
        "grey-box": {
            "numbers": {
                "defense": list(defenses),
                "threat_model": [threat] * count,
                "quantity": ["worst of all"] * count,
                "images": [100] * count,
                "accuracy": [accuracy + 0.1 * place for place in range(count)],
                "low": [accuracy - 0.05] * count,
                "high": [accuracy + 0.05] * count,
                "paper": [None, 0.5][:count],
            }
        }
    }


def detection(area, *, mode="same_attack"):
    return {
        "detection": {
            "detection": {
                "attacked": ["D(x)", "D(x)"],
                "attack": ["PGD-Linf", "PGD-Linf"],
                "method": ["MD", "MD"],
                "space": ["images", "images"],
                "mode": [mode, mode],
                "subset": ["successful", "all"],
                "contrast": ["adversarial against clean and noisy"] * 2,
                "clean_images": [50, 80],
                "auroc": [area, 0.1],
                "auroc_low": [area - 0.1, 0.0],
                "auroc_high": [area + 0.1, 0.2],
                "tnr_at_95_tpr": [0.5, 0.1],
                "paper_auroc": [0.9538, None],
                "paper_tnr_at_95_tpr": [0.7723, None],
            }
        }
    }


@pytest.mark.parametrize("values", [(0.3, 0.4), (0.25, 0.31, 0.4), (0.5, 0.5, 0.5, 0.5)])
def test_mean_and_interval_are_those_of_students_t(values):
    normal, ours = compare_seeds([defences(value) for value in values])
    assert normal.values == pytest.approx(values)
    assert normal.mean == pytest.approx(np.mean(values))
    if len(set(values)) == 1:
        assert (normal.low, normal.high) == pytest.approx((values[0], values[0]))
    else:
        expected = stats.t.interval(
            0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
        )
        assert (normal.low, normal.high) == pytest.approx(expected)
    assert normal.images_low == pytest.approx(min(values) - 0.05)
    assert normal.images_high == pytest.approx(max(values) + 0.05)
    assert (normal.paper, ours.paper) == (None, 0.5)
    assert ours.key == ("white-box: all of it", "Ours", "worst of all")


def test_one_seed_has_no_interval_over_seeds():
    (row, _) = compare_seeds([defences(0.3)])
    assert (row.mean, row.low, row.high) == (0.3, None, None)


def test_a_line_that_a_seed_lacks_counts_the_others_alone():
    both, some = compare_seeds([defences(0.2), defences(0.4, defenses=("Normal",))])
    assert both.values == pytest.approx((0.2, 0.4))
    assert some.values == (pytest.approx(0.3), None)
    assert (some.mean, some.low) == (pytest.approx(0.3), None)


def test_a_number_that_is_missing_or_not_finite_is_none_of_any():
    tables = [defences(0.2), defences(0.4), defences(0.9)]
    tables[0]["grey-box"]["numbers"]["accuracy"][0] = None
    tables[1]["grey-box"]["numbers"]["accuracy"][0] = math.nan
    row = compare_seeds(tables)[0]
    assert row.values == (None, None, 0.9)
    for each in tables:
        each["grey-box"]["numbers"]["accuracy"][0] = None
    assert [row.key[1] for row in compare_seeds(tables)] == ["Ours"]


def test_a_view_takes_the_lines_that_its_title_says_and_no_others():
    rows = compare_seeds([detection(0.8), detection(0.9)])
    assert {row.quantity for row in rows} == {"auroc", "tnr_at_95_tpr"}
    area = next(row for row in rows if row.quantity == "auroc")
    assert area.values == pytest.approx((0.8, 0.9))
    assert (area.images, area.paper) == (50, 0.9538)
    assert "strict protocol, trained on the same attack" in area.view
    assert not any("no attack seen" in row.view for row in rows)
    (other, *_) = compare_seeds([detection(0.8, mode="attack_free")])
    assert "no attack seen" in other.view and other.paper is None


def test_lines_that_cannot_be_told_apart_are_an_error():
    tables = defences(0.3, defenses=("Normal", "Normal"))
    with pytest.raises(DataError, match="two of white-box: all of it, Normal, worst of all"):
        compare_seeds([tables])


def test_each_number_of_a_search_has_its_own_n():
    trials = {
        "gamma": [0.02, 2.0],
        "class_essential_accuracy": [0.5, 0.6],
        "class_essential_accuracy_low": [0.4, 0.5],
        "class_essential_accuracy_high": [0.6, 0.7],
        "class_essential_accuracy_images": [100, 100],
        "detection_auroc_md": [0.9, None],
        "detection_auroc_md_images": [45, None],
    }
    rows = compare_seeds([{"search": {"trials": trials}}])
    found = {(row.key, row.quantity): row.images for row in rows}
    assert found == {
        (("0.02",), "class_essential_accuracy"): 100,
        (("2",), "class_essential_accuracy"): 100,
        (("0.02",), "detection_auroc_md"): 45,
    }
    assert rows[0].images_low == 0.4


def test_page_and_columns_hold_every_number():
    rows = compare_seeds([defences(0.3) | detection(0.8), defences(0.35) | detection(0.9)])
    page = seed_page(rows, seeds=(4, 7), facts={"preset": "smoke"})
    assert "- preset: smoke" in page
    assert "seed 4, seed 7" in page
    assert "| 100 | 32.50 [0.73, 64.27] | 30.00, 35.00 | [25.00, 40.00] |  |" in page
    assert "95.38" in page
    columns = seed_columns(rows)
    assert {len(column) for column in columns.values()} == {len(rows)}
    assert page.count("\n## ") == len({row.view for row in rows})


def test_the_picture_is_the_same_twice_and_needs_something_to_draw():
    rows = compare_seeds([defences(0.3) | detection(0.8), defences(0.35) | detection(0.9)])
    first = seed_picture(rows, caption="a test")
    assert first.startswith(b"\x89PNG")
    assert first == seed_picture(rows, caption="a test")
    with pytest.raises(DataError, match="results to draw"):
        seed_picture([], caption="a test")


def test_views_have_titles_of_their_own():
    assert len({view.title for view in VIEWS}) == len(VIEWS)
