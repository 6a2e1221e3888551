"""Text that others chose, in each format that is written: it reads as it is, and nothing runs.

Names of layers, runs, columns and files come from programs and folders of anybody. Every writer
passes them through `escaped`.
"""

import html
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = ["Form", "escaped", "shown_name"]

Form: TypeAlias = Literal["csv", "html", "latex", "line", "markdown", "page"]
"""What is written: a cell of CSV; text of HTML, or of a page that escapes markup by itself; LaTeX;
one line of a terminal; a cell of Markdown."""


def escaped(text: object, form: Form) -> str:
    r"""Return a text so that a reader of the format sees it, and does nothing else with it.

    What has no sign of its own (control and format characters, the directions of text, halves of
    surrogates) is shown as Python writes it, ``\x1b``; a cell of CSV keeps what a program may want
    to read back. A cell that a spreadsheet would take for a formula gets an apostrophe in front.
    So are letters that pdflatex lacks.
    """
    return _WRITERS[form](str(text))


def shown_name(path: Path) -> str:
    r"""Return the name of a file or folder; bytes of it that are not UTF-8 as ``\xff``."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def _visible(text: str, kept: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else _escape(c) for c in text)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


# Spaces that do not break: our own sentences have them.
_SPACES = "\u00a0\u202f"


def _page(text: str) -> str:
    return _visible(text, "\n\t" + _SPACES)


def _html(text: str) -> str:
    return html.escape(_page(text), quote=False)


# Excel and its kin run a cell that begins so as a formula; some begin a cell after a semicolon, a
# tab or a lone carriage return, too, whatever stands in quotes.
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[=+\-@\uff1d\uff0b\uff0d\uff20\x00-\x1f\x7f])")
_QUOTED = re.compile(r'[",;\t\r\n]')
_SURROGATES = re.compile("[\ud800-\udfff]")


def _csv(text: str) -> str:
    text = _SURROGATES.sub(lambda found: _visible(found[0]), text)
    text = _FORMULA.sub(r"\1'", text)
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if _QUOTED.search(text) else text


def _markdown(text: str) -> str:
    words = _visible(re.sub(r"\s", " ", text), _SPACES).replace("&", "&amp;")
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", words)


class _Letters(dict[int, str]):
    """What LaTeX prints a letter with; as Python writes it where the T1 encoding lacks it."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        is_known = letter.isascii() or ("À" <= letter <= "ÿ" and letter != "÷")
        return letter if is_known else _escape(letter).replace("\\", r"\textbackslash{}")


_NAMED = {
    "\\": "backslash",
    "~": "asciitilde",
    "^": "asciicircum",
    "<": "less",
    ">": "greater",
    "|": "bar",
    '"': "quotedbl",
    "`": "asciigrave",
}
_SIGNS = "‖∂δΔθΣλαβ∇·×±→∞≤≥≈√"
_COMMANDS = (
    "| partial delta Delta theta Sigma lambda alpha beta nabla "
    "cdot times pm to infty leq geq approx surd"
)
# A private character, which no text has by then, stands for a group of nothing.
_APART = "\ue000"
# Styler's own escaping knows ASCII alone.
_LATEX = _Letters(
    str.maketrans(
        {
            _APART: "{}",
            **{letter: f"\\{letter}" for letter in "{}_&%$#"},
            **{letter: rf"\text{name}{{}}" for letter, name in _NAMED.items()},
            **{a: rf"$\{b}$" for a, b in zip(_SIGNS, _COMMANDS.split(), strict=True)},
            "−": "$-$",
            "–": r"\textendash{}",
            "ᵀ": r"$^{\top}$",
            "§": r"\S{}",
            "“": r"\textquotedblleft{}",
            "”": r"\textquotedblright{}",
            "—": r"\textemdash{}",
            "…": r"\dots{}",
            "’": "'",
            "\u00a0": "~",
            "\u202f": r"\,",
            **{a: f"$^{{{b}}}$" for a, b in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True)},
            **{a: f"$_{{{b}}}$" for a, b in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)},
        }
    )
)


def _latex(text: str) -> str:
    text = _visible(re.sub(r"[\r\n]", " ", text), _SPACES)
    # Two of them are one sign in its fonts: a dash, a quotation mark.
    text = re.sub(r"(?<=([-',]))(?=\1)", _APART, text).translate(_LATEX)
    # Neighbors that are raised or lowered are one exponent or one index.
    text = text.replace("}$$^{", "").replace("}$$_{", "")
    # At the beginning of a row they would be an argument of the end of the row before.
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", text)


_WRITERS: dict[Form, Callable[[str], str]] = {
    "csv": _csv,
    "html": _html,
    "latex": _latex,
    "line": _visible,
    "markdown": _markdown,
    "page": _page,
}
