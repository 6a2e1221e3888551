"""Any text in each format, read back by what really reads it."""

import csv
import io
import re
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


@settings(max_examples=40)
@given(TEXT)
def test_a_line_of_a_terminal_shows_what_stands_there(text: str) -> None:
    pyte = pytest.importorskip("pyte")
    line = escaped(text, "line")
    assert line == visible(text)
    screen = pyte.Screen(300, 3)
    pyte.Stream(screen).feed(line)
    # Letters that combine or take two columns are the emulator's own business.
    if all(pyte.screens.wcwidth(letter) == 1 for letter in line):
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
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
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
    # A page keeps spaces that do not break.
    spaced = [re.sub("[\n\t\u00a0\u202f]", " ", text) for text in texts]
    plain = [" ".join(visible(text).split()) for text in spaced]
    assert [" ".join(line.split()) for line in read] == plain


# The signs of our own captions, which are set as formulas, are tested with the tables.
OF_FORMULAS = "‖∂δΔθΣλαβ∇·×±→∞≤≥≈√−–ᵀ§“”—…⁻⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉"
NAME = TEXT.filter(lambda text: not set(text) & set(OF_FORMULAS))


def printed(text: str) -> str:
    """A slow twin of what a paper shows of a name: its letters, or as Python writes them."""
    shown = []
    for letter in re.sub(r"[\r\n]", " ", text):
        code = ord(letter)
        is_there = 32 <= code < 127 or (0xC0 <= code <= 0xFF and letter != "÷")
        if letter in "\u00a0\u202f":
            shown.append(" ")
        elif is_there:
            shown.append(letter)
        else:
            shown.append("'" if letter == "’" else letter.encode("unicode_escape").decode())
    return " ".join("".join(shown).split())


SYMBOLS = {
    **{"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<"},
    **{"textgreater": ">", "textbar": "|", "textquotedbl": '"', "textasciigrave": "`"},
}


def read_latex(code: str) -> str:
    """What TeX prints of a cell: it knows symbols, braces and spaces, and nothing may be active."""
    assert not re.match(r"\s*[\[*]", code)  # an argument of the end of the row before
    text, depth, place = "", 0, 0
    ligatures = ("--", "``", "''", ",,", "<<", ">>", "!`", "?`")
    assert not any(pair in code for pair in ligatures)
    while place < len(code):
        letter = code[place]
        if letter == "\\":
            name = re.match(r"[A-Za-z]+|.", code[place + 1 :])[0]
            place += len(name)
            if name.isalpha():
                text += SYMBOLS[name]
                assert code[place + 1 : place + 3] == "{}"  # so that a space after it stays
                place += 2
            else:
                text += " " if name == "," else {c: c for c in "{}_&%$#"}[name]
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            assert depth >= 0
        else:
            assert letter not in "&%$#^_" and (letter.isprintable() or letter == " ")
            text += " " if letter == "~" else letter
        place += 1
    assert depth == 0
    return " ".join(text.split())


@settings(max_examples=300)
@given(NAME)
def test_latex_of_a_name_is_its_letters_and_no_command(name: str) -> None:
    assert read_latex(escaped(name, "latex")) == printed(name)


def test_the_reader_of_latex_sees_what_is_active() -> None:
    for code in (r"\input{x}", "a & b", "50%", "$x$", "{", "}", "--", "[1pt]", "x_1", "\x07"):
        with pytest.raises((AssertionError, KeyError)):
            read_latex(code)


def _is_latex_there() -> bool:
    return all(shutil.which(name) for name in ("pdflatex", "pdftotext"))


@pytest.mark.slow
@pytest.mark.skipif(not _is_latex_there(), reason="no pdflatex or pdftotext; `make paper` has them")
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(NAME.filter(printed), min_size=20, max_size=30))
def test_a_paper_gives_the_names_that_were_recorded(tmp_path_factory, texts: list[str]) -> None:
    folder: Path = tmp_path_factory.mktemp("latex")
    cells = "".join(f"{escaped(text, 'latex')} \\\\\n" for text in texts)
    (folder / "a.tex").write_text(
        "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{lmodern,booktabs}"
        "\\pdfpagewidth=3000bp\\pdfpageheight=2000bp\\textwidth=2800bp\\pagestyle{empty}"
        "\\begin{document}\\noindent\\begin{tabular}{l}\\toprule\n"
        f"{cells}\\end{{tabular}}\\end{{document}}"
    )
    command = ["pdflatex", "-no-shell-escape", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-600:]
    command = ["pdftotext", "-layout", "a.pdf", "-"]
    read = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout.decode()
    one_letter = {"ﬁ": "fi", "ﬂ": "fl", "ﬀ": "ff", "ﬃ": "ffi", "ﬄ": "ffl", "’": "'", "‐": "-"}
    for joined, apart in one_letter.items():
        read = read.replace(joined, apart)
    lines = [" ".join(line.split()) for line in read.replace("\f", "").splitlines() if line.strip()]
    # The space in "= =" is in the paper, and pdftotext reads "==".
    asked, lines = (
        [re.sub(r"(\W) (?=\1)", r"\1", line) for line in some]
        for some in (map(printed, texts), lines)
    )
    assert lines == asked
