"""Run a user's script or module in this process exactly as ``python TARGET ARGS...`` would.

A recorder waits, by `when_imported`, until the script has imported torch itself.
"""

import functools
import importlib.machinery
import importlib.util
import marshal
import operator
import os
import pkgutil
import runpy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from analyzer.ending import Ending, peel
from analyzer.errors import ScriptError

__all__ = ["Arrival", "Ending", "run_program", "when_imported"]

_run_module_as_main: Callable[[str, bool], Any] = vars(runpy)["_run_module_as_main"]
_PYC_HEADER = 16
# Up to 3.11 a call of a function written in C, such as exec, counts towards the recursion limit.
_DESCENT = 1
_LARGEST_LIMIT = 2**31 - 1
_EXEC_CALLS = 1 if sys.version_info < (3, 12) else 0


def run_program(
    target: str,
    args: Sequence[str],
    *,
    as_module: bool = False,
    in_fork: Callable[[Ending], object] = lambda ending: None,
) -> Ending:
    """Run a program as ``python TARGET ARGS...`` would, and say how it ended.

    The program has a ``__main__`` module of its own, which stays in place afterwards, as do
    ``sys.argv`` and ``sys.path``: one program a process. What Python prints about an uncaught
    exception is printed when it happens; then the program's threads are waited for. In a process
    that the program forked and that comes to the program's end this function does not return but
    ends that process.

    Args:
        target: Path of a script, of a folder or zip file with a ``__main__.py``, or with
            ``as_module`` the name of a module.
        args: The arguments of the program, ``sys.argv[1:]``.
        as_module: Run ``target`` as ``python -m`` does.
        in_fork: Called in such a forked process before it ends.

    Returns:
        The program's globals, the exception that ended it if any, and its exit code.

    Raises:
        ScriptError: If there is no such script or module, or Python could not run it as a program.
    """
    program = _program(target, as_module)
    main = _fresh_main()
    sys.modules["__main__"] = main
    sys.argv = [program.argv0, *args]
    if not sys.flags.safe_path:
        sys.path[:1] = [program.path0]
    started_in, threads = os.getpid(), set(threading.enumerate())
    exception = _outcome(program, main)
    ending = Ending(vars(main), exception)
    ending.show()
    if os.getpid() != started_in:
        in_fork(ending)
        ending.leave()
    _wait_for_threads(threads)
    return ending


@dataclass(frozen=True)
class _Program:
    """What is to be run, with what ``sys.argv[0]`` and ``sys.path[0]`` are for it."""

    argv0: str
    path0: str
    run: Callable[[ModuleType], object]
    is_file: bool = False


def _program(target: str, as_module: bool) -> _Program:
    """Find out what a target is, as Python does before it runs anything."""
    if as_module:
        return _Program("-m", os.getcwd(), lambda _: _run_module(target, is_named=True))
    path = _absolute(target)
    if pkgutil.get_importer(path) is not None:
        return _Program(target, path, lambda _: _run_module("__main__", is_named=False))
    source = _read(target)
    folder = os.path.dirname(os.path.realpath(target))
    return _Program(target, folder, lambda main: _run_file(path, source, main), is_file=True)


def _absolute(path: str) -> str:
    """Return the absolute path as Python writes it into ``__file__``: joined, not normalized."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def _read(target: str) -> bytes:
    """Return the content of a script."""
    try:
        with open(target, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ScriptError(
            f"script '{target}' not found in the working folder; expected a Python file, a "
            "folder or zip file with a __main__.py, or -m MODULE. Check the path."
        ) from error
    except OSError as error:
        raise ScriptError(
            f"script '{target}' cannot be read: {error.strerror}; expected a readable file. "
            "Check the path and its permissions."
        ) from error


def _fresh_main() -> ModuleType:
    """Return a ``__main__`` with exactly the globals that a starting interpreter gives it."""
    main = ModuleType("__main__")
    loader: Any = importlib.machinery.BuiltinImporter
    vars(main).update(__loader__=loader, __annotations__={}, __builtins__=sys.modules["builtins"])
    return main


def _run_file(path: str, source: bytes, main: ModuleType) -> None:
    """Compile and run a source file, or a compiled one, as ``__main__``."""
    is_compiled = path.endswith(".pyc")
    machinery = importlib.machinery
    loader = machinery.SourcelessFileLoader if is_compiled else machinery.SourceFileLoader
    vars(main).update(__file__=path, __cached__=None, __loader__=loader("__main__", path))
    code = _compiled(source) if is_compiled else compile(source, path, "exec", dont_inherit=True)
    _make_room(calls=_EXEC_CALLS)
    exec(code, vars(main))


def _run_module(name: str, is_named: bool) -> None:
    """Run a module as ``__main__``: one that was named, or that of the first folder of the path."""
    _make_room(calls=0)
    _run_module_as_main(name, is_named)


def _compiled(content: bytes) -> CodeType:
    """Return the code in a ``.pyc`` file."""
    if not content.startswith(importlib.util.MAGIC_NUMBER):
        raise RuntimeError("Bad magic number in .pyc file")
    code: CodeType = marshal.loads(content[_PYC_HEADER:])
    return code


def _make_room(calls: int) -> None:
    """Raise each recursion limit by the caller's depth and by this many calls more.

    A program then recurses exactly as deep as it would without the frames below it, with the limit
    that it finds and with those that it sets.
    """
    limit = sys.getrecursionlimit()
    spare = 0

    def descend() -> None:
        nonlocal spare
        spare += 1
        descend()

    try:
        descend()
    except RecursionError:
        _raise_limits(limit - spare + calls - _DESCENT)


def _raise_limits(extra: int) -> None:
    """Put functions into ``sys`` that set this much more than they are told, and do not say so."""
    set_limit, own = sys.setrecursionlimit, sys.getrecursionlimit()

    @functools.wraps(set_limit)
    def setrecursionlimit(limit: Any, /) -> None:
        nonlocal own
        wanted = operator.index(limit)
        set_limit(min(wanted + extra, _LARGEST_LIMIT) if 0 < wanted <= _LARGEST_LIMIT else wanted)
        own = wanted

    @functools.wraps(sys.getrecursionlimit)
    def getrecursionlimit() -> int:
        return own

    setrecursionlimit(own)
    sys.setrecursionlimit, sys.getrecursionlimit = setrecursionlimit, getrecursionlimit


def _outcome(program: _Program, main: ModuleType) -> BaseException | None:
    """Run a program and return the exception that ended it, free of this package's frames."""
    try:
        program.run(main)
        exception = None
    except BaseException as error:
        _refuse_what_runpy_refused(error)
        peel(error)
        exception = error
    if program.is_file:
        # Before a traceback, as Python does for a file; it does not for a module.
        _flush()
    return exception


