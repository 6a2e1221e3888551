"""Where a run comes from, without paths or names of users and hosts; where it goes; its options."""

import inspect
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from analyzer.errors import RunExistsError
from analyzer.launch import join, launch_of_process
from analyzer.options import RECORDER, options_of, with_parameters
from analyzer.recording.names import unwrapped
from analyzer.storage.catalog import resolve_run

__all__ = [
    "RANDOM_STATES",
    "device_name",
    "environment",
    "git_state",
    "restore_random_states",
    "run_folder",
    "saver_of_random_states",
    "takes_options",
]

RANDOM_STATES = "random_states.safetensors"
"""Where a run keeps the states with which its program began."""
_Class = TypeVar("_Class", bound=type)
_PACKAGES = ("gradient-flow-analyzer", "torch", "numpy", "pyarrow")


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and whether there are uncommitted changes; None outside a repository."""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            ).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Return versions, determinism flags and threads of this process."""
    return {
        "created": datetime.now(UTC).isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "determinism": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads(),
        },
        "python_flags": {"hash_seed": os.environ.get("PYTHONHASHSEED"), "dev": sys.flags.dev_mode},
    }


def device_name(device: torch.device) -> str:
    """Return a device as a reader knows it: ``cpu``, or type and model of an accelerator."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def saver_of_random_states() -> Callable[[Path], None]:
    """Return what writes the present states of torch's, numpy's and Python's generators."""
    _, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    _, python, python_gauss = random.getstate()
    arrays = {
        "torch": torch.get_rng_state().numpy().copy(),
        "numpy": np.asarray(words, dtype=np.uint32),
        "numpy_position": np.array([position, has_gauss], dtype=np.int64),
        "numpy_gauss": np.array([gauss], dtype=np.float64),
        "python": np.array(python, dtype=np.uint32),
        "python_gauss": np.array([] if python_gauss is None else [python_gauss], dtype=np.float64),
    }
    return lambda path: save_file(arrays, path)


def restore_random_states(run: Path) -> bool:
    """Set the generators to the states that a run holds; return whether it holds any.

    Args:
        run: The folder of the run.
    """
    if not (run / RANDOM_STATES).is_file():
        return False
    arrays = load_file(run / RANDOM_STATES)
    position, has_gauss = arrays["numpy_position"].tolist()
    gauss = float(arrays["numpy_gauss"][0])
    torch.set_rng_state(torch.from_numpy(arrays["torch"].copy()))
    np.random.set_state(("MT19937", arrays["numpy"], position, has_gauss, gauss))
    last = arrays["python_gauss"].tolist()
    random.setstate((3, tuple(arrays["python"].tolist()), last[0] if last else None))
    return True


def run_folder(
    model: nn.Module | None,
    run: str | os.PathLike[str] | None,
    exist: str | None,
    resume: str | None = None,
) -> Path:
    """Return the folder that a `Recorder` writes to; the arguments are its own.

    The ranks of a launch share it.

    Raises:
        RunExistsError: If it exists and no other name may be taken.
        RunNotFoundError: If there is no run to resume.
    """
    if resume is not None:
        path = resolve_run(resume)
        if (launch := launch_of_process()) is not None:
            join(path, launch, resumes=True)  # nothing new where it has done so
        return path
    if run is None:
        stem = "run" if model is None else type(unwrapped(model)).__name__.lower()
        runs = Path(os.environ.get("ANALYZER_RUNS", "runs"))
        return next(path for k in range(sys.maxsize) if _is_free(path := runs / f"{stem}-{k}"))
    path = Path(run)
    if exist == "use" or _is_free(path):
        return path
    in_notebook = "ipykernel" in sys.modules
    if exist == "raise" or (exist is None and not in_notebook):
        raise RunExistsError(
            f"run folder '{path}' exists; a run is never overwritten: "
            'choose another folder, or pass exist="new"'
        )
    free = next(
        candidate
        for k in range(1, sys.maxsize)
        if _is_free(candidate := path.with_name(f"{path.name}-{k}"))
    )
    print(f"analyzer: run folder '{path}' exists; recording into '{free}'", file=sys.stderr)
    return free


def _is_free(path: Path) -> bool:
    """Whether this process may write there: nobody does, or the other ranks of its launch."""
    launch = launch_of_process()
    if launch is None:
        return not path.exists()
    try:
        return join(path, launch) is not None
    except OSError:
        return True  # the recorder says why it cannot


def takes_options(kind: _Class) -> _Class:
    """Write the options of a recording into the signature and the docstring of a class."""
    signature = with_parameters(inspect.signature(kind), _parameters())
    documentation = f"    Options:\n{_described()}\n\n    Raises:"
    kind.__signature__ = signature  # type: ignore[attr-defined]
    kind.__doc__ = (kind.__doc__ or "").replace("    Raises:", documentation, 1)
    return kind


def _parameters() -> Iterator[inspect.Parameter]:
    for one in options_of(RECORDER):
        keyword = inspect.Parameter.KEYWORD_ONLY
        yield inspect.Parameter(one.name, keyword, default=one.default, annotation=one.type)


def _described() -> str:
    lines = []
    for one in options_of(RECORDER):
        option = one.metadata["option"]
        values = f" ({option.metavar})" if option.metavar else ""
        lines.append(f"        {one.name}{values}: {option.help} Default: {one.default!r}.")
    return "\n".join(lines)
