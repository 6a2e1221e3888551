"""The program of a finished run, built or started again up to its first batch."""

import contextlib
import math
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from analyzer.errors import AnalyzerError
from analyzer.networks.data import batches, dataset
from analyzer.networks.loop import model_of, seed_everything
from analyzer.networks.zoo import least_elements, zoo_for
from analyzer.recording.probing import Call, Held
from analyzer.replaying import (
    ProbeOrder,
    Progress,
    Say,
    Together,
    checkpoints_of,
    measure_all,
    ranks_together,
    sentences,
)
from analyzer.script import run_program
from analyzer.storage.limits import LIMITS
from analyzer.storage.run import Run

__all__ = ["MARK", "REFUSAL", "check_batch", "command_of", "probe_run", "replay_script"]

MARK = "replay: "
"""What the lines of the child process begin with that are for the user."""
REFUSAL = "refused: "
"""What the line begins with that says why it measured no more, or not all."""

T = TypeVar("T")


def probe_run(
    run: Run,
    order: ProbeOrder,
    say: Say = lambda _: None,
    progress: Progress | None = None,
    together: Together = ranks_together,
) -> None:
    """Measure probes on the checkpoints of a run of a zoo network or a model file.

    Raises:
        AnalyzerError: If the run cannot be rebuilt, or a probe cannot be measured on it, with the
            reason.
    """
    checkpoints_of(run, order.which)  # refused before the model is built
    measure_all(run, rebuilt(run), order, say, progress or sentences(say), together)


def command_of(run: Run, args: Sequence[str]) -> list[str]:
    """Return the command line of a recorded program, as it is started again.

    It has the recorded arguments where `args` is empty; these may hold hidden paths, which are
    refused. So is a program that a folder could bring with it, or that Python does: a run folder
    may come from anybody, and names no code that its reader does not have.
    """
    argv = run.manifest.get("argv")
    words = argv if isinstance(argv, list) and all(isinstance(word, str) for word in argv) else []
    head = words[:2] if words[:1] == ["-m"] else words[:1]
    if len(head) < 1 + (words[:1] == ["-m"]):
        raise AnalyzerError(
            f"the manifest of run '{run.name}' names no program (argv: {argv!r}); expected that of "
            "a recorded script, as in: python train.py"
        )
    _refuse_brought(run, head)
    rest = list(args) or words[len(head) :]
    hidden = [word for word in rest if "<path:" in word]
    if hidden:
        raise AnalyzerError(
            f"the run does not hold the path {hidden[0]!r} of its arguments; give all of them "
            "after --, as in: analyzer probe RUN paths --replay -- --data /my/data"
        )
    return [*head, *rest]


def _refuse_brought(run: Run, head: Sequence[str]) -> None:
    """Refuse a file inside of the run folder, and a module that is not the reader's own."""
    if len(head) == 1:
        path = Path(head[0]).resolve()
        if path.is_relative_to(run.path.resolve()):
            raise AnalyzerError(
                f"the program {head[0]!r} is inside of the run folder; a run is data, expected a "
                "script of yours. Copy it out and record it anew, if you trust it"
            )
        return
    top = head[1].partition(".")[0]
    found = None
    with contextlib.suppress(ValueError):  # a module that says nothing of where it is from
        found = PathFinder.find_spec(top, [os.getcwd()]) or find_spec(top)
    places = [] if found is None else [found.origin, *(found.submodule_search_locations or ())]
    owned = [Path(place).resolve() for place in places if place and Path(place).exists()]
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    is_own = owned and not any(
        place.is_relative_to(path) for place in owned for path in installed - {Path(sys.prefix)}
    )
    if not is_own or owned[0].is_relative_to(run.path.resolve()):
        raise AnalyzerError(
            f"the module {head[1]!r} is not one of this folder or of a package of yours; expected "
            "the module that was recorded. Run this in the folder in which it was"
        )


def replay_script(
    run: Run, order: ProbeOrder, args: Sequence[str], *, in_place: bool, say: Say
) -> None:
    """Measure probes on the checkpoints of a script's run, in a child process.

    The script gets the recorded arguments where `args` is empty, and runs in a temporary folder
    unless `in_place`.

    Raises:
        AnalyzerError: If something could not be measured, with the reason; if the script did not
            come to its first update, with what it wrote last.
    """
    checkpoints_of(run, order.which)
    command = command_of(run, args)
    target, is_module = command, command[0] == "-m"
    if not is_module:
        path = Path(command[0]).resolve()
        if not path.exists():
            raise AnalyzerError(
                f"'{command[0]}' is not here; run this in the folder in which the run was recorded"
            )
        target = [str(path), *command[1:]]
    with contextlib.ExitStack() as stack:
        folder = os.getcwd()
        if not in_place:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        words = [str(run.path.resolve()), order.as_text(), *target]
        code, last = _run_child(words, folder, _environment(is_module=is_module), say)
    if code != 0 and last.startswith(REFUSAL):
        raise AnalyzerError(last.removeprefix(REFUSAL))
    if code != 0:
        raise AnalyzerError(
            f"the replay ended with code {code}: {last}"
            + ("" if in_place else ". Does it read files of this folder? Then add --in-place")
        )


