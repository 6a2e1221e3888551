"""Runs that belong together: seeds of one program, plain with residual, mean and spread."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from analyzer.analysis.gradient_flow import depth_profile, profile_gain
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.training import loss_band, run_training
from analyzer.analysis.view import has_shortcuts
from analyzer.errors import AnalyzerError
from analyzer.figures.axes import DEPTH, STEP
from analyzer.figures.marks import filled
from analyzer.figures.theme import Theme, labeled
from analyzer.storage.run import Run

__all__ = [
    "LAYOUTS",
    "Group",
    "SeedSpread",
    "Spread",
    "grouped",
    "laid_out",
    "pairs_of",
    "program",
    "representatives",
    "seed_figure",
    "seed_of",
    "seed_spread",
]

_SEED = re.compile(r"--?seed(=.*)?", re.IGNORECASE)
_MOST_SHOWN, _MOST_BINS = 3, 300


@dataclass(frozen=True)
class Group:
    """Runs of one program that differ by their seed at most, by seed."""

    label: str
    has_shortcuts: bool
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seed of each run; a dash where the manifest has none."""
        return tuple(seed_of(run.manifest) for run in self.runs)


def seed_of(manifest: dict[str, Any]) -> str:
    """Return the seed of a run as text; a dash where none is known."""
    arguments = [str(a) for a in manifest.get("argv") or ()]
    for place, argument in enumerate(arguments):
        found = _SEED.fullmatch(argument)
        if found and found[1]:
            return found[1][1:]
        if found and place + 1 < len(arguments):
            return arguments[place + 1]
    seed = manifest.get("seed")
    return "–" if seed is None else str(seed)


