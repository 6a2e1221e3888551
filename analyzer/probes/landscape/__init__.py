"""The loss around a model's weights, over a line or a plane through them."""

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
from analyzer.probes.landscape.planes import measure
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
