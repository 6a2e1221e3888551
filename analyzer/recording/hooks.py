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
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, is_grad_enabled, nn
from torch._C import _current_autograd_node
from torch.autograd.function import BackwardCFunction

from analyzer.joins.calls import after_calls, before_calls
from analyzer.joins.modes import is_transformed, leave_uncompiled, unseen
from analyzer.recording.depths import PassDepths
from analyzer.recording.hook_classes import Call, Gate, Headroom, Layer, look_at
from analyzer.recording.invocation import (
    CallWatcher,
    FurtherLayers,
    Invocation,
    LivingSet,
    SeenModules,
    first_tensor,
    recomputing,
    unhook,
)
from analyzer.recording.layers import Site
from analyzer.recording.live_log import is_compiled
from analyzer.recording.plain import UnreadableError, plain
from analyzer.recording.ranks import is_distributed
from analyzer.recording.statistics import activation_row, gradient_row
from analyzer.recording.threads import TrainingThread

__all__ = ["Capture"]


class Capture(Gate):
    """Owns every hook; collects invocations and hands over those that a backward pass used.

    The usual call and gradient, float32 in host memory, never come here where there is a compiler:
    the gate takes them.

    Args:
        on_forward: Called when a forward pass with gradient begins.
        on_problem: Called once for a module whose statistics could not be taken, with the reason.
        on_error: Called with an error of a watcher.
        trainer: Makes what knows the thread that is recorded.
        is_selected: Whether a layer is to be recorded.
        watchers: Others who want to know of calls, in this order.
        on_new_module: Called when a module is called that no root had; returns whether one has it
            now.
    """

    def __init__(
        self,
        on_forward: Callable[[], None],
        on_problem: Callable[[Site, Exception], None],
        on_error: Callable[[Exception], None],
        trainer: Callable[[Gate], TrainingThread],
        is_selected: Callable[[Site], bool],
        watchers: Sequence[CallWatcher] = (),
        on_new_module: Callable[[nn.Module], bool] = lambda _: False,
    ) -> None:
        super().__init__()
        self.discovering = True
        self.window = self._nesting = self._count = 0
        self.broken: set[int] = set()
        self._headroom = Headroom()
        self._has_frozen_parts = False
        self._loose: Invocation | None = None
        self.alive: LivingSet[Invocation] = LivingSet()
        self._on_forward = on_forward
        self._on_problem, self._on_error = on_problem, on_error
        self.trainer = trainer(self)
        self._is_selected = is_selected
        self._watchers = watchers
        self._seen = SeenModules(on_new_module)
        self._further = FurtherLayers()
        self.depths = PassDepths()
        self.parts = self.depths.parts
        self._handles: list[Any] = []
        self._axes: dict[torch.Size, int | None] = {}

    def attach(self, root: nn.Module, sites: Sequence[tuple[Site, nn.Module]]) -> None:
        """Watch the calls of a root model and of its layers."""
        self._handles = self._handles or [before_calls(self._before), after_calls(self._after)]
        self.roots[id(root)] = weakref.ref(root)
        self._seen.add(root)
        if not is_compiled(root):  # a compiled part would be compiled once more
            self._has_frozen_parts |= not all(p.requires_grad for p in root.parameters())
        self.depths.is_split |= any(map(is_distributed, root.parameters()))
        for layer in self.layers.values():  # names may have got a prefix
            layer.is_ready = False
        numbers = {site.number for site, _ in sites}
        for key in [key for key, layer in self.layers.items() if layer.site.number in numbers]:
            del self.layers[key]  # that of a module whose place another one took
        for site, module in sites:
            layer = self.layers[id(module)] = Layer()
            layer.site, layer.module = site, weakref.ref(module)
        self.note_watchers()

    def forget(self) -> None:
        """Watch no root any more; calls that were seen wait for their layers to be added again."""
        self.layers.clear()
        self.roots.clear()
        self._seen.clear()
        self._further.clear()
        self._has_frozen_parts = False

    def find_sites_again(self) -> None:
        """Let the calls that were seen so far be those of the layers as they are now."""
        for call in (call for invocation in self.alive for call in invocation.calls):
            layer = self.layers.get(id(call.site.module()))
            if layer is not None:
                is_further, site = call.site.number < 0, layer.site
                call.site = replace(site, number=~site.number) if is_further else site

    def add_watcher(self, watcher: CallWatcher) -> None:
        """Tell one more of calls from now on, those before the first root included."""
        self._watchers = (*self._watchers, watcher)
        self._handles = self._handles or [before_calls(self._before), after_calls(self._after)]
        self.note_watchers()

    def note_watchers(self) -> None:
        """Ask the watchers again whether they want to know of all calls."""
        self.watches_all = any(watcher.wants_all for watcher in self._watchers)

    def detach(self) -> None:
        """Remove the hooks on calls, and those on output tensors that are still alive."""
        self.listening = self.in_backward = False
        self.depths.stop_following()  # an interrupted forward pass never came to its end
        self._headroom.give_back()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forget()
        unhook(self.alive)
        self.alive.clear()
        self.used.clear()
        self.current = self._loose = None
        self.depths = PassDepths()

    @property
    def is_inside(self) -> bool:
        """Whether a forward pass of a root is running."""
        return self._nesting > 0

    def _before(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""
        self.meet(module)
        if self.in_backward and self.current is None:
            self.begin_recomputation()
        if self.watches_all or id(module) in self.roots:
            self._enter_watched(module, args)
        if self.current is not None:
            self.current.enter(module)
        elif self._seen.is_part(module) and self._is_usual():  # called without its root
            self.invocation().enter(module)

    def meet(self, module: nn.Module) -> None:
        """A module is called; if no root had it when that was looked at, it may have it now."""
        if not self._seen.knows(module) and self._is_usual():
            self._seen.meet(module)

    def _is_usual(self) -> bool:
        """Whether a call that begins may be part of a forward pass that is recorded."""
        usual = self.listening and not self.in_backward and is_grad_enabled()
        return usual and not is_transformed() and not self.trainer.is_other()

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        """A call of a module has ended; by an exception where the output is None."""
        if (made := self.current or self._loose) is not None:
            made.leave(module, output)
        if not self.take(module, output):
            self._leave_watched(module, args, output)

    def _enter_watched(self, module: nn.Module, args: Any) -> None:
        is_root = self.is_root(module)
        if is_transformed() or self._is_in_other_thread(is_root):
            return
        with unseen():
            if is_root:
                self.enter()
            self._tell(is_root, lambda watcher: watcher.enter(module, args))

    def _leave_watched(self, module: nn.Module, args: Any, output: Any) -> None:
        is_root = self.is_root(module)
        if is_transformed() or self._is_in_other_thread(is_root):
            return
        layer = self.layers.get(id(module))
        with unseen():
            if layer is not None and layer.module is not None and layer.module() is module:
                self._take_slowly(layer, module, args, output)
            if is_root and not self._nesting:
                return  # a call that began in another thread's turn, or before a backward pass
            self._tell(is_root, lambda watcher: watcher.leave(module, output))
        if is_root:
            self._leave()

    def _is_in_other_thread(self, is_root: bool) -> bool:
        is_other = self.trainer.is_other()
        if is_other and is_root:
            self.trainer.miss()
        return is_other

    def _tell(self, is_root: bool, call: Callable[[CallWatcher], None]) -> None:
        """Tell the watchers who want to know of a call; an error of theirs is none of the call."""
        for watcher in self._watchers:
            if is_root or watcher.wants_all:
                try:
                    with unseen():  # one before it may have begun a mode
                        call(watcher)
                except Exception as error:
                    self._on_error(error)

    def is_root(self, module: nn.Module) -> bool:
        """Whether a module is a root model."""
        root = self.roots.get(id(module))
        return root is not None and root() is module

    def enter_late(self, module: nn.Module, args: Any) -> None:
        """A call of a root had begun before it was known to be one."""
        with unseen():
            self.enter()
            self._tell(True, lambda watcher: watcher.enter(module, args))

    def enter(self) -> None:
        """A forward pass of a root begins."""
        self._nesting += 1
        if self._nesting == 1:
            self.trainer.enter()
            self._headroom.make()
        if self._nesting == 1 and torch.is_grad_enabled() and not self.in_backward:
            self._on_forward()
            self.current = self.new_invocation() if self.listening else None
            if self.current and self.discovering and self._has_frozen_parts:
                self.depths.follow()

    def _leave(self) -> None:
        self._nesting = max(0, self._nesting - 1)
        if self._nesting == 0:
            self.current = None
            self.depths.stop_following()
            self.trainer.leave()
            self._headroom.give_back()

    @property
    def is_computing_again(self) -> bool:
        """Whether a function computes a part of the network again, to pass its gradient through.

        So does reentrant checkpointing; without reentry it passes through the first computation.
        """
        is_inside = self.in_backward and isinstance(_current_autograd_node(), BackwardCFunction)
        return is_inside and recomputing() is None

    def begin_recomputation(self) -> None:
        """A part of the network may be about to be computed again: take its calls."""
        if self.listening and is_grad_enabled() and self.is_computing_again:
            self.current = self.new_invocation(is_again=True)

    def begin_inner_backward(self, roots: Sequence[Any]) -> None:
        """The backward pass of what was computed again begins, inside of the training's."""
        if self.in_backward and self.current is not None and not self.trainer.is_other():
            self.depths.add(_current_autograd_node(), roots, self.current.calls)
            self.current = None

    def new_invocation(self, *, is_again: bool = False) -> Invocation:
        """Begin a forward pass, or a part of one that is computed again."""
        self._count += 1
        order = (1, -self._count) if is_again else (0, self._count)
        invocation = Invocation(self.window, order)
        self.alive.add(invocation)
        return invocation

    def invocation(self, *, is_new: bool = False) -> Invocation:
        """The forward pass that is running.

        Calls outside of any root share one until the next backward pass, or until a new one begins.
        """
        if self.current is None and (is_new or self._loose is None):
            self._on_forward()
            self._loose = self.new_invocation()
        return self.current or cast(Invocation, self._loose)

    def give_up(self, site: Site, error: Exception) -> None:
        """Record nothing more of a layer; say why."""
        number = max(site.number, ~site.number)
        self.broken.add(number)
        for layer in self.layers.values():
            if layer.site.number == number:
                layer.is_ready = False
        self._on_problem(site, error)

    def _take_slowly(self, layer: Layer, module: nn.Module, args: Any, output: Any) -> None:
        """Take what the gate leaves: a layer's first call, and the tensors that are not usual."""
        is_past = self.in_backward and self.current is None
        if not self.listening or is_past or not is_grad_enabled():
            return
        if self.broken and layer.site.number in self.broken:
            return
        started = time.perf_counter()
        try:
            tensor = output if type(output) is Tensor else first_tensor(output)
            if tensor is not None:
                plain(tensor)  # what has no values may have no shape either
                self._observe(layer, module, tensor)
                if output is not tensor:
                    for further, other in self._further.of(layer, output, tensor, args):
                        plain(other)
                        self._observe(further, module, other)
        except UnreadableError as error:  # another time it may have values
            self._on_problem(layer.site, error)
        except Exception as error:  # the training must continue whatever a layer returns
            self.give_up(layer.site, error)
        self.seconds += time.perf_counter() - started

    def take_further(self, layer: Layer, module: nn.Module, tensor: Tensor) -> None:
        """Take one more tensor of an output, which compiled code has left."""
        try:
            self._observe(layer, module, tensor)
        except Exception as error:  # the training must continue whatever a layer returns
            self.give_up(layer.site, error)

    def _observe(self, layer: Layer, module: nn.Module, tensor: Tensor) -> None:
        """Take the statistics of a layer's output, and wait for its gradient."""
        invocation = self.invocation()
        if not layer.is_ready or tensor.shape != layer.shape:
            look_at(layer, module, tensor.shape, self._axes)
            layer.is_ready = self._is_selected(layer.site)
        activation = activation_row(tensor, layer.axis) if layer.is_ready else None
        call = Call(self, invocation, layer.site, activation, tensor.shape)
        invocation.calls.append(call)
        if self.discovering:
            self.depths.note_parts(layer.site, tensor)
            call.node = tensor.grad_fn
            call.forward_depth = self.depths.pass_layer(tensor)
        if tensor.requires_grad:
            # On the tensor, not the module: a full backward hook on a module breaks an in-place
            # ReLU that comes after it.
            tensor.register_hook(call)  # type: ignore[no-untyped-call]

    def take_gradient(self, call: Call, gradient: Tensor) -> None:
        """Take the statistics of the gradient that arrived at the output of a call."""
        started = time.perf_counter()
        self.used[call.invocation] = None
        if call.is_pooled:
            call.is_pooled = False
            call.invocation.calls.append(call)
        if call.activation is not None:
            try:
                with unseen():
                    if call.kept is not None:  # a second pass over a kept graph: gradients add
                        gradient = call.kept + gradient.detach()
                    call.gradient = gradient_row(gradient)
                    call.kept = gradient.detach() if self.keeps_graph else None
            except UnreadableError as error:
                self._on_problem(call.site, error)
            except Exception as error:  # the training must continue whatever the gradient is
                self.give_up(call.site, error)
        self.seconds += time.perf_counter() - started

    def begin_backward(self, roots: Sequence[Any], *, keeps_graph: bool) -> None:
        """Accept gradients from now on."""
        rivals, self.trainer.rivals = self.trainer.rivals, set()
        if rivals:
            unhook([invocation for invocation in self.alive if invocation.thread in rivals])
        if self.discovering:
            self.depths.begin(roots)
        self._nesting = 0  # an interrupted forward pass may have left it above zero
        self._headroom.give_back()
        self.current = None
        self.in_backward = True
        self.keeps_graph = keeps_graph

    def end_backward(self) -> list[Invocation]:
        """Accept no more gradients; return the invocations that this pass used."""
        self.in_backward = False
        self.window += 1
        self._loose = None
        if self.discovering:  # by now all of the network was seen
            alive = sorted(self.alive, key=attrgetter("order"))
            self.depths.end([c for part in alive if not part.order[0] for c in part.calls])
        self.current = None
        used = sorted(self.used, key=attrgetter("order"))
        self.used.clear()
        return used


leave_uncompiled(Capture.take_gradient)  # called from where compiled code was left
