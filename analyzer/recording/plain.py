"""Which tensors have values that can be read here, where, and how numbers come from a device.

Nobody waits for a device on the thread of the training.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analyzer.errors import AnalyzerError

__all__ = [
    "Arrays",
    "OnDevice",
    "Transfer",
    "UnreadableError",
    "can_pin",
    "is_sharded",
    "memory_of",
    "plain",
    "said",
]

_torch: Any = torch._C
_POLL_SECONDS = 0.0005
Arrays: TypeAlias = Sequence[NDArray[np.float64]]


class UnreadableError(AnalyzerError):
    """A tensor has no values that could be read: it stands for others, or packs them."""


def said(error: Exception) -> str:
    """Return why something could not be read: our own sentence, or the error with its kind."""
    return str(error) if isinstance(error, AnalyzerError) else f"{type(error).__name__}: {error}"


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a ``DTensor`` of which other processes have parts."""
    return any(not place.is_replicate() for place in getattr(x, "placements", ()))


def plain(x: Tensor) -> Tensor:
    """Return a tensor whose memory holds the values of x; never waits, and moves nothing.

    That is x itself, its memory where it is of a class that only adds functions, or this process's
    own part of a ``DTensor``.

    Raises:
        UnreadableError: If there is none.
    """
    kind = type(x)
    if kind is not Tensor and kind is not nn.Parameter:
        x = _inside(x)
    if x.is_meta:
        raise UnreadableError("it is on the meta device, where tensors have no values")
    if not x.is_cpu:  # torch reads it, not we
        return x
    if x.is_nested:
        raise UnreadableError("it is a nested tensor, which has no one shape")
    if x.is_quantized:
        raise UnreadableError("it is quantized, so that its values are not those in memory")
    if x.layout is not torch.strided:
        return x.detach().to_dense() if x.is_mkldnn else x
    if x.is_neg():
        x = x.detach().resolve_neg()
    try:
        has_memory = x.data_ptr() != 0 or x.numel() == 0
    except RuntimeError:  # a stand-in of torch.func or of a compiler
        has_memory = False
    if not has_memory:
        raise UnreadableError("it is a tensor without memory, which has no values")
    return x


def memory_of(x: Tensor) -> Tensor | None:
    """Return the plain tensor that shows what is written to x later, too; None without one."""
    try:
        found = plain(x).detach()
    except UnreadableError:
        return None
    is_copy = x.layout is not torch.strided or x.is_neg()
    return None if is_copy else found


def _inside(x: Tensor) -> Tensor:
    """The plain tensor in an instance of a subclass."""
    kind = type(x)
    if hasattr(kind, "to_local"):
        with torch.no_grad():  # so that nothing but the local tensor is handed over
            return plain(x.to_local())  # type: ignore[attr-defined]
    if hasattr(kind, "trigger_wait"):  # what comes from other ranks: whoever reads it waits for it
        with torch.no_grad():
            return plain(x.trigger_wait())  # type: ignore[attr-defined]
    if kind.__torch_dispatch__ is _torch._disabled_torch_dispatch_impl:
        with torch.no_grad(), _torch.DisableTorchFunctionSubclass():
            return x.as_subclass(Tensor)
    raise UnreadableError(f"it is a {kind.__name__}, which keeps its values in other tensors")


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
            if key[0].type != "cpu":  # they may be of another stream, which would use them again
                self._sources += flats
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
