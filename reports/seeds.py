"""Several seeds of one program: mean and spread of what a single run would show by luck."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from analyzer.analysis.gradient_flow import depth_profile, profile_gain
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.training import run_training
from analyzer.figures.theme import Theme, labeled
from analyzer.storage.run import Run

from .grouping import Group

__all__ = ["SeedSpread", "Spread", "seed_figure", "seed_spread", "spread"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """One number over seeds.

    Args:
        values: Its value of each seed; NaN where a seed has none.
    """

    values: Floats

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
        label: Name of the group.
        has_shortcuts: Whether gradients flow through joins.
        seeds: The seeds.
        gain: Gain per layer going backward, at the last recorded step.
        decades: Decades that the fit falls from the last layer to the first.
        final_loss: Median loss of the last 5 % of the steps.
        depths: Depth of the layers with parameters, ``[layers]``.
        norms: Their output gradient norms at the last recorded step, ``[seeds, layers]``.
    """

    label: str
    has_shortcuts: bool
    seeds: tuple[str, ...]
    gain: Spread
    decades: Spread
    final_loss: Spread
    depths: Floats
    norms: Floats


@dataclass(frozen=True)
class SeedSpread:
    """Groups of seeds side by side.

    Args:
        rows: One for each group.
    """

    rows: tuple[SeedRow, ...]

    @property
    def caption(self) -> str:
        """Mean and standard deviation of gain and loss of every group."""
        parts = [
            f"{row.label} (n = {len(row.seeds)}): gain {row.gain.words} per layer, "
            f"final loss {row.final_loss.words}"
            for row in self.rows
        ]
        return f"Mean ± standard deviation over seeds. {'; '.join(parts)}."

    def table(self) -> pd.DataFrame:
        """One row for each group: seeds, and mean and standard deviation of each number."""
        rows = []
        for row in self.rows:
            cells: dict[str, object] = {"group": row.label, "seeds": " ".join(row.seeds)}
            for name in ("gain", "decades", "final_loss"):
                one: Spread = getattr(row, name)
                cells |= {f"{name}_mean": one.mean, f"{name}_sd": one.deviation}
            rows.append(cells)
        return pd.DataFrame(rows)


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one number over seeds."""
    return Spread(np.asarray(values, np.float64))


def seed_spread(groups: Sequence[Group]) -> SeedSpread:
    """Read gain, final loss and depth profile of every run at its last recorded step.

    Args:
        groups: Groups of which at least one has several runs.
    """
    return SeedSpread(tuple(_row(group) for group in groups))


def _row(group: Group) -> SeedRow:
    fits, losses, norms = [], [], []
    depths = np.zeros(0)
    for run in group.runs:
        profile = depth_profile(run, _last_step(run))
        fits.append(profile_gain(profile))
        losses.append(run_training(run).final_loss)
        depths = profile.depths[profile.has_parameters]
        norms.append(profile.norms[profile.has_parameters])
    # Seeds of one program have the same layers; where they have not, each stands for itself.
    same = len({len(row) for row in norms}) == 1
    return SeedRow(
        label=group.label,
        has_shortcuts=group.has_shortcuts,
        seeds=group.seeds,
        gain=spread([fit.gain for fit in fits]),
        decades=spread([fit.decades_fallen for fit in fits]),
        final_loss=spread(losses),
        depths=depths,
        norms=np.array(norms) if same else np.array([norms[-1]]),
    )


def _last_step(run: Run) -> int:
    steps = run.layer_steps()
    return int(steps[-1]) if len(steps) else 0


def seed_figure(info: SeedSpread, theme: Theme) -> go.Figure:
    """Draw the output gradient along depth: geometric mean over seeds, their range as a band."""
    figure = theme.figure()
    taken = {True: 0, False: 0}
    for row in info.rows:
        place = 2 * taken[row.has_shortcuts] + (0 if row.has_shortcuts else 1)
        taken[row.has_shortcuts] += 1
        _draw_row(figure, row, theme, place)
    figure.update_xaxes(title="depth, input → output")
    figure.update_yaxes(title="output gradient norm ‖∂L/∂y‖₂", type="log", exponentformat="power")
    figure.update_layout(showlegend=True)
    if not any(len(row.depths) for row in info.rows):
        theme.note(figure, "no layer with parameters was recorded")
    return figure


def _draw_row(figure: go.Figure, row: SeedRow, theme: Theme, place: int) -> None:
    order = np.argsort(row.depths, kind="stable")
    look, x = theme.style(place), row.depths[order]
    norms = row.norms[:, order] if row.norms.size else np.zeros((1, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.exp(np.log(norms).mean(axis=0))
    low, high = norms.min(axis=0), norms.max(axis=0)
    border = {"mode": "lines", "line": {"width": 0, "color": look.color}, "hoverinfo": "skip"}
    figure.add_scatter(x=x, y=low, showlegend=False, **border)
    red, green, blue = (int(look.color[i : i + 2], 16) for i in (1, 3, 5))
    band = f"rgba({red},{green},{blue},0.22)"
    figure.add_scatter(x=x, y=high, fill="tonexty", fillcolor=band, showlegend=False, **border)
    figure.add_scatter(
        x=x,
        y=middle,
        mode="lines+markers",
        name=labeled(f"{row.label} ({counted(len(row.seeds), 'seed')})"),
        line={"color": look.color, "dash": look.dash},
        marker={"color": look.color, "symbol": look.marker},
    )
