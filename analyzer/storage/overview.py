"""A run of any length in a table of constant size: bins of min, mean and max over steps.

Bins are ``width`` steps wide. When there would be more than ``max_bins`` of them, neighbors are
merged and the width doubles. Minimum, mean and maximum are those of the finite values; others are
counted beside them.
"""

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["Overview"]

_MAX_BINS = 1024
# Five numbers a cell, 32 bytes: about 100 MB at the most, however many layers there are.
_MAX_CELLS = 3_000_000

Floats = NDArray[np.float64]


class Overview:
    """Bins of the columns of one table, per id.

    Args:
        columns: Columns of the table.
        max_bins: Bins at the most; fewer are kept where there are very many ids.
    """

    def __init__(self, columns: Sequence[str], max_bins: int = _MAX_BINS) -> None:
        self.columns = tuple(columns)
        self.width = 1
        self.ids: list[int] = []
        self._place: dict[int, int] = {}
        self._max_bins = max_bins
        self._num_bins = 0
        self._resize(0, 0)

    def _resize(self, bins: int, ids: int) -> None:
        """Make room, with neutral elements in what is new."""
        shape = (bins, ids, len(self.columns))
        old = getattr(self, "_low", None)
        for name, fill in (("_low", math.inf), ("_high", -math.inf), ("_sum", 0.0)):
            setattr(self, name, self._grown(name, shape, fill, np.float64, old is not None))
        for name in ("_finite", "_odd"):
            setattr(self, name, self._grown(name, shape, 0, np.int32, old is not None))

    def _grown(
        self, name: str, shape: tuple[int, int, int], fill: float, dtype: type, has_old: bool
    ) -> NDArray[np.generic]:
        grown = np.full(shape, fill, dtype=dtype)
        if has_old:
            old = getattr(self, name)
            bins, ids = min(len(old), shape[0]), old.shape[1]
            grown[:bins, :ids] = old[:bins]
        return grown

    @property
    def max_bins(self) -> int:
        """Bins at the most with the present number of ids; always even."""
        cells = max(1, len(self.ids) * len(self.columns))
        return max(16, min(self._max_bins, _MAX_CELLS // cells) // 2 * 2)

    def add(
        self,
        steps: NDArray[np.int64],
        ids: NDArray[np.int32],
        values: Floats,
        present: NDArray[np.bool_] | None,
    ) -> None:
        """Add rows.

        Args:
            steps: Step of each row, ``[rows]``.
            ids: Layer, parameter or join of each row, ``[rows]``.
            values: Columns, ``[rows, columns]``.
            present: False for null; None where nothing is null.
        """
        if not len(steps):
            return
        self._make_room(int(steps.max()), ids)
        places = np.array([self._place[i] for i in np.unique(ids).tolist()])
        places = places[np.searchsorted(np.unique(ids), ids)]
        key = (steps // self.width) * len(self.ids) + places
        order = np.argsort(key, kind="stable")
        cells, starts = np.unique(key[order], return_index=True)
        values = values[order]
        finite = np.isfinite(values)
        odd = ~finite
        if present is not None:
            odd &= present[order]
            finite &= present[order]
        bins, ids_ = cells // len(self.ids), cells % len(self.ids)
        low = np.minimum.reduceat(np.where(finite, values, math.inf), starts)
        high = np.maximum.reduceat(np.where(finite, values, -math.inf), starts)
        self._low[bins, ids_] = np.minimum(self._low[bins, ids_], low)
        self._high[bins, ids_] = np.maximum(self._high[bins, ids_], high)
        self._sum[bins, ids_] += np.add.reduceat(np.where(finite, values, 0.0), starts)
        self._finite[bins, ids_] += np.add.reduceat(finite, starts, dtype=np.int32)
        self._odd[bins, ids_] += np.add.reduceat(odd, starts, dtype=np.int32)

    def _make_room(self, last_step: int, ids: NDArray[np.int32]) -> None:
        new = [i for i in np.unique(ids).tolist() if i not in self._place]
        for i in new:
            self._place[i] = len(self.ids)
            self.ids.append(i)
        while last_step // self.width >= self.max_bins:
            self._double()
        needed = last_step // self.width + 1
        if new or needed > len(self._low):
            bins = min(self.max_bins, max(needed, 2 * len(self._low)))
            self._resize(bins, len(self.ids))
        self._num_bins = max(self._num_bins, needed)

    def _double(self) -> None:
        """Merge neighboring bins."""
        if len(self._low) % 2:
            self._resize(len(self._low) + 1, self._low.shape[1])
        for name, merge in (
            ("_low", np.minimum),
            ("_high", np.maximum),
            ("_sum", np.add),
            ("_finite", np.add),
            ("_odd", np.add),
        ):
            old = getattr(self, name)
            setattr(self, name, merge(old[0::2], old[1::2]))
        self.width *= 2
        self._num_bins = -(-self._num_bins // 2)

    def __len__(self) -> int:
        return self._num_bins

    def table(self) -> pa.Table:
        """Return the bins: bin, first step, id, then five columns for each column."""
        shape = (self._num_bins, len(self.ids))
        bins = np.repeat(np.arange(shape[0], dtype=np.int32), shape[1])
        columns: dict[str, NDArray[np.generic]] = {
            "bin": bins,
            "start": bins.astype(np.int64) * self.width,
            "id": np.tile(np.array(self.ids, dtype=np.int32), shape[0]),
        }
        count = self._finite[: shape[0]]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            mean = self._sum[: shape[0]] / count
        nothing = count == 0
        for place, name in enumerate(self.columns):
            for suffix, values in (("min", self._low), ("mean", mean), ("max", self._high)):
                cells = np.where(nothing, math.nan, values[: shape[0]])
                columns[f"{name}_{suffix}"] = cells[:, :, place].ravel()
            columns[f"{name}_num_finite"] = count[:, :, place].ravel()
            columns[f"{name}_num_nonfinite"] = self._odd[: shape[0], :, place].ravel()
        metadata = {"width": str(self.width)}
        return pa.table(columns).replace_schema_metadata(metadata)
