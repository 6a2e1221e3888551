"""Which modules are layers, the layers that a training calls, and their numbers."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from analyzer.recording.live_log import token
from analyzer.recording.names import RootModel, clean_path, kind_of, root_prefixes, unwrapped

__all__ = ["CallNumbers", "Layers", "Site"]

# Forward passes that still wait for a backward pass may be this many backward passes old.
_MOST_WINDOWS = 16


def _is_site(module: nn.Module) -> bool:
    """Whether calls of this module are layers: a leaf, or a module that owns parameters itself."""
    return not module._modules or any(p is not None for p in module._parameters.values())


@dataclass(frozen=True, slots=True)
class Site:
    """A module whose calls are layers.

    Args:
        number: Its place among all sites of the recording.
        root: The number of the root model that holds it.
        path: Its path in that root; empty for the root itself.
        module: The module, held weakly.
        kind: Its class.
    """

    number: int
    root: int
    path: str
    module: weakref.ref[nn.Module]
    kind: str


class Layers:
    """Static rows of the layers, in the order in which calls were first used by a backward pass.

    Args:
        max_calls: Calls of one module that have rows of their own; the later ones share a row.
    """

    def __init__(self, max_calls: int) -> None:
        self.max_calls = max_calls
        self.roots: list[weakref.ref[nn.Module]] = []
        self.sites: list[Site] = []
        self._models: list[RootModel] = []
        self._by_module: dict[int, Site] = {}
        self._ids: dict[tuple[int, int], int] = {}
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add_root(self, root: nn.Module) -> list[tuple[Site, nn.Module]]:
        """Add a model; return its sites that no earlier root holds.

        Roots that are parts of it are named by their place in it from now on.
        """
        number, inner = len(self.roots), unwrapped(root)
        for model in self._models:
            part = model.model()
            if part is not None and model.container is None and unwrapped(part) is inner:
                model.container = number, ""
        self.roots.append(weakref.ref(root))
        self._models.append(RootModel.of(root))
        self.note_parts(number, root)
        return self.look_again(number)

    def note_parts(self, number: int, root: nn.Module) -> bool:
        """Find the other roots that lie inside of a root by now; return whether one is new there.

        A part may be called before it is put into its model, as a parametrization is.
        """
        waiting = [model for model in self._models if model.container is None]
        if len(waiting) < 2:
            return False
        paths = {m: clean_path(path) for path, m in unwrapped(root).named_modules() if path}
        has_changed = False
        for model in waiting:
            part = model.model()
            if part is not None and unwrapped(part) in paths:
                model.container, has_changed = (number, paths[unwrapped(part)]), True
        return has_changed

    def look_again(self, number: int) -> list[tuple[Site, nn.Module]]:
        """Return the sites of a root that have a new module; note those that were moved.

        A module that replaces one that the model no longer has keeps its layers.
        """
        root = self.roots[number]()
        if root is None:
            return []
        named = [(clean_path(path), m) for path, m in unwrapped(root).named_modules()]
        here = {id(module) for _, module in named}
        left = {
            site.path: site
            for site in self.sites
            if site.root == number and id(site.module()) not in here
        }
        added = []
        for path, module in named:
            site = self.site_of(module)
            if site is not None and site.root == number and site.path != path:
                self._put(replace(site, path=path), module)
            elif site is None and _is_site(module):
                kind, former = kind_of(module), left.get(path)
                place = len(self.sites) if former is None else former.number
                site = Site(place, number, path, weakref.ref(module), kind)
                self._put(site, module)
                added.append((site, module))
        return added

    def _put(self, site: Site, module: nn.Module) -> None:
        if site.number == len(self.sites):
            self.sites.append(site)
        elif self.sites[site.number].module() is not module:
            for row in self._rows:
                if row["site"] == site.number:
                    row["num_parameters"], row["output_shape"] = _num_own(module), None
        self.sites[site.number] = self._by_module[id(module)] = site

    def site_of(self, module: nn.Module) -> Site | None:
        """Return the site of a module; None where it has none."""
        site = self._by_module.get(id(module))
        return site if site is not None and site.module() is module else None

    def layer(self, site: Site, call: int) -> int | None:
        """Return the id of a call that is in the table, else None."""
        return self._ids.get((site.number, min(call, self.max_calls)))

    def add(self, site: Site, call: int, shape: Sequence[int] | None, depth: int) -> int:
        """Add a call to the table, return its id."""
        module, call = site.module(), min(call, self.max_calls)
        layer = len(self._rows)
        self._ids[site.number, call] = layer
        self._rows.append(
            {
                "site": site.number,
                "call": call,
                "depth": depth,
                "num_parameters": 0 if module is None else _num_own(module),
                "output_shape": None if shape is None else list(shape),
            }
        )
        return layer

    def depth(self, layer: int) -> int:
        """Return the depth of a layer."""
        return int(self._rows[layer]["depth"])

    def correct(self, layer: int, shape: Sequence[int] | None, depth: int) -> bool:
        """Correct what was not known when a layer was added; return whether it changed."""
        row = self._rows[layer]
        is_known = row["output_shape"] is not None or shape is None
        if is_known and (not depth or depth == row["depth"] or row["call"] == self.max_calls):
            return False
        row["depth"] = depth or row["depth"]
        if not is_known:
            row["output_shape"] = list(shape or ())
        return True

    def prefixes(self) -> list[str]:
        """Return what stands before the paths of each root."""
        return root_prefixes(self._models)

    def path(self, site: Site, prefixes: Sequence[str]) -> str:
        """Return the module path of a site; the class name for a root that is a layer itself."""
        return self.spelled(site.root, site.path, prefixes)

    def spelled(self, root: int, path: str, prefixes: Sequence[str]) -> str:
        """Return the name of a module from its root and its path there."""
        return prefixes[root] + path if path else prefixes[root][:-1] or self._models[root].kind

    def rows(self, roles: Mapping[str, tuple[int, str]]) -> list[dict[str, Any]]:
        """Return the rows of ``layers.parquet``.

        Args:
            roles: Innermost join and role of layers, by `analyzer.recording.live_log.token` of the
                root and the path there.
        """
        prefixes, rows = self.prefixes(), []
        for layer, row in enumerate(self._rows):
            site, call = self.sites[row["site"]], row["call"]
            module = self.path(site, prefixes)
            join, role = roles.get(_token_name(site, call), (None, None))
            rows.append(
                {
                    "layer": layer,
                    "name": module + self._mark(call),
                    "module": module,
                    "call": call,
                    "kind": site.kind,
                    "depth": row["depth"],
                    "num_parameters": row["num_parameters"],
                    "output_shape": row["output_shape"],
                    "join": join,
                    "role": role,
                }
            )
        return rows

    def edges(self, pairs: Iterable[tuple[str, str]]) -> list[dict[str, int]]:
        """Return the rows of ``edges.parquet``: pairs of which both layers have a row.

        Args:
            pairs: Source and target, by `analyzer.recording.live_log.token` of the root and the
                path there; an empty source is the network's input.
        """
        known = {"": -1}
        for layer, row in enumerate(self._rows):
            known[_token_name(self.sites[row["site"]], row["call"])] = layer

        def layer_of(name: str) -> int | None:
            path, _, call = name.partition("#")
            return known.get(f"{path}#{min(int(call), self.max_calls)}" if call else name)

        found = {(layer_of(source), layer_of(target)) for source, target in pairs}
        whole = sorted((s, t) for s, t in found if s is not None and t is not None and s != t)
        return [{"source": source, "target": target} for source, target in whole]

    def _mark(self, call: int) -> str:
        return "#rest" if call == self.max_calls else f"#{call}" if call else ""

    def numbered(self, names: Sequence[str]) -> list[int | None]:
        """Return the layers of these names; None for one that is not in the table."""
        known: dict[str, int] = {}
        prefixes = self.prefixes()
        for layer, row in enumerate(self._rows):
            mark = self._mark(row["call"])
            # A probe knows one model, and its layers without the prefix of several.
            site = self.sites[row["site"]]
            for path in (self.path(site, prefixes), site.path):
                known.setdefault(path + mark, layer)
        return [known.get(name) for name in names]

    def first_layers(self) -> dict[int, int]:
        """Return for each site, by its number, the first layer that is a call of it."""
        first: dict[int, int] = {}
        for layer, row in enumerate(self._rows):
            first.setdefault(row["site"], layer)
        return first


def _num_own(module: nn.Module) -> int:
    return sum(p.numel() for p in module._parameters.values() if p is not None)


def _token_name(site: Site, call: int) -> str:
    path = f"{token(site.root)}.{site.path}" if site.path else token(site.root)
    return f"{path}#{call}" if call else path


class _Call(Protocol):
    """What is asked of a call here; `analyzer.recording.hook_classes.Call` is one."""

    site: Any
    shape: Any
    layer: int
    depth: int


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
        crowded: Sites whose later calls were found to share a row; whoever reads it empties it.
    """

    def __init__(self, layers: Layers) -> None:
        self.has_guessed = False
        self.roots_used: set[int] = set()
        self.crowded: list[Site] = []
        self._layers = layers
        self._taken: dict[int, dict[int, int]] = {}
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
        taken = self._taken.setdefault(invocation.window, {})
        if len(self._taken) > _MOST_WINDOWS:
            del self._taken[min(self._taken)]
        sites = [call.site.number for call in calls]
        is_first = not taken
        known_sites, known_layers, known_roots = self._known
        if is_first and sites == known_sites and not is_discovering:
            for number in sites:  # the usual case: the same calls as in the step before
                taken[number] = taken.get(number, 0) + 1
            self.roots_used |= known_roots
            for call, known in zip(calls, known_layers, strict=True):
                call.layer = known
            return False
        has_changed, layer = False, -1
        for call in calls:
            if call.site.number < 0:  # a further output tensor of the call before
                call.layer = layer
                continue
            has_changed |= self._number_one(call, layer, taken)
            layer = call.layer
        roots = {call.site.root for call in calls}
        self.roots_used |= roots
        if is_first:
            self._known = sites, [call.layer for call in calls], roots
        return has_changed

    def _number_one(self, call: _Call, before: int, taken: dict[int, int]) -> bool:
        """The same for one call, after a call of this layer."""
        count = taken.get(call.site.number, 0)
        taken[call.site.number] = count + 1
        layer = self._layers.layer(call.site, count)
        if layer is not None:
            call.layer = layer
            return self._layers.correct(layer, call.shape, call.depth)
        self.has_guessed |= not call.depth
        guess = self._layers.depth(before) + 1 if before >= 0 else 1
        call.layer = self._layers.add(call.site, count, call.shape, call.depth or guess)
        if count == self._layers.max_calls:
            self.crowded.append(call.site)
        return True
