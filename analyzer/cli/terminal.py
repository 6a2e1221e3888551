"""Writing to a terminal, a pipe or a file: width, color, encoding, and names that others chose."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import ASCII, SIMPLE_HEAD, Box
from rich.console import Console

from analyzer.analysis.numerals import digits_apart
from analyzer.errors import AnalyzerError
from analyzer.texts import escaped

__all__ = [
    "Signs",
    "console",
    "json_text",
    "lines_shown",
    "number",
    "printable",
    "prints_unicode",
    "signs",
    "table_box",
    "writing",
]

_LONGEST_WAIT = 5.0

_PIPE_WIDTH = 100


@dataclass(frozen=True)
class Signs:
    """Signs that not every stream can hold."""

    unicode: bool
    missing: str
    plus_minus: str
    dot: str
    norm: str
    arrow: str


def signs() -> Signs:
    """Return the signs that stdout can hold."""
    if prints_unicode():
        return Signs(True, "–", "±", " · ", "‖∂L/∂y‖", "→")
    return Signs(False, "-", "+-", " | ", "|dL/dy|", "->")


def number(value: float | None, missing: str = "–") -> str:
    """Return three digits, ``NaN``, ``inf`` or, for None, the sign for what was not measured."""
    if value is None:
        return missing
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value}"
    return f"{value:.{digits_apart(value, 3)}g}"


def prints_unicode(encoding: str | None = None) -> bool:
    """Whether a stream of this encoding (of stdout where None) can hold the chart characters."""
    name = encoding if encoding is not None else (getattr(sys.stdout, "encoding", None) or "ascii")
    try:
        "│⁻✕∅█‖∂±".encode(name)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def console() -> Console:
    """Return a console on stdout: as wide as the terminal, or 100 columns without color elsewhere.

    Markup, emoji codes and highlighting are off, because names of layers are printed as they are.
    """
    stream = sys.stdout
    if hasattr(stream, "reconfigure"):
        # A layer name may hold letters that the locale cannot encode; it is shown escaped.
        stream.reconfigure(errors="backslashreplace")
    is_terminal = stream.isatty()
    return Console(
        file=stream,
        width=None if is_terminal else _PIPE_WIDTH,
        force_terminal=None if is_terminal else False,
        color_system="auto" if is_terminal else None,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=False,
    )


def table_box() -> Box:
    """Return the box style of tables that stdout can show."""
    return SIMPLE_HEAD if prints_unicode() else ASCII


def printable(text: str, limit: int = 60) -> str:
    """Return a name as harmless text: one line, nothing invisible, at most ``limit`` characters.

    Control, formatting and unassigned characters (escape sequences, newlines, text direction) are
    shown as Python escapes; what is too long loses its middle, since both ends of a module path
    tell layers apart.
    """
    shown = escaped(text, "line")
    if len(shown) <= limit:
        return shown
    mark = "…" if prints_unicode() else "..."
    kept = max(limit - len(mark), 2)
    head = (kept + 1) // 2
    return shown[:head] + mark + shown[len(shown) - (kept - head) :]


@contextlib.contextmanager
def writing(option: str, path: Path, *, is_folder: bool) -> Iterator[None]:
    """Make the folder for what an option names; say so where it, or something in it, cannot be.

    Raises:
        AnalyzerError: If it cannot be written.
    """
    kind, folder = ("a folder", path) if is_folder else ("a file", path.parent)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield
    except OSError as error:
        raise AnalyzerError(
            f"{option} '{path}' cannot be written ({error.strerror or error}); expected {kind} "
            "that can be made there. Name another one."
        ) from error


def json_text(value: Any) -> str:
    """Return a value (dataclasses and arrays too) as indented JSON.

    ``"NaN"``, ``"inf"`` and ``"-inf"`` for what is not finite, ``null`` for what was not measured.
    """
    text = json.dumps(_plain(value), indent=1, ensure_ascii=not prints_unicode(), allow_nan=False)
    # A terminal takes some characters that JSON may hold for commands.
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _plain(value: Any) -> Any:
    """The value in the types of JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {str(key): _plain(cell) for key, cell in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(cell) for cell in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


@contextlib.contextmanager
def lines_shown(mark: str, is_quiet: bool) -> Iterator[int]:
    """Give a file to which another process may print: its lines go to stderr at once, marked."""
    if is_quiet:
        yield subprocess.DEVNULL
        return
    ours, theirs = os.pipe()

    def show() -> None:
        with open(ours, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                print(f"{mark}{line.rstrip()}", file=sys.stderr, flush=True)

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        # A child of that process may hold the other end, and live on.
        reader.join(_LONGEST_WAIT)
