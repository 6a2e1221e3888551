"""What the shortcuts of one network do for its gradient: the same weights with each scaled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from analyzer.joins.backward import node_of_loss
from analyzer.joins.edits import Edit, ScaledShortcuts
from analyzer.joins.find import call_arguments, expect_joins
from analyzer.joins.products import norm_of
from analyzer.joins.rerun import MatchedBranches, MeasuredJoins, Rerun
from analyzer.probes.activations import LayerOutput, as_it_trains, layer_outputs
from analyzer.probes.batch import HeldBatch, Measurement

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["counterfactual", "measure"]

_VARIANTS = ((1.0, False), (0.5, False), (0.0, False), (0.0, True))


def measure(batch: HeldBatch) -> Measurement:
    """Take the gradient at each layer with every shortcut times 1, 0.5 and 0, and rescaled.

    See `counterfactual`. In the metadata are ``losses`` of the four, in their order, and
    ``not_rescaled``: names of the joins whose branch could not be given the scale of the join.
    """
    with as_it_trains(batch.model, batch.inputs, is_always=True) as notes:
        return _measured(batch, notes)


def _measured(batch: HeldBatch, notes: dict[str, str]) -> Measurement:
    args, kwargs = call_arguments(batch.inputs)
    rerun = Rerun(batch.model, args, kwargs, in_eval=True)
    expect_joins(rerun.model, len(rerun.joins))
    measured = MeasuredJoins()
    columns: dict[str, list[Any]] = {
        key: [] for key in ("layer", "name", "skip_scale", "rescaled", "output_gradient_norm")
    }
    losses, matched = [], MatchedBranches({})
    for scale, rescaled in _VARIANTS:
        edits: list[Edit] = [measured] if scale == 1 else [ScaledShortcuts(scale)]
        if rescaled:
            matched = MatchedBranches(measured.deviations)
            edits.append(matched)
        loss, found = _gradients(rerun, edits, batch)
        losses.append(loss)
        columns["layer"] += range(len(found))
        columns["name"] += found
        columns["skip_scale"] += [scale] * len(found)
        columns["rescaled"] += [rescaled] * len(found)
        columns["output_gradient_norm"] += found.values()
    factors = matched.factors
    failed = [join.name for join in rerun.joins if math.isnan(factors.get(join.index, math.nan))]
    more = {"losses": json.dumps(losses), "not_rescaled": json.dumps(failed)}
    return Measurement(columns, notes | more)


def _gradients(
    rerun: Rerun, edits: list[Edit], batch: HeldBatch
) -> tuple[float, Mapping[str, float | None]]:
    """Return the loss of one pass and the norms of the gradients at its layers, by their names."""

    def call(*args: Any, **kwargs: Any) -> tuple[Any, list[LayerOutput]]:
        with layer_outputs(rerun.model) as layers:
            return rerun.model(*args, **kwargs), layers

    with torch.inference_mode(False), torch.enable_grad():
        output, layers = rerun.run(edits, call, with_grad=True)
        loss = batch.loss(output, batch.targets)
        node_of_loss(loss)
        seen = [layer for layer in layers if layer.edge is not None]
        edges = [layer.edge for layer in seen]
        gradients = torch.autograd.grad(loss, edges, allow_unused=True)
    found: dict[str, float | None] = {layer.name: None for layer in layers}
    for layer, gradient in zip(seen, gradients, strict=True):
        found[layer.name] = None if gradient is None else norm_of(gradient)
    return float(loss.detach()), found


def counterfactual(
    model: nn.Module, inputs: Any, targets: Any, loss: Callable[[Any, Any], Tensor]
) -> pd.DataFrame:
    """Return the gradient at every layer of one network with its shortcuts scaled.

    ``‖∂L/∂y‖`` of each layer's output y, with the shortcut at every join multiplied by 1 (the
    network as it is), by 0.5 and by 0; and by 0 with each branch multiplied by the one factor that
    gives its join the standard deviation that it has with the shortcut. The weights and the batch
    are the same, so that what differs is the effect of the shortcuts alone: no second training, no
    other seed. Dropout is off. Batch norms use the mean and the variance that the batch has in the
    network as it is, as constants.

    Args:
        model: Any eager model with residual joins.
        inputs: A batch; a tuple for several arguments, a dict for keyword arguments.
        targets: What ``loss`` compares the output with.
        loss: ``loss(output, target)``, the mean over the batch.

    Returns:
        One row for each of the four and each layer, in call order: ``layer``, ``name``,
        ``skip_scale``, ``rescaled``, ``output_gradient_norm`` (loss / unit of y; null where no
        gradient arrives). ``attrs["losses"]`` are the four losses, ``attrs["not_rescaled"]`` the
        joins whose branch no factor could give that deviation: it is zero, or they concatenate.

    Raises:
        AnalyzerError: If the model has no join, or one cannot be intercepted; it is named.
        ValueError: If the loss is not one number, or does not depend on the model.

    Reference:
        He et al. (2016), Identity mappings in deep residual networks, section 3.1.
    """
    import pandas as pd

    found = measure(HeldBatch(model, inputs, targets, loss))
    frame = pd.DataFrame(dict(found.columns)).astype({"layer": "int32"})
    frame["output_gradient_norm"] = frame["output_gradient_norm"].astype("float64")
    for name in ("losses", "not_rescaled"):
        frame.attrs[name] = json.loads(found.metadata[name])
    return frame
