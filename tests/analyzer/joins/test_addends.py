"""What joins add, against the same additions written out, however they are spelled."""

import math
import operator
from collections.abc import Callable

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.joins import products
from analyzer.joins.addends import Addends, JoinOutputs, statistics_of
from analyzer.joins.find import output_nodes, watched_forward
from analyzer.joins.plan import joins_in_graph
from analyzer.joins.trace import sequence_number
from tests.support import commands

COLUMNS = ["shortcut_output_norm", "branch_output_norm", "join_output_norm", "output_cosine"]
WIDTH = 6


def assigned(b: Tensor, x: Tensor) -> Tensor:
    b += x
    return b


# How z is made of x and b, and what shortcut and b add to it; in c nothing is learned, in d much.
SUMS: dict[str, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]] = {
    "x + b": (lambda x, b, c, d: x + b, lambda x, b, c, d: (x, b)),
    "b + x": (lambda x, b, c, d: b + x, lambda x, b, c, d: (x, b)),
    "b += x": (lambda x, b, c, d: assigned(b, x), lambda x, b, c, d: (x, b)),
    "add_": (lambda x, b, c, d: b.add_(x), lambda x, b, c, d: (x, b)),
    "x - b": (lambda x, b, c, d: x - b, lambda x, b, c, d: (x, -b)),
    "b - x": (lambda x, b, c, d: torch.sub(b, x, alpha=3), lambda x, b, c, d: (-3 * x, b)),
    "alpha": (lambda x, b, c, d: torch.add(x, b, alpha=0.5), lambda x, b, c, d: (x, 0.5 * b)),
    "keywords": (lambda x, b, c, d: torch.add(other=x, input=b), lambda x, b, c, d: (x, b)),
    "operator": (lambda x, b, c, d: operator.add(x, b), lambda x, b, c, d: (x, b)),
    "python's sum": (lambda x, b, c, d: sum([b, x]), lambda x, b, c, d: (x, b)),
    "lerp": (lambda x, b, c, d: torch.lerp(x, b, 0.25), lambda x, b, c, d: (0.75 * x, 0.25 * b)),
    "addcmul": (
        lambda x, b, c, d: torch.addcmul(x, b, torch.tensor(2.0, dtype=b.dtype), value=3),
        lambda x, b, c, d: (x, 6 * b),
    ),
    "scaled": (lambda x, b, c, d: 0.5 * x + 0.1 * b, lambda x, b, c, d: (0.5 * x, 0.1 * b)),
    "branch last": (lambda x, b, c, d: x + c + b, lambda x, b, c, d: (x + c, b)),
    "branch first": (lambda x, b, c, d: b + c + x, lambda x, b, c, d: (x + c, b)),
    "stacked": (lambda x, b, c, d: torch.stack([x, b]).sum(0), lambda x, b, c, d: (x, b)),
    "three stacked": (
        lambda x, b, c, d: torch.stack([c, x, b]).sum(0),
        lambda x, b, c, d: (x + c, b),
    ),
    "sum in a sum": (lambda x, b, c, d: x + (b + c), lambda x, b, c, d: (x + c, b)),
    "branch is a sum": (lambda x, b, c, d: x + (b + d), lambda x, b, c, d: (x, b + d)),
    "two branches": (lambda x, b, c, d: b + d + x, lambda x, b, c, d: (x, b + d)),
}


IN_SHORT = ("x + b", "b += x", "lerp", "branch first", "sum in a sum", "stacked")


