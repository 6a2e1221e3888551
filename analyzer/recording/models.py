"""The models of a recording, and the static tables of what was found in them."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from analyzer.recording.checkpoints import is_small
from analyzer.recording.hooks import Capture
from analyzer.recording.invocation import Invocation
from analyzer.recording.layers import CallNumbers, Layers
from analyzer.recording.names import unwrapped
from analyzer.recording.parameters import Parameters
from analyzer.recording.splits import Splits

__all__ = ["Models"]


class Models:
    """The root models, their layers and their parameters.

    Args:
        capture: Hooks the calls of their layers.
        splits: Looks for their joins.
        on_tables: Called when the static tables changed.
        on_problem: Called with a sentence about what cannot be recorded.

    Attributes:
        layers: The table of the layers.
        parameters: The table of the parameters.
        tables_changed: Whether the static tables are not those that were last handed over.
    """

    def __init__(
        self,
        capture: Capture,
        splits: Splits,
        *,
        on_tables: Callable[[], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self.tables_changed = False
        self._capture = capture
        self._splits = splits
        self._on_tables = on_tables
        self._on_problem = on_problem
        self._held: list[nn.Module] = []
        self._forget()

    def _forget(self) -> None:
        self.layers = Layers()
        self.parameters = Parameters(self._on_problem)
        self._numbers = CallNumbers(self.layers)
        self._may_hold: list[bool] = []

    def add(self, root: nn.Module) -> None:
        """Record this model from now on."""
        sites = self.layers.add_root(root)
        number = len(self.layers.roots) - 1
        self.parameters.add_root(number, root)
        self._capture.attach(root, sites)
        self._splits.add_root(number, weakref.ref(root))
        self.tables_changed = True
        self._may_hold.append(is_small(root))
        if type(root).__name__ == "OptimizedModule":
            name = type(unwrapped(root)).__name__
            self._on_problem(f"layers of {name}: it is compiled, so its modules are not called")

    def complete(self, root: nn.Module) -> None:
        """Add a whole model of which parts were added before it was there.

        A model's constructor may call a part to see the shape of its output; the first backward
        pass has not come yet, so that no layer has a number.
        """
        inside = {id(module) for module in root.modules()}
        added = [model for ref in self.layers.roots if (model := ref()) is not None]
        self._forget()
        self._capture.forget()
        self._splits.forget_roots()
        for model in (*(model for model in added if id(model) not in inside), root):
            self.add(model)
        self._capture.find_sites_again()

    def number(self, invocation: Invocation) -> None:
        """Find the layers of the calls of a forward pass that a backward pass has used."""
        self.tables_changed |= self._numbers.number(
            invocation, is_discovering=self._capture.discovering
        )

    def end_backward(self) -> None:
        """Look at the next graph again where the depth of a layer had to be guessed."""
        self._capture.discovering = self._numbers.has_guessed or not len(self.layers)
        self._numbers.has_guessed = False

    def end_step(self) -> None:
        """Hand over tables that changed; hold the models of this step, to save their weights."""
        if self.tables_changed or self._splits.tables_changed:
            self.tables_changed = self._splits.tables_changed = False
            self._on_tables()
        used = self._numbers.roots_used
        roots = (self.layers.roots[n]() for n in sorted(used) if self._may_hold[n])
        self._held = [root for root in roots if root is not None]
        used.clear()

    def end(self) -> None:
        """Hand over the tables of models that never trained."""
        if self.tables_changed and len(self.layers.roots):
            self._on_tables()

    def path(self, site: Any) -> str:
        """Return the name of the module of a site."""
        return self.layers.path(site, self.layers.prefixes())

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of the static tables."""
        prefixes = self.layers.prefixes()

        def name_of(root: int, path: str) -> str:
            return self.layers.spelled(root, path, prefixes)

        return {
            "layers": self.layers.rows(self._splits.table.roles()),
            "parameters": self.parameters.rows(self.layers),
            "joins": self._splits.table.rows(name_of),
        }

    def device(self) -> torch.device | None:
        """Return the device of the first parameter, where there is one."""
        trainable = self.parameters.trainable()
        return trainable[0][1].device if trainable else None

    def dtypes(self) -> Sequence[str]:
        """Return the types of the trained parameters, each once, such as ``float32``."""
        found = (str(parameter.dtype) for _, parameter in self.parameters.trainable())
        return sorted({name.removeprefix("torch.") for name in found})
