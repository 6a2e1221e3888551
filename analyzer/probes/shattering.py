"""Shattered gradients: how alike the gradients of different inputs are, layer by layer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from analyzer.joins.find import call_arguments, output_nodes, watched_forward
from analyzer.joins.model_state import cloned, preserve_state, unwrapped
from analyzer.joins.plan import joins_in_graph
from analyzer.probes.activations import (
    LayerOutput,
    as_it_trains,
    layer_outputs,
    main_output,
    mixes_samples,
    mixing_error,
)
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.path_graph import inputs_first

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "INTERVAL",
    "Correlations",
    "MeanCosine",
    "autocorrelation",
    "correlation_of_samples",
    "cosines",
    "frame_of",
    "gradient_autocorrelation",
    "gradient_correlation",
    "gradient_on_line",
    "is_nonlinearity",
    "mean_cosine",
    "measure",
    "metadata",
    "numbers_below",
    "references",
]


_BLOCK = 1 << 13
_NUM_DRAWS, _MOST_DRAWN = 400, 512
INTERVAL = "95 %, bootstrap over inputs, 400 draws"


@dataclass(frozen=True)
class Correlations:
    """The correlation of gradients at every layer, and what theory says of idealized nets.

    Args:
        means: Over all pairs of inputs; NaN where it is not defined.
        depths: Per layer the nonlinearities on the longest path from it to the output.
        joins: Per layer the residual joins on the longest such path; all 0 in a plain net.
        mixes_samples: Whether one input's output depends on the others (batch norm in training).
        mode: ``train`` | ``eval``.
    """

    names: list[str]
    means: list[MeanCosine]
    depths: list[int]
    joins: list[int]
    mixes_samples: bool
    mode: str

    @property
    def values(self) -> list[float]:
        """The mean cosines."""
        return [one.mean for one in self.means]

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the probe."""
        return {
            "layer": list(range(len(self.names))),
            "name": self.names,
            "correlation": self.values,
            "correlation_low": [one.low for one in self.means],
            "correlation_high": [one.high for one in self.means],
        }


def gradient_correlation(model: nn.Module, inputs: Any) -> Correlations:
    """Return the mean cosine, over pairs of inputs, of the gradients at every layer's output.

    Row i of a layer's gradient is ∂(sum of all outputs)/∂(activation of input i), from one backward
    pass. Where the model mixes samples, as batch norm does in training mode, that row also holds
    what input i does to the outputs of the others; `Correlations.mixes_samples` says so. NaN where
    fewer than two inputs have a gradient, where it is not finite, and where the output's first axis
    is not the batch. See `analyzer.gradient_correlation`.
    """
    model = unwrapped(model)
    with torch.inference_mode(False), preserve_state(model), torch.enable_grad():
        args, kwargs = cloned(call_arguments(inputs), requires_grad=True)
        with layer_outputs(model) as layers:
            output, log = watched_forward(model, args, kwargs)
        main = main_output(output)
        mixes = mixes_samples(main, layers)
        roots = output_nodes(output)
        sites = joins_in_graph(roots, log).sites(roots) or []
        above = [layer.edge and layer.edge.node for layer in layers]
        root = torch.autograd.graph.get_gradient_edge(main).node
        join_nodes = {site.node for site in sites}
        depths = _numbers_above(root, above, is_nonlinearity)
        joins = _numbers_above(root, above, lambda node: node in join_nodes)
        values = _correlations(main, layers)
    mode = "train" if model.training else "eval"
    return Correlations([layer.name for layer in layers], values, depths, joins, mixes, mode)


def correlation_of_samples(model: nn.Module, inputs: Any) -> Correlations:
    """The same, of a model whose samples do not see each other but through batch norms that train.

    These have the statistics of the batch, held constant, as in `measure`.

    Raises:
        AnalyzerError: If samples see each other all the same.
    """
    found = gradient_correlation(model, inputs)
    if found.mixes_samples:
        with as_it_trains(model, inputs):
            found = replace(gradient_correlation(model, inputs), mode=found.mode)
    if found.mixes_samples:
        raise mixing_error(unwrapped(model), "the correlation of gradients")
    return found


