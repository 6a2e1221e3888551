"""The calls of modules: the log of one forward pass, running calls, hooks on all calls."""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from analyzer.joins.modes import compiled_apart, leave_uncompiled
from analyzer.joins.trace import ForwardTrace, sequence_number

__all__ = [
    "CallLog",
    "ModuleCall",
    "after_calls",
    "before_calls",
    "call_arguments_of",
    "clean_path",
    "is_compiled_itself",
    "is_layer",
    "keywords_of_call",
    "num_running",
    "numbered_call",
    "tensors_in",
    "without_call_hooks",
]

_WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_MAX_NESTING = 6


def clean_path(path: str) -> str:
    """Return a module path without the parts that wrappers (compile, FSDP) put into it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPER_PARTS)


def is_layer(path: str, module: nn.Module) -> bool:
    """Return whether a module's calls are layers: a leaf, or an owner of parameters.

    A module whose weights are computed by ``torch.nn.utils.parametrize`` is one layer, and the
    modules that compute them are none.
    """
    if ".parametrizations." in f".{path}.":
        return False
    if hasattr(module, "parametrizations"):
        return True
    owns = any(parameter is not None for parameter in module._parameters.values())
    return owns or next(module.children(), None) is None


def tensors_in(value: object, nesting: int = 0) -> Iterator[Tensor]:
    """Yield the tensors inside nested tuples, lists, mappings and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif nesting >= _MAX_NESTING or isinstance(value, str | bytes | int | float | nn.Module | type):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, nesting + 1)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, nesting + 1)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), nesting + 1)
    elif hasattr(value, "__dataclass_fields__"):  # with slots
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name, None), nesting + 1)


def is_compiled_itself(module: nn.Module) -> bool:
    """Return whether calls of this module run compiled code."""
    is_wrapper = type(module).__name__ == "OptimizedModule"
    return is_wrapper or getattr(module, "_compiled_call_impl", None) is not None


def numbered_call(name: str, times: dict[str, int]) -> str:
    """Return the name of a module's next call: ``#k`` for call k > 0; counts it in `times`."""
    number = times.get(name, 0)
    times[name] = number + 1
    return f"{name}#{number}" if number else name


@dataclass(eq=False, slots=True)
class ModuleCall:
    """One call of a module, as a span of the autograd graph.

    Args:
        path: Module path; the root's is its prefix, usually empty.
        layer: Layer name (path, ``#k`` for the k-th further call), None where no layer.
        parent: Position of the enclosing call in the log, -1 for a root.
        start: First autograd sequence number inside the call; `end`: the one after it.
        tick: First count of followed functions inside the call; `tock`: the one after it.
        outputs: What made the outputs of a layer or a root: autograd nodes, or their sequence
            numbers; `Untracked` where there is none.
    """

    path: str
    module: nn.Module
    layer: str | None
    parent: int
    start: int
    tick: int
    end: int = -1
    tock: int = -1
    outputs: list[Any] = field(default_factory=list)


