"""The data flow between layers, against what was written by hand and against a slow twin."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from analyzer import Recorder, open_run
from analyzer.networks.zoo import zoo
from analyzer.opened import Run

ARCHIVES = Path(__file__).parents[2] / "archives"
Edges = set[tuple[str, str]]


def recorded(model: nn.Module, folder: Path, *inputs: Any, steps: int = 1, **options: Any) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, folder / "run", **options):
        for _ in range(steps):
            model(*inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return open_run(folder / "run")


def edges(run: Run) -> Edges:
    found = run.edges
    return set(zip(found["source_name"], found["target_name"], strict=True))


def linears(*names: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in names})


class Net(nn.Module):
    """Layers by name, and a function of them and the inputs."""

    def __init__(self, parts: nn.ModuleDict, compute: Callable[..., Tensor]) -> None:
        super().__init__()
        self.parts = parts
        self.compute = compute

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.compute(self.parts, *inputs)


class Scaled(nn.Module):
    """A layer, since it has a parameter of its own, around another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.scale


def residual(p: Any, x: Tensor) -> Tensor:
    x = p.stem(x)
    return p.head(torch.relu(x + p.b(torch.relu(p.a(x)))))


def concatenated(p: Any, x: Tensor) -> Tensor:
    one, other = p.a(x), p.b(x)
    return torch.cat([one, p.c(torch.cat([one, other])[:3]), other])


def two_inputs(p: Any, words: Tensor, x: Tensor) -> Tensor:
    places = p.places(torch.arange(3))
    return p.head(p.words(words) + places + p.stem(x))


def shared(p: Any, x: Tensor) -> Tensor:
    return p.a(p.b(p.a(x)))


def identity(p: Any, x: Tensor) -> Tensor:
    x = p.stem(x)
    return p.head(p.a(x) + p.id(x))


def written_into(p: Any, x: Tensor) -> Tensor:
    x = p.a(x)
    x[:, 1] = p.b(x.detach() * 0 + 1)[:, 1]
    return p.c(x)


TRUTHS: dict[str, tuple[nn.ModuleDict, Callable[..., Tensor], Edges]] = {
    "residual": (
        linears("stem", "a", "b", "head"),
        residual,
        {("input", "stem"), ("stem", "a"), ("a", "b"), ("stem", "head"), ("b", "head")},
    ),
    "concat": (
        linears("a", "b", "c"),
        concatenated,
        {("input", "a"), ("input", "b"), ("a", "c"), ("b", "c")},
    ),
    "shared": (
        linears("a", "b"),
        shared,
        {("input", "a"), ("a", "b"), ("b", "a#1")},
    ),
    "identity": (
        nn.ModuleDict({**linears("stem", "a", "head"), "id": nn.Identity()}),
        identity,
        {("input", "stem"), ("stem", "a"), ("stem", "id"), ("a", "head"), ("id", "head")},
    ),
    # A branch that was cut off comes from nowhere.
    "written into": (
        linears("a", "b", "c"),
        written_into,
        {("input", "a"), ("a", "c"), ("b", "c")},
    ),
}
TRUTHS["identity"][0].update({**linears("stem", "a", "head"), "id": nn.Identity()})


@pytest.mark.parametrize("name", TRUTHS)
def test_edges_are_those_written_by_hand(tmp_path: Path, name: str) -> None:
    parts, compute, truth = TRUTHS[name]
    run = recorded(Net(parts, compute), tmp_path, torch.randn(3, 4))
    assert {tuple(end.removeprefix("parts.") for end in edge) for edge in edges(run)} == truth
    assert "not_recorded" not in run.manifest


def test_numbers_and_what_comes_from_no_input(tmp_path: Path) -> None:
    parts = linears("stem", "head")
    parts.update({"words": nn.Embedding(9, 4), "places": nn.Embedding(3, 4)})
    run = recorded(Net(parts, two_inputs), tmp_path, torch.tensor([1, 2, 8]), torch.randn(3, 4))
    truth = {("input", "words"), ("input", "stem")}
    truth |= {(name, "head") for name in ("words", "places", "stem")}
    assert {tuple(end.removeprefix("parts.") for end in edge) for edge in edges(run)} == truth


def test_a_sequence_and_a_layer_around_a_layer(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Scaled(), nn.ReLU(), nn.Linear(4, 2))
    run = recorded(model, tmp_path, torch.randn(3, 4))
    chain = ["input", "0", "1.inner", "1", "2", "3"]
    assert edges(run) == set(pairwise(chain))
    assert list(run.edges) == ["source", "source_name", "target", "target_name"]
    assert run.edges["source"].min() == -1 and str(run.edges["target"].dtype) == "int32"


