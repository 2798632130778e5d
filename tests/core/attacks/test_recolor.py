"""ReColorAdv against a literal implementation of its specification, and what it promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cdvae_ray.core.attacks.cache import cache_slices
from cdvae_ray.core.attacks.color import gamut_round_trip, luv_from_rgb, rgb_from_luv
from cdvae_ray.core.attacks.outcome import AttackResult
from cdvae_ray.core.attacks.recolor import (
    allowed_shifts,
    identity_colors,
    recolor,
    recolor_identity,
)
from cdvae_ray.errors import ConfigError, DataError

from .networks import fixed_network

CLASSES = 5
COARSE = (4, 5, 6)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    return fixed_network(12, 12, classes=CLASSES, dtype=dtype)


def case(count: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images with black, white and saturated colors, and the classes it sees in them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 12, 12, generator=generator, dtype=torch.float64)
    images = (1.4 * images - 0.2).clamp(0, 1).to(dtype)
    model = network(dtype)
    return model, images, model(recolor_identity(images)).argmax(dim=1)


def literal_luv(rgb: Tensor) -> Tensor:
    """sRGB (..., 3) to the stored scale, as specified."""
    low = rgb < 0.04045
    linear = torch.where(low, rgb / 12.92, ((rgb + 0.055) / 1.055).clamp(min=1e-10) ** 2.4)
    r, g, b = linear.unbind(-1)
    x = 0.4124 * r + 0.3576 * g + 0.1805 * b
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = 0.0193 * r + 0.1192 * g + 0.9504 * b
    total = x + 15 * y + 3 * z + 1e-10
    lightness = torch.where(
        y < (6 / 29) ** 3, (29 / 3) ** 3 * y, 116 * y.clamp(min=1e-10) ** (1 / 3) - 16
    )
    u = 13 * lightness * (4 * x / total - 0.1978)
    v = 13 * lightness * (9 * y / total - 0.4683)
    return torch.stack([lightness / 100, (u + 100) / 200, (v + 100) / 200], dim=-1)


def literal_rgb(luv: Tensor) -> Tensor:
    """The stored scale (..., 3) to sRGB, as specified."""
    lightness, u, v = luv[..., 0] * 100, luv[..., 1] * 200 - 100, luv[..., 2] * 200 - 100
    u = u / (13 * lightness + 1e-10) + 0.1978
    v = v / (13 * lightness + 1e-10) + 0.4683
    y = torch.where(lightness <= 8, lightness * (3 / 29) ** 3, ((lightness + 16) / 116) ** 3)
    x = y * 9 * u / (4 * v + 1e-10)
    z = y * (12 - 3 * u - 20 * v) / (4 * v + 1e-10)
    x, y, z = (each.clamp(0, 1.1) for each in (x, y, z))
    linear = torch.stack(
        [
            3.2406 * x - 1.5372 * y - 0.4986 * z,
            -0.9689 * x + 1.8758 * y + 0.0415 * z,
            0.0557 * x - 0.2040 * y + 1.0570 * z,
        ],
        dim=-1,
    )
    curved = 1.055 * linear.clamp(min=1e-10) ** (1 / 2.4) - 0.055
    return torch.where(linear < 0.0031308, 12.92 * linear, curved).clamp(0, 1)


def literal_lookup(grid: Tensor, colors: Tensor) -> Tensor:
    """Trilinear: one image's grid (L, U, V, 3) at colors (P, 3), the eight corners in a loop."""
    sizes = grid.shape[:3]
    scaled = colors * torch.tensor([size - 1 for size in sizes], dtype=colors.dtype)
    whole, part = scaled.floor().long(), scaled - scaled.floor()
    found = torch.zeros_like(colors)
    for corner in range(8):
        index, weight = [], torch.ones_like(part[:, 0])
        for axis in range(3):
            step = corner >> axis & 1
            index.append((whole[:, axis] + step).clamp(0, sizes[axis] - 1))
            weight = weight * (part[:, axis] if step else 1 - part[:, axis])
        found = found + weight[:, None] * grid[index[0], index[1], index[2]]
    return found


