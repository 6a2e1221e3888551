"""What a figure shows: runs, a step, a quantity, and the rows that a pattern picks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analyzer.analysis.bands import spaced_places
from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.storage.arrays import as_floats, as_numpy
from analyzer.storage.run import Run
from analyzer.storage.schema import STAT_COLUMNS

__all__ = [
    "AGGREGATES",
    "MOST_SMOOTH",
    "SCALES",
    "TIMES",
    "RowSet",
    "RunLabel",
    "View",
    "final_step",
    "has_shortcuts",
    "matching",
    "nearest_step",
    "row_set",
    "run_labels",
    "run_styles",
    "stage_borders",
]

AGGREGATES = ("median", "mean", "min", "max")
TIMES = ("step", "epoch", "time")
SCALES = ("usual", "linear", "log")
MOST_SMOOTH = 0.99
_MOST_PATTERN = 1_000
_MOST_SHOWN, _MOST_STAGES = 200, 6
_MOST_OF_A_KIND = 6


@dataclass(frozen=True)
class View:
    """What to show.

    Args:
        runs: Opened runs, in the order of their columns; as many as the panel can show.
        step: A step; each run shows the recorded step nearest to it. None for the last one.
        quantity: Column of ``layer_stats`` or ``parameter_stats``.
        layers: Regular expression that a layer name must contain; None for the layers with
            parameters, or all where a figure is about units or where none has parameters.
        aggregate: What a bin of several steps shows: ``median``, ``mean``, ``min`` or ``max``.
        smooth: Strength of smoothing, as ``keep`` of `bands.smoothed`; 0 for none. Raw series
            stay behind.
        relative: Whether values are divided by that of the deepest layer.
        over: What lines run over: ``step``, ``epoch`` or ``time``.
        log_x: Whether that axis is logarithmic.
        scale: Whether values are on the ``usual`` axis of a figure, a ``linear`` one, or a ``log``.
        group: By what runs are drawn together, one of `groups.group_choices`; empty for none.
        among: All that were chosen, of which these are some: each has its name and its color among
            them. Empty where these are all.
    """

    runs: tuple[Run, ...]
    step: int | None = None
    quantity: str = "output_gradient_norm"
    layers: str | None = None
    aggregate: str = "median"
    smooth: float = 0.0
    relative: bool = False
    over: str = TIMES[0]
    log_x: bool = False
    scale: str = SCALES[0]
    group: str = ""
    among: tuple[Run, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("aggregate", AGGREGATES), ("over", TIMES), ("scale", SCALES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        if not 0.0 <= self.smooth <= MOST_SMOOTH:
            raise ValueError(f"smooth is {self.smooth!r}; expected 0 to {MOST_SMOOTH}")

    @property
    def labels(self) -> "tuple[RunLabel, ...]":
        """The label of each run."""
        if not self.among:
            return run_labels(self.runs)
        found = dict(zip(self.among, run_labels(self.among), strict=True))
        return tuple(found[run] for run in self.runs)

    def is_log(self, usual: bool) -> bool:
        """Whether an axis of values that is or is not logarithmic as a rule is so here."""
        return usual if self.scale == SCALES[0] else self.scale == "log"


@dataclass(frozen=True)
class RunLabel:
    """How a run is named (numbered where two have one name) and told from the others.

    Args:
        style: A place in the palette, as `run_styles` says.
        final: The step that stands for the final weights, as `final_step` says.
    """

    text: str
    has_shortcuts: bool
    style: int
    final: int | None = None

    def moment(self, step: int) -> str:
        """Return a step in words: ``step 390``, or ``final weights``."""
        return "final weights" if step == self.final else f"step {step}"

    def at(self, step: int) -> str:
        """Return it within a sentence: ``at step 390``, or ``at the final weights``."""
        return f"at {'the ' * (step == self.final)}{self.moment(step)}"


@dataclass(frozen=True)
class RowSet:
    """The rows of a table that a figure shows, by depth.

    Args:
        ids: Layers or parameters, ``[rows]``.
        positions: Place along the axis of depth: the depth (of a parameter, that of its layer),
            with rows of one depth side by side within a unit of it, ``[rows]``, ascending.
    """

    table: str
    ids: NDArray[np.int32]
    names: tuple[str, ...]
    positions: NDArray[np.float64]


def has_shortcuts(run: Run) -> bool:
    """Return whether gradients flow through joins of the run: it has some, not scaled to 0.

    A script may scale them to 0 itself: then nothing was split off at its first and last split.
    """
    rows = run.static_rows("joins")
    names, kinds = rows.column("name").to_pylist(), rows.column("shortcut").to_pylist()
    scale = run.manifest.get("skip_scale")
    if not names or scale == 0:
        return False
    if isinstance(scale, dict) and not any(scale.values()):
        return not all(any(re.search(key, name) for key in scale) for name in names)
    if set(kinds) != {"scaled"} or not len(steps := run.recorded_steps("splits")):
        return True
    ends = [int(steps[0]), int(steps[-1])]
    shares = as_floats(run.read("splits", "shortcut_share", steps=ends).column("shortcut_share"))
    return bool((shares != 0).any())


def run_styles(shortcuts: Sequence[bool]) -> list[int]:
    """Return the place in the palette of each run, or group of runs, by whether it has shortcuts.

    Even ones for those with shortcuts, odd ones for those without; where there are more than six
    of one kind and none of the other, every place.
    """
    if len(shortcuts) > _MOST_OF_A_KIND and len(set(shortcuts)) == 1:
        return list(range(len(shortcuts)))
    taken = [0, 0]
    found = []
    for has in shortcuts:
        found.append(2 * taken[has] + (0 if has else 1))
        taken[has] += 1
    return found


def run_labels(runs: Sequence[Run]) -> tuple[RunLabel, ...]:
    """Return the labels of runs, in their order; the styles are the same in whatever order."""
    names = [run.name for run in runs]
    shortcuts = [has_shortcuts(run) for run in runs]
    order = sorted(range(len(runs)), key=lambda place: names[place])
    styles = dict(zip(order, run_styles([shortcuts[place] for place in order]), strict=True))
    return tuple(
        RunLabel(
            f"{name} ({again + 1})" if (again := names[:place].count(name)) else name,
            shortcuts[place],
            styles[place],
            final_step(runs[place]),
        )
        for place, name in enumerate(names)
    )


def final_step(run: Run) -> int | None:
    """Return the step that stands for the final weights; None of a run that has not ended.

    It is the number of steps, one more than the last.
    """
    steps = run.manifest.get("steps")
    if run.status == "running":
        return None
    if isinstance(steps, int):
        return steps
    recorded = run.recorded_steps()
    return int(recorded[-1]) + 1 if len(recorded) else None


def nearest_step(steps: NDArray[np.int64], step: int | None) -> int | None:
    """Return the recorded step nearest to one, the earlier of two; None where there is none.

    Without a step it is the last one.
    """
    if not len(steps):
        return None
    if step is None:
        return int(steps[-1])
    # Of two that are as near, argmin takes the first.
    return int(steps[np.argmin(np.abs(steps - step))])


def matching(pattern: str, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which names contain a match of a pattern; an empty one finds everything.

    The engine (RE2, in Arrow) takes time linear in its input: ``(a+)+$`` is as quick as ``a``. It
    knows no back references and no look-around. A pattern that is too long or not a regular
    expression is an AnalyzerError.
    """
    shown = pattern[:_MOST_SHOWN]
    if len(pattern) > _MOST_PATTERN:
        raise AnalyzerError(
            f"layers is {shown!r}… with {len(pattern)} characters; expected at most "
            f"{_MOST_PATTERN}. Shorten the pattern"
        )
    try:
        found = pc.match_substring_regex(pa.array(names, pa.string()), pattern=pattern)
    except pa.ArrowInvalid as error:
        reason = str(error).removeprefix("Invalid regular expression: ")
        raise AnalyzerError(
            f"layers is {shown!r}; expected a regular expression ({reason}; look-around and back "
            "references are not known here). Correct it, or leave it empty for all layers"
        ) from error
    return np.array(found.to_pylist(), bool)


