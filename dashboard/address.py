"""What a URL asks for, none of it believed, and the runs that it leads to."""

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

from flask import Flask, redirect, request
from werkzeug.wrappers import Response

from analyzer.analysis.view import AGGREGATES, View
from analyzer.errors import AnalyzerError
from analyzer.figures.catalog import PAGES, page_of
from analyzer.storage.run import Run

from .library import Library

__all__ = ["MOST_RUNS", "Address", "Context", "context", "landed", "lead", "parse", "query"]

MOST_RUNS = 3
_MOST_CHARACTERS = 8_000
_MOST_NAMED = 12
_MOST_LAYERS = 24
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DIGITS = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class Address:
    """What a URL asks for.

    Args:
        runs: Ids of runs, as typed; only the listing says whether they exist.
        step: The chosen step; None for the last.
        quantity: Column to draw; empty for the page's own.
        layers: Regular expression for layer names; empty for all.
        chosen: Layers whose series are drawn.
        opened: Modules of the network that are shown open, whatever fits.
        closed: Those that are shown closed.
    """

    runs: tuple[str, ...] = ()
    step: int | None = None
    quantity: str = ""
    layers: str = ""
    aggregate: str = "median"
    relative: bool = False
    smooth: bool = False
    chosen: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


def parse(search: str | None, step: int | None = None) -> Address:
    """Read a query string, with or without ``?``; what is malformed or too long is not given.

    The ``step`` is used where the query string names none.
    """
    pairs = parse_qsl((search or "")[:_MOST_CHARACTERS].removeprefix("?"), max_num_fields=None)
    last = dict(pairs)
    shown, number = last.get("bins", ""), last.get("step", "")
    return Address(
        runs=tuple(dict.fromkeys(v for k, v in pairs if k == "run"))[:_MOST_NAMED],
        step=int(number) if _DIGITS.fullmatch(number) else step,
        quantity=quantity if _WORD.fullmatch(quantity := last.get("quantity", "")) else "",
        layers=last.get("layers", ""),
        aggregate=shown if shown in AGGREGATES else AGGREGATES[0],
        relative=last.get("relative") == "1",
        smooth=last.get("smooth") == "1",
        chosen=_named(pairs, "layer"),
        opened=_named(pairs, "open"),
        closed=_named(pairs, "close"),
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
        "smooth": "1" if address.smooth else "",
    }
    pairs += [(name, value) for name, value in given.items() if value]
    several = {"layer": address.chosen, "open": address.opened, "close": address.closed}
    pairs += [(name, value) for name, values in several.items() for value in values]
    return "?" + urlencode(pairs) if pairs else ""


@dataclass(frozen=True)
class Context:
    """An address and what it leads to: opened runs in its order, and a sentence for each other."""

    library: Library
    address: Address
    runs: tuple[Run, ...]
    problems: tuple[str, ...]

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
            smooth=address.smooth,
            relative=address.relative,
        )


def context(library: Library, address: Address) -> Context:
    """Open the runs of an address; a run that cannot be opened becomes a sentence."""
    runs: list[Run] = []
    problems: list[str] = []
    for run_id in address.runs:
        try:
            if len(runs) == MOST_RUNS:
                problems.append(f"Only the first {MOST_RUNS} runs are shown side by side.")
                break
            runs.append(library.open(run_id))
        except (AnalyzerError, OSError) as error:
            problems.append(str(error))
    return Context(library, address, tuple(runs), tuple(problems))
