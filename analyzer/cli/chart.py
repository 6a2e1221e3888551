"""Charts made of characters: pure functions of arrays that return text."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.cells import cell_len

__all__ = ["depth_chart", "shared_decades", "side_by_side", "sparkline"]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TICK_STEPS = (1, 2, 5, 10, 20, 50, 100, 200)
_MAX_SLOT = 8


@dataclass(frozen=True)
class _Glyphs:
    """The characters of a chart."""

    point: str
    bar: str
    shade: str
    nonfinite: str
    zero: str
    axis: str
    tick: str
    corner: str
    floor: str
    levels: str


_UNICODE = _Glyphs("●", "━", "░", "✕", "∅", "│", "┤", "└", "─", "▁▂▃▄▅▆▇█")
_PLAIN = _Glyphs("*", "=", ":", "x", "0", "|", "+", "+", "-", "_.-=*#")


@dataclass(frozen=True)
class _Scale:
    """A logarithmic axis of ``height`` rows, row 0 at the top; lo and hi are decades."""

    lo: int
    hi: int
    height: int

    def rows(self, log10_values: NDArray[np.float64]) -> NDArray[np.int64]:
        """The row of each value."""
        share = (self.hi - log10_values) / (self.hi - self.lo)
        return np.rint(np.clip(share, 0, 1) * (self.height - 1)).astype(np.int64)

    def ticks(self) -> dict[int, int]:
        """Row to decade, as many decades as leave a row free between two labels."""
        room = max((self.height - 1) // 2, 1)
        step = next((s for s in _TICK_STEPS if (self.hi - self.lo) / s <= room), 400)
        decades = [k for k in range(self.lo, self.hi + 1) if k % step == 0] or [self.lo]
        return {int(self.rows(np.array([float(k)]))[0]): k for k in decades}


def depth_chart(
    depths: ArrayLike,
    norms: ArrayLike,
    *,
    width: int = 80,
    height: int = 12,
    unicode: bool = True,
    title: str = "",
    decades: tuple[int, int] | None = None,
) -> str:
    """Draw norms against depth on a logarithmic axis, input at the left and output at the right.

    Layers that share a column are drawn as their range (shaded) with their median on it, so that
    a thousand layers fit. Norms that no logarithm can show are never dropped: a row of marks above
    the chart holds NaN and infinite ones, a row below it exact zeros.

    Depths and norms are ``[layers]``, the width has the labels in it and is at least 24 columns,
    and ``decades`` are the ends of the axis as powers of ten, for charts that share one; norms
    beyond them are drawn at its end. Without layers it is one sentence.
    """
    x, y = np.asarray(depths, np.float64), np.asarray(norms, np.float64)
    heading = [title] if title else []
    if not len(x):
        return "\n".join([*heading, "no layer with an output gradient to draw"])
    glyphs = _UNICODE if unicode else _PLAIN
    usable = np.isfinite(y) & (y > 0)
    # Without a norm to place, rows and labels would suggest a scale that nothing has.
    scale = _Scale(*(decades or shared_decades(y)), height if usable.any() else 1)
    ticks = scale.ticks() if usable.any() else {}
    labels = {row: _tick_label(k, unicode) for row, k in ticks.items()}
    margin = max(map(len, labels.values()), default=3) + 1
    columns, slot = _columns(x, max(width, 24) - margin - 2)
    body = _body(columns, y, usable, scale, slot, glyphs)
    lines = [_mark_row(columns, ~np.isfinite(y), slot, glyphs.nonfinite, margin + 1)]
    for row, text in enumerate(body):
        edge = glyphs.tick if row in labels else glyphs.axis
        lines.append(f"{labels.get(row, ''):>{margin}}{edge}{text}")
    extent = (int(columns.max()) + 1) * slot
    lines.append(" " * margin + glyphs.corner + glyphs.floor * extent)
    lines.append(_mark_row(columns, y == 0, slot, glyphs.zero, margin + 1))
    lines.append(" " * (margin + 1) + _ends(x, extent, unicode))
    return "\n".join(heading + [line.rstrip() for line in lines if line.strip()])


def shared_decades(*norms: ArrayLike) -> tuple[int, int]:
    """Return the whole decades around all finite norms above zero; (0, 1) where there are none."""
    values = np.concatenate([np.asarray(y, np.float64).ravel() for y in norms])
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return 0, 1
    logs = np.log10(values)
    lo, hi = math.floor(logs.min()), math.ceil(logs.max())
    return lo, hi if hi > lo else lo + 1


def _tick_label(decade: int, unicode: bool) -> str:
    return f"10{str(decade).translate(_SUPERSCRIPTS)}" if unicode else f"1e{decade}"


def _columns(x: NDArray[np.float64], room: int) -> tuple[NDArray[np.int64], int]:
    """The column of each layer, and how many characters a column is wide."""
    _, order = np.unique(x, return_inverse=True)
    count = int(order.max()) + 1
    if count <= room:
        return order.astype(np.int64), max(1, min(_MAX_SLOT, room // count))
    # More layers than columns: neighbors share one, which then shows their range.
    return order * room // count, 1


def _body(
    columns: NDArray[np.int64],
    y: NDArray[np.float64],
    usable: NDArray[np.bool_],
    scale: _Scale,
    slot: int,
    glyphs: _Glyphs,
) -> list[str]:
    """The rows between the axes."""
    grid = [[" "] * int(columns.max() + 1) for _ in range(scale.height)]
    for column in np.unique(columns[usable]):
        logs = np.log10(y[usable & (columns == column)])
        top, middle, bottom = scale.rows(np.array([logs.max(), np.median(logs), logs.min()]))
        for row in range(top, bottom + 1):
            grid[row][column] = glyphs.shade
        grid[middle][column] = glyphs.point
    return ["".join(_cell(c, slot, glyphs) for c in row).rstrip() for row in grid]


def _cell(character: str, slot: int, glyphs: _Glyphs) -> str:
    """One grid cell, ``slot`` characters wide; a gap keeps neighbors apart where there is room."""
    solid = slot - 1 if slot > 2 else slot
    if character == glyphs.point and slot > 1:
        character = glyphs.bar
    return (character * solid).ljust(slot)


def _mark_row(
    columns: NDArray[np.int64], marked: NDArray[np.bool_], slot: int, mark: str, indent: int
) -> str:
    """A line with a mark over every column that holds a marked layer; blank without one."""
    row = [" "] * int(columns.max() + 1)
    for column in columns[marked]:
        row[column] = mark
    return " " * indent + "".join(c.ljust(slot) for c in row)


def _ends(x: NDArray[np.float64], extent: int, unicode: bool) -> str:
    """The line below the axis: where the input is, where the output, and the depths there."""
    arrow = "→" if unicode else "->"
    left, right = f"input, depth {x.min():g}", f"output, depth {x.max():g}"
    if len(left) + len(right) + 4 > extent:
        return f"{left} {arrow} {right}"
    return left + f" {arrow} ".center(extent - len(left) - len(right)) + right


def side_by_side(left: str, right: str, gap: int = 3) -> str:
    """Put two texts beside each other, line by line, aligned at the bottom.

    Charts of different heights share their last line, the one that names input and output.
    """
    columns = [left.split("\n"), right.split("\n")]
    tall = max(map(len, columns))
    a, b = ([""] * (tall - len(lines)) + lines for lines in columns)
    wide = max(map(cell_len, a))
    pairs = zip(a, b, strict=True)
    return "\n".join((x + " " * (wide - cell_len(x) + gap) + y).rstrip() for x, y in pairs)


def sparkline(values: ArrayLike, width: int = 40, *, unicode: bool = True) -> str:
    """Draw a series as one line of bars, each the median of its bin.

    A bin that holds NaN or an infinite value is a mark, so that no single bad step hides. It is
    at most ``width`` characters, and empty for an empty series.
    """
    y = np.asarray(values, np.float64)
    if not len(y):
        return ""
    glyphs = _UNICODE if unicode else _PLAIN
    bins = np.array_split(y, min(width, len(y)))
    heights = [float(np.median(b)) if np.isfinite(b).all() else math.nan for b in bins]
    finite = [h for h in heights if not math.isnan(h)]
    low = min(finite, default=0.0)
    reach = max(finite, default=0.0) - low
    top = len(glyphs.levels) - 1
    return "".join(
        glyphs.nonfinite
        if math.isnan(h)
        else glyphs.levels[round((h - low) / reach * top) if reach > 0 else 0]
        for h in heights
    )
