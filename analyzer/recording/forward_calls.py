"""Models that a program calls without training them: each outermost call is a step.

At the first call nobody knows whether the program will train. What was kept is dropped when a
backward pass begins or an optimizer steps: until then it was a look at the model, or a validation.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from analyzer.joins.addends import Addends
from analyzer.joins.calls import CallLog, keywords_of_call, numbered_call
from analyzer.joins.find import output_nodes
from analyzer.joins.graph import Walk
from analyzer.joins.plan import joins_in_graph, what_is_hidden
from analyzer.options import RecordOptions
from analyzer.recording.depths import PassDepths
from analyzer.recording.hook_classes import Call, Layer, look_at
from analyzer.recording.hooks import Capture
from analyzer.recording.invocation import Invocation, first_tensor
from analyzer.recording.layers import CallNumbers, Layers
from analyzer.recording.live_log import JoinTable, is_compiled, token
from analyzer.recording.models import device_name
from analyzer.recording.names import container_of, unwrapped
from analyzer.recording.parameters import Parameters
from analyzer.recording.part import Part
from analyzer.recording.plain import UnreadableError, plain
from analyzer.recording.split_rows import SplitRows
from analyzer.recording.statistics import activation_row
from analyzer.recording.step import OpenStep
from analyzer.recording.watched import BACKWARD_PASSES
from analyzer.storage.writer import StepRecord

__all__ = ["ForwardCalls"]

_MOST_CALLS = 100
_MOST_ROWS = 50_000
_MOST_RESTARTS = 20


class ForwardCalls:
    """Keeps the first calls of models, with or without gradient, until the program trains.

    A call counts where its module has a parameter and no other call is running around it.

    Args:
        options: Which layers and steps are recorded.
        capture: Tells of the calls of all modules as long as they are wanted.

    Attributes:
        tables: The static tables of the models that were called.
        device: Where their parameters are.
        dtype: The types of their parameters.
        is_training: Whether a backward pass or an update was seen.
        has_derived: Whether ``autograd.grad`` or `torch.func` computed gradients.
    """

    def __init__(self, options: RecordOptions, capture: Capture) -> None:
        self._steps: list[Callable[[], StepRecord]] = []
        self._waiting: Callable[[], None] | None = None
        self.tables, self.device, self.dtype = dict[str, list[dict[str, Any]]](), "", ""
        self.is_training = self.has_derived = False
        self._options, self._capture = options, capture
        self._problems: list[str] = []
        self._num_rows = self._num_restarts = 0
        self._thread = 0
        self._open: list[int] = []
        self._current: Invocation | None = None
        self._depths = PassDepths()
        self._log: _JoinLog | None = None
        self.forget()
        self._listens = True
        BACKWARD_PASSES.watch(self)
        self._handle = register_optimizer_step_pre_hook(self._at_update)
        capture.add_watcher(self)

    @property
    def steps(self) -> list[Callable[[], StepRecord]]:
        """The calls that were kept, as functions that make their rows."""
        self._settle()
        return self._steps

    @property
    def counts(self) -> dict[str, int]:
        """How many calls, layers and parameters there are."""
        steps = len(self.steps)
        return {"steps": steps} | {n: len(self.tables[n]) for n in ("layers", "parameters")}

    def forget(self) -> None:
        """Forget the calls that were kept, and their models."""
        self._steps.clear()
        self._waiting = None
        self._joins = JoinTable(self._options.max_calls)
        self._layers, self._parameters = Layers(self._options.max_calls), Parameters(self._note)
        self._numbers = CallNumbers(self._layers)
        self._known: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._sites: dict[int, Layer] = {}
        self._axes: dict[torch.Size, int | None] = {}

    # --- the end of it -----------------------------------------------------------------------

    def finish(self) -> list[str]:
        """Keep no more calls, leave nothing behind; return what the steps do not hold."""
        self._stop()
        BACKWARD_PASSES.unwatch(self)
        self._handle.remove()
        if self.is_training:
            return []
        self._settle()
        sentences = []
        if self.has_derived:
            sentences = ["gradients of torch.autograd.grad or torch.func: no optimizer got them"]
        if self.steps:
            kind = "gradients and updates" if len(self._joins) else "gradients, updates and joins"
            sentences += [f"{kind}: no backward pass ran; each call of a model is a step"]
        return sentences + self._problems

    def follows(self, roots: Sequence[Any], *, is_backward: bool) -> bool:
        """Every backward pass of this process is a training."""
        return True

    def begin_backward(self, roots: Sequence[Any], *, keeps_graph: bool) -> None:
        """The program trains: what was kept was not its training."""
        self._drop()
        self.finish()

    def end_backward(self, *, failed: bool) -> None:
        """Nothing is left to do about that pass."""

    def begin_inner_backward(self, roots: Sequence[Any]) -> None:
        """Nothing is left to do about that pass."""

    def suspend(self, roots: Sequence[Any], inputs: Sequence[Any]) -> None:
        """Somebody asked for gradients by ``autograd.grad``, or by `torch.func` through it."""
        self.has_derived = True

    def resume(self, state: None) -> None:
        """Those gradients are there."""

    def _at_update(self, *_: Any) -> None:
        # The hook itself stays: torch is iterating over the hooks.
        self._drop()

    def _drop(self) -> None:
        self.is_training = True
        self._stop()
        self.forget()
        self._problems.clear()

    def _stop(self) -> None:
        self._close_log()
        self._depths.stop_following()
        self._current = None
        self._open.clear()
        if self._listens:
            self._listens = False
            self._capture.note_watchers()

    def _note(self, sentence: str) -> None:
        if sentence not in self._problems:
            self._problems.append(sentence)

    def _give_up(self, error: Exception) -> None:
        """Keep what was kept, and no more; the program must not notice."""
        self._stop()
        self._problems.append(
            f"calls of models after the first {len(self._steps)}: {type(error).__name__}: {error}"
        )

    # --- calls -------------------------------------------------------------------------------

    @property
    def wants_all(self) -> bool:
        """Whether calls are still kept."""
        return self._listens

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""
        if not self._listens:
            return
        if not self._open:
            self._thread = threading.get_ident()
        elif self._thread != threading.get_ident():
            return
        started = time.perf_counter()
        try:
            if not self._open:
                self._begin(module)
            self._open.append(id(module))
            if self._log is not None and module in self._log.paths:
                self._log.enter(module, (args, keywords_of_call(module)))
        except Exception as error:
            self._give_up(error)
        self._capture.seconds += time.perf_counter() - started

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a module has ended; by an exception where the output is None."""
        if id(module) not in self._open or self._thread != threading.get_ident():
            return
        started = time.perf_counter()
        try:
            while self._open.pop() != id(module):
                pass  # a call that was interrupted never left by itself
            if self._log is not None and module in self._log.paths:
                self._log.leave(module, output)
            if self._current is not None:
                self._observe(self._current, module, output)
                if not self._open:
                    self._end(self._current, output)
        except Exception as error:
            self._give_up(error)
        self._capture.seconds += time.perf_counter() - started

    def _begin(self, module: nn.Module) -> None:
        self._settle()
        self._current = None
        if next(module.parameters(), None) is None:
            return
        is_new = not set(module.modules()) <= set(self._known)
        if is_new:
            self._add(container_of(module))
        number = len(self._steps)
        self._current = Invocation(number, (0, number))
        self._step = OpenStep(number, self._options.records(number))
        self._is_new = is_new
        # Where there is a graph it has the depth. A compiled part would be compiled once more.
        if is_new and not is_grad_enabled() and "torch._dynamo" not in sys.modules:
            self._depths.follow()
        if self._options.splits(number):
            self._open_log(module)

    def _open_log(self, module: nn.Module) -> None:
        """Watch a call for its joins; compiled code would be compiled once more for it."""
        roots = ((number, ref()) for number, ref in enumerate(self._layers.roots))
        for number, root in roots:
            if root is None or module not in set(root.modules()):
                continue
            if is_compiled(root):
                self._note(f"joins and edges of {type(unwrapped(root)).__name__}: compiled code")
            else:
                self._log = _JoinLog(number, root, self._options.max_calls)
            return

    def _close_log(self) -> _JoinLog | None:
        log, self._log = self._log, None
        if log is not None:
            log.addends.end()
        return log

    def _take_joins(self, log: _JoinLog, nodes: Sequence[Any], rows: SplitRows) -> bool:
        """Take what the joins of a call add; return whether one of them is new."""
        walk = Walk(nodes)
        plan = joins_in_graph(walk, log)
        sites = plan.sites(walk) or []
        numbers, has_changed = self._joins.take(plan, walk, log)
        added = log.addends.outputs(sites)
        for place, (number, outputs) in enumerate(zip(numbers, added, strict=True)):
            rows.add_outputs((number, place), outputs)
        for module, reason in plan.unseen:
            self._note(f"{what_is_hidden(reason)} of {module}: {reason}")
        return has_changed

    def _add(self, root: nn.Module) -> None:
        """Add a model, or one of which parts were called before it was complete."""
        parts = set(root.modules())
        if any(ref() in parts for ref in self._layers.roots):
            self._num_restarts += 1
            if self._num_restarts > _MOST_RESTARTS:
                raise RecursionError(f"{type(root).__name__} has new parts at each call")
            name, count = type(unwrapped(root)).__name__, len(self._steps)
            self._problems.append(f"{count} calls of models before {name} was complete")
            self.forget()
        for site, module in self._layers.add_root(root):
            layer = self._sites[id(module)] = Layer()
            layer.site, layer.module = site, weakref.ref(module)
        self._parameters.add_root(len(self._layers.roots) - 1, root, self._layers)
        self._known.update(parts)
        own = list(root.parameters())
        self.device = ", ".join(sorted({device_name(p.device) for p in own}))
        self.dtype = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in own}))

    def _observe(self, invocation: Invocation, module: nn.Module, output: Any) -> None:
        """Take the statistics of a layer's output."""
        layer = self._sites.get(id(module))
        if layer is None or layer.module is None or layer.module() is not module:
            return
        tensor = output if type(output) is Tensor else first_tensor(output)
        if tensor is None or self._num_rows >= _MOST_ROWS:
            return
        try:
            plain(tensor)
        except UnreadableError as error:  # another time it may have values
            self._note(f"layer {self._path(layer.site)}: {error}")
            return
        self._num_rows += 1
        if tensor.shape != layer.shape:
            look_at(layer, module, tensor.shape, self._axes)
            layer.is_ready = self._options.selects(self._path(layer.site))
        is_wanted = layer.is_ready and self._step.recorded
        activation = activation_row(tensor, layer.axis) if is_wanted else None
        call = Call(self._capture, invocation, layer.site, activation, tensor.shape)
        invocation.calls.append(call)
        if self._is_new:
            call.node = tensor.grad_fn
            call.forward_depth = self._depths.pass_layer(tensor)

    def _path(self, site: Any) -> str:
        return self._layers.path(site, self._layers.prefixes())

    def _end(self, invocation: Invocation, output: Any) -> None:
        """The outermost call has ended: it is a step, unless a backward pass follows.

        A search for its joins waits until there is another call: most programs train.
        """
        log = self._close_log()
        self._depths.stop_following()
        self._current, calls = None, invocation.calls
        if self._is_new:
            self._depths.end(calls)
        self._seconds = time.perf_counter() - self._step.started
        nodes = [] if log is None else list(output_nodes(output))
        self._waiting = partial(self._note_call, invocation, log, nodes)
        if not nodes:
            self._settle()

    def _settle(self) -> None:
        """Note the call that waited, if there is one."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            try:
                waiting()
            except Exception as error:
                self._give_up(error)

    def _note_call(self, invocation: Invocation, log: _JoinLog | None, nodes: list[Any]) -> None:
        part = Part()
        has_changed = self._numbers.number(invocation, is_discovering=self._is_new)
        if log is not None:
            try:
                has_changed |= self._take_joins(log, nodes, part.splits)
            except Exception as error:  # the rest of the call is recorded
                self._note(f"joins: {type(error).__name__}: {error}")
        if has_changed or not self.tables:
            self._note_tables()
        part.fold(invocation, None)
        self._step.parts.append(part)
        self._steps.append(self._step.seal(self._options.columns, None, self._seconds, {}))
        if len(self._steps) == _MOST_CALLS or self._num_rows >= _MOST_ROWS:
            self._stop()
            self._problems.append(f"calls of models after the first {len(self._steps)}")

    def _note_tables(self) -> None:
        """Note the static tables now: the models may be gone at the end."""
        parameters = [{**row, "trained": False} for row in self._parameters.rows(self._layers)]
        spelled = partial(self._layers.spelled, prefixes=self._layers.prefixes())
        layers = self._layers.rows(self._joins.roles())
        joins = self._joins.rows(spelled)
        self.tables = {"layers": layers, "parameters": parameters, "joins": joins}
        self.tables["edges"] = self._layers.edges(self._joins.edges)


class _JoinLog(CallLog):
    """The calls of one forward pass, with gradient or without, and what it adds."""

    def __init__(self, number: int, root: nn.Module, most_calls: int) -> None:
        self.addends = Addends(follows=True, without_grad=True)
        super().__init__({token(number): unwrapped(root)}, self.addends)
        self.most_calls = most_calls
        self._is_away = False
        self.addends.begin()

    def enter(self, module: nn.Module, inputs: object = ()) -> None:
        """Note that a call begins; in one too many no joins are looked for, and none measured."""
        super().enter(module, inputs)
        self.addends.is_paused = self.is_late
        if self.is_late and not self._is_away and is_grad_enabled():
            self._is_away = True  # what tensors are made from is in the graph
            self.addends.end()

    def leave(self, module: nn.Module, output: object) -> None:
        """Note that a call ends."""
        super().leave(module, output)
        self.addends.is_paused = self.is_late
        if self._is_away and not self.is_late and self._open:
            self._is_away = False
            self.addends.begin()

    def _layer_name(self, module: nn.Module, path: str) -> str | None:
        return numbered_call(path, self._times_called) if module in self._layers else None
