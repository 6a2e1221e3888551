import math
from pathlib import Path

import pytest

from analyzer.storage.run import Run, open_run

ARCHIVES = Path(__file__).parents[2] / "archives"
RUNS = sorted(path.parent for path in ARCHIVES.glob("v*/*/run.json"))


@pytest.fixture(params=RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def run(request: pytest.FixtureRequest) -> Run:
    return open_run(request.param)


def test_there_is_an_archive_of_every_version() -> None:
    assert {path.parent.name for path in RUNS} == {"v1"}


def test_an_archived_run_opens_without_a_warning(run: Run) -> None:
    for table in ("steps", "layer_stats", "parameter_stats", "splits"):
        assert run.read(table).num_rows > 0
    for frame in (run.layers, run.parameters, run.joins):
        assert len(frame) > 0
    for probe in run.probes:
        assert len(run.probe(probe)) > 0
    assert run.warnings == []


def test_archived_numbers_are_what_they_were() -> None:
    run = open_run(ARCHIVES / "v1" / "tiny")
    assert run.steps["loss"].tolist()[:2] == [2.0, 1.0]
    assert math.isnan(run.steps["loss"][2])
    assert run.read("steps", "loss").column("loss").null_count == 1
    norms = run.layer_stats("output_gradient_norm", layers="layers.1")["output_gradient_norm"]
    assert norms.tolist() == [0.25, 0.5, math.inf, 1.0]
    assert run.splits("block", steps=-1)["shortcut_share"].tolist() == [1.0]
    assert run.joins["branch_layers"].tolist() == [["layers.1"]]
    assert run.probe("paths")["num_paths"].tolist() == [1.0, 1.0]
    assert run.status == "finished"


def test_archived_overview_is_read_as_it_was_written() -> None:
    seen = open_run(ARCHIVES / "v1" / "tiny").series("output_gradient_norm", "layers.1")
    assert seen.mean[[0, 1, 3]].tolist() == [0.25, 0.5, 1.0]
    assert seen.num_nonfinite.tolist() == [0, 0, 1, 0]
