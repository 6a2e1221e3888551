"""The checkpoints of a run: which there are, and their weights under the names of a model."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from analyzer.errors import AnalyzerError, NotRecordedError
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
        AnalyzerError: If it is of another model.
    """
    saved, wanted = load_file(file), model.state_dict()
    prefixes = {name.removesuffix(key) for name in saved for key in wanted if name.endswith(key)}
    for prefix in sorted(prefixes, key=len):
        if all(prefix + key in saved for key in wanted):
            return {key: saved[prefix + key] for key in wanted}
    missing = next(iter(sorted(set(wanted) - set(saved))), "")
    raise AnalyzerError(
        f"checkpoint {file.name} does not fit the model that was built again: it has no "
        f"{missing!r}. Was the program changed since?"
    )
