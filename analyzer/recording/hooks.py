"""Hooks on modules and on their output tensors: what a forward and a backward pass show.

A forward pass of a root model is an *invocation*; it holds its calls of layers with their
activation statistics. Only the gradient hooks on the output tensors, and so the autograd graph,
keep an invocation alive: one that never meets a backward pass (a validation without ``no_grad``)
goes away with its graph, and is not counted.
"""

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.recording.depth import ForwardDepth, graph_depths
from analyzer.recording.layers import Site, own_unit_axis
from analyzer.recording.statistics import (
    ActivationRow,
    GradientRow,
    activation_row,
    gradient_row,
)

__all__ = ["Call", "Capture", "Invocation"]


_MIXES_UNITS = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.Fold, nn.Unfold)


class Call:
    """One call of a layer in one invocation."""

    __slots__ = (
        "activation",
        "depth",
        "forward_depth",
        "gradient",
        "kept",
        "node",
        "shape",
        "site",
    )

    def __init__(self, site: Site, activation: ActivationRow | None, shape: Sequence[int] | None):
        self.site = site
        self.activation = activation
        self.shape = shape
        self.gradient: GradientRow | None = None
        self.kept: Tensor | None = None
        self.node: Any = None
        self.forward_depth = 0
        self.depth = 0


class Invocation:
    """The calls of one forward pass, in call order.

    Args:
        window: How many backward passes had ended when it began.
        number: Its place among all invocations.
    """

    __slots__ = ("__weakref__", "axes", "calls", "handles", "number", "window")

    def __init__(self, window: int, number: int) -> None:
        self.window = window
        self.number = number
        self.calls: list[Call] = []
        self.handles: list[Any] = []
        self.axes: dict[tuple[int, ...], int | None] = {}


def first_tensor(output: Any) -> Tensor | None:
    """Return the first floating tensor in a module's output, else its first tensor, else None."""
    if isinstance(output, Tensor):
        return output
    first = None
    for tensor in _tensors(output):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor
        first = tensor if first is None else first
    return first


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dataclass_fields__"):
        for name in output.__dataclass_fields__:
            yield from _tensors(getattr(output, name))


class _LayerHook:
    """The forward hook of one layer's module."""

    __slots__ = ("axis", "capture", "inherits_axis", "site")

    def __init__(self, capture: "Capture", site: Site, module: nn.Module) -> None:
        self.capture = capture
        self.site = site
        self.axis = own_unit_axis(module)
        self.inherits_axis = not isinstance(module, _MIXES_UNITS)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        capture = self.capture
        if capture.listening and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            capture.observe(self, output)


class _GradientHook:
    """The gradient hook of one output tensor; its reference keeps the invocation alive."""

    __slots__ = ("call", "capture", "invocation")

    def __init__(self, capture: "Capture", invocation: Invocation, call: Call) -> None:
        self.capture = capture
        self.invocation = invocation
        self.call = call

    def __call__(self, gradient: Tensor) -> None:
        if self.capture.in_backward:
            self.capture.receive(self.invocation, self.call, gradient)


