"""Tags and a text about a run, by the owner of its folder: ``notes.json``."""

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from analyzer.errors import AnalyzerError, SchemaError
from analyzer.storage.parts import replace_file
from analyzer.texts import escaped

__all__ = ["NO_NOTES", "Notes", "read_notes", "write_notes"]

_NAME = "notes.json"
_MOST_TAGS, _MOST_TAG, _MOST_TEXT = 20, 40, 4_000
_MOST_BYTES = 65_536


@dataclass(frozen=True)
class Notes:
    """What the owner of a run folder says of the run.

    Args:
        tags: At most 20 words or short phrases of at most 40 characters, each once.
        text: At most 4,000 characters.
        problem: Why the file cannot be read; None for one that can, or that is not there.
    """

    tags: tuple[str, ...] = ()
    text: str = ""
    problem: str | None = None


NO_NOTES = Notes()


def read_notes(run: Path) -> Notes:
    """Return the notes of a run folder, none where it has none.

    The file is data of anybody: it is read only as a plain file of at most 64 KiB, and again only
    when it has changed.
    """
    try:
        found = os.lstat(f"{run}/{_NAME}")
    except OSError:
        return NO_NOTES
    return _read(run / _NAME, found.st_mode, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=32_768)
def _read(path: Path, mode: int, _inode: int, _changed: int, size: int) -> Notes:
    try:
        if not stat.S_ISREG(mode):
            raise ValueError("expected a file, not a link or a folder")
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, expected at most {_MOST_BYTES:,}")
        said = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError(f"a JSON {type(said).__name__}, expected an object")
        return _checked(said.get("tags", []), said.get("text", ""))
    except (OSError, ValueError, RecursionError, AnalyzerError) as error:
        reason = escaped(str(error)[:200], "line")
        return Notes(problem=f"{_NAME} is not shown ({reason}); mend it, or remove it")


def write_notes(run: Path, tags: Sequence[str], text: str) -> Notes:
    """Write the notes of a run folder, as a whole or not at all, and return them as they stand.

    Spaces around tags and text go, as do empty and repeated tags.

    Raises:
        AnalyzerError: If there are too many tags, or one or the text is too long or no text.
        OSError: If the folder cannot be written.
    """
    notes = _checked(tags, text)
    said = {name: value for name, value in asdict(notes).items() if name != "problem"}
    whole = json.dumps(said, indent=1, ensure_ascii=True) + "\n"
    replace_file(run / _NAME, lambda hidden: hidden.write_text(whole, encoding="utf-8"))
    return notes


def _checked(tags: object, text: object) -> Notes:
    if not isinstance(tags, Sequence) or isinstance(tags, str):
        raise SchemaError(f"tags are {str(tags)[:80]!r}; expected a list of words")
    kept = [tag.strip() if isinstance(tag, str) else tag for tag in tags]
    for tag in kept:
        if not isinstance(tag, str) or len(tag) > _MOST_TAG:
            raise SchemaError(
                f"a tag is {str(tag)[:80]!r}; expected at most {_MOST_TAG} characters of text"
            )
    found = tuple(dict.fromkeys(tag for tag in kept if tag))
    if len(found) > _MOST_TAGS:
        raise SchemaError(f"there are {len(found)} tags; expected at most {_MOST_TAGS}")
    if not isinstance(text, str) or len(text) > _MOST_TEXT:
        much = f"{len(text):,} characters" if isinstance(text, str) else f"{str(text)[:80]!r}"
        raise SchemaError(f"the note is {much}; expected at most {_MOST_TEXT:,} characters")
    return Notes(found, text.strip())