def test_a_frozen_stem_and_one_without_gradient(tmp_path: Path) -> None:
    frozen = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).requires_grad_(False)
    model = nn.Sequential(frozen, nn.Linear(4, 2))
    run = recorded(model, tmp_path, torch.randn(3, 4))
    assert edges(run) == {("input", "0.0"), ("0.0", "0.1"), ("0.1", "0.2"), ("0.2", "1")}

    def without(p: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = p.a(x)
        return p.b(x)

    (tmp_path / "other").mkdir()
    run = recorded(Net(linears("a", "b"), without), tmp_path / "other", torch.randn(3, 4))
    assert edges(run) == {("input", "parts.b")}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_hide_edges_with_a_sentence_or_not_at_all(
    tmp_path: Path, reentrant: bool
) -> None:
    def compute(p: Any, x: Tensor) -> Tensor:
        return p.c(checkpoint(p.b, p.a(x), use_reentrant=reentrant))

    model = Net(linears("a", "b", "c"), compute)
    run = recorded(model, tmp_path, torch.randn(3, 4))
    seen = {("input", "parts.a")}
    whole = seen | {("parts.a", "parts.b"), ("parts.b", "parts.c")}
    assert edges(run) == (seen if reentrant else whole)
    said = [text for text in run.manifest.get("not_recorded", []) if "edges of Net" in text]
    assert bool(said) == reentrant


def test_compiled_code_hides_edges_with_a_sentence(tmp_path: Path) -> None:
    model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
    run = recorded(model, tmp_path, torch.randn(3, 4))
    assert run.edges.empty
    assert any("edges of Sequential: compiled" in text for text in run.manifest["not_recorded"])


def test_graphs_that_change_add_to_the_edges_and_later_calls_share_a_row(tmp_path: Path) -> None:
    def compute(p: Any, x: Tensor) -> Tensor:
        used = p.a if compute.step % 2 else p.b  # type: ignore[attr-defined]
        compute.step += 1  # type: ignore[attr-defined]
        for _ in range(4):
            x = p.cell(x)
        return p.head(used(x))

    compute.step = 0  # type: ignore[attr-defined]
    model = Net(linears("a", "b", "cell", "head"), compute)
    run = recorded(model, tmp_path, torch.randn(3, 4), steps=3, max_calls=2)
    chain = ["input", "cell", "cell#1", "cell#rest"]
    truth = set(pairwise(chain))
    truth |= {("cell#rest", "a"), ("cell#rest", "b"), ("a", "head"), ("b", "head")}
    assert {tuple(end.removeprefix("parts.") for end in edge) for edge in edges(run)} == truth


def by_intervention(model: nn.Module, x: Tensor, names: list[str]) -> Edges:
    """What changes at each layer where the output of one alone is another, all others held."""
    layers = {name: model.get_submodule(name) for name in names}
    held: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}

    def run(source: str | None, given: Tensor) -> dict[str, Tensor]:
        def hook(name: str) -> Callable[..., Tensor | None]:
            def replace(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
                seen[name] = output.detach().clone()
                if not held:
                    return None
                return held[name] + (torch.rand_like(output) + 1 if name == source else 0)

            return replace

        handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
        with torch.no_grad():
            model(given)
        for handle in handles:
            handle.remove()
        return dict(seen)

    clean = run(None, x)
    held.update(clean)
    found = {
        (source, name)
        for source in names
        for name, output in run(source, x).items()
        if name != source and not torch.equal(output, clean[name])
    }
    changed = run(None, x + torch.rand_like(x))
    return found | {("input", n) for n in names if not torch.equal(changed[n], clean[n])}


class Attention(nn.Module):
    """A block of a transformer with its norms in front."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norms[1](x))


def test_edges_are_what_an_intervention_changes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Attention(), nn.Linear(8, 8), nn.Tanh()).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    run = recorded(model, tmp_path, x)
    names = run.layers["name"].tolist()
    assert len(names) == 10
    assert edges(run) == by_intervention(model, x, names)


def test_a_whole_residual_network_by_intervention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo("resnet8", in_channels=3, num_classes=10, image_size=8).eval()
    x = torch.rand(2, 3, 8, 8)
    run = recorded(model, tmp_path, x)
    calls = run.layers[run.layers["call"] == 0]
    # Of a module that is called twice the twin knows the last call alone.
    assert len(calls) > 12
    found = {edge for edge in edges(run) if "#" not in edge[0] + edge[1]}
    names = [n for n in calls["name"] if f"{n}#1" not in set(run.layers["name"])]
    assert {e for e in found if {*e} <= {*names, "input"}} == by_intervention(model, x, names)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_run_of_an_earlier_layout_has_no_edges(version: str) -> None:
    (folder,) = [path.parent for path in (ARCHIVES / version).glob("*/run.json")][:1]
    assert not (folder / "edges.parquet").exists()
    run = open_run(folder)
    assert run.edges.empty
    assert list(run.edges) == ["source", "source_name", "target", "target_name"]
    assert run.warnings == []
