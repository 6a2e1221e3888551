"""What a forward pass adds at its joins: norms of shortcut, branch and sum, and their cosine."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import CodeType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from analyzer.joins.modes import unseen
from analyzer.joins.operations import FUNCTION_KINDS, OPERANDS, Operands
from analyzer.joins.plan import JoinSite
from analyzer.joins.products import norms_and_dots, split_statistics
from analyzer.joins.trace import ForwardTrace, made_by, sequence_number

__all__ = ["Addends", "JoinOutputs", "statistics_of"]

# A program that never comes to a backward pass must not fill the memory.
_MOST_CALLS = 20_000
# Additions whose operands are kept: `branch + other + x` adds the branch before x.
_MOST_RECENT = 2
_MOST_OPERANDS = 16
Numbers: TypeAlias = Sequence[float] | Tensor
Line: TypeAlias = tuple[CodeType, int]
Place: TypeAlias = tuple[int, tuple[int, ...]]
"""Where an operand is read: the number of the call, and the call's slots."""


@dataclass(frozen=True, slots=True)
class _Operand:
    """One operand of a sum: its places, its values, and what it is multiplied by.

    An operand of a sum that is an operand itself has the places of both.
    """

    places: tuple[Place, ...]
    values: Tensor
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class _Call:
    """One call that adds, concatenates or stacks.

    Args:
        number: Its number among all calls.
        start: Sequence number of its first autograd node; `end`: the one after its last.
        tick: How many functions were followed up to it.
        line: What called it.
        places: Of each operand.
        numbers: The norms of the operands, then the dot products of each with the later ones.
    """

    number: int
    start: int
    end: int
    tick: int
    line: Line
    kind: str
    places: tuple[tuple[Place, ...], ...]
    numbers: Numbers


@dataclass(frozen=True, slots=True)
class JoinOutputs:
    """What one join adds.

    Args:
        numbers: The norms of ``count`` operands, then their dot products, if not on their way.
        shortcut: Which operands are the shortcuts'; `branch`: which are the branch's.
        kind: ``add``, or ``cat``: operands side by side.
        is_whole: Whether the join gives the sum of the operands as they are here.
    """

    numbers: Numbers
    count: int
    shortcut: tuple[int, ...]
    branch: tuple[int, ...]
    kind: str
    is_whole: bool

    def statistics(self, numbers: Sequence[float]) -> list[float | None]:
        """Return ‖s‖, ‖b‖, ‖s + b‖ and cos(s, b) from the numbers on the host.

        The norm of a sum that weights its operands is None, and so is the cosine in a concatenation
        and where one of the two is zero.
        """
        norms, pairs = numbers[: self.count], combinations(range(self.count), 2)
        unit = max((norm for norm in norms if math.isfinite(norm)), default=0.0) or 1.0
        dots = {pair: dot / unit / unit for pair, dot in zip(pairs, numbers[self.count :])}  # noqa: B905
        dots |= {(place, place): (norm / unit) ** 2 for place, norm in enumerate(norms)}

        def product(one: Sequence[int], other: Sequence[int]) -> float:
            return sum(dots.get((min(i, j), max(i, j)), 0.0) for i in one for j in other)

        def length(side: Sequence[int]) -> float:
            square = product(side, side)
            root = math.sqrt(square) if square > 0 else square * 0.0  # NaN stays
            return norms[side[0]] if len(side) == 1 else unit * root

        ss, bb = product(self.shortcut, self.shortcut), product(self.branch, self.branch)
        cosine, _ = split_statistics(ss, product(self.shortcut, self.branch), bb)
        whole = length(range(self.count)) if self.is_whole else None
        sides = [length(self.shortcut), length(self.branch)]
        return [*sides, whole, cosine if self.kind == "add" else None]


def statistics_of(
    outputs: JoinOutputs | None, numbers: Sequence[float] | None = None
) -> list[float | None]:
    """Return ‖s‖, ‖b‖, ‖s + b‖ and cos(s, b); None each where they were not seen.

    The numbers are those of the outputs, where they were copied to the host by others.
    """
    if outputs is None:
        return [None] * 4
    if numbers is None:
        given = outputs.numbers
        numbers = given.tolist() if isinstance(given, Tensor) else given
    return outputs.statistics(numbers)


# The operands of a call, slots of those that it multiplies first, the numbers, the versions.
_Made: TypeAlias = tuple[list[_Operand], tuple[int, ...], Numbers | None, list[int]]
_Recent: TypeAlias = tuple[Tensor, int, list[_Operand], list[int]]


