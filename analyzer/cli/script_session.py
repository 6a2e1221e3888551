"""The recording of a program that trains by itself, and of the processes that it starts."""

import atexit
import contextlib
import os
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from analyzer.cli.children import Children, child_runs
from analyzer.cli.mismatch import shortcut_mismatch
from analyzer.cli.session import Session
from analyzer.cli.signals import SuddenEnds
from analyzer.errors import AnalyzerError, StopTraining
from analyzer.launch import RANKS
from analyzer.options import RecordOptions
from analyzer.script import Ending, run_program, when_imported

__all__ = ["ScriptSession"]

_OWN_ENDS = (SystemExit, KeyboardInterrupt)
# More processor time than programs take that train nothing, less than an import of torch.
_MOST_SECONDS = 1.0


class ScriptSession(Session):
    """The recording of a program that trains by itself."""

    def __init__(self, options: RecordOptions, run: Path | None = None) -> None:
        super().__init__(options, run)
        self._cannot_record = self._has_ended = False
        self._pid = os.getpid()
        self._began = datetime.now(UTC).isoformat()
        # The other net of a twin was such a process, and is not the script's.
        self._earlier_seconds = _seconds_of_children()

    def run_script(self) -> Ending:
        """Run the target as a program, recording from the moment at which it has torch."""
        # Registered before the script registers anything, so that it is called last: what the
        # recorder says comes after all that the script says.
        atexit.register(self._say_last_words)
        self.signals.watch()
        self._sudden = SuddenEnds(self._end_suddenly)
        self._sudden.watch()
        arrival = when_imported("torch", self._begin)
        children = Children(self, arrival.cancel)
        try:
            return run_program(
                self.options.target,
                self.options.args,
                as_module=self.options.as_module,
                in_fork=children.end_fork,
            )
        finally:
            arrival.cancel()
            children.stop()
            if self.recorder is not None:
                self.recorder.stop_looking()
            self.stop_scaling()

    @property
    def trained(self) -> bool:
        """Whether the program trained, here or in a child, or it could not be seen."""
        if self._cannot_record or self._child_runs():
            return True
        recorder = self.recorder
        return recorder is not None and (recorder.has_trained or recorder.forward.has_derived)

    @property
    def has_called(self) -> bool:
        """Whether it called a model, without training one."""
        return self.recorder is not None and bool(self.recorder.forward.steps)

    @property
    def has_started_programs(self) -> bool:
        """Whether programs that it started, and waited for, took the time that a training takes."""
        # A compiler of torch's own does so too.
        return self._child_seconds() >= _MOST_SECONDS and "torch._inductor" not in sys.modules

    def _child_seconds(self) -> float:
        return _seconds_of_children() - self._earlier_seconds

    def _begin(self) -> None:
        """Start to record; a failure here must not become one of the script's `import torch`."""
        try:
            recorder = self.new_recorder(None, self.manifest("script"))
            if self.options.seed is not None:
                from analyzer.networks.loop import seed_everything

                seed_everything(self.options.seed)
            recorder.start()
            self.recorder = recorder
            self.start_scaling(None, ends_program=True)
        except AnalyzerError as error:  # the folder was taken a moment ago, or cannot be resumed
            self.recorder = None
            self._cannot_record = True
            self.say(str(error))
            raise SystemExit(2) from error
        except Exception as error:
            self.recorder = None
            self._cannot_record = True
            self.say(f"cannot record ({type(error).__name__}: {error}); the script continues")

    def end_script(self, ending: Ending) -> None:
        """Close the run and say what it holds, or that there was nothing to keep."""
        self._has_ended = True
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
        if ending.exit_code != 0 and getattr(self._scaling, "names_no_join", False):
            self.discard()
            return
        # The end of a program by the recorder itself is a SystemExit of another class.
        is_error = ending.exit_code != 0 and type(ending.exception) not in _OWN_ENDS
        if not (is_error or self.trained or self.has_called):
            self.last_words.append(self._why_nothing(ending))
            self.discard()
            return
        if self.recorder is None:
            if self.options.resume is not None:
                self.last_words.append(self._why_nothing(ending))
            else:
                self._write_bare_run(status, error)
            return
        if (ranks := self._run_of_ranks()) is not None:
            self._take_over(ranks, status, error)
        else:
            self.recorder.close(status, error, **self._about_children())
            self.signals.stop()
        if isinstance(ending.exception, StopTraining):
            from analyzer.analysis.numerals import counted

            why = "as asked" if self.options.fail_on is None else "by --fail-on or --stop-after"
            self.last_words.append(
                f"stopped after {counted(ending.exception.steps, 'step')}, {why}"
            )
        self.last_words.extend([] if ranks is not None else self.result(status))
        if ending.exit_code == 0 and self.is_severe():
            ending.exit_code = 1
        self.recorder = None  # what the program made goes when it would go without a recorder

    def _end_suddenly(self, code: int | None, frame: FrameType | None) -> None:
        """The same where the program leaves at once, or becomes another one."""
        if not self._has_ended:  # else one of its exit handlers leaves
            self._has_ended = True
            if code is None:
                self.last_words.append(
                    "the script put another program in its place, which is not recorded"
                )
            if code:
                self.end_now("failed", f"os._exit({code})", frame)
            else:
                self.end_now("finished", None, frame)
        self._say_last_words()

    def _why_nothing(self, ending: Ending) -> str:
        if self.has_started_programs:
            return (
                "the script called no model itself, and programs that it started took "
                f"{self._child_seconds():.0f} s of processor time; nothing is recorded: put "
                "`analyzer record` before the program that trains"
            )
        return (
            f"the script ended with exit code {ending.exit_code} before it called a model; nothing "
            "is recorded"
        )

    def _about_children(self) -> dict[str, Any]:
        """Name the runs of processes that the script started; return fields of the manifest."""
        runs = self._child_runs()
        if not runs:
            return {}
        kind = "a process" if len(runs) == 1 else f"{len(runs)} processes"
        places = ", ".join(str(self.run.with_name(run.name)) for run in runs)
        self.last_words.append(f"{kind} that the script started trained, recorded in {places}")
        if self.recorder is not None and not self.recorder.has_trained:
            self.recorder.forward.forget()
            self.recorder.note_problem(
                f"the training in {kind} that the script started, which has a run of its own"
            )
        return {"children": [run.name for run in runs]}

    def _run_of_ranks(self) -> Path | None:
        """The run of the ranks that the script spawned, where all training was theirs."""
        runs = self._child_runs()
        is_new = self.options.resume is None and not self.rank.is_one_of_many
        is_theirs = len(runs) == 1 and (runs[0] / RANKS).is_dir() and is_new
        return runs[0] if is_theirs and not self.recorder.has_trained else None

    def _take_over(self, ranks: Path, status: str, error: str | None) -> None:
        """Let the run of the ranks be that of the script, under its name."""
        from analyzer.storage.catalog import write_manifest
        from analyzer.storage.run_json import losses, read_manifest

        self.discard()
        shutil.rmtree(self.folder, ignore_errors=True)
        ranks.rename(self.folder)
        fields = read_manifest(self.folder, with_ranks=False)
        failed = {} if status == "finished" else {"status": status, "error": error}
        fields = {**fields, **failed, "name": self.folder.name}
        fields.pop("parent", None)
        write_manifest(self.folder / "run.json", fields)
        found = read_manifest(self.folder)
        self.last_words += losses(found)
        self.last_words.append(
            f"recorded {found.get('steps')} steps of {found.get('world_size')} ranks that the "
            f"script started into {self.run} ({found.get('status')}); see it with: analyzer show "
            f"{self.run}"
        )

    def _child_runs(self) -> list[Path]:
        """The runs of processes that the script started, those of earlier recordings left out."""
        return child_runs(self.folder, self._began)

    def _write_bare_run(self, status: str, error: str | None) -> None:
        """Write a run of a program that never imported torch itself."""
        from analyzer.storage.writer import RunWriter

        created = {"created": datetime.now(UTC).isoformat(), "steps": 0}
        about = self._about_children()
        with contextlib.suppress(OSError):
            writer = RunWriter(self.folder, self.manifest("script") | created | about)
            writer.close(status, error)
        self.signals.stop()
        self.last_words.append(
            f"the script ended before it trained; kept as {status} in {self.run}"
        )

    def discard(self) -> Any:
        """Forget the recording of a file that did not train; return the calls of models it made."""
        calls = None
        if self.recorder is not None:
            calls = self.recorder.forward
            self.recorder.forward = None
            self.recorder.close()
            calls.finish()
            self.recorder = None
        self.signals.stop()
        self._sudden.stop()
        self.remove_run()
        return calls

    def keep_calls(self, calls: Any, error: str) -> None:
        """Record the calls that a file made of its models, where our loop cannot train its own."""
        why = f"a training by the built-in loop: on --data {self.options.data} it ended in {error}"
        self.rank.leave()
        self.recorder = self.new_recorder(None, self.manifest("script"))
        self.recorder.start()
        self.recorder.forward.finish()
        self.recorder.forward = calls
        self.recorder.note_problem(why)
        self.recorder.close()
        self.last_words += [f"not recorded: {why}", *self.result("finished")]

    def _say_last_words(self) -> None:
        if os.getpid() == self._pid and self.rank.number == 0:  # not in a process that was forked
            for sentence in self.last_words:
                self.say(sentence)


def _seconds_of_children() -> float:
    """Processor time of the programs that this process started and waited for."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