def program(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Return the command line of a run without its seed."""
    arguments = [str(a) for a in manifest.get("argv") or [manifest.get("name", "")]]
    kept: list[str] = []
    skip = False
    for argument in arguments:
        found = _SEED.fullmatch(argument)
        if not found and not skip:
            kept.append(argument)
        skip = bool(found) and not (found and found[1])
    return tuple(kept)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Put the seeds of one program together, plain nets before residual ones.

    Groups of one kind are in the order of their first run; a run of its own is a group.
    """
    members: dict[tuple[bool, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        members.setdefault((has_shortcuts(run), program(run.manifest)), []).append(run)
    keys = sorted(members, key=lambda key: key[0])
    return [
        Group(_label(key, keys, members[key]), key[0], tuple(sorted(members[key], key=_by_seed)))
        for key in keys
    ]


def pairs_of(plain: Group, residual: Group) -> list[tuple[Run, Run]]:
    """Return the runs of two groups that have the same seed; one of each where they are single."""
    if len(plain.runs) == len(residual.runs) == 1:
        return [(plain.runs[0], residual.runs[0])]
    right = dict(zip(residual.seeds, residual.runs, strict=True))
    left = zip(plain.seeds, plain.runs, strict=True)
    return [(run, right[seed]) for seed, run in left if seed in right]


def _by_seed(run: Run) -> tuple[float, str]:
    seed = seed_of(run.manifest)
    return (float(seed) if seed.isdigit() else math.inf, seed)


def _label(
    key: tuple[bool, tuple[str, ...]], keys: list[tuple[bool, tuple[str, ...]]], runs: list[Run]
) -> str:
    """The role where it names one group only, with the program where it does not."""
    role = "residual" if key[0] else "plain"
    if len(runs) == 1:
        return runs[0].name
    return role if sum(k[0] == key[0] for k in keys) == 1 else f"{role}: {' '.join(key[1])}"


LAYOUTS = ("twin", "seeds", "single")
"""What the figures for a paper can show: a pair of runs, groups of seeds, or one run."""


def laid_out(groups: Sequence[Group], layout: str) -> tuple[Run, ...]:
    """Return the runs that the figures of a layout show.

    Raises:
        AnalyzerError: If there are no runs of this kind.
    """
    shown = representatives(groups)
    if layout == "single":
        return next((run,) for run in reversed(shown)) if has_shortcuts(shown[-1]) else shown[:1]
    count = sum(len(group.runs) for group in groups)
    if layout == "twin" and len(shown) < 2:
        raise AnalyzerError(
            f"--layout twin needs a plain and a residual run, and there is {counted(count, 'run')}."
            " Name both, or use --layout single."
        )
    if layout == "seeds" and all(len(group.runs) < 2 for group in groups):
        raise AnalyzerError(
            f"--layout seeds needs runs that differ by their seed alone; none of {count} do. "
            "Record them with `analyzer record --twin --seeds 3`, or use --layout twin."
        )
    # A plain and a residual run, where there are both.
    return (shown[0], shown[-1]) if layout == "twin" else shown


def representatives(groups: Sequence[Group]) -> tuple[Run, ...]:
    """Return the runs that the figures show: one of each group, of one seed where there is one.

    At most three runs, since the figures have room for three columns.
    """
    # Of one seed, so that what differs between two columns is the network and not the draw.
    common = set.intersection(*(set(group.seeds) for group in groups)) if groups else set()
    first = next((seed for seed in groups[0].seeds if seed in common), None) if groups else None
    chosen = []
    for group in groups[:_MOST_SHOWN]:
        place = group.seeds.index(first) if first in group.seeds else 0
        chosen.append(group.runs[place])
    return tuple(chosen)


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """One number over seeds, ``[seeds]``; NaN where a seed has none."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean; NaN where a seed has no value."""
        return float(np.mean(self.values)) if len(self.values) else float("nan")

    @property
    def deviation(self) -> float:
        """The sample standard deviation; NaN with fewer than two seeds."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    @property
    def words(self) -> str:
        """Mean ± standard deviation."""
        if len(self.values) < 2:
            return number(self.mean)
        return f"{number(self.mean)} ± {number(self.deviation)}"


@dataclass(frozen=True)
class SeedRow:
    """What the seeds of one group show.

    Args:
        gain: Gain per layer going backward, at the last recorded step.
        decades: Decades that the fit falls from the last layer to the first.
        final_loss: Mean loss of the last tenth of the steps, at most 100.
        depths: Depth of the layers with parameters, ``[layers]``.
        norms: Their output gradient norms at the last recorded step, ``[seeds, layers]``.
        loss_steps: Steps of the losses, in bins where there are many, ``[bins]``.
        losses: The loss of each seed at those steps, ``[seeds, bins]``.
    """

    group: Group
    gain: Spread
    decades: Spread
    final_loss: Spread
    depths: Floats
    norms: Floats
    loss_steps: NDArray[np.int64]
    losses: Floats


@dataclass(frozen=True)
class SeedSpread:
    """Groups of seeds side by side, a row for each."""

    rows: tuple[SeedRow, ...]

    @property
    def caption(self) -> str:
        """Mean and standard deviation of gain and loss of every group."""
        parts = [
            f"{row.group.label} (n = {len(row.group.runs)}): gain {row.gain.words} per layer, "
            f"final loss {row.final_loss.words}"
            for row in self.rows
        ]
        return f"Mean ± standard deviation over seeds. {'; '.join(parts)}."

    def table(self) -> pd.DataFrame:
        """Return what is drawn: a row for each group and layer, then for each group and step."""
        rows = []
        for row in self.rows:
            for name, places, values in (
                ("depth", row.depths, row.norms),
                ("step", row.loss_steps, row.losses),
            ):
                what = "output_gradient_norm" if name == "depth" else "loss"
                middle = _geometric_mean(values) if name == "depth" else values.mean(axis=0)
                cells = {"group": row.group.label, "quantity": what, "axis": name, "place": places}
                rows.append(
                    pd.DataFrame(
                        cells
                        | {"mean": middle, "min": values.min(axis=0), "max": values.max(axis=0)}
                    )
                )
        return pd.concat(rows, ignore_index=True)

    def summary(self) -> pd.DataFrame:
        """One row for each group: seeds, and mean and standard deviation of each number."""
        rows = []
        for row in self.rows:
            cells: dict[str, object] = {"group": row.group.label}
            cells["seeds"] = " ".join(row.group.seeds)
            for name in ("gain", "decades", "final_loss"):
                one: Spread = getattr(row, name)
                cells |= {f"{name}_mean": one.mean, f"{name}_sd": one.deviation}
            rows.append(cells)
        return pd.DataFrame(rows)


def seed_spread(groups: Sequence[Group]) -> SeedSpread:
    """Read gain, final loss and depth profile of every run at its last recorded step."""
    return SeedSpread(tuple(_row(group) for group in groups))


def _row(group: Group) -> SeedRow:
    fits, losses, norms, curves = [], [], [], []
    depths = np.zeros(0)
    for run in group.runs:
        steps = run.layer_steps()
        profile = depth_profile(run, int(steps[-1]) if len(steps) else 0)
        fits.append(profile_gain(profile))
        losses.append(run_training(run).final_loss)
        curves.append(loss_band(run, _MOST_BINS, 0.0))
        depths = profile.depths[profile.has_parameters]
        norms.append(profile.norms[profile.has_parameters])
    # Seeds of one program have the same layers and steps; else the last stands for all.
    same = len({len(row) for row in norms}) == 1
    return SeedRow(
        group=group,
        gain=Spread([fit.gain for fit in fits]),
        decades=Spread([fit.decades_fallen for fit in fits]),
        final_loss=Spread(losses),
        depths=depths,
        norms=np.array(norms) if same else np.array([norms[-1]]),
        loss_steps=curves[-1].steps,
        losses=np.array([c.middle for c in curves if len(c.steps) == len(curves[-1].steps)]),
    )


def seed_figure(info: SeedSpread, theme: Theme) -> go.Figure:
    """Draw gradient along depth and loss over steps: mean over seeds, their range as a band."""
    figure = make_subplots(2, 1, vertical_spacing=0.2)
    theme.apply(figure, 560)
    taken = {True: 0, False: 0}
    for row in info.rows:
        kind = row.group.has_shortcuts
        # Residual nets have the even styles and plain ones the odd, however many of each.
        place = 2 * taken[kind] + (0 if kind else 1)
        taken[kind] += 1
        _draw_row(figure, row, theme, place)
    figure.update_xaxes(DEPTH, row=1)
    figure.update_xaxes(STEP, row=2)
    norms = {"type": "log", "exponentformat": "power"}
    figure.update_yaxes(title={"text": "‖∂L/∂y‖₂"}, row=1, **norms)
    figure.update_yaxes(title={"text": "loss"}, row=2)
    figure.update_layout(showlegend=True)
    if not any(len(row.depths) for row in info.rows):
        theme.note(figure, "no layer with parameters")
    return figure


def _geometric_mean(norms: Floats) -> Floats:
    """The mean over seeds on a logarithmic axis: an arithmetic one follows the largest alone."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.exp(np.log(norms).mean(axis=0)), np.float64)


def _draw_row(figure: go.Figure, row: SeedRow, theme: Theme, place: int) -> None:
    order = np.argsort(row.depths, kind="stable")
    look = theme.style(place)
    norms = row.norms[:, order] if row.norms.size else np.zeros((1, 0))
    name = labeled(f"{row.group.label} ({counted(len(row.group.runs), 'seed')})")
    for pane, x, values, middle in (
        (1, row.depths[order], norms, _geometric_mean(norms)),
        (2, row.loss_steps, row.losses, row.losses.mean(axis=0)),
    ):
        low, high = values.min(axis=0), values.max(axis=0)
        figure.add_trace(filled(x, low, high, look.color, 0.22, showlegend=False), pane, 1)
        figure.add_scatter(
            x=x,
            y=middle,
            mode="lines+markers" if pane == 1 else "lines",
            name=name,
            showlegend=pane == 1,
            line={"color": look.color, "dash": look.dash},
            marker={"color": look.color, "symbol": look.marker},
            row=pane,
            col=1,
        )
