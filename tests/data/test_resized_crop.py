from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdvae_ray.data.resized_crop import (
    MAX_ASPECT,
    MIN_ASPECT,
    NUM_TRIES,
    UNIFORMS_PER_TRY,
    resized_crop_box,
)

SIDES = st.integers(1, 5000)
DRAWS = st.floats(0, 1, exclude_max=True)
TRIES = st.lists(
    st.lists(DRAWS, min_size=UNIFORMS_PER_TRY, max_size=UNIFORMS_PER_TRY),
    min_size=NUM_TRIES,
    max_size=NUM_TRIES,
)
AREAS = st.floats(0.01, 1)


@settings(deadline=None, max_examples=300)
@given(width=SIDES, height=SIDES, tries=TRIES, min_area=AREAS)
def test_the_box_is_inside_the_image_and_not_empty(width, height, tries, min_area) -> None:
    left, top, right, bottom = resized_crop_box(width, height, tries, min_area=min_area)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    aspect = (right - left) / (bottom - top)
    assert MIN_ASPECT * (1 - 1e-9) <= aspect <= MAX_ASPECT * (1 + 1e-9)


@settings(deadline=None, max_examples=300)
@given(side=SIDES, tries=TRIES, min_area=AREAS)
def test_the_area_of_a_crop_of_a_square_is_within_the_range(side, tries, min_area) -> None:
    # Of a square the last resort is the whole image, so that the range holds there too.
    left, top, right, bottom = resized_crop_box(side, side, tries, min_area=min_area)
    assert min_area * (1 - 1e-9) <= (right - left) * (bottom - top) / side**2 <= 1


@settings(deadline=None)
@given(side=SIDES, tries=TRIES)
def test_a_smallest_area_of_1_takes_a_square_whole(side, tries) -> None:
    box = resized_crop_box(side, side, tries, min_area=1.0)
    assert box == pytest.approx((0, 0, side, side), abs=1e-6 * side)


@pytest.mark.parametrize(
    ("draws", "expected"),
    [
        # Area 0.25 + 0.75 / 3 = 1/2 of 200 x 200; the middle of the ratios is 1.
        ((1 / 3, 0.5, 0, 0), (0, 0, math.sqrt(2e4), math.sqrt(2e4))),
        ((1 / 3, 0.5, 1 / 4, 1 / 2), (14.645, 29.289, 156.066, 170.711)),
        # Area 1/4, ratio 3/4: 10000 = w h, w = 3/4 h.
        ((0, 0, 0, 0), (0, 0, math.sqrt(7500), math.sqrt(10000 / 0.75))),
    ],
)
def test_boxes_worked_out_by_hand(draws, expected) -> None:
    assert resized_crop_box(200, 200, [draws], min_area=0.25) == pytest.approx(expected, abs=1e-3)


def test_a_try_that_does_not_fit_is_dropped() -> None:
    too_wide, fits = (0.9999, 0.9999, 0, 0), (0, 0.5, 0, 0)
    assert resized_crop_box(10, 10, [too_wide, fits], min_area=0.25) == pytest.approx((0, 0, 5, 5))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 10), (50 - 20 / 3, 0, 50 + 20 / 3, 10)),  # cut to the ratio 4/3
        ((10, 100), (0, 50 - 20 / 3, 10, 50 + 20 / 3)),
        ((11, 10), (0, 0, 11, 10)),  # a ratio within the range stays
    ],
)
def test_the_last_resort_is_the_largest_crop_in_the_centre(size, expected) -> None:
    tries = [(0.99, 0.9999, 0, 0)] * NUM_TRIES
    assert resized_crop_box(*size, tries, min_area=0.9) == pytest.approx(expected)


def test_areas_and_ratios_are_spread_as_promised() -> None:
    steps = [(step + 0.5) / 64 for step in range(64)]
    boxes = [
        resized_crop_box(1000, 1000, [(area, aspect, 0.5, 0.5)], min_area=0.1)
        for area in steps
        for aspect in steps
        if area < 0.7  # all of these fit
    ]
    areas = [(right - left) * (bottom - top) / 1e6 for left, top, right, bottom in boxes]
    logs = [math.log((right - left) / (bottom - top)) for left, top, right, bottom in boxes]
    expected = 0.1 + 0.9 * sum(s for s in steps if s < 0.7) / sum(s < 0.7 for s in steps)
    assert sum(areas) / len(areas) == pytest.approx(expected)
    assert sum(logs) / len(logs) == pytest.approx(0, abs=1e-9)
    assert max(logs) == pytest.approx(math.log(4 / 3) * (1 - 1 / 64))
