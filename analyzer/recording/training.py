"""One recorded training: who is told what when torch runs forward, backward, or updates."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from analyzer.options import RecordOptions
from analyzer.probes import Measurement
from analyzer.recording.checkpoints import FirstWeights
from analyzer.recording.compiled import InnerLayers
from analyzer.recording.conditions import Conditions
from analyzer.recording.fate import marks_of
from analyzer.recording.hooks import Capture
from analyzer.recording.invocation import Invocation
from analyzer.recording.micro_batches import MicroBatches, num_ranks
from analyzer.recording.models import Models
from analyzer.recording.part import Part
from analyzer.recording.plain import said
from analyzer.recording.probing import Probing
from analyzer.recording.scaling import (
    num_scaler_kinds,
    scalar,
    scale_of,
    unscaled,
    unwatch_scalers,
    watch_scalers,
)
from analyzer.recording.splits import Splits
from analyzer.recording.step import OpenStep
from analyzer.recording.steps import Guard, Steps
from analyzer.recording.threads import TrainingThread, reaches
from analyzer.recording.tracing import unwatch_compiled, watch_compiled
from analyzer.recording.updates import Updates
from analyzer.recording.watched import BACKWARD_PASSES, CLIPPING, REFERENCES, GuardedUpdates

__all__ = ["Training"]


class Training:
    """Opens and closes the steps of a training without its help.

    Forward passes begin and end in `Capture`, steps in `Steps`, updates in `Updates`; backward
    passes are passed on by `_Backward`.

    Args:
        options: What to record when.
        on_step: Receives each closed step as a function that makes its rows on another thread.
        on_tables: Called when the static tables changed.
        on_boundary: Called with a step after its update, before the next forward pass; the first
            time with the weights before that update, else with None.
        on_problem: Called with a sentence about something that cannot be recorded.
        probing: The probes that are measured between steps.
        adopts_optimizers: Whether tensors that only an optimizer holds are parameters, too.

    Attributes:
        conditions: Under which conditions it runs.
        failure: Why the recording ended before the training; None where it did not.
    """

    def __init__(
        self,
        options: RecordOptions,
        *,
        on_step: Callable[[Any], None],
        on_tables: Callable[[], None],
        on_boundary: Callable[[int, FirstWeights | None], None],
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
        self.conditions = Conditions(
            options, lambda: self.models, lambda: self.capture.trainer.is_other()
        )
        self.capture = Capture(
            lambda: self._begin_forward(),
            lambda site, error: on_problem(f"layer {self.models.path(site)}: {said(error)}"),
            self.give_up,
            partial(TrainingThread, is_ours=is_ours, on_problem=on_problem),
            lambda site: options.selects(self.models.path(site)),
            (self.splits, self.probing, self.conditions, *more),
            lambda module: bool(self._meet_module(module)),
        )
        self.splits.gate = self.capture
        self.inner = InnerLayers(self.capture, self.splits.hide, on_problem)
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
            on_update=self.await_next_step,
            on_problem=on_problem,
            is_other_thread=self.capture.trainer.is_other,
            adopts_optimizers=adopts_optimizers,
        )
        self.steps.look_for_update = self._look
        self.steps.on_first_pass = lambda: self.probing.first.take(self.models.alive())
        self._num_scaler_kinds = num_scaler_kinds()
        self._begin_forward = self.guard(self.steps.begin_forward)
        self._meet_module = self.guard(self.models.meet_module)
        self._backward = _Backward(self, self._micro_batches, owns_all=adopts_optimizers)
        self._watcher = GuardedUpdates(self.guard, self.updates)
        self.probing.of_training = {"noise": self._training_noise}
        self.probing.optimizers = self.models.stepping
        self.options = options
        self._on_step, self._on_boundary, self._on_problem = on_step, on_boundary, on_problem
        self._handles: list[Any] = []

    def start(self) -> None:
        """Hook the engine, the optimizers and gradient clipping of this process."""
        BACKWARD_PASSES.watch(self._backward)
        CLIPPING.watch(self._watcher)
        REFERENCES.watch(self)
        watch_scalers(self._watcher)
        watch_compiled(self.inner)
        self._handles = [*self.updates.watch(self.guard), *self.conditions.watch(self.guard)]
        self.splits.prepare(0)
        self.capture.note_watchers()

    def resume(self, run: Any, warn: Callable[[str], object]) -> None:
        """Continue a run, a `Resumed`, which finds the number of the first step."""
        self.steps.locate = partial(run.begin, self, warn)
        self.steps.locate_again = partial(run.settle, self)
        self.splits.wait_for_turn()

    def finish(self, *, measures: bool = True) -> None:
        """Close the last step and leave nothing behind.

        Args:
            measures: Whether to measure the probes once more after the last step.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        BACKWARD_PASSES.unwatch(self._backward)
        CLIPPING.unwatch(self._watcher)
        REFERENCES.unwatch(self)
        unwatch_scalers(self._watcher)
        if self.failure is not None:
            return
        started = time.perf_counter()
        self.updates.fates.finish()
        self.models.note_names()
        self.steps.pass_boundary()
        if not self.steps.open.is_empty:
            if measures:
                self._measure(self.steps.open.index + 1, is_last=True)
            self.steps.close()
        else:
            self.models.end()
        self._leave_nothing()
        self.capture.seconds += time.perf_counter() - started

    def _leave_nothing(self) -> None:
        self.capture.detach()
        unwatch_compiled(self.inner)
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
        """Whether a backward pass or an update was seen."""
        step = self.steps.open
        return step.index > 0 or step.num_backward > 0 or step.updated

    @property
    def counts(self) -> dict[str, int]:
        """How many steps, layers and parameters there are."""
        sizes = {"layers": len(self.models.layers), "parameters": len(self.models.parameters)}
        return {"steps": self.steps.count, **sizes}

    def log(self, values: dict[str, Any]) -> None:
        """Add extra columns to the current step."""
        plain = {k: scalar(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        self.steps.log(plain)

    def _look(self) -> None:
        """A forward pass begins: find an update by hand, and scalers of the program's own."""
        if num_scaler_kinds() != self._num_scaler_kinds:
            self._num_scaler_kinds = num_scaler_kinds()
            watch_scalers(self._watcher)
        self.updates.end_broken()
        self.updates.fates.begin_forward()

    def _pass_boundary(self, step: OpenStep) -> None:
        self.updates.end_step()
        first = self.probing.first
        self._on_boundary(step.index, first if first.is_taken else None)
        if self._micro_batches is not None:
            self._micro_batches.end_step(
                step.index, step.num_backward, is_whole=step.updated, scale=step.scale
            )
        if first.is_taken:
            self._measure(step.index, rates=step.learning_rates)
            first.clear()
        self._measure(step.index + 1)

    def _close_step(self, step: OpenStep) -> None:
        self.models.end_step(step.parameters)
        self.updates.fates.end_step(step)
        seconds = (step.ended or time.perf_counter()) - step.started
        is_choosy = self.options.layers or self.options.skip_layers
        of_parameter = self.models.parameters.module_path
        is_written = (lambda n: self.options.selects(of_parameter(n))) if is_choosy else None
        weights = self.models.parameters.weights
        self._on_step(step.seal(self.options.columns, is_written, seconds, weights))

    def _measure(self, number: int, *, rates: Any = None, is_last: bool = False) -> None:
        """Measure the probes that are due; the recording sees nothing of what they do."""
        step, capture = self.steps.open, self.capture
        if not self.probing.is_due(number, is_last=is_last):
            return
        started, listening = time.perf_counter(), capture.listening
        capture.listening, self.guard.is_off = False, True
        try:
            with self.splits.paused():
                self.probing.measure(number, rates=rates, is_last=is_last)
        finally:
            capture.listening, self.guard.is_off = listening, self.failure is not None
        seconds = time.perf_counter() - started  # counted apart from the training's
        step.started += seconds
        capture.seconds -= seconds

    def _training_noise(self) -> Measurement | None:
        """The gradient noise of the training's own micro-batches, where it has any."""
        owners, found = self.models.parameters.owners, self._micro_batches
        return None if found is None else found.measurement(owners(self.models.layers))

    def await_next_step(self) -> None:
        """What follows the update belongs to the next step."""
        upcoming = self.steps.open.index + 1
        self.capture.listening = self.options.records(upcoming)
        self.splits.prepare(upcoming)
        self.capture.note_watchers()


class _Backward:
    """Passes a backward pass on: to the losses, the hooks, the joins and the parameters.

    Args:
        training: Who is to know of it.
        micro_batches: Compares the gradients of single passes, where that is wanted.
        owns_all: Whether every pass is this training's, whatever it starts from.
    """

    def __init__(
        self, training: Training, micro_batches: MicroBatches | None, *, owns_all: bool
    ) -> None:
        self._training = training
        self._micro_batches = micro_batches
        self._owns_all = owns_all
        self._passed: Part | None = None
        self._is_certain = True
        self._marks: dict[int, int] = {}
        self._is_repeated = False
        self.follows = training.capture.trainer.follows
        self.begin_backward = training.guard(self._begin)
        self.begin_inner_backward = training.guard(training.capture.begin_inner_backward)
        self.end_backward = training.guard(self._end)
        self._note_returned = training.guard(training.updates.note_returned)

    def _begin(self, roots: Sequence[Any], *, keeps_graph: bool) -> None:
        """The first pass after an update opens a step."""
        training, capture = self._training, self._training.capture
        self._passed = None
        self._is_certain = self._owns_all or reaches(roots, training.models.parameters.has)
        if not self._is_certain:
            if not (capture.alive or training.steps.forward_began):
                return  # of another model
            self._marks = marks_of(training.models.parameters.trainable())
        training.updates.end_broken()
        if not training.steps.is_repeated:
            training.updates.fates.begin_backward()
        training.steps.begin_backward(roots)
        step = training.steps.open
        self._is_repeated = training.steps.is_repeated
        self._passed = passed = Part()
        training.updates.begin_pass()
        if self._is_repeated:
            return
        training.updates.fates.begin_pass()
        scale = scale_of(roots)
        step.scale = scale if step.scale is None else step.scale
        passed.scale = scale
        passed.add_loss(roots, scale)
        # A second pass over a kept graph adds to the gradients of the first.
        passed.splits = next((p.splits for p in step.parts if p.splits.kept), passed.splits)
        if capture.listening:
            capture.begin_backward(roots, keeps_graph=keeps_graph)
        losses = roots if scale is None else unscaled(roots)
        training.conditions.begin_pass(step.index, losses)
        training.probing.begin_backward(step.index, losses)
        training.splits.begin_backward(
            step.index,
            passed.splits,
            roots,
            list(capture.alive),
            keeps_graph=keeps_graph,
            scale=scale,
        )
        if self._micro_batches is not None and step.recorded:
            models = training.models
            self._micro_batches.begin_pass(
                models.parameters.trainable(), num_ranks(models.layers.roots)
            )
        capture.note_watchers()

    def _end(self, *, failed: bool) -> None:
        """A pass that failed leaves no trace in its step."""
        passed, self._passed = self._passed, None
        if passed is None:
            return
        training, capture = self._training, self._training.capture
        step, keeps_graph = training.steps.open, capture.keeps_graph
        if self._is_repeated:
            step.num_backward += not failed
            training.updates.end_pass()
            return
        used = capture.end_backward()
        training.splits.end_backward(step.index, passed.splits, failed=failed)
        if self._micro_batches is not None:
            self._micro_batches.end_pass(training.models.parameters.trainable(), failed=failed)
        training.conditions.end_pass()
        capture.note_watchers()
        if not failed and (used or self._is_own()):
            passed.num_backward = 1
            self._take(passed, used, keeps_graph=keeps_graph)
        training.updates.end_pass()

    def _is_own(self) -> bool:
        """Whether the pass may have given something to a parameter."""
        training = self._training
        if self._is_certain or not training.capture.listening:
            return True
        return marks_of(training.models.parameters.trainable()) != self._marks

    def _take(self, passed: Part, used: Sequence[Invocation], *, keeps_graph: bool) -> None:
        """A pass has ended well: what it gave belongs to the open step."""
        training = self._training
        part = training.updates.fates.end_pass(used, passed)
        training.steps.end_backward()
        for invocation in used:
            if not part.keeps(invocation):
                training.models.number(invocation)
                take = part.keep if keeps_graph else part.fold
                take(invocation, passed.scale)
        training.models.end_backward()
        training.updates.fates.close_pass()

    def suspend(self, roots: Sequence[Any], inputs: Sequence[Any]) -> bool:
        """Gradients of ``autograd.grad`` are not those of the loss."""
        capture = self._training.capture
        state, capture.in_backward = capture.in_backward, False
        if state:
            capture.current = None  # what was computed again gets its gradient this way
        self._note_returned(roots, inputs)
        return state

    def resume(self, state: bool) -> None:
        """That ``autograd.grad`` has ended."""
        self._training.capture.in_backward = state
