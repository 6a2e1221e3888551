"""Notice gradients that torch is about to clip, however the clipping function was imported."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils import clip_grad

__all__ = ["unwatch", "watch"]

Listener = Callable[[Sequence[Tensor]], None]

_listeners: list[Listener] = []
_original: Any = None
_module: Any = clip_grad
# Both look `_group_tensors_by_device_and_dtype` up in their module when they run, with the
# gradients as its argument, just before they change them.
_CLIPPERS = ("_clip_grads_with_norm_", "clip_grad_value_")


def watch(listener: Listener) -> None:
    """Call the listener with gradients that are about to be clipped."""
    global _original
    if not _listeners:
        _original = _module._group_tensors_by_device_and_dtype
        _module._group_tensors_by_device_and_dtype = _watched
    _listeners.append(listener)


def unwatch(listener: Listener) -> None:
    """Call it no more; without listeners torch is as it was."""
    if listener in _listeners:
        _listeners.remove(listener)
        if not _listeners:
            _module._group_tensors_by_device_and_dtype = _original


def _watched(tensor_lists: Any, *args: Any, **kwargs: Any) -> Any:
    if sys._getframe(1).f_code.co_name in _CLIPPERS:
        for listener in list(_listeners):
            listener(tensor_lists[0])
    return _original(tensor_lists, *args, **kwargs)
