"""The path-length spectrum: how much gradient is carried by paths that cross k branches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from analyzer.joins.model_state import unwrapped
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.path_graph import Crossing, count_paths, crossings_of, destination_of
from analyzer.probes.path_samples import (
    Layout,
    PathsError,
    batch_size,
    evaluate,
    evaluating_with_gradients,
    layouts_of,
    rows,
    with_batch_axis,
)

__all__ = [
    "PathsError",
    "Spectrum",
    "effective_path_length",
    "gradients_by_length",
    "measure",
    "path_lengths",
]


@dataclass(frozen=True)
class Spectrum:
    """The gradient of a network by the number of branches that it crossed, from 0 to all joins.

    Args:
        gradient_norms: Mean over samples of ‖G_k‖₂ by length.
        shares: Mean over samples of ⟨G_k, G⟩/‖G‖² by length; None where all samples have G = 0.
        destination: The tensor at which the gradient was taken, in words.
        sum_error: ‖Σ_k G_k − G‖ / ‖G‖ with the gradient G of a plain backward pass.
    """

    num_paths: list[int]
    gradient_norms: list[float]
    shares: list[float] | None
    num_samples: int
    destination: str
    sum_error: float

    @property
    def lengths(self) -> range:
        """Lengths from 0 to the number of joins."""
        return range(len(self.num_paths))

    @property
    def effective_path_length(self) -> float:
        """See `effective_path_length`."""
        return effective_path_length(self.lengths, self.gradient_norms)


def measure(batch: HeldBatch) -> Measurement:
    """Return the path-length spectrum of a model on one batch, samples along the first axis."""
    spectrum = path_lengths(batch)
    return Measurement(
        columns={
            "length": list(spectrum.lengths),
            "num_paths": [float(number) for number in spectrum.num_paths],
            "gradient_norm": spectrum.gradient_norms,
            "share": spectrum.shares or [None] * len(spectrum.num_paths),
        },
        metadata={
            "effective_path_length": repr(spectrum.effective_path_length),
            "num_joins": str(len(spectrum.num_paths) - 1),
            "num_samples": str(spectrum.num_samples),
            "gradient_of": spectrum.destination,
            "sum_error": repr(spectrum.sum_error),
            "mode": "eval",
        },
    )


def path_lengths(batch: HeldBatch, batch_dim: int = 0) -> Spectrum:
    """Return the gradient at the fork of the first join, by the branches that it crossed.

    See `analyzer.path_spectrum`. ``G_k[i]`` is of sample i's own loss, samples along ``batch_dim``
    of inputs and outputs. Eval mode, so that norms use running statistics and nothing is dropped;
    all parts get a gradient, frozen ones too.

    Raises:
        PathsError: If the model mixes samples or has another batch axis; if joins cannot be seen;
            if the fork of the first join has no gradient; if the loss is not one number.
    """
    model = unwrapped(batch.model)
    with evaluating_with_gradients(model):
        run = evaluate(model, batch.inputs, batch.targets, batch.loss)
        num_samples = batch_size(run.inputs, run.outputs, batch_dim)
        inputs = with_batch_axis(run.input_edges, num_samples, batch_dim)
        goal = destination_of(run.sites, inputs, run.walk)
        crossings = crossings_of(run.sites)
        layouts = layouts_of(run.outputs, inputs, goal.parts, num_samples, batch_dim)
        total = torch.autograd.grad(run.loss, goal.parts, retain_graph=True, allow_unused=True)
        sums = _Sums(total, layouts, num_samples)
        for gradient in gradients_by_length(run.loss, goal.parts, crossings):
            sums.add(gradient)
        num_paths = count_paths(run.walk.nodes[0], goal.node, crossings)
    return Spectrum(
        num_paths=num_paths,
        gradient_norms=sums.mean_norms(len(num_paths)),
        shares=sums.mean_shares(len(num_paths)),
        num_samples=num_samples,
        destination=goal.name,
        sum_error=sums.error(),
    )


def effective_path_length(lengths: Iterable[float], norms: Iterable[float]) -> float:
    """Return the mean length of a path, weighted by the gradient that paths of its length carry.

    ``Σ k‖G_k‖ / Σ ‖G_k‖`` in joins. Far below the number of joins in deep residual networks: the
    gradient is carried by short paths, although most paths are long. NaN where no gradient arrives,
    or a norm is NaN or infinite.

    Reference:
        Veit et al. (2016), section 4.3.
    """
    pairs = list(zip(lengths, norms, strict=True))
    # Divided by the largest one first, so that the sum of large norms does not overflow.
    largest = max((norm for _, norm in pairs), default=0.0)
    if largest == 0 or not all(math.isfinite(norm) for _, norm in pairs):
        return math.nan
    weights = [norm / largest for _, norm in pairs]
    return math.fsum(k * w for (k, _), w in zip(pairs, weights, strict=True)) / math.fsum(weights)


class _Sums:
    """Norms and shares of each sample, taken while the gradients pass by."""

    def __init__(
        self, total: Sequence[Tensor | None], layouts: Sequence[Layout], num_samples: int
    ) -> None:
        self._layouts = layouts
        self._num_samples = num_samples
        self._widths = [
            1 if part is None else part.numel() * (1 + part.is_complex()) // num_samples
            for part in total
        ]
        # The loss is a mean, and G_k[i] is of the sample's own loss.
        self._total = self._rows(total) * num_samples
        self._scales = _scales(self._total)
        self._scaled = self._total / self._scales
        self._rest = self._total.clone()
        self._norms: list[Tensor] = []
        self._products: list[Tensor] = []

    def add(self, gradient: Sequence[Tensor | None]) -> None:
        """Take the gradient of the next length."""
        by_sample = self._rows(gradient) * self._num_samples
        scales = _scales(by_sample)
        self._norms.append(scales[:, 0] * (by_sample / scales).norm(dim=1))
        self._products.append((by_sample / self._scales * self._scaled).sum(1))
        if by_sample.numel():
            self._rest -= by_sample

    def mean_norms(self, num_lengths: int) -> list[float]:
        """Return mean over samples of ‖G_k‖, zero for lengths that no path has."""
        norms = [float(norms.mean()) for norms in self._norms]
        return norms + [0.0] * (num_lengths - len(norms))

    def mean_shares(self, num_lengths: int) -> list[float] | None:
        """Return mean over samples with G ≠ 0 of ⟨G_k, G⟩/‖G‖²; None where there is none."""
        products = torch.stack(self._products)
        is_counted = (self._total != 0).any(1)
        if not bool(is_counted.any()):
            return None
        # Σ_k ⟨G_k, G⟩ is ‖G‖² up to rounding; divided by it, shares add to 1 exactly.
        shares = (products / products.sum(0))[:, is_counted].mean(1).tolist()
        return [*shares, *[0.0] * (num_lengths - len(shares))]

    def error(self) -> float:
        """Return ‖Σ_k G_k − G‖ / ‖G‖ over all samples; NaN where G = 0."""
        scale = self._scales.max()
        return float((self._rest / scale).norm() / (self._total / scale).norm())

    def _rows(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Return all parts together, one row a sample, in float64."""
        found = [
            _wide(rows(part, layout, self._num_samples))
            if part is not None
            else torch.zeros(self._num_samples, width, dtype=torch.float64)
            for part, layout, width in zip(parts, self._layouts, self._widths, strict=True)
        ]
        return torch.cat([part.to(found[0].device) for part in found], 1)


