"""The JPEG attack against a literal codec, the cosine sum, and what it promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdvae_ray.core.attacks.jpeg import jpeg, jpeg_identity, random_coefficients
from cdvae_ray.core.attacks.jpeg_codec import (
    cosines,
    decode_blocks,
    decoding_matrices,
    subsampled,
)
from cdvae_ray.core.attacks.outcome import AttackResult
from cdvae_ray.core.random import image_keys, keyed_uniform
from cdvae_ray.errors import ConfigError, DataError

from .networks import fixed_network

CLASSES = 5
EPSILON = 0.5

LUMA = """
16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62   18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99
"""
CHROMA = """
17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
"""


def table(text: str) -> Tensor:
    return torch.tensor([float(step) for step in text.split()], dtype=torch.float64).view(8, 8)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    return fixed_network(16, 32, classes=CLASSES, dtype=dtype)


def case(count: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images of 16 x 32 pixels with black and white, and the classes it sees in them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 16, 32, generator=generator, dtype=torch.float64)
    images = (1.4 * images - 0.2).clamp(0, 1).to(dtype)
    model = network(dtype)
    return model, images, model(images).argmax(dim=1)


def cosine(x: int, u: int) -> float:
    scale = math.sqrt(1 / 8) if u == 0 else 0.5
    return scale * math.cos((2 * x + 1) * u * math.pi / 16)


def cosine_sum() -> Tensor:
    """C[u, v, x, y]: coefficient (u, v) of a block is sum over pixels of C[u, v, x, y] B[x, y]."""
    values = [
        cosine(x, u) * cosine(y, v)
        for u in range(8) for v in range(8) for x in range(8) for y in range(8)
    ]  # fmt: skip
    return torch.tensor(values, dtype=torch.float64).view(8, 8, 8, 8)


def test_the_transform_is_the_cosine_sum() -> None:
    waves, sums = cosines(torch.zeros(1, dtype=torch.float64)), cosine_sum()
    block = torch.rand(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.einsum("uvxy,xy->uv", sums, block)
    torch.testing.assert_close(waves @ block @ waves.T, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(waves @ waves.T, torch.eye(8).double(), rtol=0, atol=1e-14)
    # A gray block of 1 has the coefficient 8, and no other.
    assert (waves @ torch.ones(8, 8).double() @ waves.T)[0, 0] == pytest.approx(8)


@pytest.mark.parametrize(("kind", "text"), [(0, LUMA), (1, CHROMA)])
def test_a_coefficient_of_one_adds_a_quantisation_step_of_its_wave(kind: int, text: str) -> None:
    matrix = decoding_matrices(torch.zeros(1, dtype=torch.float64))[kind]
    expected = table(text)[:, :, None, None] * cosine_sum() / 255
    torch.testing.assert_close(matrix.view(8, 8, 8, 8), expected, rtol=0, atol=1e-14)


def literal_codec(image: Tensor, change: dict[str, Tensor]) -> Tensor:
    """One image (3, H, W): encoded, changed by 0.5 Q c a block, decoded, block by block."""
    sums = cosine_sum()
    red, green, blue = 255 * image
    height, width = red.shape
    planes = {
        "Y": 0.299 * red + 0.587 * green + 0.114 * blue,
        "Cb": -0.168736 * red - 0.331264 * green + 0.5 * blue + 128,
        "Cr": 0.5 * red - 0.418688 * green - 0.081312 * blue + 128,
    }
    decoded = {}
    for name, full in planes.items():
        steps = table(LUMA if name == "Y" else CHROMA)
        plane = full if name == "Y" else F.avg_pool2d(full[None], 2)[0]
        rows = []
        for i in range(plane.shape[0] // 8):
            row = []
            for j in range(plane.shape[1] // 8):
                block = plane[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] - 128
                coefficients = torch.einsum("uvxy,xy->uv", sums, block)
                number = i * (plane.shape[1] // 8) + j
                coefficients = coefficients + 0.5 * steps * change[name][number]
                row.append(torch.einsum("uvxy,uv->xy", sums, coefficients) + 128)
            rows.append(torch.cat(row, dim=1))
        plane = torch.cat(rows, dim=0)
        if name != "Y":
            plane = plane.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
        assert plane.shape == (height, width)
        decoded[name] = plane
    luma, cb, cr = decoded["Y"], decoded["Cb"] - 128, decoded["Cr"] - 128
    rgb = [luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb]
    return torch.stack(rgb).clamp(0, 255) / 255


def literal_jpeg(
    model: nn.Module, images: Tensor, labels: Tensor, start: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Images and perturbations after num_steps, from a start (N, B, 64)."""
    change = start.clone()

    def render() -> Tensor:
        # 16 x 32 pixels: 8 blocks of Y, 2 of each color.
        blocks = change.view(len(images), -1, 8, 8)
        parts = [{"Y": each[:8], "Cb": each[8:10], "Cr": each[10:]} for each in blocks]
        return torch.stack([literal_codec(*both) for both in zip(images, parts, strict=True)])

    for _ in range(num_steps):
        change.requires_grad_()
        loss = F.cross_entropy(model(render()), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, change)
        moved = change.detach() + EPSILON / math.sqrt(num_steps) * gradient.sign()
        change = moved.clamp(-EPSILON, EPSILON)
    return render().detach(), change


