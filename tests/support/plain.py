"""Gradients by plain autograd, of an unrecorded training, to compare a recording with."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.opened import Run

__all__ = ["Plain", "compare", "recorded"]


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in _tensors(value)] if values else []


class Plain:
    """Notes ``‖∂L/∂y‖`` of the calls of layers, and the norms of gradients, by step and name.

    Args:
        is_on: False in the recorded training, where nothing happens.
    """

    def __init__(self, is_on: bool = True) -> None:
        self.is_on = is_on
        self.step = 0
        self.layers: dict[tuple[int, str], float] = {}
        self.parameters: dict[tuple[int, str], float] = {}
        self._times: dict[str, int] = {}

    def watch(self, model: nn.Module, prefix: str = "") -> nn.Module:
        """Watch the leaves of a model, and the modules that own parameters."""
        for path, module in model.named_modules():
            if self.is_on and (not module._modules or module._parameters):
                name = prefix + path or type(model).__name__
                module.register_forward_hook(lambda m, a, y, name=name: self._look(name, y))
        return model

    def _look(self, name: str, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        call = self._times.get(name, 0)
        self._times[name] = call + 1
        layer = f"{name}#{call}" if call else name
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._add(layer, gradient))

    def _add(self, layer: str, gradient: Tensor) -> None:
        key, norm = (self.step, layer), float(gradient.detach().double().norm())
        self.layers[key] = (self.layers.get(key, 0.0) ** 2 + norm**2) ** 0.5

    def update(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """The optimizer is about to step with these gradients."""
        if self.is_on:
            for name, parameter in named:
                if parameter.grad is not None:
                    norm = parameter.grad.detach().double().norm()
                    self.parameters[self.step, name] = float(norm)
        self.step += 1
        self._times.clear()


def recorded(path: Path, train: Callable[[Plain], object], **options: Any) -> tuple[Run, Plain]:
    """Run a training plain and recorded; return the run and what is true."""
    plain = Plain()
    for truth in (plain, Plain(is_on=False)):
        torch.manual_seed(0)
        if truth is plain:
            train(truth)
        else:
            with analyzer.Recorder(None, path, **options):
                train(truth)
    return analyzer.open_run(path), plain


def compare(run: Run, plain: Plain) -> None:
    """Every true value is there, under its name, and there is no other gradient."""
    assert len(run.steps) == plain.step
    layers = run.layer_stats(columns=["output_gradient_norm"])
    assert _by_name(layers, run.layers) == pytest.approx(plain.layers, rel=1e-5)
    parameters = run.parameter_stats(columns=["gradient_norm"])
    assert _by_name(parameters, run.parameters) == pytest.approx(plain.parameters, rel=1e-5)


def _by_name(rows: pd.DataFrame, table: pd.DataFrame) -> dict[tuple[int, str], float]:
    """Values that are not null, by step and name; of equal names one at most has a value."""
    key, column = table.columns[0], rows.columns[-1]
    rows = rows[rows[column].notna()]
    names = rows[key].map(dict(zip(table[key], table["name"], strict=True)))
    keys = list(zip(rows["step"].astype(int), names, strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, rows[column].astype(float), strict=True))
