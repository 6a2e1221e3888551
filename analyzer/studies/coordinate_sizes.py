"""The sizes that a coordinate check compares, measured on one network while it takes its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.networks.blocks import private_random_state
from analyzer.studies.expected_growth import Part
from analyzer.studies.measuring import LayerSizes, Scores, layer_sizes
from analyzer.studies.own_updates import LayerCall, recorded_calls

__all__ = ["COMMON", "GRADIENTS", "INPUT", "SCATTERED", "Key", "Measured"]

# The own update if its signs were random: that of many units that do not act together.
SCATTERED = "scattered own update"
# The input of a layer.
INPUT = "input"
# The part of it that samples have in common.
COMMON = "common input"
# The gradients that the updates so far were made of.
GRADIENTS = "gradients so far"
# Quantity, step, layer, parameter (empty for what is of the whole layer).
Key = tuple[str, int, str, str]


class Measured:
    """One network: what its layers make of the first batch, now and after each update."""

    def __init__(
        self,
        model: nn.Module,
        pairs: Sequence[tuple[Tensor, Tensor]],
        loss: Callable[[Any, Any], Tensor],
    ) -> None:
        self._model, self._pairs, self._loss = model, pairs, loss
        self._calls: list[LayerCall] = []
        self._layers: list[LayerSizes] = []

    def sizes(self, stepper: torch.optim.Optimizer, steps: int, own_steps: int) -> dict[Key, float]:
        """Take the steps; return all root mean squares, which `coordinate_check` defines.

        Own updates are measured after the first ``own_steps`` of them.
        """
        with recorded_calls(self._model) as self._calls:
            seen = self._seen()
        # Other layers do what these make them.
        self._layers = [one for one in seen if one.has_weights or isinstance(one.module, Scores)]
        counted = {one.name: math.sqrt(max(math.prod(one.shape), 1)) for one in self._layers}
        values: dict[Key, float] = {
            ("own activation", 0, call.name, name): call.own_activation(name)
            for call in self._calls
            for name in call.parameters
        }
        for call in self._calls:
            values[INPUT, 0, call.name, ""] = call.input_size
            values[COMMON, 0, call.name, ""] = call.common_input
        for one in self._layers:
            values["activation", 0, one.name, ""] = one.activation_norm / counted[one.name]
        gradients: dict[str, float] = dict.fromkeys(counted, 0.0)
        for one in self._layers:
            gradients[one.name] = (one.gradient_norm or 0.0) / counted[one.name]
            values["gradient", 0, one.name, ""] = gradients[one.name]
        for step in range(1, steps + 1):
            inputs, targets = self._pairs[(step - 1) % len(self._pairs)]
            stepper.zero_grad()
            self._loss(self._model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            stepper.step()
            if step <= own_steps:
                values |= self._own_updates(step)
            after = {one.name: one for one in self._seen()}
            for one in self._layers:
                now = after[one.name]
                values[GRADIENTS, step, one.name, ""] = gradients[one.name]
                gradients[one.name] += (now.gradient_norm or 0.0) / counted[one.name]
                change = float((now.value - one.value).double().norm())
                values["update", step, one.name, ""] = change / counted[one.name]
        return values

    def parts(self) -> dict[tuple[str, str], Part]:
        """Return what is measured, in call order: each layer, and each parameter."""
        found: dict[tuple[str, str], Part] = {}
        for call in self._calls:
            outputs = call.output.numel()
            weights = [call.state[name].numel() for name in call.parameters if call.is_weight(name)]
            found[call.name, ""] = Part(outputs, max(weights, default=0), not weights)
            for name, parameter in call.parameters.items():
                found[call.name, name] = Part(
                    outputs,
                    parameter.numel(),
                    is_vector=not call.is_weight(name),
                    is_affine=call.is_affine_in(name),
                    reads_input=call.is_weight(name) and call.input_size > 0,
                    identity=id(parameter),
                )
        for one in self._layers:
            if isinstance(one.module, Scores):
                found[one.name, ""] = Part(one.value.numel(), 0, False, is_scores=True)
        return found

    def _own_updates(self, step: int) -> dict[Key, float]:
        values: dict[Key, float] = {}
        for call in self._calls:
            for name in call.parameters:
                values["own update", step, call.name, name] = call.own_update(name)
                if call.is_weight(name):
                    scattered = call.own_update(name, is_scattered=True)
                    values[SCATTERED, step, call.name, name] = scattered
        return values

    def _seen(self) -> list[LayerSizes]:
        inputs, targets = self._pairs[0]
        with private_random_state(0):  # the same units are dropped before and after
            return layer_sizes(self._model, inputs, targets, self._loss, with_scores=True)
