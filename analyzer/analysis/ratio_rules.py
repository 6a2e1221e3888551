"""Rules about joins: branch to shortcut, by their gradients and by what they write."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.evidence import Evidence
from analyzer.analysis.finding import SUSTAINED_SHARE, Limits, Rule, Seen, Threshold, named, stretch
from analyzer.analysis.numerals import number

__all__ = [
    "CANCELLATION",
    "SILENT_BLOCK",
    "SLEEPING_BRANCH",
    "STREAM_GROWS",
    "remaining_share",
]

Floats = NDArray[np.float64]

_GROWTH = 3.0
_LEAST_JOINS = 6


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
    first, final = evidence.training.first_loss, evidence.training.final_loss
    learns = math.isfinite(first) and final < limits["shrinking_loss"] * abs(first)
    words = {**seen.words, "total": number(float(np.median(totals[inside])))}
    words["while"] = f"; the loss falls all the same ({number(first)} to {number(final)})"
    words["while"] = words["while"] if learns else ""
    return replace(seen, words=words, severity="note" if learns else "")


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
    seen_when="the residual stream grows by a factor at each join, sustained; a note where the "
    "loss falls by half all the same",
    value="growth a join",
    reads={"splits": ("join_output_norm", "shortcut_output_norm"), "steps": ("loss",)},
    look=_growing_stream,
    sentence="The residual stream grows by a factor of {value} at each join, {total} times in all, "
    "most at {names} (steps {first} to {last}){while}.",
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
