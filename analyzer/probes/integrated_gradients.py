"""Integrated gradients of a layer's own activation, by Captum."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.probes.activations import layer_outputs
from analyzer.probes.deeplift_traps import deeplift_traps
from analyzer.probes.input_path import InputPath
from analyzer.probes.output_target import Target

__all__ = ["integrated_gradients"]

_RUN_AGAIN = "Captum cannot compute it: checkpointing runs it once more in the backward pass"


def integrated_gradients(
    path: InputPath, target: Target, num_steps: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Return Captum's ``LayerIntegratedGradients`` of every layer, summed over the samples.

    Modules that work in place do so on copies meanwhile, where that changes no output. Captum
    cannot tell the calls of a reused module apart: these are refused, and so are layers whose
    output is changed in place by other code, and those that checkpointing runs once more.

    Args:
        path: The way from the baseline.
        target: What is explained.
        num_steps: Points on the way.

    Returns:
        Per layer the sum, NaN for those that are refused; the refused with the reason.
    """
    from captum.attr import LayerIntegratedGradients

    def forward(*points: Tensor) -> Tensor:
        return path.output_at(points)

    values: dict[str, float] = {}
    refused: dict[str, str] = {}
    inputs = tuple(path.at((1.0,), 0, path.size))
    with _out_of_place(path):
        points = [point.requires_grad_() for point in path.at((1.0,), 0, path.size)]
        with layer_outputs(path.model, with_values=True) as layers:
            main, _, _ = path.run(points, 0, path.size)
        again = _run_again(path.model, main)
        refused |= {layer.name: _RUN_AGAIN for layer in layers if layer.module in again}
        # Captum would read what an activation became later, and say nothing.
        refused |= deeplift_traps(layers)
        for layer in layers:
            values[layer.name] = math.nan
            if layer.name in refused:
                continue
            method = LayerIntegratedGradients(forward, layer.module)
            found = _attempt(method, inputs, target, num_steps)
            if isinstance(found, str):
                refused[layer.name] = found
            else:
                values[layer.name] = found
    return values, refused


def _run_again(model: nn.Module, output: Tensor) -> set[nn.Module]:
    """Return the modules that a backward pass calls, where Captum would replace their output."""
    found: set[nn.Module] = set()

    def note(module: nn.Module, args: Any, result: Any) -> None:
        found.add(module)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    weights = [p for p in model.parameters() if p.requires_grad]
    try:
        if weights and output.requires_grad:
            with suppress(RuntimeError):  # reentrant checkpointing refuses Captum just as this
                torch.autograd.grad(output.sum(), weights, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _attempt(
    method: Any, inputs: tuple[Tensor, ...], target: Target, num_steps: int
) -> float | str:
    """Return the sum of an attribution, or why Captum cannot compute it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = method.attribute(inputs, target=target.index, n_steps=num_steps)
    except AttributeError:
        # Captum clones every member of a tuple: attention returns its output with None.
        return "Captum cannot compute it: its output holds something that is no tensor"
    except (RuntimeError, AssertionError, IndexError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"Captum cannot compute it: {reason}"
    parts = parts if isinstance(parts, tuple) else (parts,)
    return math.fsum(float(part.detach().double().sum()) for part in parts)


@contextmanager
def _out_of_place(path: InputPath) -> Iterator[None]:
    """Let modules with an ``inplace`` option copy, if the output stays the same without it."""
    changed = [m for m in path.model.modules() if getattr(m, "inplace", False) is True]
    before = _output(path)
    _set_inplace(changed, False)
    if not torch.equal(before, _output(path)):
        # Code that drops what the module returns relies on the change in place.
        _set_inplace(changed, True)
    try:
        yield
    finally:
        _set_inplace(changed, True)


def _set_inplace(modules: list[nn.Module], value: bool) -> None:
    for module in modules:
        setattr(module, "inplace", value)  # noqa: B010 - no attribute of every module


def _output(path: InputPath) -> Tensor:
    return path.output_at(path.at((1.0,), 0, path.size)).detach()
