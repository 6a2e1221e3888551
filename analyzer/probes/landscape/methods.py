"""Ways to evaluate a surface, by moving the model's own weights or faster, and their trial."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from analyzer.joins.model_state import unwrapped
from analyzer.probes import activations
from analyzer.probes.batch import Batch, channels_last, num_samples, pooled, split
from analyzer.probes.landscape.weights import AtPoints, Direction, Moves, NotStackableError, Point

__all__ = [
    "BATCH_NORM",
    "Checked",
    "InPlace",
    "Loss",
    "Method",
    "Stacked",
    "Work",
    "chosen",
    "evaluating",
    "method_named",
]

Loss = Callable[[Any, Any], Any]
BATCH_NORM = ("keep", "recompute")
PLAIN = "plain"
_GAIN = 1.15  # a method has to be this much faster in the trial: less is noise
_TRIAL_SAMPLES, _UNEVEN_SAMPLES = 512, 128
_TRIAL_SECONDS, _WORTH_SECONDS = 0.05, 0.5
_FEW_POINTS = 12
_MAX_GROUP, _CACHED_ELEMENTS = 8, 300_000


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
    with activations.evaluating(inner), torch.no_grad():
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


@dataclass
class Work:
    """What is to be evaluated: a module in eval mode, moved along one or two aligned directions.

    ``batch_norm="recompute"`` estimates the running statistics at every point, as the plain
    averages over the batches.
    """

    module: nn.Module
    moves: Moves
    directions: Sequence[Direction]
    batches: Sequence[Batch]
    loss: Loss
    batch_norm: str = "keep"


class InPlace:
    """Moves the weights of a module and runs it over batches, one point after the other.

    The plain method, which all others are checked against, has the batches as they are.
    """

    group = 1

    def __init__(self, work: Work, batches: Sequence[Batch], name: str = PLAIN) -> None:
        self.name = name
        self._module, self._moves, self._loss = work.module, work.moves, work.loss
        self._batches = batches
        self._recompute = work.batch_norm == "recompute"
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
                for batch in map(Batch.copied, self._batches):
                    self._module(*batch.args, **batch.kwargs)
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


class Checked:
    """A fast method; the model itself, and what is not finite, is left to the plain one.

    So (0, 0) is the model's loss bit for bit, and an overflow inside a method never counts.
    """

    def __init__(self, fast: Method, plain: Method) -> None:
        self.name, self.group = fast.name, fast.group
        self._fast, self._plain = fast, plain

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Return the loss at each point."""
        values = self._fast.losses(points)
        for place, (point, value) in enumerate(zip(points, values, strict=True)):
            if point == (0, 0) or not math.isfinite(value):
                values[place] = self._plain.losses([point])[0]
        return values


