"""The bins of one table while it is recorded: none while reading its rows costs no more."""

from collections.abc import Callable
from pathlib import Path

from analyzer.storage.bin_file import chunks_in
from analyzer.storage.bin_writer import BinWriter
from analyzer.storage.bins import Numbers
from analyzer.storage.parts import READ_FAILURES
from analyzer.storage.tables import StepTable

__all__ = ["TableBins"]

# This many rows are read and binned in the time that opening and reading the bins takes, which are
# larger than the rows themselves until there are some thousand steps.
LEAST_ROWS = 100_000


class TableBins:
    """Keeps the bins of one table of a run beside its rows, which are on disk already.

    Bins follow from rows: what goes wrong with them costs nothing. They are then made again at the
    end, and until then readers take from the rows what no bin holds.

    Args:
        run: Folder of the run.
        table: Name of the table.
        attempt: Number of this restart; bins of earlier ones are taken over.
    """

    def __init__(self, run: Path, table: str, attempt: int) -> None:
        self._folder = run / "overview" / table
        self._run, self._table, self._attempt = run, table, attempt
        self._bins: BinWriter | None = None
        self._num_rows = self._last = -1
        self._is_stale = False

    def add(self, numbers: Numbers) -> None:
        """Add rows that were written, whose steps do not lie before those of an earlier call."""
        if self._num_rows < 0:
            self._num_rows = 0
            if self._attempt > 0:
                self._attempt_to(lambda: self._take_over(numbers))
        self._num_rows += len(numbers.steps)
        self._last = max(self._last, int(numbers.steps.max()))
        if self._bins is not None:
            self._attempt_to(lambda: self._add(numbers))
        elif self._num_rows > LEAST_ROWS and not self._is_stale:
            self._attempt_to(lambda: self._begin(0, self._last))

    def _add(self, numbers: Numbers) -> None:
        assert self._bins is not None
        self._bins.add(numbers)

    def save(self) -> None:
        """Write the bins that are still growing, so that a reader has little to scan."""
        if self._bins is not None:
            self._attempt_to(self._bins.save)

    def finish(self) -> None:
        """Write everything into one file; from the rows where something went wrong before."""
        if self._bins is not None:
            self._attempt_to(self._bins.finish)
        if self._is_stale:
            self._is_stale = False
            self._attempt_to(self._make_again)

    def _attempt_to(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (*READ_FAILURES, MemoryError):
            self._bins, self._is_stale = None, True

    def _clear(self) -> None:
        for chunk in chunks_in(self._folder):
            (self._folder / chunk.name).unlink(missing_ok=True)

    def _make_again(self) -> None:
        self._clear()
        if self._num_rows > LEAST_ROWS:
            self._begin(0, self._last)
            assert self._bins is not None
            self._bins.finish()

    def _begin(self, first: int, last: int) -> None:
        """Make bins of the rows on disk, from one step to another."""
        bins = self._bins or BinWriter(self._folder, self._table)
        for numbers in self._rows().numbers(first, last, rank=0):
            bins.add(numbers)
        self._bins = bins

    def _take_over(self, numbers: Numbers) -> None:
        """Continue what earlier attempts left before the first step of this one."""
        first = int(numbers.steps.min())
        self._num_rows = self._rows().num_rows(rank=0) - len(numbers.steps)
        if not chunks_in(self._folder):
            return
        try:
            bins = BinWriter(self._folder, self._table)
            reached = bins.recover(first)
        except READ_FAILURES:
            # What they wrote past the first step must not be shown beside this attempt.
            self._clear()
            bins, reached = BinWriter(self._folder, self._table), 0
        self._bins = bins
        self._begin(reached, first - 1)

    def _rows(self) -> StepTable:
        return StepTable(self._run, self._table, lambda sentence: None)
