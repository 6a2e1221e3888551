"""Hooks on module calls and on their output tensors: what a forward and a backward pass show.

No module is touched: one pair of hooks common to all modules looks up which call is a layer's or a
root's, so that a program that copies or saves its model finds in it what it put there.

A forward pass of a root model is an *invocation*; it holds its calls of layers with their
activation statistics. Only the gradient hooks on the output tensors, and so the autograd graph,
keep an invocation alive: one that never meets a backward pass (a validation without ``no_grad``)
goes away with its graph, and is not counted.
"""

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, is_grad_enabled, nn
from torch._C._functorch import maybe_current_level
from torch.compiler import is_compiling
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

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


class CallWatcher(Protocol):
    """Someone who wants to know of module calls: of roots, and of all modules where it says so."""

    @property
    def wants_all(self) -> bool:
        """Whether calls of modules that are no roots matter now."""

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a module has ended; by an exception where the output is None."""


class Call:
    """One call of a layer in one invocation, and the gradient hook of its output tensor.

    As a hook it is held by the autograd graph, and so keeps its invocation alive as long as a
    backward pass may still come.
    """

    __slots__ = (
        "activation",
        "capture",
        "depth",
        "forward_depth",
        "gradient",
        "invocation",
        "kept",
        "node",
        "shape",
        "site",
    )

    # torch warns about hooks on a tensor that is saved, unless they say that they are not saved.
    __torch_unserializable__ = True

    def __init__(
        self,
        capture: "Capture",
        invocation: "Invocation",
        site: Site,
        activation: ActivationRow | None,
        shape: torch.Size,
    ) -> None:
        self.capture = capture
        self.invocation: Invocation | None = invocation
        self.site = site
        self.activation = activation
        self.shape = shape
        self.gradient: GradientRow | None = None
        self.kept: Tensor | None = None
        self.node: Any = None
        self.forward_depth = self.depth = 0

    def __call__(self, gradient: Tensor) -> None:
        """Take the statistics of the gradient that arrived at the layer's output."""
        capture, invocation = self.capture, self.invocation
        if not capture.in_backward or invocation is None:
            return
        started = time.perf_counter()
        capture.used[invocation] = None
        if self.activation is not None:
            try:
                if self.kept is not None:  # a second pass over a kept graph: gradients add
                    gradient = self.kept + gradient.detach()
                self.gradient = gradient_row(gradient)
                self.kept = gradient.detach() if capture.keeps_graph else None
            except Exception as error:  # the training must go on whatever the gradient is
                capture.give_up(self.site, error)
        capture.seconds += time.perf_counter() - started


class Invocation:
    """The calls of one forward pass, in call order.

    Args:
        window: How many backward passes had ended when it began.
        number: Its place among all invocations.
    """

    __slots__ = ("__weakref__", "calls", "handles", "number", "window")

    def __init__(self, window: int, number: int) -> None:
        self.window = window
        self.number = number
        self.calls: list[Call] = []
        self.handles: list[Any] = []

    def unhook(self) -> None:
        """Remove the hooks from output tensors that are still alive."""
        for handle in self.handles:
            handle.remove()
        for call in self.calls:
            call.invocation = None
        self.handles.clear()


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
    """What happens when one layer's module was called."""

    __slots__ = (
        "axis",
        "capture",
        "inherits_axis",
        "is_selected",
        "last",
        "module",
        "own_axis",
        "site",
    )

    def __init__(self, capture: "Capture", site: Site, module: nn.Module) -> None:
        self.capture = capture
        self.site = site
        self.module = weakref.ref(module)
        self.own_axis = own_unit_axis(module)
        self.inherits_axis = not isinstance(module, _MIXES_UNITS)
        self.is_selected: bool | None = None
        self.last: torch.Size | None = None
        self.axis: int | None = None

    def __call__(self, output: Any) -> None:
        capture = self.capture
        if not capture.listening or capture.in_backward:
            return
        if not is_grad_enabled() or (capture.broken and self.site.number in capture.broken):
            return
        started = time.perf_counter()
        try:
            tensor = output if type(output) is Tensor else first_tensor(output)
            if tensor is not None and not tensor.is_meta and maybe_current_level() is None:
                capture.observe(self, tensor)
        except Exception as error:  # the training must go on whatever a layer returns
            capture.give_up(self.site, error)
        capture.seconds += time.perf_counter() - started

    def unit_axis(self, shape: torch.Size, axes: dict[torch.Size, int | None]) -> int | None:
        """The axis of units of an output: the module's own, else that of the last such shape."""
        axis = self.own_axis
        if axis is None and self.inherits_axis:
            axis = axes.get(shape, -1 if len(shape) == 2 else None)
        if axis is not None and not -len(shape) <= axis < len(shape):
            axis = None
        self.last, self.axis = shape, axis
        axes[shape] = axis
        return axis


