"""Where a random resized crop lies: a function of an image's size and of its random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in pixels from the upper left corner, as Pillow's box."""

NUM_TRIES = 10
UNIFORMS_PER_TRY = 4
"""For the area, the aspect ratio, the horizontal and the vertical position."""
MIN_ASPECT, MAX_ASPECT = 3 / 4, 4 / 3


def resized_crop_box(
    width: int, height: int, uniforms: Sequence[Sequence[float]], *, min_area: float
) -> Box:
    """A crop of random area, aspect ratio and position: Szegedy et al. (2015), as in torchvision.

    The area is uniform in [min_area, 1] of the image's, the ratio of width to height log-uniform
    in [3/4, 4/3], the position uniform. A try that does not fit in the image is dropped. After the
    last one the crop is the largest in the centre whose ratio lies in [3/4, 4/3], of whatever area.
    Departs from torchvision, which rounds edges to whole pixels: these keep area and ratio exactly.

    Args:
        width: of the image, in pixels, at least 1.
        height: of the image, in pixels, at least 1.
        uniforms: one row of UNIFORMS_PER_TRY numbers in [0, 1) for each try.
        min_area: in (0, 1].

    Returns:
        A box inside the image, not empty.
    """
    for area_draw, aspect_draw, x_draw, y_draw in uniforms:
        area = width * height * (min_area + (1 - min_area) * area_draw)
        aspect = MIN_ASPECT * (MAX_ASPECT / MIN_ASPECT) ** aspect_draw
        crop_width, crop_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if crop_width <= width and crop_height <= height:
            return _box_at(width, height, crop_width, crop_height, x_draw, y_draw)
    aspect = min(max(width / height, MIN_ASPECT), MAX_ASPECT)
    crop_width, crop_height = min(width, height * aspect), min(height, width / aspect)
    return _box_at(width, height, crop_width, crop_height, 0.5, 0.5)


def _box_at(
    width: int, height: int, crop_width: float, crop_height: float, x: float, y: float
) -> Box:
    left, top = x * (width - crop_width), y * (height - crop_height)
    # A rounded sum must not reach beyond the image.
    return left, top, min(left + crop_width, width), min(top + crop_height, height)
