"""How the values of parts become that of the whole: of micro-batches, of ranks, of shards.

The parts of one whole are neighboring rows. Which rule holds for a column stands in its row of the
vocabulary. Nothing is repaired: a NaN in one part is a NaN of the whole; a part without a value is
left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from analyzer.vocabulary import RULES, Quantity, quantity

__all__ = ["Column", "Groups", "Pool", "needed_columns", "total_norm"]

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
Column: TypeAlias = tuple[NDArray[Any], Flags]
"""Values, and where they are not null."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Neighboring rows that become one.

    Args:
        firsts: Where each group begins, ``[groups]``.
        sizes: Its rows, ``[groups]``.
        weights: Elements of each part, ``[rows]``; None where all parts are equally large.
    """

    firsts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    weights: Floats | None = None

    @classmethod
    def of(cls, *keys: NDArray[Any], weights: Floats | None = None) -> "Groups":
        """Return the groups of rows that have the same keys; equal keys stand side by side."""
        is_first = np.zeros(len(keys[0]), dtype=bool)
        is_first[:1] = True
        for key in keys:
            is_first[1:] |= key[1:] != key[:-1]
        firsts = np.flatnonzero(is_first)
        return cls(firsts, np.diff(np.append(firsts, len(is_first))), weights)

    def spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return one value a group for each of its rows."""
        return np.repeat(values, self.sizes, axis=0)

    def sum(self, values: Floats, present: Flags) -> Floats:
        """Return the sum."""
        return np.asarray(np.add.reduceat(np.where(present, values, 0.0), self.firsts))

    def mean(self, values: Floats, present: Flags) -> Floats:
        """Return the mean, weighted by elements where the parts differ in size."""
        # Divided before the sum, so that two values near 1e308 have a mean.
        if self.weights is None:
            count = np.add.reduceat(present.astype(float), self.firsts)
            return self.sum(values / self.spread(np.maximum(count, 1)), present)
        return self.sum(values * self._shares(self.weights, present), present)

    def _shares(self, weights: Floats, present: Flags) -> Floats:
        """The part of each row in the elements of its group."""
        whole = self.spread(self.sum(weights, present))
        shares: Floats = np.divide(weights, whole, out=np.ones_like(weights), where=whole > 0)
        return shares

    def max(self, values: Floats, present: Flags) -> Floats:
        """Return the largest value."""
        return np.asarray(np.maximum.reduceat(np.where(present, values, -np.inf), self.firsts))

    def min(self, values: Floats, present: Flags) -> Floats:
        """Return the smallest value."""
        return np.asarray(np.minimum.reduceat(np.where(present, values, np.inf), self.firsts))

    def norm(self, values: Floats, present: Flags) -> Floats:
        """Return the root of the sum of squares, scaled so that nothing under- or overflows."""
        scale = self.max(np.abs(values), present)
        usable = np.isfinite(scale) & (scale > 0)
        unit = np.where(usable, scale, 1.0)
        parts = values / self.spread(unit)
        return np.where(usable, unit * np.sqrt(self.sum(parts * parts, present)), scale)

    def first(self, values: NDArray[Any], present: Flags) -> NDArray[Any]:
        """Return the first value that is present; any other if none is."""
        rows = np.where(present, np.arange(len(values)), len(values))
        found = np.minimum.reduceat(rows, self.firsts)
        return values[np.where(found < self.firsts + self.sizes, found, self.firsts)]

    def std(self, deviations: Floats, means: Floats, present: Flags) -> Floats:
        """Return the standard deviation: root of the mean variance plus that of the means."""
        centered = np.hypot(deviations, means - self.spread(self.mean(means, present)))
        if self.weights is not None:
            return self.norm(centered * np.sqrt(self._shares(self.weights, present)), present)
        count = np.maximum(np.add.reduceat(present.astype(float), self.firsts), 1)
        return self.norm(centered / self.spread(np.sqrt(count)), present)

    def dead(self, masks: NDArray[np.object_], present: Flags) -> NDArray[np.object_]:
        """Return the masks of the units that are dead in all parts; None for unlike masks.

        A part without units, such as the last state beside an output, is left out.
        """
        whole = masks[self.firsts]
        for place in np.flatnonzero(self.sizes > 1):
            first, size = self.firsts[place], self.sizes[place]
            parts = masks[first : first + size][present[first : first + size]]
            distinct = list({id(mask): mask for mask in parts}.values())  # that of none is shared
            alike = len({len(mask) for mask in distinct}) == 1
            whole[place] = np.logical_and.reduce(distinct) if alike else None
        return whole


