"""The moments of a tensor on a GPU by one launch of a Triton kernel, which reads it once.

Without it torch's own reductions make them: six to nine launches, each of which reads the tensor.
Imported for tensors of a GPU only, and where Triton is.
"""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from analyzer.recording.plain import Arrays, OnDevice

__all__ = ["DTYPES", "Sums", "launch", "measured"]

# The square of each of their values is a float64 without under- or overflow.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BLOCK = 1024
# Programs that read a large tensor: enough to fill a GPU, and few numbers to copy to the host.
_PROGRAMS = 264
_FIELDS = 8
# What a live unit is marked with: new at each launch, since the memory for it is not cleared. A
# float64 holds it exactly.
_marks = itertools.count(random.SystemRandom().randrange(2**40, 2**50))


@triton.jit(do_not_specialize=["mark"])  # type: ignore[untyped-decorator]
def _one_pass(x, out, mark, elements, stride, units, HAS_UNITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """Write eight sums a program, and for each unit with an element that is not zero the mark."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    squares = tl.zeros([BLOCK], tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    absolute = tl.zeros([BLOCK], tl.float64)
    low = tl.full([BLOCK], float("inf"), tl.float64)
    high = tl.full([BLOCK], float("-inf"), tl.float64)
    nonzero = tl.zeros([BLOCK], tl.int32)
    nonfinite = tl.zeros([BLOCK], tl.int32)
    nan = tl.zeros([BLOCK], tl.int32)
    for start in range(program.to(tl.int64) * BLOCK, elements, programs * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < elements
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float64)
        squares += value * value
        total += value
        absolute += tl.abs(value)
        low = tl.where(inside & (value < low), value, low)
        high = tl.where(inside & (value > high), value, high)
        is_alive = value != 0
        nonzero += is_alive.to(tl.int32)
        nonfinite += ((value != value) | (tl.abs(value) == float("inf"))).to(tl.int32)
        nan += (value != value).to(tl.int32)
        if HAS_UNITS:
            unit = (at // stride) % units
            tl.store(out + programs * 8 + unit, mark.to(tl.float64), mask=inside & is_alive)
    to = out + program * 8
    tl.store(to, tl.sum(squares, 0))
    tl.store(to + 1, tl.sum(total, 0))
    tl.store(to + 2, tl.sum(absolute, 0))
    tl.store(to + 3, tl.min(low, 0))
    tl.store(to + 4, tl.max(high, 0))
    tl.store(to + 5, tl.sum(nonzero, 0).to(tl.float64))
    tl.store(to + 6, tl.sum(nonfinite, 0).to(tl.float64))
    tl.store(to + 7, tl.sum(nan, 0).to(tl.float64))


class Sums:
    """What one pass found, on the host.

    Attributes:
        norm: ``‖x‖₂``.
        total: ``Σ x``.
        absolute: ``Σ |x|``.
        low, high: The smallest and the largest element; NaN where there is one.
        zeros, nonfinite: How many elements are zero, and how many are infinite or NaN.
        dead: Which units are zero everywhere, ``[units]``; None without units.
    """

    def __init__(self, found: NDArray[np.float64], programs: int, elements: int, mark: int) -> None:
        rows = found[: programs * _FIELDS].reshape(programs, _FIELDS)
        with np.errstate(invalid="ignore"):  # ∞ − ∞ of two programs
            squares, total, absolute, _, _, nonzero, nonfinite, nan = rows.sum(axis=0).tolist()
        self.norm, self.total, self.absolute = math.sqrt(squares), total, absolute
        self.low = math.nan if nan else float(rows[:, 3].min())
        self.high = math.nan if nan else float(rows[:, 4].max())
        self.zeros, self.nonfinite = elements - nonzero, nonfinite
        marks = found[programs * _FIELDS :]
        self.dead = marks != float(mark) if len(marks) else None


def measured(x: Tensor, unit_axis: int | None, finish: Callable[[Sums], Any]) -> OnDevice:
    """Return what becomes ``finish(sums)`` on the host; one launch in x's current stream.

    Args:
        x: A tensor without gaps in memory, in any order of its axes, of `DTYPES`; not empty.
        unit_axis: The axis of channels or features; None where no units are asked for.
        finish: Makes the numbers of the sums.
    """
    elements = x.numel()
    programs = min(_PROGRAMS, -(-elements // _BLOCK))
    units = 0 if unit_axis is None else x.shape[unit_axis]
    stride = 1 if unit_axis is None else max(1, x.stride(unit_axis))
    mark = next(_marks)
    out = torch.empty(programs * _FIELDS + units, dtype=torch.float64, device=x.device)
    # An axis of length 1 may have any stride.
    stride = elements if units == 1 else stride
    launch(programs, x, out, mark, elements, stride, units)

    def finished(arrays: Arrays) -> Any:
        return finish(Sums(arrays[0], programs, elements, mark))

    return OnDevice([out], finished)


def launch(
    programs: int, x: Tensor, out: Tensor, mark: int, elements: int, stride: int, units: int
) -> None:
    """Queue the kernel in the current stream of x's device; the host does not wait."""
    with torch.accelerator.device_index(x.device.index):  # Triton launches on the current device
        _one_pass[(programs,)](
            x, out, mark, elements, stride, max(1, units), HAS_UNITS=units > 0, BLOCK=_BLOCK
        )