class Addends(ForwardTrace):
    """Measures the operands of the additions, stacks and concatenations under it.

    Kept are numbers and, for the last two additions, their operands. No result changes, no node is
    made, no device waited for. What a line calls that is no join is not measured in later passes.

    Args:
        follows: Whether tensors are followed, too: there are joins of which autograd has no graph.

    Attributes:
        counts: Whether functions are counted all the same: such joins are known by their number.
        failure: Why a call was not measured; None where all were.
        is_paused: Whether nothing is measured now; tensors are followed all the same.
    """

    def __init__(self, *, follows: bool = False, without_grad: bool = False) -> None:
        super().__init__(without_grad=without_grad)
        self.follows, self.counts, self.is_paused = follows, follows, False
        self.failure: Exception | None = None
        self._num_calls = 0
        self._passes: list[tuple[int, int]] = []
        self._calls: list[_Call] = []
        self._old = 0, 0
        self._recent: deque[_Recent] = deque(maxlen=_MOST_RECENT)
        # Whether the sums among the operands are taken apart; None for what is no join.
        self._needed: dict[Line, bool | None] = {}

    def begin(self) -> None:
        """A forward pass begins."""
        self._passes.append((sequence_number(), self.tick))
        super().begin()

    def end(self) -> None:
        """It has ended."""
        self._recent.clear()
        super().end()

    def forget(self) -> None:
        """Forget passes before the last call of this: their backward pass may still come."""
        self._calls, self._passes = self._calls[self._old[0] :], self._passes[self._old[1] :]
        self._old = len(self._calls), len(self._passes)

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function, and measure what it adds."""
        if self.is_paused or name not in OPERANDS:
            return self._run(func, name, args, kwargs)
        start, line = sequence_number(), _line()
        is_flat = self._needed.get(line, True)
        if is_flat is None or len(self._calls) > _MOST_CALLS or kwargs.get("out") is not None:
            return self._run(func, name, args, kwargs)
        made: _Made | None = None
        try:
            with unseen():  # before the call: it may write to an operand
                made = self._before(name, args, kwargs, is_flat=is_flat)
        except Exception as error:  # the program must not notice
            self.failure = error
        result = self._run(func, name, args, kwargs)
        is_made = self.counts or sequence_number() > start
        if made is not None and is_made and isinstance(result, Tensor):
            try:
                with unseen():
                    self._after(name, made, result, start, line)
            except Exception as error:
                self.failure = error
        return result

    def _run(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not self.follows:
            result = func(*args, **kwargs)
            self.tick += bool(self.counts and made_by(func, args, result))
            return result
        # In the order of the operands, whatever the order in which they are named.
        first = {key: kwargs[key] for key, _ in OPERANDS.get(name, ()) if key in kwargs}
        return super().call(func, name, args, first | kwargs)

    def _before(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_flat: bool
    ) -> _Made | None:
        self._num_calls += 1
        operands, rest = _operands(name, args, kwargs, self._num_calls)
        if not operands:
            return None
        kind = FUNCTION_KINDS[name]
        if is_flat and not rest and kind != "cat":
            operands = [part for operand in operands for part in self._parts(operand)]
        numbers = None if rest else _numbers(kind, operands)
        return operands, rest, numbers, _versions(operands)

    def _after(self, name: str, made: _Made, result: Tensor, start: int, line: Line) -> None:
        operands, rest, numbers, versions = made
        kind, end = FUNCTION_KINDS[name], sequence_number()
        if rest:
            (first,) = operands
            values = result.detach() - first.factor * first.values.detach()
            operands = [first, _Operand(((first.places[0][0], rest),), values)]
            numbers = _numbers(kind, operands)
        if numbers is not None:
            places = tuple(operand.places for operand in operands)
            at = operands[-1].places[-1][0], start, end, self.tick
            self._calls.append(_Call(*at, line, kind, places, numbers))
        if kind == "add" and not rest and versions == _versions(operands):
            self._recent.append((result, _version(result), operands, versions))

    def _parts(self, operand: _Operand) -> list[_Operand]:
        """Return the operands of one that is the sum of one of the last additions."""
        for result, version, parts, versions in self._recent:
            is_same = operand.values is result and _version(result) == version
            if is_same and _versions(parts) == versions:
                return [
                    _Operand(
                        part.places + operand.places, part.values, part.factor * operand.factor
                    )
                    for part in parts
                ]
        return [operand]

    def outputs(self, sites: Sequence[JoinSite], start: int = -1) -> list[JoinOutputs | None]:
        """Return what the joins of a graph add; None for one whose addition was not seen.

        The first pass of the graph began before the node with the number `start`.
        """
        starts = [call.start for call in self._calls]
        ticks = [tick for base, tick in self._passes if base == start] or [0]
        by_tick = {call.tick - ticks[0]: call for call in self._calls if self.counts}

        def at(node: Node | None, tick: int = -1) -> _Call | None:
            if node is None:
                return by_tick.get(tick)
            place = bisect_right(starts, node._sequence_nr()) - 1
            found = self._calls[place] if place >= 0 else None
            return found if found and node._sequence_nr() < found.end else None

        found = [self._output(site, at) for site in sites]
        last = max((s.node._sequence_nr() for s in sites if s.node is not None), default=-1)
        others = (call.line for call in self._calls if start <= call.start <= last)
        self._needed = {} if None in found else dict.fromkeys(others) | self._needed
        return found

    def _output(self, site: JoinSite, at: Callable[..., _Call | None]) -> JoinOutputs | None:
        entries, others_in = (
            [(at(node), slot) for node, slot in seen] + [(at(None, t), slot) for t, slot in unseen]
            for seen, unseen in (
                (site.branch_entries, site.branch_ticks),
                (site.shortcut_entries, site.shortcut_ticks),
            )
        )
        summed = at(site.node, site.tick)
        calls = [call for call in (summed, *(entered for entered, _ in entries)) if call]
        call = next((call for call in calls if _numbers_of(call, entries)), None)
        if call is None:
            return None
        kind = "cat" if site.join.operation == "cat" else "add"
        branch = _numbers_of(call, entries)
        others = [number for number in range(len(call.places)) if number not in branch]
        if kind == "cat":  # what else is there, a condition, is on neither side
            others = _numbers_of(call, others_in)
        # A multiple of the shortcut may be added later, too.
        is_part = kind == "add" and any(o and o.number > call.number for o, _ in others_in)
        if is_part or not branch or not others:
            return None
        for entered, _ in entries:
            if entered and entered is not call:
                self._needed[entered.line] = bool(self._needed.get(entered.line))
        is_flat = any(entered is not call for entered, _ in entries)
        self._needed[call.line] = is_flat or bool(self._needed.get(call.line))
        adds = ("SumBackward1", *(("AddBackward0",) if site.join.shortcut == "identity" else ()))
        is_whole = call is summed or type(site.node).__name__ in adds
        sides = tuple(others), tuple(branch)
        return JoinOutputs(call.numbers, len(call.places), *sides, kind, is_whole)


def _line() -> Line:
    """What called a function, behind all modes of ours that pass it on."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__package__") == __package__ and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code, frame.f_lasti


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _versions(operands: Sequence[_Operand]) -> list[int]:
    return [_version(operand.values) for operand in operands]


