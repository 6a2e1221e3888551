"""Which steps and which ids a question is about, and the rows of these."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_array, as_numpy

__all__ = [
    "Steps",
    "StepsLike",
    "by_step",
    "check_count",
    "has_twins",
    "kept",
    "nearest",
    "one_of",
    "selected_ids",
    "selected_steps",
]

_Value = TypeVar("_Value")

StepsLike: TypeAlias = "int | slice | range | Sequence[int] | NDArray[np.integer[Any]] | None"
_LAST = 2**62


@dataclass(frozen=True)
class Steps:
    """A set of steps.

    Args:
        stride: Only every ``stride``-th step, counted from ``first``.
        only: The steps themselves, in order; None for all between.
    """

    first: int = 0
    last: int = _LAST
    stride: int = 1
    only: NDArray[np.int64] | None = None

    @classmethod
    def listed(cls, steps: Iterable[int]) -> "Steps":
        """Return the set of these steps."""
        only = np.unique(np.fromiter(steps, dtype=np.int64))
        return cls(int(only[0]), int(only[-1]), 1, only) if len(only) else cls(0, -1)

    def touches(self, low: int, high: int) -> bool:
        """Whether a file with steps from ``low`` to ``high`` may hold one of the set."""
        return bool(self.touching(np.array([low]), np.array([high]))[0])

    def touching(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of several ranges of steps may hold one of the set."""
        if self.only is None:
            return (low <= self.last) & (high >= self.first)
        place = np.searchsorted(self.only, low)
        return (place < len(self.only)) & (self.only[np.minimum(place, len(self.only) - 1)] <= high)

    def mask(self, steps: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which rows belong to the set; None for all of them."""
        if self.only is not None:
            return _one_of(steps, self.only)
        if self == Steps():
            return None
        keep: NDArray[np.bool_] = (steps >= self.first) & (steps <= self.last)
        return keep & ((steps - self.first) % self.stride == 0) if self.stride > 1 else keep


def _one_of(steps: NDArray[np.int64], only: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each step is one of a few, in order; where all are in order, few are looked at."""
    if not np.all(steps[1:] >= steps[:-1]):
        return np.isin(steps, only)
    low, high = (np.searchsorted(steps, only, side) for side in ("left", "right"))
    is_there = low < high
    change = np.zeros(len(steps) + 1, np.int8)
    change[low[is_there]] += 1
    change[high[is_there]] -= 1
    return np.cumsum(change[:-1], dtype=np.int8).astype(bool)


def selected_steps(asked: StepsLike, latest: Callable[[int], NDArray[np.int64]]) -> Steps:
    """Return the steps that were asked for.

    Args:
        asked: A step; a negative number counts recorded steps from the end; a slice of step
            numbers, a range, or several steps; None for all.
        latest: Returns the last recorded steps, as many as asked for if there are; called only for
            negative numbers.
    """
    if asked is None:
        return Steps()
    if isinstance(asked, slice):
        return _sliced(asked, latest)
    if isinstance(asked, int | np.integer) and _is_whole(asked):
        return Steps.listed(_counted([int(asked)], latest))
    several: list[Any] = list(asked) if isinstance(asked, Iterable) else [None]
    if not all(map(_is_whole, several)):
        raise TypeError(
            f"steps is {asked!r}; expected a step, a slice, a range or a list of whole numbers"
        )
    return Steps.listed(_counted([int(step) for step in several], latest))


def _is_whole(value: Any) -> bool:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and abs(int(value)) <= _LAST


def _counted(steps: Sequence[int], latest: Callable[[int], NDArray[np.int64]]) -> list[int]:
    """Steps with negative numbers replaced; those before the first recorded step are left out."""
    if all(step >= 0 for step in steps):
        return list(steps)
    known = latest(-min(steps))
    return [
        step if step >= 0 else int(known[step])
        for step in steps
        if step >= 0 or -step <= len(known)
    ]


def _sliced(asked: slice, latest: Callable[[int], NDArray[np.int64]]) -> Steps:
    bounds = (asked.start, asked.stop, asked.step)
    if not all(bound is None or _is_whole(bound) for bound in bounds):
        raise TypeError(f"steps is {asked!r}; expected a slice of whole numbers")
    stride = 1 if asked.step is None else int(asked.step)
    if stride < 1:
        raise ValueError(f"steps is {asked!r}; expected a stride of at least 1")
    first = _bound(asked.start, latest, 0)
    stop = _bound(asked.stop, latest, _LAST + 1)
    return Steps(first, stop - 1, stride)


def _bound(value: int | None, latest: Callable[[int], NDArray[np.int64]], default: int) -> int:
    if value is None:
        return default
    if value >= 0:
        return int(value)
    known = latest(-int(value))
    return int(known[max(int(value), -len(known))]) if len(known) else 0


def check_count(name: str, value: object) -> None:
    """Refuse what is no whole number from 1 up."""
    if not _is_whole(value) or value < 1:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}; expected a whole number from 1 up")


