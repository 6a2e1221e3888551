"""Which method evaluates a surface: each one is checked against the plain one, then timed."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from analyzer.probes.batch import Batch, channels_last, num_samples, pooled, split
from analyzer.probes.landscape.evaluation import InPlace, Loss, Method, Point
from analyzer.probes.landscape.overwriting import overwriting
from analyzer.probes.landscape.private import Twin, twin_of
from analyzer.probes.landscape.stacked import Stacked
from analyzer.probes.landscape.weights import Direction, Moves

__all__ = ["Checked", "Work", "chosen", "method_named"]

_USUAL = 64  # best on most machines: activations of a convolution stay in the cache
_SIZES, _LARGEST = (32, 64, 128, 256, 512, 2048), 4096
_TRIAL_SAMPLES = 128
_TRIAL_SECONDS = 0.25
_FEW_POINTS = 12
_STACKED = 512  # samples at once, a few points of them
PLAIN = "plain"
_KINDS = ("stacked", "folded", "micro-batches")  # the first that agrees is the fastest of them


@dataclass
class Work:
    """What is to be evaluated.

    Args:
        module: The model, in eval mode.
        moves: Its weights.
        directions: One or two aligned directions.
        batches: The data.
        loss: ``loss(output, target)``.
        batch_norm: ``"keep"`` or ``"recompute"``.
    """

    module: nn.Module
    moves: Moves
    directions: Sequence[Direction]
    batches: Sequence[Batch]
    loss: Loss
    batch_norm: str = "keep"

    @cached_property
    def _twin(self) -> Twin | None:
        self.moves.back()  # the twin starts at the model's own weights
        return twin_of(self.module, self.directions)

    def twin(self) -> Twin | None:
        """Return the folded private twin at the model's weights, None where there is none."""
        if self._twin is not None:
            self._twin.moves.back()
        return self._twin

    def plain(self, batches: Sequence[Batch] | None = None) -> InPlace:
        """Return the method that all others are checked against: the batches as they are."""
        data = self.batches if batches is None else batches
        return InPlace(
            self.module, self.moves, data, self.loss, batch_norm=self.batch_norm, name=PLAIN
        )


