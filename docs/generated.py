"""The pages of the site that follow from the code; MkDocs calls this module as a hook.

None of them is committed: a quantity, finding, probe, panel or option is on the site because it is
in its list in the code. ``tests/test_docs.py`` compares the pages with those lists.
"""

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import analyzer
from analyzer.analysis.finding import markdown_table
from analyzer.cli import COMMANDS, load
from analyzer.figures.catalog import PAGES as DASHBOARD
from analyzer.lesson.page import lesson_html
from analyzer.options import RECORDER, options_of
from analyzer.storage.pages import as_markdown, schema_page, vocabulary_page
from analyzer.storage.schema import PROBES as PROBE_SCHEMAS
from analyzer.vocabulary.methods import SOURCES, Method
from analyzer.vocabulary.probes import PROBES, Probe

__all__ = ["PAGES", "on_files", "on_page_markdown"]

ROOT = Path(__file__).parents[1]
GUIDES = {
    "paths": "path-spectrum.md",
    "landscape": "landscape.md",
    "shattering": "shattering.md",
    "forward_correlation": "forward-correlation.md",
    "sharpness": "sharpness.md",
    "noise": "noise.md",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return markdown_table([cell(text) for text in head], (map(cell, line) for line in rows))


def cell(text: str) -> str:
    """Return text as it stands in a table; what is code is left alone."""
    if text.startswith("`"):
        return text
    return text.replace("<", "&lt;").replace("|", "\\|")


def commands_page() -> str:
    """Return the help of every command with its options."""
    blocks = [
        "# Commands and options",
        "Exit codes: 0 done; 2 you have to change something, and one line on stderr says what. "
        "Defaults may stand in `[tool.analyzer]` of a `pyproject.toml`, those of a single command "
        "in `[tool.analyzer.record]`.",
    ]
    return "\n\n".join([*blocks, *map(_command, COMMANDS)]) + "\n"


def _command(name: str) -> str:
    command = load(name)
    context = command.context_class(command, info_name=f"analyzer {name}")
    text, _, example = (command.help or "").replace("\b\n", "").partition("Example:\n")
    usage = " ".join(["analyzer", name, *command.collect_usage_pieces(context)])
    blocks = [f"## analyzer {name}", text.strip(), f"```\n{usage}\n```"]
    rows = filter(None, (parameter.get_help_record(context) for parameter in command.params))
    if shown := [(f"`{option}`", meaning) for option, meaning in rows]:
        blocks.append(table(("", "meaning"), shown))
    if example:
        lines = [line.strip() for line in example.splitlines() if line.strip()]
        blocks.append("For example:\n\n```\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(blocks)


def probes_page() -> str:
    """Return what each probe measures, its columns and how a paper would describe it."""
    blocks = [
        "# Probes",
        "A probe is a heavier measurement on the live model and one held batch, between two steps "
        "of a training (`analyzer record --probe NAME[:EVERY]`) or afterwards on its checkpoints "
        "(`analyzer probe RUN NAME`).",
    ]
    return "\n\n".join([*blocks, *map(_probe, PROBES)]) + "\n"


def _probe(probe: Probe) -> str:
    guide = GUIDES.get(probe.name)
    blocks = [f"## {probe.name}", probe.sentence + (f" [More]({guide})" if guide else "")]
    blocks += [as_markdown(PROBE_SCHEMAS[probe.name])]
    if probe.options:
        rows = [(f"`{one.flag} {one.metavar}`", one.help) for one in probe.options]
        blocks.append(table(("option of `analyzer probe`", "meaning"), rows))
    return "\n\n".join([*blocks, *_method(probe.method)])


def _method(method: Method | None) -> list[str]:
    if method is None:
        return []
    sources = "".join(f"\n- {SOURCES[key].text}" for key in method.sources)
    formula = f"```\n{method.formula}\n```" if method.formula else ""
    return list(filter(None, [method.text, formula, sources]))


def figures_page() -> str:
    """Return how to read each figure of the dashboard and of reports, page by page."""
    blocks = ["# Figures", "How to read each figure of the dashboard and of reports."]
    for page in DASHBOARD:
        if page.panels:
            blocks += [f"## {page.title}", page.lead]
        for panel in page.panels:
            needs = ", ".join(f"`{need}`" for need in panel.needs)
            blocks += [f"### {panel.title}", panel.how_to_read, f"Needs {needs}."]
            blocks += _method(panel.method)
    return "\n\n".join(filter(None, blocks)) + "\n"


def api_page() -> str:
    """Return the page on which mkdocstrings puts the docstrings of the public names."""
    names = [f"::: analyzer.{name}" for name in analyzer.__all__ if not name.startswith("_")]
    opening = "`import analyzer` loads nothing heavy: a name is imported when it is first used."
    run = "## A run\n\nWhat `analyzer.open_run` returns.\n\n::: analyzer.opened.Run"
    callbacks = [
        f"::: analyzer.integrations.{name}.RecorderCallback"
        for name in ("lightning", "transformers", "skorch")
    ]
    blocks = [
        "# Python",
        opening,
        "## Names",
        *names,
        "## Options of Recorder",
        recorder_table(),
        run,
        "## In other libraries",
        *callbacks,
    ]
    return "\n\n".join(blocks) + "\n"


def recorder_table() -> str:
    """Return the keywords of ``Recorder`` that are options of a recording."""
    rows = [
        (f"`{field.name}`", f"`{field.default!r}`", field.metadata["option"].help)
        for field in options_of(RECORDER)
    ]
    return table(("keyword", "default", "meaning"), rows)


def examples_page() -> str:
    """Return the scripts of examples/ with what they say about themselves."""
    blocks = ["# Examples", "Seven short programs; the tests run each of them."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        text, _, example = (ast.get_docstring(ast.parse(source)) or "").partition("Example:\n")
        code = source.partition('"""\n\n')[2]
        lines = "\n".join(line.strip() for line in example.splitlines())
        blocks += [f"## {path.stem.replace('_', ' ').capitalize()}", text.strip()]
        blocks += [f"```\n{lines}\n```", f'```python title="examples/{path.name}"\n{code}```']
    blocks += [
        "## Notebooks",
        "`examples/notebook.ipynb` records, reads and shows a run in Jupyter; "
        "`examples/lesson.ipynb` records small networks of the [lesson](lesson.html).",
    ]
    return "\n\n".join(blocks) + "\n"


def from_root(name: str) -> Callable[[], str]:
    """Return a function that reads a page of the repository's root; its links begin in docs/."""

    def page() -> str:
        return re.sub(r"\]\(docs/", "](", (ROOT / name).read_text(encoding="utf-8"))

    return page


PAGES: dict[str, Callable[[], str]] = {
    "index.md": from_root("README.md"),
    "commands.md": commands_page,
    "probes.md": probes_page,
    "figures.md": figures_page,
    "vocabulary.md": vocabulary_page,
    "schema.md": schema_page,
    "api.md": api_page,
    "examples.md": examples_page,
    "contributing.md": from_root("CONTRIBUTING.md"),
    "changelog.md": from_root("CHANGELOG.md"),
}

WIDE = ("vocabulary.md", "schema.md")
"""Pages whose tables need the place of the table of contents."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of docs/."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        wide = "---\nhide: [toc]\n---\n" if name in WIDE else ""
        files.append(File.generated(config, name, content=wide + page()))
    files.append(File.generated(config, "lesson.html", content=lesson_html()[0]))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table where a page says ``<!-- table: MODULE:FUNCTION -->``."""

    def made(found: re.Match[str]) -> str:
        return str(getattr(import_module(found[1]), found[2])())

    return re.sub(r"<!-- table: ([\w.]+):(\w+) -->", made, markdown)
