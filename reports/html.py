"""Writes a story as one self-contained HTML file that asks for nothing from the network."""

import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined, TemplateError

import analyzer
from analyzer.analysis.numerals import counted, number
from analyzer.errors import AnalyzerError

from .methods import bibtex, methods_for
from .overview import claim_rows, lead_of, note_of, overview, title_of
from .packing import packed_figures, packed_tables
from .plotly_bundle import plotly_bundle, sha256_source
from .reproducibility import reproducibility
from .screen import screen_figure
from .story import Figure, Story
from .tables import cell_rows
from .twin import svg_address, twin_svg

__all__ = ["report_html", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"
_MOST_ROWS = 30


def write_report(story: Story, path: Path, *, template: Path | None = None) -> None:
    """Write the report of a story as one file.

    Args:
        story: What it tells.
        path: The file; one that exists is replaced.
        template: A folder whose files replace those of ``reports/templates``, by name.

    Raises:
        AnalyzerError: If the folder is none, or a template in it is wrong.
    """
    text = report_html(story, template=template)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def report_html(story: Story, *, template: Path | None = None) -> str:
    """Return the report of a story as the text of an HTML file; equal runs give equal text.

    Args:
        story: What it tells.
        template: As in ``write_report``.

    Raises:
        AnalyzerError: As in ``write_report``.
    """
    environment = _environment(template)
    try:
        return environment.get_template("report.html.j2").render(**_content(story, environment))
    except (TemplateError, UnicodeDecodeError) as error:
        if template is None:
            raise
        raise AnalyzerError(
            f"--template '{template}' cannot be used ({type(error).__name__}: {error}); expected "
            "files that replace those of reports/templates. Compare them with the originals."
        ) from error


def _environment(template: Path | None) -> Environment:
    """The templates, those of the user's folder first."""
    if template is not None and not template.is_dir():
        raise AnalyzerError(
            f"--template '{template}' is no folder; expected one with files such as "
            "introduction.html.j2 and logo.svg. Check the path."
        )
    folders = ([template] if template else []) + [TEMPLATES]
    loader = ChoiceLoader([FileSystemLoader(folder) for folder in folders])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    made.trim_blocks = made.lstrip_blocks = True
    return made


def _content(story: Story, environment: Environment) -> dict[str, Any]:
    """Everything that the template writes."""
    css, js = (_raw(environment, name) for name in ("report.css", "report.js"))
    bundle = plotly_bundle()
    figures = list(story.figures)
    methods = methods_for(story.recorded)
    sections = list(_sections(story))
    return {
        "version": analyzer.__version__,
        "policy": _policy(css, js, bundle.sha256),
        "css": css,
        "js": js,
        "logo": _data_uri(_raw(environment, "logo.svg").encode()),
        "plotly": bundle.data,
        "figures": packed_figures({f.key: screen_figure(f) for f in figures}),
        "csv": packed_tables({f.key: f.table for f in figures}),
        "title": title_of(story),
        "lead": lead_of(story),
        "note": note_of(story),
        "num_runs": len(story.runs),
        "overview": _table(overview(story)),
        "verdict": story.verdict,
        "claims": claim_rows(story),
        "sections": sections,
        # The score comes before everything, then what it means, then what was run.
        "num_first": sum(section.key == "score" for section in story.sections),
        "findings": [(run.name, found) for run, found in story.findings],
        "methods": methods,
        "bibtex": bibtex([method for method, _ in methods]),
        "facts": _table(reproducibility(story.runs)),
        "warnings": sorted({text for run in story.runs for text in run.warnings}),
        "is_anonymous": story.is_anonymous,
        "contents": list(_contents(story)),
        "table_of": _table_writer(environment),
    }


def _raw(environment: Environment, name: str) -> str:
    """A file of the templates as it is."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _table_writer(environment: Environment) -> Any:
    template = environment.get_template("table.html.j2")
    return lambda table, caption: template.render(table=table, caption=caption)


def _policy(css: str, js: str, plotly: str) -> str:
    """What the file may do: run these two scripts, use this style, show the images in it."""
    # Plotly puts an empty style element into the page, adds its rules to that one by one, and
    # writes style attributes, for which there are no hashes.
    styles = f"{sha256_source(css.encode())} {sha256_source(b'')}"
    return (
        f"default-src 'none'; script-src {sha256_source(js.encode())} {plotly}; "
        f"style-src-elem {styles}; style-src-attr 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _contents(story: Story) -> Iterator[tuple[str, str]]:
    """Anchor and heading of every section."""
    yield from ((s.key, s.title) for s in story.sections if s.key == "score")
    if story.verdict is not None:
        yield "verdict", "Verdict"
    yield "runs", "The runs"
    yield from ((s.key, s.title) for s in story.sections if s.key != "score")
    yield from (
        ("findings", "Findings"),
        ("methods", "Methods"),
        ("reproducibility", "Reproducibility"),
    )


def _sections(story: Story) -> Iterator[dict[str, Any]]:
    """Sections as the template reads them, their figures counted from 1."""
    count = 0
    for section in story.sections:
        figures = []
        for figure in section.figures:
            count += 1
            figures.append(_figure(figure, count))
        yield {
            "key": section.key,
            "title": section.title,
            "figures": figures,
            "missing": section.missing,
        }


def _figure(figure: Figure, place: int) -> dict[str, Any]:
    twin = twin_svg(figure.drawn)
    width, height = _points(twin)
    rows = figure.table
    return {
        "key": figure.key,
        "number": place,
        "title": figure.title,
        "caption": figure.caption,
        "how_to_read": figure.how_to_read,
        "height": figure.drawn.layout.height or 450,
        "twin": svg_address(twin),
        "width": width,
        "twin_height": height,
        "table": _table(rows.head(_MOST_ROWS)),
        "num_rows": counted(len(rows), "row"),
        "is_cut": len(rows) > _MOST_ROWS,
    }


def _points(svg: str) -> tuple[int, int]:
    """Width and height of an image, for the space that it takes before it is drawn."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    return (round(float(found[1])), round(float(found[2]))) if found else (518, 300)


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg).decode()}"


def _table(rows: pd.DataFrame) -> dict[str, Any]:
    """A table as the template reads it: cells with text, numbers at the right."""
    return {
        "columns": [str(name).replace("_", " ") for name in rows.columns],
        "rows": [[_cell(value) for value in row] for row in cell_rows(rows)],
    }


def _cell(value: Any) -> dict[str, Any]:
    if value is None or value is pd.NA:
        return {"text": "–", "is_number": False}
    if isinstance(value, bool | np.bool_):
        return {"text": "yes" if value else "no", "is_number": False}
    if isinstance(value, int | np.integer):
        return {"text": f"{int(value):,}", "is_number": True}
    if isinstance(value, float | np.floating):
        return {"text": number(float(value)), "is_number": True}
    return {"text": str(value), "is_number": False}