def cosines(rows: Tensor) -> Tensor:
    """Return the cosines of all pairs of rows ``[samples, …]``, uncentered, in float64.

    Rows of zeros have no direction and are left out; NaN for rows that are not finite.
    """
    flat = rows.detach().flatten(1)
    largest = flat.abs().amax(dim=1, keepdim=True) if flat.numel() else flat
    is_kept = (largest != 0).flatten()
    flat, largest = flat[is_kept], largest[is_kept].to("cpu", torch.float64)
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for block in torch.split(flat, _BLOCK, dim=1):
        # Divided first: the squares of float64 values below 1e-154 would vanish.
        wide = block.to("cpu", torch.float64) / largest
        products += wide @ wide.T
    norms = products.diagonal().sqrt()
    return products / norms / norms[:, None]


@dataclass(frozen=True)
class MeanCosine:
    """The mean cosine over pairs of inputs, and its 95 % bootstrap interval over the inputs."""

    mean: float
    low: float
    high: float

    @classmethod
    def undefined(cls) -> MeanCosine:
        """Return that of too few inputs."""
        return cls(math.nan, math.nan, math.nan)


def mean_cosine(rows: Tensor) -> MeanCosine:
    """Return the mean cosine over all pairs of rows ``[samples, …]``, uncentered, with its spread.

    The interval holds the middle 95 % of the means over samples drawn with replacement, as many as
    there are (at most 512), over pairs of different samples. Rows of zeros have no direction and
    are left out. NaN for fewer than two rows that are not zero, and where a row is not finite.

    Reference:
        Efron and Tibshirani (1993), An introduction to the bootstrap, chapter 13.
    """
    pairs = cosines(rows)
    count = len(pairs)
    if count < 2:
        return MeanCosine.undefined()
    mean = float((pairs.sum() - count) / (count * (count - 1)))
    if not math.isfinite(mean) or count < 3:
        return MeanCosine(mean, math.nan, math.nan)
    drawn = _draws(min(count, _MOST_DRAWN))
    some = pairs[: drawn.shape[1], : drawn.shape[1]]
    again = drawn.square().sum(1)  # pairs of a sample with itself
    sums = ((drawn @ some) * drawn).sum(1) - again
    means = sums / (drawn.sum(1).square() - again)
    means = means[means.isfinite()]  # a draw of one sample alone has no pair
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return MeanCosine(mean, low, high)


