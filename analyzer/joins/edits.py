"""Operands of joins changed while a forward pass runs.

An operand is known by how it was computed: its *token* is the same in two passes that compute it in
the same way from the same sources, whatever the values are.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from analyzer.joins.operations import OPERANDS, Operands
from analyzer.joins.search import Join
from analyzer.joins.trace import FunctionMode, TensorNotes

__all__ = [
    "Edit",
    "EditingMode",
    "JoinOperands",
    "OperandsByToken",
    "ScaledShortcuts",
    "Tokens",
    "holds_tensor",
    "joins_named",
]

_PLAIN = (int, str, bool, type(None))
_ALL = ".*"
_MOST_NAMED = 24


@dataclass(frozen=True)
class JoinOperands:
    """A call of a forward pass in which operands of a join are added, concatenated or stacked.

    Args:
        shortcuts: Numbers of the operands that come from a shortcut.
        branches: Numbers of the operands that come from the branch.
        gives_join: Whether the call returns the sum of all operands of the join.
        is_recomputed: Whether a checkpoint computes it once more in the backward pass.
    """

    join: Join
    shortcuts: tuple[int, ...]
    branches: tuple[int, ...]
    gives_join: bool
    is_recomputed: bool


OperandsByToken = dict[int, JoinOperands | None]
"""By the token of its operands each addition and concatenation: a join, or None."""
_RECORDING = ("analyzer.recording.", "analyzer.probes.", "analyzer.joins.")
_MODES = "analyzer.joins."  # where each `FunctionMode` is: it passes on what the model calls
_MODULE_CALL = "torch.nn.modules.module"


class Edit:
    """What is done to the operands of joins: nothing, where a subclass does not say otherwise."""

    def factor(self, which: JoinOperands, slot: int, operand: Tensor) -> float:
        """Return the factor of one operand; 1 leaves it alone, 0 replaces it by zeros."""
        return 1.0

    def joined(self, which: JoinOperands, result: Tensor) -> None:
        """Look at what a join gave."""

    def meet(self, names: Iterable[str]) -> None:
        """Take note of the names of joins before a call that has them."""

    def unmatched(self) -> str | None:
        """Say what of the edit belongs to none of the joins that were met."""
        return None


def joins_named(key: str, names: Iterable[str]) -> list[str]:
    """Return the joins that a name, the path of a module around them, or a pattern stands for.

    A pattern may match anywhere in a name, unless it matches whole parts of the path from its
    beginning: ``layer1`` is not ``layer10.0`` where there is a ``layer1.0``.
    """
    names = list(names)
    if key in names:
        return [key]
    from_start = re.compile(rf"(?:{key})(?=[.#]|$)")
    return [n for n in names if from_start.match(n)] or [n for n in names if re.search(key, n)]


class ScaledShortcuts(Edit):
    """Every shortcut multiplied by α, or each by the α of its join.

    Args:
        alpha: One factor for all; or factors by join, where the join's own name wins over the path
            or pattern given last, and a shortcut that none stands for is left alone.
        expects_joins: Whether a model without joins is not matched.
    """

    def __init__(self, alpha: float | Mapping[str, float], *, expects_joins: bool = False) -> None:
        self._expects_joins = expects_joins
        self._alphas = dict(alpha) if isinstance(alpha, Mapping) else {_ALL: alpha}
        self._factors: dict[str, float] = {}

    def factor(self, which: JoinOperands, slot: int, operand: Tensor) -> float:
        """Return α for the shortcut, 1 for the branch."""
        if slot not in which.shortcuts:
            return 1.0
        if which.join.name not in self._factors:
            self.meet([which.join.name])
        return self._factors[which.join.name]

    def meet(self, names: Iterable[str]) -> None:
        """Look up the factors of these joins, too."""
        self._factors |= dict.fromkeys(names, 1.0)
        for key in sorted(self._alphas, key=lambda key: key in self._factors):
            self._factors |= dict.fromkeys(joins_named(key, self._factors), self._alphas[key])

    def unmatched(self) -> str | None:
        """Say which name stands for none of the joins that were met."""
        if self._expects_joins and not self._factors and _ALL in self._alphas:
            return (
                "the model has no residual join; expected one with shortcuts. See "
                "analyzer.find_joins(model, inputs)."
            )
        for key in self._alphas if self._alphas.keys() != {_ALL} else ():
            if not joins_named(key, self._factors):
                names = list(self._factors)
                more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
                known = ", ".join(names[:_MOST_NAMED]) + more
                return (
                    f"{key!r} stands for no join whose shortcut could be scaled; expected the "
                    f"name, a path or a pattern of {known or 'a join, but the model has none'}"
                )
        return None


class EditingMode(FunctionMode):
    """Changes the operands of joins in the functions that run under it, by each edit in turn.

    ``operands_of`` returns by the token of its operands the join that an addition is, if it is.
    """

    def __init__(
        self, edits: Sequence[Edit], operands_of: Callable[[int], JoinOperands | None]
    ) -> None:
        super().__init__()
        self._edits = edits
        self._operands_of = operands_of
        self._tokens = Tokens()

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function, with other operands where it is a join."""
        if name in OPERANDS and not _is_called_by_recording():
            result = self._add(func, name, args, kwargs)
        else:
            result = func(*args, **kwargs)
        if not holds_tensor(result) or not _is_called_by_recording():
            self._tokens.note_call(name, args, kwargs, result)
        elif name == "clone":  # a probe may put a copy in the place of a layer's output
            self._tokens.note(result, self._tokens.of_tensor(args[0]))
        return result

    def _add(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        operands = Operands(name, args, kwargs)
        which = self._operands_of(self._tokens.of_operands(name, operands))
        if which is None:
            return func(*args, **kwargs)
        for slot in (*which.shortcuts, *which.branches):
            self._change(which, slot, operands)
        args, kwargs = operands.arguments()
        result = func(*args, **kwargs)
        for edit in self._edits if which.gives_join else ():
            edit.joined(which, result)
        return result

    def _change(self, which: JoinOperands, slot: int, operands: Operands) -> None:
        values = operands.values
        for edit in self._edits:
            operand = values[slot]
            factor = edit.factor(which, slot, operand)
            if factor == 1.0:
                continue
            # What is added to in place is read elsewhere afterwards: it is itself what changes.
            in_place = operands.is_in_place and slot == 0
            if factor == 0.0:
                everywhere = torch.ones((), dtype=torch.bool, device=operand.device)
                fill = operand.masked_fill_ if in_place else operand.masked_fill
                # Not a product with zero, which is NaN where the operand is not finite.
                values[slot] = fill(everywhere, 0)
                if not in_place:  # in the order in memory that the sum has without it
                    values[slot] = _laid_out(values[slot], [values[n] for n in which.branches])
            else:
                values[slot] = operand.mul_(factor) if in_place else operand * factor


def _laid_out(zeros: Tensor, others: Sequence[Any]) -> Tensor:
    """Return zeros in the order in memory of a tensor of the same shape, if it has another one."""
    for other in others:
        if isinstance(other, Tensor) and other.shape == zeros.shape:
            is_alike = other.stride() == zeros.stride() or other.layout is not torch.strided
            return zeros if is_alike else torch.zeros_like(other) + zeros
    return zeros


def _is_called_by_recording() -> bool:
    """Return whether a function is called by a hook of this package, not by the model."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        home = str(frame.f_globals.get("__name__", ""))
        name = frame.f_code.co_name
        is_passed_on = home.startswith("torch.") or name == "__torch_function__"
        is_passed_on |= name == "call" and home.startswith(_MODES)
        is_call = home == _MODULE_CALL and name in ("inner", "_call_impl")
        if is_call or not is_passed_on:
            return home.startswith(_RECORDING)
        frame = frame.f_back
    return False


class Tokens:
    """Tokens of the tensors of one forward pass.

    What no followed function made (an input, a parameter, a constant) is a source; sources are
    told apart by the order in which the pass first uses them.
    """

    def __init__(self) -> None:
        self._tokens: TensorNotes[int] = TensorNotes()
        self._num_sources = 0
        self._times: Counter[int] = Counter()

    def of_call(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        """Return the token of a function call with these arguments, before or after it ran."""
        return hash((name, self._of(args), tuple((k, self._of(v)) for k, v in kwargs.items())))

    def of_operands(self, name: str, operands: Operands) -> int:
        """Return the token of an addition: its name and operands, nothing else of the call.

        Another call with the same operands, as a stack of which scores are computed, has another.
        """
        token = hash((name, self._of(operands.values)))
        self._times[token] += 1
        return hash((token, self._times[token]))

    def note_call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Note what a function call made, or wrote to."""
        if name == "__setitem__":
            self.note(args[0], self.of_call(name, args, kwargs))
        elif holds_tensor(result):
            self.note(result, self.of_call(name, args, kwargs))

    def note(self, result: Any, token: int) -> None:
        """Give the tensors in a result the token of the call that made them."""
        if isinstance(result, Tensor):
            self._tokens[result] = token
        elif isinstance(result, tuple | list):
            for number, item in enumerate(result):
                self.note(item, hash((token, number)))

    def _of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of_tensor(value)
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, tuple | list):
            return tuple([self._of(item) for item in value])
        if isinstance(value, slice):
            return ("slice", self._of(value.start), self._of(value.stop), self._of(value.step))
        # Numbers may come from the data: they tell no two operands apart.
        return type(value).__name__

    def of_tensor(self, tensor: Tensor) -> int:
        """Return the token of a tensor."""
        known = self._tokens.get(tensor)
        if known is not None:
            return known
        self._num_sources += 1
        token = self._tokens[tensor] = hash(("source", self._num_sources))
        return token


def holds_tensor(result: Any) -> bool:
    """Return whether a function returned a tensor, alone or in a tuple or list."""
    if isinstance(result, tuple | list):
        return any(holds_tensor(item) for item in result)
    return isinstance(result, Tensor)
