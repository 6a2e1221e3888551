"""Numbers as every sentence and tick writes them: few digits, powers of ten as powers, decades."""

import math
from collections.abc import Sequence

__all__ = [
    "Spread",
    "age_text",
    "counted",
    "decades",
    "decades_fallen",
    "decades_grown",
    "digits_apart",
    "number",
    "percent",
    "power",
    "times_ten_to",
    "with_range",
]

Spread = tuple[float, float] | None
"""Smallest and largest value over seeds; None for a single run."""

# Numbers that differ by less, relatively, differ by rounding.
_SAME = 1e-6
_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(exponent: int) -> str:
    """Return a power of ten, as in ``10⁻¹³``; 1 and 10 as they are."""
    if exponent in (0, 1):
        return "10" if exponent else "1"
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def number(value: float, apart: Sequence[float] = ()) -> str:
    """Return a number in three digits, as in ``0.394``, ``2.30``, ``3.2·10⁻¹³`` and ``−∞``.

    What is less than 1 never becomes 1. ``apart`` are numbers that it is compared with in the same
    sentence: it has as many digits as tell it from each of them.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    size = abs(value)
    sign = "−" if value < 0 else ""
    digits = digits_apart(value, 2 if size < 1e-3 or size >= 9_999.5 else 3, apart)
    if 1e-3 <= size < 9_999.5:
        return sign + _fixed(size, digits)
    if size >= 1 and size < 999_999.5 and size == round(size):
        return f"{sign}{size:,.0f}"
    mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
    whole = mantissa.rstrip("0").removesuffix(".") if "." in mantissa else mantissa
    return f"{sign}{whole}·{power(int(exponent))}"


def digits_apart(value: float, digits: int, apart: Sequence[float] = ()) -> int:
    """Return how many digits put a number on its own side of those in ``apart``, and of 1.

    ``digits`` at least; a number that equals one but for rounding needs no more.
    """
    others = [one for one in apart if math.isfinite(one)]
    others += [math.copysign(1.0, value)] if abs(value) < 1 else []
    others = [one for one in others if abs(value - one) > _SAME * abs(one)]
    while any((float(f"{value:.{digits - 1}e}") - one) * (value - one) <= 0 for one in others):
        digits += 1
    return digits


def _fixed(size: float, digits: int) -> str:
    """A size between a thousandth and ten thousand; a trailing zero of a measured one is kept."""
    if size == round(size):
        return f"{size:.0f}"
    written = float(f"{size:.{digits - 1}e}")
    if written < 1:
        return f"{size:.{digits}g}"
    return f"{size:.{max(0, digits - len(str(int(written))))}f}"


def times_ten_to(log10: float) -> str:
    """Return ``10**log10`` as ``number`` writes it, also where it is beyond float64."""
    if not math.isfinite(log10) or abs(log10) < 290:
        return number(10.0**log10 if math.isfinite(log10) else log10)
    whole = math.floor(log10)
    return f"{10 ** (log10 - whole):.1f}·{power(whole)}"


def percent(share: float) -> str:
    """Return a share in percent, as in ``71 %``; a small one with its first digit.

    What is less than the whole never becomes ``100 %``.
    """
    if not math.isfinite(share):
        return number(share)
    size = abs(share) * 100
    sign = "−" if share < 0 and size > 0 else ""
    if 0 < size < 1e-3:
        return f"{sign}{number(size)} %"
    if size < 9.95:
        return f"{sign}{size:.2g} %"
    digits = digits_apart(size, 2, [100.0]) if size < 100 else 2
    return f"{sign}{size:.{max(0, digits - 2)}f} %"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, as in ``1 layer`` and ``1,000 layers``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def with_range(value: float | None, spread: Spread = None, apart: Sequence[float] = ()) -> str:
    """Return a number in three digits, with its range over seeds; ``nothing`` for None.

    ``apart`` as for `number`.
    """
    if value is None:
        return "nothing"
    if spread is None:
        return number(value, apart)
    return f"{number(value, apart)} ({number(spread[0], apart)} to {number(spread[1], apart)})"


def decades(size: float, spread: Spread = None, apart: Sequence[float] = ()) -> str:
    """Return a size in decades, as in ``12.2 decades`` and ``1 decade``; its sign is left out."""
    text = _size(size, apart)
    if spread is not None:
        low, high = sorted(map(abs, spread))
        text += f" ({_size(low, apart)} to {_size(high, apart)})"
    return f"{text} decade" if text == "1" else f"{text} decades"


def _size(size: float, apart: Sequence[float]) -> str:
    text = number(abs(size), apart)
    return text.rstrip("0").removesuffix(".") if "." in text and "·" not in text else text


def decades_fallen(value: float | None, spread: Spread = None, apart: Sequence[float] = ()) -> str:
    """Return what a gradient does along depth: ``falls 12.2 decades``, ``grows 0.139 decades``.

    A value below 0 grows.
    """
    if value is None or math.isnan(value):
        return f"changes by {with_range(value)} decades"
    if spread is not None and spread[0] < 0 < spread[1]:
        ends = [f"{'falling' if end >= 0 else 'growing'} {_size(end, apart)}" for end in spread]
        return f"{_verb(value)} {decades(value, None, apart)} (from {ends[0]} to {ends[1]})"
    return f"{_verb(value)} {decades(value, spread, apart)}"


def decades_grown(value: float | None, spread: Spread = None, apart: Sequence[float] = ()) -> str:
    """Return the same of decades that it grows; below 0 it falls."""
    turned = None if spread is None else (-spread[1], -spread[0])
    return decades_fallen(None if value is None else -value, turned, apart)


def _verb(value: float) -> str:
    return "falls" if value >= 0 else "grows"


def age_text(seconds: float) -> str:
    """Return an age in its largest unit, rounded down: ``3 h``."""
    for size, unit in _AGES:
        if seconds >= size:
            return f"{int(seconds // size):,} {unit}"
    return f"{max(0, int(seconds))} s"
