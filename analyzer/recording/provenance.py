"""Where a run comes from, without paths or names of users and hosts; where it goes, and continues.

A training that continues a run begins at the step whose weights, or whose loss, are its own.
"""

import inspect
import itertools
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from analyzer.errors import RunExistsError
from analyzer.launch import Rank, join, launch_of_process, url_of
from analyzer.options import RECORDER, RecordOptions, options_of, with_parameters
from analyzer.recording.models import Models
from analyzer.recording.names import unwrapped
from analyzer.recording.part import ParameterRows, loss_of
from analyzer.recording.ranks import norms_here
from analyzer.recording.scaling import scale_of
from analyzer.storage.arrays import as_floats, as_numpy, is_present
from analyzer.storage.catalog import refuse_links, resolve_run
from analyzer.storage.run import Run
from analyzer.storage.uploading import begun_at, continued_at

__all__ = [
    "RANDOM_STATES",
    "Places",
    "environment",
    "git_state",
    "loss_of_roots",
    "restore_random_states",
    "run_folder",
    "saver_of_random_states",
    "takes_options",
]

RANDOM_STATES = "random_states.safetensors"
"""Where a run keeps the states with which its program began."""
_Class = TypeVar("_Class", bound=type)
_PACKAGES = ("gradient-flow-analyzer", "torch", "numpy", "pyarrow")
# Rows that are compared with the present weights at a time, and steps after one that matches.
_ROWS_AT_ONCE = 1_000_000
_STEPS_AFTER = 64
# The norms of the same weights differ by less, and those of weights after an update by more.
_SAME = 1e-12
# Steps in which the last measured update is looked for, as multiples of the interval.
_TURNS = 16


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
        url = url_of(resume)
        path = resolve_run(resume) if url is None else continued_at(url)
        refuse_links(path)
        if (launch := launch_of_process()) is not None:
            join(path, launch, resumes=True)  # nothing new where it has done so
        return path
    is_fixed = exist == "raise" or (exist is None and "ipykernel" not in sys.modules)
    if run is None:
        stem = "run" if model is None else type(unwrapped(model)).__name__.lower()
        runs = Path(os.environ.get("ANALYZER_RUNS", "runs"))
        if (url := url_of(runs)) is not None:
            return begun_at(f"{url}/{stem}-{k}" for k in range(sys.maxsize))
        return next(path for k in range(sys.maxsize) if _is_free(path := runs / f"{stem}-{k}"))
    if (url := url_of(run)) is not None:
        others = (f"{url}-{k}" for k in range(1, 1 if is_fixed else sys.maxsize))
        return begun_at(itertools.chain([url], others))
    path = Path(run)
    if exist == "use" or _is_free(path):
        return path
    if is_fixed:
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


def loss_of_roots(roots: Sequence[Any]) -> float | None:
    """Return the loss of a backward pass, unscaled; None where it has no single one."""
    found = [loss_of(root, scale_of(roots)) for root in roots]
    if len(found) != 1 or found[0] is None:
        return None
    value, scale = found[0]
    return float(value) if scale is None else float(value) / float(scale)


