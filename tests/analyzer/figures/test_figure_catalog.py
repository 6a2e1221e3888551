import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plotly.io.json import to_json_plotly

from analyzer.analysis.view import View
from analyzer.errors import NotRecordedError
from analyzer.figures.catalog import PAGES, PANELS, page_of, panel
from analyzer.figures.panels import READABLE, Page, Panel, checked
from analyzer.figures.probes import layer_panels
from analyzer.figures.sketch import Sketch, axes_of, merged, scatter
from analyzer.figures.theme import DARK, LIGHT, THEMES
from analyzer.storage.run import Run, open_run
from analyzer.vocabulary.probes import PROBE_NAMES, PROBES
from tests.support.full_run import write_empty_run, write_full_pair, write_network_run
from tests.support.runs import layer_row, write_run

EACH = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.key)
# What a hand-made run of one layer does not hold.
NOT_IN_ONE = {"joins", "shortcut_share", "norm", "update_norm", "learning_rate", "gradient_norm"}
NOT_IN_ONE |= {"join_output_norm", "logged", *PROBE_NAMES}
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    return tuple(map(open_run, write_full_pair(tmp_path_factory.mktemp("pair"))))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ...]:
    """A run that breaks, one of a thousand layers, one of a single layer."""
    folder = tmp_path_factory.mktemp("odd")
    nan = write_network_run(folder / "nan", has_shortcuts=True, blocks=3, steps=12, nan_from=4)
    deep = write_network_run(folder / "deep", has_shortcuts=True, blocks=250, steps=11)
    single = write_run(folder / "one", [1.0], [[0.5]])
    return tuple(map(open_run, (nan, deep, single)))


def words(figure: Any) -> str:
    return json.dumps(figure.to_plotly_json(), default=str)


@EACH
@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_every_panel_draws_a_full_pair(panel: Panel, theme: Any, pair: tuple[Run, ...]) -> None:
    info = panel.info(View(pair, step=30, smooth=0.9))
    figure = panel.draw(info, theme)
    assert len(figure.data) and figure.layout.height
    assert figure.layout.font.color == theme.text
    assert len(figure.to_json()) < 400_000


@EACH
def test_every_record_has_a_caption_with_a_number_and_a_table(
    panel: Panel, pair: tuple[Run, ...]
) -> None:
    info = panel.info(View(pair))
    assert any(c.isdigit() for c in info.caption) and info.caption.endswith(".")
    table = info.table()
    assert len(table) and not table.isna().all(axis=None)


@EACH
def test_every_panel_says_what_an_empty_run_lacks(panel: Panel, tmp_path: Path) -> None:
    empty = open_run(write_empty_run(tmp_path / "empty"))
    with pytest.raises(NotRecordedError, match=r"not recorded in run 'empty'; .|expected 2"):
        panel.info(View((empty,)))


@EACH
@pytest.mark.parametrize("place", range(3), ids=["nan", "deep", "one"])
def test_every_panel_draws_odd_runs_or_says_why_not(
    panel: Panel, place: int, odd: tuple[Run, ...]
) -> None:
    runs = odd[place : place + 1] * (2 if page_of(panel.key).key == "compare" else 1)
    if place == 2 and set(panel.needs) & NOT_IN_ONE:
        with pytest.raises(NotRecordedError, match="not recorded in run 'one'; "):
            panel.info(View(runs))
        return
    info = panel.info(View(runs))
    figure = panel.draw(info, LIGHT)
    assert len(figure.data) and len(info.table())
    assert len(figure.to_json()) < 500_000


@EACH
def test_three_runs_fit_side_by_side(
    panel: Panel, pair: tuple[Run, ...], odd: tuple[Run, ...]
) -> None:
    info = panel.info(View((*pair, odd[0])))
    assert len(panel.draw(info, DARK).data)


@EACH
def test_names_of_layers_and_runs_are_shown_as_text(panel: Panel, tmp_path: Path) -> None:
    layers = [layer_row(k, f"{HOSTILE}{k}") for k in range(3)]
    run = open_run(write_run(tmp_path / "a<b>", [1.0, 0.5], [[1, 2, 3]] * 2, layers=layers))
    try:
        info = panel.info(View((run, run)))
    except NotRecordedError:
        return
    assert "<img" not in words(panel.draw(info, LIGHT))
    assert "a<b>" not in words(panel.draw(info, LIGHT))


@EACH
def test_a_browser_is_sent_the_figure_that_plotly_has_checked(
    panel: Panel, pair: tuple[Run, ...], odd: tuple[Run, ...]
) -> None:
    if not isinstance(panel.drawing(panel.info(View(pair)), LIGHT), Sketch):
        return
    for runs in (pair, (*pair, odd[0]), (odd[0], odd[1])):
        for theme in THEMES.values():
            info = panel.info(View(runs, smooth=0.9))
            checked, plain = panel.draw(info, theme).to_dict(), panel.made(info, theme).to_dict()
            sent = [json.loads(to_json_plotly(figure)) for figure in (checked, plain)]
            assert sent[0] == sent[1]


