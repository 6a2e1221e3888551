"""Jacobian spectrum: how much a block, or the whole network, stretches and squeezes its input."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel

from analyzer.joins.find import call_arguments, output_nodes, watched_forward
from analyzer.joins.model_state import cloned, unwrapped
from analyzer.joins.plan import JoinSite, joins_in_graph
from analyzer.probes.activations import (
    as_it_trains,
    evaluating,
    main_output,
    num_samples,
    samples_between,
)
from analyzer.probes.batch import HeldBatch, Measurement
from analyzer.probes.hessian import refuse_if_severed
from analyzer.probes.lanczos import ExtremeValues, extreme_singular_values

__all__ = [
    "NETWORK",
    "JacobianSpectrum",
    "jacobian_spectrum",
    "measure",
    "metadata",
]


_BLOCK = 64


class _EdgeMap:
    """The Jacobian ``[rows, columns]`` of some places of an autograd graph by others below them.

    ``Jᵀv`` is a backward pass between them; ``J u`` is the derivative of ``⟨Jᵀv, u⟩`` by v. The
    graph is kept and used for every product. `epsilon` is the rounding error of a product.
    """

    def __init__(
        self, outputs: Sequence[GradientEdge], inputs: Sequence[Tensor | GradientEdge]
    ) -> None:
        self._outputs = list(outputs)
        self._inputs: list[Any] = list(inputs)
        self._output_likes = [_like(place) for place in outputs]
        self._input_likes = [_like(place) for place in inputs]
        self.rows = sum(like.numel() for like in self._output_likes)
        self.columns = sum(like.numel() for like in self._input_likes)
        self.epsilon = max(torch.finfo(like.dtype).eps for like in self._output_likes)
        self._linear: tuple[list[Tensor], list[Tensor]] | None = None

    def transposed_times(self, vector: Tensor) -> Tensor:
        """Return ``Jᵀ v`` for v of `rows` elements, in float64 on the CPU."""
        parts = _parts(vector, self._output_likes)
        gradients = torch.autograd.grad(
            self._outputs, self._inputs, parts, retain_graph=True, allow_unused=True
        )
        return _flat(gradients, self._input_likes)

    def times(self, vector: Tensor) -> Tensor:
        """Return ``J u`` for u of `columns` elements, in float64 on the CPU."""
        if self._linear is None:
            seeds = [torch.zeros_like(like).requires_grad_() for like in self._output_likes]
            pulled = torch.autograd.grad(
                self._outputs, self._inputs, seeds, create_graph=True, materialize_grads=True
            )
            refuse_if_severed(pulled)
            self._linear = seeds, list(pulled)
        seeds, pulled_back = self._linear
        parts = _parts(vector, self._input_likes)
        kept = [n for n, part in enumerate(pulled_back) if part.requires_grad]
        if not kept:
            return torch.zeros(self.rows, dtype=torch.float64)
        gradients = torch.autograd.grad(
            [pulled_back[n] for n in kept],
            seeds,
            [parts[n] for n in kept],
            retain_graph=True,
            allow_unused=True,
        )
        return _flat(gradients, self._output_likes)

    def dense(self) -> Tensor:
        """Return the Jacobian ``[rows, columns]`` by as few products as possible, in float64."""
        if self.rows > self.columns:
            return torch.stack([self.times(unit) for unit in _units(self.columns)], dim=1)
        try:
            pieces = torch.split(_units(self.rows), _BLOCK)
            return torch.cat([self._many_rows(piece) for piece in pieces])
        except RuntimeError:  # an operation that torch cannot run for several gradients at once
            return torch.stack([self.transposed_times(unit) for unit in _units(self.rows)])

    def _many_rows(self, vectors: Tensor) -> Tensor:
        """Return ``Vᵀ J`` for several vectors at once."""
        parts = _parts(vectors, self._output_likes)
        with warnings.catch_warnings():
            # Torch warns where it loops over the gradients for want of a batching rule.
            warnings.simplefilter("ignore", UserWarning)
            gradients = torch.autograd.grad(
                self._outputs,
                self._inputs,
                parts,
                retain_graph=True,
                is_grads_batched=True,
                materialize_grads=True,
            )
        return torch.cat([part.detach().flatten(1).double().cpu() for part in gradients], dim=1)


def _like(place: Tensor | GradientEdge) -> Tensor:
    """Return an empty tensor of the shape, type and device of a place."""
    if isinstance(place, Tensor):
        return torch.empty_like(place)
    about = place.node._input_metadata[place.output_nr]
    return torch.empty(tuple(about.shape), dtype=about.dtype, device=about.device)


def _units(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def _parts(vectors: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector, or several at once, into tensors of the given shapes and types."""
    pieces = torch.split(vectors, [like.numel() for like in likes], dim=-1)
    return [
        piece.reshape(*vectors.shape[:-1], *like.shape).to(like)
        for piece, like in zip(pieces, likes, strict=True)
    ]


