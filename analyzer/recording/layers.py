"""Which modules are layers, the layers that a training calls, their numbers and their depth."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from analyzer.recording.live_log import token
from analyzer.recording.names import clean_path, root_prefixes, unwrapped

__all__ = [
    "CallNumbers",
    "ForwardDepth",
    "Layers",
    "Site",
    "graph_depths",
    "own_unit_axis",
]

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


def _is_site(module: nn.Module) -> bool:
    """Whether calls of this module are layers: a leaf, or a module that owns parameters itself."""
    return not module._modules or any(p is not None for p in module._parameters.values())


def own_unit_axis(module: nn.Module) -> int | None:
    """Return the axis of channels or features that the kind of module defines, if it does."""
    if isinstance(module, _ConvNd):
        return -1 - len(module.kernel_size)
    if isinstance(module, _CHANNEL_NORMS):
        return 1
    if isinstance(module, _FEATURE_LAYERS) or type(module).__name__ == "Conv1D":
        return -1
    name = type(module).__name__
    return next((-1 - int(pool[-2]) for pool in _POOLS if name.endswith(pool)), None)


@dataclass(frozen=True, slots=True)
class Site:
    """A module whose calls are layers.

    Args:
        number: Its place among all sites of the recording.
        root: The number of the root model that holds it.
        path: Its path in that root; empty for the root itself.
        module: The module, held weakly.
    """

    number: int
    root: int
    path: str
    module: weakref.ref[nn.Module]


class Layers:
    """Static rows of the layers, in the order in which calls were first used by a backward pass."""

    def __init__(self) -> None:
        self.roots: list[weakref.ref[nn.Module]] = []
        self.sites: list[Site] = []
        self._ids: dict[tuple[int, int], int] = {}
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add_root(self, root: nn.Module) -> list[tuple[Site, nn.Module]]:
        """Add a model; return its sites that no earlier root holds."""
        known = {id(site.module()) for site in self.sites}
        number = len(self.roots)
        self.roots.append(weakref.ref(root))
        inner, added = unwrapped(root), []
        for path, module in inner.named_modules():
            if _is_site(module) and id(module) not in known:
                site = Site(len(self.sites), number, clean_path(path), weakref.ref(module))
                self.sites.append(site)
                added.append((site, module))
        return added

    def layer(self, site: Site, call: int) -> int | None:
        """Return the id of a call that is in the table, else None."""
        return self._ids.get((site.number, call))

    def add(self, site: Site, call: int, shape: Sequence[int] | None, depth: int) -> int:
        """Add a call to the table, return its id."""
        module = site.module()
        layer = len(self._rows)
        self._ids[site.number, call] = layer
        own = [] if module is None else [p for p in module._parameters.values() if p is not None]
        self._rows.append(
            {
                "site": site,
                "call": call,
                "kind": type(module).__name__,
                "depth": depth,
                "num_parameters": sum(p.numel() for p in own),
                "output_shape": None if shape is None else list(shape),
            }
        )
        return layer

    def depth(self, layer: int) -> int:
        """Return the depth of a layer."""
        return int(self._rows[layer]["depth"])

    def set_depth(self, layer: int, depth: int) -> None:
        """Correct the depth of a layer that was added before its graph was seen."""
        self._rows[layer]["depth"] = depth

    def prefixes(self) -> list[str]:
        """Return what stands before the paths of each root."""
        return root_prefixes([ref() for ref in self.roots])

    def path(self, site: Site, prefixes: Sequence[str]) -> str:
        """Return the module path of a site; the class name for a root that is a layer itself."""
        return self.spelled(site.root, site.path, prefixes)

    def spelled(self, root: int, path: str, prefixes: Sequence[str]) -> str:
        """Return the name of a module from its root and its path there."""
        if path:
            return prefixes[root] + path
        module = self.roots[root]()
        return prefixes[root].rstrip(".") or type(unwrapped(module) if module else None).__name__

    def rows(self, roles: Mapping[str, tuple[int, str]]) -> list[dict[str, Any]]:
        """Return the rows of ``layers.parquet``.

        Args:
            roles: Innermost join and role of layers, by `analyzer.recording.live_log.token` of the
                root and the path there.
        """
        prefixes, rows = self.prefixes(), []
        for layer, row in enumerate(self._rows):
            module = self.path(row["site"], prefixes)
            call = row["call"]
            join, role = roles.get(_token_name(row["site"], call), (None, None))
            rows.append(
                {
                    "layer": layer,
                    "name": f"{module}#{call}" if call else module,
                    "module": module,
                    "call": call,
                    "kind": row["kind"],
                    "depth": row["depth"],
                    "num_parameters": row["num_parameters"],
                    "output_shape": row["output_shape"],
                    "join": join,
                    "role": role,
                }
            )
        return rows

    def numbered(self, names: Sequence[str]) -> list[int | None]:
        """Return the layers of these names; None for one that is not in the table."""
        known: dict[str, int] = {}
        prefixes = self.prefixes()
        for layer, row in enumerate(self._rows):
            mark = f"#{row['call']}" if row["call"] else ""
            # A probe knows one model, and its layers without the prefix of several.
            for path in (self.path(row["site"], prefixes), row["site"].path):
                known.setdefault(path + mark, layer)
        return [known.get(name) for name in names]

    def first_layers(self) -> dict[int, int]:
        """Return for each module (by ``id``) the first layer that is a call of it."""
        first: dict[int, int] = {}
        for layer, row in enumerate(self._rows):
            first.setdefault(id(row["site"].module()), layer)
        return first


def _token_name(site: Site, call: int) -> str:
    path = f"{token(site.root)}.{site.path}" if site.path else token(site.root)
    return f"{path}#{call}" if call else path


class _Call(Protocol):
    """What is asked of a call here; `analyzer.recording.hooks.Call` is one."""

    site: Any
    shape: Any
    node: Any
    layer: int
    depth: int
    forward_depth: int


class _Calls(Protocol):
    """The calls of one forward pass."""

    calls: Any
    window: int
    is_numbered: bool


class CallNumbers:
    """Finds the layer of each call: (module, how often it was called since a backward pass ended).

    Args:
        layers: The table that gets the layers that are new.

    Attributes:
        has_guessed: Whether a depth was guessed, because its graph was not seen.
        roots_used: The root models of which calls were numbered.
    """

    def __init__(self, layers: Layers) -> None:
        self.has_guessed = False
        self.roots_used: set[int] = set()
        self._layers = layers
        self._window = -1
        self._taken: dict[int, int] = {}
        self._known: tuple[list[int], list[int], set[int]] = ([], [], set())

    def number(self, invocation: _Calls, *, is_discovering: bool) -> bool:
        """Give the calls of a forward pass their layers; return whether the table changed.

        Args:
            invocation: The forward pass.
            is_discovering: Whether its graph was looked at, so that depths may be new.
        """
        calls = invocation.calls
        if invocation.is_numbered:  # another part of its graph
            self.roots_used.update(call.site.root for call in calls)
            return False
        invocation.is_numbered = True
        if invocation.window != self._window:
            self._window, self._taken = invocation.window, {}
        sites = [call.site.number for call in calls]
        is_first = not self._taken
        known_sites, known_layers, known_roots = self._known
        if is_first and sites == known_sites and not is_discovering:
            for number in sites:  # the usual case: the same calls as in the step before
                self._taken[number] = self._taken.get(number, 0) + 1
            self.roots_used |= known_roots
            for call, known in zip(calls, known_layers, strict=True):
                call.layer = known
            return False
        has_changed, before = False, 0
        for call in calls:
            has_changed |= self._number_one(call, before)
            before = self._layers.depth(call.layer)
        roots = {call.site.root for call in calls}
        self.roots_used |= roots
        if is_first:
            self._known = sites, [call.layer for call in calls], roots
        return has_changed

    def _number_one(self, call: _Call, before: int) -> bool:
        """The same for one call, after a call of a layer of this depth."""
        count = self._taken.get(call.site.number, 0)
        self._taken[call.site.number] = count + 1
        layer = self._layers.layer(call.site, count)
        if layer is None:
            self.has_guessed |= not call.depth
            call.layer = self._layers.add(call.site, count, call.shape, call.depth or before + 1)
            return True
        call.layer = layer
        if call.depth and self._layers.depth(layer) != call.depth:
            self._layers.set_depth(layer, call.depth)
            return True
        return False


def graph_depths(roots: Iterable[Any], calls: Sequence[_Call]) -> list[int]:
    """Return the depth of each call from the autograd graph below the roots of a backward pass.

    ``depth(layer) = 1 + max depth of the layers that it reads``; 1 where it reads none. Layers that
    share an output node (an identity, a module around another one) follow one another in call
    order. A call without a node gets 0.

    Args:
        roots: Tensors (or graph edges) from which the backward pass starts.
        calls: Calls in call order, with the graph node of their output.
    """
    layers_at: dict[Node, list[int]] = {}
    for place, call in enumerate(calls):
        if call.node is not None:
            layers_at.setdefault(call.node, []).append(place)
    depths = [0] * len(calls)
    below: dict[Node, int] = {}
    starts = [root.grad_fn if isinstance(root, Tensor) else root.node for root in roots]
    stack: list[tuple[Node, bool]] = [
        (node, False) for node in (*starts, *layers_at) if node is not None
    ]
    while stack:
        node, is_expanded = stack.pop()
        if node in below:
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        if not is_expanded:
            stack.append((node, True))
            stack.extend((child, False) for child in children if child not in below)
            continue
        depth = max((below[child] for child in children), default=0)
        for place in layers_at.get(node, ()):
            depth = max(depth + 1, calls[place].forward_depth)
            depths[place] = depth
        below[node] = depth
    return depths


class ForwardDepth(TorchFunctionMode):
    """Follows tensors forward through one forward pass, where there is no graph to read.

    A tensor has the largest depth among the tensors that it was computed from; the output of a
    layer has one more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._depths: Any = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor | tuple | list):
            inputs = (x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor))
            depth = max((self._depths.get(x, 0) for x in inputs), default=0)
            if depth:
                for output in tree_iter(result):
                    if isinstance(output, Tensor):
                        self._depths[output] = depth
        return result

    def pass_layer(self, output: Tensor) -> int:
        """A layer returned this tensor: return its depth, and note it."""
        depth: int = self._depths.get(output, 0) + 1
        self._depths[output] = depth
        return depth
