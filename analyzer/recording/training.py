"""Opens and closes the steps of a training without its help.

The order of events decides: a backward pass after an update opens the next step; an optimizer that
steps makes an update; a forward pass with gradient after an update belongs to the next step.
"""

import functools
import gc
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from analyzer.errors import StopTraining
from analyzer.options import RecordOptions
from analyzer.probes import Measurement
from analyzer.recording import clipping, engine
from analyzer.recording.checkpoints import is_small
from analyzer.recording.hooks import Capture, Invocation
from analyzer.recording.layers import Layers, Site
from analyzer.recording.micro_batches import MicroBatches, num_ranks
from analyzer.recording.names import unwrapped
from analyzer.recording.parameters import Parameters
from analyzer.recording.probing import Probing
from analyzer.recording.splits import Splits
from analyzer.recording.step import OpenStep, scalar
from analyzer.recording.updates import UpdateMeter

__all__ = ["Training"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _never_fails(method: _Method) -> _Method:
    """Called by the training: an error of the recorder ends the recording, not the training."""

    @functools.wraps(method)
    def guarded(self: "Training", *args: Any, **kwargs: Any) -> Any:
        if self.failure is not None or self.is_measuring:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.give_up(error)
            return None

    return cast(_Method, guarded)


# Key of an update that no optimizer makes; ids of objects are never negative.
_BY_HAND = -1


class Training:
    """The state of one recorded training.

    Args:
        schedule: What to record when.
        on_step: Receives each closed step as a function that makes its rows on another thread.
        on_tables: Called when the static tables changed.
        on_boundary: Called with the number of a step after its update, before the next forward
            pass: the moment at which weights are those of the end of that step.
        on_problem: Called with a sentence about something that cannot be recorded.
        probing: The probes that are measured between steps.
        adopts_optimizers: Whether tensors that only an optimizer holds are parameters, too.
    """

    def __init__(
        self,
        schedule: RecordOptions,
        *,
        on_step: Callable[[Any], None],
        on_tables: Callable[[], None],
        on_boundary: Callable[[int], None],
        on_problem: Callable[[str], None],
        probing: Probing | None = None,
        adopts_optimizers: bool = False,
    ) -> None:
        self.schedule = schedule
        self.layers = Layers()
        self.parameters = Parameters()
        self.splits = Splits(schedule, on_problem)
        self.probing = probing or Probing(
            (), lambda *_: None, on_batch=lambda _: None, on_problem=on_problem
        )
        wants_noise = any(plan.name == "noise" for plan in schedule.plans)
        self._micro_batches = MicroBatches() if wants_noise else None
        more = () if self._micro_batches is None else (self._micro_batches,)
        self.probing.of_training = {"noise": self._training_noise}
        self.capture = Capture(
            self._begin_forward,
            self._cannot_record,
            self._is_selected,
            (self.splits, self.probing, *more),
        )
        self.num_steps = 0
        self.failure: str | None = None
        self._on_step = on_step
        self._on_tables = on_tables
        self._on_boundary = on_boundary
        self._on_problem = on_problem
        self._adopts_optimizers = adopts_optimizers
        self._step = self._open(0)
        self._num_losses = 0
        self._next_logged: dict[str, Any] = {}
        self._forward_began = False
        self._boundary_passed = False
        self._has_optimizer: bool | None = None
        self._in_closure_step = False
        self.is_measuring = False
        self._updates = UpdateMeter(on_problem)
        self._tables_changed = False
        self._has_guessed_depth = False
        self._taken: dict[int, int] = {}
        self._taken_window = -1
        self._known_sites: list[int] = []
        self._known_layers: list[int] = []
        self._known_roots: set[int] = set()
        self._handles: list[Any] = []
        self._may_hold: list[bool] = []
        self._roots_used: set[int] = set()
        self._held: list[nn.Module] = []

    # --- beginning and end -------------------------------------------------------------------

    def start(self) -> None:
        """Hook the engine, the optimizers and gradient clipping of this process."""
        engine.watch(self)
        clipping.watch(self._before_clipping)
        self._handles = [
            register_optimizer_step_pre_hook(self._before_update),
            register_optimizer_step_post_hook(self._after_update),
        ]
        self.splits.prepare(0)
        self.capture.note_watchers()

    def add_root(self, root: nn.Module) -> None:
        """Record this model from now on."""
        sites = self.layers.add_root(root)
        self.parameters.add_root(len(self.layers.roots) - 1, root)
        self.capture.attach(root, sites)
        self.splits.add_root(len(self.layers.roots) - 1, weakref.ref(root))
        self._tables_changed = True
        self._may_hold.append(is_small(root))
        if type(root).__name__ == "OptimizedModule":
            name = type(unwrapped(root)).__name__
            self._on_problem(f"layers of {name}: it is compiled, so its modules are not called")

    def complete(self, root: nn.Module) -> None:
        """Take a whole model of which parts were taken before it was there.

        A model's constructor may call a part to see the shape of its output; the first backward
        pass has not come yet, so that no layer has a number.
        """
        inside = {id(module) for module in root.modules()}
        taken = [model for ref in self.layers.roots if (model := ref()) is not None]
        self.layers, self.parameters = Layers(), Parameters()
        self._may_hold.clear()
        self.capture.forget()
        self.splits.forget_roots()
        for model in (*(model for model in taken if id(model) not in inside), root):
            self.add_root(model)
        self.capture.find_sites_again()

    def finish(self, *, measures: bool = True) -> None:
        """Close the last step and leave nothing behind.

        Args:
            measures: Whether to measure the probes once more after the last step.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        engine.unwatch(self)
        clipping.unwatch(self._before_clipping)
        if self.failure is not None:
            return
        self._pass_boundary()
        if self._step.num_backward:
            if measures:
                self._measure(is_last=True)
            self._close_step()
        elif self._tables_changed and len(self.layers.roots):
            self._on_tables()
        self._leave_nothing()

    def _leave_nothing(self) -> None:
        self.capture.detach()
        self.splits.close()
        self.probing.close()
        if self._micro_batches is not None:
            self._micro_batches.close()

    def give_up(self, error: Exception) -> None:
        """Record nothing more after an error of the recorder itself; what is written stays."""
        self.failure = (
            f"recording ended in step {self._step.index} by an error of the recorder "
            f"({type(error).__name__}: {error}); the training went on"
        )
        self._on_problem(self.failure)
        self._leave_nothing()
        self._updates.clear()

    @property
    def has_trained(self) -> bool:
        """Whether a backward pass was seen."""
        return self._step.index > 0 or self._step.num_backward > 0

    def device(self) -> torch.device | None:
        """Return the device of the first parameter, where there is one."""
        trainable = self.parameters.trainable()
        return trainable[0][1].device if trainable else None

    def dtypes(self) -> list[str]:
        """Return the types of the trained parameters, each once, such as ``float32``."""
        found = (str(parameter.dtype) for _, parameter in self.parameters.trainable())
        return sorted({name.removeprefix("torch.") for name in found})

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of the static tables."""
        prefixes = self.layers.prefixes()

        def name_of(root: int, path: str) -> str:
            return self.layers.spelled(root, path, prefixes)

        return {
            "layers": self.layers.rows(self.splits.table.roles()),
            "parameters": self.parameters.rows(self.layers),
            "joins": self.splits.table.rows(name_of),
        }

    def log(self, values: dict[str, Any]) -> None:
        """Add extra columns to the current step."""
        detached = {
            key: scalar(value) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        target = self._next_logged if self._forward_began else self._step.logged
        target.update(detached)

    # --- forward -----------------------------------------------------------------------------

    @_never_fails
    def _begin_forward(self) -> None:
        """A forward pass with gradient begins; after an update it belongs to the next step."""
        if self._step.updated and not self._in_closure_step:
            self._pass_boundary()
            self._stop_if_enough()
            self._forward_began = True

    def _pass_boundary(self) -> None:
        if self._step.num_backward and not self._boundary_passed:
            self._boundary_passed = True
            self._updates.finish(_BY_HAND, self._step.parameters)
            self._on_boundary(self._step.index)
            self._end_micro_batches()
            self._measure()

    def _end_micro_batches(self) -> None:
        step = self._step
        if self._micro_batches is not None:
            self._micro_batches.end_step(step.index, step.num_backward, is_whole=step.updated)

    def _training_noise(self) -> Measurement | None:
        """The gradient noise of the training's own micro-batches, where it has any."""
        if self._micro_batches is None:
            return None
        return self._micro_batches.measurement(self.parameters.owners(self.layers))

    def _measure(self, *, is_last: bool = False) -> None:
        """Measure the probes that are due; the recording sees nothing of what they do."""
        step, capture = self._step, self.capture
        if not self.probing.is_due(step.index, is_last=is_last):
            return
        started, listening = time.perf_counter(), capture.listening
        capture.listening, self.is_measuring = False, True
        try:
            with self.splits.paused():
                self.probing.measure(step.index, is_last=is_last)
        finally:
            capture.listening, self.is_measuring = listening, False
        step.started += time.perf_counter() - started  # the seconds of a step are the training's

    def _stop_if_enough(self) -> None:
        stop_after = self.schedule.stop_after
        if stop_after is not None and self._step.index + 1 >= stop_after:
            raise StopTraining(stop_after)

    def _cannot_record(self, site: Site, error: Exception) -> None:
        path = self.layers.path(site, self.layers.prefixes())
        self._on_problem(f"layer {path}: {type(error).__name__}: {error}")

    def _is_selected(self, site: Site) -> bool:
        return self.schedule.selects(self.layers.path(site, self.layers.prefixes()))

    # --- backward ----------------------------------------------------------------------------

    @_never_fails
    def begin_backward(self, roots: Sequence[Any], *, keeps_graph: bool) -> None:
        """A backward pass begins: the first one after an update opens a step."""
        started = time.perf_counter()
        if self._step.updated:
            self._pass_boundary()
            self._stop_if_enough()
            self._close_step()
        self._forward_began = False
        if self._in_closure_step and self._step.evaluations > 0:
            return  # the row of a step with a closure is its first evaluation
        self._num_losses = len(self._step.losses)
        self._step.add_loss(roots)
        if self.capture.listening:
            self.capture.begin_backward(roots, keeps_graph=keeps_graph)
        step = self._step
        self.probing.begin_backward(step.index, roots)
        self.splits.begin_backward(step.index, step.splits, roots, keeps_graph=keeps_graph)
        if self._micro_batches is not None and step.recorded:
            self._micro_batches.begin_pass(
                self.parameters.trainable(), num_ranks(self.layers.roots)
            )
        self.capture.note_watchers()
        self.capture.seconds += time.perf_counter() - started

    @_never_fails
    def end_backward(self, *, failed: bool) -> None:
        """A backward pass has ended."""
        started = time.perf_counter()
        step, keeps_graph = self._step, self.capture.keeps_graph
        if self._in_closure_step and step.evaluations > 0:
            step.num_backward += not failed
            return
        used = self.capture.end_backward()
        self.splits.end_backward(step.index, step.splits, failed=failed)
        if self._micro_batches is not None:
            self._micro_batches.end_pass(self.parameters.trainable(), failed=failed)
        self.capture.note_watchers()
        if failed:
            del step.losses[self._num_losses :]
            return
        step.num_backward += 1
        self._boundary_passed = False
        for invocation in used:
            if not step.keeps(invocation):
                self._number_calls(invocation)
                (step.keep if keeps_graph else step.fold)(invocation)
        self.capture.discovering = self._has_guessed_depth or not len(self.layers)
        self._has_guessed_depth = False
        if self._has_optimizer is None:
            self._has_optimizer = self._find_optimizer()
        if not self._has_optimizer:
            self._manual_update()
        self.capture.seconds += time.perf_counter() - started

    def suspend(self) -> bool:
        """Gradients of ``autograd.grad`` are not those of the loss."""
        state, self.capture.in_backward = self.capture.in_backward, False
        return state

    def resume(self, state: bool) -> None:
        """That ``autograd.grad`` has ended."""
        self.capture.in_backward = state

    def _number_calls(self, invocation: Invocation) -> None:
        """Find the layer of each call: (module, how often it was called since a backward)."""
        if invocation.is_numbered:  # another part of its graph
            self._roots_used.update(call.site.root for call in invocation.calls)
            return
        invocation.is_numbered = True
        if invocation.window != self._taken_window:
            self._taken_window, self._taken = invocation.window, {}
        sites = [call.site.number for call in invocation.calls]
        is_first = not self._taken
        if is_first and sites == self._known_sites and not self.capture.discovering:
            for number in sites:  # the usual case: the same calls as in the step before
                self._taken[number] = self._taken.get(number, 0) + 1
            self._roots_used.update(self._known_roots)
            for call, known in zip(invocation.calls, self._known_layers, strict=True):
                call.layer = known
            return
        layers: list[int] = []
        before = 0
        for call in invocation.calls:
            count = self._taken.get(call.site.number, 0)
            self._taken[call.site.number] = count + 1
            self._roots_used.add(call.site.root)
            layer = self.layers.layer(call.site, count)
            if layer is None:
                depth = call.depth or before + 1
                self._has_guessed_depth |= not call.depth
                layer = self.layers.add(call.site, count, call.shape, depth)
                self._tables_changed = True
            elif call.depth and self.layers.depth(layer) != call.depth:
                self.layers.set_depth(layer, call.depth)
                self._tables_changed = True
            before = self.layers.depth(layer)
            layers.append(layer)
            call.layer = layer
        if is_first:
            self._known_sites, self._known_layers = sites, layers
            self._known_roots = {call.site.root for call in invocation.calls}

    # --- updates -----------------------------------------------------------------------------

    def _find_optimizer(self) -> bool:
        """Whether the program has an optimizer that holds a parameter of the recording."""
        for thing in gc.get_objects():
            if issubclass(type(thing), Optimizer) and self._concerns(thing):
                return True
        return False

    def _concerns(self, optimizer: Optimizer) -> bool:
        return self._adopts_optimizers or any(
            self.parameters.number(p) is not None
            for group in getattr(optimizer, "param_groups", ())
            for p in group["params"]
        )

    def _held_by(self, optimizer: Optimizer) -> list[tuple[int, Tensor]]:
        held: list[tuple[int, Tensor]] = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                number = self.parameters.number(parameter)
                if number is None and self._adopts_optimizers:
                    number = self.parameters.add_free(parameter)
                    self._tables_changed = True
                if number is not None:
                    held.append((number, parameter))
        new = {number for number, _ in held} - self.parameters.optimized
        if new:
            self.parameters.optimized |= new
            self._tables_changed = True
        return held

    @_never_fails
    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        started = time.perf_counter()
        if not self._concerns(optimizer):
            return None
        self._has_optimizer = True
        self._in_closure_step = False  # an exception may have left it set
        held = self._held_by(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        upcoming = self._step.index + (self._step.updated and closure is not None)
        if self.schedule.measures_updates(upcoming):
            self._updates.begin(id(optimizer), held)
        if closure is None:
            self._read_gradients(optimizer, held)
            self.capture.seconds += time.perf_counter() - started
            return None
        self._in_closure_step = True
        if not self._step.updated:
            self._step.evaluations = 0

        def watched_closure() -> Any:
            result = closure()
            if self._step.evaluations == 0:
                self._read_gradients(optimizer, held)
            self._step.evaluations += 1
            self.capture.listening = False
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched_closure}
        return (args[0], watched_closure, *args[2:]), kwargs

    def _read_gradients(self, optimizer: Optimizer, held: list[tuple[int, Tensor]]) -> None:
        step = self._step
        if not step.num_backward:
            return
        if step.recorded:
            self.parameters.read(_with_gradient_or_trained(held), step.parameters)
        for place, group in enumerate(optimizer.param_groups):
            rate = group.get("lr")
            step.learning_rates[id(optimizer), place] = (
                scalar(rate) if isinstance(rate, Tensor) else rate
            )

    @_never_fails
    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._concerns(optimizer):
            return
        started = time.perf_counter()
        self._in_closure_step = False
        self._updates.finish(id(optimizer), self._step.parameters)
        if self._step.num_backward:
            self._step.updated = True
        self._await_next_step()
        self.capture.seconds += time.perf_counter() - started

    def _manual_update(self) -> None:
        """Without an optimizer each backward pass is a step; its update comes afterwards."""
        step, trainable = self._step, self.parameters.trainable()
        if step.recorded:
            self.parameters.read(trainable, step.parameters)
        if self.schedule.measures_updates(step.index):
            self._updates.begin(_BY_HAND, trainable)
        step.updated = True
        self._await_next_step()

    def _await_next_step(self) -> None:
        upcoming = self._step.index + 1
        self.capture.listening = self.schedule.records(upcoming)
        self.splits.prepare(upcoming)
        self.capture.note_watchers()

    @_never_fails
    def _before_clipping(self, gradients: Sequence[Tensor]) -> None:
        if self._step.recorded and self._step.num_backward and not self._step.updated:
            self._step.clipped = True
            self.parameters.note_before_clipping(gradients, self._step.parameters)

    # --- steps -------------------------------------------------------------------------------

    def _open(self, index: int) -> OpenStep:
        recorded = self.schedule.records(index)
        self.capture.listening = recorded
        return OpenStep(index, recorded)

    def _close_step(self) -> None:
        step = self._step
        if self._tables_changed or self.splits.tables_changed:
            self._tables_changed = self.splits.tables_changed = False
            self._on_tables()
        seconds = time.perf_counter() - step.started
        self._on_step(step.seal(self.schedule.columns, self._is_written, seconds))
        self.num_steps = step.index + 1
        self._hold_roots()
        self._step = self._open(step.index + 1)
        self._step.logged.update(self._next_logged)
        self._next_logged.clear()

    def _hold_roots(self) -> None:
        """Keep the models of the last step, so that their last weights can be saved."""
        roots = (self.layers.roots[n]() for n in sorted(self._roots_used) if self._may_hold[n])
        self._held = [root for root in roots if root is not None]
        self._roots_used.clear()

    def _is_written(self, number: int) -> bool:
        return self.schedule.selects(self.parameters.module_path(number))


def _with_gradient_or_trained(held: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    return [pair for pair in held if pair[1].requires_grad or pair[1].grad is not None]
