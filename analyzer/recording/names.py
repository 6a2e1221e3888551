"""Names of models, modules and parameters as a user would write them."""

import sys
from collections.abc import Sequence

from torch import nn

__all__ = ["clean_path", "root_prefixes", "unwrapped"]

_WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's model inside the wrappers of torch (DDP, DataParallel, compile, FSDP)."""
    while (attribute := _WRAPPERS.get(type(model).__name__)) is not None:
        inner = model._modules.get(attribute)
        if inner is None:
            break
        model = inner
    return model


def clean_path(path: str) -> str:
    """Return a module or parameter path without the parts that wrappers put into it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPER_PARTS)


def root_prefixes(roots: Sequence[nn.Module | None]) -> list[str]:
    """Return what to write before the paths of each root: nothing for a single one.

    Several roots are told apart by their variable name in ``__main__``, else by class name and
    number. None stands for a model that is gone.
    """
    if len(roots) < 2:
        return [""] * len(roots)
    variables = {
        id(unwrapped(value)): name
        for name, value in reversed(list(vars(sys.modules["__main__"]).items()))
        if isinstance(value, nn.Module) and not name.startswith("_")
    }
    prefixes: list[str] = []
    for number, root in enumerate(roots):
        inner = None if root is None else unwrapped(root)
        kind = "model" if inner is None else type(inner).__name__
        prefixes.append(f"{variables.get(id(inner)) or kind + str(number)}.")
    return prefixes
