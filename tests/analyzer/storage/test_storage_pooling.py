import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analyzer.storage.run import Run, open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import Block, RunWriter
from tests.analyzer.storage.storage_rows import record, refuse_warnings, written


def two_ranks(path: Path, table: str, *ranks: dict[str, float | None], **columns: Any) -> Run:
    """A run in which each rank recorded one row of a table; columns it lacks are null."""
    for rank, cells in enumerate(ranks):
        known = [cells.get(name) for name in STAT_COLUMNS[table]]
        values = np.array([[math.nan if v is None else v for v in known]])
        present = np.array([[v is not None for v in known]])
        written(
            path, [record(0, Block(table, np.array([0]), values, present), **columns)], rank=rank
        )
    return open_run(path)


def only_row(frame: Any) -> dict[str, Any]:
    assert len(frame) == 1
    row: dict[str, Any] = frame.iloc[0].to_dict()
    return row


def test_activations_pool_as_one_batch(tmp_path: Path) -> None:
    batches = np.random.default_rng(0).normal(size=(2, 50)) * [[1.0], [3.0]] + [[0.0], [5.0]]
    ranks = [
        {
            "activation_norm": float(np.linalg.norm(x)),
            "activation_mean": float(x.mean()),
            "activation_std": float(x.std()),
            "activation_min": float(x.min()),
            "activation_max": float(x.max()),
        }
        for x in batches
    ]
    row = only_row(two_ranks(tmp_path / "a", "layer_stats", *ranks).layer_stats())
    assert row["activation_norm"] == pytest.approx(np.linalg.norm(batches), rel=1e-6)
    assert row["activation_mean"] == pytest.approx(batches.mean(), rel=1e-6)
    assert row["activation_std"] == pytest.approx(batches.std(), rel=1e-6)
    assert row["activation_min"] == pytest.approx(batches.min(), rel=1e-6)
    assert row["activation_max"] == pytest.approx(batches.max(), rel=1e-6)


def test_a_standard_deviation_alone_is_pooled_with_the_means(tmp_path: Path) -> None:
    ranks = [{"activation_mean": mean, "activation_std": 1.0} for mean in (-2.0, 2.0)]
    run = two_ranks(tmp_path / "a", "layer_stats", *ranks)
    frame = run.layer_stats("activation_std")
    assert frame.columns.tolist() == ["step", "layer", "activation_std"]
    assert frame["activation_std"][0] == pytest.approx(math.sqrt(5))


def test_output_gradients_are_those_of_the_mean_loss(tmp_path: Path) -> None:
    gradients = np.random.default_rng(1).normal(size=(2, 50))
    ranks = [
        {
            "output_gradient_norm": float(np.linalg.norm(g)),
            "output_gradient_mean_abs": float(np.abs(g).mean()),
            "output_gradient_max_abs": float(np.abs(g).max()),
            "output_gradient_num_nonfinite": 1.0 + rank,
        }
        for rank, g in enumerate(gradients)
    ]
    row = only_row(two_ranks(tmp_path / "a", "layer_stats", *ranks).layer_stats())
    whole = gradients / 2  # ∂(mean of two losses)/∂(output of one rank)
    assert row["output_gradient_norm"] == pytest.approx(np.linalg.norm(whole), rel=1e-6)
    assert row["output_gradient_mean_abs"] == pytest.approx(np.abs(whole).mean(), rel=1e-6)
    assert row["output_gradient_max_abs"] == pytest.approx(np.abs(whole).max(), rel=1e-6)
    assert row["output_gradient_num_nonfinite"] == 3


def test_splits_pool_by_their_dot_products(tmp_path: Path) -> None:
    s, b = np.random.default_rng(2).normal(size=(2, 2, 8)) * 1e-170
    ranks = [
        {
            "shortcut_gradient_norm": float(np.linalg.norm(s[r] * 1e170) * 1e-170),
            "branch_gradient_norm": float(np.linalg.norm(b[r] * 1e170) * 1e-170),
            "cosine": cosine_of(s[r], b[r]),
            "shortcut_share": 0.5,
        }
        for r in range(2)
    ]
    row = only_row(two_ranks(tmp_path / "a", "splits", *ranks).splits())
    flat_s, flat_b = s.ravel() * 1e170, b.ravel() * 1e170
    both = flat_s + flat_b
    assert row["cosine"] == pytest.approx(cosine_of(s.ravel(), b.ravel()))
    assert row["shortcut_share"] == pytest.approx(flat_s @ both / (both @ both))
    assert row["shortcut_gradient_norm"] == pytest.approx(np.linalg.norm(flat_s) * 1e-170 / 2)


