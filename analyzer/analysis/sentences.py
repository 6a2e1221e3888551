"""What the numbers of a run and of a pair of runs say: the words that every command shares.

``show``, ``compare`` and ``explain`` judge gradients along depth by the same thresholds, and write
headlines, gradients and losses with the same clauses.
"""

import math
from dataclasses import dataclass
from enum import Enum

from analyzer.analysis.finding import Threshold, threshold_table
from analyzer.analysis.gradient_flow import ROUTE, Gain
from analyzer.analysis.numerals import Spread, counted, decades, number, with_range
from analyzer.analysis.training import TrainingSummary

__all__ = [
    "THRESHOLDS",
    "DepthFacts",
    "Trend",
    "ends_lower",
    "gain_clause",
    "headline",
    "limit",
    "loss_clause",
    "outcome",
    "thresholds_table",
    "trend_clause",
    "trend_of",
]

THRESHOLDS: dict[str, Threshold] = {
    one.name: one
    for one in (
        Threshold(
            "unhealthy_decades",
            3.0,
            "decades of change along depth; one learning rate then serves layers whose gradients "
            "differ a thousandfold",
        ),
        Threshold(
            "healthy_decades",
            1.5,
            "trained residual nets with batch norm stay within it; between the two, no word is "
            "used",
        ),
        Threshold(
            "learned",
            0.9,
            "a final loss above 90 % of the first has hardly moved, whatever the noise of a batch",
        ),
        Threshold(
            "nearer_to_isometry",
            0.5,
            "abs(ln gain) with shortcuts over that without: half the slope, and not its noise",
        ),
        Threshold("times_larger", 10.0, "a decade, more than the spread between seeds and steps"),
        Threshold("most", 0.5, "more than the branches carry"),
        Threshold("identity", 0.99, "a branch that starts at zero gives exactly 1"),
        Threshold("short_paths", 0.5, "of the joins: the mean over all paths, each counted once"),
        Threshold(
            "shattered", 0.1, "difference of correlations, above its noise for batches of 32 inputs"
        ),
        Threshold("better_conditioned", 0.5, "condition number with shortcuts over that without"),
        Threshold(
            "loss_difference",
            0.1,
            "of the smaller first loss: less than the spread between seeds of a short training",
        ),
    )
}
"""What comparisons of runs are judged by."""


def limit(name: str) -> float:
    """Return the value of a threshold."""
    return THRESHOLDS[name].value


class Trend(Enum):
    """What the norms of the output gradient do along depth."""

    VANISHING = "vanishing"
    EXPLODING = "exploding"
    HEALTHY = "healthy"
    BETWEEN = "between"
    UNKNOWN = "unknown"


def trend_of(fallen: float, span: float = 0.0, lost: int = 0) -> Trend:
    """Return the norms along depth in one word, by ``THRESHOLDS``.

    ``fallen`` and ``span`` are in decades, NaN without a fit; ``lost`` counts layers whose gradient
    is zero or not finite.
    """
    if math.isnan(fallen):
        return Trend.UNKNOWN
    if abs(fallen) >= limit("unhealthy_decades"):
        return Trend.VANISHING if fallen > 0 else Trend.EXPLODING
    is_healthy = max(abs(fallen), span) <= limit("healthy_decades") and not lost
    return Trend.HEALTHY if is_healthy else Trend.BETWEEN


@dataclass(frozen=True)
class DepthFacts:
    """The fit to the gradient of one run at one step, and the decades that its norms span."""

    gain: Gain
    span_decades: float

    @property
    def trend(self) -> Trend:
        """The norms along depth in one word."""
        lost = self.gain.num_zero + self.gain.num_nonfinite
        return trend_of(self.gain.decades_fallen, self.span_decades, lost)


