"""What several ranks have of one model: who trains on other data, and who holds which part."""

import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor, distributed, nn
from torch.autograd.graph import Node
from torch.nn.parallel import DistributedDataParallel

from analyzer.launch import Rank

__all__ = [
    "Piece",
    "data_parallel_ranks",
    "find_parts",
    "gives_zeros",
    "is_distributed",
    "keeps_gradients",
    "norms_here",
    "num_parts",
    "pieces",
]


def is_distributed(x: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``."""
    return hasattr(type(x), "device_mesh")


def num_parts(x: Tensor) -> int:
    """Return in how many parts the ranks hold a tensor: 1 where each has all of it."""
    return _parts(x.placements, x.device_mesh) if is_distributed(x) else 1  # type: ignore[attr-defined]


def _parts(placements: Sequence[Any], mesh: Any) -> int:
    cut = (d for d, p in enumerate(placements) if not (p.is_replicate() or p.is_partial()))
    return math.prod(mesh.size(dim) for dim in cut)


def data_parallel_ranks(roots: Iterable[weakref.ref[nn.Module]]) -> int | None:
    """Return over how many ranks gradients are averaged, each of a batch of its own.

    ``DistributedDataParallel`` and FSDP say so. Of a model whose weights are split without them,
    as in tensor parallel, the ranks of one mesh share a batch. None where nothing says so.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    alive = [model for ref in roots if (model := ref()) is not None]
    for module in (module for model in alive for module in model.modules()):
        if (found := _averaged_over(module)) is not None:
            return found
    split: Any = (p for model in alive for p in model.parameters() if is_distributed(p))
    first = next(split, None)
    return None if first is None else distributed.get_world_size() // first.device_mesh.size()


def _is_flattened(module: nn.Module) -> bool:
    """Whether FSDP1 wraps a module; told by its name, so that nothing is imported for it."""
    return type(module).__name__ == "FullyShardedDataParallel"


def _averaged_over(module: Any) -> int | None:
    if _is_flattened(module) or isinstance(module, DistributedDataParallel):
        # Hybrid sharding: a group holds the parts of one copy, another one the copies of one part.
        copies = getattr(module, "_inter_node_pg", None)
        return distributed.get_world_size(module.process_group) * (copies.size() if copies else 1)
    if hasattr(module, "_get_fsdp_state"):
        groups = getattr(module._get_fsdp_state(), "_fsdp_param_groups", ())
        for info in (group.mesh_info for group in groups):
            kinds = ("shard_mesh_size", "replicate_mesh_size")
            return math.prod(int(getattr(info, kind, 1)) for kind in kinds)
    return None


class Piece(NamedTuple):
    """What this rank holds of a parameter that is flattened and cut: its whole shape, and how much.

    ``num_parts`` ranks hold a part each, this one ``num_here`` elements.
    """

    shape: list[int]
    num_parts: int
    num_here: int


def pieces(root: nn.Module) -> dict[int, Piece]:
    """Return what this rank holds of the parameters that FSDP1 flattens and cuts, by their id.

    With ``use_orig_params`` that is each parameter of the model, else a flat one for each wrapped
    module, without the elements that fill it up.
    """
    found = {}
    for module in root.modules():
        handle = getattr(module, "_handle", None)
        if not _is_flattened(module) or handle is None or not handle.uses_sharded_strategy:
            continue
        flat = handle.flat_param
        if flat._params is None:
            shape, here = list(flat._unpadded_unsharded_size), math.prod(flat._sharded_size)
            found[id(flat)] = Piece(shape, handle.world_size, here)
            continue
        for parameter, shape, info in zip(
            flat._params, flat._shapes, flat._shard_param_infos, strict=True
        ):
            here = info.numel_in_shard or 0
            found[id(parameter)] = Piece(list(shape), handle.world_size, here)
    return found


def gives_zeros(root: nn.Module) -> bool:
    """Whether parameters that no pass uses get a gradient of zero: FSDP1 cuts it from its own."""
    return any(map(_is_flattened, root.modules()))


def keeps_gradients(root: nn.Module | None) -> bool:
    """Whether FSDP keeps what a backward pass gives for a later one, that has them all.

    That is ``set_requires_gradient_sync(False)``: until then parameters have no gradient.
    """
    if root is None or not any(map(is_distributed, root.parameters())):
        return False
    modules: Iterable[Any] = root.modules()
    states = (m._get_fsdp_state() for m in modules if hasattr(m, "_get_fsdp_state"))
    groups = (group for state in states for group in getattr(state, "_fsdp_param_groups", ()))
    return any(not group.reduce_grads for group in groups)


def find_parts(calls: Sequence[Any], parts: dict[int, int]) -> None:
    """Note in how many parts the ranks hold the outputs of layers, by the number of their site.

    A plain tensor is a part where it was computed from the local tensor of a ``DTensor``: its graph
    leads there.

    Args:
        calls: Calls in call order, with the graph node of their output.
        parts: What is known by now, and gets the rest.
    """
    known: dict[Node, int] = {}
    for call in calls:
        if call.node is not None and call.site.number >= 0:
            parts.setdefault(call.site.number, _parts_below(call.node, known))


def _parts_below(start: Node, known: dict[Node, int]) -> int:
    stack = [(start, False)]
    while stack:
        node, is_expanded = stack.pop()
        if node in known:
            continue
        spec = getattr(node, "dtensor_spec", None)
        if spec is not None:
            known[node] = _parts(spec.placements, spec.mesh)
            continue
        children = [child for child, _ in node.next_functions if child is not None]
        if is_expanded:
            known[node] = max((known[child] for child in children), default=1)
            continue
        stack.append((node, True))
        stack.extend((child, False) for child in children if child not in known)
    return known[start]


def norms_here(run: Any, rank: Rank, steps: slice) -> pa.Table:
    """Return step, parameter and norm of the parameters at some steps, as a rank holds them.

    Of what all ranks have whole, the row of any of them will do: one may have died before it wrote.
    """
    if not rank.is_one_of_many:
        return run.read("parameter_stats", "norm", steps=steps)
    rows = run.read("parameter_stats", "norm", steps=steps, ranks="all")
    parts = run.manifest.get("parts") or {}
    table, split = run.static_rows("parameters"), parts.get("parameters", {})
    names = zip(table.column(0).to_pylist(), table.column("name").to_pylist(), strict=True)
    own = [id_ for id_, name in names if name in split]
    numbers, ids, at = (rows.column(name).to_numpy() for name in ("rank", "parameter", "step"))
    is_other = numbers != rank.number
    order = np.lexsort((is_other, ids, at))
    order = order[~(is_other & np.isin(ids, own))[order]]
    is_first = np.append(True, (np.diff(at[order]) != 0) | (np.diff(ids[order]) != 0))
    return rows.take(order[is_first[: len(order)]])
