import math
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analyzer.reports.groups import LAYOUTS
from analyzer.reports.paper import WIDTHS, write_figures
from analyzer.reports.story import Story, story_of
from analyzer.reports.tables import (
    PaperTable,
    latex_number,
    latex_text,
    markdown_text,
    paper_tables,
    write_tables,
)
from analyzer.texts import escaped

HOSTILE = "a_1 & 50% $x$ #{}~^\\ <b>|=2"


def table(**cells: list[object]) -> PaperTable:
    return PaperTable("some table", "About 10⁻¹³ & more", pd.DataFrame(cells))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.2e-6, r"$1.20\times10^{-6}$"),
        (-3.25e9 + 0.5, r"$-3.25\times10^{9}$"),
        (0.394, "$0.394$"),
        (12345, r"$12\,345$"),
        (0.0, "$0$"),
        (math.nan, "NaN"),
        (-math.inf, r"$-\infty$"),
    ],
)
def test_numbers_are_written_as_mathematics(value: float, expected: str) -> None:
    assert latex_number(value) == expected


def test_no_character_of_a_name_is_a_command_of_latex() -> None:
    text = escaped(HOSTILE, "latex")
    bare = re.sub(r"\\text[a-z]+\{\}|\\[_&%$#{}]", "", text)
    assert not set(bare) & set("_&%$#{}~^\\<>|")
    assert escaped("10⁻¹³ ‖x‖₂ 漢", "latex") == (
        r"10$^{-13}$ $\|$x$\|$$_{2}$ \textbackslash{}u6f22"
    )


def test_a_latex_table_has_rules_a_caption_and_a_label() -> None:
    text = latex_text(table(name=["a_b", None], value=[1e-13, math.nan]))
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:some-table}"):
        assert text.count(part) == 1
    assert r"\caption{About 10$^{-13}$ \& more}" in text
    assert r"a\_b & $1.00\times10^{-13}$ \\" in text
    assert r"-- & NaN \\" in text


def test_a_long_table_breaks_over_pages_and_a_sentence_over_lines() -> None:
    assert r"\begin{longtable}{r}" in latex_text(table(value=list(range(46))))
    assert r"{p{0.86\linewidth}r}" in latex_text(table(words=["long " * 20], value=[1.0]))
    assert r"\begin{longtable}" in latex_text(table(words=["long " * 20] * 30))


def test_a_table_over_pages_has_one_label_and_a_heading_on_each() -> None:
    text = latex_text(table(value=list(range(46))))
    assert text.count(r"\label{") == 1 and text.count(r"\toprule") == 2
    assert text.index(r"\label{") < text.index(r"\endfirsthead") < text.index(r"\endhead")


def test_a_phrase_beside_a_sentence_breaks_too() -> None:
    text = latex_text(table(words=["long " * 20], range=["0.436 (0.432 to 0.441)"], n=[1]))
    assert re.search(r"\{p\{0\.\d\d\\linewidth\}p\{0\.18\\linewidth\}r\}", text)


def test_markdown_has_no_markup_from_a_name() -> None:
    lines = markdown_text(table(name=[HOSTILE, "a|b\nc"], value=[0.5, math.nan])).splitlines()
    assert lines[1] == "| --- | ---: |"
    assert lines[3] == r"| a\|b c | NaN |"
    assert r"\<b\>" in lines[2] and "&amp;" in lines[2] and r"\_" in lines[2]


def test_the_layer_table_holds_the_recorded_norms(story: Story) -> None:
    tables = {one.key: one for one in paper_tables(story)}
    assert set(tables) == {"runs", "layers-1", "layers-2", "paths-2", "claims"}
    run = story.shown[1]
    rows = run.layer_stats(["output_gradient_norm"], steps=59).set_index("layer")
    layers = run.layers
    owns = layers[layers["num_parameters"] > 0]
    expected = rows.loc[owns["layer"], "output_gradient_norm"].tolist()
    assert tables["layers-2"].rows["‖∂L/∂y‖₂"].tolist() == expected
    assert tables["layers-2"].rows["layer"].tolist() == owns["name"].tolist()


def test_the_path_table_holds_the_recorded_spectrum(story: Story) -> None:
    (rows,) = [one.rows for one in paper_tables(story) if one.key == "paths-2"]
    assert rows["length"].tolist() == list(range(9))
    assert rows["gradient_norm"].tolist() == [math.comb(8, k) * 0.5**k for k in range(9)]


def test_tables_are_written_in_three_forms_and_again_the_same(story: Story, tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in write_tables(story, tmp_path / "a")}
    second = {path.name: path.read_bytes() for path in write_tables(story, tmp_path / "b")}
    assert first == second
    assert {name.rpartition(".")[2] for name in first} == {"tex", "md", "csv"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize(
    ("kind", "venue"),
    [*(("a pair", venue) for venue in WIDTHS), *((layout, "icml") for layout in LAYOUTS)],
)
def test_a_document_with_every_figure_and_table_compiles_without_a_warning(
    story: Story, seeds: list[Path], tmp_path: Path, kind: str, venue: str
) -> None:
    story = story if kind == "a pair" else story_of(seeds, layout=kind)
    width = WIDTHS[venue]
    figures = write_figures(story, tmp_path, width=width)
    tables = [path for path in write_tables(story, tmp_path) if path.suffix == ".tex"]
    # Two columns with a quarter of an inch between them, but for NeurIPS; tables have both.
    columns = 1 if venue == "neurips" else 2
    lines = [
        rf"\documentclass[{'two' if columns == 2 else 'one'}column]{{article}}",
        r"\usepackage[T1]{fontenc}\usepackage{lmodern}",
        r"\usepackage{booktabs,graphicx,longtable}",
        rf"\columnsep 0.25in \textwidth {columns * width + 0.25 * (columns - 1)}in",
        r"\oddsidemargin 0in \topmargin -0.5in \textheight 9in",
        r"\begin{document}",
        *(rf"\input{{{path.stem}.tex}}\clearpage" for path in figures),
        r"\onecolumn",
        *(rf"\input{{{path.name}}}\clearpage" for path in tables),
        r"\end{document}",
    ]
    (tmp_path / "paper.tex").write_text("\n".join(lines))
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    for _ in range(3):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")
    log = (tmp_path / "paper.log").read_text(errors="replace")
    assert not re.findall(r"^(?:LaTeX|Package).*Warning.*|^Overfull.*", log, re.MULTILINE)