@pytest.mark.parametrize("num_steps", [3, 10])
def test_it_is_what_its_specification_says(num_steps: int) -> None:
    model, images, labels = case(3)
    ids = torch.tensor([12, 5, 700])
    start = random_coefficients(images, epsilon=EPSILON, seed=4, image_ids=ids)
    assert start.shape == (3, 12, 64)
    result = jpeg(
        model, images, labels, epsilon=EPSILON, num_steps=num_steps, keep="last", seed=4,
        image_ids=ids,
    )  # fmt: skip
    expected, change = literal_jpeg(model, images, labels, start, num_steps)
    torch.testing.assert_close(result.images, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.norm, change.abs().amax(dim=(1, 2)), rtol=0, atol=1e-12)


def test_single_precision_agrees_at_first() -> None:
    model, images, labels = case(3)
    start = random_coefficients(images, epsilon=EPSILON, seed=0, image_ids=torch.arange(3))
    expected, _ = literal_jpeg(model, images, labels, start, 1)
    result = jpeg(
        network(torch.float32), images.float(), labels, epsilon=EPSILON, num_steps=1, keep="last"
    )
    # The sign of a gradient of nearly zero may differ: that moves few pixels.
    distance = (result.images - expected).abs()
    assert result.images.dtype == torch.float32
    assert (distance > 1e-5).double().mean() < 0.05


def test_zero_strength_is_the_codec_alone() -> None:
    _, images, _ = case(2)
    nothing = {"Y": torch.zeros(8, 8, 8), "Cb": torch.zeros(2, 8, 8), "Cr": torch.zeros(2, 8, 8)}
    expected = torch.stack([literal_codec(image, nothing) for image in images])
    torch.testing.assert_close(jpeg_identity(images), expected, rtol=0, atol=1e-12)
    assert (jpeg_identity(images) - images).abs().max() > 0.1  # subsampled colors are not the image
    model, images, labels = case(2)
    result = jpeg(model, images, labels, epsilon=1e-9, num_steps=1, keep="last")
    torch.testing.assert_close(result.images, jpeg_identity(images), rtol=0, atol=1e-8)


def test_gray_survives_zero_strength() -> None:
    gray = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(3)).double()
    gray = gray.repeat(1, 3, 1, 1)
    torch.testing.assert_close(jpeg_identity(gray), gray, rtol=0, atol=1e-12)


def test_decoding_is_linear() -> None:
    generator = torch.Generator().manual_seed(4)
    p, q = torch.randn(2, 1, 12, 64, generator=generator, dtype=torch.float64)
    matrices = decoding_matrices(p)

    def decode(coefficients: Tensor) -> Tensor:
        return decode_blocks(coefficients, matrices, (16, 32))

    torch.testing.assert_close(decode(2 * p - q), 2 * decode(p) - decode(q), rtol=0, atol=1e-12)
    images = torch.rand(1, 3, 16, 32, generator=generator).double()
    torch.testing.assert_close(
        subsampled(subsampled(images)), subsampled(images), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.03, 0.125, 4.0])
def test_coefficients_stay_in_the_ball_and_pixels_in_the_box(
    dtype: torch.dtype, epsilon: float
) -> None:
    model, images, labels = case(3, dtype)
    result = jpeg(model, images, labels, epsilon=epsilon, num_steps=4, keep="last")
    assert (result.norm <= epsilon + 1e-6).all()
    assert (result.norm > 0.99 * epsilon).all()
    assert result.images.dtype == dtype
    assert result.images.min() >= 0 and result.images.max() <= 1


