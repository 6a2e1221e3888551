"""What is missing from a recording: trained parameters whose module has no layer, and why."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from analyzer.joins.calls import is_compiled_itself
from analyzer.recording.hooks import Capture
from analyzer.recording.layers import Layers
from analyzer.recording.names import clean_path, in_words, unwrapped
from analyzer.recording.parameters import ParameterRow, Parameters

__all__ = ["Gaps"]

_COMPILED = "it is compiled, so its modules are not called"
_SCRIPTED = "it is scripted, so its modules are not called"
_UNCALLED = (
    "not called as modules (their `forward` is called directly, or a function uses their weights), "
    "so that only their parameters have rows"
)
_UNREACHED = (
    "called, but no backward pass came to their outputs: the gradients of their parameters are "
    "those of autograd.grad, torch.func or a graph of second order"
)
_FREE = "weights that no module holds, so that only their own rows are there"


class Gaps:
    """Says once which trained parameters have no layer.

    Args:
        capture: Knows which modules were called.
        on_problem: Called with a sentence a reason.
    """

    def __init__(self, capture: Capture, on_problem: Callable[[str], None]) -> None:
        self._capture = capture
        self._on_problem = on_problem
        self._said: set[int] = set()
        self._waiting: dict[int, tuple[str, nn.Module | None]] = {}

    def look(self, parameters: Parameters, layers: Layers) -> None:
        """The tables have changed: note which parameters have no layer."""
        self._waiting = {
            number: place
            for number, place in parameters.without_layer(layers).items()
            if number not in self._said
        }

    def end_step(self, rows: Mapping[int, ParameterRow], layers: Layers) -> None:
        """Say which of those have a gradient in a step that has ended."""
        found = [n for n in self._waiting if n in rows and rows[n].gradient is not None]
        if not found:
            return
        by_reason: dict[str, dict[str, None]] = {}
        for number in found:
            path, model = self._waiting.pop(number)
            self._said.add(number)
            if found_out := self._reason(path, model, layers):
                by_reason.setdefault(found_out[1], {})[found_out[0]] = None
        for reason, names in by_reason.items():
            plural = reason.replace("it is", "they are").replace("its m", "their m")
            self._on_problem(
                f"layers of {in_words(list(names))}: {reason if len(names) == 1 else plural}"
            )

    def _reason(self, path: str, model: nn.Module | None, layers: Layers) -> tuple[str, str] | None:
        """Return the module that a sentence names, and why it has no layer; None for no gap."""
        if model is None:
            return path, _FREE
        owner = path.rpartition(".")[0]
        around = [
            (clean_path(inner), module)
            for inner, module in [("", model), *unwrapped(model).named_modules()]
            if f"{owner}.".startswith(f"{clean_path(inner)}.") or not inner
        ]
        for inner, module in around:
            name = inner or type(unwrapped(model)).__name__
            if is_compiled_itself(module):
                return name, _COMPILED
            if isinstance(module, torch.jit.ScriptModule):
                return name, _SCRIPTED
        first_layers = layers.first_layers()
        for _, module in around[:-1]:
            site = layers.site_of(module)
            is_layer = site is not None and site.number in first_layers
            if is_layer and type(module).__module__.startswith("torch."):
                return None  # its own call uses the weights, as that of an attention does
        layer = self._capture.layers.get(id(around[-1][1]))
        was_called = layer is not None and layer.shape is not None
        name = owner or type(unwrapped(model)).__name__
        return name, _UNREACHED if was_called else _UNCALLED
