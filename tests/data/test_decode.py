from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from cdvae_ray.data import decode_all, decode_image, to_square
from cdvae_ray.data.decode import MAX_PIXELS
from cdvae_ray.errors import DataError


def _pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def _grey(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (5, 7), dtype=np.uint8)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_rgb_comes_back_exactly(encode, noise, kind: str) -> None:
    image = noise(0)
    assert (_pixels(decode_image(encode(image, kind), "x")) == np.asarray(image)).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_decode_as_pillow_does(encode, noise, kind: str) -> None:
    encoded = encode(noise(0), kind)
    expected = np.asarray(Image.open(BytesIO(encoded)).convert("RGB"))
    assert (_pixels(decode_image(encoded, "x")) == expected).all()


def test_grey_becomes_three_equal_channels(encode) -> None:
    grey = _grey()
    decoded = _pixels(decode_image(encode(Image.fromarray(grey)), "x"))
    assert (decoded == grey[..., None]).all()


def test_one_bit_becomes_black_and_white(encode) -> None:
    bits = _grey() > 127
    decoded = _pixels(decode_image(encode(Image.fromarray(bits)), "x"))
    assert (decoded == np.where(bits, 255, 0)[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(encode, kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (5, 7), dtype=np.uint16)
    values[0, :2] = 0, 65535
    decoded = _pixels(decode_image(encode(Image.fromarray(values), kind), "x"))
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    assert (decoded == expected[..., None]).all()


def test_sixteen_bit_grey_with_a_transparent_value_is_over_black(encode) -> None:
    values = np.full((2, 2), 40000, dtype=np.uint16)
    values[0, 0] = 65535
    decoded = _pixels(decode_image(encode(Image.fromarray(values), transparency=40000), "x"))
    assert decoded[..., 0].tolist() == [[255, 0], [0, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_black(encode, noise, mode: str) -> None:
    colour = noise(2, 7, 5).convert(mode[:-1])
    alpha = _grey(3)
    image = colour.copy()
    image.putalpha(Image.fromarray(alpha))
    decoded = _pixels(decode_image(encode(image), "x"))
    expected = np.asarray(colour.convert("RGB")) * (alpha[..., None] / 255)
    assert np.abs(decoded - expected).max() <= 1
    assert (decoded[alpha == 255] == np.asarray(colour.convert("RGB"))[alpha == 255]).all()


def test_palette_images_take_their_colours(encode) -> None:
    indices = _grey() % 3
    image = Image.fromarray(indices, "L").convert("P")
    image.putdata(indices.ravel().tolist())
    palette = [(10, 20, 30), (200, 0, 7), (255, 255, 255)]
    image.putpalette([value for colour in palette for value in colour])
    expected = np.array(palette)[indices]
    assert (_pixels(decode_image(encode(image), "x")) == expected).all()
    expected[indices == 1] = 0
    transparent = encode(image, transparency=1)
    assert (_pixels(decode_image(transparent, "x")) == expected).all()
    as_bytes = encode(image, transparency=b"\xff\x00\xff")
    assert (_pixels(decode_image(as_bytes, "x")) == expected).all()


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 9)])
def test_a_transparent_colour_becomes_black(encode, mode: str, key) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 200 if mode == "L" else (200, 200, 200))
    decoded = _pixels(decode_image(encode(image, transparency=key), "x"))
    assert decoded.tolist() == [[[0, 0, 0], [200, 200, 200]]]


