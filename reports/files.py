"""Figures and tables of a story as files that a paper includes."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analyzer.analysis.gradient_flow import depth_profile
from analyzer.errors import AnalyzerError
from analyzer.storage.run import Run

from .latex import latex_text
from .overview import claim_rows, overview
from .paper import figure_bytes
from .paper_style import FORMATS
from .seeds import seed_spread
from .story import Story
from .tables import PaperTable, csv_text, markdown_text

__all__ = ["formats_in", "paper_tables", "write_figures", "write_tables"]


def formats_in(text: str) -> tuple[str, ...]:
    """Return the formats that an option names.

    Args:
        text: Some of ``pdf``, ``svg`` and ``png``, with commas between them.

    Raises:
        AnalyzerError: If another one is named, or none.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise AnalyzerError(
            f"--format is {text!r}; expected some of {', '.join(FORMATS)}, with commas between "
            "them. Try --format pdf,svg."
        )
    return names


def write_figures(
    story: Story,
    folder: Path,
    *,
    width: float = 3.25,
    formats: Sequence[str] = ("pdf",),
    style: Path | None = None,
) -> list[Path]:
    """Write every figure of a story, each with the CSV behind it.

    Args:
        story: What is told.
        folder: Where the files go, as ``<key>.<format>`` and ``<key>.csv``; those are replaced.
        width: Width in inches.
        formats: Some of ``pdf``, ``svg`` and ``png``.
        style: A matplotlib style file over the house style.

    Returns:
        The figures in reading order, without their CSV files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in story.figures:
        for kind in formats:
            path = folder / f"{figure.key}.{kind}"
            path.write_bytes(figure_bytes(figure.drawn, kind, width, style=style))
            written.append(path)
        text = csv_text(figure.table)
        (folder / f"{figure.key}.csv").write_text(text, encoding="utf-8", newline="\n")
    return written


def write_tables(story: Story, folder: Path) -> list[Path]:
    """Write every table of a story as LaTeX, Markdown and CSV.

    Args:
        story: What is told.
        folder: Where the files go, as ``<key>.tex``, ``.md`` and ``.csv``; those are replaced.

    Returns:
        The files.
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
    tables = [PaperTable("runs", "The runs.", overview(story))]
    names = [run.name for run in story.shown]
    for place, run in enumerate(story.shown):
        suffix = f"-{place + 1}" if len(names) > 1 else ""
        if len(run.layer_steps()):
            tables.append(_layer_table(run, f"layers{suffix}"))
        if "paths" in run.probes and len(run.probe("paths")):
            tables.append(_path_table(run, f"paths{suffix}"))
    if story.verdict is not None:
        rows = pd.DataFrame(claim_rows(story))[["text", "status", "plain", "residual", "reference"]]
        caption = "What separates the plain from the residual net, claim by claim."
        tables.append(PaperTable("claims", caption, rows.rename(columns={"text": "claim"})))
    if any(len(group.runs) > 1 for group in story.groups):
        info = seed_spread(story.groups)
        tables.append(PaperTable("seeds", info.caption, info.table()))
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
    caption = f"Gradient of {run.name} at step {step} by the number of branches that it crosses."
    return PaperTable(key, caption, last)
