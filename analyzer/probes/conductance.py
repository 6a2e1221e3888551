"""Sums over the way from a baseline to the inputs, for all layers in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyzer.joins.calls import CallLog
from analyzer.probes.activations import LayerOutput
from analyzer.probes.input_path import InputPath
from analyzer.probes.output_target import Target, flattened

__all__ = ["PathSums", "gauss_legendre", "path_sums"]

_NO_SAMPLES = "its output has no sample axis"
_NO_GRADIENT = "the output does not depend on it"


@dataclass
class PathSums:
    """What was summed over the way, and the pass that it came from.

    Args:
        values: Per layer the sum over its elements and the samples.
        refused: Layers without a value, with the reason.
        picked: The explained output at every point.
        output: The model's output.
        log: The module calls.
        points: The points of the way.
        weights: The weight of each step in an integral over the way.
    """

    values: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    picked: Tensor | None = None
    output: Any = None
    log: CallLog | None = None
    points: Sequence[Tensor] = ()
    weights: Sequence[float] = ()

    def add(self, other: PathSums) -> None:
        """Add the sums of further samples."""
        for name, value in other.values.items():
            self.values[name] = self.values.get(name, 0.0) + value
        self.refused |= other.refused


def gauss_legendre(num_points: int) -> tuple[list[float], list[float]]:
    """Return places in (0, 1) and the weights of Gauss–Legendre quadrature, as Captum has them."""
    places, weights = np.polynomial.legendre.leggauss(num_points)
    return (0.5 * (1 + places)).tolist(), (0.5 * weights).tolist()


def path_sums(
    path: InputPath,
    layers: list[LayerOutput],
    target: Target,
    method: str,
    num_steps: int,
    start: int,
    stop: int,
) -> PathSums:
    """Run a model once at all points of the way; return the sums of every layer.

    Args:
        path: The way.
        layers: The list that fills with the layers of a pass.
        target: What is explained.
        method: ``conductance`` | ``gradient_x_activation`` | ``internal_influence``.
        num_steps: Steps of the way.
        start: First sample.
        stop: Sample after the last one.
    """
    fractions, weights = {
        # One point more than steps: conductance needs the change from point to point.
        "conductance": gauss_legendre(num_steps + 1),
        "internal_influence": gauss_legendre(num_steps),
        "gradient_x_activation": ([1.0], [1.0]),
    }[method]
    points = [point.requires_grad_() for point in path.at(fractions, start, stop)]
    main, output, log = path.run(points, start, stop)
    index = target.index[start:stop].repeat(len(fractions))
    picked = flattened(main).gather(1, index[:, None]).sum()
    result = PathSums(picked=picked, output=output, log=log, points=points, weights=weights)
    edges = [layer.edge for layer in layers if layer.edge is not None]
    gradients = iter(
        torch.autograd.grad(picked, edges, retain_graph=True, allow_unused=True) if edges else ()
    )
    for layer in layers:
        gradient = next(gradients) if layer.edge is not None else None
        reason = _reason(layer, gradient, len(main))
        if gradient is None or layer.value is None or reason is not None:
            result.values[layer.name] = math.nan
            result.refused[layer.name] = reason or _NO_GRADIENT
            continue
        terms = _terms(method, gradient, layer.value, stop - start, weights)
        result.values[layer.name] = float(terms.double().sum())
    return result


def _reason(layer: LayerOutput, gradient: Tensor | None, rows: int) -> str | None:
    if not layer.tensor.dim() or len(layer.tensor) != rows:
        return _NO_SAMPLES
    return _NO_GRADIENT if gradient is None else None


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
