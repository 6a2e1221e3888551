"""What a URL asks for, none of it believed, and the runs that it leads to."""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from flask import Flask, redirect, request
from werkzeug.wrappers import Response

from analyzer.analysis.evidence import opening_step
from analyzer.analysis.view import AGGREGATES, MOST_SMOOTH, SCALES, TIMES, View, has_shortcuts
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import PAGES, page_at, page_of
from analyzer.figures.panels import MANY_RUNS
from analyzer.storage.run import Run

from .library import Library

__all__ = [
    "MOST_RUNS",
    "Address",
    "Context",
    "context",
    "landed",
    "lead",
    "opened",
    "opening",
    "parse",
    "query",
]

MOST_RUNS = MANY_RUNS
_MOST_CHARACTERS = 8_000
_MOST_NAMED = 32
_MOST_LAYERS = 24
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DIGITS = re.compile(r"[0-9]{1,15}")
# What the browser does by itself: the order of a list, and where figures are zoomed to.
_KEPT = ("sort", *(f"zoom-{axis}" for axis in (*TIMES, "depth", "relative")))
_SHORT = 80
_MOST_SMOOTH = round(100 * MOST_SMOOTH)


@dataclass(frozen=True)
class Address:
    """What a URL asks for.

    Args:
        runs: Ids of runs, as typed; only the listing says whether they exist.
        step: The chosen step; None for the last.
        quantity: Column to draw; empty for the page's own.
        layers: Regular expression for layer names; empty for all.
        smooth: Strength of smoothing in percent.
        chosen: Layers whose series are drawn, as they were clicked.
        pinned: Layers whose series are drawn in any case.
        few: Ids of the runs that figures show which cannot show all; empty for the first ones.
        group: Argument by which runs are drawn together; empty for each by itself.
        find: Words by which runs are listed.
        columns: Arguments and logged numbers that the list shows; empty for those that differ.
        run_of: Id of the run whose network is shown; empty for the first.
        opened: Modules of the network that are shown open, whatever fits.
        closed: Those that are shown closed.
    """

    runs: tuple[str, ...] = ()
    step: int | None = None
    quantity: str = ""
    layers: str = ""
    aggregate: str = "median"
    relative: bool = False
    smooth: int = 0
    over: str = TIMES[0]
    log_x: bool = False
    scale: str = SCALES[0]
    few: tuple[str, ...] = ()
    group: str = ""
    chosen: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    find: str = ""
    columns: tuple[str, ...] = ()
    run_of: str = ""
    kept: tuple[tuple[str, str], ...] = ()


def parse(search: str | None, step: int | None = None) -> Address:
    """Read a query string, with or without ``?``; what is malformed or too long is not given.

    The ``step`` is used where the query string names none.
    """
    pairs = parse_qsl((search or "")[:_MOST_CHARACTERS].removeprefix("?"), max_num_fields=None)
    last = dict(pairs)
    shown, number = last.get("bins", ""), last.get("step", "")
    over, scale, smooth = (last.get(name, "") for name in ("x", "y", "smooth"))
    return Address(
        runs=tuple(dict.fromkeys(v for k, v in pairs if k == "run"))[:_MOST_NAMED],
        step=int(number) if _DIGITS.fullmatch(number) else step,
        quantity=quantity if _WORD.fullmatch(quantity := last.get("quantity", "")) else "",
        layers=last.get("layers", ""),
        aggregate=shown if shown in AGGREGATES else AGGREGATES[0],
        relative=last.get("relative") == "1",
        smooth=min(int(smooth), _MOST_SMOOTH) if _DIGITS.fullmatch(smooth) else 0,
        over=over if over in TIMES else TIMES[0],
        log_x=last.get("logx") == "1",
        scale=scale if scale in SCALES else SCALES[0],
        few=_named(pairs, "few"),
        group=last.get("group", ""),
        chosen=_named(pairs, "layer"),
        pinned=_named(pairs, "pin"),
        opened=_named(pairs, "open"),
        closed=_named(pairs, "close"),
        find=last.get("find", ""),
        columns=_named(pairs, "column"),
        run_of=last.get("of", ""),
        kept=tuple((name, last[name][:_SHORT]) for name in _KEPT if last.get(name)),
    )


def _named(pairs: list[tuple[str, str]], key: str) -> tuple[str, ...]:
    """Every value of a key, each once."""
    return tuple(dict.fromkeys(v for k, v in pairs if k == key))[:_MOST_LAYERS]


def landed(library: Library, path: str, search: str | None) -> Address:
    """Read a query string; the overview without runs is that of the newest pair, or run."""
    address = parse(search)
    if address.runs or path != page_of("overview").path:
        return address
    return replace(address, runs=library.newest())


def opened(library: Library, path: str, search: str | None) -> "Context":
    """Open what an address asks for; a page with steps opens where its runs were finite last."""
    seen = context(library, landed(library, path, search))
    page = page_at(path)
    if seen.address.step is not None or page is None or not page.has_steps:
        return seen
    return replace(seen, address=replace(seen.address, step=opening(seen)))


