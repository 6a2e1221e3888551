"""Faster ways to evaluate a surface than the plain loop, and the trial that each has to win."""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from analyzer.probes.batch import Batch, channels_last, num_samples, pooled, split
from analyzer.probes.landscape.evaluation import InPlace, Loss, Method, Point, loss_value
from analyzer.probes.landscape.weights import Direction, Moves, Slice

__all__ = ["Checked", "NotStackableError", "Stacked", "Work", "chosen", "method_named"]

PLAIN = "plain"
_GAIN = 1.15  # a method has to be this much faster in the trial: less is noise
_TRIAL_SAMPLES, _UNEVEN_SAMPLES = 512, 128
_TRIAL_SECONDS, _WORTH_SECONDS = 0.05, 0.5
_FEW_POINTS = 12
_MAX_GROUP, _CACHED_ELEMENTS = 8, 300_000


@dataclass
class Work:
    """What is to be evaluated: a module in eval mode, moved along one or two aligned directions."""

    module: nn.Module
    moves: Moves
    directions: Sequence[Direction]
    batches: Sequence[Batch]
    loss: Loss
    batch_norm: str = "keep"

    def plain(self, batches: Sequence[Batch] | None = None) -> InPlace:
        """Return the method that all others are checked against: the batches as they are."""
        data = self.batches if batches is None else batches
        return InPlace(
            self.module, self.moves, data, self.loss, batch_norm=self.batch_norm, name=PLAIN
        )


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
    methods: dict[str, Method] = {PLAIN: work.plain(some)}
    start = time.perf_counter()
    expected = methods[PLAIN].losses(probed)
    rate = (time.perf_counter() - start) / (len(probed) * whole.size)
    is_short = rate * num_samples(work.batches) * share * len(points) < _WORTH_SECONDS
    if is_short or not all(math.isfinite(value) for value in expected):
        return PLAIN
    # Parts of unequal size show a loss that is not a mean over samples.
    uneven = split(whole, _UNEVEN_SAMPLES)[0]
    uneven_loss = work.plain([uneven]).losses(probed[:1])
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
    plain, whole = work.plain(), pooled(work.batches)
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
        return Stacked(work.module, work.moves, batch, work.loss, size)
    if kind == "micro-batches":
        data = split(channels_last(batch), size)
        return InPlace(work.module, work.moves, data, work.loss, name=f"{kind} {size}")
    raise ValueError("it is of another version")


def _agree(found: Sequence[float], expected: Sequence[float], work: Work) -> bool:
    """Whether two methods give the same values up to rounding."""
    kinds = [part.target.dtype for part in work.moves.slices if part.target.is_floating_point()]
    tolerance = max([torch.finfo(kind).eps for kind in kinds], default=1e-7) * 300
    return all(
        abs(a - b) <= tolerance * max(abs(b), 1e-3) for a, b in zip(found, expected, strict=True)
    )


class NotStackableError(Exception):
    """A network that holds more than linear layers and element-wise functions."""


class Stacked:
    """Evaluates a group of points with batched matrix products.

    Where a moved layer reads the data itself, its output is ``(W₀x + b₀) + α D₁x + β D₂x``, and
    those three products are made once for all points. The loss is taken once over all samples of a
    point. ``size`` samples run at once: their activations should stay in the cache.

    Raises:
        NotStackableError: If weights or directions are not finite; later, if the network holds
            something else than linear layers and element-wise functions.
    """

    def __init__(
        self, module: nn.Module, moves: Moves, batch: Batch, loss: Loss, size: int = 512
    ) -> None:
        if not all(part.is_finite for part in moves.slices):
            raise NotStackableError("weights or directions are not finite")
        self._parts, self._target = split(batch, size), batch.target
        self._module, self._moves, self._loss = module, moves, loss
        self._kept: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in self._parts]
        widths = [m.out_features for m in module.modules() if isinstance(m, nn.Linear)]
        fitting = _CACHED_ELEMENTS // (self._parts[0].size * max([1, *widths]))
        self.name, self.group = f"stacked {size}", max(1, min(_MAX_GROUP, fitting))

    def losses(self, points: Sequence[Point]) -> list[float]:
        """Return the loss at each of some points."""
        self._moves.back()
        outputs = []
        for part, kept in zip(self._parts, self._kept, strict=True):
            given = part.copied()
            with _AtPoints(self._moves.slices, points, kept) as stacks:
                output = self._module(*given.args, **given.kwargs)
            if not stacks.holds(output):
                raise NotStackableError("the output does not depend on what moves")
            outputs.append(output)
        scores, target = torch.cat(outputs, dim=1), self._target
        if _is_cross_entropy(self._loss) and _are_classes(scores, target):
            return _cross_entropies(scores, target).tolist()
        return [float(loss_value(self._loss, one, target)) for one in scores]


