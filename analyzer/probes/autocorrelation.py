"""Shattered gradients along a line of inputs: white noise, or a smooth walk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.joins.model_state import cloned, preserve_state, unwrapped
from analyzer.probes.activations import main_output

__all__ = ["autocorrelation", "gradient_autocorrelation", "gradient_on_line"]

_MAX_LAG = 15


def gradient_autocorrelation(
    model: nn.Module, grid: Tensor, max_lag: int = _MAX_LAG
) -> list[float]:
    """Return the autocorrelation, along a line of inputs, of the gradient along that line.

    White noise falls to 0 at lag 1: the gradient is shattered. Brown noise decays slowly.

    Args:
        model: Any eager model whose first argument is the input, used in the mode it is in.
        grid: Inputs evenly spaced on a line, ``[points, …]``.
        max_lag: Largest distance in grid points.

    Returns:
        Values at lag 0 (which is 1) to ``max_lag``; NaN where the gradient is constant.

    Raises:
        ValueError: If the grid has fewer than ``max_lag + 2`` points, or is no line.

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem, section 1.2.
    """
    if len(grid) < max_lag + 2:
        raise ValueError(
            f"a grid of {len(grid)} points is too short for lags up to {max_lag}; expected at "
            f"least {max_lag + 2}. Give more points, or a smaller max_lag."
        )
    return autocorrelation(gradient_on_line(model, grid).tolist(), max_lag)


def gradient_on_line(model: nn.Module, grid: Tensor) -> Tensor:
    """Return the derivative of the sum of a model's outputs along a line of inputs.

    Args:
        model: Any eager model whose first argument is the input.
        grid: Inputs evenly spaced on a line, ``[points, …]``.

    Returns:
        ``[points]`` in float64, per unit of length.

    Raises:
        ValueError: If the grid has fewer than two points, or is no line of even steps.
    """
    steps = grid.detach().double().diff(dim=0).flatten(1)
    if not len(steps) or not torch.allclose(steps, steps[:1].expand_as(steps), rtol=1e-2):
        raise ValueError(
            f"a grid of shape {list(grid.shape)} is no line of evenly spaced inputs; expected "
            "start + t · direction for evenly spaced t. Use torch.linspace for t."
        )
    direction = steps.mean(dim=0)
    model = unwrapped(model)
    memo: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode(False), preserve_state(model), torch.enable_grad():
        main = main_output(model(cloned(grid, requires_grad=True, memo=memo)))
        (gradient,) = torch.autograd.grad(main.sum(), memo[id(grid)][0])
    slope: Tensor = gradient.double().flatten(1) @ (direction / direction.norm())
    return slope


def autocorrelation(series: Sequence[float], max_lag: int) -> list[float]:
    """Return the autocorrelation of a series about its mean.

    ``Σ (g_t − ḡ)(g_{t+k} − ḡ) / Σ (g_t − ḡ)²`` for k = 0 … `max_lag`.

    Args:
        series: At least ``max_lag + 1`` numbers.
        max_lag: Largest lag.

    Returns:
        A value per lag, without unit; NaN for a constant series, and where it is not finite.
    """
    values = torch.tensor(list(series), dtype=torch.float64)
    centered: Any = values - values.mean()
    total = centered.square().sum()
    lags = range(max_lag + 1)
    return [(centered[: len(values) - k] @ centered[k:] / total).item() for k in lags]
