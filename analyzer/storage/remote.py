"""Runs and studies at URLs that fsspec knows, as ``s3://bucket/runs/mine``: each has a local copy.

What is read is copied here first, later only what has changed. What is recorded is written here,
and copied there by a process of its own, which ends its work when the recorded one was killed.
Parts never change once they are there and JSON files are copied last, so that a reader elsewhere
sees what one here saw a moment before.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from analyzer.errors import AnalyzerError, RunNotFoundError
from analyzer.launch import url_of

__all__ = ["Mirror", "keep_fresh", "local", "lock", "refreshed", "sent_back"]

_SECONDS, _FRESH_SECONDS = 2.0, 2.0
_TRIES, _AT_ONCE = 5, 8
_MOST_NAME = 200
# Files of one run that are looked at, as of a folder of runs.
_MOST_FILES = 100
_PENDING, _STATE = ".pending", ".state.json"
# Which process runs a study here says nothing elsewhere.
_ONLY_HERE = ("lock", "locks")


def local(path: str | Path, *, with_checkpoints: bool = False, may_be_empty: bool = False) -> Path:
    """Return the folder of a run, a study or of runs; of one at a URL its copy, brought up to date.

    Args:
        path: A folder or a URL.
        with_checkpoints: Whether the copy has the checkpoints of its runs.
        may_be_empty: Whether the URL may hold nothing yet.

    Raises:
        RunNotFoundError: If the URL holds nothing.
        AnalyzerError: If what the URL needs is not installed, or it cannot be read.
    """
    url = url_of(path)
    if url is None:
        return Path(path)
    folder = Mirror(url).pull(with_checkpoints=with_checkpoints)
    if not may_be_empty and not any(folder.iterdir()):
        raise RunNotFoundError(
            f"there is nothing at '{url}'; expected the folder of a run, a study or of runs"
        )
    return folder


@contextlib.contextmanager
def sent_back(path: str | Path) -> Iterator[Path | None]:
    """Give the copy of a URL, with checkpoints; what changes in it is copied back in the end.

    None where the path is no URL.
    """
    url = url_of(path)
    if url is None:
        yield None
        return
    mirror, folder = Mirror(url), local(path, with_checkpoints=True)
    before = mirror.files()
    try:
        yield folder
    finally:
        mirror.push(before)
        mirror.seal()


_fresh: dict[Path, tuple[str, float]] = {}


def refreshed(folder: Path) -> None:
    """Copy what has changed at the URL of which a folder is the copy, every two seconds at most."""
    url, copied = _fresh.get(folder, (None, 0.0))
    if url is not None and time.monotonic() - copied > _FRESH_SECONDS:
        with contextlib.suppress(AnalyzerError):  # what is here stays readable
            Mirror(url).pull()


def keep_fresh(paths: Iterable[str | Path]) -> None:
    """Copy what changes at URLs, given as such or by their copies, while this process lives."""
    named = [(one, url_of(one)) for one in paths]
    folders = [Path(one) if url is None else Mirror(url).folder for one, url in named]
    folders = [folder for folder in folders if folder in _fresh]

    def watch() -> None:
        while True:
            time.sleep(_SECONDS)
            for folder in folders:
                refreshed(folder)

    if folders:
        threading.Thread(target=watch, name="analyzer-urls", daemon=True).start()


def _copies() -> Path:
    """Where the copies are: ``$ANALYZER_CACHE``, else the user's folder for caches."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(
        os.path.abspath(os.environ.get("ANALYZER_CACHE") or base / "gradient-flow-analyzer")
    )


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    scheme = url.partition(":")[0]
    try:
        from fsspec.core import url_to_fs

        file_system, path = url_to_fs(url)
        return file_system, str(path)
    except ImportError as error:
        package = "gradient-flow-analyzer[s3]" if scheme in ("s3", "s3a") else ""
        remedy = f"Install it with: pip install '{package}'" if package else "Install what it names"
        raise AnalyzerError(
            f"{url} needs a package that is not installed ({error}); expected it beside analyzer. "
            f"{remedy}"
        ) from error
    except ValueError as error:
        raise AnalyzerError(
            f"{url} cannot be opened ({error}); expected a folder or a URL that fsspec knows, as "
            "s3://bucket/runs/mine"
        ) from error


def _check(limit: str, found: float, what: str) -> None:
    from analyzer.storage.limits import LIMITS  # Arrow, which what only copies does not need

    LIMITS.check(limit, found, what)


