"""Two runs side by side: the sentence that their numbers support."""

import math
from dataclasses import dataclass
from enum import Enum

from analyzer.analysis.gradient_flow import Gain
from analyzer.analysis.training import TrainingSummary

__all__ = ["THRESHOLDS", "Flow", "RunFacts", "difference"]

# name: (value, reason)
THRESHOLDS: dict[str, tuple[float, str]] = {
    "unhealthy_decades": (
        3.0,
        "one learning rate then serves layers whose gradients differ a thousandfold",
    ),
    "healthy_decades": (
        1.5,
        "trained residual nets with batch norm stay within it; between the two, no word is used",
    ),
    "learned": (
        0.9,
        "a final loss above 90 % of the first has hardly moved, whatever the noise of a batch",
    ),
    "loss_difference": (
        0.1,
        "of the smaller first loss: less than the spread between seeds of a short training",
    ),
}


class Flow(Enum):
    """What the fitted gain says about the norms along depth."""

    VANISHING = "vanishing"
    EXPLODING = "exploding"
    HEALTHY = "healthy"
    BETWEEN = "between"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunFacts:
    """What a comparison needs of one run.

    Args:
        gain: The fit at the compared step.
        span_decades: Decades between the largest and the smallest output gradient norm.
        training: Losses and steps.
    """

    gain: Gain
    span_decades: float
    training: TrainingSummary

    @property
    def flow(self) -> Flow:
        """The norms along depth in one word, by ``THRESHOLDS``."""
        if not self.gain.is_defined:
            return Flow.UNKNOWN
        fallen = self.gain.decades_fallen
        if abs(fallen) >= _threshold("unhealthy_decades"):
            return Flow.VANISHING if fallen > 0 else Flow.EXPLODING
        lost = self.gain.num_zero + self.gain.num_nonfinite
        if max(abs(fallen), self.span_decades) <= _threshold("healthy_decades") and not lost:
            return Flow.HEALTHY
        return Flow.BETWEEN


def _threshold(name: str) -> float:
    return THRESHOLDS[name][0]


def difference(plain: RunFacts, residual: RunFacts) -> str:
    """Say in one sentence what separates a plain run from its residual twin.

    The sentence reports gains and losses and claims vanishing or exploding gradients only where
    the fit shows 3 decades or more between the last layer and the first.

    Args:
        plain: The run without shortcuts.
        residual: The run with them.

    Returns:
        One sentence with its numbers; it names what could not be fitted.
    """
    if plain.flow is residual.flow is Flow.HEALTHY:
        return _healthy_pair(plain, residual)
    sides = (
        f"without shortcuts {_flow_clause(plain)} and {_loss_clause(plain.training)}; "
        f"with them {_flow_clause(residual)} and {_loss_clause(residual.training)}."
    )
    if plain.flow is residual.flow and plain.flow in (Flow.VANISHING, Flow.EXPLODING):
        return f"Gradients are {plain.flow.value} in both: {sides}"
    return sides[0].upper() + sides[1:]


def _healthy_pair(plain: RunFacts, residual: RunFacts) -> str:
    """The sentence for a pair in which neither vanishing nor explosion can be the reason."""
    norms = (
        "Gradient norms are healthy in both "
        f"(gain {_number(plain.gain.gain)} per layer without shortcuts, "
        f"{_number(residual.gain.gain)} with them)"
    )
    a, b = plain.training.final_loss, residual.training.final_loss
    numbers = f"{_number(a)} without shortcuts, {_number(b)} with them"
    if not plain.training.num_losses or not residual.training.num_losses:
        return f"{norms}; a training loss to compare was not recorded in both."
    if _losses_differ(plain.training, residual.training):
        return f"{norms}, so norms do not separate them; the training loss does: {numbers}."
    return f"{norms} and the training losses agree ({numbers}): neither separates them."


def _losses_differ(a: TrainingSummary, b: TrainingSummary) -> bool:
    """Whether final losses differ by more than noise; NaN differs from a number only."""
    if not (math.isfinite(a.final_loss) and math.isfinite(b.final_loss)):
        return math.isfinite(a.final_loss) != math.isfinite(b.final_loss)
    scale = min(abs(a.first_loss), abs(b.first_loss))
    return abs(a.final_loss - b.final_loss) > _threshold("loss_difference") * scale


def _flow_clause(run: RunFacts) -> str:
    """What the output gradient does along depth, as a clause."""
    if run.flow is Flow.UNKNOWN:
        return f"no gain can be fitted ({_left_out(run.gain)})"
    decades = _decades(run.gain.decades_fallen)
    gain = f"(gain {_number(run.gain.gain)} per layer)"
    route = "from the last layer to the first"
    if run.flow is Flow.VANISHING:
        clause = f"the output gradient falls {decades} {route} {gain}"
    elif run.flow is Flow.EXPLODING:
        clause = f"the output gradient grows {decades} {route} {gain}"
    else:
        reach = _decades(math.ceil(max(run.span_decades, 1e-9)))
        clause = f"the output gradient stays within {reach} {gain}"
    lost = run.gain.num_zero + run.gain.num_nonfinite
    return f"{clause}, {_left_out(run.gain)}," if lost else clause


def _left_out(gain: Gain) -> str:
    """How many layers the fit used and could not use."""
    return (
        f"{gain.num_layers} usable layers, {gain.num_zero} with a zero gradient, "
        f"{gain.num_nonfinite} with a non-finite one"
    )


def _loss_clause(training: TrainingSummary) -> str:
    """What the loss does, as a clause."""
    first, final = training.first_loss, training.final_loss
    if not training.num_losses:
        return "no loss was recorded"
    if training.nonfinite_step is not None:
        return f"the loss is not finite from step {training.nonfinite_step} on"
    if abs(final - first) <= (1 - _threshold("learned")) * abs(first):
        return f"the loss stays at {_number(final)}"
    if final > first:
        return f"the loss rises from {_number(first)} to {_number(final)}"
    return f"the loss reaches {_number(final)}"


def _decades(value: float) -> str:
    """A count of decades in words: whole from 2 on, one digit below."""
    size = abs(value)
    text = f"{size:.0f}" if size >= 2 or size == int(size) else f"{size:.1f}"
    return f"{text} decade" if text == "1" else f"{text} decades"


def _number(value: float) -> str:
    """Three digits; a trailing zero is kept so that 2.30 reads as measured."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    return f"{value:.2f}" if 0.1 <= abs(value) < 10 else f"{value:.3g}"
