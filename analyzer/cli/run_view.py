"""A run as text for the terminal: header, profile, gain, loss, joins, findings, layers."""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from analyzer.analysis.evidence import first_nonfinite
from analyzer.analysis.findings import findings
from analyzer.analysis.gradient_flow import DepthProfile, depth_profile
from analyzer.analysis.training import TrainingSummary, run_training
from analyzer.cli.chart import depth_chart, sparkline
from analyzer.cli.findings_text import finding_lines, findings_summary
from analyzer.cli.flow_text import (
    counted,
    gain_lines,
    gain_over_steps,
    mark_lines,
    nonfinite_line,
    number,
)
from analyzer.cli.layer_table import layer_table
from analyzer.cli.terminal import Signs, printable, signs
from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.storage.run import Run

__all__ = ["print_run"]

_VERSIONS = ("gradient-flow-analyzer", "torch", "python")
_MAX_WIDTH = 140


def print_run(run: Run, step: str, pattern: str | None, console: Console) -> None:
    """Print everything that ``analyzer show`` says about a run.

    Args:
        run: An opened run.
        step: ``last``, ``first`` or a step number.
        pattern: Regular expression; only layers whose name it finds are drawn and listed.
        console: Where to print.

    Raises:
        AnalyzerError: If the step is not a step, or the pattern finds no layer.
        NotRecordedError: If nothing was recorded at the step.
    """
    marks = signs()
    training, steps = run_training(run), run.layer_steps()
    if not len(steps) or run.layers.empty:
        _print_lines(console, _header(run, training, marks))
        _print_lines(console, [_nothing_recorded(run, training), _loss_line(training, marks)])
        return
    # Before anything is printed, so that a wrong option gives its one line and no more.
    chosen = _matching(run.layers["name"].tolist(), pattern)
    profile = depth_profile(run, _shown_step(run, step, steps))
    _print_lines(console, _header(run, training, marks))
    console.print()
    _print_lines(console, _flow(run, profile, training, chosen, console.width))
    _print_lines(console, [_loss_line(training, marks), _joins_line(run)])
    found = findings(run)
    _print_lines(console, [findings_summary(found), *finding_lines(found), ""])
    table, hint = layer_table(run, profile.step, chosen, marks, console.width)
    console.print(table)
    _print_lines(console, [hint] if hint else [])
    _print_lines(console, [_warning(sentence) for sentence in run.warnings])


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    """Print lines; sentences are wrapped between words, charts are left as they are."""
    for line in lines:
        is_chart = "\n" in line
        wrapped = [line] if is_chart else textwrap.wrap(line, console.width) or [""]
        console.print("\n".join(wrapped), soft_wrap=True)


def _warning(sentence: object) -> str:
    return f"warning: {printable(str(sentence), 300)}"


def _header(run: Run, training: TrainingSummary, marks: Signs) -> list[str]:
    """What a run is: name, status, steps, time, cost of recording, machine, warnings."""
    manifest = run.manifest
    seconds = float(manifest.get("seconds") or training.seconds)
    first = [
        printable(run.name, 60),
        run.status,
        f"{counted(training.num_steps, 'step')} in {seconds:.1f} s",
    ]
    cost = manifest.get("recorder_seconds")
    if cost is not None and seconds > 0:
        first.append(f"recorder {cost:.2f} s ({cost / seconds:.1%})")
    versions = manifest.get("versions") or {}
    machine = [str(manifest["device"])] if manifest.get("device") else []
    machine += [f"{name} {versions[name]}" for name in _VERSIONS if versions.get(name)]
    lines = [marks.dot.join(first), marks.dot.join(printable(word) for word in machine)]
    if manifest.get("error"):
        lines.append(f"error: {printable(str(manifest['error']), 300)}")
    if run.status == "crashed":
        lines.append("crashed: it stopped without an end; what was written until then is shown")
    lines += [_warning(sentence) for sentence in manifest.get("not_recorded") or ()]
    return [line for line in lines if line]


def _nothing_recorded(run: Run, training: TrainingSummary) -> str:
    """Why there is no profile to show, and what to do."""
    remedies = {
        "running": "It is still running: look again in a few seconds.",
        "failed": "It failed before the first step was whole.",
    }
    remedy = remedies.get(run.status, "Record a training that reaches a backward pass.")
    steps = f"{counted(training.num_steps, 'step')} without layer statistics"
    seen = steps if training.num_steps else "no step"
    return f"Nothing to draw: the run holds {seen}. {remedy}"


