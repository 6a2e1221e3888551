"""Rules about layers and parameters: over time, not finite, dead, or without any gradient."""

import math

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import Limits, Rule, Seen, Threshold, named
from analyzer.analysis.numerals import decades, number, percent
from analyzer.analysis.profiles import num_units

__all__ = [
    "DEAD",
    "DEAD_UNITS",
    "DETACHED",
    "FROZEN",
    "NONFINITE",
    "NOT_OPTIMIZED",
    "PARTLY_TRAINED",
    "SHRINKING",
    "UNUSED",
]

_LEAST_STEPS_OF_A_TREND = 10
_ENDS = 0.1


def _nonfinite(evidence: Evidence, limits: Limits) -> Seen | None:
    first, loss_step = evidence.nonfinite, evidence.training.nonfinite_step
    step = evidence.end
    if step is None:
        return None
    last = max(step, int(evidence.run.recorded_steps()[-1]))
    layer = first if first is not None and first.step == step else None
    words = {
        "what": f"the {layer.what} of layer {layer.name}" if layer else "the loss",
        "before": str(max(0, step - 1)),
        "loss": f"; the loss is not finite from step {loss_step} on"
        if loss_step is not None
        else "",
    }
    return Seen(float(step), (layer.name,) if layer else (), (step, last), words)


def _shrinking(evidence: Evidence, limits: Limits) -> Seen | None:
    steps = evidence.layer_history.steps
    loss_fall = _loss_decades(evidence, limits["shrinking_loss"])
    if len(steps) < _LEAST_STEPS_OF_A_TREND or loss_fall is None or not evidence.owners:
        return None
    norms = evidence.layer_history.values["output_gradient_norm"][:, evidence.has_parameters]
    width = max(3, math.ceil(_ENDS * len(steps)))
    with np.errstate(divide="ignore", invalid="ignore"):
        early, late = (np.log10(np.median(n, axis=0)) for n in (norms[:width], norms[-width:]))
        fallen = early - late
    # A loss that falls takes its gradients along; only what they fall beyond that is judged.
    limit = limits["shrinking_decades"] + 2 * loss_fall
    known = fallen[np.isfinite(fallen)]
    value = float(np.median(known)) if len(known) else 0.0
    if value < limit:
        return None
    names = tuple(n for n, yes in zip(evidence.owners, fallen >= limit, strict=True) if yes)
    training = evidence.training
    losses = {"start": number(training.first_loss), "end": number(training.final_loss)}
    words = {"value": decades(value), **losses}
    return Seen(value, names, (int(steps[0]), int(steps[-1])), words, limit)


def _loss_decades(evidence: Evidence, limit: float) -> float | None:
    """Decades that the loss fell; None where the training succeeds, 0 where nothing is known."""
    first, final = evidence.training.first_loss, evidence.training.final_loss
    if not (math.isfinite(first) and math.isfinite(final)) or first <= 0:
        return 0.0
    if final < limit * first:
        return None
    return max(0.0, math.log10(first / final))


_LEAST_STEPS = 3
# Dropout silences units at random and padding adds silent ones, which is their purpose.
_SILENT_BY_DESIGN = "Dropout|Pad"


