"""Sums over the way from a baseline to the inputs, for all layers in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from analyzer.joins.backward import SplitHooks
from analyzer.joins.find import output_nodes
from analyzer.joins.plan import JoinSite, joins_in_graph
from analyzer.joins.products import JoinGradients
from analyzer.joins.search import Join
from analyzer.probes.activations import LayerOutput, layer_outputs
from analyzer.probes.input_path import InputPath, Target, flattened

__all__ = ["PathSums", "path_sums"]


_ROWS = 512
_NO_SAMPLES = "its output has no sample axis"
_NO_GRADIENT = "the output does not depend on it"


@dataclass
class PathSums:
    """Sums over the way and some samples.

    Args:
        values: Per layer the sum over its elements.
        refused: Layers without a value, with the reason.
        shortcuts: Per join, by index and name, the attribution through its shortcut.
        branches: The same through its branch.
    """

    values: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    shortcuts: dict[tuple[int, str], float] = field(default_factory=dict)
    branches: dict[tuple[int, str], float] = field(default_factory=dict)


def _gauss_legendre(num_points: int) -> tuple[list[float], list[float]]:
    """Return places in (0, 1) and the weights of Gauss–Legendre quadrature, as Captum has them."""
    places, weights = np.polynomial.legendre.leggauss(num_points)
    return (0.5 * (1 + places)).tolist(), (0.5 * weights).tolist()


def path_sums(path: InputPath, target: Target, method: str, num_steps: int) -> PathSums:
    """Return the sums of every layer over all samples; for conductance those of joins, too.

    The model runs once at all points of the way of a group of samples.
    """
    fractions, weights = {
        # One point more than steps: conductance needs the change from point to point.
        "conductance": _gauss_legendre(num_steps + 1),
        "internal_influence": _gauss_legendre(num_steps),
        "gradient_x_activation": ([1.0], [1.0]),
    }[method]
    group = max(1, _ROWS // (num_steps + 1))
    result = PathSums()
    for start in range(0, path.size, group):
        stop = min(start + group, path.size)
        points = [point.requires_grad_() for point in path.at(fractions, start, stop)]
        with layer_outputs(path.model, with_values=True) as layers:
            main, output, log = path.run(points, start, stop)
            index = target.index[start:stop].repeat(len(fractions))
            picked = flattened(main).gather(1, index[:, None]).sum()
            _add_layers(result, layers, picked, len(main), method, weights)
        if method == "conductance":
            # The change of the points over each step of the way.
            steps = [torch.cat([end[start:stop] * part for part in weights]) for end in path.ends]
            roots = output_nodes(output)
            sites = joins_in_graph(roots, log).sites(roots) or []
            _add_joins(result, sites, picked, points, steps)
    return result


def _add_layers(
    result: PathSums,
    layers: Sequence[LayerOutput],
    picked: Tensor,
    num_rows: int,
    method: str,
    weights: Sequence[float],
) -> None:
    """Add the sum of each layer over the samples of a pass."""
    edges = [layer.edge for layer in layers if layer.edge is not None]
    gradients = iter(
        torch.autograd.grad(picked, edges, retain_graph=True, allow_unused=True) if edges else ()
    )
    for layer in layers:
        gradient = next(gradients) if layer.edge is not None else None
        has_samples = layer.tensor.dim() > 0 and len(layer.tensor) == num_rows
        if gradient is None or layer.value is None or not has_samples:
            result.values[layer.name] = math.nan
            result.refused[layer.name] = _NO_GRADIENT if has_samples else _NO_SAMPLES
            continue
        size = num_rows // len(weights)
        terms = _terms(method, gradient, layer.value, size, weights)
        known = result.values.get(layer.name, 0.0)
        result.values[layer.name] = known + float(terms.double().sum())


def _terms(
    method: str, gradient: Tensor, value: Tensor, size: int, weights: Sequence[float]
) -> Tensor:
    """Return the summands of a layer; points come one after the other along the first axis."""
    if method == "gradient_x_activation":
        return gradient * value
    if method == "internal_influence":
        scale = torch.tensor(weights, dtype=gradient.dtype).repeat_interleave(size)
        return gradient * scale.to(gradient.device).view(-1, *[1] * (gradient.dim() - 1))
    return gradient[:-size] * (value[size:] - value[:-size])


def _add_joins(
    result: PathSums,
    sites: Sequence[JoinSite],
    picked: Tensor,
    points: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> None:
    """Add the attribution through both sides of each join.

    The gradient that reaches a fork through one side continues to the inputs by itself, where it
    meets their change along the way.
    """
    gradients: dict[int, JoinGradients] = {}

    def note(join: Join, found: JoinGradients) -> None:
        gradients[join.index] = found

    hooks = SplitHooks(sites, note)
    try:
        torch.autograd.grad(picked, points, retain_graph=True, allow_unused=True)
    finally:
        hooks.finish()
    for site in sites:
        found, key = gradients.get(site.join.index), (site.join.index, site.join.name)
        sides = (None, None) if found is None else (found.shortcut, found.branch)
        for side, sums in zip(sides, (result.shortcuts, result.branches), strict=True):
            sums[key] = sums.get(key, 0.0) + _integral(site, side, points, steps)


def _integral(
    site: JoinSite,
    side: tuple[Tensor, ...] | None,
    points: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> float:
    """Send one side's gradient on from the fork; return what it makes of the inputs' change."""
    if side is None or site.fork is None:
        return math.nan
    forks = [GradientEdge(site.fork, number) for number in range(len(side))]
    arrived = torch.autograd.grad(
        forks, list(points), list(side), retain_graph=True, allow_unused=True
    )
    return math.fsum(
        float((gradient.double() * step).sum())
        for gradient, step in zip(arrived, steps, strict=True)
        if gradient is not None
    )
