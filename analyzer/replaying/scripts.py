"""Probes on a training script: a child process runs it up to its first update."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from analyzer.errors import AnalyzerError
from analyzer.replaying.checkpoints import checkpoints_of
from analyzer.replaying.order import ProbeOrder, Say
from analyzer.storage.run import Run

__all__ = ["MARK", "REFUSAL", "command_of", "replay_script"]

MARK = "replay: "
"""What the lines of the child process begin with that are for the user."""
REFUSAL = "refused: "
"""What the line begins with that says why it measured no more, or not all."""


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
    run: Run, order: ProbeOrder, args: Sequence[str], *, in_place: bool, say: Say
) -> None:
    """Measure probes on the checkpoints of a script's run, in a child process.

    Args:
        run: The run of a script.
        order: What to measure.
        args: Arguments of the script; empty to use the recorded ones.
        in_place: Run it in this working folder instead of a temporary one.
        say: Receives sentences.

    Raises:
        AnalyzerError: If something could not be measured, with the reason; if the script did not
            come to its first update, with what it wrote last.
    """
    checkpoints_of(run, order.which)
    command = command_of(run, args)
    target = command if command[0] == "-m" else [str(_existing(command[0])), *command[1:]]
    say(f"running up to its first update: python {' '.join(command)}")
    with contextlib.ExitStack() as stack:
        folder = os.getcwd()
        if not in_place:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        words = [str(run.path.resolve()), order.as_text(), *target]
        code, last = _run_child(words, folder, _environment(is_module=command[0] == "-m"), say)
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
