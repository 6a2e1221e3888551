"""The straight way from a baseline of zero to the inputs of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from analyzer.errors import AnalyzerError
from analyzer.joins.calls import CallLog, tensors_in
from analyzer.joins.find import call_arguments, watched_forward
from analyzer.probes.activations import (
    expect_samples_apart,
    main_output,
    norm_over_batch,
    num_samples,
)

__all__ = ["InputPath", "Target", "chosen_target", "flattened", "input_path"]


@dataclass(frozen=True, eq=False)
class InputPath:
    """A model, outside of wrappers, as a function of its continuous inputs, whose baseline is zero.

    Args:
        args: Arguments of its call.
        ends: What runs from zero to its value: floating inputs with the sample axis; for token
            models the output of each embedding call that reads an input.
        embeddings: Per end the embedding module and the number of its call, None for an input.
        size: Samples of the batch.
    """

    model: nn.Module
    args: tuple[tuple[Any, ...], dict[str, Any]]
    ends: list[Tensor]
    embeddings: list[tuple[nn.Module, int] | None]
    size: int

    def at(self, fractions: Sequence[float], start: int, stop: int) -> list[Tensor]:
        """Return the points of some samples at fractions of the way, one after the other."""
        parts = [end[start:stop] for end in self.ends]
        return [torch.cat([part * fraction for fraction in fractions]) for part in parts]

    def run(self, points: Sequence[Tensor], start: int, stop: int) -> tuple[Tensor, Any, CallLog]:
        """Run the model at points of some samples; return main output, output and call log."""
        with self._arguments(points, start, stop) as (args, kwargs):
            output, log = watched_forward(self.model, args, kwargs)
        return main_output(output), output, log

    def output_at(self, points: Sequence[Tensor]) -> Tensor:
        """Return the main output at points of all samples, flattened; faster than `run`."""
        with self._arguments(points, 0, self.size) as (args, kwargs):
            return flattened(main_output(self.model(*args, **kwargs), needs_gradient=False))

    @contextmanager
    def _arguments(
        self, points: Sequence[Tensor], start: int, stop: int
    ) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Give the arguments at some points; embedding calls inside return points, too."""
        by_module: dict[nn.Module, dict[int, Tensor]] = {}
        repeats = len(points[0]) // (stop - start)
        # Copies, so that the model may change its inputs in place.
        given = [point.clone() for point in points]
        ends = {id(end): new for end, new in zip(self.ends, given, strict=True)}

        def filled(leaf: Any) -> Any:
            if id(leaf) in ends:
                return ends[id(leaf)]
            if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == self.size:
                return leaf[start:stop].repeat(repeats, *[1] * (leaf.dim() - 1))
            return leaf

        for place, point in zip(self.embeddings, given, strict=True):
            if place is not None:
                by_module.setdefault(place[0], {})[place[1]] = point
        with ExitStack() as hooks:
            for module, outputs in by_module.items():
                hook = _replacing(outputs)
                hooks.enter_context(module.register_forward_hook(hook, prepend=True))
            yield tree_map(filled, self.args)


def input_path(model: nn.Module, inputs: Any) -> InputPath:
    """Return the way from zero to a model's inputs; the model is outside of wrappers.

    Raises:
        ValueError: If the batch is empty.
        AnalyzerError: If no input is floating, and no ``nn.Embedding`` reads one; or if the model
            mixes the samples of a batch.
    """
    args = call_arguments(inputs)
    size = num_samples(args)
    if size == 0:
        raise ValueError("the inputs hold 0 samples; expected at least 1. Give another batch.")
    if (norm := norm_over_batch(model)) is not None:
        raise AnalyzerError(
            f"the attribution of {type(model).__name__!r} cannot be computed sample by sample: "
            f"batch norm {norm!r} keeps no running statistics, so that the points on the way would "
            "mix; expected track_running_stats=True"
        )
    expect_samples_apart(model, *args, "the attribution")
    tensors = [t.detach() for t in tensors_in(args)]
    by_id = {id(t): d for t, d in zip(tensors_in(args), tensors, strict=True)}
    args = tree_map(lambda leaf: by_id.get(id(leaf), leaf), args)
    ends = [t for t in tensors if t.is_floating_point() and t.dim() and len(t) == size]
    places: list[tuple[nn.Module, int] | None] = [None] * len(ends)
    tokens = [t for t in tensors if not t.is_floating_point() and t.dim() and len(t) == size]
    if tokens:
        for module, number, value in _embedding_calls(model, args, tokens):
            ends.append(value)
            places.append((module, number))
    if not ends:
        raise AnalyzerError(
            f"the inputs of {type(model).__name__!r} cannot be scaled to zero: none is floating, "
            "and no nn.Embedding reads one; expected one of the two. Give floating inputs (for "
            "instance inputs_embeds)."
        )
    return InputPath(model, args, ends, places, size)


def _replacing(points: dict[int, Tensor]) -> Any:
    """Return a forward hook that replaces the outputs of some calls, by their number."""
    calls = iter(range(1 << 30))

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        return points.get(next(calls))

    return replace


def _embedding_calls(
    model: nn.Module, args: Any, tokens: list[Tensor]
) -> list[tuple[nn.Module, int, Tensor]]:
    """Return the embedding calls that read an input as it is: module, call number, output."""
    found: list[tuple[nn.Module, int, Tensor]] = []
    times_called: dict[nn.Module, int] = {}

    def note(module: nn.Module, read: Any, output: Tensor) -> None:
        number = times_called.get(module, 0)
        times_called[module] = number + 1
        if any(
            ids.shape == t.shape and bool((ids == t).all())
            for ids in tensors_in(read)
            for t in tokens
        ):
            found.append((module, number, output.detach().clone()))

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hooks.enter_context(module.register_forward_hook(note))
        model(*args[0], **args[1])
    return found


@dataclass(frozen=True, eq=False)
class Target:
    """The output that is explained: each sample's place in the flattened output, and why."""

    index: Tensor
    said: str


def chosen_target(target: Any, output: Tensor) -> Target:
    """Return the output to explain, as a place in each sample's flattened output.

    ``target`` is None for the predicted class (of the last position, for outputs ``[batch,
    position, class]``); a class; a class per sample; or a tuple of indices of the axes behind the
    first, as in Captum.

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
            f"the target {target!r} is not a class of an output of shape {[size, *shape]}; "
            f"expected 0 to {last.shape[1] - 1}, or a tuple of {len(shape)} indices"
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