@lru_cache(maxsize=2)
def _draws(count: int) -> Tensor:
    """How often each of some samples is drawn, ``[draws, samples]``."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(count, (_NUM_DRAWS, count), generator=generator)
    drawn = torch.zeros(_NUM_DRAWS, count, dtype=torch.float64)
    return drawn.scatter_add_(1, places, torch.ones_like(drawn))


def references(
    depths: Sequence[int], joins: Sequence[int], branch_scale: float = 1.0
) -> dict[str, list[float]]:
    """Return Balduzzi's curves: the correlation in nets of independent half-active masks.

    ``plain``: 1/2^L with L nonlinearities above the layer. ``residual``: (3/4)^L and
    ``residual_norm``: 1/(β√L), at most 1, with L joins above the layer (one mask in each branch);
    in a net without joins L is that of ``plain``. β is the factor on every branch.

    Reference:
        Balduzzi et al. (2017), The shattered gradients problem, theorems 1 to 3.
    """
    blocks = joins if any(joins) else depths
    return {
        "plain": [0.5**depth for depth in depths],
        "residual": [0.75**block for block in blocks],
        "residual_norm": [
            min(1.0, 1 / (branch_scale * block**0.5)) if block else 1.0 for block in blocks
        ],
    }


def measure(batch: HeldBatch) -> Measurement:
    """Measure the correlation of gradients on a held batch, in the mode of the model.

    Batch norm in training normalizes by the statistics of this batch; they are held fixed here.
    Through statistics that follow the inputs the rows of one batch add to zero, whatever the net:
    all correlations would be about −1/(n − 1).
    """
    with as_it_trains(batch.model, batch.inputs) as notes:
        found = gradient_correlation(batch.model, batch.inputs)
    noted = metadata(found) | notes
    return Measurement(found.columns(), noted)


def frame_of(found: Measurement) -> pd.DataFrame:
    """Return the columns of the contract as a frame; the intervals are in its ``attrs``."""
    import pandas as pd

    names, columns = ("layer", "name", "correlation"), found.columns
    frame = pd.DataFrame({name: columns[name] for name in names}).astype({"layer": "int32"})
    frame["correlation"] = frame["correlation"].astype("float64")
    more = {name: json.dumps(values) for name, values in columns.items() if name not in names}
    frame.attrs.update(found.metadata, **more)
    return frame


def metadata(found: Correlations) -> dict[str, str]:
    """Return what must be known to read the correlations, as text."""
    return {
        "mode": found.mode,
        "mixes_samples": json.dumps(found.mixes_samples),
        "nonlinearities_above": json.dumps(found.depths),
        "joins_above": json.dumps(found.joins),
        "references": json.dumps(references(found.depths, found.joins)),
        "interval": INTERVAL,
    }


def _correlations(main: Tensor, layers: Sequence[LayerOutput]) -> list[MeanCosine]:
    """Run one backward pass; return the correlation at each layer."""
    seen = [number for number, layer in enumerate(layers) if layer.edge is not None]
    values = [MeanCosine.undefined()] * len(layers)
    if not seen:
        return values
    edges = [layers[number].edge for number in seen]
    gradients = torch.autograd.grad(main.sum(), edges, allow_unused=True)
    for number, gradient in zip(seen, gradients, strict=True):
        if gradient is not None and gradient.dim() and len(gradient) == len(main):
            values[number] = mean_cosine(gradient)
    return values


_NONLINEARITY = re.compile(
    "(Celu|Elu|Gelu|Hardsigmoid|Hardswish|Hardtanh|LeakyRelu|Mish|PreluKernel|Relu|Sigmoid|Silu"
    "|Softplus|Tanh|Threshold)Backward[0-9]*"
)


def is_nonlinearity(node: Node) -> bool:
    """Return whether a node is an element-wise nonlinearity, written as module or as function."""
    return _NONLINEARITY.fullmatch(type(node).__name__) is not None


def _numbers_above(
    root: Node, places: Sequence[Node | None], counts: Callable[[Node], bool]
) -> list[int]:
    """Return how many nodes of a kind lie above each place, on the longest path to the root."""
    above: dict[Node, int] = {}
    for node in reversed(inputs_first(root)):
        number = above.setdefault(node, 0) + counts(node)
        for child, _ in node.next_functions:
            if child is not None:
                above[child] = max(above.get(child, 0), number)
    return [0 if place is None else above.get(place, 0) for place in places]


def numbers_below(places: Sequence[Node | None], counts: Callable[[Node], bool]) -> list[int]:
    """Return how many nodes of a kind there are up to each place, on the longest path to it."""
    below: dict[Node, int] = {}
    for place in filter(None, places):
        for node in inputs_first(place) if place not in below else ():
            under = (below.get(child, 0) for child, _ in node.next_functions if child is not None)
            below[node] = max(under, default=0) + counts(node)
    return [0 if place is None else below[place] for place in places]


def gradient_autocorrelation(model: nn.Module, grid: Tensor, max_lag: int) -> list[float]:
    """Return the autocorrelation of the gradient along a line of inputs, at lag 0 to ``max_lag``.

    See `analyzer.gradient_autocorrelation`.
    """
    if len(grid) < max_lag + 2:
        raise ValueError(
            f"a grid of {len(grid)} points is too short for lags up to {max_lag}; expected at "
            f"least {max_lag + 2}. Give more points, or a smaller max_lag."
        )
    return autocorrelation(gradient_on_line(model, grid).tolist(), max_lag)


def gradient_on_line(model: nn.Module, grid: Tensor) -> Tensor:
    """Return the derivative of the sum of a model's outputs along a line of inputs.

    ``[points]`` in float64, per unit of length, for evenly spaced inputs ``[points, …]``.
    """
    steps = grid.detach().double().diff(dim=0).flatten(1)
    if not len(steps) or not torch.allclose(steps, steps[:1].expand_as(steps), rtol=1e-2):
        raise ValueError(
            f"a grid of shape {list(grid.shape)} is not a line of evenly spaced inputs; expected "
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
    """Return the autocorrelation of a series about its mean, for lags 0 … `max_lag`.

    ``Σ (g_t − ḡ)(g_{t+k} − ḡ) / Σ (g_t − ḡ)²``; NaN for a constant series, and where it is not
    finite.
    """
    values = torch.tensor(list(series), dtype=torch.float64)
    centered: Any = values - values.mean()
    total = centered.square().sum()
    lags = range(max_lag + 1)
    return [(centered[: len(values) - k] @ centered[k:] / total).item() for k in lags]
