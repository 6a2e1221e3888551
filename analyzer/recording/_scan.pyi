from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from analyzer.recording.hook_classes import Call as Call
from analyzer.recording.hook_classes import Gate as Gate
from analyzer.recording.hook_classes import Layer as Layer

ACTIVATION: tuple[str, ...]
GRADIENT: tuple[str, ...]

def prepare(
    tensor: type,
    parameter: type,
    is_negated: Callable[[Any], bool],
    is_grad_enabled: Callable[[], bool],
    functorch_level: Callable[[], int | None],
    num_function_modes: Callable[[], int],
    without_functions: Callable[[], AbstractContextManager[None]],
    as_mask: Callable[[bytes], Any],
    /,
) -> bool: ...
def activation(
    address: int, elements: int, bytes_an_element: int, /
) -> tuple[float, ...] | None: ...
def gradient(address: int, elements: int, bytes_an_element: int, /) -> tuple[float, ...] | None: ...
def squares(address: int, elements: int, /) -> float: ...
def moments_of(rows: Sequence[Any], /) -> bytes | None: ...
def zero_units(
    address: int, before: int, units: int, after: int, bytes_an_element: int, /
) -> bytes: ...
def parameters(tensors: Sequence[Any], /) -> list[tuple[float, Any] | None]: ...
