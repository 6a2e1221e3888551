"""Saturation: how much of every layer's output is exactly zero on the held batch."""

import torch

from analyzer.joins.find import call_arguments
from analyzer.joins.model_state import cloned, unwrapped
from analyzer.probes.activations import evaluating, layer_outputs
from analyzer.probes.batch import HeldBatch, Measurement

__all__ = ["measure"]


def measure(batch: HeldBatch) -> Measurement:
    """Return the share of exact zeros in the output of every layer call, in eval mode.

    NaN for an empty output.
    """
    model = unwrapped(batch.model)
    with evaluating(model), torch.enable_grad():
        args, kwargs = cloned(call_arguments(batch.inputs), requires_grad=False)
        with layer_outputs(model, with_values=True) as layers:
            model(*args, **kwargs)
    values = [layer.value for layer in layers if layer.value is not None]
    return Measurement(
        {
            "layer": list(range(len(layers))),
            "name": [layer.name for layer in layers],
            "zero_share": [(value == 0).double().mean().item() for value in values],
        }
    )
