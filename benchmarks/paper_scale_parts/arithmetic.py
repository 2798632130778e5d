"""How 32-bit products are computed on a GPU, for a while; and waiting for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Products = Literal["default", "ieee", "tf32"]
"""default: PyTorch's own, on a GPU convolutions in TF32 and products of matrices as IEEE has them.
The networks here are convolutions but for a few products."""


@contextmanager
def products(precision: Products) -> Iterator[None]:
    """Products and convolutions of float32 as IEEE has them, or in TF32. CPUs know no TF32."""
    if precision == "default":
        yield
        return
    # The older of PyTorch's two interfaces sets both; compilers ask both, and refuse a mixture.
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def trying_convolutions() -> Iterator[None]:
    """cuDNN tries its algorithms for each new shape and keeps the fastest.

    For training, whose shapes stay: attacks that drop fooled images have a new one at most steps.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
