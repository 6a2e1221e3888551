"""Words for the numbers of a claim, with their range over seeds."""

import math

__all__ = ["decades_fallen", "decades_grown", "short", "with_range"]

Spread = tuple[float, float] | None


def short(value: float) -> str:
    """Return three digits, or ``NaN`` or ``inf``."""
    return "NaN" if math.isnan(value) else f"{value:.3g}"


def with_range(value: float | None, spread: Spread) -> str:
    """Return a number in three digits, with its range over seeds where there are several."""
    if value is None:
        return "nothing"
    if spread is None:
        return short(value)
    return f"{short(value)} ({short(spread[0])} to {short(spread[1])})"


def decades_fallen(value: float | None, spread: Spread) -> str:
    """Return what a gradient does along depth: ``falls 12.2 decades``, ``grows 0.139 decades``.

    Args:
        value: Decades that it falls; below 0 it grows.
        spread: Range over seeds; None for a single pair.
    """
    if value is None or math.isnan(value):
        return f"changes by {with_range(value, None)} decades"
    if spread is None:
        return f"{_verb(value)} {short(abs(value))} decades"
    if spread[0] < 0 < spread[1]:
        ends = [f"{_verb(end).removesuffix('s')}ing {short(abs(end))}" for end in spread]
        return f"{_verb(value)} {short(abs(value))} decades (from {ends[0]} to {ends[1]})"
    low, high = sorted(map(abs, spread))
    return f"{_verb(value)} {with_range(abs(value), (low, high))} decades"


def decades_grown(value: float | None, spread: Spread) -> str:
    """Return the same of decades that it grows; below 0 it falls."""
    turned = None if spread is None else (-spread[1], -spread[0])
    return decades_fallen(None if value is None else -value, turned)


def _verb(decades: float) -> str:
    return "falls" if decades >= 0 else "grows"
