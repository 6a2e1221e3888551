"""One recording from its options to its last line: the run folder, the recorder, and the words."""

import atexit
import contextlib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analyzer.cli.mismatch import shortcut_mismatch
from analyzer.errors import StopTraining
from analyzer.options import ZOO, RecordOptions, plain_folder
from analyzer.script import Ending, run_program, when_imported

__all__ = ["ScriptSession", "Session", "free_folder"]

_SECONDS_BETWEEN_LOOKS = 5.0


def free_folder(options: RecordOptions, *, has_twin: bool = False) -> Path:
    """Make the next free ``<runs>/<target>-<k>``, at once, so that no other process takes it.

    Args:
        options: Those of the recording.
        has_twin: Whether the folder of the run's twin must be free too.

    Returns:
        The folder; a missing one where it cannot be made.
    """
    if options.target.startswith(ZOO):
        stem = options.target.removeprefix(ZOO)
    elif options.as_module:
        stem = options.target.rpartition(".")[2]
    else:
        stem = Path(options.target).stem or "run"
    for k in itertools.count():
        path = options.runs_dir / f"{stem}-{k}"
        if has_twin and plain_folder(path).exists():
            continue
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # a read-only folder: the recorder says so, and the training continues
        return path
    raise AssertionError


def _portable(argv: Sequence[str], working_folder: Path) -> list[str]:
    """Return a command line without absolute paths.

    A path inside the working folder becomes relative to it; any other becomes ``<path:n>``, the
    same number for the same path. ``--option=/path`` is treated like ``/path``.
    """
    numbers: dict[str, int] = {}

    def portable(word: str) -> str:
        option, equals, value = word.partition("=")
        if option.startswith("-") and equals:
            return f"{option}={portable(value)}"
        path = os.path.expanduser(word)
        if not os.path.isabs(path) and ".." not in Path(path).parts:
            return word
        whole = Path(os.path.normpath(working_folder / path))
        if whole.is_relative_to(working_folder):
            return whole.relative_to(working_folder).as_posix()
        return f"<path:{numbers.setdefault(str(whole), len(numbers))}>"

    return [portable(word) for word in argv]


class Session:
    """The run folder, the recorder, and what is said about them on stderr.

    Args:
        options: What was asked for.
        run: Folder of the run; None for the one of the options, or the next free one.
    """

    def __init__(self, options: RecordOptions, run: Path | None = None) -> None:
        self.options = options
        self.run = run or options.run or free_folder(options)
        self.recorder: Any = None
        self.last_words: list[str] = list(options.twin_words)
        self._scaling: Any = None
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def new_recorder(self, model: Any, manifest: dict[str, Any]) -> Any:
        """Return a recorder with the options; it may end the training at a severe finding."""
        from analyzer.recording.recorder import Recorder

        # Scripts also need the session's words about a scaling, and to be ended where it fails.
        given = self.options.of_recorder() | {"skip_scale": None}
        watch = self._stop_when_severe if self.options.fail_on is not None else None
        return Recorder(
            model, self.run, manifest=manifest, warn=self.say, watch=watch, exist="use", **given
        )

    def start_scaling(self, model: Any, *, ends_program: bool) -> None:
        """Scale the shortcuts from now on, where that was asked for."""
        if self.options.skip_scale is None:
            return
        from analyzer.recording.skip_scaling import SkipScaling

        self._scaling = SkipScaling(
            self.options.skip_scale,
            model,
            rescales=self.options.rescale,
            ends_program=ends_program,
            on_problem=self.last_words.append,
        )
        self._scaling.start()

    def stop_scaling(self) -> None:
        """Scale no more shortcuts."""
        if self._scaling is not None:
            self._scaling.stop()

    def manifest(self, kind: str) -> dict[str, Any]:
        """Return what the manifest says about the command."""
        options = self.options
        target = ["-m", options.target] if options.as_module else [options.target]
        scaled = {"skip_scale": options.skip_scale, "rescaled": options.rescale}
        twins = {"twin_of": options.twin_of, "twin": options.twin_name}
        return {
            "kind": kind,
            "argv": _portable([*target, *options.args], Path.cwd()),
            "seed": options.seed,
            **(scaled if options.skip_scale is not None else {}),
            **{key: value for key, value in twins.items() if value is not None},
        }

    def say(self, sentence: str) -> None:
        """Write a line to stderr, unless the user wants none."""
        if not self.options.quiet:
            sys.stderr.write(f"analyzer: {sentence}\n")
            sys.stderr.flush()

    def result(self, status: str) -> list[str]:
        """Return what was recorded, what it cost, and the command that shows it."""
        recorder = self.recorder
        if not self.run.exists():
            return []
        training = recorder.training
        share = recorder.overhead_seconds / max(recorder.seconds, 1e-9)
        failure = [] if training.failure is None else [training.failure]
        size = sum(f.stat().st_size for f in self.run.rglob("*") if f.is_file()) / 2**20
        return [
            *failure,
            f"recorded {training.steps.count} steps, {len(training.models.layers)} layers, "
            f"{len(training.models.parameters)} parameters into {self.run} ({status}, "
            f"{recorder.seconds:.1f} s, {share:.0%} of it recording, {size:.1f} MiB); "
            f"see it with: analyzer show {self.run}",
        ]

    def is_severe(self) -> bool:
        """Whether the run has a finding that was to fail it; such findings are added to say."""
        severe = self._found_severe()
        self.last_words.extend(f"{finding.severity}: {finding.sentence}" for finding in severe)
        return bool(severe)

    def _found_severe(self) -> list[Any]:
        """The findings that were to fail the run, in what is on disk."""
        if self.options.fail_on is None or not self.run.exists():
            return []
        from analyzer.analysis.findings import findings
        from analyzer.storage.run import open_run

        return [f for f in findings(open_run(self.run)) if f.severity == self.options.fail_on]

    def _stop_when_severe(self, step: int) -> None:
        """Look at what is on disk every few seconds; end the training where it is bad enough."""
        if time.monotonic() < self._next_look:
            return
        severe: list[Any] = []
        with contextlib.suppress(Exception):  # a look that fails must not end the recording
            severe = self._found_severe()
        if severe:
            raise StopTraining(step + 1)
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS

    def remove_empty_folder(self) -> None:
        """Leave nothing behind where nothing was recorded."""
        with contextlib.suppress(OSError):
            self.run.rmdir()


