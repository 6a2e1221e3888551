"""Layers inside of compiled code: the values of eager code, and nothing more to compile."""

import gc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import analyzer
from analyzer.recording import compiled
from analyzer.storage.run import Run, open_run

# torch's compiler itself looks at `.grad` of the intermediate tensor that it is given.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # inductor's own
]

KINDS = ("whole", "inplace", "sub", "subwrap", "step", "leaf", "dyn", "full")
COUNTED = ("frames", "stats", "recompiles", "graph_break", "unimplemented")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)  # has no parameter that tells which block runs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.relu(self.a(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(6, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        for block in self.blocks:
            x = block(x)
        return self.o(x)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.w, (x @ self.v).tanh()


class Awkward(nn.Module):
    """Layers called twice, with two outputs, with their output changed in place, and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.pair, self.same, self.relu = Pair(), nn.Identity(), nn.ReLU()
        self.norm, self.o = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.pair(self.relu(self.frozen(x)))
        one = self.same(one)
        one.add_(1.0)
        return self.o(self.relu(self.norm(one + 2 * other)))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(6, 6), nn.Linear(6, 3)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.o(checkpoint(self.body, self.i(x), use_reentrant=False))


class CheckpointedBlocks(Net):
    """Blocks that are compiled, each inside of a checkpoint that is not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.o(x)


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.relu, self.o = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        torch._dynamo.graph_break()
        return self.o(self.relu(x))


class Training:
    """A model, compiled in one of the ways that there are, and its steps."""

    def __init__(self, build: Callable[[], nn.Module], kind: str, backend: Any) -> None:
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        self.model = called = build()
        how: dict[str, Any] = {"backend": backend}
        how |= {"dynamic": True} if kind == "dyn" else {}
        how |= {"fullgraph": True} if kind == "full" else {}
        if kind == "inplace":
            called.compile(**how)
        elif kind == "sub":
            for block in called.blocks:
                block.compile(**how)
        elif kind == "subwrap":
            called.blocks = nn.ModuleList(torch.compile(block, **how) for block in called.blocks)
        elif kind == "leaf":
            called.i.compile(**how)
            called.o.compile(**how)
        elif kind not in ("eager", "step"):
            called = torch.compile(called, **how)

        def loss_of(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(called(x), y)

        self.loss_of = torch.compile(loss_of, **how) if kind == "step" else loss_of
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)

    def batch(self, rows: int = 8) -> tuple[Tensor, Tensor]:
        return torch.randn(rows, 6), torch.randint(0, 3, (rows,))

    def train(self) -> None:
        """Three steps: one of two batches, and one after a forward pass that has no backward."""
        for step in range(3):
            loss = self.loss_of(*self.batch())
            other = self.loss_of(*self.batch(8 if step < 2 else 12))
            with torch.no_grad():
                self.loss_of(*self.batch())
            self.optimizer.zero_grad()
            (loss + other if step == 1 else loss).backward()
            self.optimizer.step()


def recorded(training: Training, folder: Path, **options: Any) -> Run:
    with analyzer.Recorder(training.model, folder, **options):
        training.train()
    return open_run(folder)


def values(run: Run) -> Any:
    """The statistics of layers by step and name."""
    rows = run.layer_stats().drop(columns=["name", "rank"], errors="ignore")
    rows = rows.merge(run.layers[["layer", "name"]], on="layer").drop(columns="layer")
    return rows.set_index(["step", "name"]).sort_index().astype(float)


def counted() -> dict[str, Any]:
    return {name: dict(counters[name]) for name in COUNTED if counters[name]}


def without_joins(run: Run) -> list[str]:
    said = run.manifest.get("not_recorded") or []
    return [sentence for sentence in said if not sentence.startswith("joins and edges of ")]


