"""Attribution: how much of an output each layer carries, and each side of each residual join."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.joins.model_state import unwrapped
from analyzer.probes.activations import (
    LayerOutput,
    as_it_trains,
    evaluating,
    layer_outputs,
    samples_between,
)
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.conductance import PathSums, path_sums
from analyzer.probes.input_path import InputPath, Target, chosen_target, flattened, input_path

__all__ = [
    "METHODS",
    "Attribution",
    "layer_attribution",
    "measure",
    "metadata",
]


METHODS = ("conductance", "integrated_gradients", "gradient_x_activation", "internal_influence")
_COMPLETE = ("conductance", "integrated_gradients")
_HELD_SAMPLES, _HELD_STEPS = 8, 20
_MOST_PASSES = 128


@dataclass(frozen=True)
class JoinAttribution:
    """How much of an output passes a join on either side.

    ``∫ ⟨∂F/∂x through one side, dx/dα⟩ dα`` at the fork x, on the way from the baseline; through
    the shortcut it is NaN where autograd does not see the fork.
    """

    join: int
    name: str
    shortcut: float
    branch: float

    def as_dict(self) -> dict[str, int | str | float]:
        """Return the fields, and the share of the shortcut; NaN where both are 0."""
        total = self.shortcut + self.branch
        return asdict(self) | {"shortcut_share": self.shortcut / total if total else math.nan}


@dataclass(frozen=True)
class Attribution:
    """How much of an output the layers carry.

    Args:
        values: Attribution of each layer, summed over its elements, mean over the samples.
        deltas: Per layer the value minus the output's change from baseline to input, for methods
            that are complete.
        refused: Layers without a value, with the reason.
        joins: The attribution through both sides of each join, for conductance.
        traps: Layers that work in place or are reused, which Captum's DeepLift gets wrong, with the
            reason; their values here are right where they are not refused.
        target: What was explained, in words.
        output_change: Mean over the samples of the output minus that of the baseline.
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
        named = zip(self.names, self.values, strict=True)
        total = math.fsum(value for name, value in named if name not in self.refused)
        return [value / total if total else math.nan for value in self.values]


