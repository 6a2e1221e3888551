"""The random numbers of a probe: the same ones each time it is measured."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from analyzer.joins.model_state import preserve_state

__all__ = ["same_draws"]

_SEED = 0


@contextmanager
def same_draws(model: nn.Module) -> Iterator[None]:
    """Let a model draw the same random numbers whenever it is measured.

    So a probe sees the same dropout masks at every step, and gives the same values during a
    training as afterwards from its checkpoint.

    Args:
        model: Its devices are seeded, too; all generators are put back at the end.
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
                _seed(device)
        yield


def _seed(device: torch.device) -> None:
    module = torch.get_device_module(device)
    chosen = module.device(device) if hasattr(module, "device") else nullcontext()
    with chosen:
        module.manual_seed(_SEED)
