"""What the hooks keep: the compiled classes of ``_scan`` where it was built, else those here.

Also where the units of a layer's output are, and the room for the frames that hooks add to a
program's stack while a model runs.
"""

import contextlib
import math
import sys
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from analyzer.recording.moments import Activation, Gradient, none_dead

__all__ = ["IS_COMPILED", "Call", "Gate", "Headroom", "Layer", "look_at", "parameters", "prepare"]


def prepare(*places: Any) -> bool:
    """Return whether the classes here have quick ways to take a tensor: no."""
    return False


def parameters(tensors: Sequence[Tensor]) -> tuple[list[float | None], list[Any]]:
    """Return norms and gradient rows of parameters: None, since nothing was measured yet."""
    return [None] * len(tensors), [None] * len(tensors)


class Layer:
    """A module whose calls are layers, and what its last output looked like.

    Attributes:
        shape: The shape that the other attributes describe.
        axis: The axis of units in it; None where there is none.
        none_dead: The mask of its units of which none is dead.
        further: What stands for the further tensors, where the output was a tuple of tensors that
            all count; else None.
        is_ready: Whether a tensor of that shape can be taken without asking anyone.
        before: Elements along the axes before that one; ``after``: along those after it.
        units: How many units there are; 0 without an axis.
    """

    __slots__ = (
        "after",
        "axis",
        "before",
        "further",
        "is_ready",
        "module",
        "none_dead",
        "shape",
        "site",
        "units",
    )

    def __init__(self) -> None:
        self.module: weakref.ref[nn.Module] | None = None
        self.site: Any = None
        self.shape: tuple[int, ...] | None = None
        self.axis: int | None = None
        self.none_dead: Any = None
        self.further: tuple[Layer, ...] | None = None
        self.is_ready = False
        self.before = self.units = self.after = 0


class Gate:
    """What decides whether a call or a gradient is recorded.

    Attributes:
        layers: The layers by the ``id`` of their module, as ``roots`` the root models.
        used: The invocations that the backward pass has met.
        current: The forward pass that is running.
        listening: Whether this step is recorded.
        keeps_graph: Whether another pass over the same graph may follow.
        discovering: Whether graphs are looked at.
        watches_all: Whether somebody wants to know of every call.
        own_modes: How many modes of our own see the functions that run now.
        thread: The thread whose training is recorded; 0 where it may be any.
        seconds: What the hooks cost.
    """

    def __init__(self) -> None:
        self.layers: dict[int, Layer] = {}
        self.roots: dict[int, weakref.ref[nn.Module]] = {}
        self.used: dict[Any, None] = {}
        self.current: Any = None
        self.listening = self.in_backward = self.keeps_graph = False
        self.discovering = self.watches_all = False
        self.own_modes = 0
        self.thread = 0
        self.seconds = 0.0

    def take(self, module: nn.Module, output: Any) -> bool:
        """Take the statistics of a module's output; False where that is still to be done."""
        return not (self.watches_all or id(module) in self.layers or id(module) in self.roots)

    def take_gradient(self, call: "Call", gradient: Tensor) -> None:
        """Take the statistics of the gradient that arrived at the output of a call."""
        raise NotImplementedError


class Call:
    """One call of a layer in one invocation, and the gradient hook of its output tensor.

    As a hook it is held by the autograd graph, and so keeps its invocation alive as long as a
    backward pass may still come.

    Attributes:
        gradient: The row of the gradient, once it has arrived.
        kept: That gradient, where another pass over the same graph may add to it.
        node: The node of the tensor, until its depth is known.
        layer: The layer that it is a call of; -1 until a backward pass has ended.
        step: The step that has its activation; -1 before.
        is_pooled: Whether nothing of it waits for the end of a backward pass.
    """

    __slots__ = (
        "activation",
        "capture",
        "depth",
        "forward_depth",
        "gradient",
        "invocation",
        "is_pooled",
        "kept",
        "layer",
        "node",
        "shape",
        "site",
        "step",
    )

    # torch warns about hooks on a tensor that is saved, unless they say that they are not saved.
    __torch_unserializable__ = True

    def __init__(
        self, capture: Gate, invocation: Any, site: Any, activation: Any, shape: tuple[int, ...]
    ) -> None:
        self.capture, self.invocation, self.site = capture, invocation, site
        self.activation, self.shape = activation, shape
        self.gradient: Any = None
        self.kept: Tensor | None = None
        self.node: Any = None
        self.forward_depth = self.depth = 0
        self.layer = self.step = -1
        self.is_pooled = False

    def __call__(self, gradient: Tensor) -> None:
        """Take the statistics of the gradient that arrived at the layer's output."""
        if self.capture.in_backward and self.invocation is not None:
            self.capture.take_gradient(self, gradient)


