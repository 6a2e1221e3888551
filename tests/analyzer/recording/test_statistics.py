import contextlib
import itertools
import math
import shutil
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.recording import device as accelerator
from analyzer.recording import moments, one_pass, statistics
from analyzer.recording.moments import Activation, Gradient
from analyzer.recording.plain import OnDevice
from analyzer.recording.statistics import (
    ActivationRow,
    GradientRow,
    Measured,
    activation_row,
    gradient_row,
)

SHAPES = [(5,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (300, 230)]


def slow_activation(x: torch.Tensor, axis: int | None) -> tuple[Activation, list[bool] | None]:
    """The definitions, in float64 and one after the other."""
    y = x.double()
    numbers = Activation(
        norm=math.sqrt((y * y).sum().item()),
        mean=y.mean().item(),
        std=y.std(correction=0).item(),
        min=y.min().item(),
        max=y.max().item(),
        zeros=float((y == 0).sum()),
        num_nonfinite=float((~torch.isfinite(y)).sum()),
    )
    if axis is None:
        return numbers, None
    return numbers, [bool((y.select(axis, i) == 0).all()) for i in range(y.shape[axis])]


def slow_gradient(x: torch.Tensor) -> Gradient:
    y = x.double()
    magnitude = y.abs()
    return Gradient(
        norm=math.sqrt((y * y).sum().item()),
        mean_abs=magnitude.mean().item(),
        max_abs=magnitude.max().item(),
        zeros=float((y == 0).sum()),
        num_nonfinite=float((~torch.isfinite(y)).sum()),
    )


def host(x: torch.Tensor, axis: int | None) -> tuple[Activation, list[bool] | None]:
    numbers, dead = statistics.host_activation(x, axis)
    return numbers, None if dead is None else list(dead)


def by_numpy(x: torch.Tensor, axis: int | None) -> tuple[Activation, list[bool] | None]:
    numbers, dead = moments.host_activation(x, axis)
    return numbers, None if dead is None else list(dead)


def test_the_compiled_pass_is_there_where_there_is_a_compiler():
    assert statistics.IS_COMPILED or shutil.which("g++") is None


def read(numbers: OnDevice):
    return numbers.finish([t.double().reshape(-1).numpy() for t in numbers.tensors])


def device(x: torch.Tensor, axis: int | None) -> tuple[Activation, list[bool] | None]:
    numbers, dead = read(accelerator.device_activation(x, axis))
    return numbers, None if dead is None else dead.tolist()


def by_kernel(x: torch.Tensor, axis: int | None) -> tuple[Activation, list[bool] | None]:
    """As a GPU does it: the kernel runs in Triton's interpreter, on memory of the host."""
    with served_by_kernel() as kernel:
        found = device(x, axis)
    assert kernel.call_count == (x.dtype in one_pass.DTYPES)
    return found


@contextlib.contextmanager
def served_by_kernel():
    with (
        mock.patch.object(accelerator, "GPUS", ["cpu"]),
        mock.patch.object(accelerator, "_one_pass", one_pass),
        mock.patch.object(one_pass, "launch", wraps=one_pass.launch) as kernel,
    ):
        yield kernel


def device_gradient(x: torch.Tensor) -> Gradient:
    return read(accelerator.device_gradient(x))


def _activations():
    """Every implementation on every tensor; the interpreter takes a second for many elements."""
    types = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    implementations = [host, by_numpy, device, by_kernel]
    for case in itertools.product(implementations, SHAPES, types, [0.0, 3.0, -100.0]):
        is_long = case[:2] == (by_kernel, SHAPES[-1]) and torch.float32 != case[2] and case[3] != 3
        yield pytest.param(*case, marks=pytest.mark.slow if is_long else ())


@pytest.mark.parametrize(("implementation", "shape", "dtype", "shift"), list(_activations()))
def test_activation_statistics_are_those_of_the_definition(implementation, shape, dtype, shift):
    torch.manual_seed(0)
    x = torch.randn(shape)
    if shift == 0.0:
        x = x.relu()
        x[..., -1] = 0.0
    x = (x + shift).to(dtype)
    expected, dead = slow_activation(x, len(shape) - 1)
    numbers, found = implementation(x, -1)
    assert numbers == pytest.approx(expected, rel=2e-5, abs=1e-6)
    assert found == dead
    assert implementation(x, None)[1] is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_statistics_are_those_of_the_definition(shape, dtype):
    torch.manual_seed(1)
    x = (torch.randn(shape) * (torch.rand(shape) > 0.3)).to(dtype)
    expected = slow_gradient(x)
    assert list(statistics.host_gradient(x)) == pytest.approx(expected, rel=1e-5)
    assert list(moments.host_gradient(x)) == pytest.approx(expected, rel=1e-5)
    assert device_gradient(x) == pytest.approx(expected, rel=1e-5)
    with served_by_kernel():
        assert device_gradient(x) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1e-30, torch.float32),
        (1e-7, torch.float16),
        (1e-38, torch.bfloat16),
        (1e300, torch.float64),
        (1e-45, torch.float32),
        (3e38, torch.float32),
        (1e-300, torch.float64),
    ],
)
@pytest.mark.parametrize("size", [7, 70_000])
def test_norms_neither_under_nor_overflow(value, dtype, size):
    x = torch.full((size,), value, dtype=dtype)
    expected = x[0].double().item() * math.sqrt(size)
    assert statistics.host_norm(x) == pytest.approx(expected, rel=1e-5)
    assert moments.host_norm(x) == pytest.approx(expected, rel=1e-5)
    assert statistics.host_gradient(x).norm == pytest.approx(expected, rel=1e-5)
    assert moments.host_gradient(x).norm == pytest.approx(expected, rel=1e-5)
    assert moments.host_activation(x, None)[0].norm == pytest.approx(expected, rel=1e-5)
    assert statistics.host_activation(x, None)[0].norm == pytest.approx(expected, rel=1e-5)
    assert accelerator.device_norm(x).item() == pytest.approx(expected, rel=1e-5)


