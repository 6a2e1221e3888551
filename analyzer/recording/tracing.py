"""Layers inside of code that ``torch.compile`` makes: how they come into its graphs.

While a function is traced, the calls of modules in it are noted. Before the graph goes to its
backend, each output of a layer in it gets a node (`analyzer.recording.compiled`). By then the
compiler has counted and guarded what it counts and guards, so that it makes no graph, frame, break
or guard more, and none is made again when a recording begins or ends.
"""

import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from analyzer.joins.calls import without_call_hooks
from analyzer.joins.modes import come_back, stand_aside
from analyzer.recording.compiled import OPERATORS, InnerLayers, Place, nesting_of, places, watchers
from analyzer.script import Arrival, when_imported

__all__ = ["reason_of", "runs_compiled_code", "unwatch_compiled", "watch_compiled"]

# Backends that run a graph or hand it to AOTAutograd; others may show it to the program.
_BACKENDS = {
    "aot_eager",
    "aot_eager_decomp_partition",
    "aot_eager_default_partitioner",
    "eager",
    "eager_noexcept",
    "inductor",
}
_INNER = "it is compiled as a graph inside of the graph, such as a branch or a nested region"
_TRANSFORMED = "it is compiled inside of a transform of torch.func, whose tensors have no values"
_TRACE = "_trace_of_analyzer"
_INPUT = "placeholder"
_LAYER = fx.node.has_side_effect(OPERATORS.layer.default)  # else it is removed as of no use
_reasons: "weakref.WeakKeyDictionary[nn.Module, str]" = weakref.WeakKeyDictionary()


def watch_compiled(watcher: InnerLayers) -> None:
    """Tell of layers in graphs that are made from now on, when these run."""
    if not watchers:
        _tracing.begin()
    watchers.append(watcher)


def unwatch_compiled(watcher: InnerLayers) -> None:
    """Tell no more; graphs that were made stay as they are, and their operators do nothing."""
    if watcher in watchers:
        watchers.remove(watcher)
        if not watchers:
            _tracing.end()


def runs_compiled_code() -> bool:
    """Whether a compiled function was called since somebody watches."""
    return _tracing.has_run


def reason_of(module: nn.Module) -> str | None:
    """Return why a layer inside of compiled code is not recorded, where that is known."""
    return _reasons.get(module)


@dataclass(eq=False, slots=True)
class _Note:
    """A tensor that a traced call of a layer has returned.

    Args:
        around: The layer, and the modules inside of which it was called, innermost first.
        node: What made the tensor.
        last: The last node of the graph when the call ended.
        further: How many tensors of that output came before.
    """

    around: list[nn.Module]
    node: fx.Node
    last: fx.Node
    further: int


class _Trace:
    """What is noted while one function is traced.

    Args:
        owner: The first module among the arguments, as that of a method; None without one.
    """

    def __init__(self, owner: nn.Module | None) -> None:
        self.owner = owner
        self.running: list[nn.Module] = []
        self.notes: list[_Note] = []
        self._seen: set[fx.Node] = set()

    def leave(self, arguments: list[fx.Node], output: list[fx.Node]) -> None:
        """The innermost call ended; its arguments and its output have these tensors."""
        module = self.running[-1]
        is_layer = not module._modules or any(p is not None for p in module._parameters.values())
        if not is_layer or not torch.is_grad_enabled():
            return
        number = 0
        for node in output:
            value = node.meta.get("example_value")
            if not (
                isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
            ):
                continue
            # A further one is counted once, where it was made.
            if not number or (node not in self._seen and node not in arguments):
                last = node.graph._root._prev
                self.notes.append(_Note([*reversed(self.running)], node, last, number))
                number += 1
            self._seen.add(node)


