"""Rows of a run for columns, ids, steps and ranks as a user names them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from analyzer.errors import NotRecordedError
from analyzer.pooling import needed_columns
from analyzer.storage.ranks import pooled
from analyzer.storage.schema import STAT_COLUMNS, STEP_TABLES
from analyzer.storage.selection import StepsLike, nearest, selected_ids, selected_steps
from analyzer.storage.static import StaticTable
from analyzer.storage.tables import StepTable

__all__ = ["Columns", "Ids", "Ranks", "RunRows"]

Columns = str | Sequence[str] | None
Ids = int | str | Iterable[int | str] | None
Ranks = Literal["pooled", "all"]
_NAMES_OF = {"layer_stats": "layers", "parameter_stats": "parameters", "splits": "joins"}


class RunRows:
    """The tables of a run that have rows for steps.

    Args:
        run: Folder of the run.
        manifest: Returns the present content of ``run.json``.
        static: The tables of layers, parameters and joins.
        warn: Receives a sentence for each part that cannot be read.
    """

    def __init__(
        self,
        run: Path,
        manifest: Callable[[], Mapping[str, Any]],
        static: Mapping[str, StaticTable],
        warn: Callable[[str], None],
    ) -> None:
        self.tables = {name: StepTable(run, name, warn) for name in STEP_TABLES}
        self._name, self._manifest, self._static = run.name, manifest, static

    def read(
        self,
        table: str,
        columns: Columns = None,
        ids: Ids = None,
        steps: StepsLike = None,
        ranks: Ranks = "pooled",
    ) -> pa.Table:
        """Return rows as an Arrow table, where null and NaN are told apart.

        Args:
            table: ``steps``, ``layer_stats``, ``parameter_stats`` or ``splits``.
            columns: Columns beside the keys; None for all.
            ids: Ids or names of layers, parameters or joins; None for all.
            steps: As in ``layer_stats``.
            ranks: ``pooled`` or ``all``.

        Raises:
            NotRecordedError: If a column or an id is not in the run.
            ValueError: If ``ranks`` is neither word.
        """
        if ranks not in ("pooled", "all"):
            raise ValueError(f"ranks is {ranks!r}; expected 'pooled' or 'all'")
        source = self.tables[table]
        names = self.columns(source, columns)
        chosen = selected_ids(ids, self._names(table), source.key) if source.key else None
        wanted = selected_steps(steps, source.latest)
        keys = ["step", "rank", *([source.key] if source.key else [])]
        if ranks == "all":
            return source.read([*keys, *names], wanted, chosen, all_attempts=table == "steps")
        if len(source.ranks) < 2:
            keys.remove("rank")
            return source.read([*keys, *names], wanted, chosen)
        rows = source.read([*keys, *needed_columns(table, names)], wanted, chosen)
        sharded = self._sharded() if table == "parameter_stats" else []
        whole = pooled(table, rows, source.key, self._num_ranks(source), sharded)
        keys.remove("rank")
        return whole.select([*keys, *names])

    def columns(self, source: StepTable, asked: Columns) -> list[str]:
        """Return the columns that were asked for, without keys.

        Raises:
            NotRecordedError: If one is not in the table.
        """
        keys = ("step", "rank", source.key)
        known = [name for name in source.schema().names if name not in keys]
        if asked is None:
            return known
        names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
        for name in names:
            if name not in known and name not in keys:
                raise NotRecordedError(
                    f"column {name!r} is not in {source.name} of run '{self._name}'; "
                    f"{nearest(name, known)}"
                )
        return [name for name in names if name not in keys]

    def table_of(self, column: str, table: str | None) -> str:
        """Return the table of a statistic.

        Raises:
            NotRecordedError: If none has it.
        """
        for name in [table] if table else STAT_COLUMNS:
            if column in STAT_COLUMNS[name]:
                return name
        known = [name for columns in STAT_COLUMNS.values() for name in columns]
        raise NotRecordedError(
            f"column {column!r} is no statistic of a layer, parameter or join; "
            f"{nearest(column, known)}"
        )

    def id_of(self, table: str, asked: int | str) -> int:
        """Return the id of a layer, parameter or join.

        Raises:
            NotRecordedError: If it is not in the run.
        """
        (id_,) = selected_ids([asked], self._names(table), str(self.tables[table].key)) or [0]
        return id_

    def _names(self, table: str) -> dict[int, str]:
        return self._static[_NAMES_OF[table]].names() if table in _NAMES_OF else {}

    def _num_ranks(self, source: StepTable) -> int:
        """Data-parallel ranks: as the manifest says, else as many as wrote rows."""
        manifest = self._manifest()
        stated = manifest.get("data_parallel_ranks") or manifest.get("world_size")
        return stated if isinstance(stated, int) and stated > 0 else len(source.ranks)

    def _sharded(self) -> list[int]:
        rows = self._static["parameters"].read()
        placements = rows.column("placement").to_pylist()
        ids = rows.column("parameter").to_pylist()
        return [i for i, placement in zip(ids, placements, strict=True) if placement == "sharded"]
