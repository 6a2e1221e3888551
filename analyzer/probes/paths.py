"""The path-length spectrum: how much gradient is carried by paths that cross k branches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from analyzer.joins.model_state import unwrapped
from analyzer.joins.plan import JoinSite
from analyzer.probes.activations import as_it_trains
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.path_graph import (
    Crossing,
    Slot,
    count_paths,
    crossings_of,
    gradients_by_length,
    mixing_edges,
    through_shortcuts,
)
from analyzer.probes.path_samples import (
    Layout,
    PathsError,
    batch_size,
    destination_of,
    evaluate,
    evaluating_with_gradients,
    layouts_of,
    row_scales,
    rows,
    shape_at,
    wide,
    with_batch_axis,
    zeros_at,
)

__all__ = [
    "PathsError",
    "Spectrum",
    "Streams",
    "effective_path_length",
    "measure",
    "path_lengths",
]


@dataclass(frozen=True)
class Streams:
    """The residual streams of a network, and how its shortcuts mix them over its whole depth.

    Hyper-connections keep n streams, ``X ← M X + w · f(r · X)``: the composite mixing ``Π M`` is
    what the paths that cross no branch do to a gradient. Its largest singular value says by how
    much they may amplify it, its smallest one by how much attenuate: 1 and 1 for identity
    shortcuts, α^L and α^L for shortcuts scaled by α; the largest is 1 where every M is doubly
    stochastic.

    Args:
        shares: By join (by module, where each stream is a tensor with joins of its own) the part of
            ‖∂L/∂z‖² in each stream; empty for one stream.
        largest, smallest: Over all samples; None where shortcuts do more than mix streams.

    Reference:
        Zhu et al. (2024), Hyper-connections; Xie et al. (2025), Manifold-constrained
        hyper-connections, section 3.1.
    """

    shares: dict[str, list[float]]
    largest: float | None
    smallest: float | None

    def notes(self) -> dict[str, Any]:
        """What is noted beside a spectrum."""
        return {
            "shortcut_gain_largest": self.largest,
            "shortcut_gain_smallest": self.smallest,
            "stream_shares": self.shares,
        }


@dataclass(frozen=True)
class Spectrum:
    """The gradient of a network by the number of branches that it crossed, from 0 to all of them.

    Args:
        gradient_norms: Mean over samples of ‖G_k‖₂ by length.
        shares: Mean over samples of ⟨G_k, G⟩/‖G‖² by length; None where all samples have G = 0.
        destination: The tensor at which the gradient was taken, in words.
        sum_error: ‖Σ_k G_k − G‖ / ‖G‖ with the gradient G of a plain backward pass.
        streams: How the shortcuts carry and mix residual streams.
        num_joins: How many joins were crossed.
        mode: In which mode the model was, as metadata.
    """

    num_paths: list[int]
    gradient_norms: list[float]
    shares: list[float] | None
    num_samples: int
    destination: str
    sum_error: float
    streams: Streams
    num_joins: int
    mode: dict[str, str]

    @property
    def lengths(self) -> range:
        """Lengths from 0 to the number of branches."""
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
            "num_joins": str(spectrum.num_joins),
            **{key: json.dumps(note) for key, note in spectrum.streams.notes().items()},
            "num_samples": str(spectrum.num_samples),
            "gradient_of": spectrum.destination,
            "sum_error": repr(spectrum.sum_error),
            **spectrum.mode,
        },
    )


def path_lengths(batch: HeldBatch, batch_dim: int = 0) -> Spectrum:
    """Return the gradient at the fork of the first join, by the branches that it crossed.

    See `analyzer.path_spectrum`. ``G_k[i]`` is of sample i's own loss, samples along ``batch_dim``
    of inputs and outputs. All parts get a gradient, frozen ones too.

    Raises:
        PathsError: If the model mixes samples or has another batch axis; if joins cannot be seen;
            if the fork of the first join has no gradient; if the loss is not one number.
    """
    model = unwrapped(batch.model)
    with as_it_trains(model, batch.inputs) as mode, evaluating_with_gradients(model):
        run = evaluate(model, batch.inputs, batch.targets, batch.loss)
        num_samples = batch_size(run.inputs, run.outputs, batch_dim)
        inputs = with_batch_axis(run.input_edges, num_samples, batch_dim)
        goal = destination_of(run.sites, inputs, run.walk)
        crossings = crossings_of(run.sites, run.walk, goal.node)
        layouts = layouts_of(run.outputs, inputs, goal.parts, num_samples, batch_dim)
        total = torch.autograd.grad(run.loss, goal.parts, retain_graph=True, allow_unused=True)
        sums = _Sums(total, layouts, num_samples)
        for gradient in gradients_by_length(run.loss, goal.parts, crossings):
            sums.add(gradient)
        num_paths = count_paths(run.walk.nodes[0], goal.node, crossings)
        mixing = mixing_edges(run.sites, run.walk, goal.node)
        streams = streams_of(run.loss, run.sites, goal.parts, crossings, mixing)
    return Spectrum(
        num_paths=num_paths,
        gradient_norms=sums.mean_norms(len(num_paths)),
        shares=sums.mean_shares(len(num_paths)),
        num_samples=num_samples,
        destination=goal.name,
        sum_error=sums.error(),
        streams=streams,
        num_joins=len(run.sites),
        mode=mode,
    )


def effective_path_length(lengths: Iterable[float], norms: Iterable[float]) -> float:
    """Return the mean length of a path, weighted by the gradient that paths of its length carry.

    ``Σ k‖G_k‖ / Σ ‖G_k‖`` in joins; NaN where no gradient arrives, or a norm is NaN or infinite.

    Reference:
        Veit et al. (2016), section 4.3.
    """
    pairs = list(zip(lengths, norms, strict=True))
    # Divided by the largest one first, so that the sum of large norms does not overflow.
    largest = max((norm for _, norm in pairs), default=0.0)
    if largest == 0 or not all(math.isfinite(norm) for _, norm in pairs):
        return math.nan
    weighted = math.fsum(length * (norm / largest) for length, norm in pairs)
    return weighted / math.fsum(norm / largest for _, norm in pairs)


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
        self._scales = row_scales(self._total)
        self._scaled = self._total / self._scales
        self._rest = self._total.clone()
        self._norms: list[Tensor] = []
        self._products: list[Tensor] = []

    def add(self, gradient: Sequence[Tensor | None]) -> None:
        """Take the gradient of the next length."""
        by_sample = self._rows(gradient) * self._num_samples
        scales = row_scales(by_sample)
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
        count = self._num_samples
        found = [
            torch.zeros(count, w, dtype=torch.float64)
            if p is None
            else wide(rows(p, layout, count))
            for p, layout, w in zip(parts, self._layouts, self._widths, strict=True)
        ]
        return torch.cat([part.to(found[0].device) for part in found], 1)


_Respond = Callable[[Tensor], Tensor | None]


def streams_of(
    loss: Tensor,
    sites: Sequence[JoinSite],
    parts: Sequence[GradientEdge],
    crossings: Sequence[Crossing],
    mixing_by: Sequence[Slot],
) -> Streams:
    """Return the residual streams of a network, from its graph alone.

    Streams are tensors of their own where several joins add one branch; else an axis along which
    the shortcuts mix, and along no other one. What the shortcuts do is asked of them from the
    output of the last join back to the first fork, or, where that has another shape or holds all
    streams in one, to the output of the first join.
    """
    number_of = {edge: n for n, one in enumerate(crossings) for edge in one.entries}
    closed = [*mixing_by, *(edge for one in crossings for edge in one.edges)]
    given = [site for site in sites if site.node is not None and site.branch_entries]
    names = [site.join.name for site in given]
    ends = [GradientEdge(site.node, 0) for site in given if site.node is not None]
    numbers = [number_of[site.branch_entries[0]] for site in given]
    if not ends:
        return Streams({}, None, None)
    runs = groupby(range(len(ends)), key=numbers.__getitem__)
    blocks = [[ends[at] for at in run] for _, run in runs]
    shapes = [_without_ones(shape_at(edge)) for edge in ends]
    count = len(blocks[-1])
    if count > 1 and {len(block) for block in blocks} == {count} and len(set(shapes)) == 1:
        modules = [name.partition("#")[0] for name in names[::count]]
        shares = _shares(loss, modules, blocks, lambda gradients: gradients)
        respond = _between(blocks[-1], blocks[0], closed)
        mixing = _mixing(respond, zeros_at(blocks[0])) if blocks[1:] else None
        return Streams(shares, *_gains(mixing))
    starts = [*(parts if len(parts) == 1 else ()), *ends[:-1]][:2]
    start = next((e for e in starts if _without_ones(shape_at(e)) == shapes[-1]), None)
    if start is None:
        return Streams({}, None, None)
    like = zeros_at([start]).reshape(1, *shapes[-1])
    respond = _between([ends[-1]], [start], closed)
    mixing = _mixing(respond, like)
    if mixing is not None:
        return Streams({}, *_gains(mixing))
    # Streams are written to alike: what a branch returns has no such axis, and the features have.
    written = math.prod(shape_at(crossings[numbers[-1]].source))
    axes = [n for n, size in enumerate(shapes[-1]) if size * written == like.numel()]
    for axis in axes:
        mixing = _mixing(partial(_along, respond, axis), like[0].movedim(axis, 0))
        if mixing is not None:
            axes = [axis]
            break
    if len(axes) != 1:
        return Streams({}, None, None)
    same = [n for n, shape in enumerate(shapes) if shape == shapes[-1]]

    def by_stream(gradients: Sequence[Tensor]) -> Iterable[Tensor]:
        return gradients[0].reshape(shapes[-1]).movedim(axes[0], 0)

    shares = _shares(loss, [names[n] for n in same], [[ends[n]] for n in same], by_stream)
    return Streams(shares, *_gains(mixing))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a tensor that have more than one element."""
    return tuple(size for size in shape if size != 1)