def _wide(by_sample: Tensor) -> Tensor:
    if by_sample.device.type == "mps":  # no float64 there
        by_sample = by_sample.cpu()
    if by_sample.is_complex():
        by_sample = torch.view_as_real(by_sample).flatten(1)
    return by_sample.double()


def _scales(by_sample: Tensor) -> Tensor:
    """Return the largest magnitude of each row, 1 where that is zero or not finite."""
    peaks = by_sample.abs().amax(1, keepdim=True)
    return torch.where(peaks.isfinite() & (peaks > 0), peaks, 1.0)


Parts = tuple[Tensor | None, ...]


def gradients_by_length(
    loss: Tensor, parts: Sequence[GradientEdge], crossings: Sequence[Crossing]
) -> Iterator[Parts]:
    """Yield the gradient of all paths that cross k branches, for k = 0, 1, … in order.

    At every join ``G_k ← G_k(through shortcut) + Jᵀ G_{k−1}(through branch)``. The first pass
    begins at the loss; each holds back what joins send into their branches, and the next one
    begins with that, there. All run over one graph, so memory holds one forward pass and one
    gradient a join, whatever their number, and a pass computes nothing above its first branch.

    One gradient a part (a place where it is taken), None where no path of that length arrives;
    ends early once no path is left. The joins' nodes are hooked until then.
    """
    held: dict[tuple[Node, int], Tensor] = {}
    slots: dict[Node, list[int]] = {}
    for crossing in crossings:
        for reader, slot in crossing.edges:
            slots.setdefault(reader, []).append(slot)
    with ExitStack() as hooks:
        for reader, own in slots.items():
            hooks.enter_context(reader.register_hook(partial(_hold_back, held, reader, own)))
        yield torch.autograd.grad(loss, list(parts), retain_graph=True, allow_unused=True)
        while held:
            edges = [_operand(reader, slot) for reader, slot in held]
            gradients = [_fitted(*pair) for pair in zip(held.values(), edges, strict=True)]
            held.clear()
            yield torch.autograd.grad(
                edges, list(parts), gradients, retain_graph=True, allow_unused=True
            )


def _hold_back(
    held: dict[tuple[Node, int], Tensor],
    reader: Node,
    slots: Sequence[int],
    gradients: tuple[Tensor | None, ...],
    _: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Keep what goes by some slots for the next pass, and let this pass send nothing there."""
    kept = list(gradients)
    for slot in slots:
        gradient = kept[slot]
        if gradient is not None:
            held[reader, slot] = gradient
            kept[slot] = None
    return tuple(kept)


def _operand(reader: Node, slot: int) -> GradientEdge:
    child, number = reader.next_functions[slot]
    assert child is not None  # a gradient came by this slot
    return GradientEdge(child, number)


def _fitted(gradient: Tensor, edge: GradientEdge) -> Tensor:
    """Undo broadcasting and promotion, as the engine does after the hooks."""
    metadata: Any = edge.node._input_metadata[edge.output_nr]
    if gradient.shape != metadata.shape:
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient.to(metadata.dtype)
