"""The built-in training loop, written as a user would write it, and what a model file gives it."""

import inspect
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map_only

from analyzer.errors import AnalyzerError, ScriptError

__all__ = [
    "OPTIMIZERS",
    "choose_device",
    "model_of",
    "optimizer",
    "seed_everything",
    "takes_shortcuts",
    "train",
]

OPTIMIZERS = ("sgd", "adam", "adamw")


def train(
    model: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    *,
    steps: int,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Any, Any], Tensor] = cross_entropy,
    device: torch.device | str = "cpu",
    max_norm: float | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Train a model, already on the device, for some steps; it never waits for the device.

    The model is put into training mode. Batches are pairs of input and target, on any device; where
    they end first, so does training. ``loss(output, target)`` is a scalar. The global gradient norm
    is clipped to ``max_norm``, if any. ``on_step`` is called after each update with the step, from
    0, and its loss, still on the device.
    """
    model.train()
    # The range comes first: zip must not take a batch that no step will use.
    for step, (input, target) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        value = loss(model(_moved(input, device)), _moved(target, device))
        value.backward()  # type: ignore[no-untyped-call]
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        if on_step is not None:
            on_step(step, value.detach())


def _moved(value: Any, device: torch.device | str) -> Any:
    """Move a tensor, or the tensors in a list, tuple or dict, to the device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), value)


def optimizer(name: str, model: nn.Module, lr: float | None = None) -> torch.optim.Optimizer:
    """Build an optimizer for all parameters of a model that are trained.

    ``"sgd"`` has momentum 0.9 and by default a learning rate of 0.02; that of ``"adam"`` and
    ``"adamw"`` is 0.001.

    Raises:
        AnalyzerError: If the name is unknown, the learning rate is negative or not a number, or the
            model has nothing to train.
    """
    if lr is not None and not lr >= 0:
        raise AnalyzerError(f"learning rate {lr} is not usable; choose a number from 0, as 0.02")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise AnalyzerError(
            f"{type(model).__name__} has no parameter that requires a gradient; the built-in loop "
            "needs at least one. Unfreeze a layer."
        )
    if name not in OPTIMIZERS:
        raise AnalyzerError(f"optimizer {name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
    if name == "sgd":
        return torch.optim.SGD(trained, lr=0.02 if lr is None else lr, momentum=0.9)
    adaptive = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return adaptive(trained, lr=1e-3 if lr is None else lr)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device to train on.

    Args:
        name: ``"auto"``: the accelerator if torch finds one, else the CPU; or a device as torch
            writes it: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"xpu"``.

    Raises:
        AnalyzerError: If torch does not know the device, or this machine does not have it.
    """
    present = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if present else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    offered = ["auto", "cpu"] if accelerator is None else ["auto", "cpu", accelerator.type]
    advice = f"choose one of {', '.join(offered)}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise AnalyzerError(f"device {name!r} is unknown to torch; {advice}") from None
    if device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if present else 0
    if accelerator is None or device.type != accelerator.type or (device.index or 0) >= count:
        raise AnalyzerError(
            f"device {name!r} is not available; torch finds {count or 'no'} "
            f"{accelerator.type if accelerator else 'accelerator'} here; {advice}"
        )
    return device


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, those of all devices included.

    Of the integer from 0 numpy takes the last 32 bits.

    Raises:
        AnalyzerError: If the seed is negative.
    """
    if seed < 0:
        raise AnalyzerError(f"seed {seed} is negative; choose an integer from 0")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def takes_shortcuts(namespace: Mapping[str, Any]) -> bool:
    """Return whether ``build_model`` of a file that ran is told if there are to be shortcuts."""
    kinds = _parameters(namespace.get("build_model"))
    return "shortcuts" in kinds or inspect.Parameter.VAR_KEYWORD in kinds.values()


def _parameters(build: Any) -> dict[str, Any]:
    """The kinds of the parameters of a function, by name; none where they cannot be read."""
    try:
        return {name: one.kind for name, one in inspect.signature(build).parameters.items()}
    except (TypeError, ValueError):
        return {}


def _arguments(build: Any, point: Mapping[str, Any], target: str) -> dict[str, Any]:
    """What ``build_model`` takes of the arguments of a point of a study."""
    kinds = _parameters(build)
    if inspect.Parameter.VAR_KEYWORD in kinds.values():
        kinds = dict.fromkeys([*kinds, *point])
    lacking = [name for name in point if name not in (*kinds, "shortcuts", "seed", "lr")]
    if lacking:
        raise ScriptError(
            f"build_model({', '.join(kinds)}) of '{target}' does not take {', '.join(lacking)}, "
            "which the study varies; expected an argument of that name. Add it, or leave it out"
        )
    told = {"norm": None} if point.get("norm") == "none" else {}
    if "shortcuts" in point:
        told["shortcuts"] = point["shortcuts"] != "off"
    return {name: value for name, value in {**point, **told}.items() if name in kinds}


def model_of(
    namespace: Mapping[str, Any], target: str, point: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return ``model``, or what ``build_model()`` returns, from the globals of a file that ran.

    With the arguments of a point of a study it is ``build_model(**point)``: those that it takes,
    ``shortcuts`` as a truth value and the norm ``none`` as None.

    Raises:
        ScriptError: If it defines neither, builds something else, or does not take what varies.
    """
    found = ", ".join(sorted(name for name in namespace if not name.startswith("_"))) or "nothing"
    model = None if point is not None else namespace.get("model")
    if isinstance(model, nn.Module):
        return model
    build: Callable[..., Any] | None = namespace.get("build_model")
    if callable(build):
        built = build(**_arguments(build, point or {}, target))
        if isinstance(built, nn.Module):
            return built
        raise ScriptError(
            f"build_model() of '{target}' returned a {type(built).__name__}; expected a "
            "torch.nn.Module to train"
        )
    raise ScriptError(
        f"'{target}' ran no backward pass and defines {found}; expected a training script, or a "
        "file that defines `model` (a torch.nn.Module) or `build_model()`"
    )
