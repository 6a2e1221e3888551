"""The rows of several ranks as those of the global loss: what adds up, and what counts once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.pooling import Column, Groups, Pool
from analyzer.storage.arrays import as_array, as_column, as_floats, as_numpy, is_present
from analyzer.storage.schema import SHARE
from analyzer.vocabulary import Quantity, quantities_of

__all__ = ["RankFacts", "pooled"]


@dataclass(frozen=True)
class RankFacts:
    """What is known of the ranks whose rows become one.

    Args:
        num_ranks: How many there are.
        data_parallel: Over how many gradients are averaged, each of a batch of its own; the others
            compute the same, or parts of it.
        parts: In how many parts they hold the output of a layer or a parameter, by its id.
        elements: What each of them has of such a parameter, by rank and id.
        incomplete: Steps of which some rank has no row.
    """

    num_ranks: int
    data_parallel: int
    parts: Mapping[int, int] = field(default_factory=dict)
    elements: Mapping[tuple[int, int], int] = field(default_factory=dict)
    incomplete: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def pooled(table: str, rows: pa.Table, key: str | None, ranks: RankFacts) -> pa.Table:
    """Return one row per step and id, without ``rank``; null where no rank has a value.

    ``activation_num_dead`` is the smallest of the ranks' counts: a unit is dead where it is dead on
    all of them, and which units were dead is not recorded. Where ranks hold parts of a tensor, the
    pooled value is that of all of it; where several hold the same, it counts once. What takes all
    ranks is null in a step of which one has no row.
    """
    if not rows.num_rows:
        return rows.drop_columns(["rank"])
    names = ["rank", *([key] if key else []), "step"]
    rows = rows.take(as_array(np.lexsort([as_numpy(rows.column(name)) for name in names])))
    keys = [as_numpy(rows.column(name)) for name in ("step", key) if name is not None]
    whole = _Ranks(table, rows, keys, ranks)
    columns = [one for one in rows.schema if one.name != "rank"]
    return pa.Table.from_arrays([whole.column(one) for one in columns], schema=pa.schema(columns))


class _Ranks:
    """The rows of several ranks, by step and id, and how their columns become one."""

    def __init__(
        self, table: str, rows: pa.Table, keys: Sequence[NDArray[Any]], ranks: RankFacts
    ) -> None:
        self._table, self._rows, self._ranks = table, rows, ranks
        self._groups = Groups.of(*keys)
        firsts = self._groups.firsts
        self._known = {row.key: row for row in quantities_of(table)}
        self._over_ranks = Pool(table, "ranks", self._groups, self._read)
        self._is_whole = ~np.isin(keys[0][firsts], ranks.incomplete)
        ids = keys[-1] if len(keys) > 1 else np.zeros(len(keys[0]), np.int32)
        parts = np.array([ranks.parts.get(int(id_), 1) for id_ in ids[firsts]], dtype=np.float64)
        self._is_shard = parts > 1
        if table == "parameter_stats":
            self._copies = ranks.num_ranks / parts
            pairs = zip(as_numpy(rows.column("rank")).tolist(), ids.tolist(), strict=True)
            self._elements = np.array([ranks.elements.get(pair, 1) for pair in pairs], np.float64)
            groups = Groups.of(*keys, weights=self._elements)
            self._over_shards = Pool(table, "shards", groups, self._read_part)
        else:
            self._copies = ranks.num_ranks / ranks.data_parallel / parts

    def _read(self, name: str) -> Column:
        column = self._rows.column(name)
        return as_floats(column), is_present(column)

    def _read_part(self, name: str) -> Column:
        values, present = self._read(name)
        return values, present & (self._elements > 0)  # nothing of it may be here

    def column(self, field: pa.Field) -> pa.Array:
        """Return a column of the wholes."""
        row = self._known.get(field.name)
        if row is None and not pa.types.is_floating(field.type):
            return self._first(field.name)
        if row is None:  # logged by the training
            values, present = self._read(field.name)
            known = np.logical_or.reduceat(present, self._groups.firsts)
            return as_column(self._groups.mean(values, present), known, field.type)
        values, known = self._pooled(row)
        if pa.types.is_boolean(field.type):
            return as_array(values > 0, null=~known)
        return as_column(values, known, field.type)

    def _pooled(self, row: Quantity) -> Column:
        values, known = self._over_ranks.column(row.key)
        if self._table == "parameter_stats":
            if self._is_shard.any():
                whole, _ = self._over_shards.column(row.key)
                values = np.where(self._is_shard, self._once(whole, row.pooling.shards), values)
                known = known & (self._is_whole | ~self._is_shard)
            return values, known
        if self._table == "steps":
            if row.key == "gradient_norm" and SHARE in self._rows.column_names:
                shares, has_share = self._read(SHARE)
                found = np.logical_and.reduceat(has_share, self._groups.firsts)
                norm = self._groups.norm(shares, has_share)
                return np.where(found, norm, values), known & (self._is_whole | ~found)
            return values, known & self._is_whole if row.key == "loss" else known
        values = self._once(values, row.pooling.ranks)
        if row.pooling.batches == "dead" and self._is_shard.any():
            # Each rank has units of its own; of several batches it takes those that share them.
            units, has_units = self._read(row.key)
            values = np.where(self._is_shard, self._groups.sum(units, has_units), values)
            known = known & ~(self._is_shard & (self._ranks.data_parallel > 1))
        if row.scales_with_loss:
            values = values / self._ranks.data_parallel
        return values, known & self._is_whole

    def _once(self, values: NDArray[Any], rule: str | None) -> NDArray[Any]:
        """What several ranks have alike counts once in a sum, or in a sum of squares."""
        if rule == "norm":
            return values / np.sqrt(self._copies)
        return values / self._copies if rule == "sum" else values

    def _first(self, name: str) -> pa.Array:
        """The lowest rank's value that is not null, for keys, texts and what else is counted."""
        column = self._rows.column(name)
        rows = self._groups.first(np.arange(len(column)), is_present(column))
        return column.take(as_array(rows)).combine_chunks()