def cosine_of(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_a_share_is_null_where_the_gradients_cancel(tmp_path: Path) -> None:
    cells = {"shortcut_gradient_norm": 1.0, "branch_gradient_norm": 1.0, "cosine": -1.0}
    run = two_ranks(tmp_path / "a", "splits", cells, cells)
    assert run.read("splits", "shortcut_share").column("shortcut_share").to_pylist() == [None]


@pytest.mark.parametrize(
    ("placement", "norm", "mean_abs", "num"),
    [("sharded", 5.0, 1.5, 3), ("replicated", 3.5, 1.5, 2)],
)
def test_shards_add_up_and_replicas_do_not(
    tmp_path: Path, placement: str, norm: float, mean_abs: float, num: int
) -> None:
    ranks = [
        {"gradient_norm": 3.0, "gradient_mean_abs": 1.0, "gradient_num_nonfinite": 1.0},
        {"gradient_norm": 4.0, "gradient_mean_abs": 2.0, "gradient_num_nonfinite": 2.0},
    ]
    path = tmp_path / "a"
    two_ranks(path, "parameter_stats", *ranks)
    writer = RunWriter(path, {}, attempt=9, warn=refuse_warnings)
    row = {"parameter": 0, "name": "w", "layer": 0, "shape": [4], "num_elements": 4}
    writer.write_parameters([{**row, "trained": True, "placement": placement}])
    writer.close("finished")
    pooled = only_row(open_run(path).parameter_stats())
    assert pooled["gradient_norm"] == pytest.approx(norm)
    assert pooled["gradient_mean_abs"] == pytest.approx(mean_abs)
    assert pooled["gradient_num_nonfinite"] == num
    assert math.isnan(pooled["update_norm"])


def test_a_nan_on_one_rank_is_a_nan_of_the_whole(tmp_path: Path) -> None:
    names = ("activation_norm", "activation_mean", "activation_min", "output_gradient_max_abs")
    good, bad = dict.fromkeys(names, 1.0), dict.fromkeys(names, math.nan)
    rows = two_ranks(tmp_path / "a", "layer_stats", good, bad).read("layer_stats", names)
    assert all(math.isnan(rows.column(name)[0].as_py()) for name in names)


def test_null_on_every_rank_stays_null_and_on_one_is_left_out(tmp_path: Path) -> None:
    run = two_ranks(tmp_path / "a", "layer_stats", {"activation_mean": 2.0}, {})
    rows = run.read("layer_stats", ["activation_mean", "activation_num_dead"])
    assert rows.column("activation_mean").to_pylist() == [2.0]
    assert rows.column("activation_num_dead").to_pylist() == [None]


def test_norms_pool_without_under_or_overflow(tmp_path: Path) -> None:
    for name, norm in (("small", 1e-300), ("large", 1e300)):
        ranks = [{"activation_norm": 3 * norm}, {"activation_norm": 4 * norm}]
        row = only_row(two_ranks(tmp_path / name, "layer_stats", *ranks).layer_stats())
        assert row["activation_norm"] == pytest.approx(5 * norm)


def test_steps_pool_to_the_mean_loss(tmp_path: Path) -> None:
    for rank, loss in enumerate((1.0, 4.0)):
        written(tmp_path / "a", [step_of(loss, rank)], rank=rank)
    run = open_run(tmp_path / "a")
    row = only_row(run.steps)
    assert (row["loss"], row["num_backward"], row["skipped"], row["note"]) == (2.5, 2, True, "r0")
    assert "rank" not in row
    assert run.raw_steps()["loss"].tolist() == [1.0, 4.0]
    assert run.raw_steps()["rank"].tolist() == [0, 1]


def step_of(loss: float, rank: int) -> Any:
    made = record(0, num_backward=2, skipped=True, note=f"r{rank}")
    return type(made)({**made.step, "loss": loss})


def test_raw_rows_are_those_of_each_rank(tmp_path: Path) -> None:
    ranks = [{"activation_mean": 1.0}, {"activation_mean": 2.0}]
    run = two_ranks(tmp_path / "a", "layer_stats", *ranks)
    raw = run.layer_stats("activation_mean", ranks="all")
    assert raw.columns.tolist() == ["step", "rank", "layer", "activation_mean"]
    assert raw[["rank", "activation_mean"]].to_numpy().tolist() == [[0, 1.0], [1, 2.0]]


def test_pooling_one_rank_changes_nothing(tmp_path: Path) -> None:
    run = two_ranks(tmp_path / "a", "layer_stats", {"output_gradient_norm": 3.0})
    assert run.layer_stats("output_gradient_norm")["output_gradient_norm"].tolist() == [3.0]
