"""The models of a recording, and the static tables of what was found in them."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from analyzer.options import RecordOptions
from analyzer.recording.checkpoints import is_small
from analyzer.recording.gaps import Gaps
from analyzer.recording.hooks import Capture
from analyzer.recording.invocation import Invocation
from analyzer.recording.layers import CallNumbers, Layers
from analyzer.recording.names import in_words, unwrapped
from analyzer.recording.parameters import ParameterRow, Parameters
from analyzer.recording.splits import Splits

__all__ = ["Models"]


class Models:
    """The root models, their layers and their parameters.

    Args:
        options: How many calls of a module have rows of their own.
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
        options: RecordOptions,
        capture: Capture,
        splits: Splits,
        *,
        on_tables: Callable[[], None],
        on_problem: Callable[[str], None],
    ) -> None:
        self.tables_changed = False
        self._capture = capture
        self._splits = splits
        self._max_calls = options.max_calls
        self._on_tables = on_tables
        self._on_problem = on_problem
        self._held: list[nn.Module] = []
        self._gaps = Gaps(capture, on_problem)
        self.parameters = Parameters(on_problem)
        self._forget()

    def _forget(self) -> None:
        self.layers = Layers(self._max_calls)
        self.parameters.forget_roots()
        self._numbers = CallNumbers(self.layers)
        self._may_hold: list[bool] = []

    def add(self, root: nn.Module) -> None:
        """Record this model from now on."""
        sites = self.layers.add_root(root)
        number = len(self.layers.roots) - 1
        self.parameters.add_root(number, root, self.layers)
        self._capture.attach(root, sites)
        self._splits.add_root(number, weakref.ref(root))
        self.tables_changed = True
        self._may_hold.append(is_small(root))
        if type(root).__name__ == "OptimizedModule":
            name = type(unwrapped(root)).__name__
            self._on_problem(f"layers of {name}: it is compiled, so its modules are not called")

    def look_again(self, number: int) -> None:
        """Find what was added to a root model, or replaced in it, since it was looked at."""
        root = self.layers.roots[number]()
        if root is None:
            return
        sites = self.layers.look_again(number)
        self.parameters.add_root(number, root, self.layers)
        self._capture.attach(root, sites)
        self._splits.add_root(number, weakref.ref(root))
        self.tables_changed = True
        # Of a pass that is under way only a part would be seen with its graph: then the next one.
        self._numbers.has_guessed = True
        self._capture.discovering |= self._capture.current is None

    def meet_module(self, module: nn.Module) -> bool:
        """Look again at the root that holds a module that is called for the first time, if any."""
        for number, ref in enumerate(self.layers.roots):
            root = ref()
            if root is not None and any(part is module for part in root.modules()):
                self.look_again(number)
                return True
        return False

    def meet_optimizer(self, optimizer: Any, *, adopts: bool) -> None:
        """Find the parameters that an optimizer holds and that have no number yet.

        Args:
            optimizer: It is about to make an update.
            adopts: Whether tensors of no known model are parameters, too.
        """
        held = (p for group in getattr(optimizer, "param_groups", ()) for p in group["params"])
        unknown = self.parameters.unknown(held)
        if not unknown:
            return
        wanted = {id(tensor) for tensor in unknown}
        for number, ref in enumerate(self.layers.roots):
            root = ref()
            if root is not None and not wanted.isdisjoint(map(id, root.parameters())):
                self.look_again(number)
        unknown = self.parameters.unknown(unknown)
        if unknown and adopts:
            self.parameters.adopt(unknown)
            self.tables_changed = True
        self.parameters.leave_out(self.parameters.unknown(unknown))

    def note_transformed(self, module: nn.Module) -> None:
        """Say that a module is called by a transformed function, which the recording leaves out."""
        self._on_problem(
            f"calls of {type(module).__name__} by torch.func (grad, vmap and the like): no "
            "backward pass of the program goes through them"
        )

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
        if self._capture.listening:
            self._capture.discovering = self._numbers.has_guessed or not len(self.layers)
            self._numbers.has_guessed = False

    def end_step(self, rows: Mapping[int, ParameterRow]) -> None:
        """Hand over tables that changed; hold the models of this step, to save their weights.

        Args:
            rows: What the step knows of its parameters.
        """
        self.tables_changed |= self.parameters.has_unfrozen(rows)
        if crowded := self._numbers.crowded:
            names = in_words([self.path(site) for site in crowded])
            self._on_problem(
                f"rows of calls: {names} had more than {self._max_calls} calls in a step; the "
                "later ones are pooled in one row #rest (--max-calls)"
            )
            crowded.clear()
        if self.tables_changed or self._splits.tables_changed:
            self.tables_changed = self._splits.tables_changed = False
            self._on_tables()
            self._gaps.look(self.parameters, self.layers)
        self._gaps.end_step(rows, self.layers)
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
        # As it is now: its module may have been moved. A further output has the number ~number.
        now = self.layers.sites[max(site.number, ~site.number)]
        return self.layers.path(now, self.layers.prefixes())

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
