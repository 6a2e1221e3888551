"""Probes on the checkpoints of a finished run: its model and first batch, built once more."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from analyzer.errors import AnalyzerError, NotRecordedError
from analyzer.probes import Measurement
from analyzer.recording.probing import Call, Held, Probing, measured
from analyzer.recording.random_states import restore_random_states
from analyzer.recording.schedule import ProbePlan, Schedule
from analyzer.recording.stopping import StopTraining
from analyzer.recording.training import Training
from analyzer.script import run_program, when_imported
from analyzer.storage.parts import write_table
from analyzer.storage.records import probe_table
from analyzer.storage.run import Run, open_run

__all__ = ["checkpoints_of", "command_of", "probe_run", "replay_script"]

_CHILD_FAILED = 3


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


def probe_run(
    run: Run, names: Sequence[str], which: str, say: Callable[[str], None] = lambda _: None
) -> None:
    """Measure probes on the checkpoints of a run of a zoo network or a model file.

    Args:
        run: The run; its tables get the new ones, none that exists is written again.
        names: The probes.
        which: A step, ``last`` or ``all``.
        say: Receives a sentence about each table.

    Raises:
        AnalyzerError: If the run cannot be rebuilt, with the reason.
    """
    checkpoints = checkpoints_of(run, which)
    manifest = run.manifest
    kind = manifest.get("kind")
    if kind == "zoo":
        held = _zoo(manifest)
    elif kind == "model file":
        held = _model_file(manifest)
    else:
        raise AnalyzerError(
            f"run '{run.name}' is of {_described(kind)}; probing it means to start that program "
            "once more, up to its first update: add --replay"
        )
    _check_batch(run, held)
    _measure_all(run, held, names, checkpoints, say)


def _described(kind: Any) -> str:
    return "a training script" if kind == "script" else "a Recorder in somebody's own program"


class _Loss:
    """The loss of a built-in training: a function of output and targets, on one batch."""

    def __init__(self, loss: Callable[[Any, Any], Tensor], target: Any) -> None:
        self._loss = loss
        self._target = target

    def __call__(self, output: Any, targets: Any = None) -> Tensor:
        return self._loss(output, self._target)

    @property
    def labels(self) -> Tensor | None:
        """The classes of the samples, where the targets are classes."""
        target = self._target
        is_classes = isinstance(target, Tensor) and target.dim() == 1
        return target if is_classes and not target.is_floating_point() else None


def _zoo(manifest: Mapping[str, Any]) -> Held:
    from torch.nn.functional import cross_entropy

    from analyzer.networks.data import batches, dataset
    from analyzer.networks.loop import seed_everything
    from analyzer.networks.zoo import zoo_for

    seed = manifest["seed"]
    seed_everything(seed)
    data = dataset(manifest["data"], seed=seed)
    model = zoo_for(manifest["argv"][0].removeprefix("zoo:"), data, seed=seed)
    stream = batches(data, manifest["batch_size"], seed=seed, device=torch.device("cpu"))
    return _first_batch(model, stream, cross_entropy)


def _model_file(manifest: Mapping[str, Any]) -> Held:
    from torch.nn.functional import cross_entropy

    from analyzer.networks.data import batches, dataset
    from analyzer.networks.loop import seed_everything
    from analyzer.networks.model_file import model_of

    seed, target = manifest["seed"], manifest["argv"][0]
    ending = run_program(target, manifest["argv"][1:])
    if ending.exit_code != 0:
        raise AnalyzerError(f"'{target}' failed; the run cannot be rebuilt from it")
    seed_everything(seed)
    model = model_of(ending.namespace, target)
    if "batches" in ending.namespace:
        stream = ending.namespace["batches"]()
    else:
        data = dataset(manifest["data"], seed=seed)
        size = manifest["batch_size"]
        stream = batches(data, size, seed=seed, device=torch.device("cpu"))
    return _first_batch(model, stream, ending.namespace.get("loss", cross_entropy))


def _first_batch(model: nn.Module, stream: Any, loss: Callable[[Any, Any], Tensor]) -> Held:
    inputs, target = next(iter(stream))
    return Held(0, Call(model, (inputs,), {}, None), _Loss(loss, target), None)


def _check_batch(run: Run, held: Held) -> None:
    """The first batch must be the recorded one: another means other data or random numbers."""
    expected = run.manifest.get("first_batch")
    if expected is not None and held.hash() != expected:
        raise AnalyzerError(
            f"the first batch of run '{run.name}' cannot be had again: its digest is "
            f"{held.hash()}, the recorded one {expected}. Data, seed, arguments or device differ"
        )


def _measure_all(
    run: Run,
    held: Held,
    names: Sequence[str],
    checkpoints: Mapping[int, Path],
    say: Callable[[str], None],
) -> None:
    for step, file in checkpoints.items():
        _load(held.call.model, file)
        for name in names:
            place = run.path / "probes" / name / f"step-{step:012d}.parquet"
            if place.exists():
                say(f"{name} of step {step} is there already; kept")
                continue
            measurement = measured(name, held)
            place.parent.mkdir(parents=True, exist_ok=True)
            columns = _with_layers(run, measurement)
            write_table(place, probe_table(name, columns, measurement.metadata))
            say(f"{name} of step {step}: {measurement.metadata['seconds']} s")


def _with_layers(run: Run, measurement: Measurement) -> dict[str, Any]:
    """The columns with the numbers that layers have in the run."""
    columns = dict(measurement.columns)
    if "layer" in columns and "name" in columns:
        layers = run.layers
        known = dict(zip(layers["name"], layers["layer"], strict=True))
        columns["layer"] = [known.get(name) for name in columns["name"]]
    return columns


def _load(model: nn.Module, file: Path) -> None:
    """Load a checkpoint, also one of several models whose names have prefixes."""
    saved, wanted = load_file(file), model.state_dict()
    prefixes = {name.removesuffix(key) for name in saved for key in wanted if name.endswith(key)}
    for prefix in sorted(prefixes, key=len):
        if all(prefix + key in saved for key in wanted):
            model.load_state_dict({key: saved[prefix + key] for key in wanted})
            return
    missing = next(iter(sorted(set(wanted) - set(saved))), "")
    raise AnalyzerError(
        f"checkpoint {file.name} does not fit the model that was built again: it has no "
        f"{missing!r}. Was the program changed since?"
    )


# --- scripts: a child process that runs the program up to its first update --------------------


def command_of(run: Run, args: Sequence[str]) -> list[str]:
    """Return the command line of a recorded script, as it is started again.

    Args:
        run: The run of a script.
        args: Arguments to use instead of the recorded ones; empty to use those.

    Raises:
        AnalyzerError: If the recorded arguments hold paths that the run does not know.
    """
    argv = list(run.manifest["argv"])
    head = argv[:2] if argv[0] == "-m" else argv[:1]
    rest = list(args) or argv[len(head) :]
    hidden = [word for word in rest if "<path:" in word]
    if hidden:
        raise AnalyzerError(
            f"the run does not hold the path {hidden[0]!r} of its arguments; give all of them "
            "after --, as in: analyzer probe RUN paths --replay -- --data /my/data"
        )
    return [*head, *rest]


def replay_script(
    run: Run,
    names: Sequence[str],
    which: str,
    args: Sequence[str],
    *,
    in_place: bool,
    say: Callable[[str], None],
) -> None:
    """Measure probes on the checkpoints of a script's run, in a child process.

    Args:
        run: The run of a script.
        names: The probes.
        which: A step, ``last`` or ``all``.
        args: Arguments of the script; empty to use the recorded ones.
        in_place: Run it in this working folder instead of a temporary one.
        say: Receives sentences.

    Raises:
        AnalyzerError: If the script did not come to its first update, with what it wrote last.
    """
    checkpoints_of(run, which)
    command = command_of(run, args)
    target = command if command[0] == "-m" else [str(_existing(command[0])), *command[1:]]
    say(f"running up to its first update: python {' '.join(command)}")
    with contextlib.ExitStack() as stack:
        folder = os.getcwd()
        if not in_place:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        words = [str(run.path.resolve()), ",".join(names), which, *target]
        child = subprocess.run(
            [sys.executable, "-m", "analyzer.replaying", *words],
            cwd=folder,
            env=_environment(is_module=command[0] == "-m"),
            capture_output=True,
            text=True,
        )
    told = [line for line in child.stderr.splitlines() if line.startswith(_MARK)]
    for line in told:
        say(line.removeprefix(_MARK))
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise AnalyzerError(
            f"the replay ended with code {child.returncode}: {last.removeprefix(_MARK)}"
            + ("" if in_place else ". Does it read files of this folder? Then add --in-place")
        )


_MARK = "replay: "


def _existing(target: str) -> Path:
    path = Path(target).resolve()
    if not path.exists():
        raise AnalyzerError(
            f"'{target}' is not here; run this in the folder in which the run was recorded"
        )
    return path


def _environment(*, is_module: bool) -> dict[str, str]:
    """A module that Python found in this folder must be found by the child in its own."""
    environment = dict(os.environ)
    if is_module:
        paths = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([*paths, os.getcwd()])
    return environment


class _Replay(Probing):
    """Measures as soon as the first batch is held, then ends the program."""

    def __init__(self, run: Run, names: Sequence[str], which: str) -> None:
        plans = [ProbePlan(name) for name in names]
        super().__init__(plans, lambda *_: None, on_batch=lambda _: None, on_problem=_tell)
        self._run, self._names, self._which = run, names, which

    def begin_backward(self, step: int, roots: Sequence[Any]) -> None:
        """The first loss is there: measure on each checkpoint, and stop before the update."""
        super().begin_backward(step, roots)
        if self.held is None:
            return
        try:
            _check_batch(self._run, self.held)
            checkpoints = checkpoints_of(self._run, self._which)
            _measure_all(self._run, self.held, self._names, checkpoints, _tell)
        except Exception as error:  # said by the parent process
            plain = isinstance(error, AnalyzerError | ValueError)
            _tell(str(error) if plain else repr(error))
            raise SystemExit(_CHILD_FAILED) from error
        raise StopTraining(0)


def _tell(sentence: str) -> None:
    sys.stderr.write(f"{_MARK}{sentence}\n")
    sys.stderr.flush()


def main(words: Sequence[str]) -> int:
    """Run a script under the probes up to its first update; return the exit code."""
    run, names, which = open_run(words[0]), words[1].split(","), words[2]
    as_module = words[3] == "-m"
    target, args = (words[4], words[5:]) if as_module else (words[3], words[4:])
    state: list[Any] = []

    def begin() -> None:
        from analyzer.recording.discovery import Discovery

        restore_random_states(run.path)
        training = Training(
            Schedule(),
            on_step=lambda _: None,
            on_tables=lambda: None,
            on_boundary=lambda _: None,
            on_problem=lambda _: None,
            probing=_Replay(run, names, which),
            adopts_optimizers=True,
        )
        training.start()
        state.extend([training, Discovery(training)])

    arrival = when_imported("torch", begin)
    ending = run_program(target, args, as_module=as_module)
    arrival.cancel()
    if isinstance(ending.exception, StopTraining):
        return 0
    if ending.exit_code == 0:
        _tell("the program ended before its first backward pass")
        return _CHILD_FAILED
    return ending.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