def test_tiny_elements_beside_large_ones_count():
    x = torch.cat([torch.full((30_000,), 1e-20), torch.tensor([3e-18])])
    expected = x.double().norm().item()
    assert statistics.host_gradient(x).norm == pytest.approx(expected, rel=1e-6)
    assert statistics.host_norm(x) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_elements_are_counted_and_shown(bad):
    x = torch.randn(100, 5)
    x[3, 2] = x[50, 1] = bad
    for numbers in (
        statistics.host_gradient(x),
        moments.host_gradient(x),
        moments.host_activation(x, 1)[0],
        device_gradient(x),
        statistics.host_activation(x, 1)[0],
        device(x, 1)[0],
        by_kernel(x, 1)[0],
    ):
        assert numbers.num_nonfinite == 2
        assert not math.isfinite(numbers.norm)
        assert math.isnan(numbers.norm) == math.isnan(bad)
    found, expected = by_kernel(x, 1)[0], slow_activation(x, 1)[0]
    assert [found.min, found.max] == pytest.approx([expected.min, expected.max], nan_ok=True)


@pytest.mark.parametrize("large", [False, True])
def test_one_nan_makes_the_norm_nan_even_beside_an_infinity(large):
    x = torch.ones(70_000 if large else 10)
    x[0], x[-1] = math.inf, math.nan
    assert math.isnan(statistics.host_gradient(x).norm)
    assert math.isnan(statistics.host_norm(x))


def test_an_empty_tensor_gives_nan_and_no_error():
    x = torch.empty(0, 3)
    assert all(math.isnan(v) for v in statistics.host_gradient(x)[:-1])
    assert all(math.isnan(v) for v in statistics.host_activation(x, 1)[0][:-1])
    assert all(math.isnan(v) for v in device_gradient(x)[:-1])
    assert all(math.isnan(v) for v in device(x, 1)[0][:-1])


def test_integers_booleans_and_complex_numbers_have_statistics():
    assert activation_row(torch.tensor([3, 4, 0]), None).numbers.norm == 5.0
    assert activation_row(torch.tensor([True, False]), None).numbers.mean == 0.5
    assert gradient_row(torch.tensor([3 + 4j, 0j])).numbers[:3] == (5.0, 2.5, 5.0)


def test_a_sparse_gradient_has_the_statistics_of_the_dense_one():
    dense = torch.zeros(10, 3)
    dense[2] = torch.tensor([3.0, 0.0, -4.0])
    row = gradient_row(dense.to_sparse(1))
    assert list(row.numbers) == pytest.approx(slow_gradient(dense))
    assert row.elements == 30


@pytest.mark.parametrize(
    "make", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x.expand(4, 6, 8)]
)
def test_strides_do_not_matter(make):
    x = make(torch.randn(6, 8))
    assert list(statistics.host_gradient(x)) == pytest.approx(slow_gradient(x), rel=1e-5)
    assert host(x, -1)[0] == pytest.approx(slow_activation(x, -1)[0], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (torch.randn(3, 5, 4, 4).relu().to(memory_format=torch.channels_last), 1),
        (torch.randn(6, 8).relu().t(), 0),
        (torch.randn(2, 40_000).relu()[:, ::2], -1),
        (torch.randn(7, 1, 9).relu(), 1),
        (torch.zeros(4, 3, 2), 1),
        (torch.randn(300_000).relu(), 0),
    ],
)
def test_the_kernel_finds_dead_units_in_any_order_of_memory(x, axis):
    x = x.clone(memory_format=torch.preserve_format)
    if x.shape[axis] > 1:
        x.select(axis, 1).zero_()
    expected, dead = slow_activation(x, axis % x.dim())
    found, mask = by_kernel(x, axis)
    assert mask == dead
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_sums_of_the_kernel_are_those_of_float64():
    x = torch.rand(400_000) + 1000.0
    assert by_kernel(x, None)[0].std == pytest.approx(x.double().std(correction=0).item(), rel=1e-6)


