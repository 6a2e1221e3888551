"""Find the residual joins of a live model by a forward pass on copies of its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import CallLog, tensors_in
from analyzer.joins.model_state import cloned, preserve_state, unwrapped
from analyzer.joins.plan import JoinPlan, joins_in_graph
from analyzer.joins.search import Join
from analyzer.joins.trace import ForwardTrace

__all__ = [
    "call_arguments",
    "expect_joins",
    "find_joins",
    "output_nodes",
    "plan_joins",
    "watched_forward",
]


def find_joins(model: nn.Module, *args: Any, **kwargs: Any) -> list[Join]:
    """Return the residual joins of a model: where a shortcut and a branch meet again.

    The model runs once in the mode it is in, and once more in eval mode if it is training: the run
    that shows more joins counts, because stochastic depth may have left out some blocks. Weights,
    buffers, modes, ``.grad``, hooks and the random state stay as they are.

    Args:
        model: Any eager model.
        *args: Arguments of one call of the model.
        **kwargs: Keyword arguments of that call.

    Returns:
        The joins in forward order; empty where there is none, as in a plain network.
    """
    joins = plan_joins(model, args, kwargs).joins
    model = unwrapped(model)
    if any(module.training for module in model.modules()):
        with preserve_state(model, in_eval=True):
            try:
                in_eval = plan_joins(model, args, kwargs).joins
            except Exception:  # a model that only trains: what its own mode shows is all there is
                return joins
        if len(in_eval) > len(joins):
            return in_eval
    return joins


def expect_joins(model: nn.Module, number: int) -> None:
    """Refuse a model without joins, where a quantity is one of joins.

    Raises:
        AnalyzerError: If there is none.
    """
    if not number:
        raise AnalyzerError(
            f"{type(unwrapped(model)).__name__!r} has no residual join; expected a model with "
            "shortcuts. See analyzer.find_joins(model, inputs)."
        )


def plan_joins(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> JoinPlan:
    """Return the joins of a model in the mode it is in, and the modules that may hide some."""
    model = unwrapped(model)
    with preserve_state(model):
        output, log = watched_forward(model, *cloned((args, kwargs), requires_grad=False))
        return joins_in_graph(output_nodes(output), log)


def watched_forward(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    trace: ForwardTrace | None = None,
) -> tuple[Any, CallLog]:
    """Run a model without its wrappers, with gradient; return its output and the log."""
    log = CallLog({"": model}, trace)
    with torch.enable_grad(), log.watch():
        output = model(*args, **kwargs)
    return output, log


def output_nodes(output: object) -> list[Node]:
    """Return the autograd nodes of the tensors in a model's output, in order."""
    nodes = [tensor.grad_fn for tensor in tensors_in(output)]
    return list(dict.fromkeys(node for node in nodes if node is not None))


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of a model call from one value.

    A tuple or list holds arguments, a mapping keyword arguments; anything else is one argument.
    """
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs,), {}
