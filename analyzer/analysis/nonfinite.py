"""Where NaN or infinite values appeared first."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.storage.run import Run

__all__ = ["NonFinite", "first_nonfinite"]

_COLUMNS = ("activation_num_nonfinite", "output_gradient_num_nonfinite")
_BATCH_ROWS = 500_000
_MOST_BINS = 1024


@dataclass(frozen=True)
class NonFinite:
    """The first place where a tensor of a layer was not finite.

    Args:
        step: The first step with such a tensor.
        layer: Row of the table of layers.
        name: Its name.
        what: ``activation`` or ``output gradient``.
    """

    step: int
    layer: int
    name: str
    what: str


def first_nonfinite(run: Run, ignored: NDArray[np.int64] | None = None) -> NonFinite | None:
    """Find the first layer with NaN or infinite values, in the order in which they are computed.

    Within its step that is the first activation in call order; where all activations are finite,
    the output gradient of the last layer in call order, since backward runs from there.

    Args:
        run: An opened run.
        ignored: Steps that do not count, such as those that a gradient scaler skipped.

    Returns:
        The place; None where every recorded value is finite.
    """
    for first, last in _suspects(run):
        rows = run.read("layer_stats", _COLUMNS, steps=slice(first, last + 1))
        activation, gradient = (_positive(rows, name) for name in _COLUMNS)
        counts = activation | gradient
        if ignored is not None:
            counts &= ~np.isin(rows.column("step").to_numpy(), ignored)
        bad = np.flatnonzero(counts)
        if len(bad):
            return _earliest(run, rows, activation, gradient, bad)
    return None


def _suspects(run: Run) -> Iterator[tuple[int, int]]:
    """First and last step of stretches that hold whatever is not finite, in order."""
    if run.ranks == [0]:
        # The overview has the largest count of each bin: the rows of the others are all finite.
        grids = [run.grid(name, "max", _MOST_BINS, table="layer_stats") for name in _COLUMNS]
        bad = {int(step) for grid in grids for step in grid.steps[(grid.values > 0).any(axis=0)]}
        yield from ((step, step + grids[0].width - 1) for step in sorted(bad))
        return
    steps = run.layer_steps()
    chunk = max(1, _BATCH_ROWS // max(1, len(run.layers)))
    for start in range(0, len(steps), chunk):
        some = steps[start : start + chunk]
        yield int(some[0]), int(some[-1])


def _positive(rows: pa.Table, name: str) -> NDArray[np.bool_]:
    positive: NDArray[np.bool_] = rows.column(name).fill_null(0).to_numpy() > 0
    return positive


def _earliest(
    run: Run,
    rows: pa.Table,
    activation: NDArray[np.bool_],
    gradient: NDArray[np.bool_],
    bad: NDArray[np.int64],
) -> NonFinite:
    """The first tensor of the first step that holds one."""
    steps, layers = rows.column("step").to_numpy(), rows.column("layer").to_numpy()
    step = int(steps[bad].min())
    here = steps == step
    forward = layers[here & activation]
    layer = int(forward.min()) if len(forward) else int(layers[here & gradient].max())
    names = dict(zip(run.layers["layer"], run.layers["name"], strict=True))
    what = "activation" if len(forward) else "output gradient"
    return NonFinite(step, layer, str(names.get(layer, layer)), what)