def test_many_gradients_are_one_launch_each():
    gradients = [torch.randn(3, 4) * 1e-30, torch.full((5,), math.inf), torch.zeros(2, 2)]
    with served_by_kernel() as kernel:
        rows = accelerator.device_gradients(gradients)
    assert kernel.call_count == 3
    for x, row in zip(gradients, rows, strict=True):
        assert list(read(row)) == pytest.approx(slow_gradient(x)._replace(zeros=0.0), rel=1e-5)


@pytest.mark.parametrize("missing", [True, False])
def test_without_a_kernel_torch_measures(missing):
    x = torch.randn(4, 3)
    expected = device(x, 1)
    with (
        mock.patch.object(accelerator, "GPUS", ["cpu"]),
        mock.patch.object(accelerator, "_one_pass", ... if missing else one_pass),
        mock.patch.dict(sys.modules, {"triton": None} if missing else {}),
        mock.patch.object(one_pass, "launch", side_effect=RuntimeError("no compiler")),
    ):
        if missing:
            sys.modules.pop("analyzer.recording.one_pass")
            vars(sys.modules["analyzer.recording"]).pop("one_pass")
        assert device(x, 1) == expected
        assert accelerator._one_pass is None
    sys.modules["analyzer.recording.one_pass"] = one_pass
    vars(sys.modules["analyzer.recording"])["one_pass"] = one_pass


def test_statistics_do_not_change_their_tensor():
    x = torch.randn(40, 7, requires_grad=True)
    y = (x * 1e-30).relu()
    before = y.detach().clone()
    activation_row(y, 1)
    gradient_row(y)
    assert torch.equal(before, y.detach())
    assert y._version == 0


batches = st.lists(st.integers(1, 6), min_size=2, max_size=4)


@settings(max_examples=40)
@given(batches, st.integers(0, 10_000))
def test_micro_batches_pool_to_the_whole_batch(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 4, generator=generator).relu() for n in sizes]
    whole = torch.cat(parts)
    found, dead = pooled("activation", [activation_row(part, 1) for part in parts])
    expected, expected_dead = slow_activation(whole, 1)
    assert found == pytest.approx(columns(expected, whole), rel=1e-5, abs=1e-6)
    assert list(dead) == expected_dead
    found, _ = pooled("output_gradient", [gradient_row(part) for part in parts])
    assert found == pytest.approx(columns(slow_gradient(whole), whole), rel=1e-5)


def columns(numbers, x):
    """The quantities that follow from moments."""
    found = numbers._asdict()
    found["zero_fraction"] = found.pop("zeros") / x.numel()
    return found


def pooled(kind, rows, *, one_by_one=True):
    """The quantities of micro-batches of one layer, and which of its units are dead."""
    whole = None
    for row in rows if one_by_one else [rows]:
        some = [row] if one_by_one else row
        whole = Measured.of("layer_stats", kind, [7] * len(some), some).merge(whole)
    assert whole.ids.tolist() == [7]
    assert whole.elements.tolist() == [sum(row.elements for row in rows)]
    columns = {
        key.removeprefix(f"{kind}_"): values[0] for key, (values, _) in whole.columns.items()
    }
    return columns, columns.pop("num_dead", None)


def test_micro_batches_pool_alike_one_by_one_and_together():
    rows = [activation_row(torch.randn(n, 4).relu(), 1) for n in (3, 1, 5)]
    alone, together = (pooled("activation", rows, one_by_one=way)[0] for way in (True, False))
    assert alone == pytest.approx(together, rel=1e-12)


def test_an_empty_micro_batch_adds_nothing():
    rows = [activation_row(torch.randn(n, 4), 1) for n in (3, 0)]
    alone, _ = pooled("activation", rows[:1])
    assert pooled("activation", rows)[0] == alone
    nothing, _ = pooled("activation", [rows[1], rows[1]])
    assert math.isnan(nothing["norm"])
    assert math.isnan(nothing["std"])


def test_masks_of_unlike_units_are_not_pooled():
    rows = [activation_row(torch.zeros(2, units), 1) for units in (3, 4)]
    assert pooled("activation", rows)[1] is None


def test_many_gradients_are_those_of_each():
    gradients = [torch.randn(3, 4) * 1e-30, torch.full((5,), math.inf), torch.zeros(2, 2)]
    for x, row in zip(gradients, accelerator.device_gradients(gradients), strict=True):
        expected = slow_gradient(x)._replace(zeros=0.0)
        assert list(read(row)) == pytest.approx(expected, rel=1e-5)


def test_pooling_keeps_nan_and_large_norms():
    a = GradientRow(4, (1e300, 1.0, 1.0, 0.0, 0.0))
    b = GradientRow(4, (math.nan, math.nan, math.nan, 0.0, 4.0))
    assert pooled("output_gradient", [a, a])[0]["norm"] == pytest.approx(math.sqrt(2) * 1e300)
    assert math.isnan(pooled("output_gradient", [a, b])[0]["norm"])
    assert math.isnan(pooled("output_gradient", [b, a])[0]["max_abs"])
    wide = ActivationRow(2, (1e300, 0.0, 1e300, -1.0, 1.0, 0.0, 0.0), np.array([True, False]))
    assert pooled("activation", [wide, wide])[0]["std"] == pytest.approx(1e300)
