"""The first step, layer and pass at which two recorded runs differ, beyond the noise of a repeat.

A training step is looked at in the order in which it runs: the layers' outputs in call order, the
loss, their gradients and those of the parameters from the loss backward, the update. Of what is
recorded the first number that differs is looked for; everything after it differs as a consequence.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.alignment import Alignment, Sides, rows_of
from analyzer.analysis.numerals import counted, number
from analyzer.analysis.stepwise import Floor, Place, StepDifferences, ranks_apart
from analyzer.errors import AnalyzerError
from analyzer.storage.arrays import as_floats
from analyzer.storage.run import Run

__all__ = ["Divergence", "first_divergence"]

Floats = NDArray[np.float64]
_BATCH = 64
# Sums of float32 in another order differ by some of their last digits.
_ROUNDING = 1e-5
_MOST_NAMED = 3


@dataclass(frozen=True)
class Divergence:
    """Where two runs part.

    Args:
        step: The first step at which they differ; None where they do not.
        stage: ``forward``, ``backward`` or ``update``; None likewise.
        layer: The layer (of the first run) at which they part; None where it is none.
        layers: Others that it may be: the reader of an output whose gradient differs is not known
            where several layers read it.
        parameters: Parameters that differ at that place.
        ranks: Those that alone differ there; empty where all do, or there is one process.
        quantity: The number that differs, and its values in both runs.
        difference: Relative difference of the two values.
        floor: What counts as equal: the noise between the repeats, or the tolerance.
        causes: What the folders say of it: options of the optimizer, the learning rate, the batch.
        steps: First, last and number of the steps that both have.
        layers_by: How layers were aligned, and how many of each run were not.
    """

    names: tuple[str, str]
    step: int | None
    stage: str | None
    layer: str | None
    layers: tuple[str, ...]
    parameters: tuple[str, ...]
    ranks: tuple[int, ...]
    quantity: str
    left: float
    right: float
    difference: float
    floor: float
    floor_from: str
    causes: tuple[str, ...]
    steps: tuple[int, int, int]
    layers_by: Alignment
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """Return it as `analyzer diverge --json` prints it."""
        return {
            "sentence": self.sentence,
            "runs": self.names,
            "step": self.step,
            "pass": self.stage,
            "layer": self.layer,
            "layers": self.layers,
            "parameters": self.parameters,
            "ranks": self.ranks,
            "quantity": self.quantity or None,
            "left": self.left if self.quantity else None,
            "right": self.right if self.quantity else None,
            "difference": self.difference if self.quantity else None,
            "noise_floor": self.floor,
            "noise_floor_from": self.floor_from,
            "causes": self.causes,
            "steps": {"first": self.steps[0], "last": self.steps[1], "count": self.steps[2]},
            "aligned": {
                "by": self.layers_by.how,
                "layers": len(self.layers_by.left),
                "unmatched": self.layers_by.unmatched,
            },
        }


def first_divergence(
    left: Run, right: Run, repeat: Run | None = None, *, tolerance: float = 0.0
) -> Divergence:
    """Find the first step, layer and pass at which two runs differ.

    Without a repeat every difference above ``tolerance`` counts. With one, a number differs where
    it does so by more than three times the largest difference of that number between ``left`` and
    ``repeat``, over all layers and up to that step: one repeat is one draw of the noise.

    Args:
        left: The run that is taken for right.
        right: The other one.
        repeat: The program of ``left``, run once more.
        tolerance: Relative difference that counts as equal.

    Raises:
        AnalyzerError: If one run is given twice, or they have no step or no layer in common.
    """
    others = [right, *([repeat] if repeat else [])]
    for other in others:
        if other.path.resolve() == left.path.resolve():
            raise AnalyzerError(
                f"run '{left.name}' is given twice; expected two recordings. Record the program "
                "again, into another folder"
            )
    sides = Sides(left, right)
    noise = Sides(left, repeat) if repeat else None
    steps = sides.steps() if noise is None else np.intersect1d(sides.steps(), noise.steps())
    if not len(steps):
        names = ", ".join(f"'{run.name}'" for run in (left, *others))
        raise AnalyzerError(
            f"runs {names} have no recorded step in common; expected layer statistics of the same "
            "steps. Record both with one --every"
        )
    floor = Floor(noise, tolerance)
    previous: int | None = None
    for k in range(0, len(steps), _BATCH):
        chunk = StepDifferences(sides, steps[k : k + _BATCH], floor)
        for at, step in enumerate(chunk.steps):
            found = chunk.first(at)
            if found is not None:
                return _divergence(sides, steps, floor, found, int(step), previous)
            previous = int(step)
    return _none(sides, steps, floor)


def _divergence(
    sides: Sides,
    steps: NDArray[np.int64],
    floor: Floor,
    place: Place,
    step: int,
    previous: int | None,
) -> Divergence:
    """The words and numbers of the first difference."""
    names, others = sides.layers.names, sides.layers.other_names
    stage, at = place.stage, step
    if place.before:
        # Weights before an update are those after the update before it.
        stage, at = ("forward", step) if previous is None else ("update", previous)
    layers = tuple(names[k] for k in place.layers if k < len(names))
    parameters = tuple(sides.parameters.names[k] for k in place.parameters)
    found = place.found
    ranks = ranks_apart(sides, found, step)
    causes = _causes(sides.runs, stage, at, next(iter(ranks), None), is_first=step == int(steps[0]))
    is_of_all = len(parameters) == len(sides.parameters.left) > 1
    where = _where(stage, place, layers, parameters, is_of_all=is_of_all)
    if place.before and previous is None:
        moment = "from the start"
    elif place.before and step - at > 1:
        moment = f"between steps {at} and {step}, of which no other is recorded in both"
    else:
        moment = f"at step {at}"
    numbers = f"{found.column} {_exact(found.left, found.right)}"
    sentence = (
        f"Runs '{sides.runs[0].name}' and '{sides.runs[1].name}' first differ {moment}, {where}: "
        f"{numbers}, relative difference {number(found.difference)}"
    )
    sentence += f" (noise floor {number(found.floor)})." if floor.is_measured else "."
    if ranks:
        each = (f"rank {rank} ({_exact(*values)})" for rank, values in ranks.items())
        sentence += f" It differs on {', '.join(each)} alone."
    if causes:
        sentence += f" The folders differ in: {'; '.join(causes)}."
    if not floor.is_measured and found.difference <= _ROUNDING:
        sentence += (
            " It is no larger than sums in another order make it: record the first program once "
            "more and give that run as --repeat."
        )
    there = [others[k] for k in place.layers if k < len(names) and others[k] != names[k]]
    if there:
        sentence += f" In '{sides.runs[1].name}' the layer is {there[0]!r}."
    sentence += _evidence(sides, steps, floor, int(np.searchsorted(steps, step)))
    single = layers[0] if len(layers) == 1 or (layers and stage == "forward") else None
    return Divergence(
        (sides.runs[0].name, sides.runs[1].name),
        at,
        stage,
        single,
        layers,
        parameters,
        tuple(ranks),
        found.column,
        found.left,
        found.right,
        found.difference,
        found.floor,
        floor.source,
        causes,
        (int(steps[0]), int(steps[-1]), len(steps)),
        sides.layers,
        sentence,
    )


def _where(
    stage: str,
    place: Place,
    layers: Sequence[str],
    parameters: Sequence[str],
    *,
    is_of_all: bool,
) -> str:
    """The place of the first difference in words."""
    listed = _listed(layers)
    if place.before and stage == "forward":
        return f"in the weights before the first forward pass, parameter {_listed(parameters)}"
    if stage == "update":
        if not parameters:
            return "in the update, at the clipping of gradients"
        which = "all parameters" if is_of_all else f"parameter {_listed(parameters)}"
        return f"in the update of {which}"
    if stage == "forward":
        return f"in the forward pass of layer {listed}" if layers else "in the loss alone"
    if not layers:
        return (
            "in the backward pass of the loss"
            if not parameters
            else (f"in the gradient that the optimizer receives of {_listed(parameters)}")
        )
    return f"in the backward pass of layer {' or '.join(repr(x) for x in layers)}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    text = ", ".join(repr(name) for name in names[:_MOST_NAMED])
    return f"{text} and {more} more" if more > 0 else text


def _exact(left: float, right: float) -> str:
    """Two numbers with as many digits as tell them apart."""
    for digits in range(3, 18):
        pair = f"{left:.{digits}g}", f"{right:.{digits}g}"
        if pair[0] != pair[1]:
            break
    return f"{pair[0]} against {pair[1]}"


def _causes(
    runs: tuple[Run, Run], stage: str, step: int, rank: int | None, *, is_first: bool
) -> tuple[str, ...]:
    """What the folders say that can make the difference."""
    said = []
    if stage == "forward" and is_first:
        for name in ("seed", "first_batch"):
            values = [run.manifest.get(name) for run in runs]
            if None not in values and values[0] != values[1]:
                said.append(name.replace("_", " "))
    if stage == "update":
        first, second = (_learning_rate(run, step, rank) for run in runs)
        if first is not None and second is not None and first != second:
            said.append(f"learning rate {_exact(first, second)}")
        said += _options(*(run.manifest.get("optimizers") or [] for run in runs))
    return tuple(said)


def _learning_rate(run: Run, step: int, rank: int | None) -> float | None:
    """That of a step; that of one rank, where the mean over ranks is none of theirs."""
    rows = rows_of(run, "steps", ["learning_rate"], step, rank)
    found = as_floats(rows.column("learning_rate"))
    return float(found[0]) if len(found) else None


def _options(
    left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Options of optimizers that differ."""
    if len(left) != len(right):
        yield f"{counted(len(left), 'optimizer')} against {len(right)}"
    for one, other in zip(left, right, strict=False):
        for key in dict.fromkeys((*one, *other)):
            if one.get(key) != other.get(key):
                yield f"optimizer {key} {one.get(key)} against {other.get(key)}"


def _evidence(sides: Sides, steps: NDArray[np.int64], floor: Floor, agreed: int) -> str:
    """What was compared: steps, layers and how they were aligned, the floor."""
    layers = sides.layers
    lost = [len(some) for some in layers.unmatched]
    text = f" Before it {counted(agreed, 'step')} of {len(steps)} agree." if agreed else ""
    text += f" {counted(len(layers.left), 'layer')} aligned by {layers.how}"
    text += f", {lost[0]} and {lost[1]} have no counterpart" if any(lost) else ""
    return f"{text}; {floor.source}."


def _none(sides: Sides, steps: NDArray[np.int64], floor: Floor) -> Divergence:
    """No difference in all that both have."""
    names = (sides.runs[0].name, sides.runs[1].name)
    ends = (int(steps[0]), int(steps[-1]), len(steps))
    sentence = (
        f"Runs '{names[0]}' and '{names[1]}' do not differ in {counted(ends[2], 'step')} "
        f"({ends[0]} to {ends[1]}).{_evidence(sides, steps, floor, 0)}"
    )
    nothing = (None, None, None, (), (), (), "", 0.0, 0.0, 0.0, floor.tolerance, floor.source, ())
    return Divergence(names, *nothing, ends, sides.layers, sentence)
