"""The loss around a model's weights, over a line or a plane through them."""

from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.landscape.directions import (
    NORMALIZATIONS,
    TrajectoryPlane,
    cosine,
    direction_to,
    normalized,
    plane_through,
    projected,
    random_directions,
    trajectory_plane,
)
from analyzer.probes.landscape.surface import Surface, surface, surface_measures
from analyzer.probes.landscape.weights import Direction

__all__ = [
    "NORMALIZATIONS",
    "Direction",
    "Surface",
    "TrajectoryPlane",
    "cosine",
    "direction_to",
    "measure",
    "normalized",
    "plane_through",
    "projected",
    "random_directions",
    "surface",
    "surface_measures",
    "trajectory_plane",
]

SIZE = 51
EXTENT = 1.0
SECONDS = 30.0
TOLERANCE = 0.005


def measure(
    batch: HeldBatch,
    *,
    size: int = SIZE,
    extent: float = EXTENT,
    normalization: str = "filter",
    seed: int = 0,
    mode: str = "fast",
    tolerance: float = TOLERANCE,
    seconds: float | None = SECONDS,
) -> Measurement:
    """Measure the loss of one batch over a plane of two random directions.

    ``L(θ* + α d₁ + β d₂)`` on ``[−extent, extent]²`` with `size` points along each axis; (0, 0) is
    one of them for odd sizes.

    Args:
        batch: The live model, one batch and its loss; left as they are.
        size: Points along each axis.
        extent: Largest coordinate; at 1 a filter moves by its own norm.
        normalization: Of the directions: ``"filter"``, ``"layer"`` or ``"none"``.
        seed: Of the directions.
        mode: ``"fast"`` or ``"exact"``.
        tolerance: Of the fast mode, over the range of the loss.
        seconds: Evaluate no more after this time; None for no limit.

    Returns:
        ``alpha``, ``beta``, ``loss``, ``evaluated``, a row a point; NaN where time ran out before
        anything could be fitted. The metadata say how it was made.

    Raises:
        ValueError: If an option is unknown.

    Reference:
        Li et al. (2018), Visualizing the loss landscape of neural nets, §4.
    """
    axis = [extent * (2 * k - (size - 1)) / max(size - 1, 1) for k in range(size)]
    found = surface(
        batch.model,
        [(batch.inputs, batch.targets)],
        batch.loss,
        random_directions(batch.model, normalization, seed),
        axis,
        axis,
        mode=mode,
        tolerance=tolerance,
        seconds=seconds,
    )
    made = {"directions": "random", "normalization": normalization, "seed": str(seed)}
    return Measurement(found.columns(), {**made, **found.metadata})
