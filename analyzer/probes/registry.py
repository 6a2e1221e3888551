"""The probes by name; a probe's module is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module

from analyzer.errors import AnalyzerError
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.draws import same_draws

__all__ = ["PROBE_NAMES", "probe_named"]

_MODULES = {
    "paths": "paths",
    "landscape": "landscape",
    "shattering": "shattering",
    "jacobian": "jacobian",
    "lesion": "lesion",
    "curvature": "curvature",
    "attribution": "attribution",
    "noise": "noise",
}
PROBE_NAMES = tuple(_MODULES)


def probe_named(name: str) -> Callable[[HeldBatch], Measurement]:
    """Return the function that measures a probe, with the same random numbers each time.

    Args:
        name: One of `PROBE_NAMES`.

    Raises:
        AnalyzerError: If there is no such probe.
    """
    if name not in _MODULES:
        near = get_close_matches(name, PROBE_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise AnalyzerError(
            f"there is no probe {name!r}; {hint}expected one of {', '.join(PROBE_NAMES)}"
        )
    module = import_module(f"analyzer.probes.{_MODULES[name]}")
    measure: Callable[[HeldBatch], Measurement] = module.measure

    def measured(batch: HeldBatch) -> Measurement:
        with same_draws(batch.model):
            return measure(batch)

    return measured
