"""The calls of a forward pass, who wants to know of them, and the tensors that they return."""

import gc
import operator
import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from threading import get_ident
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor, is_grad_enabled, nn
from torch._C._autograd import _get_sequence_nr, _top_saved_tensors_default_hooks

from analyzer.joins.calls import tensors_in
from analyzer.joins.modes import leave_uncompiled, unseen
from analyzer.recording.hook_classes import Call, Layer

__all__ = [
    "BackwardWatcher",
    "CallWatcher",
    "FurtherLayers",
    "Invocation",
    "LivingSet",
    "SeenModules",
    "first_tensor",
    "has_any",
    "recomputing",
    "unhook",
    "will_recompute",
]

# Modules without parameters that no root has; beyond, such are not looked for in the roots.
_MOST_MET = 100
# Forward passes of a training that alternates between a few.
_MOST_RECENT = 8
# Graphs that are searched beside those that are split, since something in them is new.
_MOST_SEARCHES = 1_000

_T = TypeVar("_T")


class CallWatcher(Protocol):
    """Someone who wants to know of module calls: of roots, and of all modules where it says so."""

    @property
    def wants_all(self) -> bool:
        """Whether calls of modules that are not roots matter now."""

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module is about to be called."""

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a module has ended; by an exception where the output is None."""