def row_set(run: Run, quantity: str, pattern: str | None = None, *, every: bool = False) -> RowSet:
    """Return the layers or parameters that a figure of a quantity shows.

    ``every`` shows layers without parameters too where there is no pattern; see ``View.layers``.
    A pattern that is refused or matches no name is an AnalyzerError.
    """
    table = _table_of(quantity)
    names, ids, depths, owns = _layers(run) if table == "layer_stats" else _parameters(run)
    if pattern:
        keep = matching(pattern, names)
        if len(names) and not keep.any():
            raise AnalyzerError(
                f"layers is {pattern!r}; none of {len(names)} names matches, the first is "
                f"{names[0][:80]!r}. Change the pattern, or leave it empty for all layers"
            )
    else:
        keep = owns if owns.any() and not every else np.ones(len(names), bool)
    order = np.flatnonzero(keep)[np.lexsort((ids[keep], depths[keep]))]
    positions = _side_by_side(depths[order])
    shown = tuple(names[place] for place in order)
    return RowSet(table, ids[order], shown, positions)


def stage_borders(
    names: tuple[str, ...], positions: NDArray[np.float64]
) -> tuple[tuple[float, str], ...]:
    """Return where a stage begins: where the first part of the layer names changes.

    Where every layer would be a stage of its own, or all are one, the parts that follow are looked
    at too. At most six are returned, evenly chosen.
    """
    for parts in (1, 2, 3):
        stages = [".".join(name.partition(" … ")[0].split(".")[:parts]) for name in names]
        borders = [at for at, stage in enumerate(stages) if not at or stage != stages[at - 1]]
        if len(borders) > 2:
            break
    if not borders:
        return ()
    chosen = [borders[k] for k in spaced_places(len(borders), _MOST_STAGES)]
    return tuple((float(positions[at]), stages[at]) for at in chosen)


