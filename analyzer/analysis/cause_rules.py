"""Rules about how a training is set up: whether it is judged at all, modes, inputs, units."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import SUSTAINED_SHARE, Limits, Rule, Seen, Threshold, named, stretch
from analyzer.analysis.numerals import number, percent
from analyzer.storage.run_json import losses

__all__ = [
    "ALIKE_UNITS",
    "ASCENT",
    "DEAD",
    "DROPPED",
    "EVAL_MODE",
    "EXPLODED",
    "FLAT",
    "GRADIENTS_KEPT",
    "INPUT_SCALE",
    "LOSS_INPUT",
    "NOT_JUDGED",
    "SATURATED",
]

_LEAST_UPDATES = 3
EXPLODED = ("exploding", "explodes_at_first", "cliff", "stream_grows", "update_too_large")
FLAT = ("shrinking", "chance_level", "step_too_small", "update_too_small")
DEAD = ("dead", "dead_units", "saturated")
_STEPS = {"steps": ("loss",)}


def why_not_judged(evidence: Evidence) -> list[str]:
    """Return what keeps a run from being called healthy, each as a clause; nothing for most."""
    run, reasons = evidence.run, []
    if run.status == "failed":
        error = run.manifest.get("error")
        reasons.append(f"it failed{f' ({error})' if error else ''}")
    has_gradients = evidence.layer_history.present["output_gradient_norm"].any()
    has_gradients |= evidence.parameter_history.present["gradient_norm"].any()
    if not has_gradients and not len(evidence.layers):
        reasons.append("no layer was recorded")
    elif not has_gradients and evidence.end is None and not len(run.recorded_steps("splits")):
        reasons.append("no gradient was recorded")
    return [*reasons, *losses(run.manifest), *run.warnings]


def _not_judged(evidence: Evidence, limits: Limits) -> Seen | None:
    reasons = why_not_judged(evidence)
    if not reasons:
        return None
    steps = evidence.run.recorded_steps()
    ends = (int(steps[0]), int(steps[-1])) if len(steps) else (0, 0)
    return Seen(float(len(reasons)), (), ends, {"why": named(reasons)})


def _eval_mode(evidence: Evidence, limits: Limits) -> Seen | None:
    about = evidence.conditions.get("eval_mode") or {}
    looks, layers = about.get("looks") or 0, about.get("layers") or {}
    seen = {n: x for n, x in layers.items() if x["steps"] >= limits["sustained_share"] * looks}
    if not seen or looks < 1:
        return None
    worst = max(one["steps"] for one in seen.values()) / looks
    ends = min(x["first_step"] for x in seen.values()), max(x["last_step"] for x in seen.values())
    words = {"share": percent(worst), "count": str(len(seen)), "names": named(list(seen))}
    return Seen(worst, tuple(seen), ends, words)


def _kept(evidence: Evidence, limits: Limits) -> Seen | None:
    about = evidence.conditions.get("gradients_kept") or {}
    kept, of = about.get("updates") or 0, about.get("of") or 0
    if kept < _LEAST_UPDATES or of < 1 or kept < limits["kept_share"] * of:
        return None
    return Seen(kept / of, (), evidence.ends, {"kept": f"{kept:,}", "of": f"{of:,}"})


def _inputs(evidence: Evidence) -> dict[str, Any] | None:
    """The first input that was measured; None without one."""
    inputs = evidence.conditions.get("inputs") or ()
    return next((one for one in inputs if one.get("root_mean_square") is not None), None)


def _input_scale(evidence: Evidence, limits: Limits) -> Seen | None:
    about = _inputs(evidence)
    # Normalization just behind them, or behind a first layer, takes the scale away.
    if about is None or evidence.layers["kind"].astype(str)[:3].str.contains("Norm").any():
        return None
    size, largest = about["root_mean_square"], about.get("largest") or 0.0
    high, low = limits["input_scale_high"], limits["input_scale_low"]
    if low <= largest and size <= high:
        return None
    how, limit = ("large", high) if size > high else ("small", low)
    words = {"how": how, "shape": str(about["shape"]), "largest": number(largest)}
    start = evidence.ends[0]
    return Seen(size, evidence.owners[:1], (start, start), words, limit)


def _slopes(evidence: Evidence) -> NDArray[np.float64]:
    """The mean slope of bounded activations, over its maximum, ``[steps, layers]``.

    Exactly: ``1 − E y²`` of tanh, ``4 (E y − E y²)`` of a sigmoid; NaN for other layers, for the
    outputs of the network, and for gates, which are closed on purpose.
    """
    layers, values = evidence.layers, evidence.layer_history.values
    mean, square = values["activation_mean"], values["activation_std"] ** 2
    square = square + mean**2
    kinds = layers["kind"].astype(str).to_numpy()
    slopes = np.where(kinds == "Tanh", 1 - square, np.nan)
    slopes = np.where(kinds == "Sigmoid", 4 * (mean - square), slopes)
    gated = evidence.joins["join"][evidence.joins["shortcut"] == "gated"]
    inner = ~layers["join"].isin(gated).to_numpy()
    several = (evidence.conditions.get("roots") or 1) > 1
    roots = [str(n).partition(".")[0] if several else "" for n in layers["name"]]
    for root in set(roots):
        here = np.array([one == root for one in roots])
        owners = here & evidence.has_parameters
        last = layers["depth"].to_numpy()[owners].max(initial=-1)
        inner &= ~here | (layers["depth"].to_numpy() < last)
    slopes[:, ~inner] = np.nan
    found: NDArray[np.float64] = slopes
    return found


def _saturated(evidence: Evidence, limits: Limits) -> Seen | None:
    steps, slopes = evidence.layer_history.steps, _slopes(evidence)
    share = limits["sustained_share"]
    pieces = [stretch(x < limits["saturated_slope"], steps, share) for x in slopes.T]
    chosen = np.array([piece is not None for piece in pieces], bool)
    if not chosen.any():
        return None
    ends = [piece for piece in pieces if piece is not None]
    worst = float(np.nanmedian(slopes[:, chosen], axis=0).min())
    words = {"names": named(evidence.chosen(chosen)), "count": str(int(chosen.sum()))}
    span = min(e[0] for e in ends), max(e[1] for e in ends)
    return Seen(max(worst, 0.0), evidence.chosen(chosen), span, words)


def _loss_input(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether a loss takes for scores what are probabilities already, or goes over a wrong axis."""
    about = evidence.conditions.get("loss") or {}
    given, taken, axis = about.get("given"), about.get("taken_by"), about.get("axis")
    words = {}
    if given and taken:
        log = taken == "negative log-likelihood"
        words["what"] = f"{taken} is given the output of a {given}"
        words["so"] = (
            "it needs logarithms of probabilities, and rewards the largest, not the likely"
            if log
            else "it makes probabilities of it once more, so that scores differ by 1 at most: the "
            "loss cannot come near to 0, and its gradient is small"
        )
        words["remedy"] = (
            "Use log_softmax, or cross entropy of the scores themselves"
            if log
            else f"Leave the {given} away: this loss takes scores of any size"
        )
    elif axis is not None:
        words["what"] = f"its softmax goes over axis {axis}"
        words["so"] = "that is not the one of the classes, so that samples compete with each other"
        words["remedy"] = "Let it go over the axis of the classes (dim=1)"
    else:
        return None
    return Seen(evidence.training.final_loss, (), evidence.ends, words)


