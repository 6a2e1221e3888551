"""What becomes of the gradients that a backward pass gave: an update receives them, or none does.

An optimizer says so by its hooks. Without one only the weights tell, and the gradients: weights
that changed by themselves were updated by hand, and gradients that were cleared before are those of
a pass that was discarded. Weights that an optimizer steps may change without it, too (SAM climbs to
a worse place before it steps), so that those of no optimizer alone count.
"""

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from analyzer.recording.invocation import Invocation
from analyzer.recording.models import Models
from analyzer.recording.parameters import norms
from analyzer.recording.part import ParameterRows, Part
from analyzer.recording.ranks import keeps_gradients
from analyzer.recording.step import OpenStep
from analyzer.recording.steps import Steps

__all__ = ["Fates", "marks_of", "version_of"]

Held: TypeAlias = Sequence[tuple[int, Tensor]]

# Passes that are kept apart as long as no update was seen: without one each of them is a step.
_MOST_APART = 32
# Passes after which a parameter that no update has touched is not read any more.
_MOST_TRIES = 4
# Weights of which the values are compared, where nothing else would show an update.
_MOST_COMPARED = 8
# Changes of weights before a step of the optimizer that holds them; it has no part in more.
_MOST_CLIMBS = 4
# How often optimizers are looked for.
_MOST_SEARCHES = 4