def _table_of(quantity: str) -> str:
    for table in ("layer_stats", "parameter_stats"):
        if quantity in STAT_COLUMNS[table]:
            return table
    known = ", ".join((*STAT_COLUMNS["layer_stats"][:3], *STAT_COLUMNS["parameter_stats"][:2]))
    raise NotRecordedError(
        f"quantity {quantity!r} is not a statistic of a layer or a parameter; "
        f"expected one of {known}, …: see docs/schema.md"
    )


_Table = tuple[list[str], NDArray[np.int32], NDArray[np.float64], NDArray[np.bool_]]


def _layers(run: Run) -> _Table:
    rows = run.static_rows("layers")
    ids = as_numpy(rows.column("layer")).astype(np.int32, copy=False)
    owns = as_floats(rows.column("num_parameters")) > 0
    return _names(rows), ids, as_floats(rows.column("depth")), owns


def _parameters(run: Run) -> _Table:
    """Parameters at the depth of their layer; those of layers never called come last."""
    rows = run.static_rows("parameters")
    _, layers, depths, _ = _layers(run)
    depth_of = dict(zip(layers.tolist(), depths.tolist(), strict=True))
    last = float(max(depth_of.values(), default=-1)) + 1
    places = [depth_of.get(layer, last) for layer in rows.column("layer").to_pylist()]
    ids = as_numpy(rows.column("parameter")).astype(np.int32, copy=False)
    return _names(rows), ids, np.array(places, np.float64), np.ones(len(ids), bool)


def _names(rows: pa.Table) -> list[str]:
    return [str(name) for name in rows.column("name").to_pylist()]


def _side_by_side(depths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Depths, with equal ones spread over the middle four fifths of a unit."""
    if not len(depths):
        return depths
    _, first, counts = np.unique(depths, return_index=True, return_counts=True)
    place = np.arange(len(depths)) - np.repeat(first, counts)
    many = np.repeat(counts, counts)
    spread: NDArray[np.float64] = depths + 0.8 * (place - (many - 1) / 2) / many
    return spread
