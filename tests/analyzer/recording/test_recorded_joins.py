"""Joins and splits of a recorded training, against the same questions asked of the live model."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.joins.addends import statistics_of
from analyzer.joins.backward import splits_of_model
from analyzer.joins.calls import tensors_in
from analyzer.joins.products import SPLIT_COLUMNS, JoinGradients, statistics_of_products
from analyzer.recording.split_rows import pooled_splits
from analyzer.storage.schema import STAT_COLUMNS
from tests.support.commands import command
from tests.support.families import FAMILIES, BasicBlock, Family


def wavy_loss(output, target=None):
    return sum((t * torch.arange(t.numel()).view_as(t).cos()).sum() for t in tensors_in(output))


def record(model, run, passes, **options):
    """Train by plain gradient descent; each step is a list of functions that return a loss."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    with analyzer.Recorder(model, run, splits_every=1, **options):
        for losses in passes:
            optimizer.zero_grad()
            for loss in losses:
                loss().backward()
            optimizer.step()
    return analyzer.open_run(run)


def residual_net(*blocks):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *blocks)


def test_the_rows_of_splits_have_the_order_of_the_schema():
    assert STAT_COLUMNS["splits"] == SPLIT_COLUMNS


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_training_shows_the_joins_and_splits_that_the_live_model_has(family: Family, tmp_path):
    torch.manual_seed(0)
    model = family.build().eval()
    inputs = family.inputs()
    expected = analyzer.find_joins(model, *inputs)
    with torch.no_grad():
        has_gradient = wavy_loss(model(*inputs)).dtype.is_floating_point
    assert has_gradient
    splits = splits_of_model(model, inputs, None, wavy_loss)
    run = record(model, tmp_path / "run", [[lambda: wavy_loss(model(*inputs))]] * 2)

    names = ["name", "operation", "shortcut", "branch_parameters", "shortcut_parameters"]
    assert run.manifest["num_joins"] == len(expected)
    found = run.joins
    for name in names:
        assert found[name].tolist() == [getattr(join, name) for join in expected]
    for side in ("branch_layers", "shortcut_layers"):
        assert [list(v) for v in found[side]] == [getattr(join, side) for join in expected]
    assert {str(found[name].dtype) for name in names[3:]} == {"int64"}
    recorded = run.splits(steps=[0])
    assert recorded["join"].tolist() == list(range(len(expected)))
    assert recorded["join"].dtype == "int32"
    for column in SPLIT_COLUMNS:
        for mine, live in zip(recorded[column], splits[column], strict=True):
            if mine is None or (isinstance(mine, float) and math.isnan(mine)):
                continue  # the training's backward stops where nothing wants a gradient
            assert mine == pytest.approx(live, rel=1e-5, abs=1e-9)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_roles_and_innermost_joins_are_written_into_layers(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), BasicBlock(4, 8, 2))
    x = torch.randn(2, 3, 8, 8)
    run = record(model, tmp_path / "run", [[lambda: wavy_loss(model(x))]])
    roles = run.layers.set_index("name")["role"]
    branch, shortcut = run.joins["branch_layers"][0], run.joins["shortcut_layers"][0]
    assert len(branch) >= 2
    assert len(shortcut) >= 1
    assert all(roles[name] == "branch" for name in branch)
    assert all(roles[name] == "shortcut" for name in shortcut)
    assert roles.isna()["0"]
    assert set(run.layers["join"].dropna()) == {0}


