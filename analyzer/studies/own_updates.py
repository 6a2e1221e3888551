"""How far each parameter of a layer, alone, changes what the layer makes of its first input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from analyzer.joins.calls import clean_path, numbered_call, tensors_in
from analyzer.joins.model_state import arguments_copied
from analyzer.joins.products import norm_of
from analyzer.networks.blocks import private_random_state

__all__ = ["LayerCall", "recorded_calls"]

# A smaller part of the output is rounding in float32.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a module, x₀ ↦ f(x₀; p₀), which can be made again with another parameter.

    Args:
        name: Module path, ``#k`` for the k-th further call; the root's is its class name.
        arguments: Positional and named ones, copies.
        parameters: By their name in the module: its own, and those of modules inside that are not
            called (the projection of `nn.MultiheadAttention`).
        state: Parameters and buffers at the call, copies.
    """

    name: str
    module: nn.Module
    arguments: tuple[Any, Any]
    parameters: dict[str, nn.Parameter]
    state: dict[str, Tensor]

    @cached_property
    def output(self) -> Tensor:
        """f(x₀; p₀)."""
        return self._output({})

    @property
    def input_size(self) -> float:
        """The root mean square of x₀; 0 for indices, as an embedding is given."""
        return 0.0 if self._input is None else _root_mean_square(self._input)

    @property
    def common_input(self) -> float:
        """The root mean square of the mean of x₀ over samples, over that of x₀."""
        if self._input is None or not self.input_size:
            return 0.0
        return _root_mean_square(self._input.mean(0)) / self.input_size

    @property
    def _input(self) -> Tensor | None:
        floating = (t for t in tensors_in(self.arguments) if t.is_floating_point() and t.dim())
        return next(floating, None)

    def is_weight(self, parameter: str) -> bool:
        """Return whether a parameter is a weight, not a vector of biases or gains."""
        return self.state[parameter].dim() > 1

    def own_activation(self, parameter: str) -> float:
        """Return the root mean square of f(x₀; p₀) − f(x₀; 0): of W·x₀ for a linear layer."""
        return self._change(parameter, torch.zeros_like(self.state[parameter]))

    def own_update(self, parameter: str, *, is_scattered: bool = False) -> float:
        """Return the root mean square of f(x₀; p) − f(x₀; p₀): of ΔW·x₀ for a linear layer.

        The other parameters are as they were. 0 for a change within rounding.

        Args:
            parameter: Its name in the module.
            is_scattered: Whether each element of the change has a random sign instead of its own.
        """
        value, start = self.parameters[parameter].detach(), self.state[parameter]
        if is_scattered:
            with private_random_state(0):
                signs = torch.randint(0, 2, start.shape).to(start) * 2 - 1
            value = start + signs * (value - start)
        return self._change(parameter, value)

    def is_affine_in(self, parameter: str) -> bool:
        """Return whether f(x₀; p₀ + d) + f(x₀; p₀ − d) is 2 f(x₀; p₀), for a random d."""
        start = self.state[parameter]
        with private_random_state(0):
            direction = torch.randn_like(start) * (_root_mean_square(start) or 1.0)
        ahead, back = (self._output({parameter: start + s * direction}) for s in (1, -1))
        return norm_of(ahead + back - 2 * self.output) <= 1e-3 * norm_of(ahead - back)

    def _change(self, parameter: str, value: Tensor) -> float:
        change = self._output({parameter: value}) - self.output
        is_rounding = 0 < norm_of(change) < _ROUNDING * norm_of(self.output)
        return 0.0 if is_rounding else _root_mean_square(change)

    def _output(self, changed: dict[str, Tensor]) -> Tensor:
        """f(x₀; p₀) with other values of some parameters; random draws are always the same."""
        args, kwargs = arguments_copied(*self.arguments)
        state = {name: value.clone() for name, value in self.state.items()} | changed
        with torch.no_grad(), private_random_state(0):
            found = functional_call(self.module, state, args, kwargs)
        return next(t for t in tensors_in(found) if t.is_floating_point()).double()


def _root_mean_square(tensor: Tensor) -> float:
    return norm_of(tensor) / math.sqrt(max(tensor.numel(), 1))


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[list[LayerCall]]:
    """Collect each call with parameters to judge it by in the forward pass inside, in call order.

    The list is complete when the context ends.
    """
    state = {
        id(tensor): tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())
    }
    times_called: dict[str, int] = {}
    ended: list[tuple[str, nn.Module, tuple[Any, Any]]] = []
    pending: list[tuple[Any, Any]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        pending.append(arguments_copied(args, kwargs))

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        arguments, called = pending.pop(), numbered_call(name, times_called)
        if any(tensor.is_floating_point() for tensor in tensors_in(output)):
            ended.append((called, module, arguments))

    found: list[LayerCall] = []
    with ExitStack() as hooks:
        for path, module in model.named_modules():
            # What computes a weight belongs to the layer that has it.
            if ".parametrizations." not in f".{path}.":
                name = clean_path(path) or type(model).__name__
                for hook in (
                    module.register_forward_pre_hook(enter, with_kwargs=True),
                    module.register_forward_hook(partial(leave, name), with_kwargs=True),
                ):
                    hooks.enter_context(hook)
        yield found
    called = {module for _, module, _ in ended}
    for name, module, arguments in ended:
        if judged := dict(_judged(module, called)):
            tensors = (*module.named_parameters(), *module.named_buffers())
            start = {key: state[id(tensor)] for key, tensor in tensors}
            found.append(LayerCall(name, module, arguments, judged, start))


def _judged(
    module: nn.Module, called: set[nn.Module], prefix: str = ""
) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, child in module.named_children():
        if child not in called:
            yield from _judged(child, called, f"{prefix}{name}.")