def _numbers_of(call: _Call, entries: Iterable[tuple[_Call | None, int]]) -> list[int]:
    """Return which operands of a call come in by some edges; none where one is not seen."""
    found: dict[int, None] = {}
    for entered, slot in entries:
        added = [
            number
            for number, places in enumerate(call.places)
            if entered and any(key == entered.number and slot in at for key, at in places)
        ]
        if not added:
            return []
        found |= dict.fromkeys(added)
    return list(found)


def _operands(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], call: int
) -> tuple[list[_Operand], tuple[int, ...]]:
    """Return the operands of a call as they are added; none where they are not of one size.

    Of a call that multiplies before it adds: its first operand, and the slots of the others.
    """
    given = Operands(name, args, kwargs)
    values, word, kind = [*map(_there, given.values)], name.strip("_"), FUNCTION_KINDS[name]
    if not 1 < len(values) <= _MOST_OPERANDS or not all(map(_is_plain, values[:2])):
        return [], ()
    factors = [1.0] * len(values)
    rest: tuple[int, ...] = ()
    if kind == "add" and word in _SIGNS:
        alpha = float(kwargs.get("alpha", 1))
        factors = [sign * (alpha if is_scaled else 1) for sign, is_scaled in _SIGNS[word]]
    elif kind == "add" and word == "lerp":
        weight = values[2] if len(values) > 2 else kwargs.get("weight", args[-1])
        weight = weight.detach() if isinstance(weight, Tensor) else weight
        values = [values[0].detach() * (1 - weight), values[1].detach() * weight]
    elif kind == "add":
        rest = tuple(range(1, len(values)))
        factors = [float(kwargs.get("beta", 1))]
        values = [values[0].detach().clone() if given.is_in_place else values[0]]
    if not all(map(_is_plain, values)):
        return [], ()
    if kind != "cat" and len({value.numel() for value in values}) > 1:
        return [], ()  # one is repeated over the other: no join
    pairs = enumerate(zip(values, factors, strict=False))
    return [_Operand(((call, (slot,)),), value, factor) for slot, (value, factor) in pairs], rest


# By function the sign of each of two operands, and whether ``alpha`` multiplies it.
_PLUS, _MINUS = ((1, False), (1, True)), ((1, False), (-1, True))
_SIGNS = dict.fromkeys(("add", "iadd", "radd"), _PLUS)
_SIGNS |= dict.fromkeys(("sub", "isub", "subtract"), _MINUS) | {"rsub": ((-1, True), (1, False))}


def _there(value: Any) -> Any:
    """Return a tensor that comes from other ranks once it is there, as the call would wait, too."""
    return value.trigger_wait() if hasattr(type(value), "trigger_wait") else value


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor whose elements can be read."""
    return (
        isinstance(value, Tensor)
        and type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and (value.is_floating_point() or value.is_complex())
        and value.numel() > 0
    )


def _numbers(kind: str, operands: Sequence[_Operand]) -> Numbers:
    """Return the norms and, unless they stand side by side, the dot products of operands."""
    values, factors = [o.values for o in operands], [o.factor for o in operands]
    return norms_and_dots(values, factors, with_dots=kind != "cat")
