"""One row per step from the rows of several ranks, as the global loss has it.

Ranks see equal parts of a batch. Under data parallelism the global loss is the mean of the ranks'
losses, so that the gradient of the global loss at a rank's output is that rank's own divided by
their number. Nothing is skipped: a NaN on one rank is a NaN of the whole.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.storage.arrays import as_array, as_column, as_floats, as_numpy, is_present
from analyzer.storage.columns import is_number

__all__ = ["needed_columns", "pooled"]

Floats = NDArray[np.float64]
Reduce = Callable[["_Groups", Floats, NDArray[np.bool_]], Floats]
_NEEDED = {
    "activation_std": ("activation_mean",),
    "cosine": ("shortcut_gradient_norm", "branch_gradient_norm"),
    "shortcut_share": ("shortcut_gradient_norm", "branch_gradient_norm", "cosine"),
}


def needed_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns with those that pooling them takes."""
    more = [other for name in columns for other in _NEEDED.get(name, ())]
    return list(dict.fromkeys([*columns, *more]))


@dataclass(frozen=True)
class _Groups:
    """Neighboring rows that become one: where each group begins, and its size."""

    firsts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def total(self, values: Floats, present: NDArray[np.bool_]) -> Floats:
        return np.asarray(np.add.reduceat(np.where(present, values, 0.0), self.firsts))

    def mean(self, values: Floats, present: NDArray[np.bool_]) -> Floats:
        count = np.add.reduceat(present.astype(float), self.firsts)
        # Divided before the sum, so that two values near 1e308 have a mean.
        return self.total(values / np.repeat(np.maximum(count, 1), self.sizes), present)

    def largest(self, values: Floats, present: NDArray[np.bool_]) -> Floats:
        return np.asarray(np.maximum.reduceat(np.where(present, values, -np.inf), self.firsts))

    def smallest(self, values: Floats, present: NDArray[np.bool_]) -> Floats:
        return np.asarray(np.minimum.reduceat(np.where(present, values, np.inf), self.firsts))

    def norm(self, values: Floats, present: NDArray[np.bool_]) -> Floats:
        """Root of the sum of squares, scaled so that nothing under- or overflows."""
        scale = self.largest(np.abs(values), present)
        usable = np.isfinite(scale) & (scale > 0)
        unit = np.where(usable, scale, 1.0)
        parts = values / np.repeat(unit, self.sizes)
        return np.where(usable, unit * np.sqrt(self.total(parts * parts, present)), scale)

    def first(self, values: Floats, present: NDArray[np.bool_]) -> Floats:
        """Value of the lowest rank that has one."""
        place = np.where(present, np.arange(len(values)), len(values))
        first = np.minimum.reduceat(place, self.firsts)
        return values[np.minimum(first, len(values) - 1)]


def pooled(
    table: str,
    rows: pa.Table,
    key: str | None,
    num_ranks: int,
    sharded: Sequence[int] = (),
) -> pa.Table:
    """Return one row per step and id.

    Args:
        table: Name of the table that the rows are from.
        rows: Rows of several ranks, with their step, rank and id.
        key: The id column; None for ``steps``.
        num_ranks: Number of data-parallel ranks.
        sharded: Ids of the parameters of which each rank holds a part.

    Returns:
        The rows by step and id, with the same columns except ``rank``. Null where no rank has a
        value. ``activation_num_dead`` is the smallest of the ranks' counts: a unit is dead where
        it is dead on all of them, and which units were dead is not recorded.
    """
    if not rows.num_rows:
        return rows.drop_columns(["rank"])
    rows, groups = _sorted(rows, key)
    is_sharded = np.isin(as_numpy(rows.column(key)), sharded) if key == "parameter" else None
    fields, arrays = [], []
    for field in rows.schema:
        if field.name == "rank":
            continue
        fields.append(field)
        if field.name in ("step", key, "attempt") or not is_number(field.type):
            arrays.append(_firsts(rows.column(field.name), groups))
        else:
            arrays.append(_column(table, rows, field, groups, num_ranks, is_sharded))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _sorted(rows: pa.Table, key: str | None) -> tuple[pa.Table, _Groups]:
    steps, ranks = as_numpy(rows.column("step")), as_numpy(rows.column("rank"))
    ids = as_numpy(rows.column(key)) if key else np.zeros(len(steps), dtype=np.int32)
    order = np.lexsort((ranks, ids, steps))
    steps, ids = steps[order], ids[order]
    is_first = np.ones(len(steps), dtype=bool)
    is_first[1:] = (steps[1:] != steps[:-1]) | (ids[1:] != ids[:-1])
    firsts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(firsts, len(steps)))
    return rows.take(as_array(order)), _Groups(firsts, sizes)


