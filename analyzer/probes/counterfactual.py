"""What the shortcuts of one network do for its gradient: the same weights with each scaled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _NormBase

from analyzer.joins.backward import node_of_loss
from analyzer.joins.edits import Edit, ScaledShortcuts
from analyzer.joins.find import call_arguments, expect_joins
from analyzer.joins.products import norm_of
from analyzer.joins.rerun import MatchedBranches, MeasuredJoins, Rerun
from analyzer.joins.trace import FunctionMode
from analyzer.probes.activations import LayerOutput, layer_outputs
from analyzer.probes.batch import HeldBatch, Measurement

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HeldNorms", "counterfactual", "measure"]

_VARIANTS = ((1.0, False), (0.5, False), (0.0, False), (0.0, True))


class HeldNorms(FunctionMode):
    """Batch norms with the statistics of one batch, those of the first pass, as constants.

    `rewind` before each further pass. A norm in eval mode in a model that trains (one that is
    frozen) keeps its running statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        frozen = [norm for norm in norms if model.training and not norm.training]
        self._frozen = {id(norm.weight) for norm in frozen if norm.weight is not None}
        self.held: list[tuple[Tensor, Tensor]] = []
        self._place = 0

    def rewind(self) -> None:
        """Begin another pass over the same norms."""
        self._place = 0

    def call(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function, a batch norm with what it had in the first pass."""
        return self._norm(*args, **kwargs) if func is batch_norm else func(*args, **kwargs)

    def _norm(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if id(weight) in self._frozen:
            return batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        if self._place == len(self.held):
            axes = [axis for axis in range(x.dim()) if axis != 1]
            like = x if weight is None else weight
            found = torch.var_mean(x.detach().float(), axes, correction=0)
            self.held.append((found[1].to(like.dtype), found[0].to(like.dtype)))
        mean, var = self.held[self._place]
        self._place += 1
        return batch_norm(x, mean, var, weight, bias, False, momentum, eps)


def measure(batch: HeldBatch) -> Measurement:
    """Take the gradient at each layer with every shortcut times 1, 0.5 and 0, and rescaled.

    See `counterfactual`. In the metadata are ``losses`` of the four, in their order, and
    ``not_rescaled``: names of the joins whose branch could not be given the scale of the join.
    """
    args, kwargs = call_arguments(batch.inputs)
    rerun = Rerun(batch.model, args, kwargs, in_eval=True)
    expect_joins(rerun.model, len(rerun.joins))
    norms, measured = HeldNorms(rerun.model), MeasuredJoins()
    columns: dict[str, list[Any]] = {
        key: [] for key in ("layer", "name", "skip_scale", "rescaled", "output_gradient_norm")
    }
    losses, matched = [], MatchedBranches({})
    for scale, rescaled in _VARIANTS:
        edits: list[Edit] = [measured] if scale == 1 else [ScaledShortcuts(scale)]
        if rescaled:
            matched = MatchedBranches(measured.deviations)
            edits.append(matched)
        norms.rewind()
        loss, found = _gradients(rerun, edits, norms, batch)
        losses.append(loss)
        columns["layer"] += range(len(found))
        columns["name"] += found
        columns["skip_scale"] += [scale] * len(found)
        columns["rescaled"] += [rescaled] * len(found)
        columns["output_gradient_norm"] += found.values()
    factors = matched.factors
    failed = [join.name for join in rerun.joins if math.isnan(factors.get(join.index, math.nan))]
    notes = {
        "mode": "eval, batch norm with the statistics of the batch as constants",
        "losses": json.dumps(losses),
        "not_rescaled": json.dumps(failed),
    }
    return Measurement(columns, notes)


def _gradients(
    rerun: Rerun, edits: list[Edit], norms: HeldNorms, batch: HeldBatch
) -> tuple[float, Mapping[str, float | None]]:
    """Return the loss of one pass and the norms of the gradients at its layers, by their names."""

    def call(*args: Any, **kwargs: Any) -> tuple[Any, list[LayerOutput]]:
        with layer_outputs(rerun.model) as layers:
            return rerun.model(*args, **kwargs), layers

    with torch.inference_mode(False), torch.enable_grad():
        output, layers = rerun.run(edits, call, beneath=norms, with_grad=True)
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
