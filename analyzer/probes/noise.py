"""Gradient noise: how much of a batch's gradient is the sample, and how much is the loss."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import tensors_in
from analyzer.joins.model_state import cloned, unwrapped
from analyzer.probes.activations import (
    as_it_trains,
    evaluating,
    expect_samples_apart,
    norm_over_batch,
    num_samples,
    samples_between,
)
from analyzer.probes.batch import Batch, HeldBatch, Measurement, held, trained_parameters
from analyzer.probes.hessian import Loss

__all__ = [
    "GradientNoise",
    "NoiseTerms",
    "averaged",
    "gradient_noise",
    "measure",
    "micro_batch_terms",
    "noise_table",
    "noise_terms",
]


_HELD_PIECES = 32


@dataclass(frozen=True)
class NoiseTerms:
    """Signal and noise of a gradient.

    Args:
        signal: Estimate of ``‖G‖²`` of the true gradient; below zero where noise hides it.
        trace: Estimate of ``tr Σ``, Σ the covariance of one sample's gradient.
    """

    signal: float
    trace: float

    @property
    def scale(self) -> float:
        """``tr Σ / ‖G‖²`` in samples; inf where noise hides the signal, NaN for 0/0."""
        if self.signal != self.signal or self.trace != self.trace:
            return math.nan
        if self.signal > 0:
            return self.trace / self.signal
        return math.inf if self.trace > 0 else math.nan

    @property
    def signal_norm(self) -> float:
        """``‖G‖``; 0 where the estimate of its square is below zero."""
        return math.sqrt(max(self.signal, 0.0)) if self.signal == self.signal else math.nan


@dataclass(frozen=True)
class GradientNoise:
    """Signal and noise of the gradient of all parameters, and of each layer's.

    Layers go by the path of the module that owns the parameters.
    """

    total: NoiseTerms
    layers: dict[str, NoiseTerms]
    num_samples: int
    num_pieces: int


def noise_terms(sizes: Sequence[int], squares: Sequence[float], mean_square: float) -> NoiseTerms:
    """Return signal and noise from gradients of M small batches and of all of them together.

    ``tr Σ = (Σ bᵢ‖gᵢ‖² − N‖ḡ‖²) / (M − 1)`` and ``‖G‖² = ‖ḡ‖² − tr Σ / N``: with equal sizes the
    two-batch-size estimators of McCandlish et al., both terms averaged before they are divided.
    ``sizes`` are bᵢ, N in all; ``squares`` are ``‖gᵢ‖²`` of the gradient of each one's mean loss,
    ``mean_square`` is ``‖ḡ‖²`` of their mean, weighted by size.

    Reference:
        McCandlish et al. (2018), An empirical model of large-batch training, appendix A.1.
    """
    if len(sizes) < 2:
        raise ValueError(
            f"the gradient noise scale needs at least 2 samples to compare, got {len(sizes)}; "
            "give a larger batch, or more batches"
        )
    count = sum(sizes)
    pooled = math.fsum(b * s for b, s in zip(sizes, squares, strict=True)) - count * mean_square
    trace = pooled / (len(sizes) - 1)
    return NoiseTerms(mean_square - trace / count, trace)


def micro_batch_terms(
    mean_square: float, total_square: float, num_pieces: int, inverse_size: float
) -> NoiseTerms:
    """Return signal and noise from the M micro-batches of one step, each of the same weight in it.

    ``tr Σ = (mean ‖gᵢ‖² − ‖ḡ‖²) / (mean(1/bᵢ) · (1 − 1/M))`` and
    ``‖G‖² = ‖ḡ‖² − tr Σ · mean(1/bᵢ) / M``: what `noise_terms` gives where all sizes are equal.
    ``mean_square`` is the mean of ``‖gᵢ‖²`` over micro-batches of one process, ``total_square``
    ``‖ḡ‖²`` of the mean over those of all processes, ``inverse_size`` the mean of ``1/bᵢ``.

    Reference:
        McCandlish et al. (2018), An empirical model of large-batch training, appendix A.1.
    """
    if num_pieces < 2:
        raise ValueError(
            f"the gradient noise scale needs at least 2 micro-batches to compare, got {num_pieces};"
            " accumulate gradients, or split a held batch"
        )
    trace = (mean_square - total_square) / (inverse_size * (1 - 1 / num_pieces))
    return NoiseTerms(total_square - trace * inverse_size / num_pieces, trace)


def averaged(terms: Sequence[NoiseTerms]) -> NoiseTerms:
    """Return the mean of signals and of traces, so that their ratio has little bias."""
    # Not fsum, which raises where inf meets -inf.
    signal, trace = sum(t.signal for t in terms), sum(t.trace for t in terms)
    return NoiseTerms(signal / len(terms), trace / len(terms))


def gradient_noise(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    *,
    num_pieces: int = 256,
) -> GradientNoise:
    """Return signal and noise of the gradient of the mean loss.

    See `analyzer.gradient_noise_scale`. The batches are cut into ``num_pieces`` pieces at least
    along the sample axis, as far as there are samples; gradients of the pieces (small batches) are
    compared with the gradient of all samples (the large one). With the target None, where the loss
    holds its own, pieces are taken of its gradient by the output.

    Raises:
        ValueError: If there are fewer than two samples, or no parameter wants a gradient.
        AnalyzerError: If a loss that holds its own targets is for an output without sample axis.
    """
    model = unwrapped(model)
    named = trained_parameters(model, "gradient")
    data = held(batches)
    each = math.ceil(num_pieces / len(data))
    parameters = list(named.values())
    with evaluating(model), torch.enable_grad():
        pieces = (
            piece
            for batch in data
            for piece in _gradient_pieces(model, batch, loss, parameters, each)
        )
        sizes, squares, mean_squares = _pooled(pieces, parameters)
    by_layer: dict[str, list[int]] = {}
    for place, name in enumerate(named):
        by_layer.setdefault(name.rpartition(".")[0] or type(model).__name__, []).append(place)

    def terms(places: Iterable[int]) -> NoiseTerms:
        chosen = list(places)
        sums = [math.fsum(row[place] for place in chosen) for row in squares]
        return noise_terms(sizes, sums, math.fsum(mean_squares[place] for place in chosen))

    layers = {name: terms(places) for name, places in by_layer.items()}
    return GradientNoise(terms(range(len(named))), layers, sum(sizes), len(sizes))


def measure(batch: HeldBatch) -> Measurement:
    """Measure the gradient noise from a split of a held batch."""
    pairs = [(batch.inputs, batch.targets)]
    with as_it_trains(batch.model, batch.inputs) as notes:
        found = gradient_noise(batch.model, pairs, batch.loss, num_pieces=_HELD_PIECES)
    return noise_table(found, {"source": "split of the held batch", **notes})


def noise_table(found: GradientNoise, notes: Mapping[str, str]) -> Measurement:
    """Return the table of the probe, with notes that say where it comes from as metadata."""
    columns = {
        "gradient_noise_scale": [found.total.scale],
        "signal_norm": [found.total.signal_norm],
        "noise_trace": [found.total.trace],
    }
    layers = {
        name: {
            "signal_norm": terms.signal_norm,
            "noise_trace": terms.trace,
            "signal_to_noise": terms.signal / terms.trace if terms.trace else math.nan,
        }
        for name, terms in found.layers.items()
    }
    metadata = {
        **notes,
        "num_samples": str(found.num_samples),
        "num_pieces": str(found.num_pieces),
        "signal_squared": repr(found.total.signal),
        "layers": json.dumps(layers),
    }
    return Measurement(columns, metadata)


def _pooled(
    pieces: Iterable[tuple[int, Gradients]], parameters: list[nn.Parameter]
) -> tuple[list[int], list[list[float]], list[float]]:
    """Return sizes, squared norms per piece and parameter, and those of the mean gradient."""
    sizes: list[int] = []
    squares: list[list[float]] = []
    totals = [
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float64)) for p in parameters
    ]
    for size, gradients in pieces:
        row = []
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is None:
                row.append(0.0)
                continue
            wide = gradient.detach().to(total.dtype)
            total.add_(wide, alpha=size)
            row.append(float(wide.abs().square().sum()))
        sizes.append(size)
        squares.append(row)
    count = max(sum(sizes), 1)
    return sizes, squares, [float((total / count).abs().square().sum()) for total in totals]


Gradients = Sequence[Tensor | None]


def _gradient_pieces(
    model: nn.Module, batch: Batch, loss: Loss, parameters: list[nn.Parameter], num: int
) -> Iterator[tuple[int, Gradients]]:
    """Yield the size of each piece of a batch, and the gradient of its mean loss."""
    if (norm := norm_over_batch(model)) is not None:
        raise AnalyzerError(
            f"the gradient noise cannot be split: batch norm {norm!r} of {type(model).__name__!r} "
            "keeps no running statistics, so that a sample's gradient depends on the others; "
            "expected track_running_stats=True"
        )
    size = num_samples((batch.args, batch.kwargs))
    if size == 0:
        return
    expect_samples_apart(model, batch.args, batch.kwargs, "the gradient noise")
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
