"""sRGB to CIE 1976 L*u*v* and back, scaled as ReColorAdv (Laidlaw and Feizi, 2019) stores it.

Tensors are (N, 3, ...). Stored: [L / 100, (u + 100) / 200, (v + 100) / 200]. Matrices, white point
and offsets are those of the released code: the matrices have four digits and are not quite each
other's inverse, so that a round trip moves a color by up to about 1e-3.
"""

from __future__ import annotations

import torch
from torch import Tensor

Planes = tuple[Tensor, Tensor, Tensor]

_XYZ_OF_RGB = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9504))
_RGB_OF_XYZ = ((3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570))
_WHITE_U, _WHITE_V = 0.1978, 0.4683
_OFFSET = 1e-10  # of denominators that black makes zero
_DARK_Y, _DARK_LIGHTNESS = (6 / 29) ** 3, 8.0
_DARK_SRGB, _DARK_LINEAR = 0.04045, 0.0031308


def luv_from_rgb(images: Tensor) -> Tensor:
    """sRGB in [0, 1] to the stored scale; saturated colors lie outside [0, 1] there."""
    # clamp: the branch not taken must have a finite gradient.
    curved = ((images.clamp(min=_DARK_SRGB) + 0.055) / 1.055) ** 2.4
    linear = torch.where(images < _DARK_SRGB, images / 12.92, curved)
    return _luv_of_linear(_planes(linear))


def rgb_from_luv(luv: Tensor) -> Tensor:
    """The stored scale to sRGB, clipped to [0, 1]; differentiable."""
    linear = torch.stack(_linear_of_luv(luv), dim=1)
    curved = 1.055 * linear.clamp(min=_DARK_LINEAR) ** (1 / 2.4) - 0.055
    return torch.where(linear < _DARK_LINEAR, 12.92 * linear, curved).clamp(0, 1)


def gamut_round_trip(luv: Tensor) -> Tensor:
    """luv_from_rgb(rgb_from_luv(luv)): the nearest that sRGB can show.

    The two transfer curves cancel (but for 3e-9 where their branches meet), and are left out.
    """
    red, green, blue = (plane.clamp(0, 1) for plane in _linear_of_luv(luv))
    return _luv_of_linear((red, green, blue))


def _luv_of_linear(linear: Planes) -> Tensor:
    x, y, z = _mixed(_XYZ_OF_RGB, linear)
    total = x + 15 * y + 3 * z + _OFFSET
    curved = 116 * y.clamp(min=_DARK_Y) ** (1 / 3) - 16
    lightness = torch.where(y < _DARK_Y, (29 / 3) ** 3 * y, curved)
    u = 13 * lightness * (4 * x / total - _WHITE_U)
    v = 13 * lightness * (9 * y / total - _WHITE_V)
    return torch.stack([lightness / 100, (u + 100) / 200, (v + 100) / 200], dim=1)


def _linear_of_luv(luv: Tensor) -> Planes:
    """Linear sRGB, not clipped."""
    stored_lightness, stored_u, stored_v = _planes(luv)
    lightness = 100 * stored_lightness
    scale = 13 * lightness + _OFFSET
    u = (200 * stored_u - 100) / scale + _WHITE_U
    v = (200 * stored_v - 100) / scale + _WHITE_V
    curved = ((lightness + 16) / 116) ** 3
    y = torch.where(lightness <= _DARK_LIGHTNESS, (3 / 29) ** 3 * lightness, curved)
    ratio = y / (4 * v + _OFFSET)
    x, z = ratio * 9 * u, ratio * (12 - 3 * u - 20 * v)
    return _mixed(_RGB_OF_XYZ, (x.clamp(0, 1.1), y.clamp(0, 1.1), z.clamp(0, 1.1)))


def _planes(colors: Tensor) -> Planes:
    first, second, third = colors.unbind(dim=1)
    return first, second, third


def _mixed(matrix: tuple[tuple[float, float, float], ...], planes: Planes) -> Planes:
    """The matrix times each color."""
    p, q, r = planes
    first, second, third = (a * p + b * q + c * r for a, b, c in matrix)
    return first, second, third