class Places:
    """The steps of a run, by the weights with which they began and by their losses.

    Args:
        run: The run.
        known: Returns the id of a row of parameters in the run; None for an unknown one.
        rank: What this process is in the run.
    """

    def __init__(
        self, run: Run, known: Callable[[Mapping[str, Any]], int | None], rank: Rank
    ) -> None:
        self._run, self._known, self._rank = run, known, rank

    def following(self) -> int:
        """Return the step after the last recorded one."""
        recorded = self._run.recorded_steps()
        return int(recorded[-1]) + 1 if len(recorded) else 0

    def by_weights(self, models: Models, loss: float | None) -> int | None:
        """Return the recorded step that began with the present weights; None where none did.

        Of several that did, the one with this loss, else the last. A step of which no weights were
        recorded is found by the loss alone, if no other has it.
        """
        steps = self._run.read("steps", ["loss", "skipped", "learning_rate"])
        numbers, losses = as_numpy(steps.column("step")), as_floats(steps.column("loss"))
        candidates = self._steps_with(self._norms(models))
        if not candidates:
            return self.by_loss(loss)
        alike = set(numbers[losses == loss].tolist()) if loss is not None else set()
        found = max(alike & candidates or candidates)
        at = np.flatnonzero(numbers == found)
        if len(at) and found not in alike:
            skipped, rate = (steps.column(c)[at[0]].as_py() for c in ("skipped", "learning_rate"))
            found += bool(skipped) or rate == 0  # the weights of the next step are the same
        return found

    def by_loss(self, loss: float | None) -> int | None:
        """Return the one step with this loss of which no weights were recorded; None for more."""
        if loss is None:
            return None
        steps = self._run.read("steps", "loss")
        alike = as_numpy(steps.column("step"))[as_floats(steps.column("loss")) == loss]
        found = set(alike.tolist()) - set(self._run.recorded_steps("parameter_stats").tolist())
        return found.pop() if len(found) == 1 else None

    def _norms(self, models: Models) -> dict[int, float]:
        """The norms of the parameters as they are now, by their ids in the run."""
        rows = ParameterRows()
        models.parameters.read(models.parameters.trainable(), rows)
        found = {
            self._known(row): rows.norm.get(row["parameter"])
            for row in models.parameters.rows(models.layers)
        }
        return {id_: float(x) for id_, x in found.items() if id_ is not None and x is not None}

    def _steps_with(self, norms: Mapping[int, float]) -> set[int]:
        """The recorded steps that began with weights of these norms, the latest that there are."""
        recorded = self._run.recorded_steps("parameter_stats")
        num_rows = self._run.static_rows("parameters").num_rows
        span = max(_STEPS_AFTER, _ROWS_AT_ONCE // max(1, num_rows))
        for end in range(len(recorded), 0, -span):
            some = recorded[max(0, end - span) : end]
            after = recorded[min(end + _STEPS_AFTER, len(recorded)) - 1]
            found = self._matching(norms, int(some[0]), int(some[-1]), int(after))
            if found:
                return found
        return set()

    def _matching(self, norms: Mapping[int, float], first: int, last: int, after: int) -> set[int]:
        rows = norms_here(self._run, self._rank, slice(first, after + 1))
        steps, ids = (as_numpy(rows.column(name)) for name in ("step", "parameter"))
        wanted = np.array([norms.get(id_, np.nan) for id_ in ids.tolist()])
        is_same = np.abs(as_floats(rows.column("norm")) - wanted) <= _SAME * np.abs(wanted)
        is_same |= ~is_present(rows.column("norm"))
        firsts = np.flatnonzero(np.append(True, steps[1:] != steps[:-1]))[: len(steps)]
        every = np.logical_and.reduceat(is_same, firsts) if len(steps) else np.zeros(0, bool)
        found = set()
        for at in firsts[every]:
            # Of others, which another optimizer holds, the next rows are those of now, too.
            upcoming = ids[at : np.searchsorted(steps, steps[at] + _STEPS_AFTER)]
            _, next_rows = np.unique(upcoming, return_index=True)
            if steps[at] <= last and is_same[at + next_rows].all():
                found.add(int(steps[at]))
        return found

    def turns(self, models: Models, options: RecordOptions, first: int) -> dict[int, int]:
        """Return how many of its updates each parameter is past the last one that was measured.

        Args:
            models: The models, by whose numbers of parameters the answer is.
            options: How often updates are measured.
            first: The step that is about to be recorded.
        """
        steps = slice(max(0, first - _TURNS * options.updates_every * options.every), first)
        rows = self._run.read("parameter_stats", "update_norm", steps=steps)
        skipped = self._run.read("steps", "skipped", steps=steps)
        left_out = as_numpy(skipped.column("step"))[as_floats(skipped.column("skipped")) > 0]
        numbers, ids = (as_numpy(rows.column(name)) for name in ("step", "parameter"))
        is_measured, counted = is_present(rows.column("update_norm")), ~np.isin(numbers, left_out)
        found: dict[int, int] = {}
        for row in models.parameters.rows(models.layers):
            mine = ids == self._known(row)
            measured = numbers[mine & is_measured]
            if len(measured):
                found[row["parameter"]] = int(np.sum(mine & counted & (numbers > measured[-1])))
        return found
