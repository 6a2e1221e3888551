"""One recorded training: who is told what when torch runs forward, backward, or updates."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor, autograd
from torch._C import _current_graph_task_id
from torch.nn.utils import clip_grad

from analyzer.options import RecordOptions
from analyzer.probes import Measurement
from analyzer.recording.hooks import Capture
from analyzer.recording.invocation import BackwardWatcher
from analyzer.recording.layers import Site
from analyzer.recording.micro_batches import MicroBatches, num_ranks
from analyzer.recording.models import Models
from analyzer.recording.plain import said
from analyzer.recording.probing import Probing
from analyzer.recording.splits import Splits
from analyzer.recording.step import OpenStep, scalar
from analyzer.recording.steps import Guard, Steps
from analyzer.recording.threads import TrainingThread
from analyzer.recording.updates import Updates

__all__ = ["Training"]

_Watcher = TypeVar("_Watcher")


class _Replaced(Generic[_Watcher]):
    """A function of torch that is replaced while somebody watches it: torch has no hook for it.

    torch looks it up by name when it runs, so that the replacement reaches every caller, however
    that one imported it.

    Args:
        module: Where torch looks it up.
        name: Its name there.
        run: Called in its place with itself, its watchers and its arguments.
    """

    def __init__(self, module: Any, name: str, run: Callable[..., Any]) -> None:
        self._module, self._name, self._run = module, name, run
        self._watchers: list[_Watcher] = []
        self._original: Any = None

    def watch(self, watcher: _Watcher) -> None:
        """Tell this watcher about every call from now on."""
        if not self._watchers:
            self._original = getattr(self._module, self._name)
            setattr(self._module, self._name, self._call)
        self._watchers.append(watcher)

    def unwatch(self, watcher: _Watcher) -> None:
        """Tell it nothing more."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
            if not self._watchers:
                setattr(self._module, self._name, self._original)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._original, list(self._watchers), *args, **kwargs)


def _run_backward(
    run: Any, watchers: list[BackwardWatcher], roots: Any, *args: Any, **kwargs: Any
) -> Any:
    is_backward = kwargs.get("accumulate_grad", False)
    if is_backward and _current_graph_task_id() != -1:  # inside another one: a part of it
        for watcher in watchers:
            watcher.begin_inner_backward(roots)
        return run(roots, *args, **kwargs)
    watchers = [watcher for watcher in watchers if watcher.follows(roots, is_backward=is_backward)]
    if not is_backward:
        states = [watcher.suspend() for watcher in watchers]
        try:
            return run(roots, *args, **kwargs)
        finally:
            for watcher, state in zip(watchers, states, strict=True):
                watcher.resume(state)
    keeps_graph = bool(args[1]) if len(args) > 1 else False
    for watcher in watchers:
        watcher.begin_backward(roots, keeps_graph=keeps_graph)
    failed = True
    try:
        result = run(roots, *args, **kwargs)
        failed = False
        return result
    finally:
        for watcher in watchers:
            watcher.end_backward(failed=failed)


# Both clip gradients just after they have grouped them, by a function that others use too.
_CLIPPERS = ("_clip_grads_with_norm_", "clip_grad_value_")


