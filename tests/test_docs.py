"""The site says everything: what a list of the code holds is on its page, and no link is broken."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from analyzer.analysis.findings import RULES, THRESHOLDS
from analyzer.cli import COMMANDS, load
from analyzer.figures.catalog import PANELS
from analyzer.options import RECORDER, options_of
from analyzer.vocabulary import GLOSSARY, QUANTITIES
from analyzer.vocabulary.probes import PROBES
from docs.generated import PAGES, on_page_markdown
from tests.support import hostile

ROOT = Path(__file__).parents[1]


def site() -> dict[str, str]:
    """Return the text of every page by its name."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md")}
    pages |= {name: page() for name, page in PAGES.items()}
    return {name: on_page_markdown(text) for name, text in pages.items()}


def row(page: str, name: str) -> str:
    """Return the row of a table that begins with a name, its cells in order; else nothing."""
    return next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "")


def section(page: str, title: str) -> str:
    """Return what stands under a heading of the second order; else nothing."""
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def undocumented(pages: dict[str, str]) -> list[str]:
    """Return what no page explains: quantities, findings, probes, panels and options."""
    found = []
    for one in QUANTITIES:
        told = row(section(pages["vocabulary.md"], one.table), one.key)
        if one.label.replace("|", "\\|") not in told or one.unit not in told:
            found.append(f"quantity {one.table}.{one.key}")
        if not row(section(pages["schema.md"], one.table), one.key):
            found.append(f"column {one.table}.{one.key}")
    for probe in PROBES:
        told = section(pages["probes.md"], probe.name)
        if probe.sentence not in told:
            found.append(f"probe {probe.name}")
        found += [f"analyzer probe {o.flag}" for o in probe.options if f"`{o.flag} " not in told]
        found += [f"{probe.table}.{one.key}" for one in probe.columns if not row(told, one.key)]
    for rule in RULES:
        told = row(pages["findings.md"], rule.code)
        if rule.severity not in told or rule.seen_when not in told:
            found.append(f"finding {rule.code}")
    for threshold in THRESHOLDS.values():
        if threshold.reason.replace("|", "\\|") not in row(pages["findings.md"], threshold.name):
            found.append(f"threshold {threshold.name}")
    found += [f"panel {one.key}" for one in PANELS if one.how_to_read not in pages["figures.md"]]
    for field in options_of(RECORDER):
        if field.metadata["option"].help.replace("<", "&lt;") not in row(
            pages["api.md"], field.name
        ):
            found.append(f"Recorder({field.name}=...)")
    for command in COMMANDS:
        told = section(pages["commands.md"], f"analyzer {command}")
        for parameter in load(command).params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                name = re.compile(rf"`[^`]*(?<![\w-]){parameter.opts[-1]}(?![\w-])")
                line = next(filter(name.search, told.splitlines()), "| |")
                if not line.rstrip(" |").rpartition("|")[2].strip():
                    found.append(f"analyzer {command} {parameter.opts[-1]}")
    return found


def test_everything_is_documented() -> None:
    assert undocumented(site()) == []


@pytest.mark.parametrize(
    ("page", "line", "name"),
    [
        ("vocabulary.md", "| `shortcut_share` |", "quantity splits.shortcut_share"),
        ("schema.md", "| `clip_factor` |", "column steps.clip_factor"),
        ("probes.md", "| `num_paths` |", "probes/paths.num_paths"),
        ("probes.md", "## lesion", "probe lesion"),
        ("findings.md", "| `vanishing` |", "finding vanishing"),
        ("findings.md", "| `sleeping_ratio` |", "threshold sleeping_ratio"),
        ("api.md", "| `splits_every` |", "Recorder(splits_every=...)"),
        ("commands.md", "| `--every N` |", "analyzer record --every"),
    ],
)
def test_what_a_page_leaves_out_is_named(page: str, line: str, name: str) -> None:
    pages = site()
    kept = [one for one in pages[page].splitlines() if not one.startswith(line)]
    assert len(kept) < len(pages[page].splitlines())
    assert name in undocumented(pages | {page: "\n".join(kept)})


def test_the_readme_defines_each_term_in_the_words_that_the_dashboard_shows_on_hover() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [term for term, text in GLOSSARY.items() if f"| {term} | {text} |" not in readme] == []


def test_no_page_holds_a_tag_or_a_mark_that_was_left_over() -> None:
    for name, text in site().items():
        text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        assert re.findall(r"<[a-z!][^>]*>", text) == [], name


def test_public_functions_document_every_argument() -> None:
    import analyzer

    for name in analyzer.__all__:
        value = getattr(analyzer, name)
        if inspect.isfunction(value):
            for argument in inspect.signature(value).parameters:
                assert re.search(rf"^ +\*?\*?{argument}: ", value.__doc__ or "", re.M), (
                    name,
                    argument,
                )


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.glob("*.html"):
        if page.name != "sample-report.html":
            loaded = re.findall(r'(?:src|<link[^>]* href)="(https?:[^"]*)', page.read_text())
            assert loaded == [], page.name


def test_the_walk_of_a_gradient_has_at_most_twelve_stations_at_places_that_exist() -> None:
    walk = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    stations = re.findall(r"^\| \d+ \| ([^|]*) \|", walk, re.M)
    assert 6 < len(stations) <= 12
    for station in stations:
        found = ""
        for name in re.findall(r"`([^`]+)`", station):
            if "/" in name:
                places = [path for path in (ROOT / "analyzer" / name, ROOT / name) if path.exists()]
                assert places, name
                found += places[0].read_text(encoding="utf-8") if places[0].is_file() else ""
            else:
                last = name.rpartition(".")[2]
                assert (
                    re.search(rf"(def|class) {last}\b|^{last} = ", found, re.M)
                    or name == "Run.grid"
                ), name


def test_every_attack_of_the_security_page_has_its_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for attack in hostile.ATTACKS:
        assert f"| `{attack}` |" in page
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    named = re.findall(r"\btest_[a-z0-9_]+(?=`)", page)
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in tests] == []
