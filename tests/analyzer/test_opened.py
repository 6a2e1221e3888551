import sys
from pathlib import Path
from types import ModuleType

import pytest

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.opened import Run
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
