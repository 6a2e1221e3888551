import base64
import gzip
import hashlib
import json
import re
import warnings
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from analyzer.errors import AnalyzerError
from analyzer.figures.sketch import Sketch
from analyzer.figures.theme import DARK, LIGHT
from analyzer.reports import html as writer
from analyzer.reports.html import report_html, write_report
from analyzer.reports.packing import put, screen_figure, what_differs
from analyzer.reports.story import Story, story_of
from tests.support.full_run import write_empty_run, write_network_run
from tests.support.runs import layer_row, write_run

HOSTILE = '</script><img src=x onerror="alert(1)">{{7*7}}'


class Page(HTMLParser):
    """Tags, addresses, ids and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def unpacked(page: str, key: str) -> Any:
    found = re.search(rf'id="{key}">([^<]+)<', page)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_asks_for_nothing_from_the_network(page: str) -> None:
    read = Page(page)
    for address in read.values("src") + read.values("href"):
        kinds = ("#", "data:image/svg+xml", "data:text/plain;charset=utf-8;base64,")
        assert address.startswith(kinds)
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in read.tags}
    assert not re.findall(r"url\((?!#|%23)|@import", page)


def test_only_the_scripts_and_styles_of_the_page_may_run(page: str) -> None:
    (policy,) = re.findall(r'Security-Policy" content="([^"]+)"', page)
    policy = policy.replace("&#39;", "'")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[-1]
    assert sha256(style) in policy and sha256(script) in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy.partition("script-src")[2].partition(";")[0]
    assert not re.search(r"\son[a-z]+=", page.partition("<script")[0])


def test_plotly_is_in_the_page_once_and_every_figure_in_its_data(page: str, story: Story) -> None:
    assert page.count('id="plotly-js"') == 1
    keys = [figure.key for figure in story.figures]
    assert len(keys) >= 8
    assert list(unpacked(page, "figures")["figures"]) == keys
    assert list(unpacked(page, "csv")["tables"]) == keys


def test_the_report_of_a_pair_is_small(page: str, story: Story) -> None:
    count = len(list(story.figures))
    # Two megabytes for eight figures, of which the bundle is 0.8; this one has all there are.
    assert count > 20 and len(page.encode()) <= 2e6


def test_every_figure_has_words_a_static_figure_a_table_and_a_name(page: str, story: Story) -> None:
    read = Page(page)
    count = len(list(story.figures))
    tags = [tag for tag, _ in read.tags]
    assert tags.count("figure") == tags.count("figcaption") == count
    images = [attributes for tag, attributes in read.tags if tag == "img" and attributes["alt"]]
    plots = [attributes for _, attributes in read.tags if attributes.get("role") == "group"]
    assert len(images) == len(plots) == count
    for figure, image, plot in zip(story.figures, images, plots, strict=True):
        assert plot["aria-label"] == image["alt"] == f"{figure.title}: {figure.caption}"
        assert " ".join(figure.caption.split()) in read.text
        assert " ".join(figure.how_to_read.split()) in read.text


def test_every_link_leads_to_a_place_and_every_place_is_unique(page: str) -> None:
    read = Page(page)
    ids = read.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in read.values("href") if link.startswith("#")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_is_valid_html(page: str) -> None:
    html5lib = pytest.importorskip("html5lib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = html5lib.HTMLParser(strict=False)
        parser.parse(page)
    assert parser.errors == []


@pytest.mark.no_cover
def test_two_builds_are_the_same_bytes(small_folder: Path, small: Story) -> None:
    assert report_html(story_of([small_folder])) == report_html(small)


@pytest.mark.slow
def test_two_builds_of_all_figures_are_too(folders: tuple[Path, Path], page: str) -> None:
    assert report_html(story_of(folders)) == page


def values_of(array: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"]).astype(np.float64)


def restore_powers(drawn: dict[str, Any], expected: dict[str, Any]) -> None:
    """Put numbers where the page raises ten to the logarithms, after a look at these."""
    for trace, true in zip(drawn["data"], expected["data"], strict=True):
        if trace.get("customdata") == "powers":
            logs, plain = values_of(trace["z"]), values_of(true["customdata"])
            known = np.isfinite(logs)
            assert known.any()
            np.testing.assert_allclose(10 ** logs[known], plain[known], 1e-4)
            trace["customdata"] = true["customdata"]


def checked(made: Any) -> Any:
    """A figure as plotly has checked it."""
    return json.loads((made.figure() if isinstance(made, Sketch) else made).to_json())


def test_dark_and_narrow_pages_draw_what_the_dashboard_draws_there(story: Story) -> None:
    for figure in story.figures:
        made = screen_figure(figure)
        looks = {name: put(made["light"], made[name]) for name in ("dark", "narrow")}
        looks["both"] = put(put(looks["dark"], made["narrow"]), made["both"])
        for name, drawn in looks.items():
            theme = LIGHT if name == "narrow" else DARK
            wide = figure.draw(figure.info, theme)
            expected = checked(wide)
            if name != "dark":
                laid_out = figure.draw_narrow(figure.info, theme, wide.to_dict())
                expected = json.loads(go.Figure(laid_out).to_json())
            restore_powers(drawn, expected)
            assert drawn == expected, (figure.key, name)
        assert made["dark"]


def test_on_a_phone_no_figure_has_panes_side_by_side(story: Story) -> None:
    for figure in story.figures:
        made = screen_figure(figure)
        layout = put(made["light"], made["narrow"])["layout"]
        axes = [layout[name] for name in layout if name.startswith("xaxis")]
        assert all(axis.get("domain", [0, 1]) == [0, 1] for axis in axes), figure.key
        bar = layout.get("coloraxis", {}).get("colorbar")
        assert bar is None or bar["orientation"] == "h", figure.key


def test_what_differs_names_the_innermost_place() -> None:
    light, dark = {"a": [{"b": 1}, 2], "c": "x"}, {"a": [{"b": 3}, 2], "c": ["y"]}
    assert list(what_differs(light, dark)) == [(["a", 0, "b"], 3), (["c"], ["y"])]


def hostile_run(folder: Path) -> Path:
    layers = [layer_row(i, HOSTILE + str(i)) for i in range(4)]
    argv = ["train.py", HOSTILE]
    return write_run(
        folder / "<b>run", [1.0] * 3, [[1e-6, 1e-4, 0.1, 1.0]] * 3, layers=layers, argv=argv
    )


def test_names_that_look_like_markup_are_text(tmp_path: Path) -> None:
    story = story_of([hostile_run(tmp_path)])
    page = report_html(story)
    read = Page(page)
    assert "onerror" not in {name for _, attributes in read.tags for name in attributes}
    assert all(source != "x" for source in read.values("src"))
    assert HOSTILE in read.text and "49" not in "".join(read.text.split(HOSTILE)[:1])
    assert "<b>run" in read.text
    drawn = json.dumps([made["light"] for made in unpacked(page, "figures")["figures"].values()])
    assert "<img" not in drawn and "&lt;img" in drawn


@pytest.mark.parametrize("shortcuts", [False, True])
def test_what_was_not_recorded_is_named_with_its_remedy(tmp_path: Path, shortcuts: bool) -> None:
    run = write_network_run(tmp_path / "r", has_shortcuts=shortcuts, steps=3, probes=False)
    story = story_of([run])
    missing = [one for section in story.sections for one in section.missing]
    assert any("landscape" in one.reason for one in missing)
    text = Page(report_html(story)).text
    for one in missing:
        assert " ".join(one.reason.split()) in text


@pytest.mark.parametrize("kind", ["empty", "gradients only", "not finite", "crashed"])
def test_unusual_runs_have_a_report(tmp_path: Path, kind: str) -> None:
    if kind == "empty":
        path = write_empty_run(tmp_path / "r")
    elif kind == "not finite":
        path = write_network_run(tmp_path / "r", has_shortcuts=True, steps=8, nan_from=4)
    else:
        status = None if kind == "crashed" else "finished"
        path = write_run(tmp_path / "r", [1.0, 0.5], [[0.1, 0.2]] * 2, status=status)
    if kind == "crashed":
        manifest = json.loads((path / "run.json").read_text())
        manifest |= {"status": "running", "heartbeat": "2020-01-01T00:00:00+00:00"}
        (path / "run.json").write_text(json.dumps(manifest))
    text = Page(report_html(story_of([path]))).text
    assert "Gradient flow of r" in text
    assert ("crashed" in text) == (kind == "crashed")
    if kind == "not finite":
        assert "NaN" in text


@pytest.mark.no_cover
def test_a_template_folder_replaces_wording_and_logo(small: Story, tmp_path: Path) -> None:
    (tmp_path / "introduction.html.j2").write_text("<p>The lab of {{ num_runs }} runs.</p>")
    (tmp_path / "logo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page = report_html(small, template=tmp_path)
    assert "The lab of 1 runs." in page and "This report shows how" not in page
    logo = base64.b64encode((tmp_path / "logo.svg").read_bytes()).decode()
    assert f'src="data:image/svg+xml;base64,{logo}"' in page


@pytest.fixture(scope="module")
def content(small: Story) -> dict[str, Any]:
    """What is written into the templates; it takes longer than they do."""
    return writer._content(small, writer._environment(None))


@pytest.fixture
def prepared(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_content", lambda *_: content)


def test_a_template_that_is_wrong_is_refused(small: Story, tmp_path: Path, prepared: None) -> None:
    with pytest.raises(
        AnalyzerError, match=r"'.*nosuch' is not a directory; expected one with files"
    ):
        report_html(small, template=tmp_path / "nosuch")
    (tmp_path / "introduction.html.j2").write_text("{{ nosuch }}")
    with pytest.raises(AnalyzerError, match="UndefinedError: 'nosuch' is undefined"):
        write_report(small, tmp_path / "r.html", template=tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
        "{{ '{0.__class__}'.format(num_runs) }}",
        "{% include '../../secret' %}",
        "{% for k in range(10**9) %}x{% endfor %}",
    ],
)
def test_a_template_of_a_stranger_runs_nothing(
    small: Story, tmp_path: Path, words: str, prepared: None
) -> None:
    (tmp_path / "introduction.html.j2").write_text(words)
    (tmp_path.parent / "secret").write_text("secret")
    with pytest.raises(AnalyzerError, match=r"cannot be used \((Sec|Tem|Over)"):
        report_html(small, template=tmp_path)


def test_the_appendix_names_what_a_repetition_needs(page: str) -> None:
    text = Page(page).text
    for fact in (
        "analyzer record train.py --lr 0.02",
        "0123456789abcdef0123456789abcdef01234567 (clean)",
        "version of torch 2.13.0",
        "device cpu",
    ):
        assert fact in text


def test_the_methods_define_what_the_figures_show(page: str) -> None:
    text = Page(page).text
    for words in ("Theil–Sen", "Path-length spectrum", "filter normalization", "@article{veit2016"):
        assert words in text


def test_a_run_without_joins_defines_no_splits(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [1.0, 0.5], [[0.1, 0.2]] * 2)
    text = Page(report_html(story_of([run]))).text
    assert "Theil–Sen" in text and "Path-length spectrum" not in text


def test_a_run_that_broke_is_shown_where_it_was_finite_last(tmp_path: Path) -> None:
    run = write_network_run(tmp_path / "n", has_shortcuts=True, steps=9, nan_from=4, probes=False)
    by_key = {figure.key: figure for figure in story_of([run]).figures}
    assert "at step 3, " in by_key["overview"].caption
    assert by_key["depth_profile"].caption.startswith("n, step 3: gain ")
