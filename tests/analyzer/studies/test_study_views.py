"""What a study shows: its summary against its runs, its figures, page and report."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from analyzer.analysis.study import OWN_COLUMNS, summary_table
from analyzer.analysis.verdict import verdict
from analyzer.analysis.view import View
from analyzer.cli import main
from analyzer.dashboard.address import Address, context
from analyzer.dashboard.library import Library
from analyzer.dashboard.study_page import study_cards
from analyzer.errors import NotRecordedError
from analyzer.figures.study import STUDY_PANELS
from analyzer.figures.theme import THEMES
from analyzer.options import RecordOptions
from analyzer.reports.story import story_of
from analyzer.storage.parts import write_table
from analyzer.storage.run import open_run
from analyzer.storage.study import PLAN, Study, open_study, shown_points, study_of, write_json
from analyzer.studies.plan import Plan, Point
from tests.support.full_run import write_full_pair, write_network_run
from tests.support.runs import write_run

DEPTHS, SEEDS = (8, 20), (0, 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose points are copies of a pair of runs; one more has failed."""
    folder = tmp_path_factory.mktemp("views") / "degrade"
    plain, residual = write_full_pair(tmp_path_factory.mktemp("pair"))
    points = []
    for depth in DEPTHS:
        for shortcuts, source in (("on", residual), ("off", plain)):
            for seed in SEEDS:
                name = f"depth{depth}-{shortcuts}-seed{seed}"
                shutil.copytree(source, folder / "runs" / name)
                points.append((name, {"depth": depth, "shortcuts": shortcuts, "seed": seed}))
                write_json(folder / f"points/{name}.json", {"status": "finished", "seconds": 2.5})
    points.append(("broken", {"depth": 20, "shortcuts": "on", "seed": 9}))
    write_json(folder / "points/broken.json", {"status": "failed", "error": "too <deep>"})
    plan = Plan("zoo:resnet", tuple(Point(*one, RecordOptions()) for one in points))
    write_json(folder / "plan.json", plan.as_json())
    made = open_study(folder)
    write_table(folder / "summary.parquet", summary_table(made))
    return made


