"""A run as text for the terminal: header, profile, gain, loss, joins, findings, layers."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analyzer.analysis.evidence import NonFinite, first_nonfinite
from analyzer.analysis.findings import findings
from analyzer.analysis.gradient_flow import (
    DepthFacts,
    DepthProfile,
    MedianGain,
    Trend,
    depth_profile,
    fall_words,
    profile_gain,
    run_gain,
    span_decades,
)
from analyzer.analysis.numerals import counted
from analyzer.analysis.training import TrainingSummary, run_training
from analyzer.cli.chart import depth_chart, sparkline
from analyzer.cli.judging import finding_lines, findings_summary
from analyzer.cli.terminal import Signs, number, printable, signs, table_box
from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.storage.run import Run
from analyzer.storage.run_json import losses

__all__ = ["print_run", "profile_chart"]

_VERSIONS = ("gradient-flow-analyzer", "torch", "python")
_MAX_WIDTH = 140
_NAMED_LAYERS = 4
_VERDICTS = {
    Trend.VANISHING: "which is vanishing",
    Trend.EXPLODING: "which is exploding",
    Trend.HEALTHY: "which neither vanishes nor explodes",
    Trend.BETWEEN: "which is neither steady nor severe",
}
_ENDS = 20
_KIND_WIDTH, _LEAST_NAME, _GAP = 16, 16, 2
_NUMBERS = (
    "output_gradient_norm",
    "activation_mean",
    "activation_std",
    "activation_zero_fraction",
)


def print_run(run: Run, step: str, pattern: str | None, console: Console) -> None:
    """Print everything that ``analyzer show`` says about a run.

    The step is ``last``, ``first`` or a number; only layers whose name matches the pattern, a
    regular expression, are drawn and listed.
    """
    marks = signs()
    training, steps = run_training(run), run.layer_steps()
    if not len(steps) or run.layers.empty:
        _print_lines(console, _header(run, training, marks))
        _print_lines(console, [_nothing_recorded(run, training), _loss_line(training, marks)])
        found = findings(run)
        _print_lines(console, [findings_summary(found), *finding_lines(found)])
        _print_lines(console, _warnings(run))
        return
    # Before anything is printed, so that a wrong option gives its one line and no more.
    chosen = _matching(run.layers["name"].tolist(), pattern)
    profile = depth_profile(run, _shown_step(run, step, steps))
    _print_lines(console, _header(run, training, marks))
    console.print()
    _print_lines(console, _flow(run, profile, chosen, console.width))
    _print_lines(console, [_loss_line(training, marks), _joins_line(run)])
    found = findings(run)
    _print_lines(console, [findings_summary(found), *finding_lines(found), ""])
    console.print(_layer_table(run, profile.step, chosen, marks, console.width))
    if chosen.sum() > 2 * _ENDS:
        hint = "Choose layers with --layers REGEX; analyzer export writes all of them."
        _print_lines(console, [hint])
    _print_lines(console, _warnings(run))


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    """Print lines; sentences are wrapped between words, charts are not."""
    for line in lines:
        is_chart = "\n" in line
        wrapped = [line] if is_chart else textwrap.wrap(line, console.width) or [""]
        console.print("\n".join(wrapped), soft_wrap=True)


def _warning(sentence: object) -> str:
    return f"warning: {printable(str(sentence), 300)}"


def _warnings(run: Run) -> list[str]:
    return [_warning(sentence) for sentence in (*losses(run.manifest), *run.warnings)]


def _header(run: Run, training: TrainingSummary, marks: Signs) -> list[str]:
    """What a run is: name, status, steps, time, cost of recording, machine, warnings."""
    manifest = run.manifest
    seconds = float(manifest.get("seconds") or training.seconds)
    first = [
        printable(run.name, 60),
        f"{run.status}, incomplete" if losses(manifest) else run.status,
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
            f"--layers {pattern!r} matches none of the {len(names)} layers, such as "
            f"'{printable(names[0])}' and '{printable(names[-1])}'. Give another pattern."
        )
    return chosen


def _flow(run: Run, profile: DepthProfile, chosen: NDArray[np.bool_], width: int) -> list[str]:
    """The chart with its marks, the gain, and where NaN came first."""
    marks = signs()
    seen = _selected(profile, chosen)
    title = (
        f"output gradient norm {marks.norm} of {counted(len(seen.names), 'layer')}, "
        f"step {profile.step}"
    )
    first = first_nonfinite(run)
    return [
        profile_chart(seen, width=min(width, _MAX_WIDTH), title=title),
        *_mark_lines(seen, unicode=marks.unicode),
        "",
        *_gain_lines(profile, run_gain(run), marks.missing),
        *([_nonfinite_line(first, profile.step, run.layer_steps())] if first else []),
    ]


def profile_chart(
    profile: DepthProfile, *, width: int, title: str, decades: tuple[int, int] | None = None
) -> str:
    """Draw the layers of a profile whose gradient was recorded, in what stdout can hold."""
    return depth_chart(
        profile.depths[profile.measured],
        profile.norms[profile.measured],
        width=width,
        unicode=signs().unicode,
        title=title,
        decades=decades,
    )


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
    words = f"Loss: {line}  {ends}"
    if training.best_step is not None:
        words += f", best {number(training.best_loss)} at step {training.best_step}"
    if training.nonfinite_step is not None:
        words += f"; not finite from step {training.nonfinite_step}"
    return f"{words}."


def _joins_line(run: Run) -> str:
    """How many joins there are, by kind of shortcut, and how much gradient the shortcuts carry."""
    joins = run.joins
    if joins.empty:
        return "Joins: none found."
    kinds = joins["shortcut"].value_counts(sort=False)
    parts = ", ".join(f"{count} {printable(str(kind))}" for kind, count in kinds.items())
    share = run.splits(columns="shortcut_share")["shortcut_share"].median()
    carried = f"; shortcuts carry {number(share)} of the gradient (median over joins and steps)"
    return f"Joins: {len(joins)} ({parts}){'' if math.isnan(share) else carried}."


def _gain_lines(profile: DepthProfile, median: MedianGain, missing: str) -> list[str]:
    """Say what the gain is, or why there is none."""
    facts = DepthFacts(profile_gain(profile), span_decades(profile))
    fit = facts.gain
    if not fit.is_defined:
        return [_no_gain(profile)]
    fallen = fit.decades_fallen
    used = f"fitted over {counted(fit.num_layers, 'layer')} with parameters"
    if fit.num_zero or fit.num_nonfinite:
        used += (
            f", {fit.num_zero} with a zero and {fit.num_nonfinite} with a non-finite one left out"
        )
    lines = [
        f"Gain {number(fit.gain)} per layer going backward (1 is isometry): the output gradient "
        f"{fall_words(fallen)} from the last layer to the first, "
        f"{_VERDICTS[facts.trend]} ({used}).",
        _ends(profile),
    ]
    if median.num_steps > 1:
        lines.append(f"Median gain over {median.num_steps} steps: {number(median.gain, missing)}.")
    return lines


def _ends(profile: DepthProfile) -> str:
    """The absolute norms at both ends of the fit, and their ratio."""
    # The fit smooths over layers; beside it stand two numbers that anybody can look up.
    rows = np.flatnonzero(profile.has_parameters & profile.usable)
    rows = rows[np.argsort(profile.depths[rows], kind="stable")]
    first, last = profile.norms[rows[0]], profile.norms[rows[-1]]
    names = [printable(profile.names[rows[end]], 40) for end in (-1, 0)]
    return (
        f"Measured: {number(last)} at {names[0]}, {number(first)} at {names[1]}; "
        f"the first over the last is {number(first / last)}."
    )


def _no_gain(profile: DepthProfile) -> str:
    """The reason why a profile has no gain."""
    rows = profile.has_parameters
    if not profile.measured.any():
        return (
            f"No gradient was recorded at step {profile.step}: no backward pass reached a layer. "
            "Is the model frozen, or was torch.no_grad() active?"
        )
    usable = int((rows & profile.usable).sum())
    zero, nonfinite = int((rows & profile.is_zero).sum()), int((rows & profile.is_nonfinite).sum())
    seen = f"{counted(int(rows.sum()), 'layer')} with parameters"
    if nonfinite and not usable:
        return (
            f"No gain: of {seen}, {nonfinite} have a NaN or infinite gradient, {zero} a zero one."
        )
    if zero and not usable:
        return f"No gain: the gradient is exactly zero in {zero} of {seen}."
    return (
        f"No gain: it needs 2 layers of different depth with parameters and a gradient; "
        f"{usable} of {seen} can be used."
    )


def _mark_lines(profile: DepthProfile, *, unicode: bool) -> list[str]:
    """Say which layers the chart marks or cannot show."""
    # The marks that the chart itself puts above and below its columns.
    cross, empty = ("✕", "∅") if unicode else ("x", "0")
    rows = (
        (profile.is_nonfinite, f"{cross} NaN or infinite gradient"),
        (profile.is_zero, f"{empty} gradient exactly zero"),
        (~profile.measured, "not drawn, no gradient recorded"),
    )
    return [
        f"{what}: {counted(int(which.sum()), 'layer')} ({_names(profile, which)})"
        for which, what in rows
        if which.any()
    ]


def _names(profile: DepthProfile, which: NDArray[np.bool_]) -> str:
    """The first few of the chosen layers."""
    chosen = [name for name, yes in zip(profile.names, which, strict=True) if yes]
    shown = [printable(name, 40) for name in chosen[:_NAMED_LAYERS]]
    return ", ".join(shown + ["..."] * (len(chosen) > len(shown)))


def _nonfinite_line(first: NonFinite, shown: int, steps: NDArray[np.int64]) -> str:
    """Say where the first NaN or infinite value appeared, and which step to look at before it."""
    where = f"the {first.what} of layer {printable(first.name, 60)}"
    line = f"First NaN or infinite value: step {first.step}, in {where}."
    before = steps[steps < first.step]
    if len(before) and shown >= first.step:
        line += f" The step before: --step {before[-1]}."
    return line


def _layer_table(run: Run, step: int, chosen: NDArray[np.bool_], marks: Signs, width: int) -> Table:
    """The table of the chosen layers; of more than 40 the first and last 20."""
    stats = run.read("layer_stats", [*_NUMBERS, "activation_num_dead"], steps=step)
    values = {row.pop("layer"): row for row in stats.to_pylist()}
    layers = run.layers[chosen]
    num_hidden = max(0, len(layers) - 2 * _ENDS)
    if num_hidden:
        # Both ends show what happened to a gradient on its way; the export has the middle.
        layers = pd.concat([layers.head(_ENDS), layers.tail(_ENDS)])
    rows = [_cells(row, values.get(row["layer"], {}), marks) for _, row in layers.iterrows()]
    if num_hidden:
        rows.insert(_ENDS, [f"... {num_hidden:,} more", *[""] * (len(rows[0]) - 1)])
    return _table(rows, marks, width)


def _table(rows: list[list[str]], marks: Signs, width: int) -> Table:
    """The rows under their headings, names cut so that no number is."""
    activation = f"activation {marks.plus_minus} std"
    headings = ["layer", "kind", "depth", "params", marks.norm, activation, "zeros", "dead"]
    table = Table(box=table_box(), pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    taken = 0
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place > 1 else "left", no_wrap=True)
        if place:
            taken += max(map(len, [heading, *(row[place] for row in rows)])) + _GAP
    limit = max(_LEAST_NAME, width - taken)
    for name, *cells in rows:
        # Text, since rich would read brackets in a name as its markup.
        table.add_row(Text(printable(name, limit)), *map(Text, cells))
    return table


def _cells(layer: "pd.Series[Any]", values: Mapping[str, float | None], marks: Signs) -> list[str]:
    """One row."""
    norm, mean, std, zeros = (number(values.get(name), marks.missing) for name in _NUMBERS)
    dead = values.get("activation_num_dead")
    return [
        str(layer["name"]),
        printable(str(layer["kind"]), _KIND_WIDTH),
        f"{layer['depth']}",
        f"{layer['num_parameters']:,}",
        norm,
        f"{mean} {marks.plus_minus} {std}",
        zeros,
        marks.missing if dead is None else f"{dead}",
    ]
