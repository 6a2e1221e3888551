"""Gradient norms of the micro-batches that a training makes anyway, for the gradient noise scale.

A *micro-batch* is one backward pass of a step that accumulates several, or one rank's part of it.
"""

import functools
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from analyzer.joins.calls import keywords_of_call, tensors_in
from analyzer.probes import Measurement
from analyzer.probes.noise import (
    GradientNoise,
    NoiseTerms,
    averaged,
    micro_batch_terms,
    noise_table,
)
from analyzer.recording.parameters import norms
from analyzer.recording.plain import Transfer
from analyzer.recording.scaling import Scale

__all__ = ["MicroBatches", "num_ranks"]

# One step alone hides its signal in the noise.
_MOST_STEPS = 100

Held: TypeAlias = Sequence[tuple[int, Tensor]]
Numbers: TypeAlias = dict[int, float | Tensor]
"""By the number of a parameter; on the host, or still on a device."""
_COLUMNS = ("gradient_noise_scale", "signal_norm", "noise_trace")


def num_ranks(roots: Sequence[weakref.ref[nn.Module]]) -> int:
    """Return over how many processes the gradients of these models are averaged."""
    for reference in roots:
        root = reference()
        if isinstance(root, DistributedDataParallel):
            return distributed.get_world_size(root.process_group)
    return 1