def layer_attribution(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    method: str = "conductance",
    *,
    num_steps: int = 50,
) -> Attribution:
    """Return how much of an output every layer carries; see `analyzer.layer_attribution`.

    ``conductance``: Σ over steps of gradient · change of the activation on the way from zero inputs
    to the inputs; over all paths it sums to the output's change. ``integrated_gradients`` goes
    straight in the layer's own space. ``gradient_x_activation`` takes the inputs alone,
    ``internal_influence`` the mean gradient. All but ``integrated_gradients`` see every layer call
    in one pass, reused modules call by call.

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
        traps = _deeplift_traps(_layers_and_output(path)[0])
        chosen, change = _target_and_change(path, target)
        if method == "integrated_gradients":
            sums = _integrated_gradients(path, chosen, num_steps)
        else:
            sums = path_sums(path, chosen, method, num_steps)
    names, size = list(sums.values), path.size
    values = [value / size for value in sums.values.values()]
    known = zip(names, values, strict=True)
    deltas = {name: value - change for name, value in known if name not in sums.refused}
    joins = [
        JoinAttribution(*key, shortcut / size, sums.branches[key] / size)
        for key, shortcut in sums.shortcuts.items()
    ]
    return Attribution(
        method=method,
        names=names,
        values=values,
        deltas=deltas if method in _COMPLETE else {},
        refused=sums.refused,
        joins=joins,
        traps=traps,
        target=chosen.said,
        output_change=change,
        num_samples=size,
        num_steps=num_steps,
    )


def measure(batch: HeldBatch) -> Measurement:
    """Measure what every layer carries by each method, for the first samples of a held batch.

    The target is each sample's label where the batch has classes, else the predicted class. The
    metadata are those of the conductance, which comes first; ``by_method`` holds what was refused
    and the convergence deltas of the others. Integrated gradients, which take a pass a layer, are
    left out for networks of more than 128 layers.
    """
    with as_it_trains(batch.model, batch.inputs) as notes:
        return _measured(batch, notes)


def _measured(batch: HeldBatch, notes: dict[str, str]) -> Measurement:
    model = unwrapped(batch.model)
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
    noted = {**notes, "target": said, "by_method": json.dumps(others)}
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


def _layers_and_output(path: InputPath) -> tuple[list[LayerOutput], Tensor]:
    """Run the model at the inputs."""
    points = [point.requires_grad_() for point in path.at((1.0,), 0, path.size)]
    with layer_outputs(path.model, with_values=True) as layers:
        return layers, path.run(points, 0, path.size)[0]


def _target_and_change(path: InputPath, target: Any) -> tuple[Target, float]:
    """Return what is explained, and how much it changes from the baseline to the inputs."""
    points = [point.requires_grad_() for point in path.at((0.0, 1.0), 0, path.size)]
    main, _, _ = path.run(points, 0, path.size)
    chosen = chosen_target(target, main[path.size :])
    picked = flattened(main.detach().double()).gather(1, chosen.index.repeat(2)[:, None])
    return chosen, float((picked[path.size :] - picked[: path.size]).mean())


_RUN_AGAIN = "Captum cannot compute it: checkpointing runs it again in the backward pass"


def _integrated_gradients(path: InputPath, target: Target, num_steps: int) -> PathSums:
    """Return Captum's ``LayerIntegratedGradients`` of every layer, summed over the samples.

    Modules that work in place do so on copies meanwhile, where that changes no output. Captum
    cannot tell the calls of a reused module apart: these are refused, and so are layers whose
    output is changed in place by other code, and those that checkpointing runs again.
    """
    from captum.attr import LayerIntegratedGradients

    sums = PathSums()
    inputs = tuple(path.at((1.0,), 0, path.size))
    with _out_of_place(path):
        layers, main = _layers_and_output(path)
        again = _run_again(path.model, main)
        sums.refused |= {layer.name: _RUN_AGAIN for layer in layers if layer.module in again}
        # Captum would read what an activation became later, and say nothing.
        sums.refused |= _deeplift_traps(layers)
        for layer in layers:
            sums.values[layer.name] = math.nan
            if layer.name in sums.refused:
                continue
            method = LayerIntegratedGradients(lambda *points: path.output_at(points), layer.module)
            found = _attempt(method, inputs, target, num_steps)
            if isinstance(found, str):
                sums.refused[layer.name] = found
            else:
                sums.values[layer.name] = found
    return sums


def _run_again(model: nn.Module, output: Tensor) -> set[nn.Module]:
    """Return the modules that a backward pass calls, where Captum would replace their output."""
    found: set[nn.Module] = set()

    def note(module: nn.Module, args: Any, result: Any) -> None:
        found.add(module)

    weights = [p for p in model.parameters() if p.requires_grad]
    # Reentrant checkpointing refuses Captum just as this.
    with ExitStack() as hooks, suppress(RuntimeError):
        for module in model.modules():
            hooks.enter_context(module.register_forward_hook(note))
        if weights and output.requires_grad:
            torch.autograd.grad(output.sum(), weights, allow_unused=True)
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
        return "Captum cannot compute it: its output holds something that is not a tensor"
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


def _deeplift_traps(layers: Sequence[LayerOutput]) -> dict[str, str]:
    """Return the layer calls whose activation no hook on a module sees as it was, with the reason.

    Captum's DeepLift keeps one input and one output per module, and reads them after the pass: it
    fails, or is silently wrong, where a module is called several times or an output overwritten.
    """
    times_called = Counter(layer.module for layer in layers)
    found = {}
    for layer in layers:
        if (times := times_called[layer.module]) > 1:
            found[layer.name] = f"its module is called {times} times; Captum sees one"
        elif getattr(layer.module, "inplace", False) is True:
            found[layer.name] = "its module works in place"
        elif layer.value is not None and not torch.allclose(
            layer.tensor.detach(), layer.value, rtol=0, atol=0, equal_nan=True
        ):
            found[layer.name] = "its output is changed in place afterwards"
    return found
