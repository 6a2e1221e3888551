"""One row per step from the rows of several ranks, as the global loss has it.

Ranks see equal parts of a batch. Under data parallelism the global loss is the mean of the ranks'
losses, so that the gradient of the global loss at a rank's output is that rank's own divided by
their number.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.pooling import Column, Groups, Pool
from analyzer.storage.arrays import as_array, as_column, as_floats, as_numpy, is_present
from analyzer.vocabulary import quantities_of

__all__ = ["pooled"]

# Their rows are gradients of a rank's own loss; those of parameters were averaged by the training.
_OF_OWN_LOSS = ("layer_stats", "splits")


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
    rows = rows.take(as_array(_order(rows, key)))
    keys = [as_numpy(rows.column(name)) for name in ("step", key) if name is not None]
    groups = Groups.of(*keys)
    whole = _Ranks(table, rows, groups, num_ranks)
    if len(sharded):
        whole.is_shard = np.isin(keys[1][groups.firsts], sharded)
    fields = [field for field in rows.schema if field.name != "rank"]
    arrays = [whole.column(field) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _order(rows: pa.Table, key: str | None) -> NDArray[np.int64]:
    """Rows by step, id and rank."""
    names = ["rank", *([key] if key else []), "step"]
    return np.lexsort([as_numpy(rows.column(name)) for name in names])


class _Ranks:
    """The rows of several ranks, by step and id, and how their columns become one."""

    def __init__(self, table: str, rows: pa.Table, groups: Groups, num_ranks: int) -> None:
        self._rows, self._groups, self._num_ranks = rows, groups, num_ranks
        self._known = {row.key: row for row in quantities_of(table)}
        self._over_ranks = Pool(table, "ranks", groups, self._read)
        self._over_shards = Pool(table, "shards", groups, self._read)
        self._divides = table in _OF_OWN_LOSS
        self.is_shard: NDArray[np.bool_] | None = None

    def _read(self, name: str) -> Column:
        column = self._rows.column(name)
        return as_floats(column), is_present(column)

    def column(self, field: pa.Field) -> pa.Array:
        """Return a column of the wholes."""
        row = self._known.get(field.name)
        if row is None and not pa.types.is_floating(field.type):
            return self._first(field.name)
        if row is None:  # logged by the training
            values, present = self._read(field.name)
            known = np.logical_or.reduceat(present, self._groups.firsts)
            return as_column(self._groups.mean(values, present), known, field.type)
        values, known = self._over_ranks.column(row.key)
        if self.is_shard is not None:
            values = np.where(self.is_shard, self._over_shards.column(row.key)[0], values)
        if row.scales_with_loss and self._divides:
            values = values / self._num_ranks
        if pa.types.is_boolean(field.type):
            return as_array(values > 0, null=~known)
        return as_column(values, known, field.type)

    def _first(self, name: str) -> pa.Array:
        """The lowest rank's value that is not null, for keys, texts and what else is counted."""
        column = self._rows.column(name)
        rows = self._groups.first(np.arange(len(column)), is_present(column))
        return column.take(as_array(rows)).combine_chunks()