def chosen(work: Work, points: Sequence[Point], share: float = 1.0) -> str:
    """Return the name of the method that is fastest in a trial; the plain loop unless beaten.

    The trial takes two points of the grid and the first batches, up to 512 samples where batches
    are smaller. A method that raises, or differs from the plain loop by more than rounding, is out;
    one that is not 1.15 times as fast is not worth its risk. Where the `share` of the points that
    will be evaluated takes less than half a second in all, there is no trial.
    """
    if work.batch_norm != "keep" or len(points) <= _FEW_POINTS or pooled(work.batches) is None:
        return PLAIN
    some: list[Batch] = []
    while num_samples(some) < _TRIAL_SAMPLES and len(some) < len(work.batches):
        some.append(work.batches[len(some)])
    whole = pooled(some)
    assert whole is not None  # all of them can be pooled
    probed = [points[len(points) // 3], points[len(points) // 2]]
    methods: dict[str, Method] = {PLAIN: InPlace(work, some)}
    start = time.perf_counter()
    expected = methods[PLAIN].losses(probed)
    rate = (time.perf_counter() - start) / (len(probed) * whole.size)
    is_short = rate * num_samples(work.batches) * share * len(points) < _WORTH_SECONDS
    if is_short or not all(math.isfinite(value) for value in expected):
        return PLAIN
    # Parts of unequal size show a loss that is not a mean over samples.
    uneven = split(whole, _UNEVEN_SAMPLES)[0]
    uneven_loss = InPlace(work, [uneven]).losses(probed[:1])
    for name in _candidates(some):
        kind, _, size = name.rpartition(" ")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cut = _build(work, kind, uneven, max(1, uneven.size * 2 // 5))
                method = _build(work, kind, whole, int(size))
                if _agree(cut.losses(probed[:1]), uneven_loss, work) and _agree(
                    method.losses(probed), expected, work
                ):
                    methods[name] = method
        except Exception:  # a method is an offer; the plain loop will say what is wrong
            continue
    times = _times(methods, probed)
    best = min(times, key=lambda name: times[name])
    return best if times[best] * _GAIN <= times[PLAIN] else PLAIN


def _candidates(batches: Sequence[Batch]) -> list[str]:
    """Points at once; batches of a size at which activations of a convolution stay in the cache."""
    has_images = any(isinstance(t, Tensor) and t.dim() > 3 for t in batches[0].args)
    size = 64 if has_images else 512
    cut = [f"micro-batches {size}"] if len(batches) > 1 or size < batches[0].size else []
    return ["stacked 512", *cut]


def _times(methods: dict[str, Method], points: Sequence[Point]) -> dict[str, float]:
    """Return the shortest time of each method for equally many points, taken in turns."""
    count = max(method.group for method in methods.values())
    many = [points[k % len(points)] for k in range(count)]
    times, begin = dict.fromkeys(methods, math.inf), time.perf_counter()
    for _ in range(9):
        for name, method in methods.items():
            start = time.perf_counter()
            for k in range(0, count, method.group):
                method.losses(many[k : k + method.group])
            times[name] = min(times[name], time.perf_counter() - start)
        if len(methods) == 1 or time.perf_counter() - begin > _TRIAL_SECONDS:
            break
    return times


def method_named(work: Work, name: str) -> Method:
    """Return the method of a name that `chosen` gave."""
    plain, whole = InPlace(work, work.batches), pooled(work.batches)
    if name == PLAIN or whole is None:
        return plain
    kind, _, size = name.rpartition(" ")
    try:
        return Checked(_build(work, kind, whole, int(size)), plain)
    except (ValueError, NotStackableError) as error:
        raise ValueError(
            f"there is no method {name!r} for this model ({error}); delete the file and restart"
        ) from error


def _build(work: Work, kind: str, batch: Batch, size: int) -> Method:
    if kind == "stacked":
        return Stacked(work, batch, size)
    if kind == "micro-batches":
        return InPlace(work, split(channels_last(batch), size), f"{kind} {size}")
    raise ValueError("it is of another version")


def _agree(found: Sequence[float], expected: Sequence[float], work: Work) -> bool:
    """Whether two methods give the same values up to rounding."""
    kinds = [part.target.dtype for part in work.moves.slices if part.target.is_floating_point()]
    tolerance = max([torch.finfo(kind).eps for kind in kinds], default=1e-7) * 300
    return all(
        abs(a - b) <= tolerance * max(abs(b), 1e-3) for a, b in zip(found, expected, strict=True)
    )


class Stacked:
    """Evaluates a group of points with batched matrix products.

    Where a moved layer reads the data itself, its output is ``(W₀x + b₀) + α D₁x + β D₂x``, and
    those three products are made once for all points. The loss is taken once over all samples of a
    point. ``size`` samples run at once: their activations should stay in the cache.

    Raises:
        NotStackableError: If weights or directions are not finite; later, if the network holds
            something else than linear layers and element-wise functions.
    """

    def __init__(self, work: Work, batch: Batch, size: int = 512) -> None:
        if not all(part.is_finite for part in work.moves.slices):
            raise NotStackableError("weights or directions are not finite")
        self._parts, self._target = split(batch, size), batch.target
        self._module, self._moves, self._loss = work.module, work.moves, work.loss
        self._kept: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in self._parts]
        widths = [m.out_features for m in work.module.modules() if isinstance(m, nn.Linear)]
        fitting = _CACHED_ELEMENTS // (self._parts[0].size * max([1, *widths]))
        self.name, self.group = f"stacked {size}", max(1, min(_MAX_GROUP, fitting))

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Return the loss at each of some points."""
        self._moves.back()
        outputs = []
        for part, kept in zip(self._parts, self._kept, strict=True):
            given = part.copied()
            with AtPoints(self._moves.slices, points, kept) as stacks:
                output = self._module(*given.args, **given.kwargs)
            if not stacks.holds(output):
                raise NotStackableError("the output does not depend on what moves")
            outputs.append(output)
        scores, target = torch.cat(outputs, dim=1), self._target
        if _is_cross_entropy(self._loss) and _are_classes(scores, target):
            return _cross_entropies(scores, target).tolist()
        return [float(loss_value(self._loss, one, target)) for one in scores]


def _is_cross_entropy(loss: Loss) -> bool:
    """Whether a loss is the plain mean cross entropy of torch."""
    if loss is functional.cross_entropy:
        return True
    if type(loss) is not nn.CrossEntropyLoss:
        return False
    return loss.weight is None and loss.reduction == "mean" and loss.label_smoothing == 0


def _are_classes(output: Tensor, target: Any) -> bool:
    is_index = isinstance(target, Tensor) and target.dtype == torch.int64 and target.dim() == 1
    return is_index and output.dim() == 3 and bool((target >= 0).all())


def _cross_entropies(scores: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy at each point, ``mean log Σ exp(z − z_target)``.

    Five times as fast as torch's own for a few classes on the CPU, and as exact: for a right answer
    the largest exponent is 0.
    """
    index = target.expand(len(scores), -1)[..., None]
    return torch.logsumexp(scores - scores.gather(-1, index), -1).double().mean(-1)
