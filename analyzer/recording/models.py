"""The models of a recording, the static tables of what was found in them, and what is missing."""

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from analyzer.joins.calls import is_compiled_itself
from analyzer.options import RecordOptions
from analyzer.recording.checkpoints import is_small
from analyzer.recording.hooks import Capture
from analyzer.recording.invocation import Invocation
from analyzer.recording.layers import CallNumbers, Layers, Site
from analyzer.recording.names import clean_path, in_words, unwrapped
from analyzer.recording.parameters import Parameters
from analyzer.recording.part import ParameterRows
from analyzer.recording.ranks import data_parallel_ranks, gives_zeros
from analyzer.recording.splits import Splits
from analyzer.recording.tracing import reason_of, runs_compiled_code

__all__ = ["Models", "device_name"]

_COMPILED = "it was compiled before the recording began, so its modules are not called"
_SCRIPTED = "it is scripted, so its modules are not called"
_UNCALLED = (
    "not called as modules ({}their `forward` is called directly, or a function uses their "
    "weights), so that only their parameters have rows"
)
_UNUSED = (
    "not called as modules, so that only their parameters have rows (FSDP gives a gradient of zero "
    "to weights that no pass uses)"
)
_PERHAPS = "compiled before the recording began, or "
_UNREACHED = (
    "called, but no backward pass came to their outputs: the gradients of their parameters are "
    "those of autograd.grad, torch.func or a graph of second order"
)
_RARELY_SET = ("eps", "alpha", "amsgrad", "centered", "rho")
_OFTEN_SET = ("momentum", "nesterov", "dampening", "betas", "weight_decay", "maximize")
_CONSTANTS = (*_OFTEN_SET, *_RARELY_SET)
_FREE = "weights that no module holds, so that only their own rows are there"


