"""The runs that a dashboard may show, how they stand, and what was computed about them."""

import hashlib
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as StillLookedFor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from analyzer.analysis.findings import UNJUDGED, Finding, findings_in_list, health
from analyzer.analysis.numerals import age_text
from analyzer.errors import RunNotFoundError
from analyzer.storage.catalog import RunSummary, refuse_links, resolve_run, runs_in
from analyzer.storage.limits import LIMITS
from analyzer.storage.pairs import newest_pair
from analyzer.storage.remote import keep_fresh, local
from analyzer.storage.run import Run, open_run
from analyzer.storage.study import is_study, study_named
from analyzer.texts import escaped

from .cache import Cache, Line

__all__ = ["Library", "Listed", "Pulse", "pulse", "revision", "shortened", "source_named"]

# A figure is less than half a MB.
_SIZES = {"runs": 32, "records": 8, "figures": 24, "answers": 16, "told": 16, "words": 10_000}
# Longer runs take seconds to judge; their findings are one click away.
_MOST_ROWS = 2_000_000
# An answer about runs of 400 rows took 0.16 s, of 50,000 rows 0.43 s.
_FEW_ROWS = 20_000
_LONGEST_REST = 0.5
_FIGURE_SECONDS = 2.0
# A listing that took more than `_SHORT` seconds of processor time is reused for `_RESTS` times as
# long, because each answer of a page asks for it.
_SHORT, _RESTS = 0.1, 5.0


@dataclass(frozen=True)
class Listed:
    """One run of the listing: its name in URLs, and what the catalog says of it."""

    id: str
    summary: RunSummary


