"""Reads what a figure shows of each run, and says what to record where it is missing."""

import shlex
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.view import RunLabel, View, nearest_step
from analyzer.errors import NotRecordedError
from analyzer.storage.once import once
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "AlongDepth",
    "InOneRange",
    "PerRun",
    "RunAtStep",
    "RunRecord",
    "joined_table",
    "not_recorded",
    "per_run",
    "probe_command",
    "probe_rows",
    "probe_rows_at",
    "profile_values",
    "read_runs",
    "record_command",
    "recorded_step",
    "remembered",
    "shown_range",
]

T = TypeVar("T")
R = TypeVar("R", bound="RunRecord")
Floats = NDArray[np.float64]
_MOST_REMEMBERED = 8
_MOST_SAID = 10


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a figure shows of one run."""

    label: RunLabel

    columns: ClassVar[Mapping[str, str]] = {}
    """The data behind the figure: the field that fills each column."""

    def sentence(self) -> str:
        """Return the finding about this run with its number."""
        raise NotImplementedError

    def cells(self) -> Mapping[str, Any]:
        """Return its rows in the data behind the figure, as cells by column."""
        return {column: getattr(self, name) for column, name in self.columns.items()}


@dataclass(frozen=True, eq=False)
class RunAtStep(RunRecord):
    """What a figure shows of one run at one recorded step."""

    step: int

    @property
    def where(self) -> str:
        """How a sentence about it begins: run and step, or that its weights are the final ones."""
        return f"{self.label.text}, {self.label.moment(self.step)}"


@dataclass(frozen=True, eq=False)
class AlongDepth(RunAtStep):
    """Numbers of the layers (blocks, joins) of one run at one step.

    Args:
        names: Layers, by depth.
        positions: Place along depth, ``[layers]``.
        values: Numbers by the name of their column, ``[layers]`` each.
        references: Curves that theory expects at the same layers, by their names.
        row: What a row is, as the column of names: ``layer`` or ``join``.
        axis: Column of the positions; empty where they only count the rows.
    """

    names: tuple[str, ...]
    positions: Floats
    values: Mapping[str, NDArray[Any]]
    text: str
    references: Mapping[str, Floats] = field(default_factory=dict)
    row: str = "layer"
    axis: str = "depth"

    def sentence(self) -> str:
        """Return the finding with its run, step and number."""
        return f"{self.where}: {self.text}"

    def cells(self) -> Mapping[str, Any]:
        """Return one row per layer or join."""
        depth = {self.axis: self.positions} if self.axis else {}
        rows = {"step": self.step, self.row: self.names, **depth}
        return {**rows, **self.values, **self.references}


@dataclass(frozen=True, eq=False)
class PerRun(Generic[R]):
    """One record of each run of a view that has the data, and the names of those that lack it.

    What runs along steps does so ``over`` steps, epochs or time, on a logarithmic axis where
    ``is_log_x``.
    """

    runs: tuple[R, ...]
    missing: tuple[str, ...]
    over: str = field(default="step", kw_only=True)
    is_log_x: bool = field(default=False, kw_only=True)

    @property
    def caption(self) -> str:
        """The findings with their numbers, and which runs lack the data."""
        sentences = [text for run in self.runs if (text := run.sentence())]
        if more := len(sentences) - _MOST_SAID:
            sentences[_MOST_SAID:] = [f"{more} more are drawn."] if more > 0 else []
        if self.missing:
            sentences.append(f"Not recorded in {', '.join(self.missing)}.")
        return " ".join(sentences)

    def table(self) -> "pd.DataFrame":
        """Return the data behind the figure; its first column names the run."""
        return joined_table({"run": run.label.text, **run.cells()} for run in self.runs)


@dataclass(frozen=True, eq=False)
class InOneRange(PerRun[R]):
    """Records of runs on one axis, or in one range of colors: of logarithms where ``is_log``."""

    label: str
    is_log: bool
    low: float
    high: float


def read_runs(
    view: View, read: Callable[[View, Run, RunLabel], T]
) -> tuple[tuple[T, ...], tuple[str, ...]]:
    """Return what is read of each run of a view, and the names of the runs that lack it.

    ``read`` raises NotRecordedError where a run lacks the data, and so does this where all do: as
    every function that reads the records of a figure. A pattern for layers that is refused or
    matches nothing is an AnalyzerError.
    """
    if not view.runs:
        raise ValueError("a view has 0 runs; expected at least one. Choose a run to show")
    found: list[T] = []
    missing: list[str] = []
    errors: list[NotRecordedError] = []
    for run, label in zip(view.runs, view.labels, strict=True):
        try:
            found.append(read(view, run, label))
        except NotRecordedError as error:
            errors.append(error)
            missing.append(label.text)
    if not found:
        raise errors[0]
    return tuple(found), tuple(missing)


def per_run(read: Callable[[View, Run, RunLabel], R]) -> Callable[[View], PerRun[R]]:
    """Return the function of a view that reads every run with ``read``, as ``read_runs`` does."""

    @wraps(read)
    def records(view: View) -> PerRun[R]:
        return PerRun(*read_runs(view, read), over=view.over, is_log_x=view.log_x)

    return records


def not_recorded(what: str, run: Run, remedy: str) -> NotRecordedError:
    """Return the error that says what a run lacks and how to record it."""
    return NotRecordedError(f"{what} not recorded in run '{run.name}'; {remedy}")


def joined_table(parts: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return the data behind a figure as one table, the parts (of runs, curves) below one another.

    Parts are cells by column; a single value fills its column.
    """
    import pandas as pd

    return pd.concat([pd.DataFrame(cells) for cells in parts], ignore_index=True)


