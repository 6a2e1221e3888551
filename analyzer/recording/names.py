"""Names of models, modules and parameters as a user would write them, and the models in sight."""

import gc
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = [
    "RootModel",
    "clean_path",
    "container_of",
    "in_words",
    "kind_of",
    "models_that_hold",
    "root_prefixes",
    "unwrapped",
]

_WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
}
_MOST_NAMED = 4


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the user's model inside the wrappers of torch (DDP, DataParallel, compile, FSDP)."""
    while (attribute := _WRAPPERS.get(type(model).__name__)) is not None:
        inner = model._modules.get(attribute)
        if inner is None:
            break
        model = inner
    return model


def kind_of(module: nn.Module) -> str:
    """Return the class of a module as the user wrote it: FSDP2 puts one of its own before it."""
    kind = type(module)
    return next((k.__name__ for k in kind.__mro__ if not hasattr(k, "_get_fsdp_state")), "Module")


def clean_path(path: str) -> str:
    """Return a module or parameter path without the parts that wrappers put into it."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPER_PARTS)


@dataclass(slots=True)
class RootModel:
    """What the names of a root model need; they stay where the model itself is gone.

    Args:
        model: The model, held weakly.
        kind: Its class, without the wrappers of torch.
        variable: The last variable of ``__main__`` that held it.
        container: The root that was found to contain it, and its path there.
    """

    model: weakref.ref[nn.Module]
    kind: str
    variable: str = ""
    container: tuple[int, str] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "RootModel":
        """Return what is known of a model."""
        return cls(weakref.ref(model), kind_of(unwrapped(model)))


def root_prefixes(roots: Sequence[RootModel], *, is_alone: bool | None = None) -> list[str]:
    """Return what to write before the paths of each root: nothing for a single one.

    Several roots are told apart by their variable name in ``__main__``, else by class name and
    number. A root inside of another one has the path that it has there.

    Args:
        roots: The models in the order in which they were found.
        is_alone: Whether there is a single one; None to count.
    """
    outermost = [root for root in roots if root.container is None]
    if len(outermost) < 2 if is_alone is None else is_alone:
        prefixes = [""] * len(roots)
    else:
        prefixes = _told_apart(roots)
    for number, root in enumerate(roots):
        path, around = "", root.container
        while around is not None:  # containers come later, and may be inside of others in turn
            container, inner = around
            path = f"{inner}.{path}" if inner else path
            around = roots[container].container
        if root.container is not None:
            prefixes[number] = prefixes[container] + path
    return prefixes


def _told_apart(roots: Sequence[RootModel]) -> list[str]:
    variables = {
        id(unwrapped(value)): name
        for name, value in reversed(list(vars(sys.modules["__main__"]).items()))
        if isinstance(value, nn.Module) and not name.startswith("_")
    }
    living: set[str] = set()
    for root in roots:
        model = root.model()
        if model is not None and (name := variables.get(id(unwrapped(model)))) is not None:
            root.variable = name
            living.add(name)
    names: list[str] = []
    for number, root in enumerate(roots):
        # A variable that holds another model by now names that one.
        is_free = root.variable not in (living if root.model() is None else ())
        own = root.variable if is_free and root.variable not in names else ""
        names.append(own or f"{root.kind}{number}")
    return [f"{name}." for name in names]


def in_words(names: Sequence[str]) -> str:
    """Return a few names, and how many there are besides."""
    more = len(names) - _MOST_NAMED
    listed = ", ".join(names[:_MOST_NAMED] if more > 0 else names)
    return f"{listed} and {more} more" if more > 0 else listed


def _visible_modules() -> Iterator[nn.Module]:
    """Modules that variables of ``__main__`` or of the running functions hold."""
    scopes: list[dict[str, Any]] = [vars(sys.modules["__main__"])]
    frame = sys._getframe(1)
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(("torch.", "analyzer.")):
            scopes.append(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    for scope in scopes:
        for value in list(scope.values()):
            if isinstance(value, nn.Module):
                yield value
            elif type(value).__module__ == "__main__" and hasattr(value, "__dict__"):
                yield from (v for v in vars(value).values() if isinstance(v, nn.Module))


def container_of(module: nn.Module) -> nn.Module:
    """Return the largest module in sight that contains this one: the model of which it is a part.

    A script may call ``model.encoder(x)`` and ``model.decoder(h)`` and never ``model(x)``.
    """
    best, best_size = module, -1
    for candidate in _visible_modules():
        parts = list(candidate.modules())
        if len(parts) > best_size and any(part is module for part in parts):
            best, best_size = candidate, len(parts)
    return best


def models_that_hold(tensors: Iterable[Tensor]) -> list[nn.Module]:
    """Return the models that own these parameters, each the largest that is known.

    First those in sight; for tensors that none of them owns, all modules of this process are looked
    through, which takes tens of milliseconds.
    """
    wanted = {id(tensor) for tensor in tensors}
    found: list[nn.Module] = []
    for places in (_visible_modules, _living_modules):
        sizes = {id(model): (len(list(model.modules())), model) for model in places()}
        for _, model in sorted(sizes.values(), key=lambda pair: -pair[0]):
            held = wanted.intersection(map(id, model.parameters()))
            if held:
                found.append(model)
                wanted -= held
        if not wanted:
            break
    return found


def _living_modules() -> Iterator[nn.Module]:
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.Module) and "_parameters" in vars(thing):
            yield thing