def test_the_summary_has_the_numbers_of_each_run_and_the_claims_of_each_pair(study: Study):
    rows = study.summary().set_index("point")
    assert list(OWN_COLUMNS) == list(study.summary())[: len(OWN_COLUMNS)]
    assert rows["status"].value_counts().to_dict() == {"finished": 8, "failed": 1}
    assert rows.loc["broken", "problem"] == "too <deep>"
    for name in ("depth8-on-seed0", "depth20-on-seed1"):
        losses = study.run(name).steps["loss"].to_numpy()
        last = losses[-max(1, -(-len(losses) // 10)) :]
        assert rows.loc[name, "final_loss"] == pytest.approx(last.mean())
        paths = study.run(name).probe("paths")
        last_paths = paths[paths["step"] == paths["step"].max()]
        expected = np.average(last_paths["length"], weights=last_paths["gradient_norm"])
        assert rows.loc[name, "path_length"] == pytest.approx(expected)
    pair = (study.run("depth8-off-seed0"), study.run("depth8-on-seed0"))
    for claim in verdict(*pair).claims:
        if f"claim_{claim.key}" in rows:
            assert rows.loc["depth8-on-seed0", f"claim_{claim.key}"] == claim.status
            said = rows.loc["depth8-on-seed0", f"plain_{claim.key}"]
            if claim.plain is None:
                assert said is None or np.isnan(said)
            else:
                assert said == pytest.approx(claim.plain, nan_ok=True)
    assert rows[rows["shortcuts"] == "off"]["claim_vanishing"].isna().all()


@pytest.mark.parametrize("panel", STUDY_PANELS, ids=lambda panel: panel.key)
def test_every_figure_of_a_study_draws_and_has_a_caption_and_a_table(panel, study: Study):
    info = panel.info(View((study.run("depth8-on-seed0"),)))
    assert info.caption.startswith("Study degrade: ") and info.caption.endswith(".")
    assert any(c.isdigit() for c in info.caption)
    table = info.table()
    assert set(table["depth"]) == set(DEPTHS) and set(table["seeds"]) == {2}
    for theme in THEMES.values():
        figure = panel.draw(info, theme)
        assert figure.layout.height and len(figure.data) >= 2


def test_a_curve_is_the_median_over_seeds_with_its_range(study: Study, tmp_path: Path):
    rows = study.summary()
    rows.loc[rows["depth"] == 20, "final_loss"] *= np.where(rows["seed"] == 1, 3.0, 1.0)[
        rows["depth"] == 20
    ]
    info = STUDY_PANELS[0].info(View((study.run("depth8-on-seed0"),)))
    (curve,) = [one for one in info.panes[0][2] if one.name == "on"]
    losses = rows[(rows["shortcuts"] == "on") & (rows["depth"] == 8)]["final_loss"]
    assert (curve.middle[0], curve.low[0], curve.high[0]) == pytest.approx(
        (losses.median(), losses.min(), losses.max())
    )
    assert curve.has_shortcuts and curve.depths.tolist() == [8.0, 20.0]


def test_a_run_that_is_no_point_of_a_study_says_so(tmp_path: Path):
    run = open_run(write_full_pair(tmp_path)[0])
    with pytest.raises(NotRecordedError, match="is no point of a study; make one with"):
        study_of(run)


def test_the_page_shows_the_study_of_the_newest_run_and_what_failed(study: Study):
    for name in ("light", "dark"):
        cards = study_cards(context(Library([study.path]), Address(())), name)
        assert len(cards) == 1 + len(STUDY_PANELS)
        assert "too <deep>" in str(cards[0].to_plotly_json())
        assert "9 points of zoo:resnet: 8 finished, 1 failed." in str(cards[0].to_plotly_json())


@pytest.mark.parametrize("narrow", [False, True])
def test_on_a_phone_panes_stand_one_above_the_other(study: Study, narrow: bool):
    cards = study_cards(context(Library([study.path]), Address(())), "light", narrow=narrow)
    figure = cards[1].children[2].figure
    layout = figure["layout"] if narrow else figure.layout.to_plotly_json()
    spans = [layout[axis].get("domain") for axis in ("xaxis", "xaxis2")]
    assert [list(span) == [0.0, 1.0] for span in spans] == [narrow, narrow]


def test_a_page_without_a_study_says_how_to_make_one(tmp_path: Path):
    (said,) = study_cards(context(Library([tmp_path]), Address(())), "light")
    assert "analyzer study" in str(said.to_plotly_json())


def test_a_page_of_other_runs_names_the_study_beside_them(study: Study, tmp_path: Path):
    write_run(tmp_path / "alone", [1.0], [[1.0]])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / PLAN).write_text((study.path / PLAN).read_text())
    (said,) = study_cards(context(Library([tmp_path]), Address()), "light")
    text = str(said.to_plotly_json())
    assert f"`analyzer dashboard {tmp_path / 'mine'}`" in text


def test_a_report_of_a_study_begins_with_it(study: Study, tmp_path: Path, capsys):
    folder, points = tmp_path / "small", []
    for how in ("on", "off"):
        write_network_run(folder / "runs" / how, has_shortcuts=how == "on", blocks=2, steps=3)
        points.append(Point(how, {"depth": 2, "shortcuts": how}, RecordOptions()))
    write_json(folder / "plan.json", Plan("zoo:simple", tuple(points)).as_json())
    write_table(folder / "summary.parquet", summary_table(open_study(folder)))
    story = story_of(shown_points(open_study(folder)), of_study=True)
    keys = [panel.key for panel in STUDY_PANELS]
    assert [figure.key for figure in story.sections[0].figures] == keys
    names = [path.name for path in shown_points(study)]
    assert names == [f"depth20-{how}-seed{k}" for how in ("on", "off") for k in SEEDS]
    assert main(["report", study.path.name, "x", "--runs-dir", str(study.path.parent)]) == 2
    assert "expected it alone" in capsys.readouterr().err