def literal_total_variation(field: Tensor) -> Tensor:
    """One image's field (L, U, V, 3): every point, axis and direction, edges replicated."""
    total = field.new_zeros(())
    for axis in range(3):
        size = field.shape[axis]
        for i in range(size):
            for j in (max(i - 1, 0), min(i + 1, size - 1)):
                difference = field.select(axis, i) - field.select(axis, j)
                total = total + (difference.pow(2).sum(dim=-1) + 1e-10).sqrt().sum()
    return total


def literal_identity(resolution: tuple[int, int, int]) -> Tensor:
    grid = torch.zeros(*resolution, 3, dtype=torch.float64)
    for i in range(resolution[0]):
        for j in range(resolution[1]):
            for k in range(resolution[2]):
                place = (i, j, k)
                for axis in range(3):
                    grid[i, j, k, axis] = place[axis] / (resolution[axis] - 1)
    return grid


def literal_recolor(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    num_steps: int,
    epsilon: float,
    resolution: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """Step by step as specified: images and shifts of the grid after num_steps."""
    identity = literal_identity(resolution)
    grids = identity.repeat(len(images), 1, 1, 1, 1).requires_grad_()
    adam = torch.optim.Adam([grids], lr=0.001)

    def project() -> None:
        with torch.no_grad():
            grids.copy_(literal_luv(literal_rgb(grids.clamp(0, 1))))
            grids.copy_(torch.minimum(torch.maximum(grids, identity - epsilon), identity + epsilon))

    def render() -> Tensor:
        shown = []
        for image, grid in zip(images, grids, strict=True):
            colors = literal_luv(image.permute(1, 2, 0).reshape(-1, 3))
            rgb = literal_rgb(literal_lookup(grid, colors))
            shown.append(rgb.T.reshape(image.shape))
        return torch.stack(shown)

    for _ in range(num_steps):
        project()
        adam.zero_grad()
        logits = model(render())
        loss = images.new_zeros(())
        for row, label, grid in zip(logits, labels.tolist(), grids, strict=True):
            others = torch.cat([row[:label], row[label + 1 :]])
            variation = literal_total_variation(grid - identity)
            loss = loss + row[label] - others.max() + 0.0036 / epsilon * variation
        loss.backward()
        adam.step()
    project()
    return render().detach(), (grids - identity).detach()


@pytest.mark.parametrize(
    ("num_steps", "resolution"), [(3, (16, 32, 32)), (3, COARSE), (10, COARSE), (10, (6, 9, 8))]
)
def test_it_is_what_its_specification_says(
    num_steps: int, resolution: tuple[int, int, int]
) -> None:
    model, images, labels = case(3)
    result = recolor(model, images, labels, num_steps=num_steps, resolution=resolution, keep="last")
    expected, shifts = literal_recolor(model, images, labels, num_steps, 0.06, resolution)
    torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.norm, shifts.abs().amax(dim=(1, 2, 3, 4)), rtol=0, atol=1e-6)
    # Not by standing still.
    assert (expected - recolor_identity(images)).abs().max() > 0.002


# --- colors -----------------------------------------------------------------------------------


def test_known_colors() -> None:
    rgb = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    # L*, u*, v* of the sRGB primaries under D65, as tables give them.
    known = torch.tensor(
        [[100, 0, 0], [0, 0, 0], [53.24, 175.01, 37.76], [87.73, -83.08, 107.40],
         [32.30, -9.40, -130.34]],
        dtype=torch.float64,
    )  # fmt: skip
    stored = luv_from_rgb(rgb.T[None])[0].T
    luv = torch.stack([100 * stored[:, 0], 200 * stored[:, 1] - 100, 200 * stored[:, 2] - 100], 1)
    torch.testing.assert_close(luv, known, rtol=0, atol=0.1)
    assert float(stored[0, 0]) == pytest.approx(1, abs=1e-12)
    assert stored[1].tolist() == [0.0, 0.5, 0.5]


