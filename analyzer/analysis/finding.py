"""One finding about a run: its record, its thresholds, and the words that all rules share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SEVERITIES", "THRESHOLDS", "Finding", "named", "short", "stretch", "thresholds_with"]

SEVERITIES = ("severe", "warning", "note")
"""From the worst to the mildest."""

_NAMED = 3

# name: (value, meaning and reason)
THRESHOLDS: dict[str, tuple[float, str]] = {
    "vanishing_decades": (
        3.0,
        "decades that the fitted output gradient falls from the last layer to the first; one "
        "learning rate then serves layers whose gradients differ a thousandfold",
    ),
    "exploding_decades": (3.0, "decades that it grows on that way; same reason"),
    "sustained_share": (
        0.25,
        "share of the judged steps, in one piece, that a state along depth must last; a spike is "
        "no finding",
    ),
    "dead_unit_share": (
        0.5,
        "dead units over units of a layer; half of a layer's width then does nothing",
    ),
    "update_ratio_low": (
        1e-6,
        "median ‖Δθ‖ / ‖θ‖ of a weight; a million steps would then move it by its own size",
    ),
    "update_ratio_high": (
        0.1,
        "median ‖Δθ‖ / ‖θ‖ of a weight; ten steps then replace it",
    ),
    "shrinking_decades": (
        2.0,
        "decades that the output gradients fall from the first tenth of the steps to the last, "
        "beyond two for each decade that the loss falls",
    ),
    "shrinking_loss": (
        0.5,
        "final loss over first loss; below it the gradients shrink because the training succeeds",
    ),
    "cancellation_ratio": (
        0.25,
        "‖g_s + g_b‖ / (‖g_s‖ + ‖g_b‖) at a join; about 0.7 where the two are independent",
    ),
    "sleeping_ratio": (
        1e-4,
        "largest ‖g_b‖ / ‖g_s‖ at a join, where it does not grow; the branch then takes no part "
        "in the training",
    ),
    "sleeping_steps": (10.0, "steps that a branch which starts at zero has to wake up"),
}


@dataclass(frozen=True)
class Finding:
    """One sentence about a run with its number, its threshold and a remedy.

    Args:
        code: What it is, for programs: ``vanishing``, ``exploding``, ``nonfinite``, ``dead``,
            ``detached``, ``unused``, ``frozen``, ``dead_units``, ``update_too_small``,
            ``update_too_large``, ``shrinking``, ``cancellation`` or ``sleeping_branch``.
        severity: ``severe``, ``warning`` or ``note``.
        layers: Names of the layers (of parameters, where they belong to no layer) in call order.
        steps: First and last step of the evidence.
        value: The measured number, in the unit of ``threshold``.
        threshold: What the value was compared with; None where the state itself is the finding.
        sentence: What was seen, with its number.
        remedy: What to do.
    """

    code: str
    severity: str
    layers: tuple[str, ...]
    steps: tuple[int, int]
    value: float
    threshold: float | None
    sentence: str
    remedy: str


def thresholds_with(overrides: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the table of thresholds with some of them replaced.

    Args:
        overrides: Values by name.

    Raises:
        ValueError: If a name is not in the table, or a value is NaN.
    """
    values = {name: value for name, (value, _) in THRESHOLDS.items()}
    for name, value in (overrides or {}).items():
        if name not in values:
            raise ValueError(f"there is no threshold {name!r}; expected one of {', '.join(values)}")
        if math.isnan(value):
            raise ValueError(f"threshold {name!r} is NaN; expected a number")
        values[name] = float(value)
    return values


def stretch(
    sick: NDArray[np.bool_], steps: NDArray[np.int64], share: float
) -> tuple[int, int] | None:
    """Return the first and last step of the longest piece in which a state lasted.

    Args:
        sick: Whether it was seen, ``[steps]``.
        steps: Step numbers, ascending.
        share: Least part of the steps that the piece must fill, at least 3 of them (or all, where
            there are fewer).

    Returns:
        The ends of the longest piece, of several the latest; None where it is too short.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], sick, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return None
    longest = len(starts) - 1 - int(np.argmax((stops - starts)[::-1]))
    least = max(math.ceil(share * len(steps)), min(3, len(steps)))
    if stops[longest] - starts[longest] < least:
        return None
    return int(steps[starts[longest]]), int(steps[stops[longest] - 1])


def short(value: float) -> str:
    """Return three digits, or ``NaN`` or ``inf``."""
    return "NaN" if math.isnan(value) else f"{value:.3g}"


def named(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown
