"""The switches of matrix products, inside the guard and after it."""

import pytest
import torch

from cdvae_ray.core.detectors.full_precision import full_precision

CPU = torch.device("cpu")


def switches():
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    return [backend.fp32_precision for backend in backends]


@pytest.fixture
def fast_products():
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(previous)


def test_inside_products_are_exact_and_after_it_as_they_were(fast_products):
    assert switches() == ["tf32", "bf16"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision(CPU):
            assert switches() == ["ieee", "ieee"]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert switches() == ["tf32", "bf16"]
    assert torch.get_float32_matmul_precision() == "medium"


def test_switches_come_back_after_an_error(fast_products):
    with pytest.raises(RuntimeError, match="inside"), full_precision(CPU):
        raise RuntimeError("inside")
    assert switches() == ["tf32", "bf16"]