class BackwardWatcher(Protocol):
    """Someone who wants to know about backward passes (``autograd.grad`` is none)."""

    def follows(self, roots: Sequence[Any], *, is_backward: bool) -> bool:
        """Whether it wants to know of the backward pass that this thread is about to run."""

    def begin_backward(self, roots: Sequence[Any], *, keeps_graph: bool) -> None:
        """A backward pass from these tensors is about to run."""

    def begin_inner_backward(self, roots: Sequence[Any]) -> None:
        """A backward pass inside of another one begins."""

    def end_backward(self, *, failed: bool) -> None:
        """That pass has ended."""

    def suspend(self, roots: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """``autograd.grad`` runs, perhaps inside a backward pass, whose gradients it is none of."""

    def resume(self, state: Any) -> None:
        """That ``autograd.grad`` has ended."""


class LivingSet(Generic[_T]):
    """Things by identity, as long as they live: quicker to ask than a set of weak references.

    A thing may go away while a compiled function runs, and what is called then would be compiled,
    were it not left out.
    """

    def __init__(self) -> None:
        self._refs: dict[int, _Ref[_T]] = {}

    def __contains__(self, thing: _T) -> bool:
        return id(thing) in self._refs

    def __len__(self) -> int:
        return len(self._refs)

    def __iter__(self) -> Iterator[_T]:
        return iter([thing for ref in self._refs.values() if (thing := ref()) is not None])

    def add(self, thing: _T) -> None:
        """Add a thing."""
        self._refs[id(thing)] = ref = _Ref(thing, _forget)
        ref.key, ref.refs = id(thing), self._refs

    def clear(self) -> None:
        """Forget all."""
        self._refs.clear()


class _Ref(weakref.ref[_T]):
    """A weak reference that knows where it is held."""

    __slots__ = ("key", "refs")

    key: int
    refs: dict[int, Any]


def _forget(ref: Any) -> None:
    if ref.refs.get(ref.key) is ref:
        del ref.refs[ref.key]


leave_uncompiled(_forget)


class SeenModules:
    """The modules of the root models, and others that were called.

    Args:
        on_new: Called with a module that is called and that no root had when it was looked at;
            returns whether one has it now.
    """

    def __init__(self, on_new: Callable[[nn.Module], bool]) -> None:
        self._on_new = on_new
        self._parts: LivingSet[nn.Module] = LivingSet()
        self._others: LivingSet[nn.Module] = LivingSet()
        self._num_met = 0

    def add(self, root: nn.Module) -> None:
        """Note all modules of a root."""
        for module in root.modules():
            self._parts.add(module)

    def clear(self) -> None:
        """The roots are about to be added again."""
        self._parts.clear()

    def is_part(self, module: nn.Module) -> bool:
        """Whether a root has a module."""
        return module in self._parts

    def knows(self, module: nn.Module) -> bool:
        """Whether a root has a module, or it was called before."""
        return module in self._parts or module in self._others

    def meet(self, module: nn.Module) -> None:
        """A module is called for the first time."""
        # Some programs make an activation or a loss for each call.
        self._num_met += 1
        if self._num_met > _MOST_MET and next(module.parameters(), None) is None:
            return
        if not self._on_new(module):
            self._others.add(module)


class Invocation:
    """The calls of one forward pass, in call order.

    Args:
        window: How many backward passes had ended when it began.
        order: Its place among all invocations. Reentrant checkpointing computes the parts of a
            forward pass again, the last one first: those come after all others, in forward order.

    Attributes:
        base: The sequence number of the next autograd node when it began.
        spans: Pairs of numbers. The ``id`` of a module whose call begins, and how many autograd
            nodes there were; ``-id`` where it ends; 0, and the number of the node that made its
            output, where the call made none itself. Numbers count from `base`.
    """

    __slots__ = (
        "__weakref__",
        "base",
        "calls",
        "is_numbered",
        "order",
        "spans",
        "thread",
        "window",
    )

    def __init__(self, window: int, order: tuple[int, int]) -> None:
        self.window = window
        self.order = order
        self.thread = get_ident()
        self.base = _get_sequence_nr()
        self.is_numbered = False
        self.calls: list[Call] = []
        self.spans: list[int] = []

    def enter(self, module: nn.Module) -> None:
        """A call of a module begins."""
        if is_grad_enabled():
            self.spans += id(module), _get_sequence_nr() - self.base

    def leave(self, module: nn.Module, output: Any) -> None:
        """A call of a module has ended."""
        if is_grad_enabled() and self.spans:
            spans, key, number = self.spans, id(module), _get_sequence_nr() - self.base
            if spans[-1] == number and spans[-2] == key and type(output) is Tensor:
                with unseen():
                    node = output.grad_fn
                if node is not None:
                    spans += 0, node._sequence_nr() - self.base
            spans += -key, number

    def is_in(self, sequences: Sequence[int]) -> bool:
        """Whether it made any of the nodes of a graph, whose numbers are given in rising order."""
        return bool(self.spans) and has_any(sequences, self.base, self.base + self.spans[-1])

    def take_calls(self) -> list[Call]:
        """Hand over the calls that are to be pooled; from now on the graph alone keeps them.

        A call comes back when one more gradient arrives at it. Without calls in here no cycle is
        left, so that all of it goes away with its graph, and not by a garbage collection.
        """
        calls, self.calls = self.calls, []
        return calls


def unhook(invocations: Iterable[Invocation]) -> None:
    """Remove the hooks of forward passes from output tensors that are still alive.

    They are looked for among all objects: a reference to each, for thousands of calls a step, would
    make the garbage collector run.
    """
    gone = set(invocations)
    for hooks in [x for x in gc.get_objects() if type(x) is OrderedDict] if gone else ():
        for key, hook in list(hooks.items()):
            if type(hook) is Call and hook.invocation in gone:
                hook.invocation = None
                del hooks[key]
    for invocation in gone:
        for call in invocation.take_calls():
            call.invocation = None


def has_any(numbers: Sequence[int], start: int, end: int) -> bool:
    """Whether any of these numbers, in rising order, is from `start` on and below `end`."""
    place = bisect_left(numbers, start)
    return place < len(numbers) and numbers[place] < end


class Patterns:
    """What forward passes looked like that were searched for joins.

    A graph may hold a new join only where something in it is new: two calls that follow one another
    (one of them perhaps inside of the other), and the number of nodes that were made in between.
    """

    def __init__(self) -> None:
        self._recent: list[list[int]] = []
        self._known: set[int] = set()
        self._num_searches = 0

    def has_new(self, spans: list[int]) -> bool:
        """Whether anything in a forward pass is new: the one structural comparison of a step."""
        if any(spans == other for other in self._recent) or self._num_searches >= _MOST_SEARCHES:
            return False
        if not _transitions(spans) <= self._known:
            self._num_searches += 1
            return True
        self._remember(spans)
        return False

    def add(self, spans: list[int]) -> None:
        """This pass was searched."""
        if spans not in self._recent:
            self._known |= _transitions(spans)
            self._remember(spans)

    def _remember(self, spans: list[int]) -> None:
        self._recent = [spans, *self._recent][:_MOST_RECENT]


def _transitions(spans: list[int]) -> set[int]:
    """What follows on what, with the number of nodes in between, each as one number."""
    pairs = np.array(spans, dtype=np.int64).reshape(-1, 2)
    keys, numbers = pairs[pairs[:, 0] != 0].T
    between = np.diff(numbers)
    if between.size and between.min() < 0:  # the calls of another thread are among them
        return set()
    return set((keys[:-1] * 31 + keys[1:] * 1_000_003 + between * 7_368_787).tolist())


def recomputing() -> Any:
    """What packs the tensors that a checkpoint without reentry computes again; None outside."""
    return _packer_of("_recomputation_hook")


def will_recompute() -> bool:
    """Whether a checkpoint without reentry will compute again what runs now."""
    return _packer_of("_checkpoint_hook") is not None


def _packer_of(kind: str) -> Any:
    hooks = _top_saved_tensors_default_hooks(True)
    is_of = hooks is not None and getattr(hooks[0], "__qualname__", "").startswith(kind)
    return hooks[0] if is_of else None


def first_tensor(output: Any) -> Tensor | None:
    """Return the first floating tensor in a module's output, else its first tensor, else None."""
    if isinstance(output, Tensor):
        return output
    first = None
    for tensor in tensors_in(output):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor
        first = tensor if first is None else first
    return first


def _further_tensors(output: Any, first: Tensor, args: Any) -> list[Tensor]:
    """Return the tensors of an output, besides the first, at which a gradient of its own arrives.

    An input that is handed on, a view of another output, and what a layer inside has returned, have
    their gradient counted elsewhere.
    """
    found: list[Tensor] = []
    for tensor in tensors_in(output):
        if tensor.requires_grad and tensor is not first and tensor.grad_fn is not None:
            hooks = tensor._backward_hooks
            is_counted = hooks and any(isinstance(hook, Call) for hook in hooks.values())
            if not is_counted and not any(_is_same(tensor, other) for other in (first, *found)):
                found.append(tensor)
    if found:
        inputs = {id(tensor) for tensor in tensors_in(args)}
        return [tensor for tensor in found if id(tensor) not in inputs]
    return found


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one, or a view of all of it."""
    if one is other:
        return True
    base = one if one._base is None else one._base
    if base is not (other if other._base is None else other._base):
        return False
    starts_alike = one.storage_offset() == other.storage_offset()
    return starts_alike or base.numel() in (one.numel(), other.numel())


class FurtherLayers:
    """What stands for the further output tensors of layers; their sites have numbers ``~number``.

    Their statistics are pooled with those of the first tensor, where a gradient arrives at them.
    """

    def __init__(self) -> None:
        self._layers: dict[int, list[Layer]] = {}

    def clear(self) -> None:
        """The sites are about to get other numbers."""
        self._layers.clear()

    def of(self, layer: Layer, output: Any, first: Tensor, args: Any) -> list[tuple[Layer, Tensor]]:
        """Return the further tensors of an output, and what stands for each of them."""
        layers, found = self._layers.setdefault(layer.site.number, []), []
        for place, tensor in enumerate(_further_tensors(output, first, args)):
            if place == len(layers):
                layers.append(Layer())
            further = layers[place]
            if further.module is not layer.module:
                further.site = replace(layer.site, number=~layer.site.number)
                further.module, further.is_ready = layer.module, False
            found.append((further, tensor))
        tensors = [first, *(tensor for _, tensor in found)]
        is_plain = type(output) is tuple and len(output) == len(tensors)
        is_plain = is_plain and all(map(operator.is_, output, tensors))
        layer.further = tuple(further for further, _ in found) if is_plain else None
        return found
