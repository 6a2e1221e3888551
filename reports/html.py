"""Writes a story as one self-contained HTML file that asks for nothing from the network."""

import gzip
import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

import analyzer
from analyzer.analysis.numerals import counted, number
from analyzer.errors import AnalyzerError
from analyzer.figures.csv_text import cell_rows
from analyzer.storage.run import Run
from analyzer.storage.run_json import losses
from analyzer.texts import escaped
from analyzer.vocabulary import GLOSSARY
from analyzer.vocabulary.methods import SOURCES, bibtex

from .packing import packed_figures, packed_tables, screen_figure
from .paper import static_svg
from .run_facts import differing, reproducibility, run_table
from .story import Figure, Story, claim_rows, lead_of, note_of, title_of
from .svg import svg_address, svg_size
from .tables import heading

__all__ = [
    "BUNDLE",
    "content_policy",
    "plotly_bundle",
    "report_html",
    "write_report",
]

TEMPLATES = Path(__file__).parent / "templates"
BUNDLE = Path(__file__).parent / "bundle"
_MOST_ROWS = 30
_SYMBOLS = {
    "‖∂L/∂y‖": "The L2 norm of the gradient of the loss L with respect to the output y of a layer.",
    "‖Δθ‖": "The L2 norm of what one update adds to a parameter θ.",
    "‖θ‖": "The L2 norm of a parameter θ.",
    "‖G": "The L2 norm of the part of the gradient that runs on paths of one length.",
    "‖b‖": "The L2 norm of what the residual branch b adds at a join.",
    "‖s + b‖": "The L2 norm of the sum of shortcut s and branch b at a join: the stream after it.",
}


def write_report(story: Story, path: Path, *, template: Path | None = None) -> None:
    """Write the report of a story as one file; one that exists is replaced.

    Files in the folder ``template`` replace those of ``reports/templates`` by name; AnalyzerError
    is raised where it is not a directory, or a template in it is wrong.
    """
    text = report_html(story, template=template)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def report_html(story: Story, *, template: Path | None = None) -> str:
    """Return the report of a story as the text of an HTML file; equal runs give equal text."""
    environment = _environment(template)
    try:
        return environment.get_template("report.html.j2").render(**_content(story, environment))
    except (TemplateError, UnicodeDecodeError, OverflowError) as error:
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
            f"--template '{template}' is not a directory; expected one with files such as "
            "introduction.html.j2 and logo.svg. Check the path."
        )
    folders = ([template] if template else []) + [TEMPLATES]
    loader = ChoiceLoader([FileSystemLoader(folder) for folder in folders])
    # A template may come from anybody: it runs no code of its own.
    made = SandboxedEnvironment(
        loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_without_controls
    )
    made.trim_blocks = made.lstrip_blocks = True
    return made


def _without_controls(value: Any) -> Any:
    """A text with what has no sign of its own as escapes; what is markup by now is left alone."""
    return escaped(value, "page") if type(value) is str else value


def _content(story: Story, environment: Environment) -> dict[str, Any]:
    """Everything that the template writes."""
    css, js, logo = (_raw(environment, name) for name in ("report.css", "report.js", "logo.svg"))
    table = environment.get_template("table.html.j2")
    bundle = plotly_bundle()
    figures = list(story.figures)
    return {
        "version": analyzer.__version__,
        "policy": content_policy(css, js, bundle.sha256),
        "css": css,
        "js": js,
        "logo": f"data:image/svg+xml;base64,{b64encode(logo.encode()).decode()}",
        "plotly": bundle.data,
        "figures": packed_figures({f.key: screen_figure(f) for f in figures}),
        "csv": packed_tables({f.key: f.table for f in figures}),
        "title": title_of(story),
        "lead": lead_of(story),
        "note": note_of(story),
        "num_runs": len(story.runs),
        "run_table": _table(run_table(story.runs)),
        "verdict": story.verdict,
        "claims": claim_rows(story),
        "sections": list(_sections(story)),
        "findings": [(run.name, found) for run, found in story.findings],
        "methods": story.methods,
        "sources": SOURCES,
        "bibtex": bibtex(story.methods),
        "bibtex_address": _download(bibtex(story.methods)),
        "facts": _table(reproducibility(story.runs)),
        "differing": _table(differing(story.runs)),
        "alerts": [text for run in story.runs for text in _alerts(run)],
        "warnings": sorted(
            {text for run in story.runs for text in (*losses(run.manifest), *run.warnings)}
        ),
        "is_anonymous": story.is_anonymous,
        "contents": list(_contents(story)),
        "table_of": lambda rows, caption: table.render(table=rows, caption=caption),
    }


def _download(text: str) -> str:
    """An address that holds a text, for a link that saves it without a script."""
    return f"data:text/plain;charset=utf-8;base64,{b64encode(text.encode()).decode()}"