class Capture:
    """Owns every hook; collects invocations and hands over those that a backward pass used.

    Args:
        on_forward: Called when a forward pass with gradient begins.
        on_problem: Called once for a module whose statistics could not be taken, with the reason.
        is_selected: Whether a layer is to be recorded.
        watchers: Others who want to know of calls, in this order.
    """

    def __init__(
        self,
        on_forward: Callable[[], None],
        on_problem: Callable[[Site, Exception], None],
        is_selected: Callable[[Site], bool],
        watchers: Sequence[CallWatcher] = (),
    ) -> None:
        self.listening = False
        self.in_backward = False
        self.keeps_graph = False
        self.discovering = True
        self.window = 0
        self.seconds = 0.0
        self.broken: set[int] = set()
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
        self._is_selected = is_selected
        self._watchers = watchers
        self._handles: list[Any] = []
        self._hooks: dict[int, _LayerHook] = {}
        self._roots: dict[int, weakref.ref[nn.Module]] = {}
        self._axes: dict[torch.Size, int | None] = {}

    def attach(self, root: nn.Module, sites: Sequence[tuple[Site, nn.Module]]) -> None:
        """Watch the calls of a root model and of its layers."""
        if not self._handles:
            self._handles = [
                register_module_forward_pre_hook(self._before),
                register_module_forward_hook(self._after, always_call=True),
            ]
        self._roots[id(root)] = weakref.ref(root)
        self._has_frozen_parts |= not all(p.requires_grad for p in root.parameters())
        for hook in self._hooks.values():  # names may have got a prefix
            hook.is_selected = None
        for site, module in sites:
            self._hooks[id(module)] = _LayerHook(self, site, module)

    def detach(self) -> None:
        """Remove the hooks on calls, and those on output tensors that are still alive."""
        self.listening = self.in_backward = False
        self._stop_following()  # an interrupted forward pass never came to its end
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._hooks.clear()
        self._roots.clear()
        for invocation in list(self._alive):
            invocation.unhook()
        self._alive.clear()
        self.used.clear()
        self._current = self._loose = None

    @property
    def is_watching(self) -> bool:
        """Whether the hooks on calls are there."""
        return bool(self._handles)

    @property
    def is_inside(self) -> bool:
        """Whether a forward pass of a root is running."""
        return self._nesting > 0

    def _before(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""
        if is_compiling():
            return
        root = self._roots.get(id(module))
        is_root = root is not None and root() is module
        if is_root:
            self.enter()
        for watcher in self._watchers:
            if is_root or watcher.wants_all:
                watcher.enter(module, args)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        """A call of a module has ended; by an exception where the output is None."""
        if is_compiling():
            return
        hook = self._hooks.get(id(module))
        if hook is not None and hook.module() is module:
            hook(output)
        root = self._roots.get(id(module))
        is_root = root is not None and root() is module
        for watcher in self._watchers:
            if is_root or watcher.wants_all:
                watcher.leave(module, output)
        if is_root:
            self._leave()

    def enter_late(self, module: nn.Module, args: Any) -> None:
        """A call of a root had begun before it was known to be one."""
        self.enter()
        for watcher in self._watchers:
            watcher.enter(module, args)

    def enter(self) -> None:
        """A forward pass of a root begins."""
        self._nesting += 1
        if self._nesting == 1 and torch.is_grad_enabled() and not self.in_backward:
            self._on_forward()
            self._current = self._new_invocation() if self.listening else None
            if self._current and self.discovering and self._has_frozen_parts:
                self._mode = ForwardDepth()
                self._mode.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self) -> None:
        self._nesting = max(0, self._nesting - 1)
        if self._nesting == 0:
            self._current = None
            self._stop_following()

    def _stop_following(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def _new_invocation(self) -> Invocation:
        self._count += 1
        invocation = Invocation(self.window, self._count)
        self._alive.add(invocation)
        return invocation

    def _invocation(self) -> Invocation:
        """The invocation of calls outside of any root; they share one until the next backward."""
        if self._loose is None:
            self._on_forward()
            self._loose = self._new_invocation()
        return self._loose

    def give_up(self, site: Site, error: Exception) -> None:
        """Record nothing more of a layer; say why."""
        self.broken.add(site.number)
        self._on_problem(site, error)

    def observe(self, hook: _LayerHook, tensor: Tensor) -> None:
        """Take the statistics of a layer's output, and wait for its gradient."""
        invocation = self._current or self._invocation()
        if hook.is_selected is None:
            hook.is_selected = self._is_selected(hook.site)
        shape = tensor.shape
        axis = hook.axis if shape == hook.last else hook.unit_axis(shape, self._axes)
        activation = activation_row(tensor, axis) if hook.is_selected else None
        call = Call(self, invocation, hook.site, activation, shape)
        invocation.calls.append(call)
        if self.discovering:
            call.node = tensor.grad_fn
            call.forward_depth = self._mode.pass_layer(tensor) if self._mode else 0
        if tensor.requires_grad:
            # On the tensor, not the module: a full backward hook on a module breaks an in-place
            # ReLU that comes after it.
            handle = tensor.register_hook(call)  # type: ignore[no-untyped-call]
            invocation.handles.append(handle)

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