class CallLog:
    """The module calls of one forward, in order.

    The recorder's own hooks may feed it through `enter` and `leave`; `watch` does so with
    temporary hooks. Root modules are those inside of wrappers such as DDP, by the prefix of their
    paths; one root has the prefix ``""``.

    Attributes:
        most_calls: Calls of one module in which joins are looked for.
    """

    def __init__(self, roots: Mapping[str, nn.Module], trace: ForwardTrace | None = None) -> None:
        self.roots = dict(roots)
        self.trace = ForwardTrace() if trace is None else trace
        self.calls: list[ModuleCall] = []
        self.most_calls = sys.maxsize
        self.paths: dict[nn.Module, str] = {}
        for prefix, root in roots.items():
            for name, module in root.named_modules():
                path = clean_path(".".join(part for part in (prefix, name) if part))
                self.paths.setdefault(module, path)
        self._open: list[int] = []
        self._times_called: dict[str, int] = {}
        self._times: Counter[str] = Counter()
        self._late = 0
        self._layers = {m for m, path in self.paths.items() if is_layer(path, m)}

    def enter(self, module: nn.Module, inputs: object = ()) -> None:
        """Note that a module's call begins; `inputs` are its arguments, needed for roots only."""
        if not self._open:
            self.trace.add_inputs(tensors_in(inputs))
        path = self.paths[module]
        call = ModuleCall(
            path=path,
            module=module,
            layer=self._layer_name(module, path),
            parent=self._open[-1] if self._open else -1,
            start=sequence_number(),
            tick=self.trace.tick,
        )
        self._open.append(len(self.calls))
        self.calls.append(call)
        self._times[path] += 1
        if not self._late and self._times[path] > self.most_calls:
            self._late = len(self._open)

    @property
    def is_late(self) -> bool:
        """Whether one of the open calls comes after those in which joins are looked for."""
        return 0 < self._late <= len(self._open)

    def leave(self, module: nn.Module, output: object) -> None:
        """Note that the innermost open call of a module ends with this output."""
        while self._open:
            call = self.calls[self._open.pop()]
            if len(self._open) < self._late:
                self._late = 0
            call.end, call.tock = sequence_number(), self.trace.tick
            # A call that raised inside its parent never left by itself.
            if call.module is module:
                is_needed = call.layer is not None or call.parent < 0
                call.outputs = self._makers(output) if is_needed else []
                return

    @contextmanager
    def watch(self) -> Iterator[CallLog]:
        """Log and trace what is computed inside, by temporary hooks on every module."""
        handles = []
        try:
            for module in self.paths:
                if isinstance(module, torch.jit.ScriptModule) and module not in self.roots.values():
                    continue
                handles.append(
                    module.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True)
                )
                handles.append(module.register_forward_hook(self._after))
            with compiled_apart(), self.trace:
                yield self
        finally:
            for handle in handles:
                handle.remove()

    def innermost(self, sequence: int) -> ModuleCall | None:
        """Return the innermost call in which the autograd node of a sequence number was made."""
        around = (call for call in reversed(self.calls) if call.start <= sequence < call.end)
        return next(around, None)

    def root_name(self, call: ModuleCall) -> str:
        """Return the name of a call's module: its path, for the one root its class name."""
        return call.path or type(call.module).__name__

    def _before(self, module: nn.Module, args: object, kwargs: object) -> None:
        self.enter(module, (args, kwargs))

    def _after(self, module: nn.Module, args: object, output: object) -> None:
        self.leave(module, output)

    def _layer_name(self, module: nn.Module, path: str) -> str | None:
        """Name the layer and count its calls; calls without gradient are no layers."""
        if module not in self._layers or not torch.is_grad_enabled():
            return None
        return numbered_call(path or type(module).__name__, self._times_called)

    def _makers(self, output: object) -> list[Any]:
        """Return what made the tensors of an output: autograd nodes, else `Untracked`."""
        makers: list[Any] = []
        for tensor in tensors_in(output):
            maker = tensor.grad_fn or self.trace.untracked(tensor)
            if maker is not None:
                makers.append(maker)
        return makers


def _calls_of(module: nn.Module) -> Iterator[FrameType]:
    """Yield the frames of the calls of a module that are running, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _calls.codes and frame.f_locals.get("self") is module:
            yield frame
        frame = frame.f_back


def call_arguments_of(module: nn.Module, level: int = 0) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a running call; a hook for all modules does not get the keywords.

    Of several running calls `level` counts from 1 for the outermost; 0 is the innermost.
    """
    frame = list(_calls_of(module))[-level]
    return frame.f_locals["args"], frame.f_locals["kwargs"]


def keywords_of_call(module: nn.Module) -> Mapping[str, Any]:
    """Return the keyword arguments of the innermost running call of a module; empty without one."""
    frame = next(_calls_of(module), None)
    return {} if frame is None else frame.f_locals["kwargs"]


def num_running(module: nn.Module) -> int:
    """Return how many calls of a module are running."""
    return sum(1 for _ in _calls_of(module))


