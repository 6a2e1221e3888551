"""Numbers on their way from a device to the host, without anyone waiting on the training thread."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analyzer.recording.device_statistics import wide_dtype
from analyzer.recording.statistics import is_on_host

__all__ = ["Transfer", "can_pin"]

_POLL_SECONDS = 0.0005


class Transfer:
    """One copy a device of many small tensors, started now and read later.

    Args:
        tensors: Small tensors of any real dtype, on any devices.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._sizes = [tensor.numel() for tensor in tensors]
        self._places: list[tuple[Any, int]] = []
        self._copies: dict[Any, Tensor] = {}
        self._events: list[Any] = []
        by_device: dict[Any, list[Tensor]] = {}
        lengths: dict[Any, int] = {}
        for tensor in tensors:
            flat = tensor.detach().reshape(-1).to(wide_dtype(tensor))
            device = flat.device
            self._places.append((device, lengths.get(device, 0)))
            lengths[device] = lengths.get(device, 0) + flat.numel()
            by_device.setdefault(device, []).append(flat)
        for device, flats in by_device.items():
            self._start(device, torch.cat(flats))

    def _start(self, device: Any, flat: Tensor) -> None:
        if is_on_host(flat):
            self._copies[device] = flat
            return
        target = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=can_pin(device))
        target.copy_(flat, non_blocking=True)
        self._copies[device] = target
        event = torch.Event(device=device)
        event.record()
        self._events.append((event, flat))  # flat must live until it was copied

    def is_done(self) -> bool:
        """Whether every copy has arrived; does not wait."""
        return all(event.query() for event, _ in self._events)

    def arrays(self) -> list[NDArray[np.float64]]:
        """Return the tensors' elements as one-dimensional arrays; waits until they arrived."""
        for event, _ in self._events:
            while not event.query():  # asking leaves the device's queue to the training thread
                time.sleep(_POLL_SECONDS)
        self._events.clear()
        copies = {device: copy.double().numpy() for device, copy in self._copies.items()}
        return [
            copies[device][start : start + size]
            for (device, start), size in zip(self._places, self._sizes, strict=True)
        ]


def can_pin(device: torch.device) -> bool:
    """Whether page-locked memory exists for this device, so that copies need not wait."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == device.type != "mps"
