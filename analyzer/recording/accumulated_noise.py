"""The gradient noise scale from steps that accumulated gradients, read when it is written."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from analyzer.probes import Measurement
from analyzer.probes.noise import (
    GradientNoise,
    NoiseTerms,
    averaged,
    micro_batch_terms,
    noise_table,
)
from analyzer.recording.buffer import Transfer

__all__ = ["AccumulatedStep", "Numbers", "noise_of"]

Numbers: TypeAlias = dict[int, float | Tensor]
"""By the number of a parameter; on the host, or still on a device."""
_COLUMNS = ("gradient_noise_scale", "signal_norm", "noise_trace")


class AccumulatedStep:
    """What is known of a step that accumulated; its numbers may be on their way to the host.

    Args:
        index: Its number.
        numbers: By parameter: the sum of the squared norms of its passes, the norm of the sum, and
            the norm of what was there before the first pass.
        num_passes: Backward passes on this rank.
        num_ranks: Processes over which gradients are averaged.
        inverse_size: Mean of one over the samples of a pass.
    """

    def __init__(
        self,
        index: int,
        numbers: tuple[Numbers, Numbers, Numbers],
        *,
        num_passes: int,
        num_ranks: int,
        inverse_size: float,
    ) -> None:
        self.index, self.num_ranks = index, num_ranks
        self.num_pieces, self.inverse_size = num_passes * num_ranks, inverse_size
        self._num_passes = num_passes
        self._numbers: Sequence[Numbers] = numbers
        moving = [v for part in numbers for v in part.values() if isinstance(v, Tensor)]
        self._transfer = Transfer(moving) if moving else None

    def terms(self) -> dict[int, NoiseTerms]:
        """Return signal and noise by parameter; empty where gradients were there before."""
        squares, total, start = self._values()
        if any(start.values()):
            return {}
        count = self._num_passes
        return {
            # The loss of the step is the sum of the passes' losses, so its parts are `count` times
            # smaller than what they are a part of.
            number: micro_batch_terms(
                count * square, total.get(number, 0.0) ** 2, self.num_pieces, self.inverse_size
            )
            for number, square in squares.items()
        }

    def _values(self) -> list[dict[int, float]]:
        """The numbers on the host; waits for them, once."""
        if self._transfer is not None:
            arrays = iter(self._transfer.arrays())
            self._numbers = [
                {n: float(next(arrays)[0]) if isinstance(v, Tensor) else v for n, v in part.items()}
                for part in self._numbers
            ]
            self._transfer = None
        return [{n: float(v) for n, v in part.items()} for part in self._numbers]


def noise_of(steps: Sequence[AccumulatedStep], names: Mapping[int, str]) -> Measurement:
    """Return the table of some steps; its numbers are read when it is written.

    Args:
        steps: One or more.
        names: The layer of each parameter by the parameter's number.
    """
    table = functools.cache(lambda: _table(steps, names))

    def column(name: str) -> _LaterColumn:
        return _LaterColumn(lambda: table().columns[name])

    return Measurement(
        {name: column(name) for name in _COLUMNS}, _LaterNotes(lambda: table().metadata)
    )


def _table(steps: Sequence[AccumulatedStep], names: Mapping[int, str]) -> Measurement:
    """Average the steps, each parameter's layer by layer, and all of them together."""
    known = [(step, terms) for step in steps if (terms := step.terms())]
    newest = steps[-1]
    notes = {
        "source": "micro-batches of the training",
        "mode": "train",
        "num_steps": str(len(known)),
        "num_ranks": str(newest.num_ranks),
        "first_step": str(steps[0].index),
    }
    layers: dict[str, list[NoiseTerms]] = {}
    totals: list[NoiseTerms] = []
    for _, terms in known:
        by_layer: dict[str, list[NoiseTerms]] = {}
        for number in sorted(terms):
            by_layer.setdefault(names.get(number, ""), []).append(terms[number])
        for name, parts in by_layer.items():
            layers.setdefault(name, []).append(_added(parts))
        totals.append(_added(list(terms.values())))
    nothing = NoiseTerms(math.nan, math.nan)
    found = GradientNoise(
        averaged(totals) if totals else nothing,
        {name: averaged(terms) for name, terms in layers.items()},
        round(newest.num_pieces / newest.inverse_size),
        newest.num_pieces,
    )
    return noise_table(found, notes)


def _added(parts: Sequence[NoiseTerms]) -> NoiseTerms:
    return NoiseTerms(sum(t.signal for t in parts), sum(t.trace for t in parts))


class _LaterColumn(Sequence[Any]):
    """A column whose values are made when they are read."""

    def __init__(self, make: Callable[[], Sequence[Any]]) -> None:
        self._make = make

    def __len__(self) -> int:
        return len(self._make())

    def __getitem__(self, place: Any) -> Any:
        return self._make()[place]


class _LaterNotes(Mapping[str, str]):
    """Metadata that are made when they are read."""

    def __init__(self, make: Callable[[], Mapping[str, str]]) -> None:
        self._make = make

    def __getitem__(self, key: str) -> str:
        return self._make()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make())

    def __len__(self) -> int:
        return len(self._make())
