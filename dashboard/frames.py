"""The numbers that the browser needs to move the step by itself."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.errors import AnalyzerError

from .context import Context
from .drawing import recorded

__all__ = ["MOST_STEPS", "checkpoints", "frames", "shown_steps"]

MOST_STEPS = 500
_AT_CHECKPOINTS = ("/landscape", "/surface")


def frames(context: Context, path: str) -> dict[str, Any] | None:
    """Return the steps that can be chosen and, for the score, what rows 1 and 2 show at each.

    Args:
        context: The runs and the address.
        path: The page.

    Returns:
        ``steps`` (of a landscape those at which it was taken), what they are called (``label``),
        the chosen one ``step``, and ``score`` where there is a score; None without runs.
    """
    if not context.runs:
        return None
    found: dict[str, Any] = context.library.shown.get(
        f"frames {path}", context.view(), lambda _view: _frames(context, path)
    )
    return found


def _frames(context: Context, path: str) -> dict[str, Any]:
    return {
        "steps": checkpoints(context) if path in _AT_CHECKPOINTS else shown_steps(context),
        "label": "checkpoint at step" if path in _AT_CHECKPOINTS else "step",
        "step": context.address.step,
        "score": _score(context) if path == "/score" else None,
    }


def shown_steps(context: Context) -> list[int]:
    """Return the recorded steps of all runs, evenly thinned to as many as a slider has places."""
    # Thinned before they are put together, since runs may have millions of steps.
    each = [_thinned(run.recorded_steps(), 20 * MOST_STEPS) for run in context.runs]
    return [int(step) for step in _thinned(np.unique(np.concatenate(each)), MOST_STEPS)]


def _thinned(steps: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(steps) <= most:
        return steps
    chosen: NDArray[np.int64] = steps[np.linspace(0, len(steps) - 1, most).round().astype(int)]
    return chosen


def checkpoints(context: Context) -> list[int]:
    """Return the steps at which the landscape of any run was taken."""
    found: set[int] = set()
    for run in context.runs:
        if "landscape" in run.probes:
            found.update(run.probe_metadata("landscape"))
    return sorted(found)


def _score(context: Context) -> Any:
    """What the score shows at each step; None where it cannot be drawn."""
    try:
        from analyzer.figures.score_frames import score_frames

        return score_frames(recorded("score", context))
    except (AnalyzerError, ImportError, KeyError):
        return None
