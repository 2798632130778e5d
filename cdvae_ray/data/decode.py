"""Encoded image files to square RGB bytes, with every odd colour mode handled as stated here.

- Grey of 1 or 8 bits, palettes, CMYK and YCbCr are converted to RGB by Pillow.
- Grey of 16 bits is scaled by 255 / 65535 and rounded (Pillow alone would clip it at 255).
- Images with alpha or a transparent colour are composited over black.
- Of an animation or a multi-page file the first frame counts; EXIF rotation is not applied.

A file that ends early is an error. Damage inside a JPEG that leaves it decodable is not noticed:
the format carries no checksum.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from cdvae_ray.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Encoded: TypeAlias = bytes | Callable[[], bytes]
"""An encoded image, or what reads it."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
MAX_PIXELS = 64 * 2**20  # below the size at which Pillow itself warns of a decompression bomb
ITEMS_PER_TASK = 32  # small images decode faster than a pool hands them out one by one
MAX_THREADS = 16


def decode_image(encoded: bytes, name: str) -> Image:
    """Decodes one image to 8-bit RGB, as the module's docstring states.

    Args:
        encoded: a PNG, JPEG, WebP, BMP, PPM or TIFF file.
        name: what to call it in an error: its file, or file and row.

    Returns:
        A loaded Pillow image of mode RGB and of any size.

    Raises:
        DataError: the bytes are no such image, are truncated, have no stated conversion to RGB,
            or decode to more than 2**26 pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # Named formats only: others would start external programs (EPS) on files from elsewhere.
        image: Image.Image = Image.open(BytesIO(encoded), formats=FORMATS)
        if image.width * image.height <= MAX_PIXELS:
            image.load()
            return _to_rgb(image)
        got = f"an image of {image.width} x {image.height} pixels"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, str(error)) from error
    except UnidentifiedImageError as error:
        raise _undecodable(name, encoded, "of no such format") from error
    except Exception as error:
        # Pillow's readers answer damage with many types: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, ...
        raise _undecodable(name, encoded, str(error) or type(error).__name__) from error
    raise _too_large(name, got)


def to_square(image: Image, size: int) -> Tensor:
    """Resizes the shorter side to `size` (bilinear, antialiased) and crops the centre.

    Args:
        image: mode RGB, any size.
        size: side of the result, in pixels.

    Returns:
        (3, size, size) uint8 in [0, 255], contiguous; unchanged pixels where the image has that
        size already.
    """
    from PIL import Image

    if image.size != (size, size):
        # The crop is expressed as a box of the source, so that a very long image is never
        # enlarged as a whole; the pixels are those of resizing first.
        shorter = min(image.size)
        resized = [int(size * side / shorter) for side in image.size]
        offset = [round((side - size) / 2) for side in resized]
        scale = [side / new for side, new in zip(image.size, resized, strict=True)]
        left, top = (o * s for o, s in zip(offset, scale, strict=True))
        right, bottom = (
            min((o + size) * s, side) for o, s, side in zip(offset, scale, image.size, strict=True)
        )
        image = image.resize(
            (size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
        )
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1).contiguous()


def decode_all(items: Sequence[tuple[str, Encoded]], size: int) -> Tensor:
    """Decodes many images in a thread pool, in order.

    Args:
        items: the name of each image, for errors, and its bytes or what reads them.
        size: side of the square results, in pixels.

    Returns:
        (len(items), 3, size, size) uint8.

    Raises:
        DataError: an item cannot be read or decoded; of several, the first in order.
    """
    decoded = torch.empty((len(items), 3, size, size), dtype=torch.uint8)
    decode_into(items, decoded)
    return decoded


def decode_into(items: Sequence[tuple[str, Encoded]], out: Tensor) -> None:
    """`decode_all` into existing memory.

    Args:
        items: as for `decode_all`.
        out: (len(items), 3, size, size) uint8, overwritten.

    Raises:
        DataError: as for `decode_all`; `out` is then partly written.
    """
    assert len(items) == len(out)
    size = int(out.shape[-1])

    def decode_task(start: int) -> None:
        stop = min(start + ITEMS_PER_TASK, len(items))
        for index in range(start, stop):
            name, encoded = items[index]
            out[index] = to_square(decode_image(_read(encoded, name), name), size)

    num_threads = min(os.cpu_count() or 1, MAX_THREADS)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decode") as pool:
        # map yields in order: the first failure in order is the one that leaves this loop, and
        # tasks not yet begun are cancelled.
        for _ in pool.map(decode_task, range(0, len(items), ITEMS_PER_TASK)):
            continue


def _read(encoded: Encoded, name: str) -> bytes:
    if isinstance(encoded, bytes):
        return encoded
    try:
        return encoded()
    except OSError as error:
        raise DataError(
            name,
            got=f"{type(error).__name__} ({error.strerror or error})",
            expected="a readable file",
            remedy="check that it is there and may be read",
        ) from error


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):
        return _grey_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("RGB")


def _grey_16_bit(image: Image) -> Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values in [{values.min()}, {values.max()}], not 16 bits")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 0
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _undecodable(name: str, encoded: bytes, reason: str) -> DataError:
    return DataError(
        name,
        got=f"{len(encoded)} bytes that do not decode ({reason})",
        expected="a complete PNG, JPEG, WebP, BMP, PPM or TIFF image",
        remedy="replace or remove it",
    )


def _too_large(name: str, got: str) -> DataError:
    return DataError(
        name,
        got=got,
        expected=f"at most {MAX_PIXELS} pixels",
        remedy="scale it down, or remove it if it is not meant to be that large",
    )
