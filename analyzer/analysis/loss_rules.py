"""Rules about the loss: a sum, one that rises with too large updates, one that does not fall."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.depth_rules import changes
from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import Limits, Rule, Seen, Threshold
from analyzer.analysis.limits import BEYOND_THE_EDGE
from analyzer.analysis.numerals import number
from analyzer.analysis.probe_numbers import edge_of_stability
from analyzer.analysis.update_rules import median_update_ratios
from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats

__all__ = ["AT_THE_EDGE", "CHANCE_LEVEL", "DIVERGING", "STEP_TOO_SMALL", "SUMMED_LOSS"]

_LEAST_LOSSES = 50
# Of sequences the loss first falls to the entropy of their signs, and stays there for a while.
_LEAST_LOSSES_OF_SEQUENCES = 300
_ADAPTIVE = ("Ada", "NAdam", "RAdam", "RMSprop", "Rprop", "Lion", "Muon", "Sophia", "LAMB")
_WINDOW = 40
_CONSEQUENCES = (
    "cliff",
    "dead",
    "dead_units",
    "exploding",
    "explodes_at_first",
    "saturated",
    "shrinking",
    "step_too_small",
    "chance_level",
    "stream_grows",
    "update_too_large",
)


@dataclass(frozen=True)
class _Jump:
    """An update that changed a weight by a large part of its norm, after which the loss rose."""

    ratio: float
    name: str
    place: int
    step: int
    start: float
    end: str


def _jump(evidence: Evidence, limits: Limits) -> _Jump | None:
    """The largest update before a training that began well fell apart; None where none did."""
    training, start = evidence.training, evidence.training.first_loss
    values = training.losses[np.isfinite(training.losses)]
    if not len(values) or not math.isfinite(start):
        return None
    grown = changes(evidence, -1.0)
    if not len(grown) or grown[0] >= limits["exploding_decades"]:
        return None  # it was not well to begin with
    fell_apart = evidence.end is not None
    if not fell_apart and start > 0:
        high = values.max() > limits["diverging_loss"] * start
        fell_apart = bool(high and training.final_loss > 0.9 * start)
    if not fell_apart:
        return None
    recorded = evidence.run.recorded_steps("parameter_stats")
    if evidence.end is None:
        worst = int(np.nanargmax(training.losses)) if len(training.losses) else 0
        recorded = recorded[recorded <= max(worst, 1)]
    else:
        recorded = recorded[recorded <= evidence.end]
    ratios = _weight_changes(evidence, recorded[-_WINDOW:])
    if ratios is None:
        return None
    steps, found = ratios
    at = np.unravel_index(int(np.argmax(found)), found.shape)
    value = float(found[at])
    if not value >= limits["diverging_update"]:
        return None
    final = training.final_loss
    end = number(final) if evidence.end is None else f"not finite from step {evidence.end} on"
    name = str(evidence.parameters["name"].iloc[at[1]])
    return _Jump(value, name, int(at[1]), int(steps[at[0]]), start, end)


def _weight_changes(
    evidence: Evidence, steps: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """By how much of its norm each update changed each weight at least, ``[steps, parameters]``.

    ``|‖θ'‖ − ‖θ‖| / ‖θ‖``, from one step to the next, which no update does with less than that
    ratio; or the measured ``‖Δθ‖ / ‖θ‖``, where it is larger. 0 where nothing is known.
    """
    if len(steps) < 2:
        return None
    rows = evidence.run.read("parameter_stats", ("norm", "update_norm"), steps=steps)
    known = evidence.parameters["parameter"].to_numpy(np.int64)
    norms, moved = (np.full((len(steps), len(known)), np.nan) for _ in range(2))
    place = np.searchsorted(steps, rows.column("step").to_numpy())
    column = np.searchsorted(known, rows.column("parameter").to_numpy())
    norms[place, column] = as_floats(rows.column("norm"))
    moved[place, column] = as_floats(rows.column("update_norm"))
    norms[:, [len(shape) < 2 for shape in evidence.parameters["shape"]]] = np.nan
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        least = np.abs(np.diff(norms, axis=0)) / norms[:-1]
        least[np.diff(steps) > 1] = np.nan
        found = np.fmax(least, moved[:-1] / norms[:-1])
    finite = np.where(np.isfinite(found) & (norms[:-1] > 0), found, 0.0)
    return steps[:-1], finite


def _diverging(evidence: Evidence, limits: Limits) -> Seen | None:
    jump = _jump(evidence, limits)
    if jump is None:
        return None
    chosen = np.arange(len(evidence.parameters)) == jump.place
    words = {"name": jump.name, "start": number(jump.start), "end": jump.end}
    last = evidence.ends[1]
    layers = evidence.layers_of(chosen) or (jump.name,)
    return Seen(jump.ratio, layers, (jump.step, last), words)


def _summed(evidence: Evidence, limits: Limits) -> Seen | None:
    about = evidence.conditions.get("loss") or {}
    samples = evidence.batch_size or 0
    if about.get("reduction") != "sum" or samples < 2:
        return None
    if _all_adaptive(evidence):
        return None  # their steps do not depend on the scale of the loss
    large = np.nan_to_num(median_update_ratios(evidence)).max(initial=0.0)
    grown = changes(evidence, -1.0)
    is_sick = large > limits["update_ratio_high"] or evidence.end is not None
    if not (is_sick or _jump(evidence, limits) or (grown >= limits["exploding_decades"]).any()):
        return None
    return Seen(float(samples), (), evidence.ends, {"samples": str(samples)})


def _is_flat(losses: NDArray[np.float64], share: float) -> bool:
    """Whether the last of the losses are no lower than the first, beyond their spread.

    Lower by ``share`` of the first, or by two standard errors, is a fall where both hold.
    """
    if not np.isfinite(losses).all():
        return False
    width = len(losses) // 3
    early, late = losses[:width], losses[-width:]
    fallen = early.mean() - late.mean()
    noise = 2 * math.sqrt((early.var() + late.var()) / width)
    return bool(fallen <= max(noise, share * abs(early.mean())))


def _moved(evidence: Evidence) -> tuple[float, float]:
    """The median update ratio of all weights, and by how much of its norm one moves in all."""
    ratios = median_update_ratios(evidence)
    known = ratios[np.isfinite(ratios)]
    ratio = float(np.median(known)) if len(known) else math.nan
    return ratio, ratio * evidence.training.num_steps


def _step_too_small(evidence: Evidence, limits: Limits) -> Seen | None:
    training = evidence.training
    ratio, moved = _moved(evidence)
    if training.num_losses < _LEAST_LOSSES or not moved < limits["weights_moved"]:
        return None
    if not _is_flat(training.losses, limits["loss_fall"]) or _is_warming_up(evidence):
        return None
    if evidence.has_learned:
        return None  # before this recording, as in a resumed run
    factor = 10.0 ** math.ceil(math.log10(limits["useful_update"] / ratio)) if ratio > 0 else 10.0
    clipped = _clipped_to(evidence)
    remedy = f"Raise the learning rate, to about {factor:,.0f} times what it is"
    because = ""
    if clipped * factor < 1:
        remedy = f"Clip at a norm about {factor:,.0f} times as large, or not at all"
        because = f", since the gradient is clipped to {number(clipped)} of its norm"
    words = {
        "because": because,
        "remedy": remedy,
        "ratio": number(ratio),
        "start": number(training.first_loss),
        "end": number(training.final_loss),
        "steps": f"{training.num_steps:,}",
    }
    return Seen(moved, (), evidence.ends, words)


def _clipped_to(evidence: Evidence) -> float:
    """What clipping leaves of the gradient's norm, median over steps; 1 of an adaptive step."""
    factors = as_floats(evidence.run.read("steps", "clip_factor").column("clip_factor"))
    known = factors[np.isfinite(factors)]
    return float(np.median(known)) if len(known) and not _all_adaptive(evidence) else 1.0


