"""One word a run for the list of runs, found in the background: the list never waits."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from analyzer.analysis.findings import findings, health
from analyzer.storage.run import Run, open_run

__all__ = ["Verdicts"]

# Longer runs take seconds to judge; their findings are one click away.
_MOST_ROWS = 2_000_000
_LONGEST_REST = 0.5


class Verdicts:
    """Words that were found so far; a thread looks for those that were asked for and are missing.

    Args:
        judge: Returns the word of an opened run.
    """

    def __init__(self, judge: "Callable[[Run], str]" = lambda run: health(findings(run))) -> None:
        self._judge = judge
        self._known: dict[Path, tuple[object, str]] = {}
        self._wanted: dict[Path, object] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._known)

    def word(self, path: Path, mark: object) -> str | None:
        """Return the word for a run as it is now.

        Args:
            path: Folder of the run.
            mark: Changes when the run does.

        Returns:
            The word; that of an earlier state while a new one is looked for; None before the first.
        """
        known = self._known.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        with self._lock:
            self._wanted[path] = mark
            if self._thread is None or not self._thread.is_alive():
                # Not a daemon: a program that ends while such a thread is in a library is aborted.
                self._thread = threading.Thread(target=self._work, name="verdicts")
                self._thread.start()
        return None if known is None else known[1]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted or not threading.main_thread().is_alive():
                    # Said under the lock, so that nobody counts on a thread that is about to end.
                    self._thread = None
                    return
                path = next(iter(self._wanted))
                mark = self._wanted.pop(path)
            start = time.perf_counter()
            self._known[path] = (mark, self._found(path))
            # As long again for whoever waits for a page: a folder may hold hundreds of runs.
            time.sleep(min(time.perf_counter() - start, _LONGEST_REST))

    def _found(self, path: Path) -> str:
        """The word of a run; a dash where it is too long to judge here, or cannot be judged."""
        try:
            run = open_run(path)
            if len(run.recorded_steps("layer_stats")) * len(run.layers) > _MOST_ROWS:
                return "–"
            return self._judge(run)
        except Exception:
            # A list of runs is no place to end at one run's damage; its own page says what it is.
            return "–"
