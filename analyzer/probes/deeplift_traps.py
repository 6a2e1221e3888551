"""Layer calls that Captum's DeepLift gets wrong: those that work in place, or of reused modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from analyzer.probes.activations import LayerOutput

__all__ = ["deeplift_traps"]


def deeplift_traps(layers: Sequence[LayerOutput]) -> dict[str, str]:
    """Return the layer calls whose activation no hook on a module sees as it was, with the reason.

    Captum's DeepLift keeps one input and one output per module, and reads them after the pass: it
    fails, or is silently wrong, where a module is called several times or an output overwritten.

    Args:
        layers: The calls of one forward pass, with values.

    Returns:
        Reasons by layer name, in call order.
    """
    times_called = Counter(layer.module for layer in layers)
    found = {}
    for layer in layers:
        if (times := times_called[layer.module]) > 1:
            found[layer.name] = f"its module is called {times} times; Captum sees one"
        elif getattr(layer.module, "inplace", False) is True:
            found[layer.name] = "its module works in place"
        elif layer.value is not None and not _is_same(layer.tensor.detach(), layer.value):
            found[layer.name] = "its output is changed in place afterwards"
    return found


def _is_same(tensor: Tensor, value: Tensor) -> bool:
    return bool(((tensor == value) | (tensor.isnan() & value.isnan())).all())
