"""Pairs of runs as a user names them on the command line."""

from pathlib import Path

from analyzer.errors import AnalyzerError, RunNotFoundError
from analyzer.storage.catalog import resolve_run
from analyzer.storage.run import Run, open_run

__all__ = ["opened_pairs"]


def opened_pairs(plain: str, residual: str, runs_dir: Path) -> tuple[list[Run], list[Run]]:
    """Open the runs of both sides, one pair for each seed.

    Args:
        plain: A run, or several joined by commas.
        residual: As ``plain``, and as many.
        runs_dir: Folder of runs.

    Raises:
        RunNotFoundError: If a run does not exist.
        AnalyzerError: If the sides have different numbers of runs.
    """
    left, right = (_opened(names, runs_dir) for names in (plain, residual))
    if len(left) != len(right):
        raise AnalyzerError(
            f"PLAIN names {len(left)} runs and RESIDUAL {len(right)}; expected as many on both "
            "sides, in the same order. Join the seeds by commas without spaces"
        )
    return left, right


def _opened(names: str, runs_dir: Path) -> list[Run]:
    """The runs of one side; a folder whose name holds a comma is one run."""
    try:
        return [open_run(resolve_run(names, runs_dir))]
    except RunNotFoundError:
        if "," not in names:
            raise
    return [open_run(resolve_run(name, runs_dir)) for name in names.split(",") if name]
