"""The updates of a training: when they are made, what the optimizer gets, how far weights move."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from analyzer.options import RecordOptions
from analyzer.recording.checkpoints import free_memory
from analyzer.recording.models import Models
from analyzer.recording.parameters import ParameterRow, norms
from analyzer.recording.step import scalar
from analyzer.recording.steps import Guard, Steps

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
        trained = [(number, p.detach()) for number, p in held if p.requires_grad]
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
                f"updates are not measured: a copy of the trained parameters takes "
                f"{needed / 2**20:.0f} MiB, more than a quarter of the free "
                f"{free / 2**20:.0f} MiB"
            )
        return not self._is_off

    def finish(self, key: int, rows: dict[int, ParameterRow]) -> None:
        """Measure ``‖θ_after − θ_before‖₂`` after that update, and free the copies."""
        if key not in self._before:
            return
        numbers, copies, parameters = self._before.pop(key)
        for copy, parameter in zip(copies, parameters, strict=True):
            copy.sub_(parameter.detach())
        for number, norm in zip(numbers, norms(copies), strict=True):
            if number in rows:
                rows[number].update_norm = norm

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
        self._adopts_optimizers = adopts_optimizers
        self._meter = UpdateMeter(on_problem)
        self._has_optimizer: bool | None = None
        self._turns: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()

    def watch(self, guard: Guard) -> list[Any]:
        """Hook every optimizer of this process; return what removes the hooks."""
        return [
            register_optimizer_step_pre_hook(guard(self._before)),
            register_optimizer_step_post_hook(guard(self._after)),
        ]

    def end_backward(self) -> None:
        """Without an optimizer each backward pass is a step; its update comes afterwards."""
        if self._has_optimizer is None:
            self._has_optimizer = any(
                issubclass(type(thing), Optimizer) and self._concerns(thing)
                for thing in gc.get_objects()
            )
        if self._has_optimizer:
            return
        step, trainable = self._steps.open, self._models.parameters.trainable()
        if step.recorded:
            self._models.parameters.read(trainable, step.parameters)
        if self._options.measures_updates(step.index):
            self._meter.begin(_BY_HAND, trainable)
        step.updated = True
        self._on_update()

    def end_step(self) -> None:
        """Measure an update by hand: it was made by now."""
        self._meter.finish(_BY_HAND, self._steps.open.parameters)

    def before_clipping(self, gradients: Sequence[Tensor]) -> None:
        """Note gradients that torch is about to clip."""
        step = self._steps.open
        if self._is_other_thread():
            return
        if step.recorded and step.num_backward and not step.updated:
            step.clipped = True
            self._models.parameters.note_before_clipping(gradients, step.parameters)

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

    def _measures(self, optimizer: Optimizer, step: int) -> bool:
        """Whether an update is measured: by schedule, or since other optimizers had that turn."""
        if not self._options.records(step):
            return False
        self._turns[optimizer] = turns = self._turns.get(optimizer, self._options.updates_every) + 1
        is_due = self._options.measures_updates(step) or turns > self._options.updates_every
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
        step = self._steps.open
        self._has_optimizer = True
        self._steps.in_closure = False  # an exception may have left it set
        held = self._held_by(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        upcoming = step.index + (step.updated and closure is not None)
        if self._measures(optimizer, upcoming):
            self._meter.begin(id(optimizer), held)
        if closure is None:
            self._read_gradients(optimizer, held)
            return None
        self._steps.in_closure = True
        if not step.updated:
            step.evaluations = 0

        def watched_closure() -> Any:
            result = closure()
            if self._steps.open.evaluations == 0:
                self._read_gradients(optimizer, held)
            self._steps.count_evaluation()
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": watched_closure}
        return (args[0], watched_closure, *args[2:]), kwargs

    def _read_gradients(self, optimizer: Optimizer, held: list[tuple[int, Tensor]]) -> None:
        step = self._steps.open
        if not step.num_backward:
            return
        if step.recorded:
            given = [pair for pair in held if pair[1].requires_grad or pair[1].grad is not None]
            self._models.parameters.read(given, step.parameters)
        for place, group in enumerate(optimizer.param_groups):
            rate = group.get("lr")
            step.learning_rates[id(optimizer), place] = (
                scalar(rate) if isinstance(rate, Tensor) else rate
            )

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._concerns(optimizer):
            return
        step = self._steps.open
        self._steps.in_closure = False
        self._meter.finish(id(optimizer), step.parameters)
        if step.num_backward:
            step.updated = True
        self._on_update()
