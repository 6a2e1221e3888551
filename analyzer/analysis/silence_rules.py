"""Rules about layers without gradient, and why: frozen, unused, detached, dead; dead units."""

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.activations import num_units
from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import Limits, Rule, Seen, Threshold, named
from analyzer.analysis.numerals import percent

__all__ = ["DEAD", "DEAD_UNITS", "DETACHED", "FROZEN", "UNUSED"]

_LEAST_STEPS = 3
# Dropout silences units at random and padding adds silent ones, which is their purpose.
_SILENT_BY_DESIGN = "Dropout|Pad"


def _has_gradient(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether each parameter received a gradient at any judged step, zeros included."""
    seen = evidence.parameter_history.present["gradient_norm"].any(axis=0)
    return np.asarray(seen, bool)


def _has_layer(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether each parameter belongs to a layer, that is, to a module that was called."""
    return evidence.parameters["layer"].notna().to_numpy(bool)


def _trained(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether each parameter wants a gradient and an optimizer holds it."""
    return evidence.parameters["trained"].to_numpy(bool)


def _parameters(
    evidence: Evidence, chosen: NDArray[np.bool_], names: tuple[str, ...]
) -> Seen | None:
    """The elements of the chosen parameters, over all judged steps; None where none is chosen."""
    if not chosen.any():
        return None
    steps = evidence.parameter_history.steps
    count = int(evidence.parameters["num_elements"].to_numpy()[chosen].sum())
    ends = (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)
    return Seen(float(count), names, ends, {"count": f"{count:,}", "names": named(names)})


def _frozen(evidence: Evidence, limits: Limits) -> Seen | None:
    chosen = ~_trained(evidence) & _has_layer(evidence)
    return _parameters(evidence, chosen, evidence.layers_of(chosen))


def _unused(evidence: Evidence, limits: Limits) -> Seen | None:
    chosen = _trained(evidence) & ~_has_layer(evidence) & ~_has_gradient(evidence)
    return _parameters(evidence, chosen, tuple(map(str, evidence.parameters["name"][chosen])))


def _detached(evidence: Evidence, limits: Limits) -> Seen | None:
    history = evidence.parameter_history
    if not len(history.steps) or not history.present["gradient_norm"].any():
        return None
    chosen = _trained(evidence) & _has_layer(evidence) & ~_has_gradient(evidence)
    return _parameters(evidence, chosen, evidence.layers_of(chosen))


def _dead(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether output gradients are exactly zero up to the last judged step."""
    history, owners = evidence.layer_history, evidence.has_parameters
    start = _silent_since(history.values["output_gradient_norm"] == 0)
    chosen = owners & (len(history.steps) - start >= _LEAST_STEPS)
    if not chosen.any():
        return None
    blocked = _dead_share(evidence)[-1] >= 1
    because = ""
    if blocked.any():
        block = evidence.chosen(blocked)[0]
        because = f", because every unit of {block} is zero for every sample"
    words = {
        "count": str(int(chosen.sum())),
        "all": str(int(owners.sum())),
        "names": named(evidence.chosen(chosen)),
        "because": because,
    }
    ends = int(history.steps[start[chosen].min()]), int(history.steps[-1])
    return Seen(float(chosen.sum()), evidence.chosen(chosen | blocked), ends, words)


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


def _dead_units(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether a large part of the units of a layer is zero for every sample, to the end."""
    steps = evidence.layer_history.steps
    share = _dead_share(evidence)
    start = _silent_since(share >= limits["dead_unit_share"])
    kinds, roles = evidence.layers["kind"].astype(str), evidence.layers["role"]
    meant = kinds.str.contains(_SILENT_BY_DESIGN) | (roles == "shortcut").fillna(False)
    chosen = (len(steps) - start >= _LEAST_STEPS) & ~meant.to_numpy(bool)
    if not chosen.any():
        return None
    worst, names = float(share[-1][chosen].max()), evidence.chosen(chosen)
    words = {"share": percent(worst), "names": named(names)}
    return Seen(worst, names, (int(steps[start[chosen].min()]), int(steps[-1])), words)


DEAD = Rule(
    code="dead",
    severity="severe",
    seen_when="an output gradient is exactly zero to the last step, for 3 steps or more",
    value="layers",
    reads={"layers": ("output_gradient_norm", "activation_num_dead")},
    look=_dead,
    sentence="The gradient is exactly zero in {count} of {all} layers with parameters ({names}) "
    "from step {first} on{because}.",
    remedy="Lower the learning rate or the biases, use LeakyReLU or GELU, or start a zero weight "
    "elsewhere: these layers cannot learn again by themselves.",
    hides=("dead_units", "shrinking"),
    panel="dead_units",
)

DETACHED = Rule(
    code="detached",
    severity="warning",
    seen_when="trained parameters of called layers never receive a gradient",
    value="elements",
    reads={"parameters": ("gradient_norm",)},
    look=_detached,
    sentence="{count} trained parameter elements get no gradient although their layers are called: "
    "the graph is cut after {names}.",
    remedy="Look for detach(), no_grad(), .item(), .data or argmax after them, or for an output "
    "that the loss does not use.",
)

UNUSED = Rule(
    code="unused",
    severity="warning",
    seen_when="trained parameters belong to modules that were never called",
    value="elements",
    reads={"parameters": ("gradient_norm",)},
    look=_unused,
    sentence="{count} trained parameter elements are never used: no forward pass called the module "
    "of {names}.",
    remedy="Call the module in forward, or remove it; the optimizer and the checkpoint carry it "
    "for nothing.",
)

FROZEN = Rule(
    code="frozen",
    severity="note",
    seen_when="parameters want no gradient, or no optimizer holds them",
    value="elements",
    reads={"parameters": ("gradient_norm",)},
    look=_frozen,
    sentence="{count} parameter elements are frozen, in {names}: they want no gradient, or no "
    "optimizer holds them.",
    remedy="Nothing to do if that is meant; else call requires_grad_(True) and give them to the "
    "optimizer.",
)

DEAD_UNITS = Rule(
    code="dead_units",
    severity="warning",
    seen_when="units are zero for every sample, to the last step, for 3 steps or more",
    value="share of the layer",
    reads={"layers": ("activation_num_dead",)},
    look=_dead_units,
    sentence="Up to {share} of the units of {names} are zero for every sample from step {first} "
    "on.",
    remedy="Lower the learning rate or raise the biases, use LeakyReLU or GELU, or make the layer "
    "narrower.",
    thresholds=(
        Threshold(
            "dead_unit_share",
            0.5,
            "dead units over units of a layer; half of a layer's width then does nothing",
        ),
    ),
    panel="dead_units",
)
