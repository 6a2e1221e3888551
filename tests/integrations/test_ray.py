"""A study on a Ray cluster of this machine: the same points, with the results of local workers."""

from pathlib import Path

import pytest

from analyzer.options import RecordOptions
from analyzer.studies.plan import Plan, product
from analyzer.studies.ray_cluster import RayCluster
from analyzer.studies.running import run_study

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
