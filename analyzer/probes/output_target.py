"""The output that an attribution explains: one number a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Target", "chosen_target", "flattened"]


@dataclass(frozen=True, eq=False)
class Target:
    """The output that is explained, one number a sample.

    Args:
        index: Per sample its place in the flattened output.
        said: How it was chosen, in words.
    """

    index: Tensor
    said: str


def chosen_target(target: Any, output: Tensor) -> Target:
    """Return the output to explain, as a place in each sample's flattened output.

    Args:
        target: None for the predicted class (of the last position, for outputs
            ``[batch, position, class]``); a class; a class per sample; or a tuple of indices of the
            axes behind the first, as in Captum.
        output: The main output at the inputs, ``[batch, …]``.

    Raises:
        ValueError: If the target does not fit the output.
    """
    size, shape = len(output), tuple(output.shape[1:])
    flat = flattened(output.detach())
    offset, last, where = 0, flat, ""
    if len(shape) == 2:
        offset = (shape[0] - 1) * shape[1]
        last, where = flat[:, offset:], "last position, "
    if target is None:
        said = f"{where}predicted class" if flat.shape[1] > 1 else "the only output"
        return Target(offset + last.argmax(dim=1), said)
    if isinstance(target, tuple):
        index = _tuple_index(target, shape)
        return Target(torch.full((size,), index, device=output.device), f"output {target}")
    classes = _as_classes(target, output.device)
    if classes is None or classes.is_floating_point() or classes.numel() not in (1, size):
        raise ValueError(
            f"the target is {target!r}; expected None, a class, {size} classes (one a sample) or a "
            f"tuple of {len(shape)} indices"
        )
    classes = classes.reshape(-1).expand(size).long()
    if len(shape) > 2 or not bool(((classes >= 0) & (classes < last.shape[1])).all()):
        raise ValueError(
            f"the target {target!r} is no class of an output of shape {[size, *shape]}; expected "
            f"0 to {last.shape[1] - 1}, or a tuple of {len(shape)} indices"
        )
    return Target(offset + classes, f"{where}as given")


def _as_classes(target: Any, device: torch.device) -> Tensor | None:
    """Return a target as a tensor; None for what holds no numbers."""
    try:
        return torch.as_tensor(target, device=device)
    except (TypeError, ValueError, RuntimeError):
        return None


def flattened(output: Tensor) -> Tensor:
    """Return an output as ``[batch, elements of a sample]``."""
    return output.flatten(1) if output.dim() > 1 else output[:, None]


def _tuple_index(target: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Return the place of one index per axis in a flattened sample."""
    fits = len(target) == len(shape) and all(
        -length <= n < length for n, length in zip(target, shape, strict=False)
    )
    if not fits:
        raise ValueError(
            f"the target {target!r} is outside of an output of shape {list(shape)} a sample; "
            f"expected {len(shape)} indices within it"
        )
    index = 0
    for number, length in zip(target, shape, strict=True):
        index = index * length + number % length
    return index
