"""A simulated accelerator in pure Python, so that device code is tested on a machine without one.

Tensors on device ``simgpu`` keep their data in CPU tensors. Every kernel and copy is counted as a launch, everything
that makes the host wait as a wait, and mixing CPU and device tensors raises, as on a real device. A network trains on
it with the same numbers as on the CPU. In a test::

    device.reset_counts()
    step()
    assert device.waits() == 0

Importing the module registers the device in this process, for good. CPU work goes on as before, but
``torch.accelerator.current_accelerator()`` names it from then on; ``torch.accelerator.is_available()`` says so only
inside ``visible()``. Not simulated: ``torch.save`` of device tensors, a random generator of its own (it draws from the
CPU's), memory statistics, ``data_ptr``.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "simgpu"
counts: Counter[str] = (
    Counter()
)  # operator or copy -> launches; "wait: ..." -> times the host waited

_NO_DATA = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
# Their result's size, or the result itself, must be known to the host.
_WAITING = {
    f"aten::{name}"
    for name in (
        *("nonzero", "masked_select", "equal", "bincount", "repeat_interleave"),
        *("_unique2", "unique_dim", "unique_consecutive"),
    )
}
_INDEXING = ("aten::index", "aten::_index_put_impl_")


def reset_counts() -> None:
    """Start counting anew."""
    counts.clear()


def launches() -> int:
    """How many kernels and copies the host has handed to the device; one for a whole foreach operator."""
    return sum(number for name, number in counts.items() if not name.startswith("wait: "))


def waits() -> int:
    """How often the host has waited for the device."""
    return sum(number for name, number in counts.items() if name.startswith("wait: "))


class _Timeline:
    """What the host has asked for and the device has not done yet; usually nothing, as it is fast."""

    def __init__(self) -> None:
        self.is_held = self.is_visible = False
        self.issued = self.done = 0
        self._open: list[tuple[int, Callable[[], object]]] = []
        self._lock = threading.RLock()

    def issue(self, work: Callable[[], object]) -> int:
        """Do ``work`` now, or later where the device is held."""
        with self._lock:
            self.issued += 1
            self._open.append((self.issued, work))
            if not self.is_held:
                self.finish()
            return self.issued

    def finish(self, until: int | None = None) -> None:
        """Do what is open, in order."""
        with self._lock:
            last = self.issued if until is None else until
            while self._open and self._open[0][0] <= last:
                self._open.pop(0)[1]()
            self.done = max(self.done, last)


_timeline = _Timeline()


def _wait(reason: str, until: int | None = None) -> None:
    """Let the host wait."""
    counts[f"wait: {reason}"] += 1
    _timeline.finish(until)


@contextmanager
def held() -> Iterator[None]:
    """Keep the device busy: events stay open and copies do not arrive until the host waits, or until the end."""
    _timeline.is_held = True
    try:
        yield
    finally:
        _timeline.is_held = False
        _timeline.finish()


@contextmanager
def visible() -> Iterator[None]:
    """Let ``torch.accelerator.is_available()`` find the device."""
    _timeline.is_visible = True
    try:
        yield
    finally:
        _timeline.is_visible = False


class _Storages:
    """A table by storage; tensors would not do: autograd, parameters and views make new ones over one storage."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[StorageWeakRef, Any]] = {}
        self._limit = 1024

    def __setitem__(self, tensor: Tensor, value: object) -> None:
        storage = tensor.untyped_storage()
        # The weak reference also keeps the address from being used again.
        self._entries[storage._cdata] = (StorageWeakRef(storage), value)
        if len(self._entries) > self._limit:
            alive = {
                key: entry for key, entry in list(self._entries.items()) if not entry[0].expired()
            }
            self._entries, self._limit = alive, max(1024, 2 * len(alive))

    def get(self, tensor: Tensor) -> Any:
        """Return what is kept for the tensor's storage, or None."""
        entry = self._entries.get(tensor.untyped_storage()._cdata)
        return None if entry is None else entry[1]


_memory = _Storages()  # storage of a device tensor -> the flat CPU tensor behind it
_pinned = _Storages()  # storage of a CPU tensor in page-locked memory -> True


def is_pinned(tensor: Tensor) -> bool:
    """Whether a CPU tensor lies in memory that the device can copy to by itself."""
    return _pinned.get(tensor) is not None


def _on_device(value: object) -> bool:
    return isinstance(value, Tensor) and value.device.type == DEVICE


def _wrap(data: Tensor) -> Tensor:
    """Put CPU data onto the device."""
    tensor: Tensor = torch._C._acc.create_empty_tensor(tuple(data.shape), data.dtype)
    _memory[tensor] = data.contiguous().view(-1)
    return tensor