class Pool:
    """The columns of a table, pooled one at a time.

    Args:
        table: Name of the table.
        over: What the parts are.
        groups: Which rows become one.
        read: Returns a column of the parts.
    """

    def __init__(
        self,
        table: str,
        over: Literal["batches", "ranks", "shards"],
        groups: Groups,
        read: Callable[[str], Column],
    ) -> None:
        self._table, self._over, self._groups, self._read = table, over, groups, read

    def column(self, key: str) -> Column:
        """Return a column of the wholes: a part that is alone stays as it is."""
        row, groups = quantity(key, self._table), self._groups
        rule = getattr(row.pooling, self._over)
        if rule is None:
            raise ValueError(f"{self._table}/{key} has no rule for {self._over}; its row needs one")
        if rule == "follows":
            return self._following(row)
        values, present = self._read(key)
        is_alone = groups.sizes == 1
        if is_alone.all():
            return values, present
        known = np.logical_or.reduceat(present, groups.firsts)
        with np.errstate(invalid="ignore", over="ignore"):
            if rule == "std":
                means, has_mean = self._read(row.needs[0])
                pooled = groups.std(values, means, present & has_mean)
                known = np.logical_or.reduceat(present & has_mean, groups.firsts)
            elif rule in ("cosine", "share"):
                pooled, known = self._of_products(rule, key if rule == "cosine" else row.needs[2])
            else:
                pooled = getattr(groups, rule)(values, present)
                if rule == "dead":
                    known = np.array([mask is not None for mask in pooled], dtype=bool)
        alone = groups.firsts[is_alone]
        pooled[is_alone], known[is_alone] = values[alone], present[alone]
        return pooled, known

    def _following(self, row: Quantity) -> Column:
        """A quantity that is a function of others, once those are pooled."""
        columns = {need.removeprefix(f"{row.moments}_"): self.column(need) for need in row.needs}
        assert callable(row.value)
        needed = SimpleNamespace(**{name: found[0] for name, found in columns.items()})
        with np.errstate(all="ignore"):  # what is not finite is a result
            values = row.value(needed)
        return values, np.logical_and.reduce([known for _, known in columns.values()])

    def _of_products(self, rule: str, cosine: str) -> Column:
        """Cosine or share of two vectors whose parts stand side by side: dot products add."""
        groups = self._groups
        one_key, other_key = quantity(cosine, self._table).needs
        (one, has_one), (other, has_other) = self._read(one_key), self._read(other_key)
        cosines, has_cosine = self._read(cosine)
        present = has_one & has_other
        # A missing rank leaves the whole unknown; a micro-batch may do without the branch.
        is_known = np.logical_and if self._over == "ranks" else np.logical_or
        known = is_known.reduceat(present, groups.firsts)
        # Unit lengths, so that squares of tiny gradients do not vanish; a null cosine is that of a
        # vector of length zero, whose dot product is zero.
        length = np.maximum(groups.norm(one, present), groups.norm(other, present))
        scale = groups.spread(np.where(length > 0, length, 1.0))
        s, b = one / scale, other / scale
        # Multiplied and summed alike, so that opposite vectors cancel to zero exactly.
        ss, bb = groups.sum(s * s, present), groups.sum(b * b, present)
        sb = groups.sum(np.where(has_cosine, cosines * s * b, 0.0), present)
        whole = np.sqrt(ss) * np.sqrt(bb) if rule == "cosine" else ss + 2 * sb + bb
        part = sb if rule == "cosine" else ss + sb
        ratio = np.divide(part, whole, out=np.full_like(sb, np.nan), where=whole != 0)
        return np.clip(ratio, -1, 1) if rule == "cosine" else ratio, known & (whole != 0)


def needed_columns(table: str, columns: Sequence[str]) -> list[str]:
    """Return the columns with those that pooling them takes."""
    found = dict.fromkeys(columns)
    for key in columns:
        try:
            row = quantity(key, table)
        except KeyError:  # logged by the training
            continue
        found |= dict.fromkeys(needed_columns(table, row.needs))
    return list(found)


def total_norm(norms: Sequence[float]) -> float:
    """Return ``√Σ nᵢ²`` of a few norms, without under- or overflow; NaN where one is NaN."""
    # `math.hypot` drops a NaN beside an infinity.
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)


_OWN = {"cosine", "share", "follows"}
for _rule in RULES:
    if _rule not in _OWN and not hasattr(Groups, _rule):
        raise ImportError(f"pooling rule {_rule!r} has no arithmetic; expected a method of Groups")
