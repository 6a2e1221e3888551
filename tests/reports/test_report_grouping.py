import math
import re
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

from analyzer.errors import AnalyzerError
from analyzer.figures.theme import LIGHT
from analyzer.reports.groups import (
    Spread,
    grouped,
    pairs_of,
    program,
    representatives,
    seed_figure,
    seed_of,
    seed_spread,
)
from analyzer.reports.html import report_html
from analyzer.reports.story import lead_of, story_of
from analyzer.storage.run import Run, open_run
from tests.support.runs import layer_row, write_run

JOIN = {
    "join": 0,
    "name": "b",
    "operation": "add",
    "shortcut": "identity",
    "branch_layers": ["layers.0"],
    "shortcut_layers": [],
    "branch_parameters": 20,
    "shortcut_parameters": 0,
}


def seeded(folder: Path, kind: str, seed: int, *, gain: float = 0.5, loss: float = 1.0) -> Run:
    """A run of three layers whose norms fall by ``gain`` per layer going backward."""
    norms = [[gain**2, gain, 1.0]] * 4
    argv = [f"{kind}.py", "--lr", "0.1", "--seed", str(seed)]
    joins = [JOIN] if kind == "residual" else []
    return open_run(
        write_run(
            folder / f"{kind}-{seed}",
            [loss] * 4,
            norms,
            layers=[layer_row(i, f"layers.{i}") for i in range(3)],
            joins=joins,
            argv=argv,
        )
    )


@pytest.mark.parametrize(
    ("argv", "seed"),
    [
        (["t.py", "--seed", "7"], "7"),
        (["t.py", "--seed=8"], "8"),
        (["t.py", "-seed", "9", "--lr", "1"], "9"),
        (["t.py"], "3"),
    ],
)
def test_the_seed_is_that_of_the_command_line_else_of_the_manifest(
    argv: list[str], seed: str
) -> None:
    assert seed_of({"argv": argv, "seed": 3}) == seed
    assert set(program({"argv": argv})) <= {"t.py", "--lr", "1"}


def test_runs_that_differ_by_their_seed_are_one_group(tmp_path: Path) -> None:
    runs = [seeded(tmp_path, kind, seed) for seed in (2, 0, 1) for kind in ("residual", "plain")]
    plain, residual = grouped(runs)
    assert (plain.label, plain.seeds) == ("plain", ("0", "1", "2"))
    assert (residual.label, residual.seeds) == ("residual", ("0", "1", "2"))
    names = [(left.name, right.name) for left, right in pairs_of(plain, residual)]
    assert names == [(f"plain-{k}", f"residual-{k}") for k in range(3)]


def test_figures_show_one_run_of_each_group_of_the_same_seed(tmp_path: Path) -> None:
    runs = [seeded(tmp_path, "plain", 0), seeded(tmp_path, "plain", 4)]
    runs += [seeded(tmp_path, "residual", 4), seeded(tmp_path, "residual", 5)]
    assert [run.name for run in representatives(grouped(runs))] == ["plain-4", "residual-4"]


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("single", ["residual-0"]),
        ("twin", ["plain-0", "residual-0"]),
        ("seeds", ["plain-0", "residual-0"]),
    ],
)
def test_a_layout_chooses_the_runs_of_the_figures(
    tmp_path: Path, layout: str, names: list[str]
) -> None:
    runs = [seeded(tmp_path, kind, seed) for seed in range(2) for kind in ("plain", "residual")]
    story = story_of([run.path for run in runs], layout=layout)
    assert [run.name for run in story.shown] == names
    assert ("seed_spread" in {figure.key for figure in story.figures}) == (layout == "seeds")
    assert [column.label.text for column in next(story.figures).info.runs] == names


def test_a_layout_without_its_runs_is_refused(tmp_path: Path) -> None:
    paths = [seeded(tmp_path, "plain", 0).path]
    with pytest.raises(AnalyzerError, match="--layout twin needs a plain and a residual run"):
        story_of(paths, layout="twin")
    with pytest.raises(AnalyzerError, match="--layout seeds needs runs that differ by their seed"):
        story_of(paths, layout="seeds")


