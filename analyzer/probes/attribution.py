"""Attribution: how much of an output each layer carries, and each side of each residual join."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from analyzer.joins.model_state import unwrapped
from analyzer.probes.activations import evaluating, layer_outputs, samples_between
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.conductance import PathSums, path_sums
from analyzer.probes.deeplift_traps import deeplift_traps
from analyzer.probes.input_path import InputPath, input_path
from analyzer.probes.integrated_gradients import integrated_gradients
from analyzer.probes.join_attribution import JoinAttribution, join_attributions
from analyzer.probes.output_target import Target, chosen_target, flattened

__all__ = ["METHODS", "Attribution", "layer_attribution", "measure", "metadata"]

METHODS = ("conductance", "integrated_gradients", "gradient_x_activation", "internal_influence")
_COMPLETE = ("conductance", "integrated_gradients")
_ROWS = 512
_HELD_SAMPLES, _HELD_STEPS = 8, 20
_MOST_PASSES = 128


@dataclass(frozen=True)
class Attribution:
    """How much of an output the layers carry.

    Args:
        method: One of `METHODS`.
        names: Layers in call order.
        values: Attribution of each, summed over its elements, mean over the samples.
        deltas: Per layer the value minus the output's change from baseline to input, for methods
            that are complete.
        refused: Layers without a value, with the reason.
        joins: The attribution through both sides of each join, for conductance.
        traps: Layers that work in place or are reused, which Captum's DeepLift gets wrong, with the
            reason; their values here are right where they are not refused.
        target: What was explained, in words.
        output_change: Mean over the samples of the output minus that of the baseline.
        num_samples: Samples of the batch.
        num_steps: Points on the way from the baseline.
    """

    method: str
    names: list[str]
    values: list[float]
    deltas: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    joins: list[JoinAttribution] = field(default_factory=list)
    traps: dict[str, str] = field(default_factory=dict)
    target: str = ""
    output_change: float = math.nan
    num_samples: int = 0
    num_steps: int = 0

    @property
    def shares(self) -> list[float]:
        """Each value over the sum of those that there are; NaN where the sum is 0."""
        total = math.fsum(v for v, n in zip(self.values, self.names, strict=True) if self._has(n))
        return [value / total if total else math.nan for value in self.values]

    def _has(self, name: str) -> bool:
        return name not in self.refused


def layer_attribution(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    method: str = "conductance",
    *,
    num_steps: int = 50,
) -> Attribution:
    """Return how much of an output every layer carries, as Captum's layer methods have it.

    ``conductance``: Σ over steps of gradient · change of the activation on the way from zero inputs
    (zero embeddings, for token models) to the inputs; over all paths it sums to the output's
    change. ``integrated_gradients`` goes straight in the layer's own space.
    ``gradient_x_activation`` takes the inputs alone, ``internal_influence`` the mean gradient. All
    but ``integrated_gradients`` see every layer call in one pass, reused modules call by call.

    Args:
        model: Any eager model, evaluated in eval mode.
        inputs: A batch; a tuple for several arguments, a dict for keyword arguments.
        target: See `chosen_target`; None for the predicted class, of the last position.
        method: One of `METHODS`.
        num_steps: Points on the way (Captum's ``n_steps``).

    Raises:
        ValueError: If method, steps or target do not fit.
        AnalyzerError: If the inputs cannot be scaled to zero.

    Reference:
        Dhamdhere et al. (2018), How important is a neuron; Sundararajan et al. (2017), Axiomatic
        attribution for deep networks; Leino et al. (2018), Influence-directed explanations.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; expected one of {', '.join(METHODS)}")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected at least 1 point on the way")
    model = unwrapped(model)
    with evaluating(model), torch.enable_grad():
        path = input_path(model, inputs)
        traps = _traps(path)
        chosen, change = _target_and_change(path, target)
        if method == "integrated_gradients":
            sums, refused = integrated_gradients(path, chosen, num_steps)
            joins: list[JoinAttribution] = []
        else:
            sums, refused, joins = _summed(path, chosen, method, num_steps)
    names = list(sums)
    values = [value / path.size for value in sums.values()]
    known = zip(names, values, strict=True)
    deltas = {name: value - change for name, value in known if name not in refused}
    return Attribution(
        method=method,
        names=names,
        values=values,
        deltas=deltas if method in _COMPLETE else {},
        refused=refused,
        joins=[join.divided_by(path.size) for join in joins],
        traps=traps,
        target=chosen.said,
        output_change=change,
        num_samples=path.size,
        num_steps=num_steps,
    )


