"""Products of float32 gradients in host memory, with and without the compiled pass."""

import math

import pytest
import torch

from analyzer.joins import products as products_module
from analyzer.joins.products import are_in_host_memory, products, squares


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def way(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(products_module, "_compiled", None)
    elif products_module._compiled is None:
        pytest.fail("the compiled pass was not built; expected a compiler at installation")


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 70_001])
def test_products_are_those_of_exact_sums(count):
    generator = torch.Generator().manual_seed(count)
    a, b = (torch.randn(count, generator=generator) for _ in range(2))
    x, y = a.double().tolist(), b.double().tolist()
    expected = [
        math.fsum(p * q for p, q in zip(one, other, strict=True))
        for one, other in ((x, x), (x, y), (y, y))
    ]
    assert products(a, b) == pytest.approx(expected, rel=1e-12, abs=1e-9)
    assert squares(a) == pytest.approx(expected[0], rel=1e-12)


def test_opposite_gradients_cancel_to_exactly_zero():
    a = torch.randn(10_007)
    aa, ab, bb = products(a, -a)
    assert aa + 2 * ab + bb == 0.0
    assert aa > 0


@pytest.mark.parametrize("value", [1e-38, 1e-44, 3e38])
def test_squares_neither_vanish_nor_overflow(value):
    a = torch.full((100,), value)
    assert squares(a) == pytest.approx(100 * a[0].item() ** 2)


def test_strided_gradients_are_read_in_their_order():
    a = torch.randn(6, 8).t()
    b = torch.randn(8, 12)[:, ::2]
    expected = (a.double() * b.double()).sum().item()
    assert products(a, b)[1] == pytest.approx(expected)


def test_values_that_are_not_finite_stay_so():
    assert math.isnan(squares(torch.tensor([1.0, float("nan")])))
    assert squares(torch.tensor([1.0, float("inf")])) == math.inf


def test_only_plain_float32_in_host_memory_is_read():
    assert are_in_host_memory([torch.ones(2)])
    for other in (torch.ones(2).double(), torch.ones(2).half(), torch.ones(2, device="meta")):
        assert not are_in_host_memory([torch.ones(2), other])
