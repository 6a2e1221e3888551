"""Where in a training step two runs part: what differs first in the order in which a step runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzer.analysis.alignment import Sides, apart
from analyzer.analysis.numerals import number
from analyzer.storage.schema import STAT_COLUMNS

__all__ = ["Floor", "Found", "Place", "StepDifferences", "ranks_apart"]

Floats = NDArray[np.float64]
# One repeat is one draw of the noise: another one may be this many times as large.
_NOISE_FACTOR = 3.0
_ACTIVATION = tuple(c for c in STAT_COLUMNS["layer_stats"] if c.startswith("activation_"))
_GRADIENT = tuple(c for c in STAT_COLUMNS["layer_stats"] if c.startswith("output_gradient_"))
_OF_PARAMETER = tuple(c for c in STAT_COLUMNS["parameter_stats"] if c.startswith("gradient_"))


@dataclass(frozen=True)
class Found:
    """A number that differs: its table, row and column, both values, and what counts as equal."""

    table: str
    place: int
    column: str
    left: float
    right: float
    difference: float
    floor: float


class Floor:
    """What counts as equal in each column, up to a step.

    Args:
        noise: A run and its repeat; None where there is none.
        tolerance: Relative difference that counts as equal without one.

    Attributes:
        source: The same in words.
    """

    def __init__(self, noise: Sides | None, tolerance: float) -> None:
        self._noise, self.tolerance = noise, tolerance
        self._largest: dict[tuple[str, str], float] = {}
        self.source = (
            "every difference counts"
            if noise is None and not tolerance
            else f"a relative difference of {number(tolerance)}"
            if noise is None
            else f"{_NOISE_FACTOR:g} times the difference to '{noise.runs[1].name}'"
        )

    @property
    def is_measured(self) -> bool:
        """Whether there is a repeat."""
        return self._noise is not None

    def of(self, table: str, columns: Sequence[str], steps: NDArray[np.int64]) -> Floats:
        """Return the floor at each step, ``[steps, columns]``."""
        if self._noise is None:
            return np.full((len(steps), len(columns)), self.tolerance)
        sides = self._noise.read(table, columns, steps)
        largest = apart(columns, *sides).max(axis=1, initial=0.0)
        for k, column in enumerate(columns):
            before = self._largest.get((table, column), 0.0)
            largest[:, k] = np.maximum.accumulate(np.maximum(largest[:, k], before))
            self._largest[table, column] = float(largest[-1, k])
        found: Floats = np.maximum(_NOISE_FACTOR * largest, self.tolerance)
        return found


@dataclass(frozen=True)
class Place:
    """Where and by what the runs part in a step.

    Args:
        stage: ``forward``, ``backward`` or ``update``.
        before: Whether it is the weights before the step that differ.
        layers: Places of aligned layers.
        parameters: Places of aligned parameters.
        found: The number that differs.
    """

    stage: str
    before: bool
    layers: tuple[int, ...]
    parameters: tuple[int, ...]
    found: Found


def ranks_apart(sides: Sides, found: Found, step: int) -> dict[int, tuple[float, float]]:
    """Return the ranks on which a number differs, with their own values of it.

    Empty where it does so on all of them, and where the runs have other ranks.
    """
    ranks = sides.runs[0].ranks
    if len(ranks) < 2 or ranks != sides.runs[1].ranks:
        return {}
    columns = STAT_COLUMNS.get(found.table, (found.column,))
    at, k = np.array([step]), list(columns).index(found.column)
    values = {rank: sides.read(found.table, columns, at, rank) for rank in ranks}
    differ = {
        rank: (float(left[0, found.place, k]), float(right[0, found.place, k]))
        for rank, (left, right) in values.items()
        if apart(columns, left, right)[0, found.place, k] > found.floor
    }
    return differ if len(differ) < len(ranks) else {}


class StepDifferences:
    """The differences of two runs in some steps.

    Args:
        sides: Both runs.
        steps: Steps, ascending; asked for in that order, since the floor grows with them.
        floor: What counts as equal.
    """

    def __init__(self, sides: Sides, steps: NDArray[np.int64], floor: Floor) -> None:
        self.steps, self._sides = steps, sides
        self._apart: dict[str, tuple[Floats, Floats, Floats, Floats, Sequence[str]]] = {}
        self._tables: dict[str, str] = {}
        for name, table, columns in (
            ("norm", "parameter_stats", ("norm",)),
            ("forward", "layer_stats", _ACTIVATION),
            ("loss", "steps", ("loss",)),
            ("gradients", "layer_stats", _GRADIENT),
            ("received", "parameter_stats", _OF_PARAMETER),
            ("clip", "steps", ("clip_factor",)),
            ("update", "parameter_stats", ("update_norm",)),
        ):
            left, right = sides.read(table, columns, steps)
            least = floor.of(table, columns, steps)
            self._tables[name] = table
            self._apart[name] = (apart(columns, left, right), least, left, right, columns)
        self._owners, self._readers = sides.owners(), sides.readers()
        self._read_by: dict[int, set[int]] = {}
        for source, readers in enumerate(self._readers):
            for reader in readers:
                self._read_by.setdefault(reader, set()).add(source)

    def first(self, at: int) -> Place | None:
        """Return what differs first in a step, in the order in which it runs; None for nothing."""
        gone = self._on_one_side(at)
        if beyond := [one for one in self._beyond("norm", at) if one not in gone]:
            places = tuple(beyond)
            return Place(
                "update", True, self._layers_of(places), places, self._found("norm", at, beyond)
            )
        if beyond := self._beyond("forward", at):
            first = min(beyond)
            return Place("forward", False, (first,), (), self._found("forward", at, [first]))
        if beyond := self._beyond("loss", at):
            return Place("forward", False, (), (), self._found("loss", at, beyond))
        return self._backward(at) or self._updated(at)

    def _beyond(self, name: str, at: int) -> list[int]:
        found, least, *_ = self._apart[name]
        return [int(k) for k in np.flatnonzero((found[at] > least[at]).any(axis=1))]

    def _on_one_side(self, at: int) -> set[int]:
        """Parameters that one of the runs alone has a row of: in the other they get no gradient."""
        _, _, *sides, _ = self._apart["received"]
        missing = [np.isnan(side[at]).all(axis=1) for side in sides]
        return set(np.flatnonzero(missing[0] != missing[1]).tolist())

    def _suspects(self, layer: int, gradients: Sequence[int], at: int) -> tuple[int, ...]:
        """The readers of a layer's output that can have sent it another gradient.

        Not one that also reads another output whose gradient is there and equal: it sends one
        gradient to all that were added up for it.
        """
        known = self._apart["gradients"][2][at]
        equal = {
            k for k in range(len(known)) if k not in gradients and not np.isnan(known[k]).all()
        }
        readers = self._readers[layer]
        return tuple(one for one in readers if not self._read_by[one] & equal) or tuple(readers)

    def _found(self, name: str, at: int, places: Sequence[int]) -> Found:
        """The number at the first of the places that differs most."""
        known, least, left, right, columns = self._apart[name]
        place = places[0]
        over = np.where(known[at, place] > least[at], known[at, place], -1.0)
        k = int(np.argmax(over))
        values = float(left[at, place, k]), float(right[at, place, k])
        floor = float(least[at, k])
        return Found(self._tables[name], place, columns[k], *values, float(over[k]), floor)

    def _backward(self, at: int) -> Place | None:
        """The layer nearest to the loss whose own backward pass gives something else.

        What it receives is equal: then either the gradients of its own parameters differ, or the
        gradient that it sends to a layer whose output it reads.
        """
        gradients, received = self._beyond("gradients", at), self._beyond("received", at)
        if not gradients and (not received or self._beyond("clip", at)):
            return None
        candidates: list[tuple[int, tuple[int, ...], tuple[int, ...], Found]] = []
        owners = self._owners
        for layer in {owners[p] for p in received if owners[p] >= 0} - set(gradients):
            own = tuple(p for p in received if owners[p] == layer)
            candidates.append((layer, (layer,), own, self._found("received", at, own)))
        for layer in gradients:
            readers = self._readers[layer]
            if not set(readers) & set(gradients):
                place = max(readers, default=len(self._sides.layers.left))
                found = self._found("gradients", at, [layer])
                candidates.append((place, self._suspects(layer, gradients, at), (), found))
        if not candidates:
            places = tuple(received)
            return Place("backward", False, (), places, self._found("received", at, places))
        _, layers, own, found = max(candidates, key=lambda one: (one[0], len(one[2])))
        return Place("backward", False, layers, own, found)

    def _updated(self, at: int) -> Place | None:
        for name in ("clip", "update"):
            if beyond := self._beyond(name, at):
                places = tuple(beyond) if name == "update" else ()
                layers = self._layers_of(places)
                return Place("update", False, layers, places, self._found(name, at, beyond))
        return None

    def _layers_of(self, parameters: Sequence[int]) -> tuple[int, ...]:
        owners = [self._owners[one] for one in parameters]
        return tuple(dict.fromkeys(owner for owner in owners if owner >= 0))
