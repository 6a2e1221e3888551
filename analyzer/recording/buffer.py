"""Numbers on their way from a device to the host, without anyone waiting on the training thread."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Arrays", "OnDevice", "Transfer", "can_pin"]

_POLL_SECONDS = 0.0005
Arrays: TypeAlias = Sequence[NDArray[np.float64]]


class OnDevice(NamedTuple):
    """Numbers that are still on a device.

    Args:
        tensors: What to copy to the host.
        finish: Makes the numbers of the copies, one-dimensional float64 arrays in the same order.
    """

    tensors: list[Tensor]
    finish: Callable[[Arrays], Any]


class Transfer:
    """One copy a device and dtype of many small real tensors, started now and read later."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._sizes = [tensor.numel() for tensor in tensors]
        self._places: list[tuple[Any, int]] = []
        self._copies: dict[Any, Tensor] = {}
        self._events: list[Any] = []
        self._sources: list[Tensor] = []
        groups: dict[Any, list[Tensor]] = {}
        lengths: dict[Any, int] = {}
        for tensor in tensors:
            flat = tensor.detach().reshape(-1)
            key = (flat.device, flat.dtype)
            self._places.append((key, lengths.get(key, 0)))
            lengths[key] = lengths.get(key, 0) + flat.numel()
            groups.setdefault(key, []).append(flat)
        for key, flats in groups.items():
            self._start(key, torch.cat(flats))
        for device in {device for device, _ in groups if device.type != "cpu"}:
            event = torch.Event(device=device)
            event.record()
            self._events.append(event)

    def _start(self, key: Any, flat: Tensor) -> None:
        if flat.is_cpu:
            self._copies[key] = flat
            return
        target = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=can_pin(flat.device))
        self._copies[key] = target.copy_(flat, non_blocking=True)
        self._sources.append(flat)  # must live until it was copied

    def is_done(self) -> bool:
        """Whether every copy has arrived; does not wait."""
        return all(event.query() for event in self._events)

    def arrays(self) -> list[NDArray[np.float64]]:
        """Return the tensors' elements as one-dimensional arrays; waits until they arrived."""
        for event in self._events:
            while not event.query():  # asking leaves the device's queue to the training thread
                time.sleep(_POLL_SECONDS)
        self._events.clear()
        self._sources.clear()
        copies = {key: copy.double().numpy() for key, copy in self._copies.items()}
        return [
            copies[key][start : start + size]
            for (key, start), size in zip(self._places, self._sizes, strict=True)
        ]


def can_pin(device: torch.device) -> bool:
    """Whether page-locked memory exists for this device, so that copies need not wait."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == device.type != "mps"
