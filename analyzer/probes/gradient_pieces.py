"""Gradients of the parts of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import tensors_in
from analyzer.joins.live import call_arguments
from analyzer.joins.untouched import cloned
from analyzer.probes.activations import num_samples, samples_between
from analyzer.probes.hessian import Loss

__all__ = ["Gradients", "gradient_pieces"]

Gradients = Sequence[Tensor | None]


def gradient_pieces(
    model: nn.Module, inputs: Any, target: Any, loss: Loss, parameters: list[nn.Parameter], num: int
) -> Iterator[tuple[int, Gradients]]:
    """Yield the size of each piece of a batch, and the gradient of its mean loss.

    Args:
        model: The model, in eval mode.
        inputs: The batch.
        target: Second argument of the loss; None where it holds its own. Such a loss cannot be cut,
            but its gradient by the output can, sample by sample.
        loss: ``loss(output, target)``, the mean over the batch.
        parameters: What the gradients are of.
        num: How many pieces, as far as there are samples.

    Raises:
        AnalyzerError: If a loss that holds its own targets reads an output without sample axis.
    """
    size = num_samples(inputs)
    bounds = [round(n * size / min(num, size)) for n in range(min(num, size) + 1)]
    ranges = list(pairwise(bounds))
    if target is None:
        yield from _pieces_of_output(model, inputs, loss, parameters, ranges)
        return
    for start, stop in ranges:
        some = samples_between((call_arguments(inputs), target), start, stop, size)
        (args, kwargs), some_target = cloned(some, requires_grad=False)
        value = loss(model(*args, **kwargs), some_target)
        yield stop - start, torch.autograd.grad(value, parameters, allow_unused=True)


def _pieces_of_output(
    model: nn.Module,
    inputs: Any,
    loss: Loss,
    parameters: list[nn.Parameter],
    ranges: list[tuple[int, int]],
) -> Iterator[tuple[int, Gradients]]:
    """Yield the pieces of a loss that cannot be cut: its gradient by the output is."""
    size = ranges[-1][1]
    args, kwargs = cloned(call_arguments(inputs), requires_grad=False)
    output = model(*args, **kwargs)
    seen = [t for t in tensors_in(output) if t.requires_grad]
    by_output = torch.autograd.grad(loss(output, None), seen, retain_graph=True, allow_unused=True)
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
