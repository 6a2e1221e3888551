"""Rules about ratios: updates to weights, and branch to shortcut at a join."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import SUSTAINED_SHARE, Limits, Rule, Seen, Threshold, named, stretch
from analyzer.analysis.numerals import number
from analyzer.storage.arrays import as_floats

__all__ = [
    "CANCELLATION",
    "SILENT_BLOCK",
    "SLEEPING_BRANCH",
    "STREAM_GROWS",
    "UPDATE_TOO_LARGE",
    "UPDATE_TOO_SMALL",
    "median_update_ratios",
    "remaining_share",
]

Floats = NDArray[np.float64]

# Warm-up and the end of a decay say nothing about the updates that train.
_LEAST_RATE = 0.1
_GROWTH = 3.0
_LEAST_JOINS = 6


def median_update_ratios(evidence: Evidence) -> Floats:
    """Return the median over steps of ``‖Δθ‖ / ‖θ‖`` of each parameter, ``[parameters]``.

    Steps with a learning rate below a tenth of the largest are left out, and those at which the
    parameter was zero or received no gradient or one that is exactly zero. NaN where nothing is
    left, for parameters that are not trained, and for those with fewer than two axes: a bias or a
    gain that starts at zero moves by any ratio.
    """
    history = evidence.update_history
    norms, moved = history.values["norm"], history.values["update_norm"]
    counts = (norms > 0) & (history.values["gradient_norm"] > 0) & np.isfinite(moved)
    counts &= _at_full_rate(evidence, history.steps)[:, None]
    is_weight = np.array([len(shape) > 1 for shape in evidence.parameters["shape"]], bool)
    counts &= is_weight & evidence.parameters["trained"].to_numpy(bool)
    ratios = np.full(len(is_weight), np.nan)
    for place in np.flatnonzero(counts.any(axis=0)):
        some = counts[:, place]
        ratios[place] = np.median(moved[some, place] / norms[some, place])
    return ratios


def _at_full_rate(evidence: Evidence, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the learning rate of each step is at least a tenth of the largest."""
    if not len(steps):
        return np.zeros(0, bool)
    rows = evidence.run.read("steps", "learning_rate", steps=steps)
    place = np.searchsorted(steps, rows.column("step").to_numpy())
    rates = np.full(len(steps), np.nan)
    rates[place] = as_floats(rows.column("learning_rate"))
    if not np.isfinite(rates).any():
        return np.ones(len(steps), bool)
    # What moved the weights before an optimizer existed, such as their initialization, is no rate.
    full: NDArray[np.bool_] = rates >= _LEAST_RATE * np.nanmax(rates)
    return full


def _updates(
    evidence: Evidence, ratios: Floats, chosen: NDArray[np.bool_], worst: float
) -> Seen | None:
    """What is seen of the chosen weights; None where there are none."""
    if not chosen.any():
        return None
    weights = tuple(map(str, evidence.parameters["name"][chosen]))
    steps = evidence.update_history.steps
    words = {
        "count": str(int(chosen.sum())),
        "all": str(int(np.isfinite(ratios).sum())),
        "names": named(weights),
    }
    ends = int(steps[0]), int(steps[-1])
    return Seen(worst, evidence.layers_of(chosen) or weights, ends, words)


def _small_updates(evidence: Evidence, limits: Limits) -> Seen | None:
    ratios = median_update_ratios(evidence)
    if evidence.has_learned:
        return None  # there is little left to move for
    # A branch with a small scale gets a small gradient, which is its purpose.
    branches = evidence.layers["layer"].to_numpy()[evidence.has_parameters & ~evidence.trunk]
    in_branch = evidence.parameters["layer"].isin(branches).to_numpy(bool)
    chosen = (ratios < limits["update_ratio_low"]) & ~in_branch
    return _updates(evidence, ratios, chosen, float(ratios[chosen].min(initial=math.inf)))


def _large_updates(evidence: Evidence, limits: Limits) -> Seen | None:
    ratios = median_update_ratios(evidence)
    chosen = ratios > limits["update_ratio_high"]
    return _updates(evidence, ratios, chosen, float(ratios[chosen].max(initial=-math.inf)))


