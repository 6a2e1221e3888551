"""What the figures of a study show: numbers over depth, with their spread over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.claims import STATUSES
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.statements import STATEMENTS
from analyzer.analysis.study import OWN_COLUMNS, ROLES, column_of
from analyzer.analysis.view import View
from analyzer.errors import NotRecordedError
from analyzer.storage.study import STATES, Study, study_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ClaimCurves",
    "DepthCurve",
    "DepthCurves",
    "claims_by_depth",
    "degradation",
    "gain_by_depth",
    "path_length_by_depth",
]

Floats = NDArray[np.float64]
_NO_NUMBERS = ("point", "status", "problem", "has_shortcuts")


@dataclass(frozen=True, eq=False)
class DepthCurve:
    """One number over depth for points that differ by their seed at most at each depth.

    Args:
        name: The arguments that all its points share and others have not: ``off``, ``on, lr 0.1``.
        has_shortcuts: Whether its networks have shortcuts.
        depths: ``[depths]``, ascending.
        middle: Median over seeds of the finite values; NaN where there is none.
        low: Smallest of them.
        high: Largest of them.
        seeds: How many there are, the others included.
        nonfinite: How many are NaN or infinite.
    """

    name: str
    has_shortcuts: bool
    depths: Floats
    middle: Floats
    low: Floats
    high: Floats
    seeds: NDArray[np.int64]
    nonfinite: NDArray[np.int64]

    def cells(self) -> dict[str, Any]:
        """Return its rows in the data behind a figure."""
        names = ("depths", "middle", "low", "high", "seeds", "nonfinite")
        columns = ("depth", "median", "min", "max", "seeds", "num_nonfinite")
        return {column: getattr(self, name) for column, name in zip(columns, names, strict=True)}


@dataclass(frozen=True, eq=False)
class DepthCurves:
    """Numbers over depth, a pane for each number.

    Args:
        study: Name of the study.
        panes: Label of each number, whether its axis is logarithmic, and its curves.
        text: The finding with its numbers.
    """

    study: str
    panes: tuple[tuple[str, bool, tuple[DepthCurve, ...]], ...]
    text: str

    @property
    def caption(self) -> str:
        """The study, and the finding with its numbers."""
        return f"Study {self.study}: {self.text}"

    def table(self) -> "pd.DataFrame":
        """Return one row per number, curve and depth."""
        import pandas as pd

        parts = [
            pd.DataFrame({"quantity": label, "curve": curve.name, **curve.cells()})
            for label, _, curves in self.panes
            for curve in curves
        ]
        return pd.concat(parts, ignore_index=True)


def _summary(view: View) -> "tuple[Study, pd.DataFrame]":
    """The study of the first run of a view, and the finished points of its summary."""
    if not view.runs:
        raise ValueError("a view has 0 runs; expected at least one. Choose a run to show")
    study = study_of(view.runs[0])
    rows = _of_types(study, study.summary())
    return study, rows[rows["status"] == "finished"].reset_index(drop=True)


def _of_types(study: Study, rows: "pd.DataFrame") -> "pd.DataFrame":
    """A summary whose columns have their types, others null: the folder may come from anybody."""
    import pandas as pd

    keys = [one.key for one in STATEMENTS if f"claim_{one.key}" in rows]
    texts = ["status", *(f"{kind}_{key}" for key in keys for kind in ("claim", "seeds"))]
    numbers = [name for name in OWN_COLUMNS if name not in _NO_NUMBERS]
    numbers += [f"{side}_{key}" for key in keys for side in ("plain", "residual")]
    empty = pd.Series([None] * len(rows), rows.index, dtype=object)
    kept: dict[str, Any] = {}
    for name in texts:
        kept[name] = rows.get(name, empty).map(lambda cell: cell if _is_word(cell) else None)
    for name in numbers:
        found = rows.get(name, empty)
        is_number = pd.api.types.is_numeric_dtype(found)
        kept[name] = found if is_number else pd.Series(np.nan, rows.index)
    found = rows.get("has_shortcuts", empty)
    kept["has_shortcuts"] = found.map(lambda cell: isinstance(cell, bool | np.bool_) and cell)
    # What tells points from each other stands in the plan, which was checked.
    by_name = {point.name: point.arguments for point in study.points}
    arguments = [by_name.get(str(name), {}) for name in rows.get("point", empty)]
    for axis in study.axes:
        kept[column_of(axis)] = pd.Series([some.get(axis) for some in arguments], rows.index)
    return pd.DataFrame(kept, index=rows.index)


def _is_word(cell: Any) -> bool:
    return isinstance(cell, str) and (cell in STATES or cell in STATUSES)


def _depth_column(rows: "pd.DataFrame") -> str:
    # A depth may also be a text: an argument of a script.
    is_known = "depth" in rows and rows["depth"].dtype.kind in "iuf" and rows["depth"].notna().any()
    return "depth" if is_known else "layers_deep"


def _curves(study: Study, rows: "pd.DataFrame", column: str) -> tuple[DepthCurve, ...]:
    """A curve for each combination of the other arguments; none where nothing was measured."""
    if column not in rows or not rows[column].notna().any():
        return ()
    depth = _depth_column(rows)
    others = [column_of(a) for a in study.axes if a not in ("seed", "depth")]
    varying = [name for name in others if rows[name].nunique(dropna=False) > 1]
    found = []
    for key, part in rows.groupby(varying, sort=False, dropna=False) if varying else [((), rows)]:
        values = key if isinstance(key, tuple) else (key,)
        known = part[part[column].notna() | part["final_loss"].isna()]
        known = known[known[depth].notna()]
        if known.empty:
            continue
        name = ", ".join(
            str(value) if name in ROLES else f"{name} {value}"
            for name, value in zip(varying, values, strict=True)
        )
        has = bool(known["has_shortcuts"].fillna(False).all())
        found.append(_curve(name or study.target, has, known, depth, column))
    return tuple(found)


def _curve(
    name: str, has_shortcuts: bool, rows: "pd.DataFrame", depth: str, column: str
) -> DepthCurve:
    """Median and range of a column at each depth."""
    groups = {float(str(at)): some[column].to_numpy(float) for at, some in rows.groupby(depth)}
    finite = [values[np.isfinite(values)] for values in groups.values()]
    middle, low, high = (
        np.array([find(values) if len(values) else np.nan for values in finite])
        for find in (np.median, np.min, np.max)
    )
    seeds = np.array([len(values) for values in groups.values()])
    lost = seeds - np.array([len(values) for values in finite])
    return DepthCurve(name, has_shortcuts, np.array(list(groups)), middle, low, high, seeds, lost)


def _by_depth(
    view: View, columns: Sequence[tuple[str, str, bool]], remedy: str
) -> tuple[Study, list[tuple[str, bool, tuple[DepthCurve, ...]]]]:
    study, rows = _summary(view)
    panes = [(label, is_log, _curves(study, rows, name)) for name, label, is_log in columns]
    kept = [pane for pane in panes if pane[2]]
    if not kept:
        names = " and ".join(label for _, label, _ in columns)
        raise NotRecordedError(f"no point of study '{study.path.name}' has {names}; {remedy}")
    return study, kept


def _ends(curve: DepthCurve, what: str) -> str:
    """How one curve goes from its first depth to its last."""
    spread = (
        "" if curve.seeds.max() == 1 else f" ({number(curve.low[-1])} to {number(curve.high[-1])})"
    )
    text = f"{number(curve.middle[-1])}{spread} at depth {curve.depths[-1]:g}"
    if len(curve.depths) > 1:
        text = f"{number(curve.middle[0])} at depth {curve.depths[0]:g} and {text}"
    broken = int(curve.nonfinite.sum())
    lost = f", {counted(broken, 'point')} not finite" if broken else ""
    return f"{curve.name}: {what} {text}{lost}"


def _evidence(curves: Sequence[DepthCurve]) -> str:
    most = max(int(curve.seeds.max()) for curve in curves)
    return "One seed a point." if most == 1 else f"Medians over {most} seeds, with their range."


def degradation(view: View) -> DepthCurves:
    """Read final loss and training error of a study by depth: the degradation curve.

    Reference:
        He et al. (2015), Deep residual learning for image recognition, figures 1 and 6.
    """
    columns = (("final_loss", "final loss", True), ("error_rate", "training error", False))
    study, panes = _by_depth(view, columns, "record trainings that compute a scalar loss")
    curves = panes[0][2]
    text = "; ".join(_ends(curve, panes[0][0]) for curve in curves)
    return DepthCurves(study.path.name, tuple(panes), f"{text}. {_evidence(curves)}")


def gain_by_depth(view: View) -> DepthCurves:
    """Read the gradient gain per layer of a study by depth, and the decades of the whole way."""
    columns = (
        ("gain", "gradient gain per layer", True),
        ("decades_fallen", "decades fallen from output to input", False),
    )
    study, panes = _by_depth(view, columns, "record layer statistics")
    curves = panes[0][2]
    text = "; ".join(_ends(curve, "gain") for curve in curves)
    return DepthCurves(study.path.name, tuple(panes), f"{text}. {_evidence(curves)}")


def path_length_by_depth(view: View) -> DepthCurves:
    """Read the effective path length of a study by depth."""
    column = ("path_length", "effective path length (branches)", False)
    study, panes = _by_depth(view, (column,), "run the study with --probe paths")
    panes = [(label, log, tuple(c for c in some if c.has_shortcuts)) for label, log, some in panes]
    if not panes[0][2]:
        raise NotRecordedError(
            f"no point of study '{study.path.name}' has shortcuts; add some with --shortcuts on,off"
        )
    curves = panes[0][2]
    text = "; ".join(_ends(curve, "effective path length") for curve in curves)
    return DepthCurves(study.path.name, tuple(panes), f"{text}. {_evidence(curves)}")


@dataclass(frozen=True, eq=False)
class ClaimCurves(DepthCurves):
    """The numbers of each claim over depth, plain and residual, and its status over the seeds.

    Args:
        statuses: For each pane, depth to status over all seeds and how many pairs alone hold it.
    """

    statuses: tuple[Mapping[float, tuple[str, int, int]], ...]

    def table(self) -> "pd.DataFrame":
        """Return one row per claim, side and depth, with its status."""
        rows = super().table()
        of = dict(zip((label for label, _, _ in self.panes), self.statuses, strict=True))
        pairs = list(zip(rows["quantity"], rows["depth"], strict=True))
        rows["status"] = [of[label].get(at, ("", 0, 0))[0] for label, at in pairs]
        rows["pairs_holding"] = [of[label].get(at, ("", 0, 0))[1] for label, at in pairs]
        return rows


def claims_by_depth(view: View) -> ClaimCurves:
    """Read every claim of the verdict by depth, with its spread over seeds."""
    study, rows = _summary(view)
    depth = _depth_column(rows)
    panes, statuses, words = [], [], []
    columns = [str(one) for one in rows if str(one).startswith("claim_")]
    for key in [one.removeprefix("claim_") for one in columns]:
        known = rows[rows[f"claim_{key}"].notna() & (rows[f"claim_{key}"] != "not measured")]
        known = known[known[depth].notna()]
        curves = [
            _curve(
                side,
                side == "residual",
                known.dropna(subset=f"{side}_{key}"),
                depth,
                f"{side}_{key}",
            )
            for side in ("plain", "residual")
            if known[f"{side}_{key}"].notna().any()
        ]
        if not curves:
            continue
        found = {
            float(str(at)): (
                statistics.mode(some[f"seeds_{key}"]),
                int((some[f"claim_{key}"] == "holds").sum()),
                len(some),
            )
            for at, some in known.groupby(depth)
        }
        panes.append((key.replace("_", " "), False, tuple(curves)))
        statuses.append(found)
        holding = [f"{at:g}" for at, (status, _, _) in found.items() if status == "holds"]
        if holding:
            words.append(f"{key.replace('_', ' ')} holds at depth {', '.join(holding)}")
    if not panes:
        raise NotRecordedError(
            f"study '{study.path.name}' has no pair of a plain and a residual point; add them with "
            "--shortcuts on,off"
        )
    said = "; ".join(words) or "no claim holds over the seeds at any depth"
    pairs = max(count for found in statuses for _, _, count in found.values())
    text = f"{said}. Judged over {counted(pairs, 'pair')} of seeds at each depth."
    return ClaimCurves(study.path.name, tuple(panes), text, tuple(statuses))