def agrees_with_eager(build: Callable[[], nn.Module], kind: str, backend: str, at: Path) -> None:
    """Counters are those of an unrecorded training; values those of an eager one, within 1e-4."""
    alone = Training(build, kind, backend)
    alone.train()
    expected = counted()
    eager = values(recorded(Training(build, "eager", None), at / "eager"))
    training = Training(build, kind, backend)
    run = recorded(training, at / "run")
    assert counted() == expected
    for one, other in zip(alone.model.parameters(), training.model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
    found = values(run)
    assert found.index.tolist() == eager.index.tolist()
    assert (found.isna() == eager.isna()).all(axis=None)
    is_close = (found - eager).abs() <= 1e-4 * eager.abs() + 1e-6
    assert (is_close | eager.isna()).all(axis=None)
    assert without_joins(run) == []


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # The first compilation of a process also looks at code that it then leaves alone for good.
    Training(Net, "whole", "aot_eager").train()
    yield
    torch.set_num_threads(before)
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow if k in ("subwrap", "leaf") else ()) for k in KINDS],
)
def test_layers_inside_of_compiled_code_have_the_values_of_eager_code(tmp_path, kind, backend):
    agrees_with_eager(Net, kind, backend, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("build", [Awkward, Checkpointed, Broken])
def test_so_have_they_with_inductor(tmp_path, build):
    agrees_with_eager(build, "whole", "inductor", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_so_has_each_kind_with_inductor(tmp_path, kind):
    agrees_with_eager(Net, kind, "inductor", tmp_path)


@pytest.mark.parametrize(
    ("build", "backend"),
    [
        (Awkward, "aot_eager"),
        (Checkpointed, "eager"),
        (Broken, "eager"),
        pytest.param(Awkward, "eager", marks=pytest.mark.slow),
        pytest.param(Checkpointed, "aot_eager", marks=pytest.mark.slow),
        pytest.param(Broken, "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_layers_that_are_not_like_others(tmp_path, build, backend):
    agrees_with_eager(build, "whole", backend, tmp_path)


@pytest.mark.parametrize("kind", ["sub", pytest.param("subwrap", marks=pytest.mark.slow)])
def test_compiled_blocks_that_are_computed_again(tmp_path, kind):
    agrees_with_eager(CheckpointedBlocks, kind, "aot_eager", tmp_path)


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
def test_a_transform_in_a_compiled_function_goes_on_as_it_was(tmp_path, backend):
    def train(folder: Path | None) -> list[Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Net()
        weights = dict(model.named_parameters())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)

        def loss_of(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(model, weights, (x,)).square().mean()

        gradient_of = torch.compile(torch.func.grad(loss_of), backend=backend)
        with analyzer.Recorder(model, folder) if folder else nullcontext():
            for _ in range(2):
                for name, gradient in gradient_of(weights, torch.randn(4, 6)).items():
                    weights[name].grad = gradient
                optimizer.step()
        return [weight.detach().clone() for weight in weights.values()]

    for one, other in zip(train(None), train(tmp_path / "run"), strict=True):
        assert torch.equal(one, other)
    run = open_run(tmp_path / "run")
    assert len(run.parameter_stats()) == 2 * len(run.parameters)
    assert "compiled inside of a transform of torch.func" in " ".join(without_joins(run))


def test_a_compiled_step_with_its_backward_pass_inside(tmp_path):
    def train(folder: Path | None) -> dict[str, Any]:
        training = Training(Net, "eager", None)

        def step(x: Tensor, y: Tensor) -> None:
            training.optimizer.zero_grad()
            training.loss_of(x, y).backward()
            training.optimizer.step()

        compiled_step = torch.compile(step, backend="aot_eager")
        with analyzer.Recorder(training.model, folder) if folder else nullcontext():
            for _ in range(3):
                compiled_step(*training.batch())
        return counted()

    alone, found = train(None), train(tmp_path / "run")
    # That of a function of torch that does nothing, before the hooks of optimizers, is inlined.
    assert 0 <= alone.pop("frames")["total"] - found.pop("frames")["total"] <= 1
    assert found == alone
    run = open_run(tmp_path / "run")
    assert len(run.steps) == 3
    assert run.layer_stats()["output_gradient_norm"].notna().all()
    assert len(run.layer_stats()) == 3 * 8


def test_depths_go_through_compiled_blocks(tmp_path):
    eager = recorded(Training(Net, "eager", None), tmp_path / "eager").layers
    run = recorded(Training(Net, "sub", "aot_eager"), tmp_path / "run").layers
    assert run[["name", "depth"]].values.tolist() == eager[["name", "depth"]].values.tolist()


def test_nothing_is_compiled_again_when_a_recording_begins_or_ends(tmp_path):
    training = Training(Net, "whole", "aot_eager")
    for _ in range(2):
        training.train()
    before = counted()
    run = recorded(training, tmp_path / "before")
    training.train()
    assert counted() == before
    assert len(run.layers) == 0
    assert len(run.parameter_stats()) == 3 * len(run.parameters)
    (said,) = without_joins(run)
    assert "not called as modules (compiled before the recording began" in said
    training = Training(Net, "whole", "aot_eager")
    run = recorded(training, tmp_path / "within")
    training.train()
    before = counted()
    training.train()
    assert counted() == before
    again = recorded(training, tmp_path / "again")  # by what the graph got in the first recording
    assert counted() == before
    assert len(again.layers) == len(run.layers) > 0


def test_one_graph_of_two_models_is_told_apart(tmp_path):
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) - self.other(x)

    def train(model: Twins, call: Callable[[Block, Tensor], Tensor]) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            x = torch.randn(4, 6)
            (call(model.other, x) - 3 * call(model.one, x)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    found = []
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = Twins()
        call = lambda block, x: block(x)  # noqa: E731
        with analyzer.Recorder(model, tmp_path / name):
            train(model, torch.compile(call, backend="aot_eager") if name == "compiled" else call)
        found.append(values(open_run(tmp_path / name)))
    assert found[0].index.tolist() == found[1].index.tolist()
    assert (found[0] - found[1]).abs().max(axis=None) < 1e-5


def test_a_backend_of_the_program_gets_its_own_graphs(tmp_path):
    seen = []

    def mine(graph, inputs):
        seen.append(graph.code)
        return graph.forward

    run = recorded(Training(Net, "whole", mine), tmp_path / "run")
    assert seen and "analyzer" not in "".join(seen)
    reason = "they are compiled by the backend mine, whose graphs are left as they are"
    assert without_joins(run) == [f"layers of i, o, blocks.0.a, blocks.0.b and 2 more: {reason}"]


def test_a_compiled_function_inside_of_an_eager_model(tmp_path):
    class WithFunction(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 6).requires_grad_(False)
            self.body, self.o = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(add(self.body, self.stem(x)))

    def plain(body: nn.Module, x: Tensor) -> Tensor:
        return x + body(x)

    found = []
    for kind in ("unrecorded", "compiled", "eager"):
        training = Training(WithFunction, "eager", None)
        add = plain if kind == "eager" else torch.compile(plain, backend="aot_eager")
        if kind == "unrecorded":
            training.train()
            expected = counted()
            continue
        found.append(values(recorded(training, tmp_path / kind)))
        if kind == "compiled":
            assert counted() == expected
    assert found[0].index.tolist() == found[1].index.tolist()
    assert (found[0] - found[1]).abs().max(axis=None) < 1e-5


def test_what_a_graph_holds_goes_away_with_it(tmp_path):
    training = Training(Net, "whole", "aot_eager")
    with analyzer.Recorder(training.model, tmp_path / "run"):
        training.train()
        loss = training.loss_of(*training.batch())
        held = len(compiled._calls)
        del loss
        gc.collect()
        assert held >= 8 > len(compiled._calls)


def test_steps_that_are_not_recorded_are_trained_alike(tmp_path):
    runs = [
        recorded(Training(Net, kind, "aot_eager"), tmp_path / kind, every=2)
        for kind in ("eager", "whole")
    ]
    assert [values(run).index.get_level_values("step").unique().tolist() for run in runs] == [
        [0, 2],
        [0, 2],
    ]