def _unwrap(value: Any) -> Any:
    """Return the CPU view that has this device tensor's sizes, strides and offset; other things as they are."""
    if not _on_device(value):
        return value
    flat = _memory.get(value)
    if flat.dtype != value.dtype:
        flat = flat.view(value.dtype)
    return flat.as_strided(value.size(), value.stride(), value.storage_offset())


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run any operator on the CPU data, and count it."""
    if op.is_view:  # only sizes and strides change: the kernel for tensors without data does that
        return op.redispatch(_NO_DATA, *args, **kwargs)
    name = op._schema.name
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    _count(name, tensors, args)
    inside = {id(t): _unwrap(t) for t in tensors}
    args, kwargs = tree_map(lambda v: inside.get(id(v), v), (args, kwargs))
    if kwargs.get("device") is not None:
        kwargs["device"] = "cpu"
    result = op(*args, **kwargs)
    written = {}  # in-place and out= results keep their object, and may have another size now
    for tensor in filter(_on_device, tensors):
        data = inside[id(tensor)]
        written[id(data)] = tensor
        if data.shape != tensor.shape:
            tensor.data = _wrap(data)
    return tree_map(
        lambda v: (
            written.get(id(v)) if id(v) in written else _wrap(v) if isinstance(v, Tensor) else v
        ),
        result,
    )


def _count(name: str, tensors: list[Tensor], args: tuple[Any, ...]) -> None:
    """Count an operator, and refuse to mix devices."""
    counts[name] += 1
    strangers = [t for t in tensors if not _on_device(t) and t.dim()]
    if name in _INDEXING:  # a device takes indices from the host, by waiting
        at_host = [index for index in args[1] if index is not None and not _on_device(index)]
        strangers = [t for t in strangers if not any(t is index for index in at_host)]
        for _ in at_host:
            _count_copy(to_host=False, waiting=True)
        masked = any(index is not None and index.dtype == torch.bool for index in args[1])
        if masked and (name == "aten::index" or args[2].numel() > 1):
            _wait("boolean mask")
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} got {DEVICE} and cpu"
        )
    if name in _WAITING:
        _wait(name.removeprefix("aten::"))


def _count_copy(*, to_host: bool, waiting: bool) -> None:
    name = "copy to host" if to_host else "copy to device"
    counts[name] += 1
    if waiting:
        _wait(name)


def _resize(tensor: Tensor, size: Any, *, memory_format: Any = None) -> Tensor:
    data = _unwrap(tensor).clone().resize_(size)
    tensor.data = _wrap(data)
    return tensor


def _empty(size: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _wrap(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return _wrap(torch.empty_strided(size, stride, dtype=dtype))


def _copied(source: Tensor, target: Tensor, non_blocking: bool) -> None:
    """Copy between any two tensors, of which at least one is on the device."""
    data = _unwrap(source)
    if _on_device(target):
        if _on_device(source):
            counts["aten::copy_"] += 1
        else:
            _count_copy(to_host=False, waiting=not non_blocking)
        _unwrap(target).copy_(data)
    elif non_blocking and is_pinned(target):
        _count_copy(to_host=True, waiting=False)
        later = data.clone()  # the device copies what the tensor holds now, whenever it does
        if _timeline.is_held and target.is_floating_point():
            target.fill_(torch.nan)
        _timeline.issue(lambda: target.copy_(later))
    else:
        _count_copy(to_host=True, waiting=True)
        target.copy_(data)


def _to_copy(
    tensor: Tensor,
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    non_blocking: bool = False,
    **_: Any,
) -> Tensor:
    device = tensor.device if device is None else torch.device(device)
    dtype = dtype or tensor.dtype
    if device.type == DEVICE:
        target = _wrap(torch.empty(tensor.shape, dtype=dtype))
    else:
        target = torch.empty_like(_unwrap(tensor), dtype=dtype, device="cpu")
        if non_blocking:  # torch then takes page-locked memory by itself
            _pinned[target] = True
    _copied(tensor, target, non_blocking)
    return target


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _copied(source, target, non_blocking)
    return target


def _item(tensor: Tensor) -> Any:
    _wait("item")
    return _unwrap(tensor).item()


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    return _run(torch.ops.aten.convolution.default, x, weight, bias, *rest)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    bias_size = [grad.shape[1]]
    return _run(torch.ops.aten.convolution_backward.default, grad, x, weight, bias_size, *rest)


class Event(torch.Event):
    """An event that knows whether the simulated device has come to it."""

    _place, _seen, _at = 0, False, 0.0

    def record(self, stream: torch.Stream | None = None) -> None:
        """Note what the device has been asked for up to now."""
        self._seen, self._at = False, time.perf_counter()
        self._place = _timeline.issue(lambda: None)

    def query(self) -> bool:
        """Whether the device has come here; the host does not wait."""
        self._seen = self._place <= _timeline.done
        return self._seen

    def synchronize(self) -> None:
        """Wait for the event; no wait for a host that has asked before and knows that it is over."""
        if not self._seen:
            _wait("event", self._place)

    def wait(self, stream: torch.Stream | None = None) -> None:
        """Let a stream wait, which it does anyhow: the device does everything in order."""

    def elapsed_time(self, other: "Event") -> float:
        """Return the milliseconds between two records."""
        return (other._at - self._at) * 1e3


class Stream(torch.Stream):
    """A stream; all streams of the simulated device follow one another."""

    def synchronize(self) -> None:
        """Wait for the stream."""
        _wait("stream")

    def query(self) -> bool:
        """Whether all work is done; the host does not wait."""
        return _timeline.done >= _timeline.issued

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event, or a new one."""
        event = Event(DEVICE) if event is None else event
        event.record(self)
        return event


