"""Which elements of a tensor belong to which sample of a batch, asked of the gradient itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from analyzer.errors import AnalyzerError

__all__ = ["Layout", "PathsError", "batch_size", "layouts_of", "rows", "with_batch_axis"]


class PathsError(AnalyzerError, ValueError):
    """A model, batch or loss whose path-length spectrum cannot be exact."""


class Layout(NamedTuple):
    """Where the samples of a tensor are.

    Args:
        axis: The axis that counts samples, alone or merged with another one.
        is_minor: Whether the sample is the faster part of a merged axis.
    """

    axis: int
    is_minor: bool = False


def batch_size(inputs: Iterable[Tensor], outputs: Iterable[Tensor], batch_dim: int) -> int:
    """Return the number of samples: the size that inputs and outputs share along `batch_dim`.

    Inputs without batch axis, such as a mask for all samples, have another size and do not count.

    Args:
        inputs: Tensors that the model was called with.
        outputs: Tensors of its output that the loss reads.
        batch_dim: The batch axis.

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
    shapes = [(edge, _shape(edge)) for edge in edges]
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
    over, because 0 · ∞ is NaN in a sample that nothing reached.

    Args:
        outputs: Tensors of the model's output that the loss reads; those without batch axis (loss
            terms) are not asked.
        inputs: Floating inputs with batch axis, as edges of the graph.
        parts: The tensors, as edges of the graph.
        num_samples: Samples of the batch.
        batch_dim: The batch axis of inputs and outputs.

    Returns:
        One layout a part.

    Raises:
        PathsError: If samples are mixed, or a part has no axis that keeps them apart.
    """
    if num_samples == 1:
        return [Layout(0) for _ in parts]
    asked = [t for t in outputs if t.dim() > batch_dim and t.shape[batch_dim] % num_samples == 0]
    found = [_candidates(_shape(edge), num_samples, batch_dim) for edge in parts]
    for sample in (0, num_samples - 1) if asked else ():
        gradients = _gradients_of_sample(asked, [*inputs, *parts], sample, num_samples, batch_dim)
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


def _shape(edge: GradientEdge) -> tuple[int, ...]:
    metadata: Any = edge.node._input_metadata[edge.output_nr]
    return tuple(metadata.shape)


def _shapes(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "(no tensor)"
