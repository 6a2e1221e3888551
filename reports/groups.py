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

from analyzer.analysis.gradient_flow import depth_profile, profile_gain
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.training import run_training
from analyzer.analysis.view import has_shortcuts
from analyzer.figures.marks import filled
from analyzer.figures.theme import Theme, labeled
from analyzer.storage.run import Run

__all__ = [
    "Group",
    "SeedSpread",
    "Spread",
    "grouped",
    "pairs_of",
    "program",
    "representatives",
    "seed_figure",
    "seed_of",
    "seed_spread",
]

_SEED = re.compile(r"--?seed(=.*)?", re.IGNORECASE)
_MOST_SHOWN = 3


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
    """

    group: Group
    gain: Spread
    decades: Spread
    final_loss: Spread
    depths: Floats
    norms: Floats


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
    fits, losses, norms = [], [], []
    depths = np.zeros(0)
    for run in group.runs:
        steps = run.layer_steps()
        profile = depth_profile(run, int(steps[-1]) if len(steps) else 0)
        fits.append(profile_gain(profile))
        losses.append(run_training(run).final_loss)
        depths = profile.depths[profile.has_parameters]
        norms.append(profile.norms[profile.has_parameters])
    # Seeds of one program have the same layers; where they have not, each stands for itself.
    same = len({len(row) for row in norms}) == 1
    return SeedRow(
        group=group,
        gain=Spread([fit.gain for fit in fits]),
        decades=Spread([fit.decades_fallen for fit in fits]),
        final_loss=Spread(losses),
        depths=depths,
        norms=np.array(norms) if same else np.array([norms[-1]]),
    )


def seed_figure(info: SeedSpread, theme: Theme) -> go.Figure:
    """Draw the output gradient along depth: geometric mean over seeds, their range as a band."""
    figure = theme.figure()
    taken = {True: 0, False: 0}
    for row in info.rows:
        kind = row.group.has_shortcuts
        # Residual nets have the even styles and plain ones the odd, however many of each.
        place = 2 * taken[kind] + (0 if kind else 1)
        taken[kind] += 1
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
    # The axis is logarithmic: an arithmetic mean would follow the largest seed alone.
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = np.exp(np.log(norms).mean(axis=0))
    figure.add_trace(
        filled(x, norms.min(axis=0), norms.max(axis=0), look.color, 0.22, showlegend=False)
    )
    figure.add_scatter(
        x=x,
        y=middle,
        mode="lines+markers",
        name=labeled(f"{row.group.label} ({counted(len(row.group.runs), 'seed')})"),
        line={"color": look.color, "dash": look.dash},
        marker={"color": look.color, "symbol": look.marker},
    )