class Checked:
    """A fast method; the model itself, and what is not finite, is left to the plain one.

    So (0, 0) is the model's loss bit for bit, and an overflow inside a method is no result.

    Args:
        fast: The method.
        plain: The reference.
    """

    def __init__(self, fast: Method, plain: Method) -> None:
        self.name, self.group = fast.name, fast.group
        self._fast, self._plain = fast, plain

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Return the loss at each point."""
        values = self._fast.losses(points)
        for place, (point, value) in enumerate(zip(points, values, strict=True)):
            if point == (0, 0) or not math.isfinite(value):
                values[place] = self._plain.losses([point])[0]
        return values


def chosen(work: Work, points: Sequence[Point]) -> str:
    """Return the name of a fast method that agrees with the plain one.

    The trial takes two points of the grid and at most 128 samples of the first batch. A kind that
    raises, or differs from the plain one by more than rounding, is out; of the kinds that are left
    the first is taken, whatever the clock says, so that only the size of its micro-batches depends
    on the machine's mood.

    Args:
        work: What is to be evaluated.
        points: All points of the surface; for a dozen no trial pays.

    Returns:
        A name for `method_named`: ``plain``, or a kind and a number of samples per micro-batch.
    """
    if work.batch_norm != "keep" or len(points) <= _FEW_POINTS:
        return PLAIN
    sample = _sample(work.batches[0])
    whole = pooled(work.batches)
    if sample is None or whole is None:
        return PLAIN
    probed = [points[len(points) // 3], points[len(points) // 2]]
    plain = work.plain([sample])
    expected = plain.losses(probed)
    if not all(math.isfinite(value) for value in expected):
        return PLAIN
    for kind in _KINDS:
        uneven = _build(work, kind, sample, max(1, sample.size * 2 // 5))
        if _agrees(uneven, probed, expected, work):
            return _fastest(dict(_rates(work, kind, whole, probed)), f"{kind} {_USUAL}")
    return PLAIN


def _fastest(rates: dict[str, float], usual: str) -> str:
    """Return the name of the smallest rate; the usual one unless another is clearly faster."""
    best = min(rates, key=lambda name: rates[name])
    return usual if rates.get(usual, math.inf) < 1.1 * rates[best] else best


def method_named(work: Work, name: str) -> Method:
    """Return the method of a name that `chosen` gave.

    Raises:
        ValueError: If this work has no such method.
    """
    plain = work.plain()
    whole = pooled(work.batches)
    if name == PLAIN or whole is None:
        return plain
    kind, _, size = name.rpartition(" ")
    fast = _build(work, kind, whole, int(size))
    if fast is None:
        raise ValueError(f"there is no method {name!r} for this model; delete the file and restart")
    return Checked(fast, plain)


def _sample(batch: Batch) -> Batch | None:
    one = pooled([batch])
    return None if one is None else split(one, _TRIAL_SAMPLES)[0]


def _build(work: Work, kind: str, batch: Batch, size: int) -> Method | None:
    """Return a method over a pooled batch, None where this network does not allow it."""
    if kind == "micro-batches":
        return InPlace(work.module, work.moves, _cut(batch, size), work.loss, name=f"{kind} {size}")
    twin = work.twin()
    if twin is None or not twin.steps:
        return None
    try:
        if kind == "stacked":
            method = Stacked(twin, batch.copied(), work.loss, size)
            method.name = f"{kind} {size}"
            return method
        data, module = _cut(batch, size), overwriting(twin.module)
        return InPlace(module, twin.moves, data, work.loss, name=f"{kind} {size}")
    except Exception:  # a fast method is an offer; the plain one will say what is wrong
        return None


def _cut(batch: Batch, size: int) -> list[Batch]:
    return split(channels_last(batch), size)


def _agrees(
    method: Method | None, points: Sequence[Point], expected: Sequence[float], work: Work
) -> bool:
    """Whether a method gives the plain method's values up to rounding."""
    if method is None:
        return False
    kinds = [part.target.dtype for part in work.moves.slices if part.target.is_floating_point()]
    tolerance = max([torch.finfo(kind).eps for kind in kinds], default=1e-7) * 300
    found = _attempt(lambda: [v for p in points for v in method.losses([p])])
    return found is not None and all(
        abs(a - b) <= tolerance * max(abs(b), 1e-3) for a, b in zip(found, expected, strict=True)
    )


def _attempt(action: Callable[[], list[float]]) -> list[float] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return action()
    except Exception:  # as in _build
        return None


def _rates(
    work: Work, kind: str, whole: Batch, points: Sequence[Point]
) -> Iterator[tuple[str, float]]:
    """Yield the seconds per sample and point of a kind with growing micro-batches."""
    best = math.inf
    if kind == "stacked":
        yield f"{kind} {_STACKED}", 0.0
        return
    for size in [*(size for size in _SIZES if size < whole.size), min(whole.size, _LARGEST)]:
        part = split(whole, size)[0]
        method = _build(work, kind, part, size)
        if method is None:
            return
        rate = _seconds(method, points) / num_samples([part])
        yield f"{kind} {size}", rate
        if rate > 1.25 * best:
            return
        best = min(best, rate)


def _seconds(method: Method, points: Sequence[Point]) -> float:
    """Return the shortest time that a method took for one point."""
    group = [points[k % len(points)] for k in range(method.group)]
    best, spent = math.inf, 0.0
    for _ in range(4):
        start = time.perf_counter()
        method.losses(group)
        best = min(best, time.perf_counter() - start)
        spent += time.perf_counter() - start
        if spent > _TRIAL_SECONDS:
            break
    return best / len(group)