def one_of(known: Mapping[str, _Value], name: object, what: str) -> _Value:
    """Return what has a name; refuse a name that nothing has."""
    if not isinstance(name, str) or name not in known:
        raise NotRecordedError(f"{name!r} is not {what}; expected one of {', '.join(known)}")
    return known[name]


def nearest(name: object, known: Iterable[str]) -> str:
    """Return a clause that names the known names nearest to one that is not known."""
    names = list(known)
    close = get_close_matches(str(name), names, n=3, cutoff=0.4) or names[:5]
    if not close:
        return "there are none"
    return "nearest are " + ", ".join(f"'{match[:80]}'" for match in close)


def selected_ids(
    asked: int | str | Iterable[int | str] | None, names: Mapping[int, str], kind: str
) -> list[int] | None:
    """Return ids for one or several ids or names; None for all. One that is unknown is refused.

    Where ``names`` is empty, because the file of names is missing, any id is taken; ``kind`` is the
    word for an error: ``layer``, ``parameter`` or ``join``.
    """
    if asked is None:
        return None
    is_one = isinstance(asked, int | str | np.integer)
    several: list[Any] = [asked] if is_one or not isinstance(asked, Iterable) else list(asked)
    if not all(isinstance(each, int | str | np.integer) for each in several):
        raise TypeError(f"{kind}s is {asked!r}; expected a number or name of a {kind}, or several")
    return [_id(one, names, kind) for one in several]


def _id(asked: int | str, names: Mapping[int, str], kind: str) -> int:
    if isinstance(asked, str):
        for id_, name in names.items():
            if name == asked:
                return id_
        raise NotRecordedError(
            f"{kind} {asked[:200]!r} is not in this run; {nearest(asked, names.values())}"
        )
    if int(asked) in names or (not names and asked >= 0):
        return int(asked)
    raise NotRecordedError(
        f"{kind} {asked!r} is not in this run; "
        f"expected {min(names, default=0)} to {max(names, default=0)}, or a name"
    )


def kept(rows: pa.Table, steps: Steps, key: str | None, ids: Sequence[int] | None) -> pa.Table:
    """Return the rows of the steps and ids that were asked for; ``key`` is the column of ids."""
    keep = steps.mask(as_numpy(rows.column("step")))
    if ids is not None and key is not None:
        found = as_numpy(rows.column(key))
        wanted = found == ids[0] if len(ids) == 1 else np.isin(found, ids)
        keep = wanted if keep is None else keep & wanted
    return rows if keep is None or keep.all() else rows.filter(as_array(keep))


def by_step(rows: pa.Table) -> pa.Table:
    """Return rows in the order of their steps."""
    steps = as_numpy(rows.column("step"))
    if np.all(steps[1:] >= steps[:-1]):
        return rows
    return rows.take(as_array(np.argsort(steps, kind="stable")))


def has_twins(steps: NDArray[np.int64], ids: NDArray[np.int32]) -> bool:
    """Return whether two rows have the same step and id."""
    order = np.lexsort((ids, steps))
    return bool(((np.diff(steps[order]) == 0) & (np.diff(ids[order]) == 0)).any())
