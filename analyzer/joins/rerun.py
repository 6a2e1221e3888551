"""A model run again on held arguments with the operands of its joins changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.errors import AnalyzerError
from analyzer.joins.edit_plan import planned_operands
from analyzer.joins.edits import Edit, EditingMode, JoinOperands, ScaledShortcuts
from analyzer.joins.interception import active_edits, recomputed
from analyzer.joins.model_state import RandomStates, arguments_copied, unobserved, unwrapped
from analyzer.joins.search import Join

__all__ = ["MatchedBranches", "MeasuredJoins", "Rerun", "Rescaling", "rescale_branches"]


class Rerun:
    """Repeats one call of a model, each time from the same random state.

    Weights, buffers, modes, ``.grad``, hooks and the random state stay as they are; what
    `skip_scale` does to the model at this moment is done in these runs too.

    Args:
        in_eval: Whether the runs are in eval mode; else in the mode that the model is in.
        is_alone: Whether to run without what `skip_scale` does at this moment.

    Attributes:
        joins: The model's joins in this call, forward order.

    Raises:
        AnalyzerError: If one of its joins cannot be intercepted.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        in_eval: bool = False,
        is_alone: bool = False,
    ) -> None:
        self.model = unwrapped(model)
        self._args, self._kwargs = args, kwargs
        self._in_eval = in_eval
        self._outer: list[Edit] = [] if is_alone else active_edits(self.model)
        self._states = RandomStates({parameter.device for parameter in model.parameters()})
        with self._unobserved():
            self._known = planned_operands(self.model, args, kwargs, self._states)
        found = {which.join.index: which.join for which in self._known.values() if which}
        self.joins: list[Join] = [found[index] for index in sorted(found)]

    def run(
        self,
        edits: Sequence[Edit] = (),
        call: Callable[..., Any] | None = None,
        *,
        with_grad: bool = False,
    ) -> Any:
        """Return what the model, or `call` in its place, gives for the arguments.

        Args:
            edits: What is done to the operands of joins.
            call: Called in place of the model.
            with_grad: Whether the pass keeps a graph.
        """
        with torch.set_grad_enabled(with_grad), self._unobserved():
            positional, named = arguments_copied(self._args, self._kwargs)
            self._states.restore()
            mode = EditingMode([*self._outer, *edits], self._operands_of)
            with mode:
                return (call or self.model)(*positional, **named)

    def _unobserved(self) -> AbstractContextManager[None]:
        return unobserved(self.model, in_eval=self._in_eval)

    def _operands_of(self, token: int) -> JoinOperands | None:
        if token not in self._known:
            raise AnalyzerError(
                f"'{type(self.model).__name__}' does not compute the same when a call is repeated, "
                "so that its shortcuts cannot be told apart; expected the same operations from "
                "the same inputs and random states. Leave this measurement out otherwise."
            )
        which = self._known[token]
        if which is not None and which.is_recomputed and torch.is_grad_enabled():
            raise recomputed(which)
        return which


_MOST_PASSES = 8
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Rescaling:
    """What `rescale_branches` did.

    Args:
        factors: By layer name what its parameters were multiplied by.
        unmatched: Names of the joins whose variance is not that of the original.
    """

    factors: dict[str, float]
    unmatched: tuple[str, ...]


class MeasuredJoins(Edit):
    """The standard deviation of what each join gives."""

    def __init__(self) -> None:
        self.deviations: dict[int, float] = {}

    def joined(self, which: JoinOperands, result: Tensor) -> None:
        """Take it."""
        self.deviations[which.join.index] = _deviation(result)


class MatchedBranches(Edit):
    """Each branch scaled so that its join gives the deviation that is wanted."""

    def __init__(self, wanted: Mapping[int, float]) -> None:
        self._wanted = wanted
        self.factors: dict[int, float] = {}

    def factor(self, which: JoinOperands, slot: int, operand: Tensor) -> float:
        """Return what a branch is multiplied by; 1 where no factor would do."""
        wanted = self._wanted.get(which.join.index)
        if slot not in which.branches or which.join.operation != "add" or wanted is None:
            return 1.0
        is_now = _deviation(operand)
        ratio = wanted / is_now if is_now else math.nan
        self.factors[which.join.index] = ratio if math.isfinite(ratio) and ratio > 0 else math.nan
        return ratio if math.isfinite(ratio) else 1.0


def rescale_branches(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Rescaling:
    """Scale a model's branches, in place, for a training without shortcuts.

    Afterwards each sum at a join has, with every shortcut replaced by zeros, the variance that it
    had with them, on this call's data. Per join the parameters of the last layer
    of the branch that has any are multiplied by one factor; layer by layer as in LSUV, all factors
    of a pass at once, repeated where a branch does not follow them in proportion. A norm layer at
    the end of a branch that starts at zero is set to one first. The model, in the mode it is in,
    has made no training step yet.

    Returns:
        The factors, and the joins that could not be matched to 1 %: a branch that is zero for
        another reason, a layer that several joins share, a value that is not finite.

    Raises:
        AnalyzerError: If a join cannot be intercepted.

    Reference:
        Mishkin and Matas (2016), All you need is a good init (LSUV), algorithm 1.
    """
    rerun = Rerun(model, args, kwargs, is_alone=True)
    measured = MeasuredJoins()
    rerun.run([measured])
    layers = {join.index: _last_layer(rerun.model, join.branch_layers) for join in rerun.joins}
    factors: dict[str, float] = {}
    ratios: dict[int, float] = {}
    for _ in range(_MOST_PASSES):
        matched = MatchedBranches(measured.deviations)
        rerun.run([ScaledShortcuts(0.0), matched])
        ratios = matched.factors
        if all(abs(ratio - 1) <= _TOLERANCE for ratio in ratios.values()):
            break
        _apply(rerun.model, layers, ratios, factors)
    unmatched = tuple(
        join.name
        for join in rerun.joins
        if join.index in ratios and not abs(ratios[join.index] - 1) <= _TOLERANCE
    )
    return Rescaling(factors, unmatched)


def _apply(
    model: nn.Module,
    layers: Mapping[int, str | None],
    ratios: Mapping[int, float],
    factors: dict[str, float],
) -> None:
    """Multiply the parameters of each layer by the ratios of its joins, in geometric mean."""
    for layer in dict.fromkeys(layers[index] for index in ratios):
        if layer is None:
            continue
        module = model.get_submodule(layer)
        of_layer = [ratio for index, ratio in ratios.items() if layers[index] == layer]
        usable = [math.log(ratio) for ratio in of_layer if math.isfinite(ratio)]
        if not usable:
            # A norm layer at the end of a branch that starts at zero.
            weight = module._parameters.get("weight")
            if weight is not None and weight.dim() == 1 and not weight.any():
                nn.init.ones_(weight)
            continue
        factor = math.exp(sum(usable) / len(usable))
        factors[layer] = factors.get(layer, 1.0) * factor
        with torch.no_grad():
            for parameter in module.parameters(recurse=False):
                parameter.mul_(factor)


def _last_layer(model: nn.Module, names: Sequence[str]) -> str | None:
    """Return the path of the last layer of a branch that has parameters of its own."""
    modules = dict(model.named_modules())
    for path in (name.partition("#")[0] for name in reversed(names)):
        if path in modules and next(modules[path].parameters(recurse=False), None) is not None:
            return path
    return None


def _deviation(tensor: Tensor) -> float:
    return float(tensor.detach().double().std(correction=0))
