"""A recorded run as users open it: its tables, what they say, and a view of it in a notebook."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import analyzer.storage.run as storage
from analyzer.errors import AnalyzerError

if TYPE_CHECKING:
    from analyzer.analysis.findings import Finding
    from analyzer.analysis.gradient_flow import MedianGain
    from analyzer.analysis.training import TrainingSummary
    from analyzer.analysis.trunk import MedianTrunk, Trunk

__all__ = ["Run", "open_run"]


def open_run(path: str | Path) -> "Run":
    """Open a recorded run, finished or still running.

    Args:
        path: Folder of the run.

    Returns:
        The run; nothing of its tables is read before it is asked for.

    Raises:
        RunNotFoundError: If there is no run at this place.
        SchemaError: If ``run.json`` is damaged, foreign, or of a newer version.
    """
    return Run(path)


class Run(storage.Run):
    """A recorded run: what the storage reads, and what the analysis says about it."""

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
