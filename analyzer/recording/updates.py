"""The updates of a training: when they are made, what the optimizer gets, how far weights move."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from analyzer.options import RecordOptions
from analyzer.recording.checkpoints import free_memory
from analyzer.recording.fate import Fates, version_of
from analyzer.recording.models import Models
from analyzer.recording.parameters import norms
from analyzer.recording.part import ParameterRows, loss_of
from analyzer.recording.plain import memory_of
from analyzer.recording.scaling import Scale, scalar, scale_of
from analyzer.recording.step import OpenStep
from analyzer.recording.steps import Guard, Steps
from analyzer.recording.watched import is_stepping

__all__ = ["UpdateMeter", "Updates"]

# Key of an update that no optimizer makes; ids of objects are never negative.
_BY_HAND = -1
# A copy of the trained parameters may take at most this part of the free memory.
_LARGEST_SHARE = 0.25

Held = Sequence[tuple[int, Tensor]]


class UpdateMeter:
    """Copies weights before an update and measures the difference after it.

    Args:
        on_problem: Called once, with the reason, when there is no memory for a copy.
    """

    def __init__(self, on_problem: Callable[[str], None]) -> None:
        self._on_problem = on_problem
        self._is_off = False
        self._before: dict[int, tuple[list[int], list[Tensor], list[Tensor]]] = {}

    def begin(self, key: int, held: Held) -> None:
        """Copy the parameters that an update is about to move; ``key`` names the update."""
        found = ((number, memory_of(p)) for number, p in held if p.requires_grad)
        trained = [(number, x) for number, x in found if x is not None]
        if not trained or self._is_off or not self._fits([p for _, p in trained]):
            return
        copies = [parameter.clone() for _, parameter in trained]
        self._before[key] = ([n for n, _ in trained], copies, [p for _, p in trained])

    def _fits(self, parameters: Sequence[Tensor]) -> bool:
        device = parameters[0].device
        needed = sum(p.numel() * p.element_size() for p in parameters if p.device == device)
        free = free_memory(device)
        if free is not None and needed > _LARGEST_SHARE * free:
            self._is_off = True
            self._on_problem(
                f"updates are not measured: a copy of the weights takes {needed / 2**20:.0f} MiB, "
                f"more than a quarter of the free {free / 2**20:.0f} MiB"
            )
        return not self._is_off

    def finish(self, key: int, rows: ParameterRows) -> None:
        """Measure ``‖θ_after − θ_before‖₂`` after that update, and free the copies."""
        if key not in self._before:
            return
        numbers, copies, parameters = self._before.pop(key)
        for copy, parameter in zip(copies, parameters, strict=True):
            copy.sub_(parameter)
        for number, norm in zip(numbers, norms(copies), strict=True):
            if number in rows:
                rows.update_norm[number] = norm

    def clear(self) -> None:
        """Free every copy."""
        self._before.clear()


class Updates:
    """The updates of the weights: by optimizers, with or without a closure, or by hand.

    Args:
        options: When updates are measured.
        steps: The step that is open.
        models: The parameters.
        on_update: Called after an update: what follows belongs to the next step.
        on_problem: Called with a sentence about what cannot be measured.
        is_other_thread: Whether what this thread does is not recorded.
        adopts_optimizers: Whether tensors that only an optimizer holds are parameters, too.

    Attributes:
        fates: What becomes of the gradients of each pass.
    """

    def __init__(
        self,
        options: RecordOptions,
        steps: Steps,
        models: Models,
        *,
        on_update: Callable[[], None],
        on_problem: Callable[[str], None],
        is_other_thread: Callable[[], bool],
        adopts_optimizers: bool,
    ) -> None:
        self._options = options
        self._is_other_thread = is_other_thread
        self._steps = steps
        self._models = models
        self._on_update = on_update
        self._on_problem = on_problem
        self._adopts_optimizers = adopts_optimizers
        self._meter = UpdateMeter(on_problem)
        self.fates = Fates(
            steps,
            models,
            on_update=on_update,
            measure=self._begin_by_hand,
            stop_after=options.stop_after,
        )
        self._in_pass = False
        # Losses whose gradients `autograd.grad` returned since the last pass or update.
        self._returned: list[tuple[float | Tensor, Scale | None] | None] = []
        self._has_said = False
        self._received: dict[int, tuple[int, int]] = {}
        self._unscaled: dict[int, set[int]] = {}
        self._scaler_steps: int | None = None
        self._turns: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        # The outermost optimizer whose step has begun.
        self._stepping: weakref.ref[Optimizer] | None = None
        self._turns_before: Mapping[int, int] = {}

    def continue_after(self, turns: Mapping[int, int]) -> None:
        """Measure updates as if those before had been seen: ``turns`` by parameter."""
        self._turns_before, self._turns = turns, weakref.WeakKeyDictionary()

    def watch(self, guard: Guard) -> list[Any]:
        """Hook every optimizer of this process; return what removes the hooks."""
        return [
            register_optimizer_step_pre_hook(guard(self._before)),
            register_optimizer_step_post_hook(guard(self._after)),
        ]

    # --- passes ------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """A pass begins: an optimizer may step inside of it."""
        self._in_pass = True
        self._returned = []
        if not self._steps.open.parts:
            self._unscaled.clear()

    def end_pass(self) -> None:
        """It has ended: if optimizers stepped, they received what it gave."""
        self._in_pass = False
        step = self._steps.open
        if step.has_begun_update:
            step.has_begun_update = False
            self._finish_update(step)

    def note_returned(self, roots: Sequence[Any], inputs: Sequence[Any]) -> None:
        """Gradients of these roots are returned to the program, which may hand them on."""
        number = self._models.parameters.number
        if not self._in_pass and any(number(tensor) is not None for tensor in inputs):
            self._returned += [loss_of(root, scale_of([root])) for root in roots]

    # --- updates by hand ---------------------------------------------------------------------

    def _begin_by_hand(self, held: Held) -> None:
        """An update by hand may follow the pass that has ended."""
        if self._options.measures_updates(self._steps.open.index):
            self._meter.begin(_BY_HAND, held)

    def end_step(self) -> None:
        """Measure an update by hand: it was made by now."""
        step = self._steps.open
        self.fates.adopt(step)
        self._meter.finish(_BY_HAND, step.parameters)

    # --- clipping ----------------------------------------------------------------------------

    def before_clipping(self, gradients: Sequence[Tensor]) -> None:
        """Note gradients that torch is about to clip."""
        step = self._steps.open
        if self._is_other_thread():
            return
        if step.recorded and step.parts and not step.updated:
            step.clipped = True
            noted = self._models.parameters.note_before_clipping(gradients, step.parameters)
            if step.scale is not None:
                for number in set(noted).difference(*self._unscaled.values()):
                    step.parameters.scale_before_clipping[number] = step.scale

    def after_clipping(self, gradients: Sequence[Tensor]) -> None:
        """Read them again where an update by hand may receive them."""
        step = self._steps.open
        if self._is_other_thread():
            return
        if step.recorded and step.parts and not step.updated and step.parts[-1].parameters:
            rows, parameters = step.parts[-1].parameters, self._models.parameters
            clipped = {id(gradient) for gradient in gradients}
            held = [pair for pair in parameters.alive(rows.norm) if id(pair[1].grad) in clipped]
            rows.norm.update((number, None) for number, _ in held)
            parameters.read(held, rows)

    # --- gradient scalers --------------------------------------------------------------------

    def unscaled(self, optimizer: Optimizer) -> None:
        """The gradients of this optimizer have been divided by the scale."""
        self._unscaled[id(optimizer)] = {number for number, _ in self._held_by(optimizer)}

    def begin_scaler_step(self, optimizer: Optimizer) -> None:
        """A scaler is about to step this optimizer, or to skip it."""
        self._scaler_steps = id(optimizer)

    def end_scaler_step(self, optimizer: Optimizer) -> None:
        """It has; if the optimizer's hooks were not called, it was skipped."""
        was_skipped, self._scaler_steps = self._scaler_steps == id(optimizer), None
        if was_skipped and self._concerns(optimizer):
            self._receive(optimizer, self._held_by(optimizer))
            step = self._steps.open
            step.skipped.append(1.0)
            self._finish_update(step)

    # --- optimizers --------------------------------------------------------------------------

    def close(self) -> None:
        """Free every copy of weights."""
        self._meter.clear()

    def _concerns(self, optimizer: Optimizer) -> bool:
        if self._is_other_thread():
            return False
        return self._adopts_optimizers or any(
            self._models.parameters.number(p) is not None
            for group in getattr(optimizer, "param_groups", ())
            for p in group["params"]
        )

    def _measures(self, optimizer: Optimizer, held: Held, step: int) -> bool:
        """Whether an update is measured: by schedule, or since other optimizers had that turn."""
        if not self._options.records(step):
            return False
        most, before = self._options.updates_every, self._turns_before
        if optimizer not in self._turns:
            self._turns[optimizer] = next((before[n] for n, _ in held if n in before), most)
        self._turns[optimizer] = turns = self._turns[optimizer] + 1
        is_due = self._options.measures_updates(step) or turns > most
        if is_due:
            self._turns[optimizer] = 0
        return is_due

    def _held_by(self, optimizer: Optimizer) -> list[tuple[int, Tensor]]:
        parameters, held = self._models.parameters, list[tuple[int, Tensor]]()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                number = parameters.number(parameter)
                if number is not None:
                    held.append((number, parameter))
        new = {number for number, _ in held} - parameters.optimized
        if new:
            parameters.optimized |= new
            self._models.tables_changed = True
        return held

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self._models.meet_optimizer(optimizer, adopts=self._adopts_optimizers)
        if not self._concerns(optimizer):
            return None
        if self._scaler_steps == id(optimizer):
            self._scaler_steps = None
        self.end_broken()
        if self._stepping is None or self._stepping() is None:
            self._stepping = weakref.ref(optimizer)
        self._steps.in_closure = False  # an exception may have left it set
        held = self._held_by(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._open_for_returned(optimizer)
        else:
            self._steps.find_place(None)  # its update begins before its backward pass
        step = self._steps.open
        upcoming = step.index + (step.updated and closure is not None)
        if self._steps.locate is None and self._measures(optimizer, held, upcoming):
            self._meter.begin(id(optimizer), held)
        if closure is None:
            self._receive(optimizer, held)
            return None
        self.fates.before_update(held)
        self._steps.in_closure = True
        if not step.updated:
            step.evaluations = 0

        def watched_closure() -> Any:
            result = closure()
            if self._steps.open.evaluations == 0:
                self._receive(optimizer, held)
            self._steps.count_evaluation()
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched_closure}
        return (args[0], watched_closure, *args[2:]), kwargs

    def end_broken(self) -> None:
        """An optimizer whose step ended by an exception has attempted an update all the same."""
        optimizer = None if self._stepping is None else self._stepping()
        if optimizer is None or is_stepping(optimizer):
            return
        self._stepping = None
        self._steps.in_closure = False
        step = self._steps.open
        self._meter.finish(id(optimizer), step.parameters)
        if step.parts and not step.updated:
            self._finish_update(step)

    def _open_for_returned(self, optimizer: Optimizer) -> None:
        """Gradients that no backward pass gave make a step of their own."""
        step, mark = self._steps.open, _mark_of(optimizer)
        if self._in_pass or mark is None or (step.parts and not step.updated):
            return
        is_first = step.is_empty and not step.num_backward
        has_stepped = any(key == id(optimizer) for key, _ in step.learning_rates)
        is_other = bool(self._returned) or self._received.get(id(optimizer)) != mark
        if is_first or (has_stepped and is_other):
            self._steps.begin_backward()
            step = self._steps.open
            if not self._has_said:
                self._has_said = True
                self._on_problem(
                    f"layers from step {step.index} on: gradients did not come from backward() but "
                    "from autograd.grad, torch.func or the program, which shows none of layers"
                )
        if not step.parts:
            step.losses += self._returned
        self._returned = []

    def _receive(self, optimizer: Optimizer, held: Held) -> None:
        """Read what an optimizer receives."""
        step = self._steps.open
        self.fates.before_update(held)
        if self._in_pass:
            step.has_begun_update = True
        elif not (step.parts or step.num_backward or _mark_of(optimizer)):
            return
        scale = getattr(optimizer, "grad_scale", None)
        if isinstance(scale, Tensor):
            scale = scalar(scale)
            step.scale = scale if step.scale is None else step.scale
        elif id(optimizer) not in self._unscaled:
            scale = step.scale
        if step.recorded:
            given = [pair for pair in held if pair[1].requires_grad or pair[1].grad is not None]
            new = () if scale is None else [n for n, _ in given if not step.has_read(n)]
            self._models.parameters.read(given, step.parameters)
            for number in new:
                step.parameters.scale[number] = scale
        found = getattr(optimizer, "found_inf", None)
        if isinstance(found, Tensor):
            step.skipped.append(scalar(found))
        for place, group in enumerate(optimizer.param_groups):
            rate = group.get("lr")
            step.learning_rates[id(optimizer), place] = (
                scalar(rate) if isinstance(rate, Tensor) else rate
            )

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._concerns(optimizer):
            return
        step = self._steps.open
        if self._stepping is not None and self._stepping() is optimizer:
            self._stepping = None
        self._steps.in_closure = False
        self._meter.finish(id(optimizer), step.parameters)
        if not self._in_pass:
            self._finish_update(step)
        mark = _mark_of(optimizer)
        if mark is not None:
            self._received[id(optimizer)] = mark

    def _finish_update(self, step: OpenStep) -> None:
        if step.parts or step.num_backward or step.learning_rates:
            step.updated = True
        self._on_update()


def _mark_of(optimizer: Optimizer) -> tuple[int, int] | None:
    """Which gradient the first parameter has that has one."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (gradient := parameter.grad) is not None:
                return id(gradient), version_of(gradient)
    return None