def _run_child(
    words: Sequence[str], folder: str, environment: Mapping[str, str], say: Say
) -> tuple[int, str]:
    """Run the replay, pass on what it says; return its exit code and its refusal or last line."""
    last = "it wrote nothing"
    with subprocess.Popen(
        [sys.executable, "-m", "analyzer.replaying", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as child:
        assert child.stderr is not None
        for line in map(str.rstrip, child.stderr):
            if line.startswith(MARK):
                say(line.removeprefix(MARK))
            if not last.startswith(REFUSAL):
                last = line.removeprefix(MARK) or last
        code = child.wait()
    return code, last


def _environment(*, is_module: bool) -> dict[str, str]:
    """A module that Python found in this folder must be found by the child in its own."""
    environment = dict(os.environ)
    if is_module:
        paths = [environment["PYTHONPATH"]] if environment.get("PYTHONPATH") else []
        environment["PYTHONPATH"] = os.pathsep.join([*paths, os.getcwd()])
    return environment


@dataclass(frozen=True)
class _Loss:
    """The loss of a built-in training: a function of output and targets, on one batch."""

    function: Callable[[Any, Any], Tensor]
    target: Any

    def __call__(self, output: Any, targets: Any = None) -> Tensor:
        return self.function(output, self.target)

    @property
    def labels(self) -> Tensor | None:
        """The classes of the samples, where the targets are classes."""
        is_class = isinstance(self.target, Tensor) and self.target.dim() == 1
        return self.target if is_class and not self.target.is_floating_point() else None


def rebuilt(run: Run) -> Held:
    """Build the model and the first batch of a run again; another kind of program is refused."""
    kind = run.manifest.get("kind")
    if kind not in ("zoo", "model file"):
        raise AnalyzerError(
            f"run '{run.name}' is of a Recorder in a program of its own, which cannot be started "
            "again; expected a run of analyzer record. Measure while it trains: Recorder(probe=…)"
        )
    seed, argv = _entry(run, "seed", int), _entry(run, "argv", list)
    target = str(argv[0])
    namespace: Mapping[str, Any] = {}
    if kind == "model file":
        ending = run_program(target, argv[1:])
        if ending.exit_code != 0:
            raise AnalyzerError(f"'{target}' failed; the run cannot be rebuilt from it")
        namespace = ending.namespace
    seed_everything(seed)
    if kind == "zoo":
        _refuse_large(run, target)
    data = None if "batches" in namespace else dataset(_own_data(run), seed=seed)
    if kind == "zoo":
        assert data is not None
        model = zoo_for(target.removeprefix("zoo:"), data, seed=seed)
    else:
        model = model_of(namespace, target, run.manifest.get("point"))
    if data is None:
        stream = namespace["batches"]()
    else:
        stream = batches(data, _entry(run, "batch_size", int), seed=seed)
    inputs, targets = next(iter(stream))
    loss = _Loss(namespace.get("loss", cross_entropy), targets)
    held = Held(0, Call(model, (inputs,), {}, None), loss, None)
    check_batch(run, held)
    return held


def _own_data(run: Run) -> str:
    """The data that the manifest names; refuse those of the folder, and what fills the memory."""
    name = _entry(run, "data", str)
    kind, _, argument = name.partition(":")
    if kind == "cifar10" and _is_inside(argument, run):
        raise AnalyzerError(
            f"the data {name!r} are inside of the run folder; a run brings no data, expected a "
            "folder of yours. Copy them out and record it anew, if you trust them"
        )
    if kind == "synthetic":
        LIMITS.check("total_mib", _SAMPLE_BYTES * _features_of(name) / 2**20, "its data take")
    return name


def _is_inside(path: str, run: Run) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(run.path))


# Of each feature, in the samples that are drawn.
_SAMPLE_BYTES = 8_000


def _features_of(data: str) -> int:
    """Elements of one input of the data of a built-in training."""
    known = {"digits": 64, "cifar10": 3072, "synthetic": 192}
    kind, _, argument = data.partition(":")
    sizes = re.findall(r"\d{1,9}", argument) if kind == "synthetic" else ()
    return math.prod(map(int, sizes)) if sizes else known.get(kind, 0)


def _refuse_large(run: Run, target: str) -> None:
    """Refuse a network that is larger than its checkpoints: a manifest may name any number."""
    size = max(file.stat().st_size for file in checkpoints_of(run, "all").values())
    LIMITS.check("unpacked_mib", size / 2**20, "its checkpoint takes")
    name = target.removeprefix("zoo:")
    least = least_elements(name, _features_of(_entry(run, "data", str)))
    if 4 * least > size:
        raise AnalyzerError(
            f"run '{run.name}' is of {name!r}, which has {least:,} weights or more, and its "
            f"checkpoints of {size:,} bytes hold no such network; expected those of that recording"
        )


def _entry(run: Run, name: str, kind: type[T]) -> T:
    """Return what the manifest says of how the run was made; a folder may come from anybody."""
    value = run.manifest.get(name)
    if isinstance(value, kind) and value not in ([], ""):
        return value
    raise AnalyzerError(
        f"the manifest of run '{run.name}' has {name} {value!r}; expected the {kind.__name__} with "
        "which analyzer record made it"
    )


def check_batch(run: Run, held: Held) -> None:
    """Refuse a first batch that is not the recorded one: data or random numbers differ."""
    expected = run.manifest.get("first_batch")
    if expected is not None and held.hash() != expected:
        raise AnalyzerError(
            f"the first batch of run '{run.name}' cannot be reproduced: its digest is "
            f"{held.hash()}, the recorded one {expected}. Data, seed, arguments or device differ"
        )
