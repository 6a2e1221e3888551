"""What a probe gets and what it gives: a live model with one held batch, and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.joins.find import call_arguments
from analyzer.joins.model_state import cloned

__all__ = [
    "Batch",
    "HeldBatch",
    "Measurement",
    "channels_last",
    "held",
    "num_samples",
    "pooled",
    "split",
    "trained_parameters",
]


@dataclass(frozen=True)
class HeldBatch:
    """A live model and one batch of its training, between two steps.

    Args:
        model: The model; a probe leaves its weights, buffers, modes, ``.grad``, hooks and the
            random state as they are.
        inputs: The arguments of one call: a tuple of positional ones, a dict of keyword arguments,
            or one tensor (`analyzer.joins.find.call_arguments` takes them apart).
        targets: Second argument of `loss`; None where the loss holds its own targets.
        loss: ``loss(output, targets)``, the mean over the batch. For a recorded script it repeats
            the operations from the model's output to the root of the backward pass.
        labels: The class of each sample, where the batch has classes.
        rule: How the optimizer of the training moves the weights next, where that is known.
        memory: What a probe keeps for its next measurement of this training.
    """

    model: nn.Module
    inputs: Any
    targets: Any
    loss: Callable[[Any, Any], Tensor]
    labels: Tensor | None = None
    rule: Any = None
    memory: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """The table of one probe at one step.

    Args:
        columns: Values by column, all of one length, as `analyzer.storage.schema.PROBES` has them.
        metadata: What else must be known to read the table; stored in the file's metadata.
    """

    columns: Mapping[str, Sequence[Any]]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Arguments of one call of the model, and what the loss compares its output with.

    The target is None where the loss holds its own; the size is the number of samples.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    size: int

    def copied(self) -> Batch:
        """Return the batch with copies of its tensors, for a model that writes to its inputs."""
        args, kwargs, target = cloned((self.args, self.kwargs, self.target), requires_grad=False)
        return Batch(args, kwargs, target, self.size)

    def is_written(self) -> bool:
        """Whether something wrote to a tensor of a fresh copy."""
        return any(tensor._version > 0 for tensor in _tensors(self))

    def mapped(self, change: Callable[[Tensor], Tensor], target: Any) -> Batch:
        """Return the batch with every tensor of its arguments changed, and another target."""
        args = tuple(change(v) if isinstance(v, Tensor) else v for v in self.args)
        kwargs = {k: change(v) if isinstance(v, Tensor) else v for k, v in self.kwargs.items()}
        return _sized(args, kwargs, target)


def held(batches: Iterable[Any]) -> list[Batch]:
    """Return the batches of an iterable that have samples, checked, in its order.

    Items are pairs ``(input, target)``; the input is one argument, a tuple or list of positional
    ones, or a mapping of keyword arguments. All stay in memory, for they are read again and again.

    Raises:
        ValueError: If there is none, none has a sample, or an item is no pair.
    """
    found = []
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches is {batches!r}; expected pairs (input, target), as a list")
    for item in batches:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(
                f"batches gave a {type(item).__name__}, expected pairs (input, target); "
                "write [(input, target)] for a single batch"
            )
        args, kwargs = call_arguments(item[0])
        found.append(_sized(args, kwargs, item[1]))
    if not found:
        raise ValueError("batches is empty, expected at least one pair (input, target)")
    filled = [batch for batch in found if batch.size > 0]
    if not filled:
        raise ValueError("all batches have 0 samples, expected at least one sample")
    return filled


def trained_parameters(model: nn.Module, quantity: str) -> dict[str, nn.Parameter]:
    """Return the parameters that want a gradient, by name; refuse to measure a quantity of none."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError(
            f"no parameter of {type(model).__name__!r} wants a gradient; expected at least one. "
            f"Set requires_grad on the parameters whose {quantity} you want."
        )
    return named


def num_samples(batches: Sequence[Batch]) -> int:
    """Return the number of samples in all."""
    return sum(batch.size for batch in batches)


def _tensors(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch that are not nested deeper."""
    parts = (*batch.args, *batch.kwargs.values(), batch.target)
    return [part for part in parts if isinstance(part, Tensor)]


def _sized(args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> Batch:
    """Return a batch as long as its first tensor; 1 where nothing has a length."""
    batch = Batch(args, kwargs, target, 1)
    size = next((len(tensor) for tensor in _tensors(batch) if tensor.dim() > 0), 1)
    return replace(batch, size=size)


def pooled(batches: Sequence[Batch]) -> Batch | None:
    """Return all batches as one, None where their samples cannot be told apart.

    Every argument and the target must be a tensor whose first axis counts the samples; whether the
    loss is a mean over them is for a trial to find out.
    """
    for batch in batches:
        parts = [*batch.args, *batch.kwargs.values(), batch.target]
        lengths = {len(p) if isinstance(p, Tensor) and p.dim() > 0 else -1 for p in parts}
        if lengths != {batch.size}:
            return None
    first = batches[0]
    if len(batches) == 1:
        return first
    forms = {(len(b.args), tuple(b.kwargs), tuple(t.dtype for t in _tensors(b))) for b in batches}
    if len(forms) > 1:
        return None
    try:
        args = tuple(torch.cat([b.args[i] for b in batches]) for i in range(len(first.args)))
        kwargs = {name: torch.cat([b.kwargs[name] for b in batches]) for name in first.kwargs}
        target = torch.cat([b.target for b in batches])
    except RuntimeError:  # their samples are of different shapes
        return None
    return Batch(args, kwargs, target, num_samples(batches))


def split(batch: Batch, size: int) -> list[Batch]:
    """Cut a pooled batch into micro-batches of a size; the last one may be smaller."""
    if size >= batch.size:
        return [batch]
    cuts = [slice(start, start + size) for start in range(0, batch.size, size)]
    return [batch.mapped(itemgetter(cut), batch.target[cut]) for cut in cuts]


def channels_last(batch: Batch) -> Batch:
    """Return the batch with its images (4-D, 5-D) in the layout that convolutions prefer."""

    def change(tensor: Tensor) -> Tensor:
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        layout = layouts.get(tensor.dim())
        return tensor if layout is None else tensor.contiguous(memory_format=layout)

    return batch.mapped(change, batch.target)