class ScriptSession(Session):
    """The recording of a program that trains by itself."""

    def __init__(self, options: RecordOptions) -> None:
        super().__init__(options)
        self._cannot_record = False
        self._pid = os.getpid()

    def run_script(self) -> Ending:
        """Run the target as a program, recording from the moment at which it has torch."""
        # Registered before the script registers anything, so that it is called last: what the
        # recorder says comes after all that the script says.
        atexit.register(self._say_last_words)
        arrival = when_imported("torch", self._begin)
        try:
            return run_program(
                self.options.target, self.options.args, as_module=self.options.as_module
            )
        finally:
            arrival.cancel()
            if self.recorder is not None:
                self.recorder.stop_looking()
            self.stop_scaling()

    @property
    def trained(self) -> bool:
        """Whether a backward pass was seen, or could not be: then it is the script's own affair."""
        if self._cannot_record:
            return True
        return self.recorder is not None and self.recorder.training.has_trained

    def _begin(self) -> None:
        """Start to record; a failure here must not become one of the script's `import torch`."""
        try:
            if self.options.seed is not None:
                from analyzer.networks.loop import seed_everything

                seed_everything(self.options.seed)
            self.recorder = self.new_recorder(None, self.manifest("script"))
            self.recorder.start()
            self.start_scaling(None, ends_program=True)
        except Exception as error:
            self.recorder = None
            self._cannot_record = True
            self.say(f"cannot record ({type(error).__name__}: {error}); the script continues")

    def end_script(self, ending: Ending) -> None:
        """Close the run and say what it holds, or that it failed before there was anything."""
        status, error = "finished", None
        if isinstance(ending.exception, KeyboardInterrupt):
            status = "interrupted"
        elif ending.exit_code != 0:
            status = "failed"
            error = f"{type(ending.exception).__name__}: {ending.exception}"
            note = shortcut_mismatch(ending.exception)
            self.last_words.extend([] if note is None else [note])
        if self._cannot_record:
            return
        if self.recorder is None:
            self._write_failed_run(status, error)
            self.last_words.append(
                f"the script ended before it trained; kept as {status} in {self.run}"
            )
            return
        self.recorder.close(status, error)
        if isinstance(ending.exception, StopTraining):
            why = "as asked" if self.options.fail_on is None else "by --fail-on or --stop-after"
            self.last_words.append(f"stopped after {ending.exception.steps} steps, {why}")
        self.last_words.extend(self.result(status))
        if ending.exit_code == 0 and self.is_severe():
            ending.exit_code = 1

    def _write_failed_run(self, status: str, error: str | None) -> None:
        from analyzer.storage.writer import RunWriter

        created = {"created": datetime.now(UTC).isoformat(), "steps": 0}
        with contextlib.suppress(OSError):
            writer = RunWriter(self.run, self.manifest("script") | created)
            writer.close(status, error)

    def discard(self) -> None:
        """Forget the recording of a file that did not train; its run folder holds nothing."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
        shutil.rmtree(self.run, ignore_errors=True)

    def _say_last_words(self) -> None:
        if os.getpid() == self._pid:  # not in a process that the script forked
            for sentence in self.last_words:
                self.say(sentence)
