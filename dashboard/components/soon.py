"""Asks again, shortly, for what is still looked for when a page opens."""

from dash import dcc

from ..ids import Id

__all__ = ["LOOKING", "soon"]

LOOKING = "Reading the runs; what they show appears here by itself."
_MILLISECONDS = 400


def soon(name: Id, is_there: bool) -> dcc.Interval:
    """Return the clock that asks again until the answer is there.

    Args:
        name: Its id; a page's own, since a callback waits for all of its outputs.
        is_there: Whether it is there already.
    """
    return dcc.Interval(id=name, interval=_MILLISECONDS, disabled=is_there)
