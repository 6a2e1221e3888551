"""Splits of a live model: one forward and backward pass that leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.joins.find import output_nodes, watched_forward
from analyzer.joins.plan import Join, JoinPlan, joins_in_graph
from analyzer.joins.splits import attach
from analyzer.joins.statistics import (
    SPLIT_COLUMNS,
    JoinGradients,
    split_products,
    statistics_of_products,
)
from analyzer.joins.untouched import cloned, untouched, unwrapped

__all__ = ["call_arguments", "join_gradients", "splits_of_model"]

Loss = Callable[[Any, Any], Tensor]


def splits_of_model(
    model: nn.Module, inputs: Any, targets: Any, loss: Loss
) -> dict[str, list[Any]]:
    """Return the splits of the gradient at every join of a model, for one batch.

    ``g_s`` and ``g_b`` are the parts of ∂L/∂x that arrive at the fork x through the shortcut and
    through the branch, each taken at the edges by which it reads x. The model runs in the mode it
    is in. Weights, buffers, ``.grad``, hooks and the random state stay as they are.

    Args:
        model: Any eager model.
        inputs: Its argument; a tuple or list of positional, a mapping of keyword arguments.
        targets: Second argument of `loss`.
        loss: ``loss(output, target)``, the mean over the batch.

    Returns:
        Columns: ``join`` and those of `SPLIT_COLUMNS`; norms in units of the loss per unit of the
        tensor. None where the backward pass computes nothing.

    Raises:
        ValueError: If the loss is not one number, or does not depend on the model.
    """
    rows: dict[int, list[Any]] = {}

    def note(join: Join, gradients: JoinGradients) -> None:
        products = split_products(gradients).tolist()
        rows[join.index] = statistics_of_products(gradients, products)

    plan = join_gradients(model, inputs, targets, loss, note)
    columns: dict[str, list[Any]] = {"join": [join.index for join in plan.joins]}
    for place, column in enumerate(SPLIT_COLUMNS):
        columns[column] = [rows[join.index][place] for join in plan.joins]
    return columns


def join_gradients(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Loss,
    on_gradients: Callable[[Join, JoinGradients], None],
) -> JoinPlan:
    """Run a model forward and backward once; deliver the gradients at each of its joins.

    Args:
        model: Any eager model.
        inputs: As for `splits_of_model`.
        targets: Second argument of `loss`.
        loss: ``loss(output, target)``.
        on_gradients: Called once for each join; the tensors must not be written to.

    Returns:
        The joins of this forward pass.

    Raises:
        ValueError: If the loss is not one number, or does not depend on the model.
    """
    model = unwrapped(model)
    with untouched(model), torch.enable_grad():
        copies: dict[int, tuple[Tensor, Tensor]] = {}
        args, kwargs = cloned(call_arguments(inputs), requires_grad=True, memo=copies)
        output, log = watched_forward(model, args, kwargs)
        value = loss(output, targets)
        _check_loss(value)
        roots = list(dict.fromkeys([*output_nodes(output), value.grad_fn]))
        plan = joins_in_graph([node for node in roots if node is not None], log)
        sites = plan.sites([node for node in roots if node is not None])
        hooks = attach(sites or [], on_gradients)
        leaves = [*model.parameters(), *(leaf for leaf, _ in copies.values())]
        needed = [leaf for leaf in leaves if leaf.requires_grad]
        try:
            torch.autograd.grad(value, needed, allow_unused=True)
        finally:
            hooks.finish()
    return plan


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of a model call from one value.

    Args:
        inputs: A tuple or list of arguments, a mapping of keyword arguments, or one argument.

    Returns:
        The two.
    """
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs,), {}


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        seen = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"the loss has {seen}; expected one number. Let loss(output, target) return the mean."
        )
    if value.grad_fn is None:
        raise ValueError(
            "the loss has no gradient; expected one that depends on the model. Compute it from the "
            "model's output without detach or no_grad."
        )
