"""The state of a page as it stands in the URL: readable, and nothing in it is believed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, urlencode

from analyzer.analysis.view import AGGREGATES

__all__ = ["Address", "parse", "query"]

_MOST_CHARACTERS = 8_000
_MOST_RUNS = 12
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
        aggregate: What a bin of several steps shows.
        relative: Whether values are divided by that of the last layer.
        smooth: Whether series are smoothed.
        chosen: Layers whose series are drawn.
    """

    runs: tuple[str, ...] = ()
    step: int | None = None
    quantity: str = ""
    layers: str = ""
    aggregate: str = "median"
    relative: bool = False
    smooth: bool = False
    chosen: tuple[str, ...] = field(default=())

    def with_runs(self, runs: Sequence[str]) -> "Address":
        """Return the same view of other runs; what names a layer of the old ones goes."""
        return replace(self, runs=tuple(runs), chosen=())


def parse(search: str | None, step: int | None = None) -> Address:
    """Read a query string; what is malformed or too long counts as not given.

    Args:
        search: The query string with or without its ``?``.
        step: Used where the query string names no step.
    """
    pairs = parse_qsl((search or "")[:_MOST_CHARACTERS].removeprefix("?"), max_num_fields=None)
    last = dict(pairs)
    shown, number = last.get("bins", ""), last.get("step", "")
    return Address(
        runs=tuple(dict.fromkeys(v for k, v in pairs if k == "run"))[:_MOST_RUNS],
        step=int(number) if _DIGITS.fullmatch(number) else step,
        quantity=quantity if _WORD.fullmatch(quantity := last.get("quantity", "")) else "",
        layers=last.get("layers", ""),
        aggregate=shown if shown in AGGREGATES else AGGREGATES[0],
        relative=last.get("relative") == "1",
        smooth=last.get("smooth") == "1",
        chosen=tuple(dict.fromkeys(v for k, v in pairs if k == "layer"))[:_MOST_LAYERS],
    )


def query(address: Address) -> str:
    """Return the query string of an address, with its ``?``; defaults are left out."""
    pairs = [("run", run) for run in address.runs]
    if address.step is not None:
        pairs.append(("step", str(address.step)))
    pairs += [
        (name, value)
        for name, value in (
            ("quantity", address.quantity),
            ("layers", address.layers),
            ("bins", "" if address.aggregate == AGGREGATES[0] else address.aggregate),
            ("relative", "1" if address.relative else ""),
            ("smooth", "1" if address.smooth else ""),
        )
        if value
    ]
    pairs += [("layer", layer) for layer in address.chosen]
    return "?" + urlencode(pairs) if pairs else ""