class _Tracing:
    """Follows the tracing of functions, while there are watchers."""

    def __init__(self) -> None:
        self.has_run = False
        self._replaced: list[tuple[Any, str, Any]] = []
        self._arrival: Arrival | None = None
        self._variables: Any = None
        self._exceptions: Any = None

    def begin(self) -> None:
        """Wait for the compiler, and follow it."""
        self.has_run = False
        self._arrival = when_imported("torch._dynamo.convert_frame", self._follow)

    def end(self) -> None:
        """Put back what was replaced."""
        if self._arrival is not None:
            self._arrival.cancel()
        for owner, name, function in self._replaced:
            setattr(owner, name, function)
        self._replaced.clear()

    def _follow(self) -> None:
        try:
            from torch._dynamo import eval_frame, exc, output_graph, symbolic_convert, variables

            self._variables, self._exceptions = variables, exc
            self._replace(symbolic_convert.InstructionTranslatorBase, "run", _run)
            for kind in (variables.NNModuleVariable, variables.UnspecializedNNModuleVariable):
                self._replace(kind, "call_function", self._call)
            self._replace(output_graph.OutputGraph, "call_user_compiler", self._compile)
            self._replace(eval_frame, "_maybe_set_eval_frame", self._turn)
        except (AttributeError, ImportError, KeyError) as error:
            _say(f"layers inside of compiled code: torch {torch.__version__} has no {error}")

    def _turn(self, original: Any, callback: Any) -> Any:
        """A compiled function is called, or has returned to the same frame."""
        call = sys._getframe(2)
        if not come_back(call) and callback is not None:
            self.has_run = True
            stand_aside(call)
        return original(callback)

    def _replace(self, owner: Any, name: str, function: Callable[..., Any]) -> None:
        original = vars(owner)[name]

        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        setattr(owner, name, replacement)
        self._replaced.append((owner, name, original))

    def _call(self, original: Any, variable: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        """A call of a module is traced."""
        module = getattr(variable, "value", None)
        if module is None:
            module = tx.output.get_submodule(variable.module_key)
        trace: _Trace | None = vars(tx.output).get(_TRACE)
        if trace is None:
            values = tx.output.root_tx.f_locals.values()
            owner = next((value for value in values if isinstance(value, nn.Module)), None)
            trace = vars(tx.output)[_TRACE] = _Trace(owner)
        trace.running.append(module)
        try:
            result = original(variable, tx, args, kwargs)
            inputs = [node for one in (*args, *kwargs.values()) for node in self._nodes_in(one)]
            trace.leave(inputs, list(self._nodes_in(result)))
            return result
        finally:
            trace.running.pop()

    def _nodes_in(self, value: Any) -> Iterator[fx.Node]:
        """Yield the nodes of the tensors in a traced value; look into nothing that is not yet."""
        kinds = self._variables
        if type(value) is kinds.TensorVariable:
            yield value.as_proxy().node
        elif isinstance(value, kinds.BaseListVariable):
            for item in value.items:
                yield from self._nodes_in(item)
        elif isinstance(value, kinds.ConstDictVariable):
            for item in value.items.values():
                yield from self._nodes_in(item)

    def _compile(self, original: Any, output: Any, graph: fx.GraphModule, inputs: Any) -> Any:
        """A graph goes to its backend."""
        trace: _Trace | None = vars(output).pop(_TRACE, None)
        backend = output.compiler_fn
        if trace is None or not trace.notes or not watchers:
            return original(output, graph, inputs)
        if (reason := _reason(backend, trace.notes)) is not None:
            _reasons.update((note.around[0], reason) for note in trace.notes)
            return original(output, graph, inputs)

        @functools.wraps(backend)
        def compiler(graph: fx.GraphModule, inputs: Any) -> Any:
            added = _Looks(graph, trace)
            try:
                compiled = backend(graph, inputs)
            except (self._exceptions.RestartAnalysis, self._exceptions.SkipFrame):
                raise  # what the compiler does next has no error
            except Exception as error:
                added.undo()
                compiled = backend(graph, inputs)  # the program's own error, if it is one
                reason = f"the compiler failed on the operators that look at them ({error!r:.200})"
                _reasons.update((note.around[0], reason) for note in trace.notes)
                return compiled
            return lambda *args: compiled(*args)[: added.num_outputs]

        output.compiler_fn = compiler
        try:
            return original(output, graph, inputs)
        finally:
            output.compiler_fn = backend


def _run(original: Any, *args: Any) -> Any:
    with without_call_hooks():
        return original(*args)


def _say(sentence: str) -> None:
    for watcher in watchers:
        watcher.on_problem(sentence)


def _reason(backend: Any, notes: Sequence[_Note]) -> str | None:
    """Return why nothing is added to the graphs of a backend; None where it is."""
    while True:
        inner = getattr(backend, "_torchdynamo_orig_backend", None)
        owner = getattr(backend, "__self__", None)  # that of DDP takes graphs apart
        inner = inner or getattr(owner, "backend_compile_fn", None)
        if inner is None:
            break
        backend = inner
    function = getattr(backend, "compiler_fn", backend)
    name = getattr(backend, "compiler_name", None) or getattr(backend, "__name__", "?")
    home = getattr(function, "__module__", None) or type(function).__module__
    if name not in _BACKENDS or home.partition(".")[0] != "torch":
        return f"it is compiled by the backend {name}, whose graphs are left as they are"
    own = getattr(backend, "config", {}).get("triton.cudagraphs")
    inductor = sys.modules.get("torch._inductor.config")
    is_recorded = own if own is not None else inductor is not None and inductor.triton.cudagraphs
    if is_recorded and any(note.node.meta["example_value"].is_cuda for note in notes):
        return "it runs as a CUDA graph, in which nothing is called"
    return None


class _Looks:
    """The nodes that look at the outputs of layers in a graph.

    Args:
        module: The graph; it gets the nodes.
        trace: What was noted when it was made.

    Attributes:
        num_outputs: How many outputs the graph had.
    """

    def __init__(self, module: fx.GraphModule, trace: _Trace) -> None:
        self._module = module
        self._owner = trace.owner
        self._notes: dict[fx.Graph, list[_Note]] = {}
        for note in trace.notes:
            self._notes.setdefault(note.node.graph, []).append(note)
        self._added: list[fx.Node] = []
        self._parameters: dict[int, tuple[nn.Parameter, Any]] = {}
        for node in module.graph.find_nodes(op=_INPUT):
            value = getattr(node.meta.get("grapharg"), "example", None)
            if isinstance(value, nn.Parameter):
                self._parameters[id(value)] = value, node.meta.get("example_value")
        self._fill(module, 0, is_outermost=True)
        for note in (note for notes in self._notes.values() for note in notes):
            _reasons[note.around[0]] = _INNER
        self._end: fx.Node = next(iter(reversed(module.graph.nodes)))
        self._outputs: Any = self._end.args[0]
        self.num_outputs = len(self._outputs)
        # As outputs they are not made once more in a backward pass, and their memory is not used.
        looks = [node for node in self._added if node.graph is module.graph]
        self._end.args = ((*self._outputs, *looks),)
        module.recompile()

    def undo(self) -> None:
        """Take the nodes away again."""
        self._end.args = (self._outputs,)
        for node in reversed(self._added):
            node.graph.erase_node(node)
        self._module.recompile()

    def _fill(self, module: fx.GraphModule, depth: int, *, is_outermost: bool) -> int:
        """Add the nodes to a graph that begins at a depth; return the depth at which it ends."""
        nodes = list(module.graph.nodes)
        notes = self._located(module.graph, nodes)
        inputs = {id(node.meta.get("example_value")): node for node in nodes if node.op == _INPUT}
        depths: dict[fx.Node, int] = {}
        before: fx.Node | None = None
        nesting = 0
        for node in nodes:
            nesting += nesting_of(node.target)
            depths[node] = max((depths[part] for part in node.all_input_nodes), default=depth)
            if (inner := _checkpointed(module, node)) is not None:
                depths[node] = self._fill(inner, depths[node], is_outermost=False)
            at = node
            for note in notes.get(node, ()):
                depths[note.node] += not note.further
                if nesting > 0:
                    _reasons[note.around[0]] = _TRANSFORMED
                    continue
                made = self._look(note, depths[note.node], inputs)
                if made is None:
                    continue
                place, parameter = made
                place.number, place.is_first = len(places), not self._added
                places.append(place)
                with module.graph.inserting_after(at):
                    arguments = (note.node, parameter, place.number, before)
                    at = module.graph.call_function(_LAYER, arguments)
                self._added.append(at)
                # One after the other; where they may be computed again, each for itself.
                before = at if is_outermost else None
        if not is_outermost:
            module.recompile()
        return max(depths.values(), default=depth)

    def _located(self, graph: fx.Graph, nodes: list[fx.Node]) -> dict[fx.Node, list[_Note]]:
        """Return the notes by the node after which the tensor is looked at."""
        order = {node: place for place, node in enumerate(nodes)}
        inputs = [node for node in nodes if node.op == _INPUT]
        located: dict[fx.Node, list[_Note]] = {}
        for note in self._notes.pop(graph, ()):
            if note.node not in order:
                continue  # of no use, and so removed
            last = note.last
            while last not in order and last.op != "root":
                last = last._prev
            if inputs and order.get(last, -1) < order[inputs[-1]]:
                last = inputs[-1]
            located.setdefault(last, []).append(note)
        return located

    def _look(self, note: _Note, depth: int, inputs: dict[int, fx.Node]) -> Any:
        """Return the place of a note, and the input that tells the module; None without one."""
        module, outer, owner = note.around[0], note.around[-1], self._owner
        if owner is not None and any(part is module for part in owner.modules()):
            outer = owner
        place = Place(weakref.ref(module), weakref.ref(outer), depth, note.further)
        for around in (*note.around, outer):
            parts = list(around.named_modules())
            here = next((path for path, part in parts if part is module), None)
            for path, part in parts if here is not None else ():
                for parameter in part._parameters.values():
                    _, fake = self._parameters.get(id(parameter), (None, None))
                    if parameter is not None and id(fake) in inputs:
                        place.paths = here or "", path
                        refs = weakref.ref(parameter), weakref.ref(module)
                        place.known[parameter.data_ptr()] = refs
                        return place, inputs[id(fake)]
        kind = type(owner)
        roots = [root for watcher in watchers for root in watcher.roots()]
        alike = sum(type(part) is kind for root in roots for part in root.modules())
        if owner is None or alike <= 1:
            return place, None
        _say(
            f"layers inside of {kind.__name__}: it is compiled, and uses no parameter that would "
            "tell which of several it is"
        )
        return None


def _checkpointed(module: fx.GraphModule, node: fx.Node) -> fx.GraphModule | None:
    """Return the graph that a node of activation checkpointing runs."""
    name = getattr(node.target, "name", None)
    if node.op != "call_function" or not callable(name) or name() != "tag_activation_checkpoint":
        return None
    inner = getattr(module, str(getattr(node.args[0], "target", "")), None)
    return inner if isinstance(inner, fx.GraphModule) else None


_tracing = _Tracing()
