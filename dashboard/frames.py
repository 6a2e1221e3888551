"""The numbers that the browser needs to move the step by itself."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import page_of
from analyzer.figures.overview_frames import overview_frames
from analyzer.vocabulary import PROBE_NAMES

from .context import Context
from .drawing import recorded
from .routes import page_at

__all__ = ["MOST_STEPS", "frames", "probe_steps", "shown_steps"]

MOST_STEPS = 500


def frames(context: Context, path: str) -> dict[str, Any] | None:
    """Return the steps that can be chosen and, for the overview, what rows 1 and 2 show at each.

    Args:
        context: The runs and the address.
        path: The page.

    Returns:
        ``steps`` (of a landscape those at which it was taken), what they are called (``label``),
        the chosen one ``step``, and ``overview`` where there is one; None without runs.
    """
    if not context.runs:
        return None
    found: dict[str, Any] = context.library.shown.get(
        f"frames {path}", context.view(), lambda _view: _frames(context, path)
    )
    return found


def _frames(context: Context, path: str) -> dict[str, Any]:
    page = page_at(path)
    probe = page.probe_of(PROBE_NAMES) if page else None
    return {
        "steps": shown_steps(context) if probe is None else probe_steps(context, probe),
        "label": "step" if probe is None else "checkpoint at step",
        "step": context.address.step,
        "overview": _overview(context) if path == page_of("overview").path else None,
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


def probe_steps(context: Context, probe: str) -> list[int]:
    """Return the steps at which any run measured a probe."""
    found: set[int] = set()
    for run in context.runs:
        if probe in run.probes:
            found.update(run.probe_metadata(probe))
    return sorted(found)


def _overview(context: Context) -> Any:
    """What the overview shows at each step; None where it cannot be drawn."""
    try:
        return overview_frames(recorded("overview", context))
    except (AnalyzerError, KeyError):
        return None
