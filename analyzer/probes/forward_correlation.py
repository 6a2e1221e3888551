"""Forward collapse: how alike the activations of different inputs are, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from analyzer.joins.find import call_arguments
from analyzer.joins.model_state import cloned, preserve_state, unwrapped
from analyzer.probes.activations import as_it_trains, layer_outputs
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.shattering import (
    INTERVAL,
    MeanCosine,
    cosines,
    frame_of,
    is_nonlinearity,
    mean_cosine,
    numbers_below,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

__all__ = ["forward_correlation", "measure", "relu_correlation"]


def relu_correlation(cosine: Tensor, depth: int) -> Tensor:
    """Return the cosines of two inputs behind L layers of an infinitely wide ReLU net.

    ``c ← (√(1 − c²) + c (π − arccos c)) / π`` at each layer, for Gaussian weights and no biases: it
    rises to 1, so that a deep plain ReLU net maps all inputs to one direction.

    Args:
        cosine: Of the inputs, any shape.
        depth: L.

    Reference:
        Cho and Saul (2009), Kernel methods for deep learning, equation 3 at n = 1.
    """
    for _ in range(depth):
        cosine = cosine.clamp(-1, 1)
        root = (1 - cosine.square()).clamp_min(0).sqrt()
        cosine = (root + cosine * (torch.pi - cosine.arccos())) / torch.pi
    return cosine


def measure(batch: HeldBatch) -> Measurement:
    """Measure the mean cosine of the activations of different inputs, at every layer's output.

    In the mode of the model, without dropout; batch norms that train have the statistics of the
    batch. In the metadata is ``references``: what an infinitely wide plain ReLU net with as many
    nonlinearities below the layer makes of these inputs.
    """
    model = unwrapped(batch.model)
    with as_it_trains(model, batch.inputs) as notes, preserve_state(model), torch.enable_grad():
        args, kwargs = cloned(call_arguments(batch.inputs), requires_grad=True)
        with layer_outputs(model, with_values=True) as layers:
            model(*args, **kwargs)
    given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim()]
    size = len(given[0]) if given else 0
    found = [
        mean_cosine(layer.value)
        if layer.value is not None and layer.value.dim() and len(layer.value) == size
        else MeanCosine.undefined()
        for layer in layers
    ]
    depths = numbers_below([layer.edge and layer.edge.node for layer in layers], is_nonlinearity)
    columns: dict[str, Sequence[Any]] = {
        "layer": range(len(layers)),
        "name": [layer.name for layer in layers],
        "correlation": [one.mean for one in found],
        "correlation_low": [one.low for one in found],
        "correlation_high": [one.high for one in found],
    }
    noted = {**notes, "num_samples": str(size), "interval": INTERVAL}
    if given and given[0].is_floating_point():
        pairs = cosines(given[0])
        noted["nonlinearities_below"] = json.dumps(depths)
        curve = {depth: _mean_of_pairs(relu_correlation(pairs, depth)) for depth in set(depths)}
        noted["references"] = json.dumps({"relu": [curve[depth] for depth in depths]})
    return Measurement(columns, noted)


def _mean_of_pairs(pairs: Tensor) -> float:
    apart = ~torch.eye(len(pairs), dtype=torch.bool)
    return float(pairs[apart].mean())


def forward_correlation(model: nn.Module, inputs: Any) -> pd.DataFrame:
    """Return how alike the activations of different inputs are, at every layer (forward collapse).

    The mean cosine, uncentered, over all pairs of inputs, of the activations. Near 1 deep inside
    all inputs have one direction (the ordered phase): then the correlation of gradients looks
    perfect and means nothing.

    Args:
        model: Any eager model, in the mode it is in but without dropout; batch norms in training
            mode have the statistics of the batch, as constants.
        inputs: A batch; a tuple for several arguments, a dict for keyword arguments.

    Returns:
        One row a layer, in call order: ``layer``, ``name``, ``correlation`` (NaN for fewer than two
        inputs, or where the first axis does not count them). ``attrs``, as JSON:
        ``correlation_low``, ``correlation_high``, the 95 % bootstrap interval over the inputs;
        ``references``, the curve of an infinitely wide plain ReLU net (``relu``).

    Reference:
        Schoenholz et al. (2017), Deep information propagation.
    """

    def none(output: Any, targets: Any) -> Tensor:
        raise NotImplementedError

    return frame_of(measure(HeldBatch(model, inputs, None, none)))