def _flat(parts: Sequence[Tensor | None], likes: Sequence[Tensor]) -> Tensor:
    """Join tensors to one vector; what nothing arrived at is zero."""
    return torch.cat(
        [
            (torch.zeros_like(like) if part is None else part.detach()).flatten().double().cpu()
            for part, like in zip(parts, likes, strict=True)
        ]
    )


NETWORK = "network"
_SMALL, _DENSE = 256, 1024
_TOLERANCE = 1e-4
_MAX_STEPS = 120
_HELD_SAMPLES, _WIDE_SAMPLES, _WIDE = 16, 4, 512
_QUARTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)


@dataclass(frozen=True)
class JacobianSpectrum:
    """Singular values per block and of the whole network.

    Args:
        names: Per value the block (the name of its join), or `NETWORK`.
        orders: Per value its place among all of its block, 0 for the largest.
        residuals: Per block how far the values at the top and at the bottom may be off, in units
            of its largest; 0 where they come from the whole matrix.
        refused: Blocks without values, with the reason.
        num_samples: Samples of the batch; the Jacobian of several is block-diagonal.
    """

    names: list[str] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    residuals: dict[str, tuple[float, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    num_samples: int = 1


def jacobian_spectrum(
    model: nn.Module, inputs: Any, k: int = 10, *, seed: int = 0, widest: int | None = None
) -> JacobianSpectrum:
    """Return singular values of each block's Jacobian, forward order, then of the whole network.

    See `analyzer.jacobian_spectrum`. ``k`` values are taken from the top and from the bottom; all
    where the smaller side of the Jacobian has at most 256 elements, or 2k. Blocks whose smaller
    side has more than `widest` elements are left out.
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(
            f"k is {k!r}; expected how many singular values to take from each end, >= 1"
        )
    model = unwrapped(model)
    result = JacobianSpectrum(num_samples=num_samples(inputs))
    if result.num_samples == 0:
        raise ValueError("the inputs hold 0 samples; expected at least 1. Give another batch.")
    with evaluating(model), torch.enable_grad():
        memo: dict[int, tuple[Tensor, Tensor]] = {}
        args, kwargs = cloned(call_arguments(inputs), requires_grad=True, memo=memo)
        # The fused attention kernels have no second derivative, which a product J·v needs.
        with sdpa_kernel(SDPBackend.MATH):
            output, log = watched_forward(model, args, kwargs)
        roots = output_nodes(output)
        for site in joins_in_graph(roots, log).sites(roots) or []:
            block = _block_map(site)
            if isinstance(block, str):
                result.refused[site.join.name] = block
            elif widest is None or min(block.rows, block.columns) <= widest:
                _add_spectrum(result, site.join.name, block, k, seed)
        leaves = [leaf for leaf, _ in memo.values() if leaf.requires_grad]
        if leaves:
            whole = _EdgeMap([get_gradient_edge(main_output(output))], leaves)
            _add_spectrum(result, NETWORK, whole, k, seed)
        else:
            result.refused[NETWORK] = "its inputs are not floating, so that it has no Jacobian"
    return result


def measure(batch: HeldBatch) -> Measurement:
    """Measure the Jacobian spectrum at the first 16 samples of a held batch, each by itself.

    ``singular_value`` is the median over the samples, beside it are the quartiles; NaN where the
    value of one of them has not settled. Blocks of more than 512 elements are measured at 4
    samples. In the metadata, as JSON: ``samples``, of each block how many, and
    ``condition_numbers``, of each block and sample the largest over the smallest value.
    """
    inputs, spectra = call_arguments(batch.inputs), []
    size = num_samples(inputs)
    with as_it_trains(batch.model, batch.inputs) as notes:
        for sample in range(max(1, min(size, _HELD_SAMPLES))):
            args, kwargs = samples_between(inputs, sample, sample + 1, size)
            given = kwargs if kwargs and not args else args
            widest = None if sample < _WIDE_SAMPLES else _WIDE
            spectra.append(jacobian_spectrum(batch.model, given, widest=widest))
    values: dict[tuple[str, int], list[float]] = {}
    for found in spectra:
        for name, order, value in zip(found.names, found.orders, found.values, strict=True):
            values.setdefault((name, order), []).append(value)
    by_name: dict[str, list[list[float]]] = {}
    for (name, _), measured in values.items():
        by_name.setdefault(name, []).append(measured)
    quartiles = [
        torch.tensor(measured, dtype=torch.float64).quantile(_QUARTILES).tolist()
        for measured in values.values()
    ]
    columns: dict[str, Sequence[Any]] = {
        "name": [name for name, _ in values],
        "rank_order": [order for _, order in values],
        "singular_value": [middle for _, middle, _ in quartiles],
        "lower_quartile": [low for low, _, _ in quartiles],
        "upper_quartile": [high for _, _, high in quartiles],
    }
    conditions = {
        name: [top / bottom if bottom else math.inf for top, bottom in zip(*ends, strict=True)]
        for name, ends in ((name, (rows[0], rows[-1])) for name, rows in by_name.items())
    }
    more = {
        "num_samples": str(len(spectra)),
        "samples": json.dumps({name: len(rows[0]) for name, rows in by_name.items()}),
        "condition_numbers": json.dumps(conditions),
    }
    return Measurement(columns, metadata(_joined(spectra)) | notes | more)


def _joined(spectra: Sequence[JacobianSpectrum]) -> JacobianSpectrum:
    """Return what is said of the blocks of several samples: the worst of each."""
    joined = JacobianSpectrum(shapes=spectra[0].shapes, num_samples=len(spectra))
    for found in spectra:
        joined.refused.update(found.refused)
        for name, residuals in found.residuals.items():
            known = joined.residuals.get(name, residuals)
            joined.residuals[name] = max(known[0], residuals[0]), max(known[1], residuals[1])
    return joined


def metadata(found: JacobianSpectrum) -> dict[str, str]:
    """Return what must be known to read a spectrum, as text."""
    return {
        "mode": "eval",
        "network": NETWORK,
        "num_samples": str(found.num_samples),
        "shapes": json.dumps(found.shapes),
        "residuals": json.dumps(found.residuals),
        "refused": json.dumps(found.refused),
    }


def _block_map(site: JoinSite) -> _EdgeMap | str:
    """Return the map from the fork of a join to its output, or why there is none."""
    edges = [*(site.shortcut_edges or ()), *(site.branch_edges or ())]
    if site.node is None or site.fork is None or not edges:
        return "autograd does not see its fork: it comes from a part without gradient"
    numbers = sorted({number for _, _, number in edges})
    forks = [GradientEdge(site.fork, number) for number in numbers]
    return _EdgeMap([GradientEdge(site.node, 0)], forks)


def _add_spectrum(result: JacobianSpectrum, name: str, block: _EdgeMap, k: int, seed: int) -> None:
    """Compute the values of one block from the whole matrix where it is small, else by products."""
    try:
        if min(block.rows, block.columns) <= max(_DENSE, 2 * k):
            found = _dense_values(block.dense(), k)
        else:
            found = extreme_singular_values(
                block, k, tolerance=_TOLERANCE, max_steps=_MAX_STEPS, seed=seed
            )
    except (RuntimeError, NotImplementedError) as error:
        result.refused[name] = f"torch cannot differentiate it: {str(error).splitlines()[0]}"
        return
    result.names.extend([name] * len(found.values))
    result.orders.extend(found.orders)
    result.values.extend(found.values)
    result.shapes[name], result.residuals[name] = (block.rows, block.columns), found.residuals


def _dense_values(matrix: Tensor, k: int) -> ExtremeValues:
    """Return the singular values of a matrix, of a larger one k from each end."""
    size = min(matrix.shape)
    orders = list(range(size))
    if size > max(_SMALL, 2 * k):
        orders = [*orders[:k], *orders[-k:]]
    if not matrix.isfinite().all():
        nan = float("nan")
        return ExtremeValues([nan] * len(orders), orders, (nan, nan), 0)
    values = torch.linalg.svdvals(matrix)
    return ExtremeValues(values[orders].tolist(), orders, (0.0, 0.0), 0)