def some_colors(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    rgb = torch.rand(3, count, generator=generator, dtype=torch.float64)
    # Dark ones too, around the joints of the transfer curve and of L.
    rgb[:, : count // 4] *= 0.1
    return (1.2 * rgb - 0.1).clamp(0, 1)[None]


def test_conversions_are_the_literal_ones() -> None:
    rgb = some_colors(4000)
    stored = luv_from_rgb(rgb)
    torch.testing.assert_close(stored[0].T, literal_luv(rgb[0].T), rtol=0, atol=1e-13)
    anywhere = torch.rand(1, 3, 4000, generator=torch.Generator().manual_seed(3)).double()
    torch.testing.assert_close(
        rgb_from_luv(anywhere)[0].T, literal_rgb(anywhere[0].T), rtol=0, atol=1e-12
    )


def test_the_gradient_is_the_literal_one_and_finite() -> None:
    rgb = some_colors(2000)
    rgb[0, :, :50] = 0  # black, where u' and v' divide 0 by 0
    rgb[0, :, 50:100] = 1
    luv = luv_from_rgb(rgb)
    luv[0, 1:] += 0.02
    mine, literal = luv.clone().requires_grad_(), luv[0].T.clone().requires_grad_()
    weights = torch.randn(3, 2000, generator=torch.Generator().manual_seed(4)).double()
    (gradient,) = torch.autograd.grad((weights * rgb_from_luv(mine)[0]).sum(), mine)
    (expected,) = torch.autograd.grad((weights.T * literal_rgb(literal)).sum(), literal)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient[0].T, expected, rtol=1e-8, atol=1e-8)


def test_there_and_back_is_near() -> None:
    rgb = some_colors(4000)
    # The matrices are rounded to four digits.
    torch.testing.assert_close(rgb_from_luv(luv_from_rgb(rgb)), rgb, rtol=0, atol=2e-3)


def test_the_gamut_round_trip_is_the_literal_one() -> None:
    generator = torch.Generator().manual_seed(5)
    anywhere = torch.rand(1, 3, 20_000, generator=generator, dtype=torch.float64)
    anywhere[0, 0, :5000] *= 0.1
    expected = literal_luv(literal_rgb(anywhere[0].T))
    torch.testing.assert_close(gamut_round_trip(anywhere)[0].T, expected, rtol=0, atol=1e-6)
    assert (expected - anywhere[0].T).abs().max() > 0.3  # most of the cube is no color of sRGB


# --- the attack -------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [COARSE, (16, 32, 32)])
def test_the_identity_grid_is_the_literal_one(resolution: tuple[int, int, int]) -> None:
    identity = identity_colors(resolution, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(identity.movedim(0, -1), literal_identity(resolution))


def test_zero_strength_is_a_round_trip_that_clips_saturated_colors() -> None:
    _, images, _ = case(3)
    expected = literal_rgb(literal_luv(images.movedim(1, -1)).clamp(0, 1)).movedim(-1, 1)
    torch.testing.assert_close(recolor_identity(images), expected, rtol=0, atol=1e-12)
    gray = torch.linspace(0, 1, 16).view(1, 1, 4, 4).repeat(1, 3, 1, 1)
    torch.testing.assert_close(recolor_identity(gray), gray, rtol=0, atol=2e-3)
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert 0.2 < float((recolor_identity(red) - red).abs().max()) < 0.5


def test_the_attack_starts_at_zero_strength_as_epsilon_vanishes() -> None:
    model, images, labels = case(3)
    result = recolor(
        model, images, labels, epsilon=1e-9, num_steps=1, resolution=COARSE, keep="last"
    )
    torch.testing.assert_close(result.images, recolor_identity(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_shifts_are_allowed_alike_in_slices(rows: int) -> None:
    identity = identity_colors((16, 32, 32), torch.zeros(1))
    generator = torch.Generator().manual_seed(6)
    shifts = 0.1 * torch.randn(rows, 3, 16, 32, 32, generator=generator)
    allowed = allowed_shifts(shifts, identity, epsilon=0.06)
    for row in range(0, rows, 7):
        alone = allowed_shifts(shifts[row : row + 1], identity, epsilon=0.06)
        assert torch.equal(allowed[row : row + 1], alone)
    parts = [torch.arange(rows)[each] for each in cache_slices(shifts)]
    assert torch.equal(torch.cat(parts), torch.arange(rows))
    assert rows < 40 or len(parts) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.01, 0.06, 0.4])
def test_shifts_stay_in_the_ball_and_pixels_in_the_box(dtype: torch.dtype, epsilon: float) -> None:
    model, images, labels = case(3, dtype)
    result = recolor(
        model, images, labels, epsilon=epsilon, step_size=epsilon, num_steps=5,
        resolution=COARSE, keep="last",
    )  # fmt: skip
    assert (result.norm <= epsilon + 1e-6).all()
    assert (result.norm > 0.99 * epsilon).all()
    assert result.images.dtype == dtype
    assert torch.isfinite(result.images).all()
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert not result.nonfinite_gradient.any()


def test_images_of_one_color_are_attacked_too() -> None:
    model = network()
    for color in ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]):
        images = torch.tensor(color, dtype=torch.float64).view(1, 3, 1, 1).repeat(1, 1, 12, 12)
        result = recolor(model, images, torch.tensor([0]), num_steps=3, keep="last")
        assert torch.isfinite(result.images).all()
        assert not result.nonfinite_gradient.any()


