import re
import sys
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.opened import Run
from tests.support.full_run import write_full_pair
from tests.support.runs import write_run


def opened(path: Path) -> Run:
    norms = [[0.1 ** (6 - k) for k in range(7)]] * 3
    return analyzer.open_run(write_run(path, [2.0, 1.0, 0.5], norms))


def test_a_run_answers_with_findings_gain_and_training(tmp_path: Path) -> None:
    run = opened(tmp_path / "mine")
    assert isinstance(run, Run)
    assert [finding.code for finding in run.findings()] == ["vanishing"]
    assert "vanishing" not in [f.code for f in run.findings({"vanishing_decades": 9.0})]
    assert run.gain().gain == pytest.approx(0.1)
    assert run.gain().decades_fallen == pytest.approx(6.0)
    assert run.training().final_loss == 0.5


def test_show_hands_the_run_to_the_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = ModuleType("analyzer.dashboard.notebook")
    vars(notebook)["show"] = lambda run, height: (run.name, height)
    monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
    assert opened(tmp_path / "mine").show(height=500) == ("mine", 500)


def test_show_without_a_dashboard_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "analyzer.dashboard.notebook", None)
    with pytest.raises(AnalyzerError, match=r"run\.show\(\) needs the dashboard.*analyzer show"):
        opened(tmp_path / "mine").show()


def test_a_run_is_opened_by_its_name_and_by_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, created in (("first", "2026-01-01"), ("second", "2026-01-02")):
        write_run(tmp_path / "runs" / name, [1.0], [[1.0]], created=f"{created}T00:00:00+00:00")
    monkeypatch.delenv("ANALYZER_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert analyzer.open_run("first").name == "first"
    assert analyzer.open_run("latest").name == "second"
    assert analyzer.open_run(tmp_path / "runs" / "first").name == "first"
    with pytest.raises(analyzer.RunNotFoundError, match=r"no run 'firsst'.*first"):
        analyzer.open_run("firsst")


def test_readers_give_the_name_beside_each_id(tmp_path: Path) -> None:
    plain, residual = write_full_pair(tmp_path)
    run = analyzer.open_run(residual)
    for table, rows in (
        ("layers", run.layer_stats("output_gradient_norm")),
        ("parameters", run.parameter_stats("norm", steps=[0, 59])),
        ("joins", run.splits(steps=0)),
        ("joins", run.probe("lesion")),
        ("layers", run.probe("shattering")),
    ):
        key, static = table[:-1], getattr(run, table)
        names = dict(zip(static[key], static["name"], strict=True))
        assert len(rows) and list(rows["name"]) == [names[id_] for id_ in rows[key]]
    rows = run.layer_stats("output_gradient_norm", layers="stem", steps=3)
    assert list(rows.columns) == ["step", "layer", "name", "output_gradient_norm"]
    assert analyzer.open_run(plain).splits()["name"].tolist() == []


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    run = analyzer.open_run(write_full_pair(tmp_path)[1])
    for text in ("'residual'", "finished", "60 steps", "8 joins", "lesion"):
        assert text in repr(run)
    assert "<th>steps</th><td>60 steps</td>" in run._repr_html_()
    screen = Console(width=60, record=True, file=StringIO())
    screen.print(run)
    assert re.search(r"^steps +60 steps *$", screen.export_text(), re.M)
    hostile = tmp_path / "a<b>"
    write_run(hostile, [1.0], [[1.0]], status="failed", error="<script>")
    assert "<script>" not in analyzer.open_run(hostile)._repr_html_()


def test_a_probe_that_is_not_there_is_told_with_those_that_are_and_its_command(
    tmp_path: Path,
) -> None:
    run = opened(tmp_path / "mine")
    known = r"'nosuch' is no probe: run 'mine' has none, .*NAME` measures one: paths.*landscape"
    with pytest.raises(analyzer.NotRecordedError, match=known):
        run.probe("nosuch")
    full = analyzer.open_run(write_full_pair(tmp_path)[0])
    measured = (
        r"probe 'lesion' was not measured: run 'plain' has .*jacobian.* `analyzer probe plain"
    )
    with pytest.raises(analyzer.NotRecordedError, match=measured + " lesion` measures it"):
        full.probe("lesion")


def test_the_package_lists_its_public_names_alone() -> None:
    assert dir(analyzer) == sorted(analyzer.__all__)