class Fates:
    """Decides which passes of the open step an update receives, and finds updates by hand.

    Args:
        steps: The step that is open.
        models: The parameters.
        on_update: Called after an update by hand.
        measure: Called with parameters that an update by hand may be about to move.
        stop_after: The steps that the training is to have; None for no limit.
    """

    def __init__(
        self,
        steps: Steps,
        models: Models,
        *,
        on_update: Callable[[], None],
        measure: Callable[[Held], None],
        stop_after: int | None,
    ) -> None:
        self._steps, self._models = steps, models
        self._on_update, self._measure = on_update, measure
        self._patience = min(_MOST_APART, stop_after or _MOST_APART)
        self._has_seen_update = self._never_updates = False
        self._stepped: set[int] = set()
        self._by_hand: set[int] = set()
        self._free: tuple[int, list[int]] = (0, [])
        # Weights that change through ``.data``, which counts no version.
        self._hides_updates = False
        self._awaited: set[int] = set()
        self._num_searches = 0
        self._tries: dict[int, int] = {}
        self._is_careful = True
        self._before: dict[int, int] = {}
        self._marks: dict[int, int] = {}
        self._weights: dict[int, tuple[Tensor, int, int]] = {}
        self._values: list[tuple[int, float | Tensor | None]] = []

    # --- events ------------------------------------------------------------------------------

    def begin_forward(self) -> None:
        """A forward pass begins: weights may have been updated by hand before it."""
        step = self._steps.open
        if self._weights and step.parts:
            self._look_at_weights(step)

    def begin_backward(self) -> None:
        """A pass begins: find out what became of the earlier ones of the open step."""
        step = self._steps.open
        if step.parts and not step.updated:
            self._find_cleared(step)
        if self._weights and step.parts:
            self._look_at_weights(step)
        if not step.parts or step.updated:
            return
        if self._has_seen_update:
            self._discard_cleared(step)
        elif self._num_climbs(step) >= max(2, min(_MOST_CLIMBS, self._patience)):
            self._by_hand |= {n for part in step.parts for n in part.given or ()}
            self._release(step)
        elif len(step.parts) >= self._patience:
            self._end_waiting(step)

    def begin_pass(self) -> None:
        """A pass of the open step begins, after what became of the earlier ones is known."""
        if self._is_careful and not (self._steps.open.parts and self._before):
            self._before = marks_of(self._models.parameters.trainable())

    def end_pass(self, used: Sequence[Invocation], passed: Part) -> Part:
        """A pass has ended; return the part of the step that it belongs to.

        Args:
            used: The forward passes whose graphs it met.
            passed: What it gave so far.
        """
        step = self._steps.open
        passed.roots = {call.site.root for invocation in used for call in invocation.calls[:1]}
        if self._is_careful:
            self._marks = marks_of(self._models.parameters.trainable())
            changed = (n for n, mark in self._marks.items() if self._before.get(n) != mark)
            passed.given = frozenset(changed)
        if not passed.given:
            refs = self._models.layers.roots
            passed.is_kept = any(keeps_gradients(refs[number]()) for number in passed.roots)
        for kept in () if passed.is_kept else step.parts:
            if kept.is_kept and kept.roots & passed.roots:  # they are where its own are by now
                kept.is_kept, kept.given = False, passed.given
        part = self._part_of(step, used, passed)
        num_parameters = len(self._models.parameters)
        if num_parameters != self._free[0]:
            free = (n for n in range(num_parameters) if n not in self._stepped)
            self._free = num_parameters, list(free)
        if self._free[1] and not step.has_begun_update:
            self._note_weights(step, part)
        return part

    def close_pass(self) -> None:
        """What the pass gave is in its part."""
        if self._never_updates:
            self._finish_by_hand(self._steps.open)

    def before_update(self, held: Held) -> None:
        """An optimizer is about to step these parameters: it receives what is there."""
        step = self._steps.open
        numbers = {number for number, _ in held}
        if not numbers <= self._stepped:
            self._stepped |= numbers
            self._by_hand -= numbers
            self._free = (0, [])
        self._has_seen_update, self._never_updates = True, False
        if not step.parts or step.updated:
            return
        if all(parameter.grad is None for _, parameter in held):
            self._find_cleared(step)
        self._discard_cleared(step)
        for part in step.parts:
            part.parameters.drop(numbers)  # the optimizer receives another
        step.unite()

    def adopt(self, step: OpenStep) -> None:
        """What was updated by hand beside an optimizer has rows, too."""
        for part in step.parts:
            new = self._by_hand & part.parameters.numbers() - step.parameters.numbers()
            step.parameters.take(part.parameters, new)

    def end_step(self, step: OpenStep) -> None:
        """A step is complete: after one of several passes the next is looked at closely."""
        self._is_careful = step.num_backward > 1 or not self._has_seen_update
        self._weights, self._values = {}, []

    def finish(self) -> None:
        """The training has ended: close all steps but the last."""
        step = self._steps.open
        if step.updated or not step.parts:
            return
        self._find_cleared(step)
        if self._weights:
            self._look_at_weights(step)
        if step.updated:
            return
        if self._has_seen_update:
            self._discard_cleared(step)
            step.receive_by_hand()
        elif any(part.is_changed for part in step.parts):
            self._release(step)
        else:
            self._release_each(step)

    # --- gradients ---------------------------------------------------------------------------

    def _part_of(self, step: OpenStep, used: Sequence[Invocation], passed: Part) -> Part:
        """The part that a pass belongs to: over the same graph, or for the same parameters."""
        for part in step.parts:
            is_alike = (
                self._has_seen_update and part.is_cleared is False and part.given == passed.given
            )
            if is_alike or part.splits is passed.splits or any(map(part.keeps, used)):
                part.take_pass(passed)
                return part
        step.parts.append(passed)
        return passed

    def _find_cleared(self, step: OpenStep) -> None:
        """Note of which passes the gradients were cleared."""
        held = dict(self._models.parameters.trainable())
        now = marks_of(held.items()) if self._is_careful else None
        self._before = now or {}
        for part in step.parts:
            if part.is_cleared is not False or part.is_kept or part.given == frozenset():
                continue
            numbers = self._deciding(part, held)
            if now is None or not any(0 != now[n] == self._marks.get(n) for n in numbers):
                part.is_cleared = are_cleared([held[number] for number in numbers])
            if part.is_cleared is not False:
                self._is_careful = True
                part.end()
                step.set_aside(part)

    def _deciding(self, part: Part, held: dict[int, Tensor]) -> list[int]:
        """The parameters whose gradients decide about a part: those that updates receive."""
        given = part.given
        if given is None:
            roots = self._models.parameters.of_roots(part.roots)
            given = frozenset(number for number in held if number in roots or not part.roots)
        numbers = [number for number in given if number in held]
        received = self._stepped | self._by_hand
        return [number for number in numbers if number in received] or numbers

    def _discard_cleared(self, step: OpenStep) -> None:
        """Take the passes out of the step of which no update receives anything."""
        gave = any(part.given != frozenset() for part in step.parts)
        for part in list(step.parts):
            is_empty = gave and part.given == frozenset() and not part.is_kept
            if part.is_cleared is True or is_empty:
                step.discard(part)

    # --- weights -----------------------------------------------------------------------------

    def _note_weights(self, step: OpenStep, part: Part) -> None:
        """Note what an update by hand would change, and what it would receive."""
        parameters = self._models.parameters
        given = [pair for pair in parameters.alive(self._free[1]) if pair[1].grad is not None]
        for number, _ in given:
            self._tries[number] = self._tries.get(number, 0) + 1
        read = [
            (number, parameter)
            for number, parameter in given
            if number in self._by_hand
            or self._tries[number] <= _MOST_TRIES
            or not self._has_seen_update
        ]
        if read and not self._num_searches:
            self._search()
        if read and step.recorded:
            part.parameters = rows = ParameterRows()
            parameters.read(read, rows)
            rows.scale = dict.fromkeys(rows.norm, step.scale)
        expected = [pair for pair in read if pair[0] not in self._awaited]
        if expected:
            self._measure(expected)
        self._weights = {n: (p, version_of(p), address_of(p)) for n, p in given}
        self._values = []
        if self._hides_updates or (read and not self._by_hand and not self._never_updates):
            some = read[:: max(1, len(read) // _MOST_COMPARED)]
            found = norms([p for _, p in some])
            self._values = list(zip([number for number, _ in some], found, strict=True))

    def _search(self) -> None:
        """Find the parameters that some optimizer holds: it may step them yet."""
        self._num_searches += 1
        self._awaited = held_by_optimizers(self._models.parameters)

    def _look_at_weights(self, step: OpenStep) -> None:
        """Find an update by hand since the last pass."""
        last = step.parts[-1]
        changed = {
            number
            for number, (p, version, address) in self._weights.items()
            if version_of(p) != version or address_of(p) != address
        }
        if not changed and self._values and self._have_other_values(last):
            changed = set(self._weights)
            self._hides_updates = True
        if not changed:
            return
        if step.updated:  # beside an optimizer
            self._by_hand |= changed - self._awaited
            return
        if not changed & self._by_hand:
            if self._num_searches < _MOST_SEARCHES:
                self._search()
            if changed <= self._awaited:  # an optimizer may step them: only it can tell
                last.is_changed = True
                step.set_aside(last)
                return
        self._by_hand |= changed - self._awaited
        last.is_changed = True
        self._release(step)

    def _have_other_values(self, last: Part) -> bool:
        """Whether weights are not those that were noted."""
        if any(isinstance(value, Tensor) for _, value in self._values):  # on a device
            if last.is_cleared is False:
                return False
            if self._hides_updates:  # it would have to be waited for each time
                return True
        found = norms([self._weights[number][0] for number, _ in self._values])
        pairs = zip(self._values, found, strict=True)
        return any(bool(old != new) for (_, old), new in pairs)

    def _num_climbs(self, step: OpenStep) -> int:
        """How often weights changed, and gradients were cleared, without the optimizer."""
        return sum(part.is_changed and part.is_cleared is not False for part in step.parts)

    # --- steps that no optimizer closes ------------------------------------------------------

    def _end_waiting(self, step: OpenStep) -> None:
        """Passes without any update so far do not wait for ever."""
        if self._awaited:  # a large accumulation
            for part in [part for part in step.parts if part.is_cleared is not False]:
                step.discard(part)
            step.unite()
        else:
            self._release_each(step)
            self._never_updates = True

    def _release(self, step: OpenStep) -> None:
        """Weights were updated by hand: each change that was seen ends a step."""
        self._has_seen_update = True
        while (count := self._end_of_first(step)) < len(step.parts):
            step.parts[count - 1].is_cleared = False
            self._steps.split_off(count, is_boundary=False)
            step = self._steps.open
        step.parts[-1].is_cleared = False
        self._finish_by_hand(step)

    def _end_of_first(self, step: OpenStep) -> int:
        """How many parts the first update by hand ends."""
        return next(place for place, part in enumerate(step.parts, 1) if part.is_changed)

    def _release_each(self, step: OpenStep) -> None:
        """No update is seen at all: each pass is a step."""
        for part in step.parts:
            part.is_cleared = False
        while len(self._steps.open.parts) > 1:
            self._steps.split_off(1, is_boundary=True)
        self._finish_by_hand(self._steps.open)

    def _finish_by_hand(self, step: OpenStep) -> None:
        step.receive_by_hand()
        step.updated = True
        self._on_update()


def marks_of(held: Iterable[tuple[int, Tensor]]) -> dict[int, int]:
    """Return which gradient each parameter has, and how often it was written to; 0 for none."""
    given = ((number, parameter.grad) for number, parameter in held)
    return {number: 0 if g is None else id(g) + version_of(g) for number, g in given}


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written to; 0 where it does not count."""
    return 0 if tensor.is_inference() else tensor._version


def address_of(tensor: Tensor) -> int:
    """Return where the elements of a tensor are; 0 where it has none of its own."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def are_cleared(parameters: Sequence[Tensor]) -> bool | Tensor:
    """Return whether none of the parameters has a gradient that is not zero.

    On a device the answer is a flag that stays there.
    """
    given = [p.grad for p in parameters if p.grad is not None]
    for gradient in given:
        if gradient.is_cpu and norms([gradient]) != [0.0]:  # None where nobody can tell
            return False
    found = norms([gradient for gradient in given if not gradient.is_cpu])
    flags = [norm == 0 for norm in found if isinstance(norm, Tensor)]
    if len(flags) < len(found):
        return False
    at = [flag.to(flags[0].device, non_blocking=True) for flag in flags]
    return torch.stack(at).all() if at else True


def held_by_optimizers(parameters: Any) -> set[int]:
    """Return the numbers of the parameters that some optimizer holds."""
    optimizers = [thing for thing in gc.get_objects() if issubclass(type(thing), Optimizer)]
    numbers = (
        parameters.number(parameter)
        for optimizer in optimizers
        for group in getattr(optimizer, "param_groups", ())
        for parameter in group["params"]
    )
    return {number for number in numbers if number is not None}