def test_cmyk_is_converted(encode) -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    decoded = _pixels(decode_image(encode(Image.fromarray(inks, "CMYK"), "TIFF"), "x"))
    assert decoded.tolist() == [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]]
    jpeg = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert np.abs(_pixels(decode_image(jpeg, "x")).astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_truncated_images_are_named(encode, noise, kind: str, kept: float) -> None:
    encoded = encode(noise(0, 32, 32), kind)
    with pytest.raises(DataError, match=r"cat\.img: got \d+ bytes that do not decode"):
        decode_image(encoded[: int(len(encoded) * kept)], "cat.img")


@pytest.mark.parametrize("encoded", [b"", b"not an image", b"\xff\xd8\xff\xe0 not a JPEG"])
def test_other_bytes_are_named(encoded: bytes) -> None:
    with pytest.raises(DataError, match=r"row 7: got \d+ bytes .* expected a complete PNG") as info:
        decode_image(encoded, "row 7")
    assert "0x" not in str(info.value)


def test_a_corrupt_png_is_named(encode, noise) -> None:
    encoded = bytearray(encode(noise(0)))
    encoded[len(encoded) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"cat\.png: got .* do not decode"):
        decode_image(bytes(encoded), "cat.png")


@pytest.mark.parametrize("kind", ["EPS", "GIF"])
def test_formats_outside_the_list_are_refused(encode, noise, kind: str) -> None:
    with pytest.raises(DataError, match="of no such format"):
        decode_image(encode(noise(0), kind), "x")


def test_pixels_without_a_stated_range_are_refused(encode) -> None:
    floats = encode(Image.new("F", (2, 2), 0.5), "TIFF")
    with pytest.raises(DataError, match="no stated range"):
        decode_image(floats, "x")
    wide = encode(Image.new("I", (2, 2), 65536), "TIFF")
    with pytest.raises(DataError, match="not 16 bits"):
        decode_image(wide, "x")


@pytest.mark.parametrize("side", [8193, 10_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    with pytest.raises(DataError, match=rf"big\.png: got .* expected at most {MAX_PIXELS}"):
        decode_image(_png_header(side, side), "big.png")


def test_a_bomb_warning_made_an_error_is_refused_too() -> None:
    with pytest.raises(DataError, match=r"big\.png: got .* expected at most"):
        decode_image(_png_header(10_000, 10_000), "big.png")


def test_an_image_of_the_size_is_left_as_it_is(noise) -> None:
    image = noise(0)
    square = to_square(image, 16)
    assert square.dtype == torch.uint8
    assert square.is_contiguous()
    assert (square.permute(1, 2, 0).numpy() == np.asarray(image)).all()


@pytest.mark.parametrize(
    ("width", "height"), [(40, 40), (53, 31), (31, 53), (20, 61), (9, 9), (7, 12), (16, 17), (1, 5)]
)
def test_to_square_equals_resize_then_centre_crop(noise, width: int, height: int) -> None:
    from torchvision.transforms import CenterCrop, Resize

    image = noise(0, width, height)
    expected = np.asarray(CenterCrop(16)(Resize(16)(image))).astype(int)
    square = to_square(image, 16).permute(1, 2, 0).numpy()
    assert square.shape == (16, 16, 3)
    assert np.abs(square - expected).max() <= 1  # a rounding apart


def test_a_very_long_image_costs_no_more_than_its_square() -> None:
    assert to_square(Image.new("RGB", (100_000, 1), (5, 6, 7)), 64).unique().tolist() == [5, 6, 7]


def test_decode_all_keeps_order_and_reads_callables(encode, noise) -> None:
    images = [noise(seed) for seed in range(100)]
    encoded = [encode(image) for image in images]
    items = [
        (f"row {i}", data if i % 2 else (lambda data=data: data)) for i, data in enumerate(encoded)
    ]
    decoded = decode_all(items, 16)
    expected = torch.stack([torch.from_numpy(np.asarray(each).copy()) for each in images])
    assert torch.equal(decoded, expected.permute(0, 3, 1, 2))
    assert decode_all([], 16).shape == (0, 3, 16, 16)


def test_decode_all_raises_the_first_error_in_order(encode, noise) -> None:
    good = encode(noise(0))

    def missing() -> bytes:
        raise FileNotFoundError(2, "No such file or directory")

    items = [(f"row {i}", good) for i in range(300)]
    for row in (299, 150, 77):
        items[row] = (f"row {row}", good[:40])
    with pytest.raises(DataError, match=r"^row 77: got 40 bytes"):
        decode_all(items, 16)
    items[40] = ("row 40", missing)
    with pytest.raises(DataError, match=r"^row 40: got FileNotFoundError \(No such file"):
        decode_all(items, 16)


def test_truncation_is_not_tolerated_by_default() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