class Library:
    """Folders of runs, and single runs, under ids that are looked up and never joined to a path.

    Args:
        sources: Folders or URLs: each holds runs, or is one. A name may also be a run of
            ``$ANALYZER_RUNS``, or ``latest``. A folder that is not there yet is watched for.
        may_write: Whether tags and notes of runs may be changed.

    Attributes:
        cache: The last opened runs, records behind figures, figures as a browser is sent them,
            answers about runs, and the word for each run as far as it was looked for.
        drawn: Whether a browser has drawn the page that it asked for last, or, before any asked,
            whether the first page was drawn ahead. Long answers about runs of some length begin
            then, or after two seconds.
    """

    def __init__(self, sources: Sequence[str | Path], *, may_write: bool = False) -> None:
        self.may_write = may_write
        self.sources = [_existing(source) for source in sources]
        keep_fresh(sources)
        self.cache = Cache(**_SIZES)
        self._opening, self._counting = threading.Lock(), threading.Lock()
        self._open, self._quiet = 0, threading.Event()
        self._quiet.set()
        self._here = threading.local()
        self.drawn = threading.Event()
        self.drawn.set()
        self._answering, self._judging = Line("answers"), Line("words")
        self._last: tuple[float, list[Listed]] = (-math.inf, [])

    def listing(self) -> list[Listed]:
        """Return the runs that there are now, the newest first, ids unique.

        Where there are thousands, as they were when last looked at, which is a second ago or two.
        """
        seen: list[list[Listed]] | None = getattr(self._here, "seen", None)
        if seen:
            return seen[0]
        until, listed = self._last
        if time.monotonic() >= until:
            began = time.thread_time()
            listed = self._listed()
            taken = time.thread_time() - began
            rest = _RESTS * taken if taken > _SHORT else 0.0
            self._last = time.monotonic() + rest, listed
        if seen is not None:
            seen.append(listed)
        return listed

    def begin_answer(self) -> None:
        """Let this thread look at the folders once until ``end_answer``: a page asks four times.

        Runs of a list are not judged meanwhile.
        """
        self._here.seen = []
        with self._counting:
            self._open += 1
            self._quiet.clear()

    def end_answer(self) -> None:
        """Let it look again each time."""
        if getattr(self._here, "seen", None) is None:
            return
        self._here.seen = None
        with self._counting:
            self._open -= 1
            if not self._open:
                self._quiet.set()

    def _listed(self) -> list[Listed]:
        found: dict[Path, RunSummary] = {}
        for source in self.sources:
            for summary in _runs_of(source):
                found.setdefault(summary.path, summary)
        ordered = sorted(found.values(), key=lambda run: (run.created or "", run.name))
        seen: dict[str, int] = {}
        listed = []
        for summary in ordered:
            count = seen[summary.name] = seen.get(summary.name, 0) + 1
            name = summary.name if count == 1 else f"{summary.name}~{count}"
            listed.append(Listed(name, summary))
        return listed[::-1]

    def newest(self) -> tuple[str, ...]:
        """Return ids of the newest pair of runs with and without shortcuts, else the newest run."""
        readable = {run.id: run.summary for run in self.listing() if run.summary.problem is None}
        return newest_pair(readable) or tuple(readable)[:1]

    def find(self, run_id: str) -> Listed:
        """Return the run with this id.

        Raises:
            RunNotFoundError: If the listing has none, with what was looked for and where.
        """
        for listed in self.listing():
            if listed.id == run_id:
                return listed
        places = ", ".join(f"'{source}'" for source in self.sources)
        raise RunNotFoundError(
            f"no run '{shortened(run_id)}' in {places}; choose one on the page of runs."
        )

    def open(self, run_id: str) -> Run:
        """Open the run with this id as it is on disk now.

        Raises:
            RunNotFoundError: If the listing has none.
            SchemaError: If it cannot be read, or holds a link.
        """
        path = self.find(run_id).summary.path
        # One object for all threads: what is kept of a run is kept by object.
        with self._opening:
            mark = revision(path)
            known = self.cache.peek("runs", path)
            if known is not None and known[0] == mark:
                opened: Run = known[1]
                return opened
            refuse_links(path)
            # A new object rather than a refreshed one: another thread may still read the old one.
            opened = open_run(path)
            self.cache.put("runs", path, (mark, opened))
            return opened

    def answer(
        self,
        what: str,
        runs: tuple[Run, ...],
        find: Callable[[], Any],
        patience: float = 0.03,
    ) -> Any | None:
        """Return a long answer about runs, such as findings; None while a thread works on it.

        While it does so for runs that have grown, that is the answer before: new steps may come
        faster than it is found. What ``find`` raises is raised here. A request waits ``patience``
        seconds.
        """
        future, is_new = self.cache.slot("answers", (what, runs))
        key = (what, *(run.path for run in runs))

        def work() -> None:
            if not _are_short(runs):
                self.drawn.wait(_FIGURE_SECONDS)
            try:
                future.set_result(find())
                self.cache.put("told", key, future.result())
            except Exception as error:
                # Raised where the answer is asked for, which knows what to say about it.
                future.set_exception(error)
            pa.default_memory_pool().release_unused()

        if is_new:
            self._answering.put(key, work)
        try:
            return future.result(patience)
        except StillLookedFor:
            self._here.is_behind = True
            return self.cache.peek("told", key)

    def was_behind(self) -> bool:
        """Whether an answer that this thread was given since it last asked so was an older one."""
        was, self._here.is_behind = getattr(self._here, "is_behind", False), False
        return was

    def word(self, path: Path, mark: object) -> str | None:
        """Return what is worst about a run, in a word; the list of runs never waits for it.

        The ``mark`` changes when the run does: the word is that of an earlier state while a new one
        is looked for, and None before the first.
        """
        known = self.cache.peek("words", path)

        def work() -> None:
            self._quiet.wait(_LONGEST_REST)
            start = time.perf_counter()
            self.cache.put("words", path, (mark, *_judged(path)))
            # As long again for whoever waits for a page: a folder may hold hundreds of runs.
            time.sleep(min(time.perf_counter() - start, _LONGEST_REST))

        if known is None or known[0] != mark:
            self._judging.put(path, work)
        return None if known is None else str(known[1])

    def alerts(self, path: Path) -> tuple[Finding, ...]:
        """Return the findings of a run as far as ``word`` has looked for them."""
        known = self.cache.peek("words", path)
        return () if known is None else known[2]

    def completed(self, listed: Listed) -> Listed:
        """Return a listed run with what its manifest does not say read from its tables."""
        return replace(listed, summary=listed.summary.completed(lambda _: self.open(listed.id)))


def _are_short(runs: Sequence[Run]) -> bool:
    """Whether runs have so few rows that an answer about them holds no figure up."""
    try:
        lasts = [run.nearest_step(None) or 0 for run in runs]
        layers: list[int] = [run.static_rows("layers").num_rows for run in runs]
    except Exception:
        # Whoever asks for the answer says what is wrong with a run.
        return False
    return sum((last + 1) * count for last, count in zip(lasts, layers, strict=True)) <= _FEW_ROWS