class MicroBatches:
    """Compares the gradients of single backward passes with the one that the optimizer gets.

    The norm of a pass is taken where the gradient arrives at a parameter: this rank's own, before
    it is added to those of earlier passes or averaged over the ranks. The norm of the sum is taken
    afterwards. Nothing is copied or waited for; once a step of one pass was seen, nothing is done.
    """

    wants_all = False

    def __init__(self) -> None:
        self._is_on = True
        self._rows = 0
        self._sum: _Sum | None = None
        self._steps: deque[_AccumulatedStep] = deque(maxlen=_MOST_STEPS)
        self._hooks: list[tuple[Tensor, Any, bool]] = []

    # --- watching ----------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: Any) -> None:
        """A call of a root begins: how many samples it gets."""
        if self._is_on and torch.is_grad_enabled():
            tensors = tensors_in((args, keywords_of_call(module)))
            self._rows = next((len(tensor) for tensor in tensors if tensor.dim()), 0)

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a root has ended."""

    def begin_pass(self, held: Held, num_ranks: int) -> None:
        """A backward pass of a recorded step begins.

        Args:
            held: The parameters that want a gradient, with their numbers.
            num_ranks: Processes over which the training averages gradients.
        """
        rows, self._rows = self._rows, 0
        if not self._is_on:
            return
        if self._sum is None:
            self._sum = _Sum(num_ranks, _norms_of_gradients(held))
        self._sum.begin(held, rows)
        if not self._sum.is_plain:
            return
        for number, parameter in held:
            is_bare = parameter._backward_hooks is None
            read = functools.partial(self._sum.read, number)
            handle = parameter.register_hook(read)  # type: ignore[no-untyped-call]
            self._hooks.append((parameter, handle, is_bare))

    def end_pass(self, held: Held, *, failed: bool) -> None:
        """That pass has ended, or has ``failed`` with an exception."""
        self.close()
        if self._sum is not None:
            self._sum.end(held, failed=failed)

    def close(self) -> None:
        """Take every hook off the parameters."""
        for parameter, handle, is_bare in self._hooks:
            handle.remove()
            if is_bare and not parameter._backward_hooks:
                parameter._backward_hooks = None  # as it was found
        self._hooks.clear()

    def end_step(
        self, step: int, num_backward: int, *, is_whole: bool, scale: Scale | None
    ) -> None:
        """A step with ``num_backward`` passes has ended; a whole one with an update.

        Its gradients are too large by ``scale``, where there is one.
        """
        ended, self._sum, self._rows = self._sum, None, 0
        if ended is None:
            self._is_on |= num_backward > 1
        elif ended.num_pieces < 2:
            self._is_on = False
            self._steps.clear()
        elif is_whole and ended.is_plain:
            self._steps.append(_AccumulatedStep(step, ended, 1.0 if scale is None else scale))

    # --- measuring ---------------------------------------------------------------------------

    def measurement(self, names: Mapping[int, str]) -> Measurement | None:
        """Return the table of the last steps that accumulated; None where none did.

        Its numbers are read when the table is written, on the thread that writes.

        Args:
            names: The layer of each parameter by the parameter's number.
        """
        steps = list(self._steps)
        if not steps:
            return None
        table = functools.cache(lambda: _table(steps, names))
        columns = {name: _LaterColumn(table, name) for name in _COLUMNS}
        return Measurement(columns, _LaterNotes(table))


@dataclass(slots=True)
class _Sum:
    """The gradients of the current step.

    By parameter: ``start`` are the norms of what was there before the first pass, ``squares`` the
    sums of the squared norms of the passes, ``total`` the norms of their sum. ``inverse_rows`` adds
    one over the samples of each pass.
    """

    num_ranks: int
    start: Numbers
    num_passes: int = 0
    inverse_rows: float = 0.0
    is_plain: bool = True
    squares: Numbers = field(default_factory=dict)
    total: Numbers = field(default_factory=dict)
    _arrived: Numbers = field(default_factory=dict)
    _marks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_pieces(self) -> int:
        """Micro-batches of all ranks."""
        return self.num_passes * self.num_ranks

    def begin(self, held: Held, rows: int) -> None:
        """A pass begins; without a forward pass of its own it is not a micro-batch."""
        untouched = not self.num_passes or self._marks == _marks_of(held)
        self.is_plain &= rows > 0 and untouched
        self.num_passes += 1
        self.inverse_rows += 1 / rows if rows else math.nan
        self._arrived = {}

    def read(self, number: int, gradient: Tensor) -> None:
        """Take the norm of a gradient that arrives at a parameter."""
        try:
            # A second one in the same pass: only their sum is the gradient of the micro-batch.
            self.is_plain &= number not in self._arrived
            (norm,) = norms([gradient.detach()])
            self.is_plain &= norm is not None
            self._arrived[number] = 0.0 if norm is None else norm
        except Exception:  # the training must continue whatever the gradient is
            self.is_plain = False

    def end(self, held: Held, *, failed: bool) -> None:
        """A pass has ended: add its squares, and take the norm of what is there now."""
        self.is_plain &= not failed
        if not self.is_plain:
            return
        _add_squares(self._arrived, self.squares)
        self._arrived = {}
        if self.num_pieces > 1:
            self.total = _norms_of_gradients(held)
        self._marks = _marks_of(held)


def _norms_of_gradients(held: Held) -> Numbers:
    given = [(number, p.grad.detach()) for number, p in held if p.grad is not None]
    found = zip([n for n, _ in given], norms([g for _, g in given]), strict=True)
    return {number: norm for number, norm in found if norm is not None}


def _marks_of(held: Held) -> list[tuple[int, int]]:
    """Which gradients there are, and how often each was written to."""
    return [(id(p.grad), p.grad._version) for _, p in held if p.grad is not None]


def _add_squares(found: Numbers, sums: Numbers) -> None:
    """Add the squares of norms, on a device by few launches."""
    numbers, moving = [], []
    for number, norm in found.items():
        if isinstance(norm, Tensor):
            numbers.append(number)
            moving.append(norm)
        else:
            sums[number] = sums.get(number, 0.0) + norm * norm
    if not moving:
        return
    squares = torch._foreach_mul(moving, moving)
    olds = [sums.get(number) for number in numbers]
    pairs = [(old, new) for old, new in zip(olds, squares, strict=True) if isinstance(old, Tensor)]
    if pairs:
        torch._foreach_add_([old for old, _ in pairs], [new for _, new in pairs])
    for number, old, new in zip(numbers, olds, squares, strict=True):
        if old is None:
            sums[number] = new


class _AccumulatedStep:
    """What is known of a step that accumulated; its numbers may be on their way to the host."""

    def __init__(self, index: int, ended: _Sum, scale: Scale) -> None:
        self.index, self.num_ranks, self.num_pieces = index, ended.num_ranks, ended.num_pieces
        self.inverse_size = ended.inverse_rows / ended.num_passes
        self._num_passes = ended.num_passes
        # The scale goes the way of the numbers that are divided by it.
        self._numbers: Sequence[Numbers] = (ended.squares, ended.total, ended.start, {0: scale})
        moving = [v for part in self._numbers for v in part.values() if isinstance(v, Tensor)]
        self._transfer = Transfer(moving) if moving else None

    def terms(self) -> dict[int, NoiseTerms]:
        """Return signal and noise by parameter; empty where gradients were there before."""
        squares, total, start, scales = self._values()
        scale = scales[0]
        if any(start.values()):
            return {}
        count = self._num_passes
        return {
            # The loss of the step is the sum of the passes' losses, so its parts are `count` times
            # smaller than what they are a part of.
            number: micro_batch_terms(
                count * square / scale**2,
                (total.get(number, 0.0) / scale) ** 2,
                self.num_pieces,
                self.inverse_size,
            )
            for number, square in squares.items()
        }

    def _values(self) -> list[dict[int, float]]:
        """The numbers on the host; waits for them, once."""
        if self._transfer is not None:
            arrays = iter(self._transfer.arrays())
            self._numbers = [
                {n: float(next(arrays)[0]) if isinstance(v, Tensor) else v for n, v in part.items()}
                for part in self._numbers
            ]
            self._transfer = None
        return [{n: float(v) for n, v in part.items()} for part in self._numbers]


def _table(steps: Sequence[_AccumulatedStep], names: Mapping[int, str]) -> Measurement:
    """Average the steps, each parameter's layer by layer, and all of them together."""
    known = [(step, terms) for step in steps if (terms := step.terms())]
    newest = steps[-1]
    notes = {
        "source": "micro-batches of the training",
        "mode": "train",
        "num_steps": str(len(known)),
        "num_ranks": str(newest.num_ranks),
        "first_step": str(steps[0].index),
    }
    layers: dict[str, list[NoiseTerms]] = {}
    totals: list[NoiseTerms] = []
    for _, terms in known:
        by_layer: dict[str, list[NoiseTerms]] = {}
        for number in sorted(terms):
            by_layer.setdefault(names.get(number, ""), []).append(terms[number])
        for name, parts in by_layer.items():
            layers.setdefault(name, []).append(_added(parts))
        totals.append(_added(list(terms.values())))
    nothing = NoiseTerms(math.nan, math.nan)
    found = GradientNoise(
        averaged(totals) if totals else nothing,
        {name: averaged(terms) for name, terms in layers.items()},
        round(newest.num_pieces / newest.inverse_size),
        newest.num_pieces,
    )
    return noise_table(found, notes)


def _added(parts: Sequence[NoiseTerms]) -> NoiseTerms:
    return NoiseTerms(sum(t.signal for t in parts), sum(t.trace for t in parts))


class _LaterColumn(Sequence[Any]):
    """A column whose values are made when they are read."""

    def __init__(self, table: Callable[[], Measurement], name: str) -> None:
        self._table, self._name = table, name

    def __len__(self) -> int:
        return len(self._table().columns[self._name])

    def __getitem__(self, place: Any) -> Any:
        return self._table().columns[self._name][place]


class _LaterNotes(Mapping[str, str]):
    """Metadata that are made when they are read."""

    def __init__(self, table: Callable[[], Measurement]) -> None:
        self._table = table

    def __getitem__(self, key: str) -> str:
        return self._table().metadata[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table().metadata)

    def __len__(self) -> int:
        return len(self._table().metadata)
