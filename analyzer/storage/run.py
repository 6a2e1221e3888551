"""Opens a recorded run and answers questions about it; nothing here changes the folder."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analyzer.errors import NotRecordedError
from analyzer.storage.arrays import as_floats, as_numpy, frame, static_frame
from analyzer.storage.bin_reader import BinReader, Grid, Heatmap, NumberName, Series
from analyzer.storage.parts import Part
from analyzer.storage.reading import (
    Columns,
    Ids,
    Ranks,
    RunRows,
    probe_names,
    probe_notes,
    probe_rows,
)
from analyzer.storage.remote import refreshed
from analyzer.storage.run_json import read_manifest, run_path, status_of
from analyzer.storage.schema import PROBES
from analyzer.storage.selection import StepsLike, check_count, one_of
from analyzer.storage.static_table import static_tables
from analyzer.texts import shown_name

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "open_run"]

_MOST_WARNINGS = 100


def open_run(path: str | Path) -> "Run":
    """Open a recorded run, finished or still running.

    Args:
        path: Folder of the run.

    Raises:
        RunNotFoundError: If the folder holds no run.
        SchemaError: If ``run.json`` is damaged, foreign, or of a newer version.
    """
    return Run(path)


class Run:
    """A recorded run. What a running one adds is seen after ``refresh``.

    Args:
        path: Folder of the run.

    Attributes:
        path: Folder of the run.
        manifest: Content of ``run.json``.
        warnings: A sentence for each file that could not be read and was left out; 100 at most.

    Raises:
        RunNotFoundError: If the folder holds no run.
        SchemaError: If ``run.json`` is damaged, foreign, or of a newer version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = run_path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        self.warnings: list[str] = []
        self._static = static_tables(self.path, self._promised, self._warn)
        self._rows = RunRows(self.path, lambda: self.manifest, self._static, self._warn)
        self._views = {
            name: BinReader(self.path, table, self._warn, partial(self._pooled_at, name))
            for name, table in self._rows.tables.items()
        }

    def __repr__(self) -> str:
        return f"<Run {self.name!r}, {self.status}>"

    def _promised(self, table: str) -> object:
        return self.manifest.get(f"num_{table}")

    def _pooled_at(self, table: str, column: str, steps: slice) -> pa.Table:
        return self.read(table, column, steps=steps)

    def _warn(self, sentence: str) -> None:
        if len(self.warnings) < _MOST_WARNINGS and sentence not in self.warnings:
            self.warnings.append(sentence)

    # A run as a whole

    @property
    def name(self) -> str:
        r"""Name of the folder; bytes of it that are not UTF-8 as ``\xff``."""
        return shown_name(self.path.resolve())

    @property
    def status(self) -> str:
        """Return running, finished, failed, interrupted, or crashed.

        A run that says ``running`` has crashed where its heartbeat is older than 30 seconds. The
        file is read again for it, so that a run that is kept open does not seem to crash.
        """
        if self.manifest.get("status") == "running":
            self.manifest = read_manifest(self.path)
        return status_of(self.manifest)

    def refresh(self) -> None:
        """See what was written since the run was opened.

        Raises:
            RunNotFoundError: If the folder is gone.
        """
        refreshed(self.path)
        self.manifest = read_manifest(self.path)
        for static in self._static.values():
            static.refresh()
        for table, views in self._views.items():
            self._rows.tables[table].refresh()
            views.refresh()

    @property
    def layers(self) -> "pd.DataFrame":
        """The table of layers, in call order."""
        return static_frame("layers", self._static["layers"].read())

    @property
    def parameters(self) -> "pd.DataFrame":
        """The table of parameters, in the order of ``named_parameters``."""
        return static_frame("parameters", self._static["parameters"].read())

    @property
    def joins(self) -> "pd.DataFrame":
        """The table of joins, in forward order."""
        return static_frame("joins", self._static["joins"].read())

    def static_rows(self, table: str) -> pa.Table:
        """Return ``layers``, ``parameters``, ``joins`` or ``edges`` as on disk, in no time."""
        return one_of(self._static, table, "a table").read()

    # Rows of steps

    @property
    def ranks(self) -> list[int]:
        """Ranks that wrote rows."""
        return sorted({rank for table in self._rows.tables.values() for rank in table.ranks})

    @property
    def steps(self) -> "pd.DataFrame":
        """One row per step; null is NaN here, as everywhere in a DataFrame."""
        return frame(self.read("steps"))

    def raw_steps(self) -> "pd.DataFrame":
        """Return the rows of ``steps`` of every rank and attempt."""
        return frame(self.read("steps", ranks="all"))

    def layer_stats(
        self,
        columns: Columns = None,
        layers: Ids = None,
        steps: StepsLike = None,
        ranks: Ranks = "pooled",
    ) -> "pd.DataFrame":
        """Return statistics of layers; only what is asked for is read.

        Args:
            columns: Statistics; None for all.
            layers: Ids or names, one or several; None for all.
            steps: A step, a slice of steps, a range or several; a negative number counts recorded
                steps from the end; None for all.
            ranks: ``pooled`` for one row per step and layer, ``all`` for the rows of every rank.

        Returns:
            ``step``, ``rank`` where all are asked for, ``layer``, then the columns.

        Raises:
            NotRecordedError: If a column or a layer is not in the run.
        """
        return frame(self.read("layer_stats", columns, layers, steps, ranks))

    def parameter_stats(
        self,
        columns: Columns = None,
        parameters: Ids = None,
        steps: StepsLike = None,
        ranks: Ranks = "pooled",
    ) -> "pd.DataFrame":
        """Return statistics of parameters; arguments as those of ``layer_stats``.

        Raises:
            NotRecordedError: If a column or a parameter is not in the run.
        """
        return frame(self.read("parameter_stats", columns, parameters, steps, ranks))

    def splits(
        self,
        joins: Ids = None,
        steps: StepsLike = None,
        columns: Columns = None,
        ranks: Ranks = "pooled",
    ) -> "pd.DataFrame":
        """Return the splits of gradients at joins; arguments as those of ``layer_stats``.

        Raises:
            NotRecordedError: If a column or a join is not in the run.
        """
        return frame(self.read("splits", columns, joins, steps, ranks))

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
        return self._rows.read(table, columns, ids, steps, ranks)

    def batches(self, table: str, most_steps: int = 1000) -> Iterator[pa.Table]:
        """Yield the pooled rows of a table in order, those of ``most_steps`` steps at a time."""
        recorded = self.recorded_steps(table)
        check_count("most_steps", most_steps)
        for start in range(0, len(recorded), most_steps):
            some = recorded[start : start + most_steps]
            yield self.read(table, steps=slice(int(some[0]), int(some[-1]) + 1))

    def recorded_steps(self, table: str = "steps") -> NDArray[np.int64]:
        """Return the steps of which a table has rows, in order."""
        source, known = self._rows.table(table), self._rows.tables["steps"]
        if table != "steps" and not self.warnings and self._views[table].holds_each_of(known):
            source = known
        return source.steps().copy()

    def nearest_step(self, step: int | None, table: str = "steps") -> int | None:
        """Return the recorded step of a table that is nearest to one, the earlier of two.

        Only rows near it are read, so that it costs the same however long the run.

        Args:
            step: A step; None for the last one.
            table: As in ``read``; None is returned where it has no rows.
        """
        return self._rows.table(table).nearest(step)

    def written(self, table: str) -> tuple[Part, ...]:
        """Return the part files that hold a table's rows: others once it has grown."""
        return tuple(self._rows.table(table).parts)

    def layer_steps(self) -> NDArray[np.int64]:
        """Return the steps at which layers were recorded, in order."""
        return self.recorded_steps("layer_stats")

    # Screen-sized questions

    def profile(
        self, column: str, step: int, *, table: str | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return one column of all layers, parameters or joins at one step.

        Args:
            column: A statistic.
            step: A step; a negative number counts recorded steps from the end.
            table: Its table; needed only where two tables have a column of that name.

        Returns:
            Ids in order, and their values; NaN also where the value is null. Empty where nothing
            was recorded at the step.

        Raises:
            NotRecordedError: If no table has the column.
        """
        name = self._rows.table_of(column, table)
        rows = self.read(name, column, steps=step)
        ids = as_numpy(rows.column(self._rows.tables[name].key)).astype(np.int32, copy=False)
        order = np.argsort(ids, kind="stable")
        return ids[order], as_floats(rows.column(column))[order]

    def series(
        self,
        column: str,
        layer: int | str | None = None,
        max_points: int = 1000,
        *,
        table: str | None = None,
    ) -> Series:
        """Return one column over the steps, in bins where there are many.

        Args:
            column: A statistic, or a numeric column of ``steps``.
            layer: Id or name of the layer, parameter or join; None for a column of ``steps``.
            max_points: Largest number of bins.
            table: Its table; needed only where two tables have a column of that name.

        Raises:
            NotRecordedError: If the run has no such column or id.
        """
        check_count("max_points", max_points)
        if layer is None:
            self._rows.columns(self._rows.tables["steps"], column)
            return self._views["steps"].series(column, 0, max_points)
        name = self._rows.table_of(column, table)
        return self._views[name].series(column, self._rows.id_of(name, layer), max_points)

    def several_series(
        self, column: str, layers: Sequence[int | str], max_points: int, table: str | None = None
    ) -> list[Series]:
        """Return one column of some layers, parameters or joins, each as `series` does."""
        check_count("max_points", max_points)
        name = self._rows.table_of(column, table)
        ids = [self._rows.id_of(name, layer) for layer in layers]
        return self._views[name].several(column, ids, max_points)

    def heatmap(self, column: str, max_bins: int = 500, *, table: str | None = None) -> Heatmap:
        """Return one column of all ids over all steps, in bins.

        Args:
            column: A statistic.
            max_bins: Largest number of bins.
            table: Its table; needed only where two tables have a column of that name.

        Raises:
            NotRecordedError: If no table has the column.
        """
        check_count("max_bins", max_bins)
        return self._views[self._rows.table_of(column, table)].heatmap(column, max_bins)

    def grid(
        self,
        column: str,
        number: NumberName = "mean",
        max_bins: int = 500,
        *,
        table: str | None = None,
    ) -> Grid:
        """Return one number of the bins of ``heatmap``; the others are not read.

        Args:
            column: A statistic.
            number: ``min``, ``mean`` or ``max`` of each bin.
            max_bins: Largest number of bins.
            table: Its table; needed only where two tables have a column of that name.

        Raises:
            NotRecordedError: If no table has the column.
        """
        check_count("max_bins", max_bins)
        one_of(dict.fromkeys(get_args(NumberName)), number, "a number of a bin")
        return self._views[self._rows.table_of(column, table)].grid(column, number, max_bins)

    # Probes

    @property
    def probes(self) -> list[str]:
        """Names of the probes that measured something."""
        return probe_names(self.path / "probes")

    def probe(self, name: str) -> "pd.DataFrame":
        """Return what a probe measured at all steps, with a ``step`` column in front.

        Raises:
            NotRecordedError: If the probe measured nothing.
        """
        return frame(probe_rows(self._probe_folder(name), self._warn))

    def probe_metadata(self, name: str) -> dict[int, dict[str, str]]:
        """Return what a probe noted beside its tables, by step.

        Raises:
            NotRecordedError: If the probe measured nothing.
        """
        return probe_notes(self._probe_folder(name))

    def _probe_folder(self, name: str) -> Path:
        if name not in (measured := self.probes):
            seen, one, it = f"'{str(name)[:80]}' is no probe", "NAME", f"one: {', '.join(PROBES)}"
            if name in [*PROBES]:
                seen, one, it = f"probe '{name}' was not measured", name, "it"
            raise NotRecordedError(
                f"{seen}: run '{self.name}' has {', '.join(measured) or 'none'}, and "
                f"`analyzer probe {self.name} {one}` measures {it}"
            )
        return self.path / "probes" / name
