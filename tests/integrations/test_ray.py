"""A study on a Ray cluster of this machine: the same points, with the results of local workers."""

from pathlib import Path

import pytest

import analyzer
from analyzer.options import RecordOptions
from analyzer.storage.study import open_study
from analyzer.studies.plan import Plan, product
from analyzer.studies.ray_cluster import RayCluster
from analyzer.studies.running import run_study
from tests.support.commands import run

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("default")


def plan() -> Plan:
    options = RecordOptions(steps=6, batch_size=16)
    return product("zoo:simple", depth=[2], shortcuts=["on", "off"], options=options)


def test_a_study_on_one_node_has_the_results_of_local_workers(tmp_path: Path) -> None:
    here = run_study(plan(), tmp_path / "here", workers=1, threads=1)
    cluster = RayCluster("auto", cpus=1)
    there = run_study(plan(), tmp_path / "there", runner=lambda _: cluster)
    assert not ray.is_initialized()
    assert [point.status for point in there.points] == ["finished"] * 2
    for point in here.points:
        losses = [study.run(point.name).steps["loss"].tolist() for study in (here, there)]
        assert losses[0] == losses[1]


def test_a_point_whose_program_fails_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build_model(depth):\n    raise ValueError('no net')\n")
    options = RecordOptions(steps=2)
    cluster = RayCluster("auto", cpus=1)
    target = str(tmp_path / "model.py")
    study = run_study(
        product(target, depth=[2], options=options), tmp_path / "s", runner=lambda _: cluster
    )
    assert [point.status for point in study.points] == ["failed"]
    assert "no net" in (study.points[0].error or "")


def test_tasks_that_help_with_a_landscape_leave_its_values_alone(tmp_path: Path) -> None:
    record = ("-m", "analyzer", "record", "--quiet", "--steps", "3", "--run", "mine", "zoo:simple2")
    assert run(tmp_path, *record).returncode == 0
    words = ("-m", "analyzer", "probe", "mine", "landscape", "--mode", "exact", "--grid", "31")
    assert run(tmp_path, *words).returncode == 0
    alone = analyzer.open_run(tmp_path / "mine").probe("landscape")
    done = run(tmp_path, *words, "--overwrite", "--ray", "auto", "--workers", "1")
    assert done.returncode == 0, done.stderr
    both = analyzer.open_run(tmp_path / "mine").probe("landscape")
    assert both["loss"].tolist() == alone["loss"].tolist()
    left = list((tmp_path / "mine/probes/landscape").iterdir())
    assert [file.suffix for file in left] == [".parquet"]


def test_a_study_at_a_url_is_run_on_a_cluster(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ANALYZER_CACHE", str(tmp_path / "copies"))
    url = f"file://{tmp_path}/bucket/study"
    (tmp_path / "bucket").mkdir()
    cluster = RayCluster("auto", cpus=1, url=url)
    there = run_study(plan(), Path(url), runner=lambda _: cluster)
    assert [point.status for point in there.points] == ["finished"] * 2
    found = open_study(tmp_path / "bucket/study")
    assert [point.status for point in found.points] == ["finished"] * 2
    for point in found.points:
        assert len(found.run(point.name).steps) == 6
