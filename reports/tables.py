"""Tables for a paper, written as LaTeX, Markdown and CSV."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyzer.analysis.gradient_flow import depth_profile
from analyzer.analysis.numerals import digits_apart
from analyzer.analysis.view import run_labels
from analyzer.figures.csv_text import cell_rows, csv_text, is_numeric
from analyzer.storage.run import Run
from analyzer.texts import escaped

from .groups import seed_spread
from .run_facts import run_table
from .story import Story, claim_rows

__all__ = [
    "PaperTable",
    "figure_text",
    "heading",
    "latex_number",
    "latex_text",
    "markdown_text",
    "paper_tables",
    "write_tables",
]

_MOST_FLOATING = 45
_SENTENCE, _PHRASE = 44, 14
_LETTERS_A_LINE = 85


@dataclass(frozen=True)
class PaperTable:
    """A table with its caption; ``key`` names its files and its label."""

    key: str
    caption: str
    rows: pd.DataFrame


def write_tables(story: Story, folder: Path) -> list[Path]:
    """Write every table of a story as ``<key>.tex``, ``.md`` and ``.csv``; return the files.

    Files of these names that are in the folder already are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in paper_tables(story):
        for suffix, text in (
            ("tex", latex_text(table)),
            ("md", markdown_text(table)),
            ("csv", csv_text(table.rows)),
        ):
            path = folder / f"{table.key}.{suffix}"
            path.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
    return written


def paper_tables(story: Story) -> list[PaperTable]:
    """Return the tables of a story: runs, layer profiles, claims, path spectrum, seeds."""
    tables = [PaperTable("runs", "The runs.", run_table(story.runs))]
    for place, run in enumerate(story.shown):
        suffix = f"-{place + 1}" if len(story.shown) > 1 else ""
        if len(run.layer_steps()):
            tables.append(_layer_table(run, f"layers{suffix}"))
        if "paths" in run.probes and len(run.probe("paths")):
            tables.append(_path_table(run, f"paths{suffix}"))
    if story.verdict is not None:
        rows = pd.DataFrame(claim_rows(story))[
            ["question", "answer", "plain", "residual", "reference"]
        ]
        caption = "What separates the plain from the residual net, question by question."
        tables.append(PaperTable("claims", caption, rows))
    if any(len(group.runs) > 1 for group in story.groups):
        info = seed_spread(story.groups)
        tables.append(PaperTable("seeds", info.caption, info.summary()))
    return tables


def _layer_table(run: Run, key: str) -> PaperTable:
    """Output gradient and activation of every layer with parameters."""
    step = int(run.layer_steps()[-1])
    profile = depth_profile(run, step)
    stats = run.layer_stats(["activation_std"], steps=step).set_index("layer")["activation_std"]
    layers = run.layers
    rows = pd.DataFrame(
        {
            "layer": profile.names,
            "kind": profile.kinds,
            "depth": profile.depths.astype(int),
            "parameters": layers["num_parameters"].to_numpy(),
            "activation std": layers["layer"].map(stats).to_numpy(float),
            "‖∂L/∂y‖₂": profile.norms,
        }
    )
    if profile.has_parameters.any():
        rows = rows[profile.has_parameters]
    return PaperTable(key, f"Layers of {run.name} at step {step}.", rows)


def _path_table(run: Run, key: str) -> PaperTable:
    """The path spectrum of the last step that has one."""
    rows = run.probe("paths")
    step = int(rows["step"].max())
    last = rows[rows["step"] == step].drop(columns="step")
    (label,) = run_labels([run])
    when = label.at(step)
    caption = f"Gradient of {run.name} {when} by the number of branches that it crosses."
    return PaperTable(key, caption, last)


def heading(name: Any) -> str:
    """Return the name of a column in words."""
    return str(name).replace("_", " ")


