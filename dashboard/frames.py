"""The numbers that the browser needs to move the step by itself."""

from typing import Any

import numpy as np

from analyzer.errors import AnalyzerError
from dashboard.context import Context
from dashboard.drawing import recorded

__all__ = ["MOST_STEPS", "frames", "shown_steps"]

MOST_STEPS = 500


def frames(context: Context, path: str) -> dict[str, Any] | None:
    """Return the steps that can be chosen and, for the score, what rows 1 and 2 show at each.

    Args:
        context: The runs and the address.
        path: The page.

    Returns:
        ``steps``, the chosen one ``step``, and ``score`` where there is a score; None without runs.
    """
    if not context.runs:
        return None
    return {
        "steps": shown_steps(context),
        "step": context.address.step,
        "score": _score(context) if path == "/score" else None,
    }


def shown_steps(context: Context) -> list[int]:
    """Return the recorded steps of all runs, evenly thinned to as many as a slider has places."""
    recorded_steps = [run.recorded_steps() for run in context.runs]
    steps = np.unique(np.concatenate(recorded_steps)) if recorded_steps else np.zeros(0)
    if len(steps) > MOST_STEPS:
        steps = steps[np.linspace(0, len(steps) - 1, MOST_STEPS).round().astype(int)]
    return [int(step) for step in steps]


def _score(context: Context) -> Any:
    """What the score shows at each step; None where it cannot be drawn."""
    try:
        from analyzer.figures.score_frames import score_frames

        return score_frames(recorded("score", context))
    except (AnalyzerError, ImportError, KeyError):
        return None
