"""Where the gradients of paths are taken, and which elements of a tensor belong to a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from analyzer.errors import AnalyzerError
from analyzer.joins.backward import node_of_loss
from analyzer.joins.calls import tensors_in
from analyzer.joins.find import call_arguments, output_nodes, watched_forward
from analyzer.joins.graph import Walk
from analyzer.joins.model_state import check_loss, cloned
from analyzer.joins.plan import JoinSite, joins_in_graph
from analyzer.probes.activations import evaluating

__all__ = [
    "Destination",
    "Layout",
    "PathsError",
    "batch_size",
    "destination_of",
    "evaluate",
    "evaluating_with_gradients",
    "layouts_of",
    "row_scales",
    "rows",
    "shape_at",
    "wide",
    "with_batch_axis",
    "zeros_at",
]


class PathsError(AnalyzerError, ValueError):
    """A model, batch or loss whose path-length spectrum cannot be exact."""


class Layout(NamedTuple):
    """The axis that counts the samples of a tensor, alone or merged with another one.

    ``is_minor``: whether the sample is the faster part of a merged axis.
    """

    axis: int
    is_minor: bool = False


def batch_size(inputs: Iterable[Tensor], outputs: Iterable[Tensor], batch_dim: int) -> int:
    """Return the number of samples: the size that inputs and outputs share along `batch_dim`.

    Inputs without batch axis, such as a mask for all samples, have another size and do not count.

    Raises:
        PathsError: If no size fits.
    """
    taken = [tuple(tensor.shape) for tensor in inputs]
    made = [tuple(tensor.shape) for tensor in outputs if tensor.dim() > 0]
    sizes = [shape[batch_dim] for shape in taken if 0 <= batch_dim < len(shape)]
    sizes = [size for size in sizes if size > 0]
    ends = [shape[batch_dim] for shape in made if 0 <= batch_dim < len(shape)]
    equal = [size for size in sizes if size in ends or not made]
    merged = [size for size in sizes if any(end % size == 0 for end in ends)]
    if not equal and not merged:
        raise PathsError(
            f"along batch_dim={batch_dim} the inputs {_shapes(taken)} and the outputs "
            f"{_shapes(made)} share no number of samples; expected one batch axis in both. "
            "Pass batch_dim=, the axis that counts samples."
        )
    return (equal or merged)[0]


def with_batch_axis(
    edges: Iterable[GradientEdge], num_samples: int, batch_dim: int
) -> list[GradientEdge]:
    """Return the tensors that hold one part a sample along `batch_dim`."""
    shapes = [(edge, shape_at(edge)) for edge in edges]
    return [e for e, s in shapes if len(s) > batch_dim and s[batch_dim] == num_samples]


def rows(tensor: Tensor, layout: Layout, num_samples: int) -> Tensor:
    """Return a tensor as ``[num_samples, elements]``, one row a sample."""
    if num_samples == 1:
        return tensor.reshape(1, -1)
    axis, is_minor = layout
    rest = tensor.shape[axis] // num_samples
    merged = (rest, num_samples) if is_minor else (num_samples, rest)
    apart = tensor.reshape(*tensor.shape[:axis], *merged, *tensor.shape[axis + 1 :])
    return apart.movedim(axis + is_minor, 0).flatten(1)


def wide(by_sample: Tensor) -> Tensor:
    """Return rows in float64, complex numbers as two each."""
    if by_sample.device.type == "mps":  # no float64 there
        by_sample = by_sample.cpu()
    if by_sample.is_complex():
        by_sample = torch.view_as_real(by_sample).flatten(1)
    return by_sample.double()


def row_scales(by_sample: Tensor) -> Tensor:
    """Return the largest magnitude of each row, 1 where that is zero or not finite."""
    peaks = by_sample.abs().amax(1, keepdim=True)
    return torch.where(peaks.isfinite() & (peaks > 0), peaks, 1.0)


def layouts_of(
    outputs: Sequence[Tensor],
    inputs: Sequence[GradientEdge],
    parts: Sequence[GradientEdge],
    num_samples: int,
    batch_dim: int,
) -> list[Layout]:
    """Return where the samples are in some tensors, and check that the model keeps them apart.

    A random gradient at the outputs of the first sample alone, then of the last alone, must reach
    nothing of another sample: neither in the inputs along `batch_dim`, nor in the tensors along the
    axis returned. What is compared with zero is exact, so there is no tolerance; NaN is passed
    over, because 0 · ∞ is NaN in a sample that nothing reached. Outputs without batch axis (loss
    terms) are left out.

    Raises:
        PathsError: If samples are mixed, or a part has no axis that keeps them apart.
    """
    if num_samples == 1:
        return [Layout(0) for _ in parts]
    seen = [t for t in outputs if t.dim() > batch_dim and t.shape[batch_dim] % num_samples == 0]
    found = [_candidates(shape_at(edge), num_samples, batch_dim) for edge in parts]
    for sample in (0, num_samples - 1) if seen else ():
        gradients = _gradients_of_sample(seen, [*inputs, *parts], sample, num_samples, batch_dim)
        for gradient in gradients[: len(inputs)]:
            if not _is_apart(gradient, Layout(batch_dim), sample, num_samples):
                raise _mixed(batch_dim, num_samples)
        for number, gradient in enumerate(gradients[len(inputs) :]):
            found[number] = [
                layout
                for layout in found[number]
                if _is_apart(gradient, layout, sample, num_samples)
            ]
    if not all(found):
        raise _mixed(batch_dim, num_samples)
    return [layouts[0] for layouts in found]


def _candidates(shape: tuple[int, ...], num_samples: int, batch_dim: int) -> list[Layout]:
    """Return the layouts that a shape allows, the usual one first."""
    found: list[Layout] = []
    if len(shape) > batch_dim and shape[batch_dim] % num_samples == 0:
        found.append(Layout(batch_dim))
        if shape[batch_dim] > num_samples:
            found.append(Layout(batch_dim, is_minor=True))
    return found + [
        Layout(axis) for axis, size in enumerate(shape) if size == num_samples and axis != batch_dim
    ]


def _gradients_of_sample(
    outputs: Sequence[Tensor],
    edges: Sequence[GradientEdge],
    sample: int,
    num_samples: int,
    batch_dim: int,
) -> tuple[Tensor | None, ...]:
    """Return what a random gradient at one sample of the outputs sends to some tensors."""
    generator = torch.Generator().manual_seed(sample)
    starts: list[Tensor] = []
    for output in outputs:
        size = output.shape[batch_dim]
        chosen = torch.arange(size) // (size // num_samples) == sample
        chosen = chosen.view(-1, *[1] * (output.dim() - batch_dim - 1))
        noise = torch.randn(output.shape, generator=generator) * chosen
        starts.append(noise.to(output.device, output.dtype))
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        list(outputs), list(edges), starts, retain_graph=True, allow_unused=True
    )
    return found


def _is_apart(gradient: Tensor | None, layout: Layout, sample: int, num_samples: int) -> bool:
    """Whether a gradient is zero outside of one sample."""
    if gradient is None:
        return True
    by_sample = rows(gradient, layout, num_samples).abs()
    others = torch.arange(num_samples, device=by_sample.device) != sample
    return not bool((by_sample[others] > 0).any())


def _mixed(batch_dim: int, num_samples: int) -> PathsError:
    return PathsError(
        f"the gradient of one sample reaches another one along batch_dim={batch_dim} "
        f"({num_samples} samples): the model mixes samples, or has another batch axis; expected "
        "samples that do not see each other. Pass batch_dim=, or use norms with running statistics."
    )


def shape_at(edge: GradientEdge) -> tuple[int, ...]:
    """Return the shape of the tensor whose gradient arrives at an edge."""
    metadata: Any = edge.node._input_metadata[edge.output_nr]
    return tuple(metadata.shape)


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "(no tensor)"


@dataclass(frozen=True, eq=False)
class EvaluatedBatch:
    """One batch, run forward with its graph.

    Args:
        loss: The loss, one number.
        walk: The graph below the loss.
        sites: The joins with gradient, forward order.
        inputs: Tensors that the model was called with.
        input_edges: The floating ones among them.
        outputs: Floating tensors of the model's output that the loss reads.
    """

    loss: Tensor
    walk: Walk
    sites: list[JoinSite]
    inputs: list[Tensor]
    input_edges: list[GradientEdge]
    outputs: list[Tensor]


@contextmanager
def evaluating_with_gradients(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode with a gradient in all parts; put everything back at the end."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    has_rnn = any(isinstance(module, nn.RNNBase) for module in model.modules())
    # cuDNN's recurrent kernels have no backward pass in eval mode.
    cudnn = torch.backends.cudnn.flags(enabled=False) if has_rnn else nullcontext()
    with evaluating(model), torch.enable_grad(), cudnn:
        try:
            # Of integer inputs the first tensor with gradient comes from an embedding.
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def evaluate(
    model: nn.Module, inputs: Any, targets: Any, loss: Callable[[Any, Any], Tensor]
) -> EvaluatedBatch:
    """Run a batch forward on copies of its inputs and locate the joins in its graph.

    The model is inside of `evaluating_with_gradients`, outside of wrappers.

    Raises:
        PathsError: If the loss is not one number with a gradient, or joins cannot be seen.
    """
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    args, kwargs = cloned(call_arguments(inputs), requires_grad=True, memo=copies)
    # Before the model runs: it may change its inputs in place.
    input_edges = [GradientEdge(c.grad_fn, 0) for _, c in copies.values() if c.grad_fn]
    output, log = watched_forward(model, args, kwargs)
    check_loss(loss)
    value = loss(output, targets)
    try:
        root = node_of_loss(value)
    except ValueError as error:
        raise PathsError(str(error)) from None
    roots = list(dict.fromkeys([*output_nodes(output), root]))
    plan = joins_in_graph(roots, log)
    if plan.unseen:
        name, reason = plan.unseen[0]
        raise PathsError(
            f"joins inside of {name!r} cannot be seen: {reason}; expected plain eager modules, for "
            "a path through a hidden join has no known length. Run that module without it."
        )
    walk = Walk([root])
    sites = [site for site in plan.sites(roots) or [] if site.node is not None]
    return EvaluatedBatch(
        loss=value,
        walk=walk,
        sites=sites,
        inputs=[leaf for leaf, _ in copies.values()] or list(tensors_in((args, kwargs))),
        input_edges=input_edges,
        outputs=_outputs_read(output, walk),
    )


def _outputs_read(output: Any, walk: Walk) -> list[Tensor]:
    """Return the tensors of an output that are in the graph of the loss."""
    edges = {edge for edges in walk.edges for edge in edges} | {(walk.nodes[0], 0)}
    return [t for t in tensors_in(output) if t.grad_fn and (t.grad_fn, t.output_nr) in edges]


def zeros_at(edges: Sequence[GradientEdge]) -> Tensor:
    """Return zeros for the gradients at some tensors of one shape, ``[edges, …]``."""
    metadata: Any = edges[0].node._input_metadata[edges[0].output_nr]
    shape = (len(edges), *metadata.shape)
    return torch.zeros(shape, dtype=metadata.dtype, device=metadata.device)


@dataclass(frozen=True, eq=False)
class Destination:
    """The tensor at which the gradients of all paths are taken, and the node that made it.

    There are several parts where a join reads several chunks of one tensor.
    """

    name: str
    node: Node
    parts: tuple[GradientEdge, ...]


def destination_of(
    sites: Sequence[JoinSite], inputs: Sequence[GradientEdge], walk: Walk
) -> Destination:
    """Return the fork of the first join: of nested joins the outermost one's, made first.

    Without joins it is the first floating input with a batch axis, or the first embedding.

    Raises:
        PathsError: If that tensor has no gradient.
    """
    if not sites:
        return _start(inputs, walk)
    first = sites[0].fork
    if first is None:
        raise PathsError(
            f"the fork of the first join, {sites[0].join.name!r}, comes from a part that runs "
            "without gradient (no_grad, detach, integers); expected a tensor with gradient. Run "
            "that part with gradient, or measure the part behind it."
        )
    before = set(Walk([first]).nodes)
    forks = [site for site in sites if site.fork in before]
    site = min(forks, key=lambda site: _order(site.fork))
    assert site.fork is not None
    numbers = sorted({number for other in forks for number in _numbers_read(other, site.fork)})
    return Destination(
        f"fork of {site.join.name}",
        site.fork,
        tuple(GradientEdge(site.fork, number) for number in numbers),
    )


def _start(inputs: Sequence[GradientEdge], walk: Walk) -> Destination:
    if inputs:
        return Destination("input", inputs[0].node, (inputs[0],))
    embeddings = [node for node in walk.nodes if type(node).__name__.startswith("Embedding")]
    if not embeddings:
        raise PathsError(
            "the model has no floating input with a batch axis, and no embedding; expected one of "
            "the two, at which its gradient is taken. Pass the tensors that the model reads."
        )
    node = min(embeddings, key=_order)
    return Destination("first embedding", node, (GradientEdge(node, 0),))


def _order(node: Node | None) -> int:
    return node._sequence_nr() if node is not None else -1


def _numbers_read(site: JoinSite, fork: Node) -> set[int]:
    """Return which outputs of the fork a join reads."""
    if site.fork is not fork:
        return set()
    if site.shortcut_edges is None or site.branch_edges is None:
        return set(range(len(fork._input_metadata)))
    return {number for _, _, number in (*site.shortcut_edges, *site.branch_edges)}
