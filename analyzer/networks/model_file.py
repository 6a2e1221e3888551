"""The model that a user's file defines."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from analyzer.errors import ScriptError

__all__ = ["model_of"]


def model_of(namespace: Mapping[str, Any], target: str) -> nn.Module:
    """Return ``model``, or what ``build_model()`` returns.

    Args:
        namespace: The globals of the file after it ran.
        target: Its path, for the messages.

    Raises:
        ScriptError: If it defines neither, or builds something else.
    """
    found = ", ".join(sorted(name for name in namespace if not name.startswith("_"))) or "nothing"
    model = namespace.get("model")
    if isinstance(model, nn.Module):
        return model
    build: Callable[[], Any] | None = namespace.get("build_model")
    if callable(build):
        built = build()
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
