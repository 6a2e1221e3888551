"""Gradients of the parts of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import tensors_in
from analyzer.joins.model_state import cloned
from analyzer.probes.activations import norm_over_batch, num_samples, samples_between
from analyzer.probes.held_batches import Batch
from analyzer.probes.hessian import Loss

__all__ = ["Gradients", "gradient_pieces"]

Gradients = Sequence[Tensor | None]


def gradient_pieces(
    model: nn.Module, batch: Batch, loss: Loss, parameters: list[nn.Parameter], num: int
) -> Iterator[tuple[int, Gradients]]:
    """Yield the size of each piece of a batch, and the gradient of its mean loss.

    Args:
        model: The model, in eval mode.
        batch: The batch. A loss that holds its own targets cannot be cut, but its gradient by the
            output can, sample by sample.
        loss: ``loss(output, target)``, the mean over the batch.
        parameters: What the gradients are of.
        num: How many pieces, as far as there are samples; none of an empty batch.

    Raises:
        ValueError: If the loss is not one number that depends on the parameters.
        AnalyzerError: If the model mixes the samples of a batch, or a loss that holds its own
            targets reads an output without sample axis.
    """
    if (norm := norm_over_batch(model)) is not None:
        raise AnalyzerError(
            f"the gradient noise cannot be split: batch norm {norm!r} of {type(model).__name__!r} "
            "keeps no running statistics, so that a sample's gradient depends on the others; "
            "expected track_running_stats=True"
        )
    size = num_samples((batch.args, batch.kwargs))
    if size == 0:
        return
    bounds = [round(n * size / min(num, size)) for n in range(min(num, size) + 1)]
    ranges = list(pairwise(bounds))
    if batch.target is None:
        yield from _pieces_of_output(model, batch, loss, parameters, ranges)
        return
    for start, stop in ranges:
        some = samples_between((batch.args, batch.kwargs, batch.target), start, stop, size)
        args, kwargs, target = cloned(some, requires_grad=False)
        value = _checked(loss(model(*args, **kwargs), target))
        yield stop - start, torch.autograd.grad(value, parameters, allow_unused=True)


def _pieces_of_output(
    model: nn.Module,
    batch: Batch,
    loss: Loss,
    parameters: list[nn.Parameter],
    ranges: list[tuple[int, int]],
) -> Iterator[tuple[int, Gradients]]:
    """Yield the pieces of a loss that cannot be cut: its gradient by the output is."""
    size = ranges[-1][1]
    batch = batch.copied()
    output = model(*batch.args, **batch.kwargs)
    seen = [t for t in tensors_in(output) if t.requires_grad]
    value = _checked(loss(output, None))
    by_output = torch.autograd.grad(value, seen, retain_graph=True, allow_unused=True)
    used = [(t, g) for t, g in zip(seen, by_output, strict=True) if g is not None]
    wrong = [list(t.shape) for t, _ in used if not t.dim() or len(t) != size]
    if wrong or not used:
        raise AnalyzerError(
            f"the gradient noise cannot be split: the loss reads outputs of shape {wrong}; "
            f"expected a first axis of {size} samples. Measure it with loss(output, target) "
            "and the targets."
        )
    for start, stop in ranges:
        rows = torch.zeros(size, dtype=torch.bool, device=used[0][0].device)
        rows[start:stop] = True
        # The mean over the piece instead of the mean over the batch.
        factor = size / (stop - start)
        parts = [g * rows.view(-1, *[1] * (g.dim() - 1)) * factor for _, g in used]
        outputs = [t for t, _ in used]
        yield (
            stop - start,
            torch.autograd.grad(outputs, parameters, parts, retain_graph=True, allow_unused=True),
        )


def _checked(value: Any) -> Tensor:
    """Return a loss that is one number with a gradient."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad:
        return value
    is_tensor = isinstance(value, Tensor)
    seen = f"a tensor of shape {list(value.shape)}" if is_tensor else repr(value)[:80]
    raise ValueError(
        f"the loss is {seen}; expected one number that depends on the parameters. Let "
        "loss(output, target) return the mean over the batch."
    )