def _all_adaptive(evidence: Evidence) -> bool:
    """Whether no optimizer's steps depend on the scale of the loss."""
    names = [str(one.get("name")) for one in evidence.run.manifest.get("optimizers") or ()]
    return bool(names) and all(any(part in name for part in _ADAPTIVE) for name in names)


def _is_warming_up(evidence: Evidence) -> bool:
    """Whether the learning rate of the last step is well above that of the middle one."""
    rates = as_floats(evidence.run.read("steps", "learning_rate").column("learning_rate"))
    known = rates[np.isfinite(rates)]
    return bool(len(known) and known[-1] > 1.5 * known[len(known) // 2])


def _chance_level(evidence: Evidence, limits: Limits) -> Seen | None:
    about = evidence.conditions.get("loss") or {}
    entropy, losses_ = about.get("class_entropy"), evidence.training.losses
    is_sequence = (about.get("targets") or 0) > (evidence.batch_size or math.inf)
    least = _LEAST_LOSSES_OF_SEQUENCES if is_sequence else _LEAST_LOSSES
    if not entropy or len(losses_) < least or about.get("reduction") != "mean":
        return None
    final = evidence.training.final_loss
    near = limits["chance_share"]
    if not (1 - near) * entropy <= final <= (1 + 2 * near) * entropy:
        return None
    if not _is_flat(losses_[len(losses_) // 2 :], limits["loss_fall"]) or _is_warming_up(evidence):
        return None
    words = {"end": number(final), "entropy": number(entropy)}
    return Seen(final / entropy, (), (len(losses_) // 2, evidence.ends[1]), words)


SUMMED_LOSS = Rule(
    code="summed_loss",
    severity="severe",
    seen_when="the loss is a sum over the batch, and updates are too large for it",
    value="samples",
    reads={
        "layers": ("output_gradient_norm",),
        "updates": ("gradient_norm", "norm", "update_norm"),
    },
    look=_summed,
    sentence="The loss is the sum over the {samples} samples of a batch, not their mean: gradients "
    "and updates are {samples} times as large, and the training does not bear it.",
    remedy="Average over the batch (reduction='mean'), or divide the learning rate by {samples}.",
    hides=("diverging", *_CONSEQUENCES),
    hides_everywhere=True,
    panel="loss",
)


DIVERGING = Rule(
    code="diverging",
    severity="severe",
    seen_when="a network that began well falls apart after an update that is too large",
    value="share of a weight's norm",
    reads={"layers": ("output_gradient_norm",), "steps": ("loss",)},
    look=_diverging,
    sentence="The update is too large: at step {first} one changes {name} by {value} of its norm "
    "or more, and the loss goes from {start} to {end}.",
    remedy="Divide the learning rate by 10 or more, warm it up, or clip the gradient; gradients "
    "that explode or vanish after so large an update are a consequence.",
    thresholds=(
        Threshold(
            "diverging_update",
            0.5,
            "change of a weight's norm by one update, over that norm; what was learned does not "
            "survive it",
        ),
        Threshold(
            "diverging_loss",
            3.0,
            "largest loss over the first, where the last is not below it; noise does not do that",
        ),
    ),
    hides=("vanishing", *_CONSEQUENCES),
    hides_everywhere=True,
    panel="loss",
)


STEP_TOO_SMALL = Rule(
    code="step_too_small",
    severity="warning",
    seen_when="the loss does not fall, and the weights hardly move",
    value="share of a weight's norm, over all steps",
    reads={"updates": ("gradient_norm", "norm", "update_norm"), "steps": ("loss",)},
    look=_step_too_small,
    sentence="The loss does not fall ({start} to {end}) because the steps are too small: {steps} "
    "of {ratio} move a weight by {value} of its norm at most{because}.",
    remedy="{remedy}.",
    thresholds=(
        Threshold(
            "weights_moved",
            0.02,
            "median ‖Δθ‖ / ‖θ‖ of a step times their number; a network learns by moving more",
        ),
        Threshold(
            "loss_fall",
            0.02,
            "share of the loss by which its last third must be below its first third to fall",
        ),
        Threshold("useful_update", 1e-3, "‖Δθ‖ / ‖θ‖ of a step that the remedy aims at, as in use"),
    ),
    hides=("update_too_small", "chance_level", "shrinking"),
    hides_everywhere=True,
    panel="loss",
)


CHANCE_LEVEL = Rule(
    code="chance_level",
    severity="warning",
    seen_when="the loss stays at the entropy of the classes over the second half of the steps",
    value="loss over entropy",
    reads={"steps": ("loss",)},
    look=_chance_level,
    sentence="The loss stays at the entropy of the classes ({end} against {entropy} nats): the "
    "network predicts how often each class occurs, whatever its input is.",
    remedy="Check that each label belongs to its input (one permutation for both), that inputs "
    "differ, and that their signal reaches the output.",
    thresholds=(
        Threshold(
            "chance_share",
            0.05,
            "how far the final loss may be from the entropy of the first batch's classes, as a "
            "share of it (twice above it)",
        ),
        STEP_TOO_SMALL.thresholds[1],
    ),
    panel="loss",
)


def _at_the_edge(evidence: Evidence, limits: Limits) -> Seen | None:
    """The largest eigenvalue of the Hessian over the one from which on a step is unstable."""
    try:
        found = edge_of_stability(evidence.run)
    except NotRecordedError:
        return None
    if not found.value >= limits["edge_share"]:
        return None
    where = "At the edge of stability" if found.value < BEYOND_THE_EDGE else "Beyond the edge"
    first, last = found.steps[0], found.steps[-1]
    when = f"the probe of step {last}"
    if first < last:
        when = f"median over the probes of steps {first} to {last}"
    words = {"where": where, "scale": number(found.scale), "when": when}
    return Seen(found.value, (), (first, last), words)


AT_THE_EDGE = Rule(
    code="edge_of_stability",
    severity="note",
    seen_when="the sharpness is near the one from which on a step of the optimizer is unstable",
    value="sharpness over threshold",
    reads={"steps": ("loss",)},
    look=_at_the_edge,
    sentence="{where}: the largest eigenvalue of the Hessian is {value} times the {scale} from "
    "which on a step is unstable ({when}).",
    remedy="Nothing, while the loss falls: full-batch training often stays there, and the loss "
    "falls unevenly. A lower learning rate, or a warm-up, leaves the edge; a higher one makes the "
    "training turn to flatter places, or diverge. Of a training by small batches the Hessian of "
    "one batch is larger than that of the whole loss.",
    thresholds=(
        Threshold(
            "edge_share",
            0.9,
            "sharpness over threshold, median over the last third of the probes; full-batch "
            "training hovers within a tenth of 1 (Cohen et al. 2021)",
        ),
    ),
    panel="sharpness",
)
