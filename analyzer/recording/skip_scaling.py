"""A training whose shortcuts are scaled in each forward pass, for twins without shortcuts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from analyzer.errors import AnalyzerError
from analyzer.joins.edits import ScaledShortcuts
from analyzer.joins.interception import Interception
from analyzer.joins.rerun import rescale_branches
from analyzer.recording.watched import BACKWARD_PASSES

__all__ = ["SkipScaling", "SkipsNotScaledError"]


class SkipsNotScaledError(SystemExit):
    """Ends a program, with exit code 2, because one of its shortcuts cannot be scaled.

    Args:
        message: Which, why, and what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message

    def __str__(self) -> str:
        return self.message


class SkipScaling:
    """Scales the shortcuts of every model that this process calls, from `start` to `stop`.

    Args:
        alpha: The factor of every shortcut, or factors by join as `analyzer.skip_scale` has them.
        model: The model to scale; None for every outermost module that is called and has
            parameters that are trained.
        rescales: Whether the branches of each model are scaled before its first call with
            gradient, so that without shortcuts the variance of activations is the original one.
        ends_program: Whether a shortcut that cannot be scaled ends the program, which could catch
            an ordinary error; else it raises AnalyzerError in the model's call.
        on_problem: Called with a sentence about what could not be rescaled, and with the reason
            before the program is ended.

    Attributes:
        names_no_join: Whether it refused since a name of ``alpha`` is that of no join.
    """

    def __init__(
        self,
        alpha: float | Mapping[str, float],
        model: nn.Module | None = None,
        *,
        rescales: bool = False,
        ends_program: bool = False,
        on_problem: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.names_no_join = False
        self._on_problem = on_problem
        self._ends_program = ends_program
        self._watcher: Any = _FirstBackward(self._begin_backward)
        self._interception = Interception(
            ScaledShortcuts(alpha),
            model,
            prepare=self._rescale if rescales else None,
            refuse=self._refuse,
        )

    def start(self) -> None:
        """Scale the calls that begin from now on."""
        self._interception.start()
        if self._interception.model is None:
            BACKWARD_PASSES.watch(self._watcher)

    def stop(self) -> None:
        """Scale no more calls; leave nothing behind."""
        self._interception.stop()
        BACKWARD_PASSES.unwatch(self._watcher)

    def _begin_backward(self) -> None:
        """Before the first backward pass every model was called: a name must be one of a join."""
        BACKWARD_PASSES.unwatch(self._watcher)
        if (sentence := self._interception.edit.unmatched()) is not None:
            raise self._refuse(AnalyzerError(sentence))

    def _refuse(self, error: AnalyzerError) -> BaseException:
        self.names_no_join = self._interception.edit.unmatched() is not None
        if not self._ends_program:
            return error
        self._on_problem(str(error))
        return SkipsNotScaledError(str(error))

    def _rescale(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            found = rescale_branches(model, args, kwargs)
        except AnalyzerError as error:
            raise self._refuse(error) from None
        if found.unmatched:
            self._on_problem(
                f"not rescaled to the original's variance: {', '.join(found.unmatched)}"
            )


class _FirstBackward:
    """Tells of the first backward pass before it runs, and follows none."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def follows(self, roots: Sequence[Any], *, is_backward: bool) -> bool:
        if is_backward:
            self._begin()
        return False

    def begin_inner_backward(self, roots: Sequence[Any]) -> None:
        """It is a part of another one."""
