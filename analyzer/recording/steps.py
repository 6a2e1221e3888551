"""Which step is open, and what happens where it ends.

The order of events decides: an optimizer that steps makes an update; the next backward pass opens a
step, and a forward pass with gradient before it belongs to that step already. The moment between is
the *boundary*: the weights are those of the end of the step.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from torch.compiler import is_dynamo_compiling

from analyzer.errors import StopTraining
from analyzer.joins.modes import leave_uncompiled, unseen
from analyzer.options import RecordOptions
from analyzer.recording.hooks import Capture
from analyzer.recording.step import OpenStep

__all__ = ["Guard", "Steps"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Guard:
    """Stands around all that the training calls: an error in it ends the recording alone.

    Args:
        capture: Gets the time that the training waited.
        on_error: Called with the error that ended the recording.

    Attributes:
        is_off: Whether nothing is called any more, or for now.
    """

    def __init__(self, capture: Capture, on_error: Callable[[Exception], None]) -> None:
        self.is_off = False
        self._capture = capture
        self._on_error = on_error

    def __call__(self, method: _Method) -> _Method:
        """Return what the training may call in place of a method."""

        @functools.wraps(method)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            # In a compiled update nothing can be seen, and no graph is to be broken.
            if self.is_off or is_dynamo_compiling():
                return None
            started = time.perf_counter()
            try:
                with unseen():
                    return method(*args, **kwargs)
            except Exception as error:
                self._on_error(error)
                return None
            finally:
                self._capture.seconds += time.perf_counter() - started

        leave_uncompiled(guarded)
        return cast(_Method, guarded)


class Steps:
    """The step that is open, and the number of those that are closed.

    Args:
        options: Which steps are recorded, and when to stop.
        capture: Listens in recorded steps.
        on_boundary: Called once between the update of a step and the next forward pass.
        on_close: Called with a step that is closed.

    Attributes:
        open: The step that is open.
        count: How many steps are closed, those of earlier attempts of the run included.
        first: Number of the first step of this attempt.
        forward_began: Whether a forward pass followed the last update, and no backward pass yet.
        in_closure: Whether an optimizer evaluates its closure.
        look_for_update: Called before a forward pass: the open step may have been updated by hand.
        on_first_pass: Called once, when the first gradients are about to be computed.
    """

    def __init__(
        self,
        options: RecordOptions,
        capture: Capture,
        *,
        on_boundary: Callable[[OpenStep], None],
        on_close: Callable[[OpenStep], None],
    ) -> None:
        self.count = 0
        self.in_closure = False
        self.look_for_update: Callable[[], None] = lambda: None
        self.on_first_pass: Callable[[], None] | None = None
        # Find the number of the first step of a resumed training: before its first backward pass,
        # and by all of its loss where that did not tell.
        self.locate: Callable[[Sequence[Any] | None], int | None] | None = None
        self.locate_again: Callable[[OpenStep], int | None] | None = None
        self.first = 0
        self._options = options
        self._capture = capture
        self._on_boundary = on_boundary
        self._on_close = on_close
        self._next_logged: dict[str, Any] = {}
        self.forward_began = False
        self._boundary_passed = False
        self.open = self._opened(0)

    def _opened(self, index: int) -> OpenStep:
        recorded = self._options.records(index)
        self._capture.listening = recorded
        return OpenStep(index, recorded)

    @property
    def is_repeated(self) -> bool:
        """Whether a closure is evaluated again; the row of its step is the first evaluation."""
        return self.in_closure and self.open.evaluations > 0

    def count_evaluation(self) -> None:
        """A closure was evaluated."""
        self.open.evaluations += 1
        self._capture.listening = False

    def log(self, values: dict[str, Any]) -> None:
        """Add extra columns to the current step."""
        parts = self.open.parts  # a pass may turn out to be a step of its own
        logged = parts[-1].logged if parts else self.open.logged
        (self._next_logged if self.forward_began else logged).update(values)

    def begin_forward(self) -> None:
        """A forward pass with gradient begins; after an update it belongs to the next step."""
        if self.in_closure:
            return
        self.look_for_update()
        if self.open.updated:
            self.pass_boundary()
            self._stop_if_enough()
            self.forward_began = True

    def begin_backward(self, roots: Sequence[Any] = ()) -> None:
        """Gradients are about to be computed: those after an update open a step."""
        self.find_place(roots)
        if self.open.updated:
            self.pass_boundary()
            self._stop_if_enough()
            self.close()
        elif self.on_first_pass is not None:
            first, self.on_first_pass = self.on_first_pass, None
            first()
        self.forward_began = False

    def find_place(self, roots: Sequence[Any] | None) -> None:
        """Find the number of the first step of a resumed training; None before there is a pass."""
        if self.locate is not None and (index := self.locate(roots)) is not None:
            self.locate = None
            self._renumber(index)

    def _renumber(self, index: int) -> None:
        self.first = self.open.index = index
        # Its forward pass was listened to: what is not wanted of it is left out of its rows.
        self.open.recorded = self._options.records(index)
        if not self.open.recorded:
            self.open.parameters.clear()

    def end_backward(self) -> None:
        """A backward pass has ended well; its update is still to come."""
        self.open.num_backward += 1
        self._boundary_passed = False

    def pass_boundary(self) -> None:
        """The update of the open step, if there was one, is complete."""
        if not self.open.is_empty and not self._boundary_passed:
            self._boundary_passed = True
            if self.locate_again is not None:
                again, self.locate_again = self.locate_again, None
                if (index := again(self.open)) is not None:
                    self._renumber(index)
            self._on_boundary(self.open)

    def _stop_if_enough(self) -> None:
        stop_after = self._options.stop_after
        if stop_after is not None and self.open.index + 1 - self.first >= stop_after:
            raise StopTraining(stop_after)

    def split_off(self, count: int, *, is_boundary: bool) -> None:
        """Close the open step with its first parts; the others are passes of the next one.

        Args:
            count: How many there are.
            is_boundary: Whether the weights are still those of the end of the step.
        """
        step = self.open
        others = step.parts[count:]
        del step.parts[count:]
        step.ended = others[0].started
        num_backward = sum(part.num_backward for part in others)
        step.num_backward -= num_backward
        step.receive_by_hand()
        if is_boundary:
            self._boundary_passed = False
            self.pass_boundary()
        self.close()
        self.open.parts, self.open.num_backward = others, num_backward
        self.open.started, self.open.scale = step.ended, step.scale

    def close(self) -> None:
        """Hand the open step over, and open the next one."""
        self._on_close(self.open)
        self.count = self.open.index + 1
        self.open = self._opened(self.count)
        self._boundary_passed = False
        self.open.logged.update(self._next_logged)
        self._next_logged.clear()
