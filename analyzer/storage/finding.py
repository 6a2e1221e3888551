"""Which files hold the rows of a table: what is damaged, missing or misnamed is said."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from analyzer.errors import TooLargeError
from analyzer.storage.open_part import open_part
from analyzer.storage.parts import READ_FAILURES, Part, listing, reason_of, visible

__all__ = ["PartFinder"]


@lru_cache(maxsize=4096)
def _checked(path: Path, _inode: int, _changed: int, _size: int) -> str | None:
    return open_part(path).place


def _place(path: Path) -> str | None:
    """Where a whole file belongs; None for one of an earlier version."""
    stat = path.stat()
    return _checked(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)


class PartFinder:
    """Finds the parts of a table.

    Args:
        folder: Folder of the table.
        warn: Receives a sentence for each part that is damaged, missing or misnamed.
        promised: Returns how many flushes were written, by ``<rank>.<attempt>``.
    """

    def __init__(
        self, folder: Path, warn: Callable[[str], None], promised: Callable[[], Mapping[str, int]]
    ) -> None:
        self._folder, self._warn, self._promised = folder, warn, promised
        self._bad: set[str] = set()

    def forget(self) -> None:
        """Look at damaged files again the next time."""
        self._bad = set()

    def find(self) -> dict[Part, str]:
        """Return the parts that hold the rows, by attempt, rank and flush, and their file names.

        A part is what its content says: names may have been exchanged.

        Raises:
            FileNotFoundError: If a merge took a part away meanwhile.
        """
        # Asked before the files, of which there may be more by now, never fewer.
        promised = self._promised()
        names: dict[Part, str] = {}
        claimed: list[Part] = []
        for name in self._files():
            part = Part.from_name(name)
            if part is None:
                continue
            if name not in self._bad:
                try:
                    part = self._identity(name, part)
                    names[part] = name
                except FileNotFoundError:
                    raise
                except READ_FAILURES as error:
                    self.leave_out(name, error)
            claimed.append(part)
        self._name_missing(visible(claimed), promised)
        return {part: names[part] for part in visible(names)}

    def _files(self) -> list[str]:
        """The names in the folder; none, with a warning, where there are too many to look at."""
        try:
            return sorted(listing(self._folder))
        except TooLargeError as error:
            self._warn(f"{self._folder.name} is left out: {error}")
            return []

    def leave_out(self, name: str, error: Exception) -> None:
        """Say that a part cannot be read, and find it no more."""
        self._bad.add(name)
        part = Part.from_name(name)
        steps = "" if part is None else f"; it held steps {part.first} to {part.last}"
        place = f"{self._folder.name}/{name}"
        self._warn(f"{place} cannot be read and is left out ({reason_of(error)}){steps}")

    def _identity(self, name: str, named: Part) -> Part:
        place = _place(self._folder / name)
        if place is None or place == f"{self._folder.name}/{name}":
            return named
        folder, _, own_name = place.rpartition("/")
        part = Part.from_name(own_name)
        if folder != self._folder.name or part is None:
            raise ValueError(f"it is {place!r} under another name")
        self._warn(f"{folder}/{name} is {own_name} under another name, and is read as that")
        return part

    def _name_missing(self, claimed: Sequence[Part], promised: Mapping[str, int]) -> None:
        """Name the gaps between the parts of each writer, and what is missing at the end."""
        of_writer: dict[str, list[Part]] = {writer: [] for writer in promised}
        for part in claimed:
            of_writer.setdefault(f"{part.rank}.{part.attempt}", []).append(part)
        for writer, parts in of_writer.items():
            reached, before = 0, ""
            for part in parts:
                if part.first_flush > reached:
                    where = f"{before} before step {part.first}"
                    self._say_missing(writer, reached, part.first_flush - 1, where)
                reached, before = part.last_flush + 1, f" after step {part.last} and"
            if reached < promised.get(writer, 0):
                self._say_missing(writer, reached, promised[writer] - 1, before[: -len(" and")])

    def _say_missing(self, writer: str, first: int, last: int, where: str) -> None:
        rank, _, attempt = writer.partition(".")
        self._warn(
            f"{self._folder.name}: rows{where} are missing with a part that is gone "
            f"(flushes {first} to {last} of rank {rank}, attempt {attempt})"
        )