def headline(plain: Trend, residual: Trend) -> str:
    """Return what separates a plain net from its residual twin along depth, in a few words."""
    if Trend.UNKNOWN in (plain, residual):
        return "The gain along depth was not measured in both runs"
    if plain is Trend.VANISHING:
        return {
            Trend.VANISHING: "Gradients vanish in both, so shortcuts do not keep them from it",
            Trend.EXPLODING: "Shortcuts turn vanishing gradients into exploding ones",
        }.get(residual, "Vanishing gradients separate the two")
    if plain is Trend.EXPLODING:
        if residual is Trend.EXPLODING:
            return "Not vanishing: gradients explode in both"
        return "Not vanishing but exploding gradients separate the two"
    if residual is Trend.EXPLODING:
        return "Not vanishing: gradients explode with the shortcuts, not without them"
    if residual is Trend.VANISHING:
        return "Gradients vanish with the shortcuts, not without them"
    healthy = plain is residual is Trend.HEALTHY
    word = "gradient norms are healthy in both" if healthy else "gradient norms stay within bounds"
    return f"Not vanishing: {word}"


def trend_clause(facts: DepthFacts) -> str:
    """Return what the output gradient of a run does along depth, as a clause with its gain."""
    gain, trend = facts.gain, facts.trend
    if trend is Trend.UNKNOWN:
        return f"no gain can be fitted ({_left_out(gain)})"
    factor = f"(gain {number(gain.gain)} per layer)"
    if trend in (Trend.VANISHING, Trend.EXPLODING):
        verb = "falls" if trend is Trend.VANISHING else "grows"
        clause = f"the output gradient {verb} {decades(gain.decades_fallen)} {ROUTE} {factor}"
    else:
        reach = decades(math.ceil(max(facts.span_decades, 1e-9)))
        clause = f"the output gradient stays within {reach} {factor}"
    lost = gain.num_zero + gain.num_nonfinite
    return f"{clause}, {_left_out(gain)}," if lost else clause


def _left_out(gain: Gain) -> str:
    return (
        f"{counted(gain.num_layers, 'usable layer')}, {gain.num_zero} with a zero gradient, "
        f"{gain.num_nonfinite} with a non-finite one"
    )


def gain_clause(gain: Gain) -> str:
    """Return what a fitted gain says, as a clause: how far the gradient falls, and the gain."""
    if not gain.is_defined:
        lost = gain.num_zero + gain.num_nonfinite
        return f"no gain can be fitted ({gain.num_layers} usable layers, {lost} zero or non-finite)"
    fallen = gain.decades_fallen
    factor = f"gain {number(gain.gain)} per layer"
    return f"{factor}: ‖∂L/∂y‖ {'falls' if fallen > 0 else 'grows'} {decades(fallen)}"


def loss_clause(training: TrainingSummary) -> str:
    """Return what the loss of a run does, as a clause."""
    first, final = training.first_loss, training.final_loss
    if not training.num_losses:
        return "no loss was recorded"
    if training.nonfinite_step is not None:
        return f"the loss is not finite from step {training.nonfinite_step} on"
    if abs(final - first) <= (1 - limit("learned")) * abs(first):
        return f"the loss stays at {number(final)}"
    if final > first:
        return f"the loss rises from {number(first)} to {number(final)}"
    return f"the loss reaches {number(final)}"


def ends_lower(plain: float, residual: float, scale: float) -> bool:
    """Return whether the final loss with shortcuts is lower by more than noise.

    NaN is higher than any number; ``scale`` is the smaller first loss of the two.
    """
    # Negated, since a comparison with NaN is never true: a plain loss of NaN is the higher one.
    return math.isfinite(residual) and not (plain - residual <= limit("loss_difference") * scale)


def outcome(
    plain: float, residual: float, lower: bool, spreads: tuple[Spread, Spread] = (None, None)
) -> str:
    """Return in a sentence how the final losses of a pair compare, with their ranges over seeds."""
    numbers = (
        f"{with_range(plain, spreads[0])} without them, {with_range(residual, spreads[1])} with"
    )
    if lower:
        return f"The loss ends lower with shortcuts: {numbers}."
    if not residual <= plain:
        return f"The loss does not end lower with shortcuts: {numbers}."
    return f"The loss ends about as low in both: {numbers}."


def thresholds_table() -> str:
    """Return the thresholds of comparisons as a table for the documentation."""
    return threshold_table(THRESHOLDS.values())