_CHANNEL_NORMS = (_NormBase, nn.GroupNorm, nn.LocalResponseNorm)
_FEATURE_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.MultiheadAttention,
)
_POOLS = ("Pool1d", "Pool2d", "Pool3d")
_MIXES_UNITS = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.Fold, nn.Unfold)


def _own_unit_axis(module: nn.Module) -> int | None:
    """Return the axis of channels or features that the kind of module defines, if it does."""
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)
    if isinstance(module, _CHANNEL_NORMS):
        return 1
    if isinstance(module, _FEATURE_LAYERS) or type(module).__name__ == "Conv1D":
        return -1
    name = type(module).__name__
    return next((-1 - int(pool[-2]) for pool in _POOLS if name.endswith(pool)), None)


def look_at(
    layer: Layer, module: nn.Module, shape: torch.Size, axes: dict[torch.Size, int | None]
) -> None:
    """Note where the units of outputs of this shape are.

    Args:
        layer: Gets what is found; one of a further output tensor has no units.
        module: The module of the layer.
        shape: That of its output.
        axes: Where the units of the last outputs of other layers were, by their shape.
    """
    axis, is_further = _own_unit_axis(module), layer.site.number < 0
    if axis is None and not isinstance(module, _MIXES_UNITS):
        # That of the last output of this shape; else that of a table of features.
        axis = axes.get(shape, -1 if len(shape) == 2 else None)
    if is_further or (axis is not None and not -len(shape) <= axis < len(shape)):
        axis = None
    if not is_further:
        axes[shape] = axis
    layer.shape, layer.axis = shape, axis
    layer.units = 0
    if axis is not None:
        place = axis % len(shape)
        layer.before, layer.units = math.prod(shape[:place]), shape[place]
        layer.after = math.prod(shape[place + 1 :])
        layer.none_dead = none_dead(layer.units)


# Of a call of a module three frames are torch's and the program's, and the one that calls hooks is
# there because of ours; the hooks themselves go this deep.
_FRAMES = 60


class Headroom:
    """A recursion limit that is higher while a model runs: a model as deep as it allows still does.

    A program that reads or sets its limit by then sees nothing of it, and keeps what it sets.
    """

    def __init__(self) -> None:
        self._before = self._raised = 0

    def make(self) -> None:
        """Raise the limit by what the hooks may need."""
        limit = _real(sys.getrecursionlimit)()
        if limit != self._raised:  # else an interrupt has left it so
            self._before, self._raised = limit, limit + limit // 3 + _FRAMES
            _real(sys.setrecursionlimit)(self._raised)

    def give_back(self) -> None:
        """Put the limit back, unless the program has set another one."""
        if self._raised and _real(sys.getrecursionlimit)() == self._raised:
            _real(sys.setrecursionlimit)(self._before)
        self._raised = 0


def _real(function: Any) -> Any:
    """The function of the interpreter, where a program that is run here has another one."""
    return getattr(function, "__wrapped__", function)


IS_COMPILED = False
with contextlib.suppress(ImportError, AttributeError):
    from analyzer.recording import _scan

    # One that was built from other sources has other moments.
    IS_COMPILED = (Activation._fields, Gradient._fields) == (_scan.ACTIVATION, _scan.GRADIENT)
if IS_COMPILED and not TYPE_CHECKING:  # for a type checker the two are the same
    from analyzer.recording._scan import Call, Gate, Layer, parameters, prepare
