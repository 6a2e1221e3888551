"""A command line as a manifest may hold it."""

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["portable_argv"]


def portable_argv(argv: Sequence[str], working_folder: Path) -> list[str]:
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
