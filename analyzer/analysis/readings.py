"""The three numbers of the first page: gradient, share and loss of each run, and over what."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analyzer.analysis.claim_numbers import relative_gradient, shortcut_share
from analyzer.analysis.numerals import counted, number, percent
from analyzer.analysis.overview import class_entropy
from analyzer.analysis.probe_numbers import Measured
from analyzer.analysis.training import run_training
from analyzer.analysis.view import has_shortcuts, run_labels
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run

__all__ = ["Reading", "readings"]


@dataclass(frozen=True)
class Reading:
    """One number of each run beside what it is to be read against.

    Args:
        values: Each number as a text, with what it is of and the run.
        against: What the number is compared with, and over which steps it is taken.
    """

    title: str
    values: tuple[tuple[str, Run, str], ...]
    against: str


def readings(runs: Sequence[Run], broke: Sequence[int | None]) -> tuple[Reading, ...]:
    """Return the three numbers, each over all of its steps; of a run that broke, those before.

    Args:
        runs: One to three.
        broke: The first step of each run that is not finite; None where all are.
    """
    labels = [label.text for label in run_labels(runs)]
    before = next((f", before it broke (step {step:,})" for step in broke if step), "")
    each = list(zip(runs, broke, strict=True))
    first = [_first(*one) for one in each]
    share = [_share(*one) for one in each]

    def shown(found: Sequence[Measured | str]) -> tuple[tuple[str, Run, str], ...]:
        texts = [one if isinstance(one, str) else number(one.value) for one in found]
        return tuple(zip(labels, runs, texts, strict=True))

    carried = [one if isinstance(one, str) else percent(one.value) for one in share]
    return (
        Reading(
            "Gradient at the first layer",
            shown(first),
            "relative to the last layer, these two layers alone; 1 is the same; median over "
            f"{_steps(first)}{before}",
        ),
        Reading(
            "Carried by the shortcuts",
            shown(carried),
            "of the gradient where a shortcut and its block meet; median over joins and "
            f"{_steps(share)}{before}",
        ),
        Reading("Final loss", shown([_loss(run) for run in runs]), _of_loss(runs)),
    )


def _steps(found: Sequence[Measured | str]) -> str:
    """The steps that medians are over; all where runs differ, or nothing is known."""
    ends = {one.steps for one in found if isinstance(one, Measured) and one.steps}
    if len(ends) != 1:
        return "all recorded steps"
    steps = ends.pop()
    first, last = steps[0], steps[-1]
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def _first(run: Run, broke: int | None) -> Measured | str:
    try:
        return relative_gradient(run, broke)
    except NotRecordedError:
        return "not recorded"


def _share(run: Run, broke: int | None) -> Measured | str:
    if not has_shortcuts(run):
        return "no shortcuts"
    try:
        return shortcut_share(run, broke)
    except NotRecordedError:
        return "not recorded"


def _loss(run: Run) -> str:
    training = run_training(run)
    return number(training.final_loss) if training.num_losses else "no loss"


def _of_loss(runs: Sequence[Run]) -> str:
    """Over how many steps the loss is a mean, and what guessing gives."""
    counts = {one.num_final for one in map(run_training, runs) if one.num_losses}
    over = (
        f"mean of the last {counted(counts.pop(), 'step')}"
        if len(counts) == 1
        else "mean at the end"
    )
    guess = next((e for e in map(class_entropy, runs) if not math.isnan(e)), math.nan)
    if math.isnan(guess):
        return over
    return f"{over}; guessing by the classes’ shares gives {number(guess)}"