class Block(nn.Module):
    """``z = x + b``, b a function of many parameters, c of none, d of some."""

    def __init__(self, add: Callable[..., Tensor]) -> None:
        super().__init__()
        self.wide, self.thin = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.small, self.add = nn.Linear(WIDTH, WIDTH, bias=False), add
        self.seen: tuple[Tensor, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        b, c, d = self.thin(torch.tanh(self.wide(x))), torch.sin(x), torch.sin(self.small(x))
        self.seen = tuple(tensor.detach().clone() for tensor in (x, b, c, d))
        return torch.tanh(self.add(x, b, c, d))


def net(add: Callable[..., Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, WIDTH), Block(add), Block(add), nn.Linear(WIDTH, 1))


def expected(s: Tensor, b: Tensor) -> list[float]:
    s, b = s.double(), b.double()
    cosine = (s * b).sum() / (s.norm() * b.norm())
    return [t.norm().item() for t in (s, b, s + b)] + [cosine.item()]


def mean(output: Tensor, _: object) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in SUMS),
        *((name, dtype) for name in IN_SHORT for dtype in (torch.float64, torch.bfloat16)),
    ],
)
def test_each_join_has_the_norms_of_what_it_adds(name: str, dtype: torch.dtype) -> None:
    add, parts = SUMS[name]
    model, x = net(add).to(dtype), torch.randn(5, 4, dtype=dtype)
    frame = analyzer.gradient_splits(model, x, None, mean)
    assert len(frame) >= 2
    blocks = frame.groupby(frame["join"] * 2 // len(frame)).last()  # of several in one the outer
    for block, (_, row) in zip(model[1:3], blocks.iterrows(), strict=True):
        tolerance = 1e-12 if dtype is torch.float64 else 1e-6 if dtype is torch.float32 else 2e-2
        assert block.seen is not None
        wanted = expected(*parts(*(t.double() for t in block.seen)))
        assert row[COLUMNS].tolist() == pytest.approx(wanted, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", IN_SHORT)
def test_a_recorded_training_has_them_at_each_split(name: str, tmp_path) -> None:
    add, parts = SUMS[name]
    model = net(add)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    wanted = []
    with analyzer.Recorder(model, tmp_path / "run", splits_every=2):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().mean().backward()
            wanted.append([expected(*parts(*block.seen)) for block in model[1:3]])
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert "not_recorded" not in run.manifest
    rows = run.splits()
    assert sorted(set(rows["step"])) == [0, 2, 4]
    for step in (0, 2, 4):
        at = rows[rows["step"] == step]
        found = at.groupby(at["join"] * 2 // len(at)).last()[COLUMNS].to_numpy()
        for one, other in zip(found.tolist(), wanted[step], strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in SUMS if "stacked" not in name])
def test_a_program_without_gradient_has_them_too(name: str, tmp_path) -> None:
    add, parts = SUMS[name]
    with analyzer.Recorder(None, tmp_path / "run"), torch.no_grad():
        model = net(add)
        model(torch.randn(5, 4))
    rows = analyzer.open_run(tmp_path / "run").splits()
    found = rows.groupby(rows["join"] * 2 // len(rows)).last()[COLUMNS].to_numpy()
    for block, values in zip(model[1:3], found.tolist(), strict=True):
        assert values == pytest.approx(expected(*parts(*block.seen)), rel=1e-5, abs=1e-6)


def test_micro_batches_are_pooled_as_one_batch(tmp_path) -> None:
    model = net(SUMS["x + b"][0])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(6, 4)
    whole = analyzer.gradient_splits(model, x, None, mean)[COLUMNS]
    with analyzer.Recorder(model, tmp_path / "run"):
        for part in x.split(2):
            model(part).square().mean().backward()
        optimizer.step()
    found = analyzer.open_run(tmp_path / "run").splits(steps=0)[COLUMNS]
    assert found.to_numpy() == pytest.approx(whole.to_numpy(), rel=1e-6)


def test_a_concatenation_has_norms_and_no_cosine() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.head = nn.Linear(4, 3), nn.Linear(7, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([x, self.branch(x)], dim=1))

    model, x = nn.Sequential(nn.Linear(4, 4), Dense()), torch.randn(5, 4)
    (row,) = analyzer.gradient_splits(model, x, None, mean)[COLUMNS].to_numpy().tolist()
    h = model[0](x)
    b = model[1].branch(h)
    assert row[:3] == pytest.approx([t.norm().item() for t in (h, b, torch.cat([h, b], 1))])
    assert pd.isna(row[3])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_nothing_vanishes_or_overflows(scale: float) -> None:
    model, x = net(lambda x, b, c, d: x + scale * b), torch.randn(5, 4)
    frame = analyzer.gradient_splits(model, x, None, lambda output, _: output.sum())
    row = frame[COLUMNS].iloc[0].tolist()
    assert row[1] == pytest.approx(scale * model[1].seen[1].double().norm().item(), rel=1e-5)
    assert (
        pd.isna(row[3])
        if scale == 0
        else row[3] == pytest.approx(expected(model[1].seen[0], model[1].seen[1])[3], rel=1e-4)
    )


def test_values_that_are_not_finite_are_shown() -> None:
    model, x = net(SUMS["x + b"][0]), torch.randn(5, 4)
    x[0, 0] = math.nan
    frame = analyzer.gradient_splits(model, x, None, mean)
    assert frame[COLUMNS].isna().all(axis=None)


def test_on_an_accelerator_the_numbers_are_made_there() -> None:
    values, factors = [torch.randn(4, 5), torch.randn(4, 5)], (1.0, -2.0)
    norms, dots = products._on_device(values, [(0, 1)])
    numbers = [float(n) * abs(f) for n, f in zip(norms, factors, strict=True)]
    numbers.append(float(dots[0]) * factors[0] * factors[1])
    assert numbers == pytest.approx(products.norms_and_dots(values, factors), rel=1e-6)


def test_later_passes_are_measured_at_their_joins_alone(tmp_path) -> None:
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(5, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.position

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, WIDTH), Position(), Block(SUMS["x + b"][0]))
    x = torch.randn(5, 4)
    output, log = watched_forward(model, (x,), {})
    plan = joins_in_graph(output_nodes(output), log)
    addends, counts = Addends(), []
    for _ in range(3):
        addends.forget()
        start = sequence_number()
        addends.begin()
        output = model(x)
        addends.end()
        outputs = addends.outputs(plan.sites(output_nodes(output)) or [])
        counts.append(sum(call.start >= start for call in addends._calls))
        wanted = expected(*SUMS["x + b"][1](*model[2].seen))
        assert [statistics_of(one) for one in outputs] == [pytest.approx(wanted, rel=1e-6)]
    assert counts == [2, 1, 1]
    assert isinstance(outputs[0], JoinOutputs)


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_joins_in_a_frozen_part_have_them_at_each_split(num_micro_batches, tmp_path) -> None:
    """Autograd has no graph there, and so no gradients; what is added is known all the same."""
    torch.manual_seed(0)
    add = SUMS["x + b"][0]
    stem = nn.Sequential(Block(add), Block(add)).requires_grad_(False)
    model = nn.Sequential(stem, nn.Linear(WIDTH, WIDTH), Block(add))
    optimizer = torch.optim.SGD(model[1:].parameters(), 0.1)
    blocks, expected = [*stem, model[2]], []
    with analyzer.Recorder(model, tmp_path / "run", splits_every=2):
        for _ in range(5):
            kept: list[list[tuple[Tensor, ...]]] = [[] for _ in blocks]
            for _ in range(num_micro_batches):
                output = model(torch.randn(3, WIDTH))
                for block, seen in zip(blocks, kept, strict=True):
                    seen.append((block.seen or ())[:2])
                output.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            expected.append(kept)
    splits = analyzer.open_run(tmp_path / "run").splits()
    assert splits["step"].tolist() == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert splits["join_gradient_norm"].isna().tolist() == [True, True, False] * 3
    for _, row in splits.iterrows():
        seen = expected[int(row["step"])][int(row["join"])]
        s, b = (torch.cat(side) for side in zip(*seen, strict=True))
        wanted = [s.norm().item(), b.norm().item(), (s + b).norm().item()]
        assert row[[f"{side}_output_norm" for side in ("shortcut", "branch", "join")]].tolist() == (
            pytest.approx(wanted, rel=1e-6)
        )


def test_a_function_that_is_compiled_is_not_compiled_once_more_for_it(tmp_path) -> None:
    # In a process of its own: what was compiled elsewhere would be counted, too.
    (tmp_path / "program.py").write_text(COMPILES)
    done = commands.run(tmp_path, "program.py")
    assert done.stdout.splitlines() == ["1 1 1", "[]", "True", "1"], done.stderr


COMPILES = """
import torch, analyzer
from torch import nn
from torch._dynamo.utils import counters

act = torch.compile(torch.sin, backend="eager")

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, x):
        self.seen = x, act(self.branch(x))
        return torch.add(*self.seen)

model = nn.Sequential(nn.Linear(4, 4), Block())
optimizer = torch.optim.SGD(model.parameters(), 0.1)
frames, expected = [], []
def train(steps):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        expected.append([tensor.norm().item() for tensor in model[1].seen])
    frames.append(counters["frames"]["total"])

with analyzer.Recorder(model, "run", splits_every=1):
    train(5)
x = torch.ones(2, 4)
assert len(analyzer.find_joins(model, x)) == 1
assert len(analyzer.gradient_splits(model, x, x, lambda output, target: output.sum())) == 1
frames.append(counters["frames"]["total"])
wanted = torch.tensor(expected).double()
train(1)
print(*frames)
run = analyzer.open_run("run")
print(run.manifest.get("not_recorded", []))
found = run.splits()[["shortcut_output_norm", "branch_output_norm"]].to_numpy()
print(torch.allclose(torch.tensor(found), wanted))
print(len(run.joins))
"""


def test_de_and_smith_a_block_writes_one_over_the_root_of_its_number(tmp_path) -> None:
    """With batch norm at initialization ‖b‖/‖s‖ at the l-th block is 1/√l.

    De and Smith (2020), Batch normalization biases residual blocks towards the identity function,
    section 3.
    """

    class Normed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = (nn.Linear(width, width, bias=False) for _ in range(2))
            self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))
            for linear in (self.first, self.second):
                nn.init.kaiming_normal_(linear.weight)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.norms[0](self.first(torch.relu(x))))
            return x + self.norms[1](self.second(h))

    torch.manual_seed(0)
    width, batch = 64, 256
    stem = nn.Sequential(nn.Linear(32, width), nn.BatchNorm1d(width))
    model = nn.Sequential(stem, *[Normed(width) for _ in range(64)], nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with analyzer.Recorder(model, tmp_path / "run", columns="norms"):
        model(torch.randn(batch, 32)).square().mean().backward()
        optimizer.step()
    rows = analyzer.open_run(tmp_path / "run").splits(steps=0)
    assert len(rows) == 64
    ratio = rows["branch_output_norm"] / rows["shortcut_output_norm"]
    roots = torch.arange(1, 65).double().sqrt().numpy()
    assert abs(ratio * roots - 1).max() < 0.1