def _counting() -> Any:
    """Ends a copy where more comes than may, whatever the server said of its size."""
    from fsspec.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            _check("copied_mib", self.value / 2**20, "a file that is copied has")

    return Counting()


def _is_ours(name: str) -> bool:
    """Whether a file belongs to runs: none is hidden or too long, and no name leads elsewhere."""
    parts = name.split("/")
    return all(map(_is_plain, parts)) and not any(part in _ONLY_HERE for part in parts[1:])


def _is_plain(part: str) -> bool:
    # While it is copied, a file has a longer name.
    is_short = 0 < len(part.encode(errors="replace")) <= _MOST_NAME
    return is_short and part[0] != "." and not re.search("[\\\\\0\ud800-\udfff]", part)


def _size(size: Any) -> int:
    return max(0, size) if isinstance(size, int) else 0  # a server may say anything


def _mark(info: dict[str, Any]) -> list[Any]:
    """What changes when a file at a URL does."""
    names = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
    found = next((info[name] for name in names if info.get(name) is not None), None)
    return [_size(info.get("size")), str(found)]


class Mirror:
    """The local copy of a folder at a URL, and of those that a recording makes beside it.

    Args:
        url: As `url_of` gives it.
        of: What tells this copy from others of the same URL.

    Attributes:
        folder: The copy.

    Raises:
        AnalyzerError: If what the URL needs is not installed.
    """

    def __init__(self, url: str, of: str = "") -> None:
        parent, _, name = url.rpartition("/")
        if not name or name in (".", "..") or parent.endswith((":/", ":")):
            raise RunNotFoundError(f"'{url}' names no folder; expected as in s3://bucket/runs/mine")
        self.url, self.name = url, name
        key = hashlib.sha256(f"{url}\n{of}".encode()).hexdigest()[:16]
        self.base = _copies() / key
        self.folder = self.base / name
        self._fs, path = _file_system(url)
        self._parent = path.rstrip("/").rpartition("/")[0]

    def _there(self, name: str) -> str:
        return f"{self._parent}/{name}"

    def listing(self, part: str = "") -> dict[str, list[Any]]:
        """Return what is at the URL: names from its parent on, with what changes when they do.

        Args:
            part: A folder in it; empty for all.

        Raises:
            AnalyzerError: If it cannot be read.
        """
        try:
            self._fs.invalidate_cache()
            whole = f"{self.name}/{part}".rstrip("/")
            found = self._fs.find(self._there(whole), detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # of any library
            raise AnalyzerError(
                f"'{self.url}' cannot be read ({type(error).__name__}: {error}); check the "
                "address, and the keys and the endpoint in the environment"
            ) from error
        cut = len(self._parent) + 1
        kept = [
            p for p, i in found.items() if i.get("type", "file") == "file" and not i.get("islink")
        ]
        files = {path[cut:]: found[path] for path in kept}
        _check("files", len(files) / _MOST_FILES, f"a hundredth of '{self.url}' has files:")
        return {
            name: _mark(info)
            for name, info in files.items()
            # Where keys are not folders, a file may lie below another one.
            if _is_ours(name) and not any(str(over) in files for over in PurePath(name).parents)
        }

    def pull(self, *, with_checkpoints: bool = False) -> Path:
        """Copy here what has changed there, take away what is gone; return the copy.

        Where a process of this machine is writing there, its copy is ahead and stays as it is;
        what one that died could not copy there is copied first.

        Raises:
            AnalyzerError: If the URL cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        _fresh[self.folder] = (self.url, time.monotonic())
        if self._is_ahead():
            return self.folder
        for _ in range(_TRIES):
            found, known = self.listing(), self._state()
            wanted = {
                name: mark
                for name, mark in found.items()
                if with_checkpoints or "/checkpoints/" not in name
            }
            changed = [
                name
                for name, mark in wanted.items()
                if known.get(name) != mark or not (self.base / name).is_file()
            ]
            size = sum(wanted[name][0] for name in changed) / 2**20
            _check("copied_mib", size, f"what is to be copied of '{self.url}' has")
            try:
                self._all(changed, self._fetch)
            except FileNotFoundError:  # merged with others meanwhile
                continue
            except Exception as error:  # of any library, or of the disk
                raise AnalyzerError(
                    f"'{self.url}' cannot be copied ({type(error).__name__}: {error}); check the "
                    f"address, and the room for copies in '{_copies()}' (ANALYZER_CACHE)"
                ) from error
            for path in self.files():
                if path not in found and path.startswith(f"{self.name}/"):
                    (self.base / path).unlink(missing_ok=True)
            self._keep({**known, **wanted}, found)
            _fresh[self.folder] = (self.url, time.monotonic())
            return self.folder
        raise AnalyzerError(f"'{self.url}' changes faster than it can be copied; try again")

    def _fetch(self, name: str) -> None:
        place = self.base / name
        place.parent.mkdir(parents=True, exist_ok=True)
        hidden = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            self._fs.get_file(self._there(name), str(hidden), callback=_counting())
            hidden.replace(place)
        finally:
            hidden.unlink(missing_ok=True)

    def fetch(self, part: str) -> None:
        """Copy a folder of it here, also where this copy is ahead.

        Raises:
            AnalyzerError: If the URL cannot be read.
        """
        self._all(list(self.listing(part)), self._fetch)

    def push(self, pushed: dict[str, tuple[int, int]], part: str = "") -> None:
        """Copy there what has changed here since the last time, and take away what is gone.

        Args:
            pushed: Size and time of the files that are there; changed in place.
            part: Only what lies in this folder; empty for all, also beside it.

        Raises:
            Exception: Whatever the file system of the URL raises.
        """
        within = f"{self.name}/{part}/" if part else ""
        here = {name: mark for name, mark in self.files().items() if name.startswith(within)}
        changed = [name for name, mark in here.items() if pushed.get(name) != mark]
        for is_json in (False, True):
            some = [name for name in changed if name.endswith(".json") == is_json]
            self._all(some, partial(self._send, pushed))
        for name in [name for name in pushed if name not in here]:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._there(name))
            del pushed[name]

    def _send(self, pushed: dict[str, tuple[int, int]], name: str) -> None:
        place, there = self.base / name, self._there(name)
        with contextlib.suppress(FileNotFoundError):  # merged with others meanwhile
            mark = _stamp(place)
            if getattr(self._fs, "local_file", False):  # elsewhere a file appears whole
                hidden = f"{os.path.dirname(there)}/.{place.name}.{os.getpid()}.tmp"
                self._fs.makedirs(os.path.dirname(there), exist_ok=True)
                self._fs.put_file(str(place), hidden)
                os.replace(hidden, there)
            else:
                self._fs.put_file(str(place), there)
            pushed[name] = mark

    def seal(self) -> None:
        """Note that the copy is what is there, so that nothing of it is fetched again."""
        found, here = self.listing(), self.files()
        same = {n: m for n, m in found.items() if n in here and here[n][0] == m[0]}
        self._keep(same, found)

    def _all(self, names: list[str], work: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(work, names))

    def files(self) -> dict[str, tuple[int, int]]:
        """Return the files of the copy, with size and time."""
        found = {}
        for folder, _, files in os.walk(self.base):
            for file in files:
                path = Path(folder) / file
                name = path.relative_to(self.base).as_posix()
                if _is_ours(name):
                    with contextlib.suppress(FileNotFoundError):
                        found[name] = _stamp(path)
        return found

    def _state(self) -> dict[str, list[Any]]:
        try:
            return dict(json.loads((self.base / _STATE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _keep(self, known: dict[str, list[Any]], found: dict[str, list[Any]]) -> None:
        text = json.dumps({name: mark for name, mark in known.items() if name in found})
        hidden = self.base / f"{_STATE}.{os.getpid()}-{threading.get_ident()}.tmp"
        hidden.write_text(text, encoding="utf-8")
        hidden.replace(self.base / _STATE)

    def pending(self) -> Path:
        """Return the file that is there as long as this copy is ahead of the URL.

        It says which files were there, as they are here, before anything was written.
        """
        return self.base / _PENDING

    def was_there(self) -> dict[str, tuple[int, int]]:
        """Return what that file says."""
        found = json.loads(self.pending().read_text(encoding="utf-8") or "{}")
        return {name: (size, time_) for name, (size, time_) in found.items()}

    def _is_ahead(self) -> bool:
        if not self.pending().exists():
            return False
        with contextlib.suppress(Exception), self.pending().open("rb") as file:
            lock(file, is_alone=True)  # who writes there has it shared
            self.push(self.was_there())
            self.seal()
            self.pending().unlink()
        return True


def lock(file: Any, *, is_alone: bool) -> None:
    """Lock an open file, alone at once or not at all, or with others."""
    import fcntl  # not on Windows, where runs are read

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if is_alone else fcntl.LOCK_SH)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
