"""The output gradient of one step along the depth of a network, input to output.

Output gradients are those of the loss as the script computes it, usually the mean over the batch.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzer.storage.arrays import as_floats, as_numpy, is_present
from analyzer.storage.run import Run

__all__ = ["DepthProfile", "depth_profile", "relative_depth", "relative_norms", "span_decades"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DepthProfile:
    """Output gradient norms of one step, one row per layer in call order.

    Args:
        step: The step that the norms belong to.
        names: Layer names.
        kinds: Class names of the modules.
        depths: Layers on the longest path from the input, counted from the first.
        norms: ``‖∂L/∂y‖₂``, in units of loss per unit of y; NaN also where nothing was recorded.
        measured: Whether the backward pass reached the layer; False is a null in the table.
        has_parameters: Whether the layer owns parameters.
    """

    step: int
    names: list[str]
    kinds: list[str]
    depths: Floats
    norms: Floats
    measured: NDArray[np.bool_]
    has_parameters: NDArray[np.bool_]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Layers with a finite gradient above zero: those that a logarithm can show."""
        return self.measured & np.isfinite(self.norms) & (self.norms > 0)

    @property
    def is_zero(self) -> NDArray[np.bool_]:
        """Layers whose output gradient is exactly zero."""
        zero: NDArray[np.bool_] = self.measured & (self.norms == 0)
        return zero

    @property
    def is_nonfinite(self) -> NDArray[np.bool_]:
        """Layers whose output gradient holds NaN or is infinite."""
        nonfinite: NDArray[np.bool_] = self.measured & ~np.isfinite(self.norms)
        return nonfinite


def span_decades(profile: DepthProfile) -> float:
    """Return ``log10(max ‖δ‖ / min ‖δ‖)`` over layers with parameters and a usable gradient.

    Returns:
        Decades between the largest and the smallest norm, 0 or more; NaN without such a layer.
    """
    norms = profile.norms[profile.has_parameters & profile.usable]
    if not len(norms):
        return math.nan
    return float(np.log10(norms.max()) - np.log10(norms.min()))


def relative_norms(profile: DepthProfile) -> Floats:
    """Return norms over ``‖∂L/∂output‖``, that of the deepest measured layer (the last of several).

    The ratio removes the effect of a merely larger output. Divide by zero gives inf or NaN, and a
    profile without a measured layer gives NaN throughout.
    """
    rows = np.flatnonzero(profile.measured)
    if not len(rows):
        return np.full(len(profile.norms), np.nan)
    deepest = rows[profile.depths[rows] == profile.depths[rows].max()][-1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios: Floats = profile.norms / profile.norms[deepest]
    return ratios


def relative_depth(depths: ArrayLike) -> Floats:
    """Return depth mapped to [0, 1], first layer to last, so that networks of any depth compare.

    Returns:
        ``(d − d_min) / (d_max − d_min)``; zeros where all depths are equal.
    """
    x = np.asarray(depths, np.float64)
    if not len(x):
        return x
    reach = x.max() - x.min()
    relative: Floats = (x - x.min()) / (reach if reach > 0 else 1.0)
    return relative


def depth_profile(run: Run, step: int) -> DepthProfile:
    """Read the profile of one step.

    Args:
        run: An opened run.
        step: A step number; one without layer statistics gives a profile without a measured layer.

    Returns:
        Every layer of the run in call order. A null, from a layer that no gradient reached, is not
        measured; NaN is.
    """
    layers = run.static_rows("layers")
    rows = run.read("layer_stats", "output_gradient_norm", steps=step)
    column = rows.column("output_gradient_norm")
    known, ids = as_numpy(layers.column("layer")), as_numpy(rows.column("layer"))
    found = np.isin(ids, known)
    place = np.searchsorted(known, ids[found])
    norms, measured = np.full(len(known), np.nan), np.zeros(len(known), bool)
    norms[place] = as_floats(column)[found]
    measured[place] = is_present(column)[found]
    return DepthProfile(
        step=step,
        names=layers.column("name").to_pylist(),
        kinds=layers.column("kind").to_pylist(),
        depths=as_floats(layers.column("depth")),
        norms=norms,
        measured=measured,
        has_parameters=as_floats(layers.column("num_parameters")) > 0,
    )