def _judged(path: Path) -> tuple[str, tuple[Finding, ...]]:
    """The word of a run, a dash where it is too long to judge here, and its findings.

    Of the layers of each finding only the first is kept.
    """
    try:
        found = findings_in_list(lambda: open_run(path), _MOST_ROWS)
    except Exception:
        # One damaged run must not end the list; its own page says what is wrong.
        return UNJUDGED, ()
    if found is None:
        return "–", ()
    return health(found), tuple(replace(one, layers=one.layers[:1]) for one in found)


def shortened(text: str, most: int = 120) -> str:
    """Return a text cut to a number of characters, others than printable ones as escapes."""
    clean = escaped(text[: most + 1], "line")
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def revision(path: Path) -> tuple[object, ...]:
    """Return a mark of a run folder that changes whenever something is added to it."""
    folder = os.fspath(path)
    parts = ("run.json", "steps", "layer_stats", "splits", "overview", "checkpoints")
    mark: list[object] = [_changed(folder), *(_changed(f"{folder}/{name}") for name in parts)]
    probes = f"{folder}/probes"
    if not os.path.islink(probes) and os.path.isdir(probes):
        some = itertools.islice(os.scandir(probes), LIMITS.files)
        mark += sorted((entry.name, _changed(entry.path)) for entry in some)
    return tuple(mark)


def _changed(path: str) -> int:
    """When a file or a folder was changed; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def source_named(name: str) -> Path:
    """Return a folder of runs, a study or a run; one that is not there is looked up among the runs.

    Raises:
        RunNotFoundError: If nothing has that name.
    """
    if os.path.isdir(name):
        return Path(name)
    return study_named(name, os.environ.get("ANALYZER_RUNS") or "runs") or resolve_run(name)


def _existing(source: str | Path) -> Path:
    path = local(source, may_be_empty=True)
    if is_study(path):
        return path / "runs"
    if path.is_dir():
        return path
    try:
        return resolve_run(source)
    except RunNotFoundError:
        return path


def _runs_of(source: Path) -> list[RunSummary]:
    """The runs of a folder, or the one run that it is."""
    if not os.path.lexists(source / "run.json"):
        return runs_in(source)
    beside = {run.path.resolve(): run for run in runs_in(source.resolve().parent)}
    own = beside.get(source.resolve())
    return [] if own is None else [own]


@dataclass(frozen=True)
class Pulse:
    """The state of what a page shows: a mark that changes when the figures would, and one line."""

    mark: str
    text: str
    is_over: bool


def pulse(library: Library, run_ids: Sequence[str]) -> Pulse:
    """Return the pulse of runs; of the whole listing where none is named."""
    listed = library.listing()
    chosen = [run for run in listed if run.id in run_ids]
    seen: list[tuple[object, ...]] = [
        (run.id, run.summary.status, revision(run.summary.path))
        for run in (chosen if run_ids else listed)
    ]
    if not run_ids:
        # The words of the list are found one after the other; each changes what it shows.
        seen.append((library.cache.count("words"),))
    mark = hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
    if not run_ids:
        running = sum(run.summary.status == "running" for run in listed)
        return Pulse(mark, f"{len(listed)} runs, {running} running", is_over=False)
    text = " · ".join(_line(run) for run in chosen)
    # A run that is not there yet may come.
    is_over = len(chosen) == len(set(run_ids))
    return Pulse(mark, text, is_over and all(run.summary.status != "running" for run in chosen))


def _line(run: Listed) -> str:
    """How a run stands; the age of its last rows while it runs."""
    name, status = shortened(run.id, 24), run.summary.status
    if status != "running":
        return "; ".join([f"{name}: {status}", *run.summary.incomplete])
    steps = f"{run.summary.steps:,} steps" if run.summary.steps is not None else "no step yet"
    return f"{name}: running, {steps}, updated {age_text(_age(run.summary.path))} ago"


def _age(path: Path) -> float:
    """Seconds since the last rows or the last heartbeat were written."""
    newest = max(_changed(f"{path}/{name}") for name in ("run.json", "steps"))
    return max(0.0, time.time() - newest / 1e9)