def device_name(device: torch.device) -> str:
    """Return a device as a reader knows it: ``cpu``, or type and model of an accelerator."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _constants(given: Mapping[str, Any], *, with_zeros: bool = False) -> dict[str, Any]:
    """The options of an optimizer that tell it from others, as JSON holds them."""
    kept = {k: given[k] for k in _CONSTANTS if given.get(k) or (with_zeros and k in given)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in kept.items()
        if not any(torch.is_tensor(x) for x in (value if isinstance(value, tuple) else [value]))
    }


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
        optimizers: The optimizers that made an update, as fields of ``run.json``.
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
        self._options, self._max_calls = options, options.max_calls
        self._on_tables = on_tables
        self._on_problem = on_problem
        self._held: list[nn.Module] = []
        self.stepping: weakref.WeakSet[Any] = weakref.WeakSet()
        self._data_parallel: int | None = None
        self._gaps = _Gaps(capture, on_problem)
        self.parameters = Parameters(on_problem)
        self.optimizers: list[dict[str, Any]] = []
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
        self._take(number, root, sites)
        self._may_hold.append(is_small(root))

    def _take(self, number: int, root: nn.Module, sites: Sequence[tuple[Site, nn.Module]]) -> None:
        """Tell everyone of a root model and of the layers that are new in it."""
        self.parameters.add_root(number, root, self.layers)
        self._capture.attach(root, sites)
        self._splits.add_root(number, weakref.ref(root))
        self.tables_changed = True

    def look_again(self, number: int) -> None:
        """Find what was added to a root model, or replaced in it, since it was looked at."""
        root = self.layers.roots[number]()
        if root is None:
            return
        self._take(number, root, self.layers.look_again(number))
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
        if optimizer not in self.stepping:
            self.stepping.add(optimizer)
            self._note_optimizer(optimizer)
            self.note_names()
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

    def _note_optimizer(self, optimizer: Any) -> None:
        """Keep its name and the constants that tell it from others."""
        given = getattr(optimizer, "defaults", {})
        usually = inspect.signature(type(optimizer)).parameters
        set_ = {k for k in _RARELY_SET if getattr(usually.get(k), "default", None) != given.get(k)}
        told = {k: v for k, v in _constants(given).items() if k not in _RARELY_SET or k in set_}
        fields: dict[str, Any] = {"name": type(optimizer).__name__} | told
        usual = _constants(given, with_zeros=True)
        groups = [_constants(x, with_zeros=True) for x in getattr(optimizer, "param_groups", ())]
        own = [{k: v for k, v in one.items() if v != usual.get(k)} for one in groups]
        if any(own):
            fields["groups"] = own
        if fields not in self.optimizers:
            self.optimizers.append(fields)
            self.tables_changed = True

    def note_names(self) -> None:
        """Find what has another name by now: parameters that were pruned, roots that are parts."""
        for number, ref in enumerate(self.layers.roots):
            root = ref()
            if root is not None:
                self.tables_changed |= self.parameters.rename(number, root)
                self.tables_changed |= self.layers.note_parts(number, root)

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
        added = self.alive()
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

    def end_step(self, rows: ParameterRows) -> None:
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

    def release(self) -> None:
        """Hold no model any more: the last weights are saved."""
        self._held = []

    def end(self) -> None:
        """Hand over the tables of models that never trained."""
        if self.tables_changed and len(self.layers.roots):
            self._on_tables()

    def alive(self) -> list[nn.Module]:
        """Return the root models that are still there."""
        return [root for reference in self.layers.roots if (root := reference()) is not None]

    def path(self, site: Any) -> str:
        """Return the name of the module of a site."""
        # As it is now: its module may have been moved. A further output has the number ~number.
        now = self.layers.sites[max(site.number, ~site.number)]
        return self.layers.path(now, self.layers.prefixes())

    def unmatched(self) -> str | None:
        """Return what to do where the options choose none of the layers; None where they do."""
        names = [self.path(site) for site in self.layers.sites]
        if not names or any(map(self._options.selects, names)):
            return None
        options = {"--layers": self._options.layers, "--skip-layers": self._options.skip_layers}
        given = " and ".join(f"{name} {regex!r}" for name, regex in options.items() if regex)
        return (
            f"{given}: none of the {len(names)} layers is chosen, so that none is recorded; names "
            f"are such as {in_words(names[:3])}"
        )

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of the static tables."""
        prefixes = self.layers.prefixes()

        def name_of(root: int, path: str) -> str:
            return self.layers.spelled(root, path, prefixes)

        return {
            "layers": self.layers.rows(self._splits.table.roles()),
            "parameters": self.parameters.rows(self.layers),
            "joins": self._splits.table.rows(name_of),
            "edges": self.layers.edges(self._splits.table.edges),
        }

    def of_ranks(self) -> dict[str, Any]:
        """Return what a reader needs to pool the rows of several ranks, as fields of run.json."""
        prefixes, parts = self.layers.prefixes(), self._capture.parts
        layers = {
            self.layers.path(self.layers.sites[number], prefixes): count
            for number, count in parts.items()
            if count > 1
        }
        split = self.parameters.split(self.layers)
        if self._data_parallel is None:
            self._data_parallel = data_parallel_ranks(self.layers.roots)
        fields = {
            "data_parallel_ranks": self._data_parallel,
            "parts": {
                "layers": layers,
                "parameters": {name: count for name, (count, _) in split.items()},
            },
            "elements": {name: here for name, (_, here) in split.items()},
        }
        return {name: value for name, value in fields.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """Return device and types of the trained parameters, and the optimizers, for run.json."""
        found: dict[str, Any] = {"optimizers": self.optimizers} if self.optimizers else {}
        trainable = [parameter for _, parameter in self.parameters.trainable()]
        if trainable:
            types = sorted({str(one.dtype).removeprefix("torch.") for one in trainable})
            found |= {"device": device_name(trainable[0].device), "dtype": ", ".join(types)}
        return found


class _Gaps:
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

    def end_step(self, rows: ParameterRows, layers: Layers) -> None:
        """Say which of those have a gradient in a step that has ended."""
        found = [n for n in self._waiting if rows.gradient.get(n) is not None]
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
        first_layers = layers.first_layers()
        for _, module in around[:-1]:
            site = layers.site_of(module)
            is_layer = site is not None and site.number in first_layers
            if is_layer and type(module).__module__.startswith("torch."):
                return None  # its own call uses the weights, as that of an attention does
        if (reason := reason_of(around[-1][1])) is not None:
            return owner or type(unwrapped(model)).__name__, reason
        for inner, module in around:
            name = inner or type(unwrapped(model)).__name__
            if is_compiled_itself(module):
                return name, _COMPILED
            if isinstance(module, torch.jit.ScriptModule):
                return name, _SCRIPTED
        layer = self._capture.layers.get(id(around[-1][1]))
        was_called = layer is not None and layer.shape is not None
        name = owner or type(unwrapped(model)).__name__
        if was_called:
            return name, _UNREACHED
        if gives_zeros(model):
            return name, _UNUSED
        return name, _UNCALLED.format(_PERHAPS if runs_compiled_code() else "")
