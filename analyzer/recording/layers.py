"""Which modules are layers, and the table of the layers that a training really calls."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from analyzer.recording.live_log import token
from analyzer.recording.names import clean_path, root_prefixes, unwrapped

__all__ = ["Layers", "Site", "is_site", "own_unit_axis"]

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


def is_site(module: nn.Module) -> bool:
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
            if is_site(module) and id(module) not in known:
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