def attack(model: nn.Module, images: Tensor, labels: Tensor, **options: object) -> AttackResult:
    settings = {"epsilon": 0.06, "num_steps": 12, "resolution": COARSE, "step_size": 0.004}
    return recolor(model, images, labels, **{**settings, **options})  # type: ignore[arg-type]


def test_dropping_the_fooled_changes_nothing_for_the_others() -> None:
    model, images, labels = case(24)
    dropped = attack(model, images, labels, drop_fooled=True)
    full = attack(model, images, labels, drop_fooled=False)
    assert torch.equal(dropped.success, full.success)
    rest = ~full.success
    assert rest.any() and full.success.any()
    torch.testing.assert_close(dropped.images[rest], full.images[rest], rtol=0, atol=1e-7)


def test_an_image_takes_the_same_path_in_any_batch() -> None:
    model, images, labels = case(9)
    whole = attack(model, images, labels, keep="last")
    for rows in ([4], [8, 0, 3]):
        part = attack(model, images[rows], labels[rows], keep="last")
        # The classifier's own rounding depends on the batch, and Adam magnifies it.
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-7)


def test_it_raises_the_margin_of_every_image_and_fools_most() -> None:
    model, images, labels = case(24)
    logits = model(recolor_identity(images))
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    before = others - logits.gather(1, labels[:, None]).squeeze(1)
    weak = attack(model, images, labels, drop_fooled=False)
    assert (weak.loss > before).all()
    strong = attack(model, images, labels, epsilon=0.4, step_size=0.03, num_steps=40)
    assert strong.success.double().mean() > 0.9


def test_one_change_of_colors_serves_the_whole_image() -> None:
    model, images, labels = case(2)
    images[:, :, 6:] = images[:, :, :6]
    result = attack(model, images, labels, keep="last")
    torch.testing.assert_close(result.images[:, :, 6:], result.images[:, :, :6], rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_without_three_channels_are_refused(channels: int) -> None:
    images = torch.rand(1, channels, 12, 12)
    with pytest.raises(DataError, match="red, green and blue"):
        recolor(network(torch.float32), images, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(DataError, match="red, green and blue"):
        recolor_identity(images)


@pytest.mark.parametrize(
    "options", [{"resolution": (1, 4, 4)}, {"resolution": (4, 4)}, {"smoothness": -1.0}]
)
def test_settings_that_cannot_be_run_are_refused(options: dict[str, object]) -> None:
    model, images, labels = case(1)
    with pytest.raises(ConfigError, match=next(iter(options))):
        attack(model, images, labels, **options)