def opening(context: "Context") -> int | None:
    """Return the step at which pages open: the last one before a run broke; None for the last."""
    # Whoever draws a damaged run says what is wrong with it.
    with suppress(AnalyzerError, OSError, ValueError):
        return opening_step(context.runs)
    return None


def lead(server: Flask, library: Library) -> None:
    """Lead from paths that pages had once to where they are, and from the overview to its runs.

    Checks of who asks must be there before.
    """
    overview = page_of("overview").path
    moved = {f"/{name}": page.path for page in PAGES for name in page.former}

    @server.before_request
    def elsewhere() -> Response | None:
        text = request.query_string.decode(errors="replace")
        if request.path in moved:
            return redirect(moved[request.path] + (f"?{text}" if text else ""))
        if request.path != overview or request.method != "GET" or "run" in request.args:
            return None
        found = landed(library, overview, text)
        return redirect(overview + query(found)) if found.runs else None


def query(address: Address) -> str:
    """Return the query string of an address, with its ``?``; defaults are left out."""
    pairs = [("run", run) for run in address.runs]
    if address.step is not None:
        pairs.append(("step", str(address.step)))
    given = {
        "quantity": address.quantity,
        "layers": address.layers,
        "bins": "" if address.aggregate == AGGREGATES[0] else address.aggregate,
        "relative": "1" if address.relative else "",
        "smooth": str(address.smooth or ""),
        "x": "" if address.over == TIMES[0] else address.over,
        "logx": "1" if address.log_x else "",
        "y": "" if address.scale == SCALES[0] else address.scale,
        "group": address.group,
        "find": address.find,
        "of": address.run_of,
    }
    pairs += [(name, value) for name, value in given.items() if value]
    several = {
        "few": address.few,
        "layer": address.chosen,
        "pin": address.pinned,
        "open": address.opened,
        "close": address.closed,
        "column": address.columns,
    }
    pairs += [(name, value) for name, values in several.items() for value in values]
    pairs += address.kept
    return "?" + urlencode(pairs) if pairs else ""


@dataclass(frozen=True)
class Context:
    """An address and what it leads to: opened runs in its order, and a sentence for each other.

    The ``ids`` are those of the opened runs.
    """

    library: Library
    address: Address
    runs: tuple[Run, ...]
    problems: tuple[str, ...]
    ids: tuple[str, ...] = ()

    @property
    def single(self) -> Run:
        """The run that is shown where only one can be: the one that was chosen, else the first."""
        return self.runs[self.ids.index(self.single_id)]

    @property
    def single_id(self) -> str:
        """Its id."""
        wanted = self.address.run_of
        return wanted if wanted in self.ids else self.ids[0]

    def is_settled(self, answer: Any | None) -> bool:
        """Whether a long answer, which this thread was just given, is of the runs as they are."""
        return not self.library.was_behind() and answer is not None

    def few(self, most: int) -> tuple[Run, ...]:
        """Return the runs in a figure that has room for a few, in their order.

        Those that were chosen for it; else the first with shortcuts, the first without, and then
        the first of the others.
        """
        if len(self.runs) <= most:
            return self.runs
        wanted = [
            run for run, name in zip(self.runs, self.ids, strict=True) if name in self.address.few
        ]
        if not wanted:
            kinds = {has_shortcuts(run): run for run in reversed(self.runs)}
            wanted = [*kinds.values(), *(run for run in self.runs if run not in kinds.values())]
        return tuple(run for run in self.runs if run in wanted[:most])

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers of all runs, each once."""
        names = [run.static_rows("layers").column("name").to_pylist() for run in self.runs]
        return list(dict.fromkeys(str(name) for some in names for name in some))

    def view(self, *, layers: str | None = None) -> View:
        """Return what a panel is asked to show, with other ``layers`` than the address asks for."""
        address = self.address
        return View(
            self.runs,
            step=address.step,
            quantity=address.quantity or "output_gradient_norm",
            layers=layers or address.layers or None,
            aggregate=address.aggregate,
            smooth=address.smooth / 100,
            relative=address.relative,
            over=address.over,
            log_x=address.log_x,
            scale=address.scale,
            group=address.group,
        )


def context(library: Library, address: Address) -> Context:
    """Open the runs of an address; a run that cannot be opened becomes a sentence."""
    runs: dict[str, Run] = {}
    problems: list[str] = []
    for run_id in address.runs:
        try:
            if len(runs) == MOST_RUNS:
                problems.append(f"Only the first {MOST_RUNS} runs are shown.")
                break
            runs[run_id] = library.open(run_id)
        except (AnalyzerError, OSError) as error:
            problems.append(str(error))
    return Context(library, address, tuple(runs.values()), tuple(problems), tuple(runs))