class _Module:
    """What torch looks for in ``torch.simgpu``."""

    Event, Stream = Event, Stream

    def is_available(self) -> bool:
        return _timeline.is_visible

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: object) -> None:
        pass

    def synchronize(self, device: object = None) -> None:
        _wait("device")

    def current_stream(self, device: object = None) -> Stream:
        return Stream(DEVICE)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.default_generator.set_state(state)

    def manual_seed(self, seed: int) -> None:
        pass  # the CPU's generator has got the seed

    manual_seed_all = manual_seed

    def _is_in_bad_fork(self) -> bool:
        return False


class _Hooks(backend_registration._DummyPrivateUse1Hook):
    """What torch's C++ side asks."""

    def is_available(self) -> bool:
        return _timeline.is_visible


def _pin(tensor: Tensor, device: object = None) -> Tensor:
    copy = tensor.clone()
    _pinned[copy] = True
    return copy


def _with_pin_memory(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a factory take ``pin_memory``, which torch offers only to devices written in C++."""

    def made(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        tensor = factory(*args, **kwargs)
        if pin_memory:
            _pinned[tensor] = True
        return tensor

    return made


def _deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """Copy a device tensor by its data; torch would copy the storage, which is empty."""
    if not _on_device(self) or not self.is_leaf or torch.overrides.has_torch_function_unary(self):
        return _torch_deepcopy(self, memo)
    if id(self) not in memo:
        memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        if self.grad is not None:
            memo[id(self)].grad = _deepcopy(self.grad, memo)
    return memo[id(self)]


_torch_deepcopy = torch.Tensor.__deepcopy__
_libraries: list[torch.library.Library] = []  # what they hold is registered while they live


def _register() -> None:
    """Make the device known to torch."""
    module = _Module()
    backend_registration._setup_privateuseone_for_python_backend(DEVICE, module, _Hooks())
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(_run, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    for name, function in {
        "empty.memory_format": _empty,
        "empty_strided": _empty_strided,
        "resize_": _resize,
        "_to_copy": _to_copy,
        "_copy_from": _copy_from,
        "_local_scalar_dense": _item,
        "convolution_overrideable": _convolution,
        "convolution_backward_overrideable": _convolution_backward,
    }.items():
        aten.impl(name, function, "PrivateUse1")
    _register_foreach(aten)
    aten.impl("_pin_memory", _pin, "CPU")
    aten.impl("is_pinned", lambda tensor, device=None: is_pinned(tensor), "CPU")
    _libraries.extend([fallback, aten])
    torch.Event, torch.Stream = Event, Stream  # type: ignore[misc]
    torch.Tensor.__deepcopy__ = _deepcopy  # type: ignore[method-assign]
    torch.accelerator.synchronize = module.synchronize
    torch.accelerator.current_stream = module.current_stream
    for name in ("empty", "zeros", "empty_like", "empty_strided"):
        setattr(torch, name, _with_pin_memory(getattr(torch, name)))


def _register_foreach(aten: torch.library.Library) -> None:
    """Run each foreach operator as one kernel; torch's own fallback is one kernel a tensor."""
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::_foreach_"):
            packet, _, overload = name.removeprefix("aten::").partition(".")
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            aten.impl(
                name.removeprefix("aten::"),
                lambda *args, _op=op, **kwargs: _run(_op, *args, **kwargs),
                "PrivateUse1",
            )


_register()
