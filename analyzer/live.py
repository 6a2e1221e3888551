"""Measurements on a live model, as data frames; nothing of the model is changed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from analyzer.joins import splits_of_model

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["gradient_splits"]


def gradient_splits(
    model: nn.Module, inputs: Any, targets: Any, loss: Callable[[Any, Any], Tensor]
) -> "pd.DataFrame":
    """Return how the gradient splits at every residual join of a model, for one batch.

    At a join ``z = s + b`` with fork ``x``: ``g_s`` is the part of ∂L/∂x that arrives through the
    shortcut, ``g_b`` the part through the branch, each taken at the edges by which it reads the
    fork. ``shortcut_share = (ss + sb) / (ss + 2 sb + bb)`` of their dot products.

    Args:
        model: Any eager model; weights, buffers, modes, ``.grad``, hooks and the random state stay
            as they are. It is used in the mode it is in.
        inputs: Its input; a tuple for several, a dict for keyword arguments.
        targets: What ``loss`` compares the output with.
        loss: ``loss(output, target)``, the mean over the batch.

    Returns:
        One row a join, in forward order: ``join``, then the columns of ``splits``; null where the
        backward pass computed nothing.

    Reference:
        He et al. (2016), Identity mappings in deep residual networks, equation 5.
    """
    import pandas as pd

    return pd.DataFrame(splits_of_model(model, inputs, targets, loss))
