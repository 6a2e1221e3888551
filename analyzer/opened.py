"""A recorded run as users open it: its tables, what they say, and a view of it in a notebook."""

import os
from collections.abc import Mapping
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import analyzer.storage.run as storage
from analyzer.analysis.numerals import counted
from analyzer.errors import AnalyzerError
from analyzer.storage.catalog import resolve_run
from analyzer.storage.reading import Columns, Ids, Ranks
from analyzer.storage.schema import EDGES
from analyzer.storage.selection import StepsLike

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from analyzer.analysis.findings import Finding
    from analyzer.analysis.gradient_flow import MedianGain
    from analyzer.analysis.training import TrainingSummary
    from analyzer.analysis.trunk import MedianTrunk, Trunk

__all__ = ["Run", "open_run"]


def open_run(path: str | Path) -> "Run":
    """Open a recorded run, finished or still running.

    Args:
        path: Folder of the run; or, as on the command line, the name of a run in ``runs`` (in
            ``$ANALYZER_RUNS`` where that is set), or ``latest``.

    Returns:
        The run; nothing of its tables is read before it is asked for.

    Raises:
        RunNotFoundError: If there is no run at this place.
        SchemaError: If ``run.json`` is damaged, foreign, or of a newer version.
    """
    # A folder that is there is opened as it is, so that its own problem is told.
    is_there = not isinstance(path, str | Path) or os.path.exists(path)
    return Run(path if is_there else resolve_run(path))


