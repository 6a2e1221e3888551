"""The modules of a network and the data flow between them: what is shown, opened and closed."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from analyzer.analysis.network import Network, network
from analyzer.analysis.network_view import NetworkView, network_view
from analyzer.analysis.view import View
from analyzer.errors import NotRecordedError
from analyzer.storage.run import Run, open_run
from tests.support.full_run import write_empty_run, write_network_run
from tests.support.runs import layer_row, write_run


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("network")
    return open_run(write_network_run(folder / "run", has_shortcuts=True, blocks=4, probes=False))


def viewed(run: Run, *opened: str, closed: tuple[str, ...] = (), **asked: Any) -> NetworkView:
    return network_view(network(run), View((run,), **asked), opened, closed)


def chain(run: Path, names: list[str]) -> Run:
    """A run whose layers read one another in turn."""
    layers = [layer_row(k, name) for k, name in enumerate(names)]
    edges = [{"source": s, "target": t} for s, t in pairwise(range(-1, len(names)))]
    norms = [[float(k + 1) for k in range(len(names))]]
    write_run(run, [1.0], norms, layers=layers, edges=edges)
    return open_run(run)


def test_joins_read_the_branch_and_what_is_before_it(residual: Run) -> None:
    whole = Network(residual)
    assert set(whole.joins) == {"+0", "+1", "+2", "+3"}
    into = {target: {s for s, t in whole.edges if t == target} for _, target in whole.edges}
    assert into["+0"] == {"layer1.0.relu2", "stem"}
    assert into["+1"] == {"layer1.1.relu2", "+0"}
    # A projection: the layer on the shortcut is read, not the fork.
    assert into["+2"] == {"layer2.0.relu2", "layer2.0.downsample"}
    assert into["head"] == {"+3"} and into["stem"] == {"input"}
    assert whole.joins["+1"] == (1, frozenset({"+0"}))
    assert whole.boxes["+1"].parent is whole.boxes["layer1.1"]


def test_a_closed_box_stands_for_its_layers(residual: Run) -> None:
    view = viewed(residual, closed=("layer1", "layer2"))
    assert [box.key for box in view.boxes] == ["input", "stem", "layer1", "layer2", "head"]
    ends = [(source, target) for source, target, _ in view.edges]
    assert sorted(ends) == sorted(pairwise(["input", "stem", "layer1", "layer2", "head"]))
    values = residual.read("layer_stats", "output_gradient_norm", steps=-1).to_pylist()
    names = {row["layer"]: row["name"] for row in residual.static_rows("layers").to_pylist()}
    inside = sorted(
        row["output_gradient_norm"] for row in values if names[row["layer"]].startswith("layer1.")
    )
    middle = (inside[len(inside) // 2] + inside[(len(inside) - 1) // 2]) / 2
    assert view.values["layer1"] == pytest.approx(middle)
    assert view.table()["layers"].tolist() == [0, 1, 8, 9, 1]


def test_open_boxes_show_shortcuts_with_their_share(residual: Run) -> None:
    view = viewed(residual, "layer1", "layer1.0", closed=("layer2", "layer1.1"))
    keys = {box.key for box in view.boxes}
    assert {"layer1.0.fc1", "layer1.0.relu2", "+0", "layer1.1", "layer2"} <= keys
    assert "layer1.1.fc1" not in keys and "+1" not in keys
    assert ("stem", "+0", 0) in view.edges and ("layer1.0.relu2", "+0", None) in view.edges
    share = residual.profile("shortcut_share", residual.nearest_step(None, "splits") or 0)[1][0]
    assert view.shares[0] == pytest.approx(share)


@pytest.mark.parametrize("names", [
    [str(k) for k in range(1000)],
    [f"stages.{k // 100}.blocks.{k // 10 % 10}.layers.{k % 10}" for k in range(1000)],
    ["a" * 200 + str(k) for k in range(40)],
])  # fmt: skip
def test_a_thousand_layers_fit_and_every_one_can_be_reached(
    tmp_path: Path, names: list[str]
) -> None:
    run = chain(tmp_path / "run", names)
    whole = network(run)
    view = network_view(whole, View((run,)), (), ())
    shut = [box for box in view.boxes if box.key not in view.is_open]
    assert len(shut) <= 61
    assert sorted(layer for box in shut for layer in box.layers) == list(range(len(names)))
    # What flows into what is a chain still.
    targets = [target for _, target, _ in view.edges]
    assert len(targets) == len(set(targets)) == len(shut) - 1
    around = []
    box = whole.boxes[names[777 % len(names)]]
    while box.parent is not None:
        box = box.parent
        around.append(box.key)
        assert len(box.children) <= 32
    reached = network_view(whole, View((run,)), around, ())
    assert names[777 % len(names)] in {box.key for box in reached.boxes}


def test_parameters_color_the_layers_that_use_them_and_nan_is_told_from_null(
    tmp_path: Path,
) -> None:
    run = open_run(write_network_run(tmp_path / "run", has_shortcuts=False, blocks=2, nan_from=30))
    view = viewed(run, step=10, quantity="gradient_norm")
    assert view.values["stem"] > 0 and not view.broken
    assert "layer1.0.relu1" not in view.broken  # it has no parameter
    assert "stem" in viewed(run, step=50).broken
    assert "not finite in" in viewed(run, step=50).caption


def test_without_edges_boxes_stand_alone_and_the_caption_says_so(tmp_path: Path) -> None:
    layers = [layer_row(0, "a"), layer_row(1, "b")]
    run = open_run(write_run(tmp_path / "run", [1.0], [[1.0, 2.0]], layers=layers))
    view = viewed(run)
    assert view.edges == [] and "The data flow was not recorded" in view.caption
    empty = tmp_path / "empty"
    write_empty_run(empty)
    with pytest.raises(NotRecordedError, match="no layer was recorded in run 'empty'"):
        network(open_run(empty))