def latex_text(table: PaperTable) -> str:
    r"""Return a table with booktabs rules, caption and ``\label{tab:<key>}``.

    A table of at most a page floats and is never wider than the text; a longer one is a
    ``longtable``. The preamble needs ``booktabs``, ``graphicx``, ``longtable`` and
    ``\usepackage[T1]{fontenc}``.
    """
    names = [escaped(heading(name), "latex") for name in table.rows.columns]
    cells = [[_latex_cell(value) for value in row] for row in cell_rows(table.rows)]
    style = pd.DataFrame(cells, columns=names, dtype=object).style.hide(axis="index")
    caption = escaped(table.caption, "latex")
    label = f"tab:{re.sub(r'[^a-z0-9:-]+', '-', table.key.lower())}"
    columns, num_lines = _layout(table.rows)
    if num_lines > _MOST_FLOATING:
        text = style.to_latex(
            environment="longtable",
            caption=caption,
            label=label,
            column_format=columns,
            hrules=True,
        )
        return f"{{\\scriptsize\\setlength{{\\tabcolsep}}{{3pt}}\n{text}}}\n"
    # Shrunk where it is wider than the text, and never blown up where it is narrower.
    tabular = style.to_latex(column_format=columns, hrules=True)
    return rf"""\begin{{table}}[tbp]
\centering
\caption{{{caption}}}\label{{{label}}}
\small
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
{tabular.rstrip()}}}
\end{{table}}
"""


def figure_text(key: str, caption: str) -> str:
    r"""Return a figure with its caption and ``\label{fig:<key>}``, for ``\input`` in a paper.

    The preamble needs ``graphicx`` and ``\usepackage[T1]{fontenc}``.
    """
    return rf"""\begin{{figure}}[tbp]
\centering
\includegraphics{{{key}}}
\caption{{{escaped(caption, "latex")}}}\label{{fig:{key.replace("_", "-")}}}
\end{{figure}}
"""


def _layout(rows: pd.DataFrame) -> tuple[str, int]:
    """Alignment of each column, and about how many lines the cells take on a page.

    Sentences, and phrases beside them, get a column that breaks lines.
    """
    lengths = [max([len(str(name)), *(len(str(v)) for v in rows[name])]) for name in rows.columns]
    is_wide = [length > _SENTENCE for length in lengths]
    taken = sum(min(length, _PHRASE) + 2 for length in lengths if length <= _SENTENCE)
    share = max(0.15, (0.94 - taken / _LETTERS_A_LINE) / max(sum(is_wide), 1))
    kinds = []
    for name, length, wide in zip(rows.columns, lengths, is_wide, strict=True):
        kind = "r" if is_numeric(rows[name]) else "l"
        if wide:
            kind = rf"p{{{share:.2f}\linewidth}}"
        elif any(is_wide) and kind == "l" and length > _PHRASE:
            kind = rf"p{{{(_PHRASE + 1) / _LETTERS_A_LINE:.2f}\linewidth}}"
        kinds.append(kind)
    letters = max(1, int(share * _LETTERS_A_LINE))
    words = [[len(str(value)) for value in row] for row in cell_rows(rows)]
    lines = [max(-(-size // letters) if size > _SENTENCE else 1 for size in row) for row in words]
    return "".join(kinds), sum(lines)


def latex_number(value: float) -> str:
    r"""Return a number as mathematics: ``$1.2\times10^{-6}$``, ``NaN``, ``$\infty$``."""
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return r"$\infty$" if value > 0 else r"$-\infty$"
    if value == int(value) and abs(value) < 1e15:
        return f"${int(value):,}$".replace(",", r"\,")
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits_apart(value, 3)}g}"
        return f"${text}$" if "e" not in text else f"${value:.0f}$"
    digits, exponent = f"{value:.2e}".split("e")
    return rf"${digits}\times10^{{{int(exponent)}}}$"


def _latex_cell(value: Any) -> str:
    if value is None:
        return "--"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    is_number = isinstance(value, int | float | np.integer | np.floating)
    return latex_number(float(value)) if is_number else escaped(value, "latex")


def markdown_text(table: PaperTable) -> str:
    """Return a Markdown table with its caption below; markup in cells is text."""
    ends = ["---:" if is_numeric(table.rows[name]) else "---" for name in table.rows.columns]
    body = [[_markdown_cell(value) for value in row] for row in cell_rows(table.rows)]
    names = [_markdown_cell(heading(name)) for name in table.rows.columns]
    lines = [f"| {' | '.join(cells)} |" for cells in (names, ends, *body)]
    return "\n".join([*lines, "", _markdown_cell(table.caption), ""])


def _markdown_cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float | np.floating):
        return "NaN" if np.isnan(value) else f"{value:.4g}"
    return escaped(value, "markdown")