def test_the_start_is_uniform_and_keyed_by_the_image() -> None:
    images = torch.zeros(40, 3, 32, 32)
    ids = torch.arange(40)

    def start(seed: int, ids: Tensor) -> Tensor:
        return random_coefficients(images[: len(ids)], epsilon=0.25, seed=seed, image_ids=ids)

    values = start(0, ids)
    assert values.shape == (40, 24, 64)
    assert values.abs().max() <= 0.25
    assert abs(float(values.mean())) < 4 * 0.25 / math.sqrt(3 * values.numel())
    assert float(values.square().mean()) == pytest.approx(0.25**2 / 3, rel=0.02)
    assert torch.equal(start(0, torch.tensor([31, 2])), values[[31, 2]])
    assert not torch.equal(start(1, ids), values)
    # Another attack of the same seed does not share its numbers.
    others = keyed_uniform(image_keys(0, "pgd", 0, ids), 24 * 64).view_as(values)
    assert abs(float(torch.corrcoef(torch.stack([values.flatten(), others.flatten()]))[0, 1])) < 0.1


def attack(model: nn.Module, images: Tensor, labels: Tensor, **options: object) -> AttackResult:
    settings = {"epsilon": 0.12, "num_steps": 8, **options}
    return jpeg(model, images, labels, **settings)  # type: ignore[arg-type]


def test_dropping_the_fooled_changes_nothing_for_the_others() -> None:
    model, images, labels = case(24)
    labels = model(jpeg_identity(images)).argmax(dim=1)
    dropped = attack(model, images, labels, drop_fooled=True)
    full = attack(model, images, labels, drop_fooled=False)
    assert torch.equal(dropped.success, full.success)
    rest = ~full.success
    assert rest.any() and full.success.any()
    torch.testing.assert_close(dropped.images[rest], full.images[rest], rtol=0, atol=1e-9)


def test_an_image_takes_the_same_path_in_any_batch() -> None:
    model, images, labels = case(9)
    ids = torch.arange(100, 109)
    whole = attack(model, images, labels, keep="last", image_ids=ids)
    for rows in ([4], [8, 0, 3]):
        part = attack(model, images[rows], labels[rows], keep="last", image_ids=ids[rows])
        torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-9)


def test_it_raises_the_loss_of_every_image_and_fools_most() -> None:
    model, images, _ = case(24)
    unperturbed = jpeg_identity(images)
    labels = model(unperturbed).argmax(dim=1)
    before = F.cross_entropy(model(unperturbed), labels, reduction="none")
    assert (attack(model, images, labels, drop_fooled=False).loss > before).all()
    strong = attack(model, images, labels, epsilon=1.0, num_steps=20)
    assert strong.success.double().mean() > 0.9
    assert not strong.zero_gradient.any()


def test_the_default_step_is_epsilon_over_the_root_of_the_steps() -> None:
    model, images, labels = case(2)
    said = jpeg(model, images, labels, epsilon=0.2, num_steps=4, step_size=0.1, keep="last")
    assert torch.equal(
        said.images, jpeg(model, images, labels, epsilon=0.2, num_steps=4, keep="last").images
    )


@pytest.mark.parametrize("size", [(9, 21), (16, 24), (17, 16)])
def test_images_that_16_does_not_divide_are_attacked_like_their_padded_ones(size):
    height, width = size
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(4, 3, height, width, generator=generator, dtype=torch.float64)
    padded = F.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    weights = torch.randn(3 * height * width, 3, generator=generator, dtype=torch.float64)

    def classify(shown):
        return shown[..., :height, :width].flatten(1) @ weights

    labels = classify(images).argmax(dim=1)
    settings = {"epsilon": EPSILON, "num_steps": 3, "keep": "last", "seed": 2}
    found, wanted = (jpeg(classify, each, labels, **settings) for each in (images, padded))
    assert found.images.shape == images.shape
    assert torch.equal(found.images, wanted.images[..., :height, :width])
    assert not torch.equal(found.images, images)
    assert torch.equal(jpeg_identity(images), jpeg_identity(padded)[..., :height, :width])


def test_images_without_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="0 x 16 pixels"):
        jpeg_identity(torch.rand(1, 3, 0, 16))


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 4, 16, 16)])
def test_images_that_have_no_colors_are_refused(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    with pytest.raises(DataError, match="images"):
        jpeg(network(torch.float32), images, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(DataError, match="images"):
        jpeg_identity(images)


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"num_steps": 0}, {"step_size": -1.0}])
def test_settings_that_cannot_be_run_are_refused(options: dict[str, float]) -> None:
    model, images, labels = case(1)
    with pytest.raises(ConfigError, match=next(iter(options))):
        attack(model, images, labels, **options)
