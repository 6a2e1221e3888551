"""Hooks common to all modules, of which torch itself takes no notice.

With such hooks `torch.compile` warns, in the user's process, about what they would do there; ours
do nothing in compiled modules. What is asked before that warning is answered without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn.modules import module as torch_module
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

__all__ = ["GlobalHook", "after_calls", "before_calls"]

_TABLES = (
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
)
_ours: set[int] = set()
_torch: Any = torch_module
_original: Any = None


class GlobalHook:
    """A hook that is there until `remove`.

    Args:
        handle: What torch returned for it.
    """

    def __init__(self, handle: Any) -> None:
        global _original
        self._handle = handle
        self.id: int = handle.id
        if not _ours:
            _original = _torch._has_any_global_hook
            _torch._has_any_global_hook = _has_hook_of_others
        _ours.add(handle.id)

    def remove(self) -> None:
        """Remove the hook; after the last one torch is as it was."""
        self._handle.remove()
        if self._handle.id in _ours:
            _ours.discard(self._handle.id)
            if not _ours:
                _torch._has_any_global_hook = _original


def before_calls(hook: Callable[[Any, Any], None]) -> GlobalHook:
    """Call ``hook(module, args)`` before the forward of every module."""
    return GlobalHook(register_module_forward_pre_hook(hook))


def after_calls(hook: Callable[[Any, Any, Any], None]) -> GlobalHook:
    """Call ``hook(module, args, output)`` after it; with the output None after an exception."""
    return GlobalHook(register_module_forward_hook(hook, always_call=True))


def _has_hook_of_others() -> bool:
    return any(key not in _ours for table in _TABLES for key in getattr(_torch, table))
