"""Numbers as every sentence and tick writes them: few digits, powers of ten as powers, decades."""

import math

__all__ = [
    "Spread",
    "age_text",
    "counted",
    "decades",
    "decades_fallen",
    "decades_grown",
    "number",
    "percent",
    "power",
    "times_ten_to",
    "with_range",
]

Spread = tuple[float, float] | None
"""Smallest and largest value over seeds; None for a single run."""

_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(exponent: int) -> str:
    """Return a power of ten, as in ``10⁻¹³``; 1 and 10 as they are."""
    if exponent in (0, 1):
        return "10" if exponent else "1"
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def number(value: float) -> str:
    """Return a number in three digits, as in ``0.394``, ``2.30``, ``3.2·10⁻¹³`` and ``−∞``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    size = abs(value)
    sign = "−" if value < 0 else ""
    if 1e-3 <= size < 9_999.5:
        return sign + _fixed(size)
    if size >= 1 and size < 999_999.5 and size == round(size):
        return f"{sign}{size:,.0f}"
    digits, exponent = f"{size:.1e}".split("e")
    return f"{sign}{digits.removesuffix('.0')}·{power(int(exponent))}"


def _fixed(size: float) -> str:
    """A size between a thousandth and ten thousand; a trailing zero of a measured one is kept."""
    if size >= 99.95 or (size >= 10 and size == round(size)):
        return f"{size:.0f}"
    if size >= 9.995:
        return f"{size:.1f}"
    if size == round(size):
        return f"{size:.0f}"
    return f"{size:.2f}" if size >= 0.995 else f"{size:.3g}"


def times_ten_to(log10: float) -> str:
    """Return ``10**log10`` as ``number`` writes it, also where it is beyond float64."""
    if not math.isfinite(log10) or abs(log10) < 290:
        return number(10.0**log10 if math.isfinite(log10) else log10)
    whole = math.floor(log10)
    return f"{10 ** (log10 - whole):.1f}·{power(whole)}"


def percent(share: float) -> str:
    """Return a share in percent, as in ``71 %``; a small one with its first digit."""
    if not math.isfinite(share):
        return number(share)
    size = abs(share) * 100
    sign = "−" if share < 0 and size > 0 else ""
    if 0 < size < 1e-3:
        return f"{sign}{number(size)} %"
    return f"{sign}{size:.0f} %" if size >= 9.95 or size == 0 else f"{sign}{size:.2g} %"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, as in ``1 layer`` and ``1,000 layers``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def with_range(value: float | None, spread: Spread = None) -> str:
    """Return a number in three digits, with its range over seeds; ``nothing`` for None."""
    if value is None:
        return "nothing"
    if spread is None:
        return number(value)
    return f"{number(value)} ({number(spread[0])} to {number(spread[1])})"


def decades(size: float, spread: Spread = None) -> str:
    """Return a size in decades, as in ``12.2 decades`` and ``1 decade``; its sign is left out."""
    text = _digits(size)
    if spread is not None:
        low, high = sorted(map(abs, spread))
        text += f" ({_digits(low)} to {_digits(high)})"
    return f"{text} decade" if text == "1" else f"{text} decades"


def _digits(size: float) -> str:
    return f"{abs(size):.3g}" if math.isfinite(size) else number(abs(size))


def decades_fallen(value: float | None, spread: Spread = None) -> str:
    """Return what a gradient does along depth: ``falls 12.2 decades``, ``grows 0.139 decades``.

    A value below 0 grows.
    """
    if value is None or math.isnan(value):
        return f"changes by {with_range(value)} decades"
    if spread is not None and spread[0] < 0 < spread[1]:
        ends = [f"{'falling' if end >= 0 else 'growing'} {_digits(end)}" for end in spread]
        return f"{_verb(value)} {decades(value)} (from {ends[0]} to {ends[1]})"
    return f"{_verb(value)} {decades(value, spread)}"


def decades_grown(value: float | None, spread: Spread = None) -> str:
    """Return the same of decades that it grows; below 0 it falls."""
    turned = None if spread is None else (-spread[1], -spread[0])
    return decades_fallen(None if value is None else -value, turned)


def _verb(value: float) -> str:
    return "falls" if value >= 0 else "grows"


def age_text(seconds: float) -> str:
    """Return an age in its largest unit, rounded down: ``3 h``."""
    for size, unit in _AGES:
        if seconds >= size:
            return f"{int(seconds // size):,} {unit}"
    return f"{max(0, int(seconds))} s"