def test_splits_are_taken_at_the_steps_that_were_asked_for(tmp_path):
    model, x = residual_net(BasicBlock(4, 4)), torch.randn(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with analyzer.Recorder(model, tmp_path / "run", every=2, splits_every=3):
        for _ in range(14):
            optimizer.zero_grad()
            wavy_loss(model(x)).backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.splits()["step"].tolist() == [0, 6, 12]


def test_weights_are_bit_identical_with_splits(tmp_path):
    torch.manual_seed(0)
    model, x = residual_net(BasicBlock(4, 8, 2), BasicBlock(8, 8)), torch.randn(2, 3, 8, 8)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        wavy_loss(twin(x)).backward()
        optimizer.step()
    record(model, tmp_path / "run", [[lambda: wavy_loss(model(x))]] * 4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    )


def test_micro_batches_are_split_as_one_batch(tmp_path):
    torch.manual_seed(0)
    model = residual_net(BasicBlock(4, 4)).eval()  # batch norm would mix the samples of a batch
    halves = [torch.randn(3, 3, 6, 6), torch.randn(3, 3, 6, 6)]
    whole = torch.cat(halves)
    weights = torch.randn(6, 4, 6, 6)

    def loss(x, rows):
        return (model(x) * weights[rows]).sum()

    expected = analyzer.gradient_splits(
        model, whole, None, lambda output, _: (output * weights).sum()
    )
    run = record(
        model,
        tmp_path / "run",
        [[lambda: loss(halves[0], slice(0, 3)), lambda: loss(halves[1], slice(3, 6))]],
    )
    recorded = run.splits()
    for column in ("join_gradient_norm", "shortcut_share", "cosine", "branch_gradient_norm"):
        assert recorded[column][0] == pytest.approx(expected[column][0], rel=1e-5)


def test_a_second_pass_over_a_kept_graph_adds_to_the_first(tmp_path):
    torch.manual_seed(0)
    model, x = residual_net(BasicBlock(4, 4)).double(), torch.randn(2, 3, 8, 8).double()
    expected = analyzer.gradient_splits(
        model, x, None, lambda output, _: wavy_loss(output) + output.square().sum()
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with analyzer.Recorder(model, tmp_path / "run", splits_every=1):
        output = model(x)
        wavy_loss(output).backward(retain_graph=True)
        output.square().sum().backward()
        optimizer.step()
    recorded = analyzer.open_run(tmp_path / "run").splits()
    for column in SPLIT_COLUMNS:
        assert recorded[column][0] == pytest.approx(expected[column][0], rel=1e-12)


class Dropped(nn.Module):
    """A residual block that is left out of the passes in which its switch is off."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.is_on = True

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.is_on else x


def test_a_graph_that_changes_is_found_again_and_joins_keep_their_numbers(tmp_path):
    model, x = residual_net(Dropped(), Dropped(), Dropped()), torch.randn(2, 3, 4, 4)
    patterns = [(1, 0, 1), (1, 1, 1), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)]

    def loss(pattern):
        for block, is_on in zip(model[1:], pattern, strict=True):
            block.is_on = bool(is_on)
        return wavy_loss(model(x))

    run = record(model, tmp_path / "run", [[lambda p=p: loss(p)] for p in patterns])
    names = run.joins.set_index("join")["name"]
    seen = {
        step: sorted(names[join] for join in rows["join"])
        for step, rows in run.splits().groupby("step")
    }
    for step, pattern in enumerate(patterns):
        assert seen[step] == [str(i + 1) for i, on in enumerate(pattern) if on]


def test_a_graph_that_is_the_same_again_is_not_watched(tmp_path, monkeypatch):
    from analyzer.recording import splits

    opened = []
    monkeypatch.setattr(splits, "LiveLog", lambda *args: opened.append(1) or LiveLog(*args))
    from analyzer.recording.live_log import LiveLog

    model, x = residual_net(BasicBlock(4, 4)), torch.randn(2, 3, 8, 8)
    run = record(model, tmp_path / "run", [[lambda: wavy_loss(model(x))]] * 6)
    assert len(opened) == 1
    assert run.splits()["step"].nunique() == 6


def test_a_validation_that_keeps_its_graphs_leaves_no_trace_in_the_names(tmp_path):
    torch.manual_seed(0)
    model, x = residual_net(BasicBlock(4, 4)), torch.randn(2, 3, 8, 8)

    def train_after_validation():
        for _ in range(3):
            model(x)
        return wavy_loss(model(x))

    run = record(model, tmp_path / "run", [[train_after_validation]])
    layers = set(run.layers["name"])
    assert not any("#" in name for name in layers - {"1.relu#1"})
    assert all(set(names) <= layers for names in run.joins["branch_layers"])
    assert len(run.splits()) == 1


def test_checkpointed_modules_are_named_in_the_manifest(tmp_path):
    from torch.utils.checkpoint import checkpoint

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), BasicBlock(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, self.stem(x), use_reentrant=True)

    model, x = Outer(), torch.randn(2, 3, 8, 8)
    run = record(model, tmp_path / "run", [[lambda: wavy_loss(model(x))]])
    hidden = "reentrant checkpointing hides what it computes"
    assert run.manifest["not_recorded"] == [f"joins and edges of Outer: {hidden}"]


def test_an_error_while_joins_are_read_ends_the_joins_and_nothing_else(tmp_path, monkeypatch):
    from analyzer.recording import splits

    def broken(*args):
        raise RuntimeError("no such graph")

    monkeypatch.setattr(splits, "joins_in_graph", broken)
    model, x = residual_net(BasicBlock(4, 4)), torch.randn(2, 3, 8, 8)
    run = record(model, tmp_path / "run", [[lambda: wavy_loss(model(x))]] * 3)
    assert len(run.steps) == 3
    assert len(run.layers) > 3
    assert any("no such graph" in sentence for sentence in run.manifest["not_recorded"])


SCRIPT = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
    def forward(self, *, x, scale=1.0):
        return x + self.second(torch.relu(self.first(x))) * scale
torch.manual_seed(0)
student, critic = Block(), Block()
optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (student, critic)]
for step in range(3):
    for model, optimizer in zip((student, critic), optimizers):
        optimizer.zero_grad()
        model(x=torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
"""


def test_joins_of_a_script_are_found_though_inputs_are_keywords_and_forks(tmp_path):
    (tmp_path / "two.py").write_text(SCRIPT)
    command(tmp_path, "record", "--run", "run", "--splits-every", "1", "two.py")
    run = analyzer.open_run(Path(tmp_path / "run"))
    assert run.joins["name"].tolist() == ["student", "critic"]
    assert [list(names) for names in run.joins["branch_layers"]] == [
        ["student.first", "student.second"],
        ["critic.first", "critic.second"],
    ]
    # The fork is the input, which wants no gradient: what arrives at the join is all there is.
    assert run.splits()["join_gradient_norm"].notna().all()
    assert run.splits()["shortcut_gradient_norm"].isna().all()


def test_pooled_splits_of_opposed_micro_batches_do_not_cancel():
    one = [1.0, 3.0, 4.0, 5.0, 9.0, 0.0, 16.0]
    # The same gradients in other units and with both sides opposed: (s, b) = (0.6, -0.6).
    other = [2.0, 0.6, 0.6, 0.0, 1.0, -1.0, 1.0]
    gradients = JoinGradients((), (), (), ())
    rows = [
        [*statistics_of_products(gradients, products), *statistics_of(None)]
        for products in (one, other)
    ]
    block = pooled_splits([3, 3], rows)
    assert block.ids.tolist() == [3]
    row = block.values[0]
    ss, sb, bb = 9.36, -0.36, 16.36
    assert row[:4] == pytest.approx([5**0.5, ss**0.5, bb**0.5, 5.0])
    assert row[4] == pytest.approx(sb / (ss * bb) ** 0.5)
    assert row[5] == pytest.approx((ss + sb) / (ss + 2 * sb + bb))


def test_models_that_take_turns_are_all_found_at_the_default_interval(tmp_path):
    (tmp_path / "two.py").write_text(SCRIPT)
    command(tmp_path, "record", "--run", "run", "two.py")
    assert analyzer.open_run(tmp_path / "run").joins["name"].tolist() == ["student", "critic"]