def _refuse_what_runpy_refused(error: BaseException) -> None:
    """Raise ScriptError where it was not the program that ended but Python that found none."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    prefix = f"{sys.executable}: "
    if (
        isinstance(error, SystemExit)
        and last is not None
        and last.tb_frame.f_code is _run_module_as_main.__code__
    ):
        raise ScriptError(
            f"{str(error.code).removeprefix(prefix)}; expected what python could run here. "
            "Check the name, and that it can be imported from this folder."
        ) from None


def _flush() -> None:
    """Flush the standard streams where they can be."""
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except Exception:
            # A closed or broken stream is reported by the interpreter when it ends, as always.
            continue


def _wait_for_threads(before: set[threading.Thread]) -> None:
    """Wait until the threads that keep a Python process alive have nothing more to do."""
    while thread := next(_busy(before), None):
        try:
            thread.join(0.01 if _is_pool_worker(thread) else None)
        except KeyboardInterrupt:
            # The interpreter waits for them again at its end, and can be interrupted there.
            return


def _busy(before: set[threading.Thread]) -> Iterator[threading.Thread]:
    """Yield the program's threads that are not daemons, idle workers of a pool left out."""
    for thread in threading.enumerate():
        ours = thread in before or thread.name.startswith("analyzer")
        if not (ours or thread.daemon or _is_idle(thread)):
            yield thread


def _pool_queues() -> dict[threading.Thread, Any]:
    """Return the queues from which the threads of executors take their work."""
    futures = sys.modules.get("concurrent.futures.thread")
    return dict(vars(futures)["_threads_queues"]) if futures else {}


def _is_pool_worker(thread: threading.Thread) -> bool:
    """Whether a thread belongs to an executor; it ends only when the interpreter does."""
    return thread in _pool_queues()


def _is_idle(thread: threading.Thread) -> bool:
    """Whether a thread is a worker of an executor that waits for work."""
    queue = _pool_queues().get(thread)
    if queue is None or not queue.empty():
        return False
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is None or frame.f_code.co_name == "_worker"


class Arrival:
    """The wait for one module: a finder that lets the others find it and wraps its execution.

    Args:
        name: Full name of the module.
        callback: Called once, without arguments, right after the module's code has run.
    """

    def __init__(self, name: str, callback: Callable[[], object]) -> None:
        self._name = name
        self._callback = callback
        self._pending = True

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the awaited module with the other finders, and no other module."""
        if fullname != self._name or not self._pending:
            return None
        for finder in [finder for finder in sys.meta_path if finder is not self]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                self._watch(spec.loader)
                return spec
        return None

    def cancel(self) -> None:
        """Stop waiting; the callback will not be called any more."""
        self._pending = False
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _watch(self, loader: Any) -> None:
        """Make a loader tell when it has executed its module, and forget about it again."""
        if not hasattr(loader, "exec_module") or not hasattr(loader, "__dict__"):
            return
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            execute(module)
            self._arrive()

        # Python hides its import machinery from tracebacks and from warnings by the name of its
        # file; under that name this frame is hidden too.
        machinery = SourceFileLoader.exec_module.__code__.co_filename
        exec_module.__code__ = exec_module.__code__.replace(co_filename=machinery)
        loader.exec_module = exec_module

    def _arrive(self) -> None:
        """Call back, the first time only."""
        if self._pending:
            self.cancel()
            self._callback()


def when_imported(name: str, callback: Callable[[], object]) -> Arrival:
    """Call ``callback`` once, right after the module ``name`` has been imported.

    So a recorder stays out of the way until the script itself imports torch, and what the script
    sets before that (``OMP_NUM_THREADS``, ``CUDA_VISIBLE_DEVICES``) acts as without a recorder.

    Args:
        name: Full name of the module. One that is imported already calls back at once. An import
            that fails does not call back; a later one that succeeds does.
        callback: Called without arguments, in the thread that imports, before its import returns.

    Returns:
        A handle whose ``cancel()`` ends the wait. Nothing is left behind after either.
    """
    arrival = Arrival(name, callback)
    if name in sys.modules:
        arrival._arrive()
    else:
        sys.meta_path.insert(0, arrival)
    return arrival


if __name__ == "__main__":
    run_program(sys.argv[1], sys.argv[2:]).leave()