class _AtPoints(TorchFunctionMode):
    """Runs a forward pass at several points: what depends on moved weights is a stack.

    A stack is ``[points, batch, features]``; where its form is read, it is that of one point.
    ``kept`` fills with the products of layers that read the data itself, by weight.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        points: Sequence[Point],
        kept: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__()
        self._slices = {id(part.parameter): part for part in slices}
        like = slices[0].target
        rows = [(1.0, alpha, beta) for alpha, beta in points]
        self._points = torch.tensor(rows, dtype=like.dtype, device=like.device)
        self._kept = kept
        self._stacks: dict[int, Tensor] = {}  # by id, which counts as long as its tensor lives

    def holds(self, value: Any) -> bool:
        """Whether a value is a stack."""
        return id(value) in self._stacks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch on stacks, or on values that all points share."""
        kwargs = kwargs or {}
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func in _FORM:
            return func(*(arg[0] if self.holds(arg) else arg for arg in args), **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(id(tensor) in self._slices for tensor in tensors):
            raise NotStackableError("a weight moves outside of linear layers")
        stacks = [tensor for tensor in tensors if self.holds(tensor)]
        if not stacks:
            return func(*args, **kwargs)
        is_norm = func is functional.batch_norm and self.holds(args[0])
        if is_norm and not kwargs.get("training", args[5] if len(args) > 5 else False):
            rows = args[0].flatten(0, 1)
            return self._stack(func(rows, *args[1:], **kwargs).view_as(args[0]))
        is_wide = any(t.dim() >= stacks[0].dim() for t in tensors if not self.holds(t))
        if func not in _ELEMENTWISE or is_wide:
            raise NotStackableError(f"{func.__name__} is neither linear nor element-wise")
        return self._stack(func(*args, **kwargs))

    def _stack(self, tensor: Tensor) -> Tensor:
        self._stacks[id(tensor)] = tensor
        return tensor

    def _linear(self, given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return a linear layer's output, from data that all points share or from their own."""
        moves = id(weight) in self._slices or id(bias) in self._slices
        if given.dim() != 2 + self.holds(given):
            raise NotStackableError("a linear layer reads more than one axis")
        if not self.holds(given):
            return (
                self._of_shared(given, weight, bias)
                if moves
                else functional.linear(given, weight, bias)
            )
        if not moves:
            return self._stack(functional.linear(given, weight, bias))
        matrices = self._at_points(weight).transpose(1, 2)
        if bias is None:
            return self._stack(torch.bmm(given, matrices))
        return self._stack(torch.baddbmm(self._at_points(bias)[:, None], given, matrices))

    def _of_shared(self, data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        known = self._kept.get(id(weight))
        if known is None or not torch.equal(known[0], data):
            weights = self._basis(weight)
            biases = [None] * 3 if bias is None else self._basis(bias)
            parts = [functional.linear(data, *pair) for pair in zip(weights, biases, strict=True)]
            known = self._kept[id(weight)] = data.clone(), torch.stack(parts).flatten(1)
        return self._stack((self._points @ known[1]).view(len(self._points), len(data), -1))

    def _at_points(self, parameter: Tensor) -> Tensor:
        """Return a parameter at each point, also one that does not move."""
        if id(parameter) not in self._slices:
            return parameter.detach().expand(len(self._points), *parameter.shape)
        basis = torch.stack(self._basis(parameter)).flatten(1)
        return (self._points @ basis).view(len(self._points), *parameter.shape)

    def _basis(self, parameter: Tensor) -> list[Tensor]:
        """Return a parameter and its step along either direction."""
        part = self._slices.get(id(parameter))
        if part is None:
            return [parameter.detach(), *[torch.zeros_like(parameter)] * 2]
        return [part.origin, part.first, part.second]


def _functions(names: str, *owners: Any) -> set[Callable[..., Any]]:
    return {getattr(o, name) for o in owners for name in names.split() if hasattr(o, name)}


_ELEMENTWISE = (
    _functions(
        "relu relu_ relu6 leaky_relu elu selu celu gelu silu mish tanh sigmoid softplus softsign "
        "hardtanh hardswish logsigmoid dropout",
        functional,
    )
    | _functions("relu relu_ tanh sigmoid add sub mul div neg sin cos exp", torch, Tensor)
    | _functions("__add__ __sub__ __mul__ __truediv__ __neg__ __rsub__", Tensor)
    | _functions("add sub mul truediv neg", operator)
)
_FORM = _functions("dim size is_floating_point", Tensor) | {
    getattr(Tensor, name).__get__
    for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_cuda")
}


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