class CallHook:
    """A hook on the calls of all modules, until `remove`."""

    def __init__(self, table: list[Callable[..., Any]], hook: Callable[..., Any]) -> None:
        leave_uncompiled(hook)
        self._table = table
        self._hook = hook
        table.append(hook)
        _calls.update()

    def move_to_end(self) -> None:
        """Let all other hooks run first."""
        self._table.remove(self._hook)
        self._table.append(self._hook)

    def remove(self) -> None:
        """Remove the hook; after the last one torch is as it was."""
        if self._hook in self._table:
            self._table.remove(self._hook)
            _calls.update()


class _Calls:
    """The calls of all modules of this process.

    What is called is ``nn.Module._wrapped_call_impl``. While there are hooks, that function has
    other code: what it had, with the hooks before and after. Torch's own hooks common to all
    modules would do, but ``torch.compile`` guards on them: a model that was compiled before would
    be compiled again when they come, and once more when they go. The function remains the one that
    it takes for no hook at all. The lines are those that it had, and so are tracebacks.
    """

    def __init__(self) -> None:
        self.before: list[Callable[[Any, Any], None]] = []
        self.after: list[Callable[[Any, Any, Any], None]] = []
        self._function: Any = vars(nn.Module)["_wrapped_call_impl"]
        self._original: CodeType = self._function.__code__
        self._hooked: CodeType | None = None
        self._num_pauses = 0

    @property
    def codes(self) -> tuple[CodeType | None, ...]:
        """What a call of a module may run."""
        return self._original, self._hooked

    def update(self) -> None:
        """Put the code in place that the hooks need."""
        if (self.before or self.after) and not self._num_pauses:
            self._hooked = self._hooked or self._with_hooks()
            self._function.__code__ = self._hooked
        else:
            self._function.__code__ = self._original

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Call modules in here as without hooks."""
        self._num_pauses += 1
        self.update()
        try:
            yield
        finally:
            self._num_pauses -= 1
            self.update()

    def _with_hooks(self) -> CodeType:
        code = self._original
        # Under a line more, so that its columns stay as they are.
        tree = ast.parse("if 1:\n" + inspect.getsource(self._function))
        ast.increment_lineno(tree, code.co_firstlineno - 2)
        function: Any = tree.body[0].body[0]  # type: ignore[attr-defined]
        place = function.body[0]
        attempt: Any = _parsed(_FRAME, place)
        attempt[-1].body = [_Returns().visit(statement) for statement in function.body]
        function.body = attempt
        made = compile(tree, code.co_filename, "exec", dont_inherit=True)
        found = _code_in(made, code.co_name)
        constants = tuple(self if value == _HOOKS else value for value in found.co_consts)
        hooked = found.replace(co_consts=constants, co_qualname=code.co_qualname)
        leave_uncompiled(hooked, callees=False)
        return hooked


_HOOKS = "<hooks>"
_FRAME = f"""
for hook in {_HOOKS!r}.before:
    hook(self, args)
try: pass
except Exception:
    for hook in {_HOOKS!r}.after:
        hook(self, args, None)
    raise
"""
_RETURN = f"""
output = None
for hook in {_HOOKS!r}.after:
    hook(self, args, output)
return output
"""


class _Returns(ast.NodeTransformer):
    """Calls the hooks before each ``return``."""

    def visit_Return(self, node: ast.Return) -> Any:
        made = _parsed(_RETURN, node)
        vars(made[0])["value"] = node.value  # at the place that it had
        return made


def _parsed(text: str, place: ast.AST) -> list[ast.stmt]:
    """Statements, all of them at the place of another one."""
    statements = ast.parse(text).body
    for statement in statements:
        for node in ast.walk(statement):
            ast.copy_location(node, place)
    return statements


def _code_in(code: CodeType, name: str) -> CodeType:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return next(constant for constant in inner if constant.co_name == name)


_calls = _Calls()


def before_calls(hook: Callable[[Any, Any], None]) -> CallHook:
    """Call ``hook(module, args)`` before each call of a module."""
    return CallHook(_calls.before, hook)


def after_calls(hook: Callable[[Any, Any, Any], None]) -> CallHook:
    """Call ``hook(module, args, output)`` after it; with the output None after an exception."""
    return CallHook(_calls.after, hook)


def without_call_hooks() -> AbstractContextManager[None]:
    """Call modules, or trace their calls, as if there were no hook here."""
    return _calls.paused()