class Capture:
    """Owns every hook; collects invocations and hands over those that a backward pass used.

    Args:
        on_forward: Called when a forward pass with gradient begins.
        on_problem: Called once for a module whose statistics could not be taken, with the reason.
    """

    def __init__(
        self, on_forward: Callable[[], None], on_problem: Callable[[Site, Exception], None]
    ) -> None:
        self.listening = False
        self.in_backward = False
        self.keeps_graph = False
        self.discovering = True
        self.window = 0
        self.seconds = 0.0
        self.is_selected: Callable[[Site], bool] = lambda _: True
        self.used: dict[Invocation, None] = {}
        self._mode: ForwardDepth | None = None
        self._has_frozen_parts = False
        self._current: Invocation | None = None
        self._loose: Invocation | None = None
        self._nesting = 0
        self._count = 0
        self._alive: weakref.WeakSet[Invocation] = weakref.WeakSet()
        self._on_forward = on_forward
        self._on_problem = on_problem
        self._handles: list[Any] = []
        self._broken: set[int] = set()

    def attach(self, root: nn.Module, sites: Sequence[tuple[Site, nn.Module]]) -> None:
        """Hook a root model and its layers."""
        self._handles.append(root.register_forward_pre_hook(self._enter))
        self._has_frozen_parts |= not all(p.requires_grad for p in root.parameters())
        for site, module in sites:
            hook = _LayerHook(self, site, module)
            with contextlib.suppress(RuntimeError):  # a scripted module may refuse hooks
                self._handles.append(module.register_forward_hook(hook))
        self._handles.append(root.register_forward_hook(self._leave, always_call=True))

    def detach(self) -> None:
        """Remove every hook from modules and from output tensors that are still alive."""
        self.listening = self.in_backward = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for invocation in list(self._alive):
            for handle in invocation.handles:
                handle.remove()
        self._alive.clear()
        self.used.clear()
        self._current = self._loose = None

    @property
    def is_inside(self) -> bool:
        """Whether a forward pass of a root is running."""
        return self._nesting > 0

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.enter()

    def enter(self) -> None:
        """A forward pass of a root begins."""
        self._nesting += 1
        if self._nesting == 1 and torch.is_grad_enabled() and not self.in_backward:
            self._on_forward()
            self._current = self._new_invocation() if self.listening else None
            if self._current and self.discovering and self._has_frozen_parts:
                self._mode = ForwardDepth()
                self._mode.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._nesting = max(0, self._nesting - 1)
        if self._nesting == 0:
            self._current = None
            if self._mode is not None:
                self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
                self._mode = None

    def _new_invocation(self) -> Invocation:
        self._count += 1
        invocation = Invocation(self.window, self._count)
        self._alive.add(invocation)
        return invocation

    def _invocation(self) -> Invocation:
        """The running invocation; calls outside of any root share one until the next backward."""
        if self._current is not None:
            return self._current
        if self._loose is None:
            self._on_forward()
            self._loose = self._new_invocation()
        return self._loose

    def observe(self, hook: _LayerHook, output: Any) -> None:
        """Take the statistics of a layer's output, and wait for its gradient."""
        if self.in_backward or hook.site.number in self._broken:
            return
        started = time.perf_counter()
        try:
            self._observe(hook, output)
        except Exception as error:  # the training must go on whatever a layer returns
            self._broken.add(hook.site.number)
            self._on_problem(hook.site, error)
        self.seconds += time.perf_counter() - started

    def _observe(self, hook: _LayerHook, output: Any) -> None:
        tensor = first_tensor(output)
        if (
            tensor is None
            or tensor.is_meta
            or torch._C._functorch.maybe_current_level() is not None
        ):
            return
        invocation = self._invocation()
        selected = self.is_selected(hook.site)
        shape = tuple(tensor.shape)
        axis = hook.axis
        if axis is None and hook.inherits_axis:
            axis = invocation.axes.get(shape, -1 if len(shape) == 2 else None)
        if axis is not None and not -len(shape) <= axis < len(shape):
            axis = None
        invocation.axes[shape] = axis
        call = Call(hook.site, activation_row(tensor, axis) if selected else None, shape)
        invocation.calls.append(call)
        if self.discovering:
            call.node = tensor.grad_fn
            call.forward_depth = self._mode.pass_layer(tensor) if self._mode else 0
        if tensor.requires_grad:
            gradient_hook = _GradientHook(self, invocation, call)
            handle = tensor.register_hook(gradient_hook)  # type: ignore[no-untyped-call]
            invocation.handles.append(handle)

    def receive(self, invocation: Invocation, call: Call, gradient: Tensor) -> None:
        """Take the statistics of the gradient that arrived at a layer's output."""
        started = time.perf_counter()
        self.used[invocation] = None
        if call.activation is not None:
            try:
                if call.kept is not None:  # a second pass over a kept graph: gradients add
                    gradient = call.kept + gradient.detach()
                call.gradient = gradient_row(gradient)
                call.kept = gradient.detach() if self.keeps_graph else None
            except Exception as error:  # the training must go on whatever the gradient is
                self._broken.add(call.site.number)
                self._on_problem(call.site, error)
        self.seconds += time.perf_counter() - started

    def begin_backward(self, roots: Sequence[Any], *, keeps_graph: bool) -> None:
        """Accept gradients from now on; find the depth of new calls while there is a graph."""
        if self.discovering:
            self._find_depths(roots)
        self._nesting = 0  # an interrupted forward pass may have left it above zero
        self._current = None
        self.in_backward = True
        self.keeps_graph = keeps_graph

    def _find_depths(self, roots: Sequence[Any]) -> None:
        calls = [call for invocation in self._by_age() for call in invocation.calls]
        for call, depth in zip(calls, graph_depths(roots, calls), strict=True):
            call.depth = depth or call.forward_depth or call.depth
            call.node = None  # a node held here would keep its graph, and so itself, alive

    def _by_age(self) -> list[Invocation]:
        return sorted(self._alive, key=lambda invocation: invocation.number)

    def end_backward(self) -> list[Invocation]:
        """Accept no more gradients; return the invocations that this pass used."""
        self.in_backward = False
        self.window += 1
        self._loose = None
        used = sorted(self.used, key=lambda invocation: invocation.number)
        self.used.clear()
        return used
