"""Several ranks write into one folder: what a reader makes of their rows and of what they say."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.launch import Rank
from analyzer.storage.run import Run, open_run
from analyzer.storage.run_json import losses, read_manifest
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter
from tests.analyzer.storage.storage_rows import record, refuse_warnings


def layer(number: int, name: str) -> dict[str, Any]:
    constant = {"call": 0, "kind": "Linear", "depth": 1, "num_parameters": 2, "output_shape": [2]}
    return {"layer": number, "name": name, "module": name, **constant}


def block(ids: Sequence[int], norm: float) -> Block:
    values = np.full((len(ids), len(STAT_COLUMNS["layer_stats"])), norm)
    return Block("layer_stats", np.array(ids, dtype=np.int32), values, None)


def rank_of(
    path: Path, number: int, attempt: int = 0, warn: Callable[[str], None] = refuse_warnings
) -> RunWriter:
    place = Rank(path, number, attempt, world_size=2)
    if number == 0:
        place.leads()
    return RunWriter(path, {"data_parallel_ranks": 2}, rank=place, warn=warn)


def both(path: Path, steps: Sequence[int], names: Sequence[str], attempt: int = 0) -> Run:
    """Two ranks that have made so many steps, rank 1 with its layers in another order."""
    for number, count in enumerate(steps):
        writer = rank_of(path, number, attempt)
        own = list(names) if number == 0 else [*reversed(names), "only1"]
        writer.write_layers([layer(place, name) for place, name in enumerate(own)])
        writer.write_edges([{"source": -1, "target": 0}, {"source": 0, "target": 1}])
        for step in range(count):
            ids = range(len(own))
            writer.add(lambda step=step, ids=ids, n=number: record(step, block(ids, 3.0 + n)))
        writer.close("finished")
    return open_run(path)


def test_layers_that_ranks_met_in_another_order_are_told_by_name(tmp_path: Path) -> None:
    run = both(tmp_path / "a", (2, 2), ["one", "two"])
    assert run.layers["name"].tolist() == ["one", "two", "only1"]
    rows = run.layer_stats("output_gradient_norm", steps=0)
    # Two ranks, or one of them: the gradient of the mean over both.
    assert rows["output_gradient_norm"].tolist() == pytest.approx([2.5, 2.5, 2.0])
    raw = run.layer_stats("activation_norm", layers="two", steps=0, ranks="all")
    assert raw[["rank", "layer", "activation_norm"]].to_numpy().tolist() == [[0, 1, 3], [1, 1, 4]]
    assert run.layer_stats("activation_norm", layers="only1", ranks="all")["rank"].unique() == [1]
    # Rank 1 says: an input to "two", and "two" to "one".
    edges = [(-1, 0), (-1, 1), (0, 1), (1, 0)]
    assert (
        sorted(map(tuple, zip(*run.static_rows("edges").to_pydict().values(), strict=True)))
        == edges
    )
    assert run.warnings == []


def test_a_step_without_a_row_of_a_rank_is_null(tmp_path: Path) -> None:
    run = both(tmp_path / "a", (3, 2), ["one"])
    norms = run.layer_stats("activation_norm", layers="one")["activation_norm"].tolist()
    assert norms[:2] == [5.0, 5.0] and math.isnan(norms[2])
    assert run.steps["loss"].isna().tolist() == [False, False, True]
    assert len(run.layer_stats(layers="one", steps=2, ranks="all")) == 1


def test_the_overview_shows_pooled_values(tmp_path: Path) -> None:
    run = both(tmp_path / "a", (4, 4), ["one"])
    assert run.series("activation_norm", "one").mean.tolist() == [5.0] * 4
    assert run.grid("activation_norm").values[0].tolist() == [5.0] * 4
    assert run.profile("activation_norm", -1)[1][0] == 5.0


def test_the_newest_attempt_has_the_steps_that_it_went_over_again(tmp_path: Path) -> None:
    both(tmp_path / "a", (4, 4), ["one"])
    run = both(tmp_path / "a", (2, 2), ["zero", "one"], attempt=1)
    assert run.manifest["attempt"] == 1
    assert run.layers["name"].tolist() == ["one", "only1", "zero"]
    assert run.layer_stats("activation_norm", layers="one")["step"].tolist() == [0, 1, 2, 3]
    assert run.layer_stats("activation_norm", layers="zero")["step"].tolist() == [0, 1]
    assert run.raw_steps().groupby(["attempt", "rank"]).size().tolist() == [4, 4, 2, 2]


def test_each_rank_says_what_it_lost_and_how_it_ended(tmp_path: Path) -> None:
    path, said = tmp_path / "a", list[str]()
    first, other = rank_of(path, 0), rank_of(path, 1, warn=said.append)
    first.add(lambda: record(0, block([0], 1.0)))
    other.add(lambda: record(0, block([0], 1.0)))
    other.add(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    first.write_layers([layer(0, "one")])
    other.update_manifest(not_recorded=["this and that"])
    first.close("finished", steps=1)
    other.close("finished", steps=2)
    assert "ZeroDivisionError" in said[0]
    manifest = read_manifest(path)
    assert [(rank["rank"], rank["lost_steps"]) for rank in manifest["ranks"]] == [(0, None), (1, 1)]
    assert "rank 1: 1 of 2 steps are on disk, 1 were lost" in losses(manifest)
    assert manifest["status"] == "failed" and manifest["error"].startswith("rank 1: not all was")
    assert manifest["not_recorded"] == ["rank 1: this and that"]
