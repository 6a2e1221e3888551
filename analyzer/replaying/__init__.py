"""Probes on the checkpoints of a finished run: its model and first batch, built once more."""

from analyzer.replaying.checkpoints import checkpoints_of
from analyzer.replaying.measuring import measure_all
from analyzer.replaying.order import ProbeOrder, Progress, Say, sentences
from analyzer.replaying.rebuilding import rebuilt
from analyzer.replaying.scripts import command_of, replay_script
from analyzer.storage.run import Run

__all__ = ["ProbeOrder", "checkpoints_of", "command_of", "probe_run", "replay_script"]


def probe_run(
    run: Run, order: ProbeOrder, say: Say = lambda _: None, progress: Progress | None = None
) -> None:
    """Measure probes on the checkpoints of a run of a zoo network or a model file.

    Args:
        run: The run; its tables get the new ones, none that exists is written again unasked.
        order: What to measure.
        say: Receives a sentence about each table.
        progress: Told how far a landscape is; None for a sentence now and then.

    Raises:
        AnalyzerError: If the run cannot be rebuilt, or a probe cannot be measured on it, with the
            reason.
    """
    checkpoints_of(run, order.which)  # refused before the model is built
    measure_all(run, rebuilt(run), order, say, progress or sentences(say))
