"""Calling back when somebody else has imported a module, such as a user's script torch."""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

__all__ = ["Arrival", "when_imported"]


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