def _alerts(run: Run) -> Iterator[str]:
    """What a reader must know of a run before anything else: that it did not end well."""
    if run.status == "failed":
        yield f"{run.name} failed: {run.manifest.get('error') or 'the reason was not recorded'}."
    elif run.status != "finished":
        yield f"{run.name} is {run.status}: what was written until then is shown."
    yield from (f"{run.name}: {text}" for text in (*losses(run.manifest), *run.warnings))


def _raw(environment: Environment, name: str) -> str:
    """A file of the templates as it is."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def content_policy(css: str, js: str, plotly: str) -> str:
    """Return what a file may do: run a script and one of this hash, show a style and images."""
    # Plotly puts an empty style element into the page, adds its rules to that one by one, and
    # writes style attributes, for which there are no hashes.
    styles = f"{sha256_source(css.encode())} {sha256_source(b'')}"
    return (
        f"default-src 'none'; script-src {sha256_source(js.encode())} {plotly}; "
        f"style-src-elem {styles}; style-src-attr 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _contents(story: Story) -> Iterator[tuple[str, str]]:
    """Anchor and heading of every section, in the order of ``report.html.j2``."""
    pages = [(section.key, section.title) for section in story.sections]
    yield from pages[:1]
    if story.verdict is not None:
        yield "verdict", "Verdict"
    yield "runs", "The runs"
    yield from pages[1:]
    for title in ("Findings", "Methods", "Reproducibility"):
        yield title.lower(), title


def _sections(story: Story) -> Iterator[dict[str, Any]]:
    """Sections as the template reads them, their figures counted from 1."""
    numbers = count(1)
    said: set[str] = set()
    # What the abstract uses is defined below it.
    first = list(_defined(f"{lead_of(story)} {note_of(story)}", said))
    for section in story.sections:
        figures = [
            _figure(figure, next(numbers), list(_defined(_words_of(figure), said)))
            for figure in section.figures
        ]
        yield vars(section) | {"figures": figures, "terms": first}


def _words_of(figure: Figure) -> str:
    titles = [axis.title.text or "" for axis in figure.drawn.select_yaxes()]
    return " ".join([figure.title, figure.caption, figure.how_to_read, *titles])


def _defined(text: str, said: set[str]) -> Iterator[tuple[str, str]]:
    """The symbols and terms in a text that were not said before, each with its meaning."""
    for term, meaning in {**_SYMBOLS, **GLOSSARY}.items():
        pattern = re.escape(term) if term in _SYMBOLS else rf"\b{term}s?\b"
        if term not in said and re.search(pattern, text):
            said.add(term)
            yield term, meaning


def _figure(figure: Figure, place: int, terms: list[tuple[str, str]]) -> dict[str, Any]:
    image = static_svg(figure.drawn)
    rows = figure.table
    return vars(figure) | {
        "number": place,
        "terms": terms,
        "height": figure.drawn.layout.height or 450,
        "static": svg_address(image),
        "static_size": svg_size(image),
        "table": _table(rows.head(_MOST_ROWS)),
        "num_rows": counted(len(rows), "row"),
        "is_cut": len(rows) > _MOST_ROWS,
    }


def _table(rows: pd.DataFrame) -> dict[str, Any]:
    """A table as the template reads it: cells with text, numbers at the right."""
    return {
        "columns": [heading(name) for name in rows.columns],
        "rows": [[_cell(value) for value in row] for row in cell_rows(rows)],
    }


def _cell(value: Any) -> dict[str, Any]:
    if value is None:
        return {"text": "–", "is_number": False}
    if isinstance(value, bool | np.bool_):
        return {"text": "yes" if value else "no", "is_number": False}
    if isinstance(value, int | np.integer):
        return {"text": f"{int(value):,}", "is_number": True}
    if isinstance(value, float | np.floating):
        return {"text": number(float(value)), "is_number": True}
    return {"text": str(value), "is_number": False}


@dataclass(frozen=True)
class PlotlyBundle:
    """A script that defines ``Plotly``: its source as gzip in base64, and the hash of that source.

    The hash is as a content security policy names it.
    """

    version: str
    data: str
    sha256: str


@cache
def plotly_bundle(folder: Path = BUNDLE) -> PlotlyBundle:
    """Return the bundle; all of plotly.js where none of the installed plotly's version is there.

    A figure is written for one version of plotly.js, so a bundle of another version is not used.
    What ``bundle/build.py`` has built is 0.8 MB as text, all of plotly.js is 2 MB.
    """
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    version = str(get_plotlyjs_version())
    path = folder / f"plotly-{version}.min.js.gz"
    if path.is_file():
        compressed = path.read_bytes()
        source = gzip.decompress(compressed)
    else:
        source = str(get_plotlyjs()).encode()
        compressed = gzip.compress(source, compresslevel=9, mtime=0)
    return PlotlyBundle(version, b64encode(compressed).decode(), sha256_source(source))


def sha256_source(source: bytes) -> str:
    """Return the hash of a script as a content security policy names it."""
    return f"'sha256-{b64encode(hashlib.sha256(source).digest()).decode()}'"