def _shown_step(run: Run, step: str, recorded: NDArray[np.int64]) -> int:
    """The step that ``--step`` names, among those with layer statistics."""
    if step in ("last", "first"):
        return int(recorded[-1 if step == "last" else 0])
    if not re.fullmatch(r"[0-9]{1,18}", step):
        raise AnalyzerError(
            f"--step is {step!r}; expected a step number, 'first' or 'last'. "
            "Leave it out for the last step."
        )
    if int(step) in recorded:
        return int(step)
    nearest = recorded[np.argmin(np.abs(recorded - int(step)))]
    raise NotRecordedError(
        f"run '{run.name}' holds no layer statistics at step {step}; expected one of its "
        f"{len(recorded)} recorded steps, {recorded[0]} to {recorded[-1]}. "
        f"The nearest is --step {nearest}."
    )


def _matching(names: Sequence[str], pattern: str | None) -> NDArray[np.bool_]:
    """Which layers a pattern selects; all of them without one."""
    if pattern is None:
        return np.ones(len(names), bool)
    try:
        find = re.compile(pattern).search
    except re.error as error:
        raise AnalyzerError(
            f"--layers is {pattern!r}, which is not a regular expression ({error}). "
            "Write for example --layers 'layer[12]'."
        ) from None
    chosen = np.array([find(name) is not None for name in names], bool)
    if not chosen.any():
        raise AnalyzerError(
            f"--layers {pattern!r} finds none of the {len(names)} layers, such as "
            f"'{printable(names[0])}' and '{printable(names[-1])}'. Give another pattern."
        )
    return chosen


def _flow(
    run: Run,
    profile: DepthProfile,
    training: TrainingSummary,
    chosen: NDArray[np.bool_],
    width: int,
) -> list[str]:
    """The chart with its marks, the gain, and where NaN came first."""
    marks = signs()
    seen = _selected(profile, chosen)
    title = (
        f"output gradient norm {marks.norm} of {counted(len(seen.names), 'layer')}, "
        f"step {profile.step}"
    )
    chart = depth_chart(
        seen.depths[seen.measured],
        seen.norms[seen.measured],
        width=min(width, _MAX_WIDTH),
        unicode=marks.unicode,
        title=title,
    )
    median = gain_over_steps(run, run.layer_steps())
    first = first_nonfinite(run)
    return [
        chart,
        *mark_lines(seen, unicode=marks.unicode),
        "",
        *gain_lines(profile, training, median, marks.missing),
        *([nonfinite_line(first, profile.step, run.layer_steps())] if first else []),
    ]


def _selected(profile: DepthProfile, chosen: NDArray[np.bool_]) -> DepthProfile:
    """The profile of some layers; a fit is made over all of them."""
    return replace(
        profile,
        names=[n for n, yes in zip(profile.names, chosen, strict=True) if yes],
        kinds=[k for k, yes in zip(profile.kinds, chosen, strict=True) if yes],
        depths=profile.depths[chosen],
        norms=profile.norms[chosen],
        measured=profile.measured[chosen],
        has_parameters=profile.has_parameters[chosen],
    )


def _loss_line(training: TrainingSummary, marks: Signs) -> str:
    """The loss as a sparkline with its ends, and the first step where it is not finite."""
    if not training.num_losses:
        return "Loss: none was recorded (no step had a scalar loss)."
    line = sparkline(training.losses, unicode=marks.unicode)
    ends = f"{number(training.first_loss)} {marks.arrow} {number(training.last_loss)}"
    best = (
        f", best {number(training.best_loss)} at step {training.best_step}"
        if training.best_step is not None
        else ""
    )
    bad = (
        f"; not finite from step {training.nonfinite_step}"
        if training.nonfinite_step is not None
        else ""
    )
    return f"Loss: {line}  {ends}{best}{bad}."


def _joins_line(run: Run) -> str:
    """How many joins there are, by kind of shortcut, and how much gradient the shortcuts carry."""
    joins = run.joins
    if joins.empty:
        return "Joins: none found."
    kinds = joins["shortcut"].value_counts(sort=False)
    parts = ", ".join(f"{count} {printable(str(kind))}" for kind, count in kinds.items())
    share = run.splits(columns="shortcut_share")["shortcut_share"].median()
    carried = "" if math.isnan(share) else f"; shortcuts carry {number(share)} of the gradient"
    return f"Joins: {len(joins)} ({parts}){carried}."