def _ascent(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether a training climbs a loss that measures an error."""
    about, training = evidence.conditions.get("loss") or {}, evidence.training
    optimizers = evidence.run.manifest.get("optimizers") or ()
    is_maximized = bool(optimizers) and all(one.get("maximize") for one in optimizers)
    sign = about.get("sign")
    if sign not in (1, -1) or (sign == 1) != is_maximized:
        return None
    risen = sign * (training.final_loss - training.first_loss)
    if not risen > limits["loss_fall"] * abs(training.first_loss) and evidence.end is None:
        return None
    words = {
        "measure": str(about.get("measure")),
        "why": "the optimizer maximizes it (maximize=True)"
        if is_maximized
        else "the loss is minus that",
        "start": number(training.first_loss),
        "end": number(training.final_loss),
        "remedy": "Leave maximize=True away" if is_maximized else "Change the sign of the loss",
    }
    return Seen(risen, (), evidence.ends, words)


def _alike(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether the units of layers start alike, and get equal gradients: they stay one unit."""
    known = evidence.conditions.get("alike_units") or ()
    chosen = np.isin(evidence.parameters["parameter"].to_numpy(), known)
    chosen &= evidence.parameters["layer"].notna().to_numpy(bool)
    if not chosen.any():
        return None
    layers = evidence.layers_of(chosen)
    start = evidence.ends[0]
    words = {"count": str(len(layers)), "names": named(layers)}
    return Seen(float(len(layers)), layers, (start, start), words)


def _dropped(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether dropout leaves next to nothing, in a training that learns little."""
    training = evidence.training
    if training.final_loss < limits["shrinking_loss"] * abs(training.first_loss):
        return None
    steps = evidence.layer_history.steps
    zeros = evidence.layer_history.values["activation_zero_fraction"]
    is_dropout = evidence.layers["kind"].astype(str).str.contains("Dropout").to_numpy(bool)
    pieces = [
        stretch(x >= limits["dropped_share"], steps, limits["sustained_share"]) for x in zeros.T
    ]
    chosen = is_dropout & np.array([piece is not None for piece in pieces], bool)
    if not chosen.any():
        return None
    ends = [piece for piece, yes in zip(pieces, chosen, strict=True) if yes and piece is not None]
    worst = float(np.nanmedian(zeros[:, chosen], axis=0).max())
    words = {"share": percent(worst), "names": named(evidence.chosen(chosen))}
    span = min(e[0] for e in ends), max(e[1] for e in ends)
    return Seen(worst, evidence.chosen(chosen), span, words)


NOT_JUDGED = Rule(
    code="not judged",
    severity="warning",
    seen_when="nothing was measured, the run failed, or a part of it is lost or cannot be read",
    value="reasons",
    reads={"layers": ("output_gradient_norm",), "parameters": ("gradient_norm",)},
    look=_not_judged,
    sentence="This run is not judged: {why}.",
    remedy="Record it again; what else is said of it holds for what could be read.",
    panel="loss",
)


EVAL_MODE = Rule(
    code="eval_mode",
    severity="warning",
    seen_when="normalization layers are in eval mode while they are trained",
    value="share of the steps looked at",
    reads=_STEPS,
    look=_eval_mode,
    sentence="{count} normalization layers ({names}) are in eval mode while the network trains, in "
    "{share} of the steps looked at: they use running statistics in place of the batch's.",
    remedy="Call model.train() before the training, and again after each evaluation; nothing to do "
    "if the statistics are frozen on purpose.",
    thresholds=(SUSTAINED_SHARE,),
    hides=("vanishing", "vanishes_at_first", "diverging", *EXPLODED, *FLAT, *DEAD),
    hides_everywhere=True,
)


GRADIENTS_KEPT = Rule(
    code="gradients_not_cleared",
    severity="severe",
    seen_when="updates receive the gradients of earlier updates, too",
    value="share of the updates",
    reads=_STEPS,
    look=_kept,
    sentence="Gradients are not cleared: in {kept} of {of} updates the optimizer received the sum "
    "of this step's gradient and of those of earlier steps.",
    remedy="Call optimizer.zero_grad() once for each update, before backward().",
    thresholds=(
        Threshold(
            "kept_share", 0.5, "share of updates; half of them is no longer a slip at a boundary"
        ),
    ),
    hides=("diverging", *EXPLODED, *FLAT, *DEAD),
    hides_everywhere=True,
    panel="gradient_norm",
)


INPUT_SCALE = Rule(
    code="input_scale",
    severity="warning",
    seen_when="the first inputs are far from a scale of 1, and no normalization follows",
    value="root mean square",
    reads=_STEPS,
    look=_input_scale,
    sentence="The inputs of shape {shape} are {how}: their root mean square is {value}, the "
    "largest of them {largest}, and no normalization layer follows.",
    remedy="Normalize the inputs to mean 0 and standard deviation 1 (for images divide by 255 "
    "first).",
    thresholds=(
        Threshold(
            "input_scale_high",
            10.0,
            "root mean square of the first input; initializations assume 1, and the first layer's "
            "gradient grows with it",
        ),
        Threshold("input_scale_low", 0.01, "largest element of the first input; same reason"),
    ),
    hides=("diverging", "vanishing", *EXPLODED, *FLAT, *DEAD),
    hides_everywhere=True,
)


SATURATED = Rule(
    code="saturated",
    severity="warning",
    seen_when="tanh or sigmoid units inside the network sit at their bounds, sustained",
    value="mean slope over the largest",
    reads={"layers": ("activation_mean", "activation_std")},
    look=_saturated,
    sentence="{count} bounded activations are saturated ({names}): their mean slope is {value} of "
    "the largest, and the gradient shrinks by as much (steps {first} to {last}).",
    remedy="Initialize the layers before them smaller (Xavier), normalize their inputs, or use "
    "ReLU-like units.",
    thresholds=(
        Threshold(
            "saturated_slope",
            0.1,
            "E[1 − y²] of tanh, 4 E[y (1 − y)] of a sigmoid; 0.6 at inputs of unit variance",
        ),
        SUSTAINED_SHARE,
    ),
    hides=("vanishing", "vanishes_at_first", *EXPLODED, *FLAT),
    hides_everywhere=True,
    panel="activation_profile",
)


LOSS_INPUT = Rule(
    code="loss_input",
    severity="warning",
    seen_when="a loss that takes scores is given probabilities, or its softmax goes over an axis "
    "that is not the one of the classes",
    value="final loss",
    reads=_STEPS,
    look=_loss_input,
    sentence="The loss is not what it seems: {what}; {so}.",
    remedy="{remedy}.",
    hides=("vanishing", "vanishes_at_first", *FLAT),
    hides_everywhere=True,
    panel="loss",
)


ASCENT = Rule(
    code="ascent",
    severity="severe",
    seen_when="a training climbs a loss that measures an error",
    value="rise of the error",
    reads=_STEPS,
    look=_ascent,
    sentence="The training climbs the {measure}: {why}, and it goes from {start} to {end}.",
    remedy="{remedy}; nothing to do if the network is to forget.",
    hides=("diverging", "nonfinite", "vanishing", "vanishes_at_first", *EXPLODED, *FLAT, *DEAD),
    hides_everywhere=True,
    panel="loss",
)


ALIKE_UNITS = Rule(
    code="alike_units",
    severity="warning",
    seen_when="all units of a layer have equal weights and equal gradients at the first update",
    value="layers",
    reads=_STEPS,
    look=_alike,
    sentence="All units of {count} layers are alike ({names}): their weights are equal at step "
    "{first}, and so are their gradients, so that each layer stays a single unit.",
    remedy="Initialize these weights at random (He, Xavier), not by a constant.",
    hides=("vanishing", "vanishes_at_first", *EXPLODED, *FLAT, *DEAD),
    hides_everywhere=True,
    panel="loss",
)


DROPPED = Rule(
    code="dropout_too_high",
    severity="warning",
    seen_when="dropout sets nearly everything to zero, sustained, and the loss does not fall by "
    "half",
    value="share of zeros",
    reads={"layers": ("activation_zero_fraction",), "steps": ("loss",)},
    look=_dropped,
    sentence="Dropout leaves next to nothing: {share} of the outputs of {names} are zero (steps "
    "{first} to {last}).",
    remedy="Lower its probability, to 0.5 or less.",
    thresholds=(
        Threshold(
            "dropped_share",
            0.95,
            "zeros in the output of a dropout layer; with ReLU before it a probability of 0.5 "
            "makes 0.75 of them",
        ),
        SUSTAINED_SHARE,
    ),
    hides=("diverging", "vanishing", "vanishes_at_first", *EXPLODED, *FLAT, *DEAD),
    hides_everywhere=True,
    panel="activation_profile",
)