class Run(storage.Run):
    """A recorded run: what the storage reads, and what the analysis says about it."""

    def __repr__(self) -> str:
        return f"<Run {self.name!r}, {', '.join(self._facts().values())}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows of the run: what it is and what it holds."""
        facts = {"run": self.name, **self._facts()}
        rows = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
        return f"<table>{''.join(rows)}</table>"

    def __rich__(self) -> "Table":
        """Return what a terminal with colors shows of it: the same."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for fact in {"run": self.name, **self._facts()}.items():
            table.add_row(*map(Text, fact))
        return table

    def _facts(self) -> dict[str, str]:
        """What a run is in a few words, from its manifest and its static tables."""
        steps = len(self.recorded_steps())
        counts = {name: self.static_rows(name).num_rows for name in ("layers", "joins")}
        facts = {"status": self.status, "steps": counted(steps, "step")}
        facts |= {name: counted(count, name[:-1]) for name, count in counts.items()}
        if self.probes:
            facts["probes"] = f"probes {', '.join(self.probes)}"
        if self.manifest.get("error"):
            facts["error"] = str(self.manifest["error"])[:200]
        return facts

    @property
    def edges(self) -> "pd.DataFrame":
        """The data flow between layers: ``source``, ``target``, and their names beside them.

        The target reads the output of the source, with no layer in between; source -1, ``input``,
        is an input of the network. Empty in runs that were recorded without it.
        """
        import pandas as pd

        layers = self.static_rows("layers")
        ids, names = layers.column("layer").to_pylist(), layers.column("name").to_pylist()
        known, rows = dict(zip([-1, *ids], ["input", *names], strict=True)), self.static_rows(EDGES)
        columns = {name: pd.Series(rows.column(name).to_numpy()) for name in rows.column_names}
        names_of = {
            f"{end}_name": column.map(known).astype("str") for end, column in columns.items()
        }
        order = [name for end in columns for name in (end, f"{end}_name")]
        return pd.DataFrame(columns | names_of)[order]

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
            ``step``, ``rank`` where all are asked for, ``layer``, ``name``, then the columns.

        Raises:
            NotRecordedError: If a column or a layer is not in the run.
            TypeError: If what is given names no columns or steps.
        """
        return self._named("layers", super().layer_stats(columns, layers, steps, ranks))

    def parameter_stats(
        self,
        columns: Columns = None,
        parameters: Ids = None,
        steps: StepsLike = None,
        ranks: Ranks = "pooled",
    ) -> "pd.DataFrame":
        """Return statistics of parameters, each with its name; as ``layer_stats``.

        Raises:
            NotRecordedError: If a column or a parameter is not in the run.
        """
        rows = super().parameter_stats(columns, parameters, steps, ranks)
        return self._named("parameters", rows)

    def splits(
        self,
        joins: Ids = None,
        steps: StepsLike = None,
        columns: Columns = None,
        ranks: Ranks = "pooled",
    ) -> "pd.DataFrame":
        """Return the splits of gradients at joins, each with its name; as ``layer_stats``.

        Raises:
            NotRecordedError: If a column or a join is not in the run.
        """
        return self._named("joins", super().splits(joins, steps, columns, ranks))

    def probe(self, name: str) -> "pd.DataFrame":
        """Return what a probe measured at all steps, with a ``step`` column in front.

        Rows of layers or joins have their names.

        Raises:
            NotRecordedError: If the probe measured nothing.
        """
        rows = super().probe(name)
        table = next((one for one in ("layers", "joins") if one[:-1] in rows), None)
        return self._named(table, rows) if table else rows

    def _named(self, table: str, rows: "pd.DataFrame") -> "pd.DataFrame":
        """Put the names of layers, parameters or joins beside their ids."""
        import pandas as pd

        key = table[:-1]
        if "name" not in rows:
            static = self.static_rows(table)
            ids, words = static.column(key).to_pylist(), static.column("name").to_pylist()
            known = dict(zip(ids, words, strict=True))
            # Of a million rows only the places of the names are made.
            place = {word: at for at, word in enumerate(dict.fromkeys(words))}
            codes = rows[key].map({id_: place[word] for id_, word in known.items()}).fillna(-1)
            made = pd.Categorical.from_codes(codes.to_numpy(np.int64), categories=pd.Index(place))
            rows.insert(
                list(rows.columns).index(key) + 1, "name", pd.Series(made, index=rows.index)
            )
        return rows

    def findings(self, thresholds: Mapping[str, float] | None = None) -> "list[Finding]":
        """Return what is wrong with the run, the most severe first; nothing for a healthy one.

        Args:
            thresholds: Values that replace those of ``analyzer.analysis.findings.THRESHOLDS``.

        Raises:
            ValueError: If there is no threshold of a name.
        """
        from analyzer.analysis.findings import findings

        return findings(self, thresholds)

    def gain(self) -> "MedianGain":
        """Return the gain of the output gradient per layer, going backward.

        Returns:
            Its median over at most 15 evenly spaced recorded steps, with ``decades_fallen`` from
            the last layer to the first; NaN where no step has two usable layers.
        """
        from analyzer.analysis.gradient_flow import run_gain

        return run_gain(self)

    def trunk(self, step: int | None = None) -> "Trunk | MedianTrunk":
        """Return what the output gradient does along the trunk, branches and shortcuts left out.

        Args:
            step: A recorded step; None for medians over at most 15 evenly spaced ones.

        Returns:
            ``decades_fallen`` from the last layer to the first, ``drop`` at one layer, ….
        """
        from analyzer.analysis.trunk import median_trunk, trunk

        return median_trunk(self) if step is None else trunk(self, step)

    def training(self) -> "TrainingSummary":
        """Return losses, steps and time in numbers: ``first_loss``, ``final_loss``, …."""
        from analyzer.analysis.training import run_training

        return run_training(self)

    def show(self, **options: Any) -> Any:
        """Show the run in a notebook: the dashboard in a frame below the cell.

        Args:
            **options: As those of ``analyzer.dashboard.notebook.show``.

        Returns:
            The frame, which a notebook displays.

        Raises:
            AnalyzerError: If the dashboard is not installed.
        """
        # Not an import statement: a run must be readable where there is no dashboard.
        try:
            notebook = import_module("analyzer.dashboard.notebook")
        except ModuleNotFoundError as error:
            raise AnalyzerError(
                f"run.show() needs the dashboard, but module {error.name!r} is not installed; "
                "install gradient-flow-analyzer as a whole, or use `analyzer show`"
            ) from error
        return notebook.show(self, **options)
