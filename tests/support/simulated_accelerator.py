"""A simulated accelerator in pure Python, so that device code is tested on a machine without one.

Tensors on device ``simgpu`` keep their data in CPU tensors. Every kernel and copy is counted as a
launch, everything that makes the host wait as a wait, and mixing CPU and device tensors raises, as
on a real device. A network trains on it with the same numbers as on the CPU. In a test::

    device.reset_counts()
    step()
    assert device.waits() == 0

Importing the module registers the device in this process, for good. CPU work goes on as before, but
``torch.accelerator.current_accelerator()`` names it from then on; ``is_available()`` beside it says
so only inside ``visible()``. Not simulated: ``torch.save`` of device tensors, a random generator of
its own (it draws from the CPU's), memory statistics, ``data_ptr``; autocast casts matrix products
and convolutions only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.simulated_timeline import (
    DEVICE,
    Event,
    Stream,
    counts,
    held,
    launches,
    reset_counts,
    timeline,
    visible,
    wait,
    waits,
)

__all__ = [
    "DEVICE",
    "counts",
    "held",
    "is_pinned",
    "launches",
    "reset_counts",
    "run_kernel",
    "visible",
    "waits",
]


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
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


class _Storages:
    """A table by storage: autograd, parameters and views make new tensors over one storage."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[StorageWeakRef, Any]] = {}
        self._limit = 1024

    def __setitem__(self, tensor: Tensor, value: object) -> None:
        storage = tensor.untyped_storage()
        # The weak reference also keeps the address from being used again.
        self._entries[storage._cdata] = (StorageWeakRef(storage), value)
        if len(self._entries) > self._limit:
            entries = list(self._entries.items())
            self._entries = {key: entry for key, entry in entries if not entry[0].expired()}
            self._limit = max(1024, 2 * len(self._entries))

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
    """Return the CPU view with this device tensor's sizes and strides; other things as they are."""
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

    def out(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return written[id(value)] if id(value) in written else _wrap(value)

    return tree_map(out, result)


def run_kernel(name: str, kernel: Callable[..., None], *args: Any) -> None:
    """Run a kernel that is no operator of torch on the CPU data: one launch, no wait."""
    counts[name] += 1
    kernel(*tree_map(_unwrap, args))


def _count(name: str, tensors: list[Tensor], args: tuple[Any, ...]) -> None:
    """Count an operator, and refuse to mix devices."""
    counts[name] += 1
    strangers = [t for t in tensors if not _on_device(t) and t.dim()]
    if name in _INDEXING:  # a device takes indices from the host, by waiting
        at_host = [index for index in args[1] if index is not None and not _on_device(index)]
        strangers = [t for t in strangers if not any(t is index for index in at_host)]
        if name == _INDEXING[1]:  # for reading, torch itself copies indices and looks up masks
            _count_written_indices(args[1], at_host, args[2])
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} got {DEVICE} and cpu"
        )
    if name in _WAITING:
        wait(name.removeprefix("aten::"))


def _count_written_indices(indices: Any, at_host: list[Tensor], values: Tensor) -> None:
    """Count what finding the written elements costs."""
    for _ in at_host:
        _count_copy(to_host=False, waiting=True)
    masked = any(index is not None and index.dtype == torch.bool for index in indices)
    if masked and values.numel() > 1:
        wait("boolean mask")


def _count_copy(*, to_host: bool, waiting: bool) -> None:
    name = "copy to host" if to_host else "copy to device"
    counts[name] += 1
    if waiting:
        wait(name)


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
        if timeline.is_held and target.is_floating_point():
            target.fill_(torch.nan)
        timeline.issue(lambda: target.copy_(later))
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
    wait("item")
    return _unwrap(tensor).item()


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    return _run(torch.ops.aten.convolution.default, x, weight, bias, *rest)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    bias_size = [grad.shape[1]]
    return _run(torch.ops.aten.convolution_backward.default, grad, x, weight, bias_size, *rest)


class _Module:
    """What torch looks for in ``torch.simgpu``."""

    Event, Stream = Event, Stream

    def is_available(self) -> bool:
        return timeline.is_visible

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: object) -> None:
        pass

    def synchronize(self, device: object = None) -> None:
        wait("device")

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
        return timeline.is_visible


def _cast(op: Any) -> Callable[..., Any]:
    """Let an operator run in the precision of autocast."""

    def cast(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(DEVICE)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*tree_map(lambda v: v.to(dtype) if _is_float(v) else v, args), **kwargs)

    return cast


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32 and _on_device(value)


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
    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in ("linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d"):
        op = getattr(torch.ops.aten, name).default
        aten.impl(name, _cast(op), "AutocastPrivateUse1")
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
