"""The gain of a recorded run over its steps."""

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.depth_profile import depth_profile
from analyzer.analysis.gradient_flow import MedianGain, median_gain, profile_gain
from analyzer.storage.run import Run

__all__ = ["run_gain", "spaced_steps"]

_MOST_STEPS = 15


def spaced_steps(steps: NDArray[np.int64], most: int = _MOST_STEPS) -> NDArray[np.int64]:
    """Return at most so many evenly spaced ones of these steps, both ends included."""
    places = np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))
    return steps[places] if len(steps) else steps


def run_gain(run: Run, steps: NDArray[np.int64] | None = None) -> MedianGain:
    """Return the median gain over evenly spaced steps.

    Args:
        run: An opened run.
        steps: Steps to choose from; all with layer statistics when None.

    Returns:
        Medians over at most 15 steps; NaN where none of them has a gain.
    """
    recorded = run.layer_steps() if steps is None else steps
    chosen = spaced_steps(recorded)
    return median_gain([profile_gain(depth_profile(run, int(step))) for step in chosen])
