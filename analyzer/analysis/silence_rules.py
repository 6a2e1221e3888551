"""Findings about layers without gradient, and why: frozen, unused, detached, dead; dead units."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.activations import num_units
from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import Finding, named

__all__ = ["dead_layers", "dead_unit_layers", "detached", "frozen", "unused"]

_LEAST_STEPS = 3
# Dropout silences units at random and padding adds silent ones, which is their purpose.
_SILENT_BY_DESIGN = "Dropout|Pad"


def _has_gradient(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether each parameter received a gradient at any judged step, zeros included."""
    seen: NDArray[np.bool_] = evidence.parameter_history.present["gradient_norm"].sum(axis=0) > 0
    return seen


def _has_layer(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether each parameter belongs to a layer, that is, to a module that was called."""
    return evidence.parameters["layer"].notna().to_numpy(bool)


def _trained(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether each parameter wants a gradient and an optimizer holds it."""
    return evidence.parameters["trained"].to_numpy(bool)


def _layers_of(evidence: Evidence, chosen: NDArray[np.bool_]) -> tuple[str, ...]:
    """Layer names of the chosen parameters, in call order."""
    ids = evidence.parameters["layer"][chosen].dropna().astype(int)
    wanted = set(ids)
    pairs = zip(evidence.layers["layer"], evidence.names, strict=True)
    return tuple(name for layer, name in pairs if layer in wanted)


def _elements(evidence: Evidence, chosen: NDArray[np.bool_]) -> int:
    """Elements of the chosen parameters."""
    return int(evidence.parameters["num_elements"].to_numpy()[chosen].sum())


def _span(steps: NDArray[np.int64]) -> tuple[int, int]:
    """First and last of the steps."""
    return (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)


def frozen(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Parameters that want no gradient, or that no optimizer holds."""
    chosen = ~_trained(evidence) & _has_layer(evidence)
    if not chosen.any():
        return []
    names, count = _layers_of(evidence, chosen), _elements(evidence, chosen)
    return [
        Finding(
            "frozen",
            "note",
            names,
            _span(evidence.parameter_history.steps),
            float(count),
            None,
            f"{count:,} parameter elements are frozen, in {named(names)}: they want no gradient, "
            "or no optimizer holds them.",
            "Nothing to do if that is meant; else call requires_grad_(True) and give them to the "
            "optimizer.",
        )
    ]


def unused(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Trained parameters of modules that were never called."""
    chosen = _trained(evidence) & ~_has_layer(evidence) & ~_has_gradient(evidence)
    if not chosen.any() or not len(evidence.layers):
        return []
    names = tuple(str(n) for n in evidence.parameters["name"][chosen])
    count = _elements(evidence, chosen)
    return [
        Finding(
            "unused",
            "warning",
            names,
            _span(evidence.parameter_history.steps),
            float(count),
            None,
            f"{count:,} trained parameter elements are never used: no forward pass called the "
            f"module of {named(names)}.",
            "Call the module in forward, or remove it; the optimizer and the checkpoint carry it "
            "for nothing.",
        )
    ]


def detached(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Trained parameters of called modules that no gradient ever reaches."""
    history = evidence.parameter_history
    chosen = _trained(evidence) & _has_layer(evidence) & ~_has_gradient(evidence)
    if not chosen.any() or not len(history.steps) or not history.present["gradient_norm"].any():
        return []
    names, count = _layers_of(evidence, chosen), _elements(evidence, chosen)
    return [
        Finding(
            "detached",
            "warning",
            names,
            _span(history.steps),
            float(count),
            None,
            f"{count:,} trained parameter elements get no gradient although their layers are "
            f"called: the graph is cut after {named(names)}.",
            "Look for detach(), no_grad(), .item(), .data or argmax after them, or for an output "
            "that the loss does not use.",
        )
    ]


def dead_layers(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Layers whose output gradient is exactly zero up to the last judged step."""
    history = evidence.layer_history
    norms = history.values["output_gradient_norm"]
    start = _silent_since(norms == 0)
    chosen = evidence.has_parameters & (len(history.steps) - start >= _LEAST_STEPS)
    if not chosen.any():
        return []
    blocked = _dead_share(evidence)[-1] >= 1
    names = tuple(n for n, yes in zip(evidence.names, chosen | blocked, strict=True) if yes)
    silent = [n for n, yes in zip(evidence.names, chosen, strict=True) if yes]
    first = int(history.steps[start[chosen].min()])
    block = next((n for n, yes in zip(evidence.names, blocked, strict=True) if yes), None)
    because = f", because every unit of {block} is zero for every sample" if block else ""
    return [
        Finding(
            "dead",
            "severe",
            names,
            (first, int(history.steps[-1])),
            float(chosen.sum()),
            None,
            f"The gradient is exactly zero in {int(chosen.sum())} of "
            f"{int(evidence.has_parameters.sum())} layers with parameters ({named(silent)}) from "
            f"step {first} on{because}.",
            "Lower the learning rate or the biases, use LeakyReLU or GELU, or start a zero weight "
            "elsewhere: these layers cannot learn again by themselves.",
        )
    ]


def _silent_since(silent: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of the step from which each layer is silent to the end; their number where it is not.

    Args:
        silent: Whether the layer was silent, ``[steps, layers]``.
    """
    to_the_end = np.cumprod(silent[::-1], axis=0).sum(axis=0)
    since: NDArray[np.int64] = len(silent) - to_the_end
    return since


def _dead_share(evidence: Evidence) -> NDArray[np.float64]:
    """Dead units over units, ``[steps, layers]``; NaN where there is no unit axis."""
    rows = zip(evidence.layers["kind"], evidence.layers["output_shape"], strict=True)
    units = np.array([num_units(str(kind), shape) or np.nan for kind, shape in rows])
    share: NDArray[np.float64] = evidence.layer_history.values["activation_num_dead"] / units
    return share if len(share) else np.zeros((1, len(units)))


def dead_unit_layers(evidence: Evidence, limits: Mapping[str, float]) -> list[Finding]:
    """Layers in which a large part of the units is zero for every sample, to the end."""
    limit, steps = limits["dead_unit_share"], evidence.layer_history.steps
    share = _dead_share(evidence)
    start = _silent_since(share >= limit)
    kinds, roles = evidence.layers["kind"].astype(str), evidence.layers["role"]
    meant = kinds.str.contains(_SILENT_BY_DESIGN) | (roles == "shortcut").fillna(False)
    chosen = (len(steps) - start >= _LEAST_STEPS) & ~meant.to_numpy(bool)
    if not chosen.any():
        return []
    names = tuple(n for n, yes in zip(evidence.names, chosen, strict=True) if yes)
    worst = float(share[-1][chosen].max())
    first = int(steps[start[chosen].min()])
    return [
        Finding(
            "dead_units",
            "warning",
            names,
            (first, int(steps[-1])),
            worst,
            limit,
            f"Up to {worst:.0%} of the units of {named(names)} are zero for every sample from "
            f"step {first} on.",
            "Lower the learning rate or raise the biases, use LeakyReLU or GELU, or make the "
            "layer narrower.",
        )
    ]
