"""Heavier measurements on a live model and one held batch; they leave the model untouched.

A probe's module is imported when it is first needed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch
from torch import nn

from analyzer.errors import AnalyzerError
from analyzer.joins.model_state import preserve_state
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.vocabulary.probes import PROBE_NAMES, PROBES

__all__ = ["PROBE_NAMES", "HeldBatch", "Measurement", "probe_named", "same_draws"]

_SEED = 0


def probe_named(name: str) -> Callable[..., Measurement]:
    """Return the function that measures a probe, with the same random numbers each time.

    It takes the held batch, and the options in the probe's row as keywords.
    """
    row = next((probe for probe in PROBES if probe.name == name), None)
    if row is None:
        near = get_close_matches(name, PROBE_NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise AnalyzerError(
            f"there is no probe {name!r}; {hint}expected one of {', '.join(PROBE_NAMES)}"
        )
    module, _, function = row.function.partition(":")
    measure: Callable[..., Measurement] = getattr(import_module(module), function)

    def measured(batch: HeldBatch, **options: Any) -> Measurement:
        with same_draws(batch.model):
            return measure(batch, **options)

    return measured


@contextmanager
def same_draws(model: nn.Module) -> Iterator[None]:
    """Let a model draw the same random numbers whenever it is measured.

    So a probe sees the same dropout masks at every step, and gives the same values during a
    training as afterwards from its checkpoint. All generators are put back at the end.
    """
    devices = {p.device for p in (*model.parameters(), *model.buffers())}
    with preserve_state(model):
        random.seed(_SEED)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(_SEED)
        # Not torch.manual_seed: it would seed devices that nobody puts back.
        torch.default_generator.manual_seed(_SEED)
        for device in devices:
            if device.type not in ("cpu", "meta"):
                module = torch.get_device_module(device)
                with module.device(device) if hasattr(module, "device") else nullcontext():
                    module.manual_seed(_SEED)
        yield
