"""Probes on the checkpoints of a run, one after the other."""

import functools
from pathlib import Path
from typing import Any

from analyzer.errors import AnalyzerError
from analyzer.probes import HeldBatch, Measurement
from analyzer.probes.landscape.ledger import PartialSurfaceError
from analyzer.probes.landscape.planes import drawn
from analyzer.probes.registry import same_draws
from analyzer.recording.probing import Held, measured, said_of
from analyzer.replaying.checkpoints import checkpoints_of, state_of
from analyzer.replaying.order import ProbeOrder, Progress, Say
from analyzer.storage.parts import write_table
from analyzer.storage.rows import probe_table
from analyzer.storage.run import Run

__all__ = ["measure_all"]


def measure_all(run: Run, held: Held, order: ProbeOrder, say: Say, progress: Progress) -> None:
    """Measure the probes on each of the checkpoints and write their tables.

    One that is refused keeps none of the others from being measured.

    Args:
        run: The run.
        held: The model, whose weights are replaced, and its first batch.
        order: What to measure.
        say: Receives a sentence about each table.
        progress: Told how far a landscape is.

    Raises:
        AnalyzerError: If a checkpoint does not fit, or, after the others, if a probe cannot be
            measured on this batch.
    """
    refusals: dict[tuple[str, str], list[int]] = {}
    for step, file in checkpoints_of(run, order.which).items():
        held.call.model.load_state_dict(state_of(held.call.model, file))
        for name in order.names:
            place = run.path / "probes" / name / f"step-{step:012d}.parquet"
            if place.exists() and not order.overwrites:
                say(f"{name} of step {step} is there already; kept (--overwrite measures it anew)")
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                if name == "landscape":
                    measurement = _landscape(run, held, order, step, say, progress)
                else:
                    measurement = measured(name, held)
            except Exception as error:
                refusals.setdefault((name, said_of(error, held)), []).append(step)
                continue
            columns = _with_layers(run, measurement)
            write_table(place, probe_table(name, columns, measurement.metadata))
            for left in place.parent.glob(f"*{_points_of(place).name}*"):
                left.unlink()  # the table has them all
            say(f"{name} of step {step}: {measurement.metadata['seconds']} s")
    if refusals:
        reasons = [
            f"probe {name} of step {', '.join(map(str, steps))}: {reason}"
            for (name, reason), steps in refusals.items()
        ]
        raise AnalyzerError("; ".join(reasons))


def _points_of(table: Path) -> Path:
    """Where the points of a landscape are kept until it is whole."""
    return table.with_suffix(".points")


def _landscape(
    run: Run, held: Held, order: ProbeOrder, step: int, say: Say, progress: Progress
) -> Measurement:
    """Draw a landscape, from where a killed one ended."""
    points = _points_of(run.path / "probes" / "landscape" / f"step-{step:012d}.parquet")
    request, model = order.landscape, held.call.model
    needed = checkpoints_of(run, "all") if request.goes_through_checkpoints else {}
    checkpoints = {at: state_of(model, file) for at, file in needed.items()}
    if points.exists():
        say(f"landscape of step {step}: going on with the points that are done")

    def draw(resume: Path) -> Measurement:
        def draws(batch: HeldBatch) -> Measurement:
            with same_draws(batch.model):
                return drawn(
                    batch,
                    request,
                    step=step,
                    checkpoints=checkpoints,
                    resume=resume,
                    on_progress=functools.partial(progress, f"landscape of step {step}"),
                )

        return measured("landscape", held, draws)

    try:
        return draw(points)
    except PartialSurfaceError:
        say(
            f"landscape of step {step}: the points that are done are of another one; from the start"
        )
        points.unlink()
        return draw(points)


def _with_layers(run: Run, measurement: Measurement) -> dict[str, Any]:
    """The columns with the numbers that layers have in the run."""
    columns = dict(measurement.columns)
    if "layer" in columns and "name" in columns:
        layers = run.layers
        known = dict(zip(layers["name"], layers["layer"], strict=True))
        columns["layer"] = [known.get(name) for name in columns["name"]]
    return columns
