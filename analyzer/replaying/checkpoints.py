"""The checkpoints of a run: which there are, and their weights under the names of a model."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.recording.names import root_prefixes
from analyzer.storage.run import Run

__all__ = ["checkpoints_of", "state_of"]


def checkpoints_of(run: Run, which: str) -> dict[int, Path]:
    """Return the checkpoints of a run by step.

    Args:
        run: The run.
        which: A step, ``last`` or ``all``.

    Raises:
        NotRecordedError: If there is no such checkpoint; the message lists those there are.
        AnalyzerError: If ``which`` is neither.
    """
    files = sorted((run.path / "checkpoints").glob("step-*.safetensors"))
    known = {int(file.stem.removeprefix("step-")): file for file in files}
    if not known:
        raise NotRecordedError(
            f"run '{run.name}' holds no checkpoint; record with --checkpoint-every N"
        )
    if which == "all":
        return known
    if which == "last":
        return {max(known): known[max(known)]}
    if not which.isdigit():
        raise AnalyzerError(f"--step is {which!r}; expected a step, last or all")
    if int(which) not in known:
        raise NotRecordedError(
            f"run '{run.name}' holds no checkpoint of step {which}; it has those of steps "
            f"{', '.join(map(str, known))}"
        )
    return {int(which): known[int(which)]}


def state_of(model: nn.Module, file: Path) -> dict[str, Tensor]:
    """Read a checkpoint, also one of several models whose names have prefixes.

    Args:
        model: The model that it is for.
        file: The checkpoint.

    Returns:
        A state dict of the model.

    Raises:
        AnalyzerError: If it is of another model, or of several that could be this one.
    """
    saved, wanted = load_file(file), model.state_dict()
    shapes = {key: value.shape for key, value in wanted.items() if isinstance(value, Tensor)}
    prefixes = {name.removesuffix(key) for name in saved for key in shapes if name.endswith(key)}
    fitting = sorted(
        prefix
        for prefix in prefixes
        if all(
            prefix + key in saved and saved[prefix + key].shape == shape
            for key, shape in shapes.items()
        )
    )
    if not fitting:
        raise AnalyzerError(
            f"checkpoint {file.name} does not fit the model that was built again: "
            f"{_misfit(saved, shapes)}. Was the program changed since?"
        )
    # With another one beside it, a model has the name of its variable.
    own = fitting[0] if len(fitting) == 1 else "" if "" in fitting else _variable(model)
    if own not in fitting:
        names = ", ".join(repr(prefix.rstrip(".")) for prefix in fitting)
        raise AnalyzerError(
            f"checkpoint {file.name} holds several models of the same shape, {names}, and this is "
            "none of them by name. Give it a variable in the script, outside of functions."
        )
    # What is no tensor, such as extra state, no checkpoint holds.
    return {**wanted, **{key: saved[own + key] for key in shapes}}


def _variable(model: nn.Module) -> str:
    """The prefix of a model that is not the only one."""
    return root_prefixes([model, None])[0]


def _misfit(saved: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> str:
    """The first difference between a checkpoint and a model."""
    for key, shape in shapes.items():
        found = [value.shape for name, value in saved.items() if name.endswith(key)]
        if not found:
            return f"it has no {key!r}"
        if shape not in found:
            return f"its {key!r} has shape {list(found[0])}, that of the model {list(shape)}"
    return "it has these names only in parts"