def _has_gradient(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether each parameter received a gradient at any judged step, zeros included."""
    seen = evidence.parameter_history.present["gradient_norm"].any(axis=0)
    return np.asarray(seen, bool)


def _lacks_gradient(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether each parameter received none; of one that the options left out nothing is known."""
    lacks = ~_has_gradient(evidence)
    return lacks & evidence.parameter_history.has_rows if evidence.is_choosy else lacks


def _any_gradient(evidence: Evidence) -> bool:
    """Whether any parameter received one: else gradients were not recorded at all."""
    return bool(_has_gradient(evidence).any())


def _has_layer(evidence: Evidence) -> NDArray[np.bool_]:
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


def _not_held(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether a parameter wants a gradient, and no optimizer holds it, but others of its model."""
    known = evidence.conditions.get("without_optimizer") or ()
    listed = np.isin(evidence.parameters["parameter"].to_numpy(), known)
    chosen: NDArray[np.bool_] = listed & _has_layer(evidence) & _lacks_gradient(evidence)
    return chosen


def _not_optimized(evidence: Evidence, limits: Limits) -> Seen | None:
    chosen = _not_held(evidence)
    return _parameters(evidence, chosen, evidence.layers_of(chosen))


def _is_frozen(evidence: Evidence) -> NDArray[np.bool_]:
    untrained = ~_trained(evidence) & _has_layer(evidence)
    frozen: NDArray[np.bool_] = untrained & _lacks_gradient(evidence) & ~_not_held(evidence)
    return frozen


def _partly_trained(evidence: Evidence, limits: Limits) -> Seen | None:
    chosen = _is_frozen(evidence)
    return _parameters(evidence, chosen, evidence.layers_of(chosen))


def _frozen(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether a minority is frozen, in layers of a kind that is trained elsewhere.

    Several layers just behind the input are a frozen stem, which is meant.
    """
    frozen, elements = _is_frozen(evidence), evidence.parameters["num_elements"].to_numpy()
    if not frozen.any() or elements[frozen].sum() >= limits["frozen_share"] * elements.sum():
        return None
    kinds = dict(zip(evidence.layers["layer"], evidence.layers["kind"].astype(str), strict=True))
    owner = evidence.parameters["layer"]
    of = owner.map(kinds)
    trained = _trained(evidence) & ~frozen
    depths = owner.map(dict(zip(evidence.layers["layer"], evidence.layers["depth"], strict=True)))
    if owner[frozen].nunique() > 1 and depths[frozen].max() < depths[trained].min():
        return None
    elsewhere = [
        ((of == kind) & (owner != layer) & trained).any()
        for kind, layer in zip(of, owner, strict=True)
    ]
    odd = np.array(elsewhere, bool) & ~of.fillna("").str.contains("Norm|Embedding").to_numpy(bool)
    chosen = frozen & odd
    return _parameters(evidence, chosen, evidence.layers_of(chosen))


def _is_passed(evidence: Evidence) -> NDArray[np.bool_]:
    """Whether the output of each parameter's layer received a gradient at any judged step."""
    reached = evidence.layer_history.present["output_gradient_norm"].any(axis=0)
    passed = set(evidence.layers["layer"].to_numpy()[reached])
    return np.array([layer in passed for layer in evidence.parameters["layer"]], bool)


def _unused(evidence: Evidence, limits: Limits) -> Seen | None:
    # What a layer hands on depends on all that it uses.
    is_aside = ~_has_layer(evidence) | (_is_passed(evidence) & _any_gradient(evidence))
    chosen = _trained(evidence) & is_aside & _lacks_gradient(evidence)
    return _parameters(evidence, chosen, tuple(map(str, evidence.parameters["name"][chosen])))


def _detached(evidence: Evidence, limits: Limits) -> Seen | None:
    if not _any_gradient(evidence):
        return None
    lost = _has_layer(evidence) & ~_is_passed(evidence) & _lacks_gradient(evidence)
    chosen = _trained(evidence) & lost
    return _parameters(evidence, chosen, evidence.layers_of(chosen))


def _dead(evidence: Evidence, limits: Limits) -> Seen | None:
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

    ``silent`` is ``[steps, layers]``.
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


NONFINITE = Rule(
    code="nonfinite",
    severity="severe",
    seen_when="a NaN or infinite value appears; the first layer and step are named. Steps that a "
    "gradient scaler skipped do not count",
    value="step",
    reads={
        "nonfinite": ("activation_num_nonfinite", "output_gradient_num_nonfinite"),
        "steps": ("loss",),
    },
    look=_nonfinite,
    sentence="A NaN or infinite value appeared first at step {first} in {what}{loss}.",
    remedy="Look at step {before}; lower the learning rate, clip the gradient, or keep "
    "logarithms, divisions and roots away from zero.",
)

SHRINKING = Rule(
    code="shrinking",
    severity="warning",
    seen_when="gradients shrink over time while the loss does not",
    value="decades",
    reads={"layers": ("output_gradient_norm",), "steps": ("loss",)},
    look=_shrinking,
    sentence="Gradients shrink over time: their norm falls {value} between steps {first} "
    "and {last}, while the loss goes from {start} to {end}.",
    remedy="Units saturate, or the training is on a plateau: normalize, use ReLU-like units, or "
    "lower the learning rate. At a true minimum, stop.",
    thresholds=(
        Threshold(
            "shrinking_decades",
            2.0,
            "decades that the output gradients fall from the first tenth of the steps to the last, "
            "beyond two for each decade that the loss falls",
        ),
        Threshold(
            "shrinking_loss",
            0.5,
            "final loss over first loss; below it the gradients shrink because the training "
            "succeeds",
        ),
    ),
)

DEAD = Rule(
    code="dead",
    severity="severe",
    seen_when="an output gradient is exactly zero to the last step, for 3 steps or more",
    value="layers",
    reads={"layers": ("output_gradient_norm", "activation_num_dead")},
    look=_dead,
    sentence="The gradient is exactly zero in {count} of {all} layers with parameters ({names}) "
    "from step {first} on{because}.",
    remedy="Lower the learning rate, raise the biases (initialize them at zero), use LeakyReLU or "
    "GELU, or start a zero weight elsewhere: these layers cannot learn again by themselves.",
    hides=("dead_units", "shrinking", "chance_level", "step_too_small"),
    hides_everywhere=True,
    panel="dead_units",
)

DETACHED = Rule(
    code="detached",
    severity="warning",
    seen_when="trained parameters of called layers never receive a gradient",
    value="elements",
    reads={"parameters": ("gradient_norm",), "layers": ("output_gradient_norm",)},
    look=_detached,
    sentence="{count} trained parameter elements get no gradient although their layers are called: "
    "the graph is cut after {names}.",
    remedy="Look for detach(), no_grad(), .item(), .data or argmax after them, or for an output "
    "that the loss does not use.",
)

UNUSED = Rule(
    code="unused",
    severity="warning",
    seen_when="trained parameters belong to modules that were never called, or their layer hands "
    "on a gradient of which they get none",
    value="elements",
    reads={"parameters": ("gradient_norm",), "layers": ("output_gradient_norm",)},
    look=_unused,
    sentence="{count} trained parameter elements are never used ({names}): no forward pass called "
    "their module, or its output does not depend on them.",
    remedy="Use them in forward(), or remove them; the optimizer and the checkpoint carry them "
    "for nothing.",
)

FROZEN = Rule(
    code="frozen",
    severity="warning",
    seen_when="a minority of the elements want no gradient, in layers of a kind that is trained "
    "elsewhere in the network",
    value="elements",
    reads={"parameters": ("gradient_norm",)},
    look=_frozen,
    sentence="{count} parameter elements of {names} are frozen, while other layers of the same "
    "kind are trained.",
    remedy="Call requires_grad_(True) and give them to the optimizer; nothing to do if that is "
    "meant.",
    thresholds=(
        Threshold(
            "frozen_share",
            0.5,
            "frozen elements over all; with more of them, as in fine-tuning, it is meant",
        ),
    ),
    hides=("partly_trained",),
    hides_everywhere=True,
)

PARTLY_TRAINED = Rule(
    code="partly_trained",
    severity="note",
    seen_when="parameters want no gradient, as in fine-tuning",
    value="elements",
    reads={"parameters": ("gradient_norm",)},
    look=_partly_trained,
    sentence="{count} parameter elements are frozen, in {names}: they want no gradient, or no "
    "optimizer holds them.",
    remedy="Nothing to do if that is meant; else call requires_grad_(True) and give them to the "
    "optimizer.",
)

NOT_OPTIMIZED = Rule(
    code="not_optimized",
    severity="warning",
    seen_when="parameters want a gradient, and no optimizer holds them, but others of their model",
    value="elements",
    reads={"parameters": ("gradient_norm",)},
    look=_not_optimized,
    sentence="{count} parameter elements of {names} want a gradient, but no optimizer holds them: "
    "they are never trained.",
    remedy="Give model.parameters() to the optimizer, or call requires_grad_(False) on what is "
    "not to be trained.",
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