def test_the_rows_behind_the_figure_of_seeds_are_what_it_draws(tmp_path: Path) -> None:
    runs = [seeded(tmp_path, "plain", k, gain=g) for k, g in enumerate([0.4, 0.5, 0.9])]
    info = seed_spread(grouped(runs))
    table, figure = info.table(), seed_figure(info, LIGHT)
    for axis, line in zip(("depth", "step"), figure.data[1::2], strict=True):
        rows = table[table["axis"] == axis]
        assert rows["place"].tolist() == list(line.x) and len(rows) > 1
        assert rows["mean"].to_numpy() == pytest.approx(np.asarray(line.y))


def test_the_spread_is_mean_and_sample_deviation() -> None:
    one = Spread([1.0, 2.0, 6.0])
    assert (one.mean, one.deviation) == (3.0, pytest.approx(math.sqrt(7)))
    assert one.words == "3 ± 2.65"
    assert math.isnan(Spread([1.0, math.nan]).mean)
    assert math.isnan(Spread([1.0]).deviation)


def test_the_spread_over_seeds_is_that_of_the_gains(tmp_path: Path) -> None:
    gains, losses = [0.4, 0.5, 0.9], [2.0, 2.5, 3.6]
    pairs = enumerate(zip(gains, losses, strict=True))
    runs = [seeded(tmp_path, "plain", k, gain=g, loss=x) for k, (g, x) in pairs]
    info = seed_spread(grouped(runs))
    (row,) = info.summary().to_dict("records")
    assert row["gain_mean"] == pytest.approx(np.mean(gains))
    assert row["gain_sd"] == pytest.approx(np.std(gains, ddof=1))
    assert row["final_loss_mean"] == pytest.approx(2.7)
    assert "gain 0.6 ± 0.265 per layer" in info.caption
    assert "final loss 2.70 ± 0.819" in info.caption


def test_a_story_of_seeds_tells_of_their_spread_and_their_verdict(tmp_path: Path) -> None:
    runs = [seeded(tmp_path, kind, seed) for seed in range(2) for kind in ("plain", "residual")]
    story = story_of([run.path for run in runs])
    assert "seeds" in {section.key for section in story.sections}
    assert story.verdict.num_seeds == 2
    assert [run.name for run in story.shown] == ["plain-0", "residual-0"]


def test_a_report_of_residual_runs_is_not_one_of_plain_against_residual(tmp_path: Path) -> None:
    runs = [write_run_of(tmp_path, lr) for lr in ("0.1", "0.2")]
    story = story_of(runs)
    titles = [section.title for section in story.sections]
    assert "The runs compared" in titles and "Plain against residual" not in titles
    # What nothing was measured of has no section of its own: one list at the end says how.
    assert all(section.figures for section in story.sections[:-1])
    assert titles[-1] == "Not measured" and len(story.sections[-1].missing) > 4
    page = report_html(story)
    assert "What differs between the runs" in page and "--lr 0.2" in page


def test_the_first_line_is_the_worst_of_all_runs_and_says_of_which(tmp_path: Path) -> None:
    fine = write_run_of(tmp_path, "0.1")
    norms = [[0.25, 0.5, 1.0]] * 2 + [[np.nan] * 3] * 2
    broken = write_run(tmp_path / "lr-9", [1.0, 1.0, np.nan, np.nan], norms, joins=[JOIN])
    lead = lead_of(story_of([fine, broken]))
    assert lead.startswith("lr-9: ") and "nan" in lead.lower()
    assert not lead_of(story_of([broken])).startswith("lr-9")


def write_run_of(folder: Path, lr: str) -> Path:
    argv = ["t.py", "--lr", lr]
    norms = [[0.25, 0.5, 1.0]] * 4
    return write_run(folder / f"lr-{lr}", [1.0] * 4, norms, joins=[JOIN], argv=argv)


def test_a_report_defines_each_symbol_once_and_says_first_that_a_run_failed(
    tmp_path: Path,
) -> None:
    path = write_run(
        tmp_path / "mine", [1.0], [[0.25, 0.5]], status="failed", error="OOM", joins=[JOIN]
    )
    page = report_html(story_of([path]))
    assert page.count("<dt>‖∂L/∂y‖</dt>") == page.count("<dt>gain</dt>") == 1
    assert page.index("mine failed: OOM.") < page.index("Contents")
    lead = page[page.index('class="lead">') + 13 :].partition("</p>")[0]
    assert lead.endswith(".") and not lead.startswith("mine:")
    address = re.search(r'download="references.bib" href="data:[^,]*,([^"]+)"', page)
    assert address is not None and b"@" in b64decode(address[1])
