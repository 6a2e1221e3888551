"""A private twin of a model, without its hooks, with batch norm folded into the layer before it."""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from analyzer.probes.landscape.weights import Direction, Moves, Slice, named_weights

__all__ = ["Twin", "twin_of"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
)
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Twin:
    """A traced private copy of a model with the steps of its weights.

    Args:
        module: The traced copy, in eval mode; nothing of it is shared with the model but buffers.
        steps: For each moved weight of the copy, by ``id``: the parameter and its two steps.
    """

    def __init__(
        self, module: fx.GraphModule, steps: dict[int, tuple[nn.Parameter, Steps]]
    ) -> None:
        self.module = module
        self.steps = steps

    @cached_property
    def moves(self) -> Moves:
        """The moves of the copy's weights, kernels of images in the layout channels_last."""
        slices = []
        for parameter, (first, second) in self.steps.values():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
                first = first.contiguous(memory_format=torch.channels_last)
                second = second.contiguous(memory_format=torch.channels_last)
            slices.append(Slice(parameter.data, first, second))
        return Moves(slices)


Steps = tuple[Tensor, Tensor]


def twin_of(model: nn.Module, directions: Sequence[Direction]) -> Twin | None:
    """Return a folded private twin of a model that is in eval mode, None where there can be none.

    Batch norm with frozen statistics behind a convolution or a linear layer is one affine map with
    it: ``W' = W γ/√(v + ε)``, ``b' = (b − m) γ/√(v + ε) + β``; a step of W is scaled alike, so the
    twin moves along the same plane. Folded only where γ and β do not move and nothing else uses the
    layer.

    Args:
        model: The user's model; not changed.
        directions: One or two aligned directions.

    Returns:
        The twin, or None if the model cannot be traced (its forward pass branches on data, is
        scripted or the like). Whether the twin computes the same is for a trial to find out.
    """
    originals = named_weights(model)
    try:
        copy = _hookless(model, {})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = fx.GraphModule(copy, fx.Tracer().trace(copy))
    except Exception:  # tracing runs the user's forward pass on symbols; anything may come out
        return None
    module.eval()
    copies = dict(named_weights(copy))
    steps = {}
    for name, parameter in originals.items():
        pair = [d[name] if name in d else torch.zeros_like(parameter.data) for d in directions]
        if any(bool((step != 0).any()) for step in pair):
            first = pair[0]
            second = pair[1] if len(pair) > 1 else torch.zeros_like(first)
            steps[id(copies[name])] = (copies[name], (first, second))
    twin = Twin(module, steps)
    _fold(twin)
    return twin


def _hookless(module: nn.Module, memo: dict[int, Any]) -> Any:
    """Copy a tree of modules: own parameters, shared buffers, no hooks."""
    if id(module) in memo:
        return memo[id(module)]
    copy = object.__new__(type(module))
    memo[id(module)] = copy
    state = {
        name: value.copy() if type(value) in (list, dict, set) else value
        for name, value in module.__dict__.items()
    }
    state.update({name: OrderedDict() for name in _HOOKS if name in state})
    state["_parameters"] = {n: _copied(p, memo) for n, p in module._parameters.items()}
    state["_buffers"] = dict(module._buffers)
    state["_modules"] = {
        name: None if child is None else _hookless(child, memo)
        for name, child in module._modules.items()
    }
    copy.__dict__ = state
    return copy


def _copied(parameter: nn.Parameter | None, memo: dict[int, Any]) -> nn.Parameter | None:
    if parameter is None:
        return None
    if id(parameter) not in memo:
        memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    found: nn.Parameter = memo[id(parameter)]
    return found


def _fold(twin: Twin) -> None:
    """Fold every batch norm that can be folded into the layer before it."""
    graph, modules = twin.module.graph, dict(twin.module.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners = Counter(
        id(p) for m in modules.values() for p in m._parameters.values() if p is not None
    )
    for node in list(graph.nodes):
        before = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        norm, layer = modules[str(node.target)], modules[str(before.target)]
        alone = calls[node.target] == calls[before.target] == 1
        own = all(owners[id(p)] == 1 for p in layer.parameters(recurse=False))
        if alone and own and type(layer) in _FOLDABLE and _is_frozen(norm, twin):
            _fold_one(layer, norm, twin)
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    twin.module.recompile()


def _is_frozen(norm: nn.Module, twin: Twin) -> bool:
    return (
        isinstance(norm, _NORMS)
        and norm.running_mean is not None
        and norm.running_var is not None
        and not any(id(p) in twin.steps for p in norm.parameters())
    )


def _fold_one(layer: Any, norm: Any, twin: Twin) -> None:
    """Put ``γ/√(v + ε)`` and the shift of a norm into a layer and into the layer's steps."""
    weight, bias = layer.weight, layer.bias
    variance = norm.running_var.double()
    scale = (variance + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.double())
    shift = 0.0 if norm.bias is None else norm.bias.double()
    offset = 0.0 if bias is None else bias.double()
    folded = (offset - norm.running_mean.double()) * scale + shift
    rows = scale.view(-1, *[1] * (weight.dim() - 1))
    layer.bias = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    if bias is not None and id(bias) in twin.steps:
        _, (first, second) = twin.steps.pop(id(bias))
        pair = ((first * scale).to(weight.dtype), (second * scale).to(weight.dtype))
        twin.steps[id(layer.bias)] = (layer.bias, pair)
    weight.data = (weight.double() * rows).to(weight.dtype)
    if id(weight) in twin.steps:
        _, (first, second) = twin.steps[id(weight)]
        pair = ((first * rows).to(weight.dtype), (second * rows).to(weight.dtype))
        twin.steps[id(weight)] = (weight, pair)
