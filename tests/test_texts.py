"""Any text in each format, read back by what really reads it."""

import csv
import io
import shutil
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyzer.cli.terminal import json_text
from analyzer.reports.html import _environment, _table
from analyzer.texts import escaped

# Letters that mean something somewhere, beside any others.
_LETTERS = "=+-@;,\t\r\n\"'`|[]*{}\\$&#^_~%<>/!?\x00\x07\x1b\x9b\u202e\ud800 aé"
ODD = st.sampled_from([*_LETTERS, "--", "''"])
TEXT = st.lists(ODD | st.characters(), max_size=12).map("".join)


def visible(text: str) -> str:
    """A slow twin of what a person is shown."""
    shown = []
    for letter in text:
        odd = unicodedata.category(letter)[0] in "CZ" and letter != " "
        shown.append(letter.encode("unicode_escape").decode() if odd else letter)
    return "".join(shown)


@settings(max_examples=40, deadline=None)
@given(TEXT)
def test_a_line_of_a_terminal_shows_what_stands_there(text: str) -> None:
    pyte = pytest.importorskip("pyte")
    line = escaped(text, "line")
    assert line == visible(text)
    screen = pyte.Screen(300, 3)
    pyte.Stream(screen).feed(line)
    # Letters that combine or take two columns are the emulator's own business.
    if all(
        unicodedata.east_asian_width(c) not in "WF" and not unicodedata.combining(c) for c in line
    ):
        assert screen.display[0].rstrip() == line.rstrip()
    assert screen.title == "" and screen.cursor.y == 0


@given(TEXT)
def test_json_on_a_terminal_is_the_same_json(text: str) -> None:
    import json

    printed = json_text({"name": text})
    assert json.loads(printed)["name"] == text
    assert all(c.isprintable() or c == "\n" for c in printed)


def _cells_of_calc(line: str, separators: str) -> list[str]:
    """Cells as LibreOffice Calc reads them: quotes open a cell only at its beginning."""
    cells, cell, place, quoted = [], "", 0, False
    while place < len(line):
        letter = line[place]
        if quoted and letter == '"' and line[place + 1 : place + 2] == '"':
            cell, place = cell + '"', place + 1
        elif letter == '"' and (quoted or not cell):
            quoted = not quoted
        elif not quoted and letter in separators + "\r\n":
            cells.append(cell)
            cell = ""
        else:
            cell += letter
        place += 1
    return [*cells, cell]


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_no_spreadsheet_runs_a_cell(texts: list[str]) -> None:
    line = ",".join(escaped(text, "csv") for text in texts)
    line.encode()
    (row,) = csv.reader(io.StringIO(line, newline=""), strict=False) if line else ([""],)
    shown = [text.encode(errors="backslashreplace").decode() for text in texts]
    if not any(c in "".join(texts) for c in "\r\n\x00"):
        assert [cell.replace("'", "") for cell in row] == [text.replace("'", "") for text in shown]
    for separators in (",", ";", "\t", ",;\t"):
        for cell in _cells_of_calc(line, separators):
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\x00", "\x1b", "＝")), cell


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXT, min_size=20, max_size=40))
def test_a_browser_shows_what_stands_there(browser: Any, texts: list[str]) -> None:
    import pandas as pd

    table = _environment(None).get_template("table.html.j2")
    rows = _table(pd.DataFrame({"name": pd.Series(texts, dtype=object)}))
    page = browser.new_page()
    page.set_content(table.render(table=rows, caption=""))
    read = page.eval_on_selector_all("tbody tr", "rows => rows.map(row => row.innerText)")
    asked = page.evaluate("() => document.querySelectorAll('script, img, a, iframe').length")
    page.close()
    assert asked == 0
    plain = [" ".join(visible(t.replace("\n", " ").replace("\t", " ")).split()) for t in texts]
    assert [" ".join(line.split()) for line in read] == plain


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(TEXT.filter(str.strip), min_size=20, max_size=30))
def test_latex_prints_what_stands_there(tmp_path_factory, texts: list[str]) -> None:
    if shutil.which("pdflatex") is None or shutil.which("pdftotext") is None:
        pytest.skip("pdflatex is not installed")
    folder: Path = tmp_path_factory.mktemp("latex")
    cells = "".join(f"{escaped(text, 'latex')} \\\\\n" for text in texts)
    (folder / "a.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{lmodern,booktabs}"
        "\\begin{document}\\ttfamily\\begin{tabular}{l}\\toprule\n"
        f"{cells}\\end{{tabular}}\\end{{document}}"
    )
    command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-600:]
