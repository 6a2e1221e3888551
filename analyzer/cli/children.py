"""The processes that a recorded program forks or spawns: each that trains is a run of its own.

Those of one process group are the ranks of one run.

A process that calls no model with gradient, as a worker that loads data, pays one hook and no more.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from analyzer.cli.session import PACKAGE_ROOT, Session, options_from, options_text
from analyzer.cli.signals import SuddenEnds
from analyzer.ending import Ending
from analyzer.errors import AnalyzerError
from analyzer.launch import join, launch_of_process, rank_in
from analyzer.script import when_imported

__all__ = ["Children", "begin_spawned", "child_runs"]

# What a spawned process does before anything else; it must go on whatever happens in here.
_BEGIN = """
try:
    import sys
    sys.path.insert(0, {root!r})
    try:
        from analyzer.cli.children import begin_spawned
    finally:
        sys.path.remove({root!r})
    begin_spawned({text!r}, {parent!r})
except Exception:
    pass
"""


def child_runs(run: Path, since: str) -> list[Path]:
    """Return the runs of the children of a run that began after an ISO time."""
    from analyzer.storage.run_json import read_manifest

    found = []
    for folder in sorted(run.parent.glob(f"{run.name}-child-*")):
        with contextlib.suppress(AnalyzerError, OSError):
            if str(read_manifest(folder).get("created")) >= since:
                found.append(folder)
    return found


class Children:
    """Waits in each process that this one forks or spawns until it trains.

    Args:
        session: The recording of this process; in a forked one it is left to the other.
        cancel: Called in a forked process, where this one still waits for something.
    """

    _of_this_process: "Children | None" = None
    _is_registered = False

    def __init__(self, session: Session, cancel: Callable[[], object]) -> None:
        self._session, self._cancel = session, cancel
        self._preparation: Any = None
        self._arrival = when_imported("multiprocessing.spawn", self._pass_on)
        Children._of_this_process = self
        if not Children._is_registered and hasattr(os, "register_at_fork"):
            Children._is_registered = True
            os.register_at_fork(after_in_child=Children._after_fork)

    def stop(self) -> None:
        """Let processes that are started from now on alone."""
        self._arrival.cancel()
        if Children._of_this_process is self:
            Children._of_this_process = None
        if self._preparation is not None:
            from multiprocessing import spawn

            vars(spawn)["get_preparation_data"] = self._preparation
            self._preparation = None

    def end_fork(self, ending: Ending) -> None:
        """A process that the program forked came to the end of the program."""
        ours = Children._of_this_process
        if ours is not None and isinstance(ours._session, _ChildSession):
            ours._session.end(ending.exit_code)

    @staticmethod
    def _after_fork() -> None:
        ours = Children._of_this_process
        if ours is None:
            return
        with contextlib.suppress(Exception):  # the program must not notice
            ours.stop()
            ours._cancel()
            ours._session.leave_to_other_process()
            child = _ChildSession(ours._session.options, ours._session.folder)
            child.wait()
            child.watch_exit()

    def _pass_on(self) -> None:
        """Let spawned processes get the options with what Python prepares for them."""
        from multiprocessing import spawn

        original: Any = spawn.get_preparation_data
        self._preparation = original

        @functools.wraps(original)
        def get_preparation_data(*args: Any, **kwargs: Any) -> Any:
            begin = _Begin(self._session.options, self._session.folder)
            return {**original(*args, **kwargs), "analyzer": begin}

        vars(spawn)["get_preparation_data"] = get_preparation_data


class _Begin:
    """Begins to wait in the process that unpickles it, and is None there."""

    def __init__(self, options: Any, run: Path) -> None:
        self._code = _BEGIN.format(root=PACKAGE_ROOT, text=options_text(options), parent=str(run))

    def __reduce__(self) -> Any:
        return exec, (self._code, {})


def begin_spawned(text: str, parent: str) -> None:
    """Wait in a spawned process until it trains.

    Args:
        text: The options of the recording.
        parent: Folder of the run of the process that spawned this one.
    """
    from multiprocessing.process import BaseProcess

    child = _ChildSession(options_from(text), Path(parent))
    child.wait()
    members: Any = BaseProcess
    bootstrap, pid = members._bootstrap, os.getpid()

    @functools.wraps(bootstrap)
    def _bootstrap(*args: Any, **kwargs: Any) -> Any:
        code = bootstrap(*args, **kwargs)
        if os.getpid() == pid:
            child.end(code)
        return code

    members._bootstrap = _bootstrap


class _ChildSession(Session):
    """The recording of a process that the program started, from its first model on.

    Args:
        options: Those of the program's recording.
        parent: Folder of the run of the process that started this one.
    """

    def __init__(self, options: Any, parent: Path) -> None:
        own = replace(options, fail_on=None, twin_words=(), resume=None, first_step=None)
        super().__init__(own, parent)
        self._parent = parent
        self._waiting: Any = None
        self._pid = os.getpid()

    def wait(self) -> None:
        """Wait for the first call of a model that wants gradients."""
        arrival = when_imported("torch", self._wait_for_model)
        self._children = Children(self, arrival.cancel)

    def _wait_for_model(self) -> None:
        from analyzer.recording.discovery import FirstCall

        self._waiting = FirstCall(self._begin)

    def _begin(self, module: Any, args: Any) -> None:
        """Start to record, as that call begins."""
        try:
            launch = launch_of_process(by_environment=False)
            for k in itertools.count():
                folder = self._parent.with_name(f"{self._parent.name}-child-{k}")
                if launch is not None:
                    if join(folder, launch) is not None:
                        break
                    continue
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    break
            self.run = self.folder = folder
            self.rank = rank_in(folder)
            manifest = self.manifest("script") | {"parent": self._parent.name}
            recorder = self.new_recorder(None, manifest)
            recorder.start()
            self.recorder = recorder
            recorder.look_at(module, args)
            self.signals.watch()
        except Exception as error:
            self.say(f"cannot record a process of the script ({type(error).__name__}: {error})")

    def watch_exit(self) -> None:
        """Close the run before ``os._exit``, with which most forked processes end."""
        SuddenEnds(lambda code, _: self.end(code or 0)).watch()

    def end(self, code: int) -> None:
        """Close the run; remove it where the process did not train."""
        recorder, self.recorder = self.recorder, None
        if recorder is None or os.getpid() != self._pid:
            return
        with contextlib.suppress(Exception):
            trained = recorder.has_trained
            recorder.forward.forget()
            recorder.close(*(("finished",) if code == 0 else ("failed", f"exit code {code}")))
            if not trained:
                self.rank.leave()
            self.signals.stop()

    def leave_to_other_process(self) -> None:
        """Record nothing of this session in this process."""
        if self._waiting is not None:
            self._waiting.stop()
        super().leave_to_other_process()
