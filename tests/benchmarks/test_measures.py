"""What is a regression, and that every measure stands where it is looked for."""

import json
from pathlib import Path

import pytest

from benchmarks.measures import (
    MEASURES,
    Comparison,
    Measure,
    Spread,
    changed_conditions,
    compare,
    table,
)

RECORDS = Path(__file__).parents[2] / "benchmarks/records"
FAST = Measure("training", "ours / theirs", "step", ("ratio",), "more")
COST = Measure("training", "overhead", "job", ("ratio", "ray"), "less")


def spread(median, low=None, high=None):
    return {"median": median, "min": low or median, "max": high or median, "repeats": 3}


def record(ratio, machine="a machine", **environment):
    return {"machine": machine, "environment": environment, "results": {"ratio": ratio}}


@pytest.mark.parametrize(
    ("measure", "before", "now", "change", "is_regression"),
    [
        (FAST, 2.0, 1.0, -0.5, True),
        (FAST, 2.0, 1.82, -0.09, False),
        (FAST, 1.0, 2.0, 1.0, False),
        (COST, 1.0, 1.25, -0.25, True),
        (COST, 1.0, 1.105, -0.105, True),
        (COST, 1.0, 1.08, -0.08, False),
        (COST, 1.25, 1.0, 0.2, False),
    ],
)
def test_worse_by_more_than_a_tenth_is_a_regression(measure, before, now, change, is_regression):
    found = Comparison(measure, Spread(before, before, before), Spread(now, now, now))
    assert found.change == pytest.approx(change)
    assert found.is_regression is is_regression
    assert not found.is_within_noise


def test_rounds_that_overlap_are_said_to():
    found = Comparison(FAST, Spread(2.0, 1.5, 2.2), Spread(1.6, 1.4, 1.7))
    assert found.is_regression and found.is_within_noise
    assert "**20% worse**, rounds overlap" in table([found])
    apart = Comparison(FAST, Spread(2.0, 1.9, 2.2), Spread(1.6, 1.4, 1.7))
    assert table([apart]).endswith("**20% worse** |")


def test_what_has_no_record_before_is_no_regression_and_what_has_none_now_is_not_listed():
    first = MEASURES[0]
    now = {first.record: record(spread(1.5))}
    (found,) = compare({}, now)
    assert (found.measure, found.change, found.is_regression) == (first, None, False)
    assert compare(now, {}) == []


def test_other_machines_and_versions_are_named():
    before = {"step": record(spread(1.0), torch="2.14", ray="2.60")}
    now = {"step": record(spread(1.0), machine="another", torch="2.15", ray="2.60")}
    assert changed_conditions(before, now) == [
        "step: machine was a machine, is another",
        "step: torch was 2.14, is 2.15",
    ]
    assert changed_conditions(now, now) == []


@pytest.mark.parametrize("measure", MEASURES, ids=lambda each: f"{each.record}: {each.name}")
def test_every_measure_stands_in_the_committed_record(measure):
    path = RECORDS / f"{measure.record}.json"
    found = measure.of(json.loads(path.read_text()))
    assert found is not None
    assert 0 < found.low <= found.median <= found.high


def test_measures_have_names_of_their_own():
    names = [each.name for each in MEASURES]
    assert len(set(names)) == len(names)
