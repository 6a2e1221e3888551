"""Sentences in place of a figure: nothing there, cannot be read, not recorded."""

import dash_mantine_components as dmc

__all__ = ["message"]


def message(text: str, *, title: str = "", bad: bool = False) -> dmc.Alert:
    """Return a sentence that says what was looked for and what to do.

    Args:
        text: The sentence, shown as text whatever it holds.
        title: A word above it.
        bad: Whether something is wrong, rather than merely not there.
    """
    return dmc.Alert(
        text,
        title=title or None,
        color="red" if bad else "gray",
        variant="outline",
        className="message",
        attributes={"root": {"role": "status"}},
    )
