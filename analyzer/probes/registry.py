"""The functions that measure the probes; a probe's module is imported when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module

from analyzer.errors import AnalyzerError
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.draws import same_draws
from analyzer.vocabulary import PROBE_NAMES, PROBES

__all__ = ["PROBE_NAMES", "probe_named"]


def probe_named(name: str) -> Callable[[HeldBatch], Measurement]:
    """Return the function that measures a probe, with the same random numbers each time.

    Args:
        name: One of `PROBE_NAMES`.

    Raises:
        AnalyzerError: If there is no such probe.
    """
    row = next((probe for probe in PROBES if probe.name == name), None)
    if row is None:
        near = get_close_matches(name, PROBE_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise AnalyzerError(
            f"there is no probe {name!r}; {hint}expected one of {', '.join(PROBE_NAMES)}"
        )
    module, _, function = row.function.partition(":")
    measure: Callable[[HeldBatch], Measurement] = getattr(import_module(module), function)

    def measured(batch: HeldBatch) -> Measurement:
        with same_draws(batch.model):
            return measure(batch)

    return measured