def shown_range(parts: Iterable[Floats], *, is_log: bool) -> tuple[float, float]:
    """Return the smallest and the largest value that an axis can show; NaN without one.

    A logarithmic axis has no place for zero and less.
    """
    values = np.concatenate([np.ravel(part) for part in parts])
    shown = values[np.isfinite(values) & ((values > 0) | (not is_log))]
    return (float(shown.min()), float(shown.max())) if len(shown) else (np.nan, np.nan)


def profile_values(
    run: Run, quantity: str, step: int, ids: NDArray[np.int32], table: str | None = None
) -> Floats:
    """Return a quantity of layers, parameters or joins at a step; NaN where there is none.

    ``table`` is needed where several have a column of this name.
    """
    found, values = run.profile(quantity, step, table=table)
    value_of = dict(zip(found.tolist(), values.tolist(), strict=True))
    return np.array([value_of.get(int(id_), np.nan) for id_ in ids], np.float64)


def recorded_step(run: Run, step: int | None, table: str = "layer_stats") -> int:
    """Return the recorded step of a table that is nearest to one; None asks for the last."""
    found = run.nearest_step(step, table)
    if found is None:
        remedy = {
            "splits": "a net without joins has none; else add `--splits-every 10`",
            "parameter_stats": "record with `--columns all`",
        }.get(table, "the run has no step yet; wait for its first step, or record it again")
        raise not_recorded(f"{table} were", run, remedy)
    return found


def probe_command(run: Run, name: str) -> str:
    """Return the command that measures a probe on the checkpoints of a run."""
    command = shlex.join(["analyzer", "probe", run.name, name])
    # A network of the zoo is built again; for another one its program is started, which is asked.
    is_built = str(run.manifest.get("target", "")).startswith("zoo:")
    return command if is_built else f"{command} --replay"


def record_command(run: Run, options: str) -> str:
    """Return the command that records the program of a run once more, with other options.

    Empty where the manifest does not hold all of its command line.
    """
    words = run.manifest.get("argv")
    if not isinstance(words, list) or any("<path:" in str(word) for word in words):
        return ""
    loop = run.manifest.get("loop")
    steps = loop.get("steps") if isinstance(loop, dict) else None
    program = [*(["--steps", str(steps)] if steps else []), *map(str, words)]
    return " ".join(filter(None, ("analyzer record", options, shlex.join(program))))


def probe_rows(run: Run, name: str) -> "pd.DataFrame":
    """Return what a probe measured at all steps, at least one row.

    NotRecordedError is raised where the probe measured nothing: it was not asked for, or the
    network has nothing that it measures, such as a join.
    """
    if name not in run.probes:
        command = probe_command(run, name)
        raise not_recorded(f"probe {name} was", run, f"measure it with `{command}`")
    rows = run.probe(name)
    if not len(rows):
        remedy = "the probe found nothing in this network that it measures"
        raise not_recorded(f"numbers of probe {name} were", run, remedy)
    return rows


def probe_rows_at(run: Run, name: str, step: int | None) -> "tuple[int, pd.DataFrame]":
    """Return the probed step nearest to one, and the rows of it; None asks for the last."""
    rows = probe_rows(run, name)
    found = nearest_step(np.unique(rows["step"].to_numpy(np.int64)), step)
    assert found is not None  # there is at least one row
    here = rows[rows["step"] == found].drop(columns="step")
    return found, here.reset_index(drop=True)


def remembered(table: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Return a decorator: a function of a run is computed once until a table of the run grows.

    Threads that ask for the same at a time compute it once, too. What it returns is shared by all
    who ask, and must not be changed.
    """

    def decorated(function: Callable[..., T]) -> Callable[..., T]:
        # Weak, so that answers go with the run: a dashboard opens and drops many.
        kept: WeakKeyDictionary[Run, tuple[object, dict[Hashable, Future[T]]]]
        kept, lock = WeakKeyDictionary(), Lock()

        @wraps(function)
        def answer(run: Run, *asked: Hashable) -> T:
            mark = run.written(table)
            with lock:
                known_mark, answers = kept.get(run, (None, {}))
                if known_mark != mark or len(answers) >= _MOST_REMEMBERED:
                    answers = {}
                    kept[run] = (mark, answers)
            found: T = once(lock, answers, asked, lambda: function(run, *asked))
            return found

        return answer

    return decorated