def measure(batch: HeldBatch) -> Measurement:
    """Measure what every layer carries by each method, for the first samples of a held batch.

    The target is each sample's label where the batch has classes, else the predicted class. The
    metadata are those of the conductance, which comes first; ``by_method`` holds what was refused
    and the convergence deltas of the others. Integrated gradients, which take a pass a layer, are
    left out for networks of more than 128 layers.
    """
    model = unwrapped(batch.model)
    with evaluating(model):
        size = input_path(model, batch.inputs).size
    inputs = samples_between(batch.inputs, 0, _HELD_SAMPLES, size)
    labels = batch.labels
    is_class = labels is not None and labels.dim() == 1 and len(labels) == size
    target = labels[:_HELD_SAMPLES] if labels is not None and is_class else None
    found = [layer_attribution(model, inputs, target, num_steps=_HELD_STEPS)]
    for method in METHODS[1:]:
        if method != "integrated_gradients" or len(found[0].names) <= _MOST_PASSES:
            found.append(layer_attribution(model, inputs, target, method, num_steps=_HELD_STEPS))
    columns: dict[str, Sequence[Any]] = {
        "layer": [number for one in found for number in range(len(one.names))],
        "name": [name for one in found for name in one.names],
        "method": [one.method for one in found for _ in one.names],
        "attribution": [value for one in found for value in one.values],
        "share": [share for one in found for share in one.shares],
    }
    others = {o.method: {"refused": o.refused, "convergence_delta": o.deltas} for o in found[1:]}
    said = "label" if target is not None else found[0].target
    noted = {"target": said, "by_method": json.dumps(others)}
    return Measurement(columns, metadata(found[0]) | noted)


def metadata(found: Attribution) -> dict[str, str]:
    """Return what must be known to read an attribution, as text."""
    return {
        "mode": "eval",
        "baseline": "zero",
        "target": found.target,
        "output_change": repr(found.output_change),
        "num_samples": str(found.num_samples),
        "num_steps": str(found.num_steps),
        "convergence_delta": json.dumps(found.deltas),
        "refused": json.dumps(found.refused),
        "in_place_or_reused": json.dumps(found.traps),
        "joins": json.dumps([join.as_dict() for join in found.joins]),
    }


def _traps(path: InputPath) -> dict[str, str]:
    """Return the layers that work in place or are reused."""
    points = [point.requires_grad_() for point in path.at((1.0,), 0, path.size)]
    with layer_outputs(path.model, with_values=True) as layers:
        path.run(points, 0, path.size)
        return deeplift_traps(layers)


def _target_and_change(path: InputPath, target: Any) -> tuple[Target, float]:
    """Return what is explained, and how much it changes from the baseline to the inputs."""
    points = [point.requires_grad_() for point in path.at((0.0, 1.0), 0, path.size)]
    main, _, _ = path.run(points, 0, path.size)
    chosen = chosen_target(target, main[path.size :])
    picked = flattened(main.detach().double()).gather(1, chosen.index.repeat(2)[:, None])
    return chosen, float((picked[path.size :] - picked[: path.size]).mean())


def _summed(
    path: InputPath, target: Target, method: str, num_steps: int
) -> tuple[dict[str, float], dict[str, str], list[JoinAttribution]]:
    """Return the sums over all samples, a group of samples at a time."""
    group = max(1, _ROWS // (num_steps + 1))
    total = PathSums()
    joins: list[JoinAttribution] = []
    for start in range(0, path.size, group):
        stop = min(start + group, path.size)
        with layer_outputs(path.model, with_values=True) as layers:
            part = path_sums(path, layers, target, method, num_steps, start, stop)
        total.add(part)
        if method == "conductance":
            some = join_attributions(part, path, start, stop)
            joins = [a + b for a, b in zip(joins, some, strict=True)] if joins else some
    return total.values, total.refused, joins