def _group_tensors(
    group: Any,
    watchers: list[Callable[[Sequence[Tensor]], None]],
    tensors: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if sys._getframe(2).f_code.co_name in _CLIPPERS:
        for watcher in watchers:
            watcher(tensors[0])
    return group(tensors, *args, **kwargs)


BACKWARD_PASSES: _Replaced[BackwardWatcher] = _Replaced(
    autograd, "_engine_run_backward", _run_backward
)
"""Backward passes, however they were started."""

CLIPPING: _Replaced[Callable[[Sequence[Tensor]], None]] = _Replaced(
    clip_grad, "_group_tensors_by_device_and_dtype", _group_tensors
)
"""Gradients that torch is about to clip; the watcher is called with them."""


class Training:
    """Opens and closes the steps of a training without its help.

    Forward passes begin and end in `Capture`, steps in `Steps`, updates in `Updates`; backward
    passes are passed on by `_Backward`.

    Args:
        options: What to record when.
        on_step: Receives each closed step as a function that makes its rows on another thread.
        on_tables: Called when the static tables changed.
        on_boundary: Called with the number of a step after its update, before the next forward
            pass: the moment at which weights are those of the end of that step.
        on_problem: Called with a sentence about something that cannot be recorded.
        probing: The probes that are measured between steps.
        adopts_optimizers: Whether tensors that only an optimizer holds are parameters, too.

    Attributes:
        failure: Why the recording ended before the training; None where it did not.
    """

    def __init__(
        self,
        options: RecordOptions,
        *,
        on_step: Callable[[Any], None],
        on_tables: Callable[[], None],
        on_boundary: Callable[[int], None],
        on_problem: Callable[[str], None],
        probing: Probing | None = None,
        adopts_optimizers: bool = False,
    ) -> None:
        self.failure: str | None = None
        self.probing = probing or Probing(
            (), lambda *_: None, on_batch=lambda _: None, on_problem=on_problem
        )
        self.splits = Splits(options, on_problem)
        wants_noise = any(plan.name == "noise" for plan in options.plans)
        self._micro_batches = MicroBatches() if wants_noise else None
        more = () if self._micro_batches is None else (self._micro_batches,)
        known: Callable[[Tensor], bool] = lambda x: self.models.parameters.has(x)  # noqa: E731
        is_ours = None if adopts_optimizers else known
        self.capture = Capture(
            lambda: self._begin_forward(),
            self._cannot_record,
            self.give_up,
            partial(TrainingThread, is_ours=is_ours, on_problem=on_problem),
            lambda site: options.selects(self.models.path(site)),
            (self.splits, self.probing, *more),
            lambda module: bool(self._meet_module(module)),
        )
        self.guard = Guard(self.capture, self.give_up)
        self.models = Models(
            options, self.capture, self.splits, on_tables=on_tables, on_problem=on_problem
        )
        self.steps = Steps(
            options,
            self.capture,
            on_boundary=self._pass_boundary,
            on_close=self._close_step,
        )
        self.updates = Updates(
            options,
            self.steps,
            self.models,
            on_update=self._await_next_step,
            on_problem=on_problem,
            is_other_thread=self.capture.trainer.is_other,
            adopts_optimizers=adopts_optimizers,
        )
        self._begin_forward = self.guard(self.steps.begin_forward)
        self._meet_module = self.guard(self.models.meet_module)
        self._backward = _Backward(self, self._micro_batches)
        self._before_clipping = self.guard(self.updates.before_clipping)
        self.probing.of_training = {"noise": self._training_noise}
        self._options = options
        self._on_step = on_step
        self._on_boundary = on_boundary
        self._on_problem = on_problem
        self._handles: list[Any] = []

    def start(self) -> None:
        """Hook the engine, the optimizers and gradient clipping of this process."""
        BACKWARD_PASSES.watch(self._backward)
        CLIPPING.watch(self._before_clipping)
        self._handles = self.updates.watch(self.guard)
        self.splits.prepare(0)
        self.capture.note_watchers()

    def finish(self, *, measures: bool = True) -> None:
        """Close the last step and leave nothing behind.

        Args:
            measures: Whether to measure the probes once more after the last step.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        BACKWARD_PASSES.unwatch(self._backward)
        CLIPPING.unwatch(self._before_clipping)
        if self.failure is not None:
            return
        started = time.perf_counter()
        self.steps.pass_boundary()
        if self.steps.open.num_backward:
            if measures:
                self._measure(is_last=True)
            self.steps.close()
        else:
            self.models.end()
        self._leave_nothing()
        self.capture.seconds += time.perf_counter() - started

    def _leave_nothing(self) -> None:
        self.capture.detach()
        self.splits.close()
        self.probing.close()
        if self._micro_batches is not None:
            self._micro_batches.close()

    def give_up(self, error: Exception) -> None:
        """Record nothing more after an error of the recorder itself; what is written stays."""
        self.failure = (
            f"recording ended in step {self.steps.open.index} by an error of the recorder "
            f"({type(error).__name__}: {error}); the training continued"
        )
        self.guard.is_off = True
        self._on_problem(self.failure)
        self._leave_nothing()
        self.updates.close()

    @property
    def has_trained(self) -> bool:
        """Whether a backward pass was seen."""
        return self.steps.open.index > 0 or self.steps.open.num_backward > 0

    def log(self, values: dict[str, Any]) -> None:
        """Add extra columns to the current step."""
        self.steps.log(
            {
                key: scalar(value) if isinstance(value, Tensor) else value
                for key, value in values.items()
            }
        )

    def _pass_boundary(self, step: OpenStep) -> None:
        self.updates.end_step()
        self._on_boundary(step.index)
        if self._micro_batches is not None:
            self._micro_batches.end_step(step.index, step.num_backward, is_whole=step.updated)
        self._measure()

    def _close_step(self, step: OpenStep) -> None:
        self.models.end_step(step.parameters)
        seconds = time.perf_counter() - step.started
        is_choosy = self._options.layers or self._options.skip_layers
        is_written = self._is_written if is_choosy else None
        self._on_step(step.seal(self._options.columns, is_written, seconds))

    def _is_written(self, parameter: int) -> bool:
        return self._options.selects(self.models.parameters.module_path(parameter))

    def _measure(self, *, is_last: bool = False) -> None:
        """Measure the probes that are due; the recording sees nothing of what they do."""
        step, capture = self.steps.open, self.capture
        if not self.probing.is_due(step.index, is_last=is_last):
            return
        started, listening = time.perf_counter(), capture.listening
        capture.listening, self.guard.is_off = False, True
        try:
            with self.splits.paused():
                self.probing.measure(step.index, is_last=is_last)
        finally:
            capture.listening, self.guard.is_off = listening, self.failure is not None
        # The seconds of a step are the training's, and those of probes are counted apart.
        seconds = time.perf_counter() - started
        step.started += seconds
        capture.seconds -= seconds

    def _training_noise(self) -> Measurement | None:
        """The gradient noise of the training's own micro-batches, where it has any."""
        if self._micro_batches is None:
            return None
        return self._micro_batches.measurement(self.models.parameters.owners(self.models.layers))

    def _await_next_step(self) -> None:
        upcoming = self.steps.open.index + 1
        self.capture.listening = self._options.records(upcoming)
        self.splits.prepare(upcoming)
        self.capture.note_watchers()

    def _cannot_record(self, site: Site, error: Exception) -> None:
        self._on_problem(f"layer {self.models.path(site)}: {said(error)}")


class _Backward:
    """Passes a backward pass on: to the losses, the hooks, the joins and the parameters.

    Args:
        training: Who is to know of it.
        micro_batches: Compares the gradients of single passes, where that is wanted.
    """

    def __init__(self, training: Training, micro_batches: MicroBatches | None) -> None:
        self._training = training
        self._micro_batches = micro_batches
        self._num_losses = 0
        self.follows = training.capture.trainer.follows
        self.begin_backward = training.guard(self._begin)
        self.begin_inner_backward = training.guard(training.capture.begin_inner_backward)
        self.end_backward = training.guard(self._end)

    def _begin(self, roots: Sequence[Any], *, keeps_graph: bool) -> None:
        """The first pass after an update opens a step."""
        training, capture = self._training, self._training.capture
        training.steps.begin_backward()
        if training.steps.is_repeated:
            return
        step = training.steps.open
        self._num_losses = len(step.losses)
        step.add_loss(roots)
        if capture.listening:
            capture.begin_backward(roots, keeps_graph=keeps_graph)
        training.probing.begin_backward(step.index, roots)
        training.splits.begin_backward(step.index, step.splits, roots, keeps_graph=keeps_graph)
        if self._micro_batches is not None and step.recorded:
            models = training.models
            self._micro_batches.begin_pass(
                models.parameters.trainable(), num_ranks(models.layers.roots)
            )
        capture.note_watchers()

    def _end(self, *, failed: bool) -> None:
        """A pass that failed leaves no trace in its step."""
        training, capture = self._training, self._training.capture
        step, keeps_graph = training.steps.open, capture.keeps_graph
        if training.steps.is_repeated:
            step.num_backward += not failed
            return
        used = capture.end_backward()
        training.splits.end_backward(step.index, step.splits, failed=failed)
        if self._micro_batches is not None:
            self._micro_batches.end_pass(training.models.parameters.trainable(), failed=failed)
        capture.note_watchers()
        if failed:
            del step.losses[self._num_losses :]
            return
        training.steps.end_backward()
        for invocation in used:
            if not step.keeps(invocation):
                training.models.number(invocation)
                (step.keep if keeps_graph else step.fold)(invocation)
        training.models.end_backward()
        training.updates.end_backward()

    def suspend(self) -> bool:
        """Gradients of ``autograd.grad`` are not those of the loss."""
        capture = self._training.capture
        state, capture.in_backward = capture.in_backward, False
        if state:
            capture.current = None  # what was computed again gets its gradient this way
        return state

    def resume(self, state: bool) -> None:
        """That ``autograd.grad`` has ended."""
        self._training.capture.in_backward = state