def _firsts(column: pa.ChunkedArray, groups: _Groups) -> pa.Array:
    """The lowest rank's value that is not null, for columns that are no numbers."""
    present = is_present(column)
    place = np.where(present, np.arange(len(present)), len(present))
    found = np.minimum.reduceat(place, groups.firsts)
    rows = np.where(found < groups.firsts + groups.sizes, found, groups.firsts)
    return column.take(as_array(rows)).combine_chunks()


def _column(
    table: str,
    rows: pa.Table,
    field: pa.Field,
    groups: _Groups,
    num_ranks: int,
    is_sharded: NDArray[np.bool_] | None,
) -> pa.Array:
    values, present = _values(rows, field.name)
    known = np.logical_or.reduceat(present, groups.firsts)
    if field.name in ("activation_std", "cosine", "shortcut_share"):
        result, is_defined = _derived(field.name, rows, groups)
        known &= is_defined
    else:
        result = _reduction(table, field)(groups, values, present)
        if is_sharded is not None:
            split = _shards(field.name)(groups, values, present)
            result = np.where(is_sharded[groups.firsts], split, result)
    if field.name.startswith("output_gradient_") and field.name.endswith(("norm", "_abs")):
        result = result / num_ranks
    if table == "splits" and field.name.endswith("_norm"):
        result = result / num_ranks
    if pa.types.is_boolean(field.type):
        return as_array(result > 0, null=~known)
    return as_column(result, known, field.type)


def _values(rows: pa.Table, name: str) -> tuple[Floats, NDArray[np.bool_]]:
    column = rows.column(name)
    return as_floats(column), is_present(column)


def _reduction(table: str, field: pa.Field) -> Reduce:
    """How the values of ranks become one: by table, then by what the name says."""
    if table == "steps":
        return _Groups.mean if pa.types.is_floating(field.type) else _Groups.first
    if table == "parameter_stats":
        # Replicas hold the same numbers; the mean says so even where they drift apart.
        return _Groups.mean if pa.types.is_floating(field.type) else _Groups.largest
    if field.name.endswith("_norm"):
        return _Groups.norm
    if field.name.endswith("_num_nonfinite"):
        return _Groups.total
    if field.name.endswith(("_max", "_max_abs")):
        return _Groups.largest
    return _Groups.smallest if field.name.endswith(("_min", "_num_dead")) else _Groups.mean


def _shards(name: str) -> Reduce:
    """How the parts of a sharded parameter become the whole."""
    if name.endswith("norm"):
        return _Groups.norm
    if name.endswith("_num_nonfinite"):
        return _Groups.total
    return _Groups.largest if name.endswith("_max_abs") else _Groups.mean


def _derived(name: str, rows: pa.Table, groups: _Groups) -> tuple[Floats, NDArray[np.bool_]]:
    """Columns that follow from others, and where they are defined."""
    if name == "activation_std":
        return _std(rows, groups)
    shortcut, has_shortcut = _values(rows, "shortcut_gradient_norm")
    branch, has_branch = _values(rows, "branch_gradient_norm")
    cosine, has_cosine = _values(rows, "cosine")
    present = has_shortcut & has_branch
    s, b = groups.norm(shortcut, present), groups.norm(branch, present)
    # Unit lengths, so that squares of tiny gradients do not vanish; a null cosine is that of a
    # vector of length zero, whose dot product is zero.
    scale = np.repeat(np.where(np.maximum(s, b) > 0, np.maximum(s, b), 1.0), groups.sizes)
    dots = np.where(has_cosine, cosine * (shortcut / scale) * (branch / scale), 0.0)
    dot = groups.total(dots, present)
    unit = scale[groups.firsts]
    s, b = s / unit, b / unit
    known = np.logical_and.reduceat(present, groups.firsts)
    if name == "cosine":
        product = s * b
        return np.divide(dot, product, out=np.full_like(dot, np.nan), where=product != 0), (
            known & (product != 0)
        )
    whole = s * s + 2 * dot + b * b
    share = np.divide(s * s + dot, whole, out=np.full_like(dot, np.nan), where=whole != 0)
    return share, known & (whole != 0)


def _std(rows: pa.Table, groups: _Groups) -> tuple[Floats, NDArray[np.bool_]]:
    """Standard deviation over all ranks: the mean variance plus the variance of the means."""
    std, has_std = _values(rows, "activation_std")
    mean, has_mean = _values(rows, "activation_mean")
    present = has_std & has_mean
    centered = mean - np.repeat(groups.mean(mean, present), groups.sizes)
    variance = groups.mean(std * std + centered * centered, present)
    return np.sqrt(variance), np.logical_or.reduceat(present, groups.firsts)
