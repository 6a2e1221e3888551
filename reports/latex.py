"""Tables as LaTeX with booktabs rules."""

import re
from typing import Any

import numpy as np
import pandas as pd

from .tables import PaperTable, cell_rows, is_missing, is_numeric

__all__ = ["latex_escaped", "latex_number", "latex_text"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # What the sentences of this program write beyond what pdflatex knows of itself.
    "−": "$-$",
    "–": "--",
    "‖": r"$\|$",
    "∂": r"$\partial$",
    "δ": r"$\delta$",
    "Δ": r"$\Delta$",
    "θ": r"$\theta$",
    "Σ": r"$\Sigma$",
    "λ": r"$\lambda$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "∇": r"$\nabla$",
    "ᵀ": r"$^{\top}$",
    "§": r"\S{}",
    "“": "``",
    "”": "''",
    "—": "---",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "∞": r"$\infty$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "√": r"$\surd$",
    "…": r"\dots{}",
    "’": "'",
    "\u00a0": "~",
    "\u202f": r"\,",
}
_SUPERSCRIPT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED = re.compile("[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_PIECE = re.compile(f"({_RAISED.pattern}|{_LOWERED.pattern})")
_MOST_FLOATING = 45
_SENTENCE, _PHRASE = 44, 14
_LETTERS_A_LINE = 85


def latex_escaped(text: Any) -> str:
    """Return a text that LaTeX prints as it is; letters that pdflatex lacks become ``?``."""
    pieces = _PIECE.split(str(text).replace("\r", " ").replace("\n", " "))
    return "".join(_latex_piece(piece) for piece in pieces if piece)


def _latex_piece(piece: str) -> str:
    if _RAISED.fullmatch(piece):
        return f"$^{{{piece.translate(_SUPERSCRIPT)}}}$"
    if _LOWERED.fullmatch(piece):
        return f"$_{{{piece.translate(_SUBSCRIPT)}}}$"
    return "".join(_latex_letter(letter) for letter in piece)


def _latex_letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    # The T1 encoding has the letters of western Europe.
    is_known = (letter.isascii() and letter.isprintable()) or "À" <= letter <= "ÿ"
    return letter if is_known else "?"


def latex_number(value: float) -> str:
    r"""Return a number as mathematics: ``$1.2\times10^{-6}$``, ``NaN``, ``$\infty$``."""
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    if value == int(value) and abs(value) < 1e15:
        return f"${int(value):,}$".replace(",", r"\,")
    if 1e-3 <= abs(value) < 1e5:
        return f"${value:.3g}$" if "e" not in f"{value:.3g}" else f"${value:.0f}$"
    digits, exponent = f"{value:.2e}".split("e")
    return rf"${digits}\times10^{{{int(exponent)}}}$"


def _latex_cell(value: Any) -> str:
    if is_missing(value):
        return "--"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    is_number = isinstance(value, int | float | np.integer | np.floating)
    return latex_number(float(value)) if is_number else latex_escaped(value)


def latex_text(table: PaperTable) -> str:
    r"""Return a table with booktabs rules, caption and ``\label{tab:<key>}``.

    A table of a page at the most floats and is never wider than the text; a longer one is a
    ``longtable``. The preamble needs ``booktabs``, ``graphicx``, ``longtable`` and
    ``\usepackage[T1]{fontenc}``.
    """
    rows = table.rows
    heading = " & ".join(latex_escaped(str(name).replace("_", " ")) for name in rows.columns)
    body = [" & ".join(_latex_cell(value) for value in row) + r" \\" for row in cell_rows(rows)]
    label = re.sub(r"[^a-z0-9:-]+", "-", table.key.lower())
    caption = rf"\caption{{{latex_escaped(table.caption)}}}\label{{tab:{label}}}"
    parts = caption, _column_format(rows), rf"{heading} \\", body
    return (
        "\n".join(_floating(*parts) if _num_lines(rows) <= _MOST_FLOATING else _long(*parts)) + "\n"
    )


def _lengths(rows: pd.DataFrame) -> list[int]:
    """Letters of the longest cell of each column, its heading included."""
    return [max([len(str(name)), *(len(str(v)) for v in rows[name])]) for name in rows.columns]


def _share(rows: pd.DataFrame) -> float:
    """What part of the line each column of sentences gets: all that the others leave."""
    lengths = _lengths(rows)
    wide = sum(length > _SENTENCE for length in lengths)
    taken = sum(min(length, _PHRASE) + 2 for length in lengths if length <= _SENTENCE)
    return max(0.15, (0.94 - taken / _LETTERS_A_LINE) / max(wide, 1))


def _column_format(rows: pd.DataFrame) -> str:
    """Alignment of each column; sentences, and phrases beside them, get one that breaks lines."""
    lengths, share = _lengths(rows), _share(rows)
    has_sentences = max(lengths, default=0) > _SENTENCE
    kinds = []
    for name, length in zip(rows.columns, lengths, strict=True):
        kind = "r" if is_numeric(rows[name]) else "l"
        if length > _SENTENCE:
            kind = rf"p{{{share:.2f}\linewidth}}"
        elif has_sentences and kind == "l" and length > _PHRASE:
            kind = rf"p{{{(_PHRASE + 1) / _LETTERS_A_LINE:.2f}\linewidth}}"
        kinds.append(kind)
    return "".join(kinds)


def _num_lines(rows: pd.DataFrame) -> int:
    """About how many lines the cells take on a page."""
    letters = max(1, int(_share(rows) * _LETTERS_A_LINE))
    return sum(
        max(-(-len(str(value)) // letters) if len(str(value)) > _SENTENCE else 1 for value in row)
        for row in cell_rows(rows)
    )


def _floating(caption: str, columns: str, heading: str, body: list[str]) -> list[str]:
    return [
        r"\begin{table}[tbp]",
        r"\centering",
        caption,
        r"\small",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        heading,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def _long(caption: str, columns: str, heading: str, body: list[str]) -> list[str]:
    return [
        r"{\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{longtable}}{{{columns}}}",
        rf"{caption}\\",
        r"\toprule",
        heading,
        r"\midrule",
        # A label that every page repeats would be defined more than once.
        r"\endfirsthead",
        r"\toprule",
        heading,
        r"\midrule",
        r"\endhead",
        r"\bottomrule",
        r"\endfoot",
        *body,
        r"\end{longtable}}",
    ]
