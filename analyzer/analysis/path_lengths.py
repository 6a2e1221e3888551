"""The path-length spectrum: how many branches the gradient crosses on its way."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.numerals import number, percent
from analyzer.analysis.sources import (
    for_each_run,
    joined_table,
    missing_clause,
    not_recorded,
    probe_rows_at,
)
from analyzer.analysis.view import RunLabel, View
from analyzer.storage.run import Run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PathLengths", "PathSpectrum", "path_lengths"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PathSpectrum:
    """The spectrum of one run at one step.

    Args:
        label: Name and style of the run.
        step: Step of the probe.
        lengths: Branches that the paths cross, from 0, ``[lengths]``.
        num_paths: Number of paths of each length.
        norms: Mean over samples of ``‖G_k‖₂``, in loss / unit of x.
        norm_shares: ``‖G_k‖ / Σ ‖G_k‖``; NaN where all are zero.
        path_shares: ``num_paths / Σ num_paths``.
        effective_length: ``Σ k‖G_k‖ / Σ ‖G_k‖``, in branches; NaN where all are zero.
    """

    label: RunLabel
    step: int
    lengths: NDArray[np.int64]
    num_paths: Floats
    norms: Floats
    norm_shares: Floats
    path_shares: Floats
    effective_length: float


@dataclass(frozen=True, eq=False)
class PathLengths:
    """Spectra of all runs with the probe.

    Args:
        runs: One per run.
        caption: The finding with its number.
    """

    runs: tuple[PathSpectrum, ...]
    caption: str

    def table(self) -> "pd.DataFrame":
        """Return one row per run and length."""
        return joined_table(
            {
                "run": run.label.text,
                "step": run.step,
                "length": run.lengths,
                "num_paths": run.num_paths,
                "gradient_norm": run.norms,
                "norm_share": run.norm_shares,
            }
            for run in self.runs
        )


def path_lengths(view: View) -> PathLengths:
    """Read the path-length spectrum of every run at the probe nearest to the step.

    Raises:
        NotRecordedError: If no run has it.

    Reference:
        Veit et al. (2016), Residual networks behave like ensembles of relatively shallow networks.
    """
    runs, missing = for_each_run(view, lambda run, label: _spectrum(view, run, label))
    return PathLengths(runs, " ".join(map(_sentence, runs)) + missing_clause(missing))


def _spectrum(view: View, run: Run, label: RunLabel) -> PathSpectrum:
    step, rows = probe_rows_at(run, "paths", view.step)
    if not len(rows):
        raise not_recorded("probe paths has no row:", run, "add `--probe paths`")
    rows = rows.sort_values("length")
    lengths = rows["length"].to_numpy(np.int64)
    norms, paths = (rows[name].to_numpy(np.float64) for name in ("gradient_norm", "num_paths"))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares, of_paths = norms / norms.sum(), paths / paths.sum()
    effective = float((lengths * shares).sum())
    return PathSpectrum(label, step, lengths, paths, norms, shares, of_paths, effective)


def _sentence(run: PathSpectrum) -> str:
    total = number(float(run.num_paths.sum()))
    start = f"{run.label.text}, step {run.step}: {total} paths"
    if not np.isfinite(run.effective_length):
        return f"{start}; their gradient is zero or not finite."
    if len(run.lengths) < 2:
        where = f"{run.label.text}, step {run.step}"
        return f"{where}: there are no joins, so a single path carries all of the gradient."
    peak = int(run.norms.argmax())
    share, paths = percent(run.norm_shares[peak]), percent(run.path_shares[peak])
    return (
        f"{start} of up to {run.lengths[-1]} branches; the gradient has effective length "
        f"{number(run.effective_length)} and is largest at length {run.lengths[peak]} "
        f"({share} of it, in {paths} of the paths)."
    )
