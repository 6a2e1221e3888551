"""Where the units of a layer's output are: its channels or features."""

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from analyzer.recording.hook_classes import Layer
from analyzer.recording.statistics import none_dead

__all__ = ["look_at"]

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