@pytest.mark.parametrize("place", ["layer", "name"])
def test_a_probe_with_a_number_by_layer_has_a_panel_without_code_of_its_own(
    place: str, pair: tuple[Run, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = next(probe for probe in PROBES if probe.name == "shattering")
    mine = replace(known, columns=known.columns[:3])
    if place == "name":
        monkeypatch.setattr("analyzer.analysis.layer_probes.quantities_of", lambda _: ())
    (one,) = layer_panels([mine], drawn=())
    info = one.info(View(pair))
    assert "correlation goes from" in info.caption
    for theme in THEMES.values():
        figure = one.draw(info, theme)
        assert [trace.name for trace in figure.data if trace.showlegend is not False] == [
            "plain",
            "residual",
        ]
        assert figure.layout.yaxis.title.text == "correlation"
    assert layer_panels([mine], drawn={"shattering"}) == ()
    assert layer_panels([probe for probe in PROBES if probe.name in ("paths", "lesion")], ()) == ()


def test_arrays_are_sent_in_as_few_bytes_as_hold_them() -> None:
    x, z = np.array([0, 40_000]), np.array([[1.5, np.nan]], np.float32)
    sketch = Sketch([scatter(x=x, y=np.zeros(0), text=None), {"type": "heatmap", "z": z}], {})
    curve, heat = sketch.to_dict()["data"]
    assert (curve["x"]["dtype"], curve["y"], "text" in curve) == ("i4", [], False)
    assert np.frombuffer(base64.b64decode(curve["x"]["bdata"]), "<i4").tolist() == [0, 40_000]
    assert (heat["z"]["dtype"], heat["z"]["shape"]) == ("f4", "1, 2")


def test_properties_are_merged_as_deep_as_they_are_nested() -> None:
    base = {"margin": {"l": 1, "r": 2}, "height": 3}
    found = merged(base, {"margin": {"r": 4}, "title": {"text": "x"}})
    assert found == {"margin": {"l": 1, "r": 4}, "height": 3, "title": {"text": "x"}}
    assert base == {"margin": {"l": 1, "r": 2}, "height": 3}
    axes = axes_of({"xaxis": {"a": 1}, "xaxis2": {}, "yaxis": {}}, "x", {"b": 2})
    assert axes == {"xaxis": {"a": 1, "b": 2}, "xaxis2": {"b": 2}, "yaxis": {}}


def test_every_panel_is_on_a_page_and_every_page_shows_something() -> None:
    keys = [one.key for one in PANELS]
    assert len(set(keys)) == len(keys)
    assert all(page.shown or page.has_layout for page in PAGES)
    assert all(one in page_of(one.key).panels for one in PANELS)
    assert panel("overview").title == page_of("overview").title == "Overview"
    with pytest.raises(KeyError, match="no panel 'nosuch'; expected one of overview,"):
        panel("nosuch")


def altered(key: str, **changes: Any) -> list[Page]:
    """The pages of the catalog with one of them changed."""
    return [replace(page, **changes) if page.key == key else page for page in PAGES]


@pytest.mark.parametrize(
    ("pages", "what"),
    [
        (altered("flow", panels=(PANELS[1], PANELS[3])), "panel 'depth_profile' is on no page"),
        (altered("updates", panels=()), "page 'updates' has no panel and no layout"),
        (altered("updates", panels=(PANELS[0],)), "panel 'overview' is there twice"),
        ([*PAGES, PAGES[-1]], "page 'findings' is there twice"),
        (altered("updates", path="/flow"), "path '/flow' is there twice"),
        (altered("updates", former=("flow",)), "path '/flow' is there twice"),
        (altered("updates", letter="f"), "letter 'f' is there twice"),
        (altered("compare", also=(replace(PANELS[1], key="x"),)), "borrows 'x', which is on no"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pages_and_panels_that_do_not_go_together_are_refused(pages: list[Page], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        checked(pages, PANELS)


def test_a_panel_reads_what_a_view_has_and_has_controls_for_no_more() -> None:
    with pytest.raises(ValueError, match="reads of panel 'loss' has colour; expected some of step"):
        replace(panel("loss"), reads=("colour",))
    assert replace(panel("loss"), reads=("step", "layers")).controls == ("layers",)
    assert replace(panel("loss"), has_controls=False).controls == ()


CHANGES: dict[str, Any] = {
    "step": 10,
    "quantity": "activation_norm",
    "layers": "layer",
    "aggregate": "max",
    "smooth": 0.9,
    "relative": True,
    "over": "time",
    "log_x": True,
    "scale": "log",
    "group": "all but the seed",
}


@EACH
@pytest.mark.parametrize("field", CHANGES)
def test_what_a_panel_does_not_read_changes_nothing(
    panel: Panel, field: str, pair: tuple[Run, ...]
) -> None:
    assert set(CHANGES) == set(READABLE)
    if field in panel.reads:
        return
    plain, changed = View(pair), replace(View(pair), **{field: CHANGES[field]})
    one, other = (panel.info(view) for view in (plain, changed))
    assert one.caption == other.caption and one.table().equals(other.table())
    sent = [panel.draw(info, LIGHT).to_json() for info in (one, other)]
    assert sent[0] == sent[1]


@EACH
def test_the_words_of_a_panel_are_sentences(panel: Panel) -> None:
    assert panel.how_to_read.endswith(".") and len(panel.how_to_read) > 40
    assert panel.title[0].isupper() and panel.needs