def remaining_share(shortcut: Floats, branch: Floats, cosine: Floats) -> Floats:
    """Return what is left where two gradients add: ``‖g_s + g_b‖ / (‖g_s‖ + ‖g_b‖)``.

    From the norms and the cosine of both, of any shape: from 0 (they cancel) to 1 (they agree, or
    one of them is zero); NaN where both are zero or one is not finite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        total = shortcut + branch
        s, b = shortcut / total, branch / total
        square = s * s + b * b + 2 * s * b * np.where((s == 0) | (b == 0), 0.0, cosine)
    left: Floats = np.sqrt(np.maximum(square, 0.0))
    return left


def _at_joins(evidence: Evidence, chosen: list[int], worst: float, steps: tuple[int, int]) -> Seen:
    """What is seen at the chosen joins, in the layers of their branches."""
    joins = evidence.joins
    branches = (joins["branch_layers"].iloc[place] for place in chosen)
    layers = tuple(dict.fromkeys(str(name) for names in branches for name in names))
    words = {
        "count": str(len(chosen)),
        "all": str(len(joins)),
        "names": named([str(joins["name"].iloc[place]) for place in chosen]),
    }
    return Seen(worst, layers, steps, words)


def _cancellation(evidence: Evidence, limits: Limits) -> Seen | None:
    history, limit = evidence.split_history, limits["cancellation_ratio"]
    left = remaining_share(
        history.values["shortcut_gradient_norm"],
        history.values["branch_gradient_norm"],
        history.values["cosine"],
    )
    pieces = [stretch(x < limit, history.steps, limits["sustained_share"]) for x in left.T]
    chosen = [place for place, piece in enumerate(pieces) if piece is not None]
    if not chosen:
        return None
    ends = [piece for piece in pieces if piece is not None]
    # All-NaN columns belong to joins without a split, and those are not chosen.
    worst = min(float(np.nanmedian(left[:, place])) for place in chosen)
    return _at_joins(evidence, chosen, worst, (min(e[0] for e in ends), max(e[1] for e in ends)))


def _sleeping(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether the gradient of a branch stays next to nothing from the first step to the last."""
    history, steps = evidence.split_history, evidence.split_history.steps
    if len(steps) < 2 or steps[-1] - steps[0] < limits["sleeping_steps"]:
        return None
    shortcut, branch = (history.values[f"{side}_gradient_norm"] for side in ("shortcut", "branch"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(shortcut > 0, branch / shortcut, np.nan)
    largest = np.where(np.isnan(ratio), -math.inf, ratio).max(axis=0)
    asleep = (largest < limits["sleeping_ratio"]) & np.isfinite(largest) & ~_is_growing(ratio)
    chosen = np.flatnonzero(asleep).tolist()
    if not chosen:
        return None
    ends = int(steps[0]), int(steps[-1])
    return _at_joins(evidence, chosen, float(largest[chosen].max()), ends)


def _is_growing(ratio: Floats) -> NDArray[np.bool_]:
    """Whether each branch grows, ``[joins]``: a young one that starts at zero is only slow."""
    early, last = ratio[len(ratio) // 4], ratio[-1]
    growing: NDArray[np.bool_] = (last > 0) & (last >= _GROWTH * early)
    return growing


def _growths(evidence: Evidence) -> tuple[Floats, Floats]:
    """How the root mean square of the stream grows: a join, and from first to last, ``[steps]``.

    Over the sums, in forward order; NaN where fewer than six have a value.
    """
    joins, norms = evidence.joins, evidence.split_history.values["join_output_norm"]
    sizes = dict(zip(evidence.layers["name"], evidence.layers["output_shape"], strict=True))
    shapes = [sizes.get(names[-1]) if len(names) else None for names in joins["branch_layers"]]
    elements = np.array([math.nan if s is None or not len(s) else math.prod(s) for s in shapes])
    usable = np.isfinite(elements) & (joins["operation"] == "add").to_numpy()
    means = norms[:, usable] / np.sqrt(elements[usable])
    growths, totals = np.full(len(means), np.nan), np.full(len(means), np.nan)
    for place, row in enumerate(means):
        known = np.flatnonzero(np.isfinite(row) & (row > 0))
        if len(known) >= _LEAST_JOINS:
            logs = np.log(row[known])
            # Over two joins, for attention writes less than what follows it; the median, for a
            # few blocks may write much.
            growths[place] = math.exp(float(np.median(logs[2:] - logs[:-2])) / 2)
            totals[place] = row[known[-1]] / row[known[0]]
    return growths, totals


def _growing_stream(evidence: Evidence, limits: Limits) -> Seen | None:
    history = evidence.split_history
    growths, totals = _growths(evidence)
    sick = (growths > limits["stream_growth"]) & (totals > limits["stream_total"])
    piece = stretch(sick, history.steps, limits["sustained_share"])
    if piece is None:
        return None
    inside = sick & (history.steps >= piece[0]) & (history.steps <= piece[1])
    norms = history.values["join_output_norm"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = norms / history.values["shortcut_output_norm"]
    largest = np.where(np.isfinite(ratio[inside]), ratio[inside], -math.inf).max(axis=0)
    seen = _at_joins(evidence, [int(largest.argmax())], float(np.median(growths[inside])), piece)
    return replace(seen, words={**seen.words, "total": number(float(np.median(totals[inside])))})


def _silent(evidence: Evidence, limits: Limits) -> Seen | None:
    """Whether what a block writes has become next to nothing, by itself and beside the stream."""
    history, steps = evidence.split_history, evidence.split_history.steps
    if len(steps) < 2:
        return None
    stream, written = (history.values[f"{side}_output_norm"] for side in ("shortcut", "branch"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(stream > 0, written / stream, np.nan)
    largest = np.where(np.isfinite(ratio), ratio, -math.inf).max(axis=0)
    limit = np.minimum(limits["written_ratio"], limits["written_fall"] * largest)
    chosen, ends = [], []
    for place in range(ratio.shape[1]):
        piece = stretch(ratio[:, place] < limit[place], steps, limits["sustained_share"])
        if piece is not None and piece[1] == steps[-1]:
            chosen.append(place)
            ends.append(piece)
    if not chosen:
        return None
    worst = float(ratio[-1, chosen].max())
    return _at_joins(evidence, chosen, worst, (min(end[0] for end in ends), int(steps[-1])))


_MEASURED_UPDATES = {"updates": ("gradient_norm", "norm", "update_norm")}

UPDATE_TOO_SMALL = Rule(
    code="update_too_small",
    severity="warning",
    seen_when="weights hardly move although a gradient reaches them",
    value="‖Δθ‖ / ‖θ‖",
    reads=_MEASURED_UPDATES,
    look=_small_updates,
    sentence="{count} of {all} weights hardly move ({names}): at worst the median update is "
    "{value} of the weight's norm.",
    remedy="Raise the learning rate of these weights; look for a second optimizer, a zero learning "
    "rate, or a loss that is scaled down.",
    thresholds=(
        Threshold(
            "update_ratio_low",
            1e-6,
            "median ‖Δθ‖ / ‖θ‖ of a weight; a million steps would then move it by its own size",
        ),
    ),
    panel="update_ratio",
)

UPDATE_TOO_LARGE = Rule(
    code="update_too_large",
    severity="warning",
    seen_when="a few updates replace the weights",
    value="‖Δθ‖ / ‖θ‖",
    reads=_MEASURED_UPDATES,
    look=_large_updates,
    sentence="{count} of {all} weights are replaced by their updates ({names}): at worst the "
    "median update is {value} of the weight's norm.",
    remedy="Lower the learning rate, warm it up, or clip.",
    thresholds=(
        Threshold(
            "update_ratio_high", 0.1, "median ‖Δθ‖ / ‖θ‖ of a weight; ten steps then replace it"
        ),
    ),
    hides=("dead_units", "shrinking"),
    hides_everywhere=True,
    panel="update_ratio",
)

CANCELLATION = Rule(
    code="cancellation",
    severity="warning",
    seen_when="shortcut and branch gradients cancel at a join, sustained",
    value="what is left of the norms",
    reads={"splits": ("shortcut_gradient_norm", "branch_gradient_norm", "cosine")},
    look=_cancellation,
    sentence="Shortcut and branch gradients cancel at {count} of {all} joins ({names}): {value} of "
    "their norms is left.",
    remedy="The branch learns to undo the shortcut: check the sign and the scale of the branch, or "
    "use a projection shortcut there.",
    thresholds=(
        Threshold(
            "cancellation_ratio",
            0.25,
            "‖g_s + g_b‖ / (‖g_s‖ + ‖g_b‖) at a join; about 0.7 where the two are independent",
        ),
        SUSTAINED_SHARE,
    ),
    panel="splits_over_time",
)

SLEEPING_BRANCH = Rule(
    code="sleeping_branch",
    severity="warning",
    seen_when="the gradient of a branch stays next to nothing and does not grow",
    value="‖g_b‖ / ‖g_s‖",
    reads={"splits": ("shortcut_gradient_norm", "branch_gradient_norm")},
    look=_sleeping,
    sentence="The branch never wakes up at {count} of {all} joins ({names}): its gradient stays at "
    "or below {value} of the shortcut's to step {last}.",
    remedy="Let the scale of the branch be trained (with a larger learning rate), and start only "
    "one factor of the branch at zero: two zeros get no gradient.",
    thresholds=(
        Threshold(
            "sleeping_ratio",
            1e-4,
            "largest ‖g_b‖ / ‖g_s‖ at a join, where it does not grow; the branch then takes no "
            "part in the training",
        ),
        Threshold(
            "sleeping_steps", 10.0, "steps that a branch which starts at zero has to wake up"
        ),
    ),
    hides=("dead", "dead_units", "update_too_small"),
    panel="splits_over_time",
)

STREAM_GROWS = Rule(
    code="stream_grows",
    severity="warning",
    seen_when="the residual stream grows by a factor at each join, sustained",
    value="growth a join",
    reads={"splits": ("join_output_norm", "shortcut_output_norm")},
    look=_growing_stream,
    sentence="The residual stream grows by a factor of {value} at each join, {total} times in all, "
    "most at {names} (steps {first} to {last}).",
    remedy="Normalize inside the branches, scale them down (1/√depth, or from zero), or normalize "
    "the stream: the last blocks drown out all earlier ones.",
    thresholds=(
        Threshold(
            "stream_growth",
            1.25,
            "root mean square of the stream over that of one join earlier, the median over 6 joins "
            "or more; writes that do not agree let it grow by √l, 1.2 a join or less, and branches "
            "without normalization by 1.4",
        ),
        Threshold(
            "stream_total",
            10.0,
            "growth from the first to the last join; √l needs 100 joins for it",
        ),
        SUSTAINED_SHARE,
    ),
    panel="residual_stream",
)

SILENT_BLOCK = Rule(
    code="silent_block",
    severity="warning",
    seen_when="a block that wrote to the residual stream stops, up to the last step",
    value="‖b‖ / ‖s‖",
    reads={"splits": ("shortcut_output_norm", "branch_output_norm")},
    look=_silent,
    sentence="{count} of {all} blocks have stopped writing to the residual stream ({names}): since "
    "step {first} they add {value} of it or less.",
    remedy="Look at the last layers of the branch: dead units, a scale or a norm's weight that has "
    "decayed to zero. If the stream grew instead, normalize it.",
    thresholds=(
        Threshold(
            "written_ratio",
            1e-3,
            "‖b‖ / ‖s‖ at a join; a thousand such blocks, all agreeing, would double the stream",
        ),
        Threshold(
            "written_fall",
            0.01,
            "that ratio over the largest that the block has had; one that starts small, as with "
            "ReZero or scaled branches, has not stopped",
        ),
        SUSTAINED_SHARE,
    ),
    hides=("sleeping_branch", "dead"),
    panel="stream_over_time",
)
