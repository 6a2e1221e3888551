import math
from pathlib import Path

import numpy as np
import pytest

from analyzer.storage.run import Run, open_run
from analyzer.storage.schema import SCHEMA_VERSION

ARCHIVES = Path(__file__).parents[2] / "archives"
RUNS = sorted(path.parent for path in ARCHIVES.glob("v*/*/run.json"))


@pytest.fixture(params=RUNS, ids=lambda path: f"{path.parent.name}-{path.name}")
def run(request: pytest.FixtureRequest) -> Run:
    return open_run(request.param)


def test_there_is_an_archive_of_every_version() -> None:
    assert {path.parent.name for path in RUNS} == {f"v{n + 1}" for n in range(SCHEMA_VERSION)}


def test_an_archived_run_opens_without_a_warning(run: Run) -> None:
    for table in ("steps", "layer_stats", "parameter_stats", "splits"):
        assert run.read(table).num_rows > 0
    for frame in (run.layers, run.parameters, run.joins):
        assert len(frame) > 0
    for probe in run.probes:
        assert len(run.probe(probe)) > 0
    assert run.warnings == []


def test_archived_numbers_are_what_they_were(run: Run) -> None:
    assert run.steps["loss"].tolist()[:2] == [2.0, 1.0]
    assert math.isnan(run.steps["loss"][2])
    assert run.read("steps", "loss").column("loss").null_count == 1
    norms = run.layer_stats("output_gradient_norm", layers="layers.1")["output_gradient_norm"]
    assert norms.tolist() == [0.25, 0.5, math.inf, 1.0]
    assert run.splits("block", steps=-1)["shortcut_share"].tolist() == [1.0]
    assert run.joins["branch_layers"].tolist() == [["layers.1"]]
    assert run.probe("paths")["num_paths"].tolist() == [1.0, 1.0]
    assert run.status == "finished"


FORWARD = ("shortcut_output_norm", "branch_output_norm", "join_output_norm", "output_cosine")


def test_the_forward_columns_of_splits_are_null_in_version_1_and_there_since() -> None:
    old, new = (open_run(ARCHIVES / version / "tiny") for version in ("v1", "v2"))
    rows = old.read("splits", FORWARD)
    assert [rows.column(name).null_count for name in FORWARD] == [4] * 4
    assert old.splits()[list(FORWARD)].isna().all(axis=None)
    assert new.splits(steps=0)[list(FORWARD)].to_numpy().tolist() == [[7.0, 8.0, 9.0, 10.0]]
    for name in FORWARD:
        grid, seen = old.grid(name), old.series(name, "block")
        assert np.isnan(grid.values).all() and np.isnan(seen.mean).all()
        assert np.isfinite(new.grid(name).values).any()
        assert np.isnan(old.profile(name, 0)[1]).all()
    assert new.probe("counterfactual")["output_gradient_norm"].tolist() == [0.5, 0.125]
    assert new.probe("lesion")["shortcut_loss"].tolist() == [6.0]


def test_archived_overview_is_read_as_it_was_written() -> None:
    seen = open_run(ARCHIVES / "v1" / "tiny").series("output_gradient_norm", "layers.1")
    assert seen.mean[[0, 1, 3]].tolist() == [0.25, 0.5, 1.0]
    assert seen.num_nonfinite.tolist() == [0, 0, 1, 0]
