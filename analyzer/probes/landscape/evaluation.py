"""The loss of a model at points of a plane, by moving its own weights; the reference method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from analyzer.joins.model_state import preserve_state, unwrapped
from analyzer.probes.batch import Batch, num_samples
from analyzer.probes.landscape.weights import Moves

__all__ = ["BATCH_NORM", "InPlace", "Loss", "Method", "Point", "evaluating", "loss_value"]

Loss = Callable[[Any, Any], Any]
Point = tuple[float, float]
BATCH_NORM = ("keep", "recompute")


class Method(Protocol):
    """A way to compute the losses at some points."""

    name: str
    group: int

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Return the loss at each of at most `group` points."""
        ...


@contextmanager
def evaluating(model: nn.Module, moves: Moves) -> Iterator[nn.Module]:
    """Give the model in eval mode without gradients; afterwards everything is as it was.

    Weights come back from a copy, bit for bit, also after an error; buffers, modes and the random
    state as well. Not inference mode: a module that keeps a tensor of its forward pass (a mask, a
    table of angles) would keep one that no later training can use.
    """
    inner = unwrapped(model)
    with torch.inference_mode(False), preserve_state(inner), torch.no_grad():
        inner.eval()
        try:
            yield inner
        finally:
            moves.back()


def loss_value(loss: Loss, output: Any, target: Any) -> Tensor | float:
    """Return the loss of one batch, as a tensor of one number or as a number."""
    value = loss(output, target)
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().double().reshape(())
    if isinstance(value, int | float):
        return float(value)
    seen = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
    raise ValueError(
        f"the loss has {seen}, expected one number; let loss(output, target) return the mean"
    )


class InPlace:
    """Moves the weights of a module and runs it over batches, one point after the other.

    The module is in the mode in which it is to be evaluated. ``batch_norm="recompute"`` estimates
    the running statistics at every point, as the plain averages over the batches.
    """

    group = 1

    def __init__(
        self,
        module: nn.Module,
        moves: Moves,
        batches: Sequence[Batch],
        loss: Loss,
        *,
        batch_norm: str = "keep",
        name: str = "in place",
    ) -> None:
        self.name = name
        self._module, self._moves, self._batches, self._loss = module, moves, batches, loss
        self._recompute = batch_norm == "recompute"
        # Every point sees the same draws, should the model or the loss draw any.
        self._random_state = torch.get_rng_state()
        self._writes_inputs: bool | None = None

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Return the loss at each point: the mean over the batches, weighted by their sizes."""
        return [self._loss_at(alpha, beta) for alpha, beta in points]

    def _loss_at(self, alpha: float, beta: float) -> float:
        self._moves.to(alpha, beta)
        torch.set_rng_state(self._random_state)
        if self._recompute:
            with _averaging(self._module):
                for batch in self._batches:
                    self._output(batch)
        if len(self._batches) == 1:
            return float(self._batch_loss(self._batches[0]))
        total: Tensor | float = 0.0
        for batch in self._batches:
            total = total + self._batch_loss(batch) * batch.size
        return float(total) / num_samples(self._batches)

    def _batch_loss(self, batch: Batch) -> Tensor | float:
        if self._writes_inputs is False:
            output = self._module(*batch.args, **batch.kwargs)
            return loss_value(self._loss, output, batch.target)
        copy = batch.copied()
        value = loss_value(self._loss, self._module(*copy.args, **copy.kwargs), copy.target)
        self._writes_inputs = bool(self._writes_inputs) or copy.is_written()
        return value

    def _output(self, batch: Batch) -> Any:
        copy = batch.copied()
        return self._module(*copy.args, **copy.kwargs)


@contextmanager
def _averaging(module: nn.Module) -> Iterator[None]:
    """Let batch norms re-estimate their statistics as plain averages over the next batches."""
    norms = [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False