def _between(
    ends: Sequence[GradientEdge], starts: Sequence[GradientEdge], closed: Sequence[Slot]
) -> _Respond:
    """Return what sends gradients ``[streams, …]`` back through shortcuts alone."""

    def respond(seeds: Tensor) -> Tensor | None:
        given = [seed.reshape(shape_at(edge)) for seed, edge in zip(seeds, ends, strict=True)]
        found = through_shortcuts(ends, given, starts, closed)
        if all(gradient is None for gradient in found):
            return None
        like = seeds[0]
        return torch.stack(
            [torch.zeros_like(like) if g is None else g.reshape(like.shape) for g in found]
        )

    return respond


def _along(respond: _Respond, axis: int, seeds: Tensor) -> Tensor | None:
    found = respond(seeds.movedim(0, axis)[None])
    return found if found is None else found[0].movedim(axis, 0)


def _mixing(respond: _Respond, like: Tensor) -> Tensor | None:
    """Return ``M[i, j]``, by how much a gradient at stream i comes to stream j, at each element.

    ``[streams, streams, …]``. None where what arrives at an element depends on other elements.
    """
    generator, rows = torch.Generator().manual_seed(0), []
    tolerance = torch.finfo(like.dtype).eps ** 0.5
    for stream in range(len(like)):
        factors = []
        for _ in range(2):
            probe = torch.rand(like.shape[1:], generator=generator).to(like) + 0.5
            seeds = torch.zeros_like(like)
            seeds[stream] = probe
            if (found := respond(seeds)) is None:
                return None  # no path of shortcuts alone
            factors.append(found / probe)
        size = factors[0].abs().max()
        if not bool((factors[0] - factors[1]).abs().max() <= tolerance * size):
            return None
        rows.append(factors[0])
    return torch.stack(rows)


def _gains(mixing: Tensor | None) -> tuple[float | None, float | None]:
    """Return the largest and the smallest singular value of matrices ``[n, n, …]``."""
    if mixing is None:
        return None, None
    values = torch.linalg.svdvals(mixing.flatten(2).permute(2, 0, 1).cpu().to(torch.complex128))
    return float(values.max()), float(values.min())


def _shares(
    loss: Tensor,
    names: Sequence[str],
    ends: Sequence[Sequence[GradientEdge]],
    streams_in: Callable[[Sequence[Tensor]], Iterable[Tensor]],
) -> dict[str, list[float]]:
    """Return by name the part of ‖∂L/∂z‖² in each stream; without what no gradient reaches."""
    flat = [edge for edges in ends for edge in edges]
    found = torch.autograd.grad(loss, flat, retain_graph=True, allow_unused=True)
    gradients = iter([torch.zeros(()) if g is None else g for g in found])
    shares = {}
    for name, edges in zip(names, ends, strict=True):
        parts = streams_in([next(gradients) for _ in edges])
        squares = torch.stack([part.cpu().abs().double().square().sum() for part in parts])
        if float(squares.sum()) > 0:
            shares[name] = (squares / squares.sum()).tolist()
    return shares
