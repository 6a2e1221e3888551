"""The runs that a dashboard may show: what is not in its listing cannot be opened."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from analyzer.errors import AnalyzerError, RunNotFoundError, SchemaError
from analyzer.storage.catalog import RunSummary, resolve_run, runs_in
from analyzer.storage.run import Run, open_run

from .answers import Answers
from .records import Records
from .verdicts import Verdicts

__all__ = ["Library", "Listed", "revision", "shortened"]

_MOST_OPEN = 8
# Less than half a MB each.
_MOST_SHOWN = 24


@dataclass(frozen=True)
class Listed:
    """One run of the listing.

    Args:
        id: Its name in URLs.
        summary: What the catalog says of it.
    """

    id: str
    summary: RunSummary


class Library:
    """Folders of runs, and single runs, under ids that are looked up and never joined to a path.

    Args:
        sources: Folders: each holds runs, or is one. A name may also be a run of
            ``$ANALYZER_RUNS``, or ``latest``. A folder that is not there yet is watched for.

    Attributes:
        sources: The folders.
        verdicts: A word for each run, as far as they were looked for.
        records: The last records behind figures.
        shown: The last figures and what a browser needs to move their step, as it is sent them.
        answers: The last findings and verdicts.
    """

    def __init__(self, sources: Sequence[str | Path]) -> None:
        self.sources = [_existing(source) for source in sources]
        self._open: OrderedDict[Path, tuple[object, Run]] = OrderedDict()
        self._lock = Lock()
        self.verdicts = Verdicts()
        self.records = Records()
        self.shown = Records(_MOST_SHOWN)
        self.answers = Answers()

    def listing(self) -> list[Listed]:
        """Return the runs that there are now, the newest first, ids unique."""
        found: dict[Path, RunSummary] = {}
        for source in self.sources:
            for summary in _runs_of(source):
                found.setdefault(summary.path, summary)
        ordered = sorted(found.values(), key=lambda run: (run.created or "", run.name))
        seen: dict[str, int] = {}
        listed = []
        for summary in ordered:
            count = seen[summary.name] = seen.get(summary.name, 0) + 1
            listed.append(
                Listed(summary.name if count == 1 else f"{summary.name}~{count}", summary)
            )
        return listed[::-1]

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
        mark = revision(path)
        with self._lock:
            known = self._open.get(path)
            if known is not None and known[0] == mark:
                self._open.move_to_end(path)
                return known[1]
        _refuse_links(path)
        # A new object rather than a refreshed one: another thread may still read the old one.
        run = open_run(path)
        with self._lock:
            self._open[path] = (mark, run)
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return run

    def completed(self, listed: Listed) -> Listed:
        """Return a listed run with what its manifest does not say read from its tables."""
        run = listed.summary
        if run.problem is not None or None not in (run.steps, run.layers, run.joins, run.loss):
            return listed
        try:
            opened = self.open(listed.id)
            return Listed(listed.id, _counted(run, opened))
        except (AnalyzerError, OSError, ValueError) as error:
            return Listed(listed.id, replace(run, status="broken", problem=str(error)))


def shortened(text: str, most: int = 120) -> str:
    """Return a text of at most so many characters, printable ones only."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in text[: most + 1])
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _refuse_links(path: Path, levels: int = 3) -> None:
    """Refuse a run that borrows files by links: they may lead anywhere on this machine."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise SchemaError(
                    f"run '{path.name}' holds a link, '{shortened(entry.name)}'; expected files "
                    "of its own. Replace the link by what it leads to."
                )
            if levels > 1 and entry.is_dir(follow_symlinks=False):
                _refuse_links(Path(entry.path), levels - 1)


def revision(path: Path) -> tuple[object, ...]:
    """Return a mark of a run folder that changes whenever something is added to it."""
    folder = os.fspath(path)
    mark: list[object] = [_changed(folder)]
    for name in ("run.json", "steps", "layer_stats", "splits", "overview", "checkpoints"):
        mark.append(_changed(f"{folder}/{name}"))
    probes = f"{folder}/probes"
    if not os.path.islink(probes) and os.path.isdir(probes):
        mark += [(e.name, _changed(e.path)) for e in sorted(os.scandir(probes), key=_name)]
    return tuple(mark)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _changed(path: str) -> int:
    """When a file or a folder was changed; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _existing(source: str | Path) -> Path:
    path = Path(source)
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


def _counted(summary: RunSummary, run: Run) -> RunSummary:
    recorded = run.recorded_steps()
    loss = summary.loss
    if loss is None and len(recorded):
        loss = run.read("steps", "loss", steps=int(recorded[-1]))["loss"][0].as_py()
    return replace(
        summary,
        steps=len(recorded) if summary.steps is None else summary.steps,
        layers=len(run.layers) if summary.layers is None else summary.layers,
        joins=len(run.joins) if summary.joins is None else summary.joins,
        loss=loss,
    )
