"""One function in every way that torch offers: the same joins, splits, spectra and twins."""

from collections.abc import Callable
from functools import reduce

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import analyzer
from analyzer.errors import AnalyzerError

Way = Callable[[Tensor, Tensor], Tensor]
ROWS = torch.arange(16)


def in_place(x: Tensor, b: Tensor) -> Tensor:
    total = x.clone()
    total += b
    return total


def assigned(x: Tensor, b: Tensor) -> Tensor:
    total = x.clone()
    total[:] += b
    return total


# `x + b`, b a branch of x; inputs are [16, 8].
WAYS: dict[str, Way] = {
    "x + b": lambda x, b: x + b,
    "torch.add alpha": lambda x, b: torch.add(x, b, alpha=1),
    "add_": lambda x, b: x.clone().add_(b),
    "stack.sum": lambda x, b: torch.stack([x, b]).sum(0),
    "stack.mean * 2": lambda x, b: torch.stack([x, b]).mean(0) * 2,
    "sum([...])": lambda x, b: sum([x, b]),
    "cat, view, sum": lambda x, b: torch.cat([x[None], b[None]]).sum(0),
    "einsum": lambda x, b: torch.einsum("kbd->bd", torch.stack([x, b])),
    "x - (-b)": lambda x, b: x - (-b),
    "__rsub__": lambda x, b: b.__rsub__(x) + 2 * b,
    "addcmul": lambda x, b: torch.addcmul(x, b, torch.ones(())),
    "lerp": lambda x, b: 2 * torch.lerp(x, b, 0.5),
    "hypot": lambda x, b: torch.hypot(x, x * 0) * x.sign() + b,
    # Others that torch offers.
    "+=": in_place,
    "[:] +=": assigned,
    "rsub": lambda x, b: torch.rsub(-b, x),
    "addcdiv": lambda x, b: torch.addcdiv(x, b, torch.ones(())),
    "addmm": lambda x, b: torch.addmm(x, b, torch.eye(8)),
    "baddbmm": lambda x, b: torch.baddbmm(x[None], b[None], torch.eye(8)[None])[0],
    "addbmm": lambda x, b: torch.addbmm(x, b[None], torch.eye(8)[None]),
    "index_add": lambda x, b: torch.index_add(x, 0, ROWS, b),
    "scatter_add": lambda x, b: x.scatter_add(0, ROWS[:, None].expand(16, 8), b),
    "scatter_reduce": lambda x, b: x.scatter_reduce(0, ROWS[:, None].expand(16, 8), b, "sum"),
    "index_put": lambda x, b: x.index_put((ROWS,), b, accumulate=True),
    "put": lambda x, b: x.put(torch.arange(128).view(16, 8), b, accumulate=True),
    "cumsum": lambda x, b: torch.stack([x, b]).cumsum(0)[-1],
    "nansum": lambda x, b: torch.stack([x, b], 1).nansum(1),
    "matmul": lambda x, b: torch.stack([x, b], -1) @ torch.ones(2),
    "linear": lambda x, b: functional.linear(torch.stack([x, b], 2), torch.ones(1, 2)).squeeze(2),
    "tensordot": lambda x, b: torch.tensordot(torch.ones(2), torch.stack([x, b]), 1),
    "inner": lambda x, b: torch.inner(torch.stack([x, b], -1), torch.ones(2)),
    "weights in einsum": lambda x, b: torch.einsum("k,kbd->bd", torch.ones(2), torch.stack([x, b])),
    "bmm": lambda x, b: torch.bmm(torch.ones(16, 1, 2), torch.stack([x, b], 1))[:, 0],
    "product and sum": lambda x, b: (torch.stack([x, b]) * torch.ones(2, 1, 1)).sum(0),
    "hstack, view, sum": lambda x, b: torch.hstack([x, b]).view(16, 2, 8).sum(1),
    "unflatten": lambda x, b: torch.cat([x, b], 1).unflatten(1, (2, 8)).sum(1),
    "movedim": lambda x, b: torch.stack([x, b]).movedim(0, -1).sum(-1),
    "flatten": lambda x, b: torch.stack([x, b]).flatten(1).sum(0).view_as(x),
    "keepdim": lambda x, b: torch.dstack([x, b]).sum(2, keepdim=True)[..., 0],
    "vecdot": lambda x, b: torch.linalg.vecdot(torch.ones(2), torch.stack([x, b], -1)),
    "two means": lambda x, b: torch.stack([x, b]).mean(0) + torch.stack([x, b]).mean(0),
    "sub alpha": lambda x, b: torch.sub(x, b, alpha=-1),
    "FloatFunctional": torch.ao.nn.quantized.FloatFunctional().add,
    "vmap": torch.func.vmap(torch.add),
    "reduce": lambda x, b: reduce(torch.add, [x, b]),
    "unbind": lambda x, b: sum(torch.stack([x, b], 1).unbind(1)),
    "elements": lambda x, b: (lambda s: s[0] + s[1])(torch.stack([x, b])),
    "iterated": lambda x, b: sum(part for part in torch.stack([x, b])),
    "unpacked": lambda x, b: torch.add(*torch.stack([x, b])),
    "sum start": lambda x, b: sum([b], start=x),
    "einsum by lists": lambda x, b: torch.einsum(torch.stack([x, b]), [0, 1, 2], [1, 2]),
    "index_add_": lambda x, b: x.clone().index_add_(0, ROWS, b),
    "addmv": lambda x, b: torch.addmv(x.flatten(), torch.eye(128), b.flatten()).view(16, 8),
    "into zeros": lambda x, b: torch.zeros(16, 8).add_(x).add_(b),
    "diff": lambda x, b: torch.diff(torch.stack([-x, b]), dim=0)[0],
    "slices": lambda x, b: (lambda s: s[:1] + s[1:])(torch.stack([x, b]))[0],
    "dispatcher": lambda x, b: torch.ops.aten.add.Tensor(x, b),
}


class Block(nn.Module):
    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way, self.f = way, nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x, self.f(x))


def net(way: Way) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8), Block(way), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(16, 8), torch.randint(0, 3, (16,))


def output_and_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    output = model(x)
    return [output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("name", WAYS)
def test_a_sum_is_one_join_however_it_is_written(name: str) -> None:
    model, plus, (x, y) = net(WAYS[name]), net(WAYS["x + b"]), batch()
    loss = functional.cross_entropy
    (join,) = analyzer.find_joins(model, x)
    assert (join.name, join.operation, join.num_operands) == ("1", "add", 2)
    assert (join.branch_layers, join.shortcut_layers) == (["1.f.0", "1.f.1"], [])
    assert (join.branch_parameters, join.shortcut_parameters) == (72, 0)

    columns = ["shortcut_gradient_norm", "branch_gradient_norm", "fork_gradient_norm"]
    columns += ["cosine", "shortcut_share"]
    found, truth = (analyzer.gradient_splits(m, x, y, loss).loc[0, columns] for m in (model, plus))
    assert found.tolist() == pytest.approx(truth.tolist(), rel=1e-5)
    found, truth = (analyzer.path_spectrum(m, x, y, loss)["share"] for m in (model, plus))
    assert found.tolist() == pytest.approx(truth.tolist(), rel=1e-5)

    with analyzer.skip_scale(model, 0.0):
        without = output_and_gradients(model, x)
    assert all(map(torch.equal, without, output_and_gradients(net(lambda x, b: b), x)))
    lesion = analyzer.lesion_study(model, x, y, loss)
    expected = loss(net(lambda x, b: x)(x), y).item()
    assert lesion["loss"].tolist() == pytest.approx([expected], rel=1e-6)


def test_a_part_of_a_stack_is_added_and_another_read_elsewhere() -> None:
    def way(x: Tensor, b: Tensor) -> Tensor:
        stack = torch.stack([x, b, b.sin()])
        return (stack[0] + stack[1]) * stack[2].square().mean()

    (x, y), loss, model = batch(), functional.cross_entropy, net(way).double()
    fork = model[0](x.double())
    s, b = fork * 1, fork * 1
    value = loss(model[2](way(s, model[1].f(b))), y)
    truth = [g.norm().item() for g in torch.autograd.grad(value, [fork, s, b])]
    (row,) = analyzer.gradient_splits(model, x.double(), y, loss).to_dict("records")
    found = [row[f"{side}_gradient_norm"] for side in ("fork", "shortcut", "branch")]
    assert found == pytest.approx(truth, rel=1e-12)


Mix = Callable[[Tensor, list[Tensor]], Tensor]

# Each block reads a mix of all that came before it (attention residuals, DenseFormer).
MIXES: dict[str, Mix] = {
    "python sum": lambda w, h: sum(w[i] * h[i] for i in range(len(h))),
    "reversed sum": lambda w, h: reduce(torch.add, [w[i] * h[i] for i in range(len(h))][::-1]),
    "stack, weighted sum": lambda w, h: (w.view(-1, 1, 1) * torch.stack(h)).sum(0),
    "einsum": lambda w, h: torch.einsum("i,ibd->bd", w, torch.stack(h)),
    "tensordot": lambda w, h: torch.tensordot(w, torch.stack(h), 1),
    "matmul": lambda w, h: torch.stack(h, -1) @ w,
    "concatenated": lambda w, h: (torch.cat([x[None] for x in h]) * w[:, None, None]).sum(0),
}


class Mixing(nn.Module):
    """Blocks that read mixes; of all earlier mixes, or of the outputs of all earlier blocks."""

    def __init__(self, mix: Mix, *, of_outputs: bool = False, is_plain: bool = False) -> None:
        super().__init__()
        self.mix, self.of_outputs, self.is_plain = mix, of_outputs, is_plain
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(5))
        self.weights = nn.ParameterList(torch.full((i + 2,), 1 / (i + 2)) for i in range(5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen, h = [x], x
        for branch, weights in zip(self.branches, self.weights, strict=True):
            new = branch(h)
            h = weights[-1] * new if self.is_plain else self.mix(weights, [*seen, new])
            seen.append(new if self.of_outputs else h)
        return self.head(h)


def mixing(mix: Mix, **options: bool) -> Mixing:
    torch.manual_seed(1)
    return Mixing(mix, **options)


@pytest.mark.parametrize("of_outputs", [False, True], ids=["mixes", "outputs"])
@pytest.mark.parametrize("name", MIXES)
def test_a_mix_of_all_that_came_before_is_one_join_a_block(name: str, of_outputs: bool) -> None:
    model = mixing(MIXES[name], of_outputs=of_outputs)
    first = mixing(MIXES["einsum"], of_outputs=of_outputs)
    plain, (x, y) = mixing(MIXES[name], is_plain=True), batch()
    joins = analyzer.find_joins(model, x)
    assert [join.num_operands for join in joins] == [2, 3, 4, 5, 6]
    assert [join.shortcut for join in joins] == ["scaled"] * 5
    assert [join.branch_layers for join in joins] == [
        [f"branches.{i}.0", f"branches.{i}.1"] for i in range(5)
    ]
    loss = functional.cross_entropy
    found, truth = (analyzer.gradient_splits(m, x, y, loss) for m in (model, first))
    for column in ("shortcut_gradient_norm", "branch_gradient_norm", "shortcut_share"):
        assert found[column].tolist() == pytest.approx(truth[column].tolist(), rel=1e-4)
    found, truth = (analyzer.path_spectrum(m, x, y, loss)["share"] for m in (model, first))
    assert found.tolist() == pytest.approx(truth.tolist(), abs=1e-5)
    with analyzer.skip_scale(model, 0.0):
        without = output_and_gradients(model, x)
    expected = output_and_gradients(plain, x)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(without, expected, strict=True))
    assert torch.equal(without[0], expected[0]) or name in ("einsum", "tensordot", "matmul")


def test_splits_of_a_mix_are_what_autograd_gives_for_each_side_alone() -> None:
    """The fork of a mix is the nearest tensor that another operand is, or comes from."""
    model, (x, y) = mixing(MIXES["einsum"]).double(), batch()
    splits = analyzer.gradient_splits(model, x.double(), y, functional.cross_entropy)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    h = [x.double().requires_grad_()]
    for branch, w in zip(model.branches, model.weights, strict=True):
        fork, shortcut, read = h[-1], h[-1] * 1, h[-1] * 1
        kept.append((fork, shortcut, read))
        h.append(sum(w[i] * t for i, t in enumerate([*h[:-1], shortcut, branch(read)])))
    loss = functional.cross_entropy(model.head(h[-1]), y)
    for place, tensors in enumerate(kept):
        norms = [g.norm().item() for g in torch.autograd.grad(loss, tensors, retain_graph=True)]
        columns = [f"{side}_gradient_norm" for side in ("fork", "shortcut", "branch")]
        assert splits.loc[place, columns].tolist() == pytest.approx(norms, rel=1e-12)


# The weights of a mix, computed from what is mixed: `[batch, blocks]`.
Weigh = Callable[[Tensor, list[Tensor]], Tensor]
WEIGHTS: dict[str, Weigh] = {
    "scores of a stack": lambda q, h: (torch.stack(h, 1) @ q).softmax(1),
    "scores apart": lambda q, h: torch.stack([x @ q for x in h], 1).softmax(1),
}
ATTENDED: dict[str, Mix] = {
    "python sum": lambda w, h: sum(w[:, k, None] * x for k, x in enumerate(h)),
    "unbind": lambda w, h: sum(a[:, None] * x for a, x in zip(w.unbind(1), h, strict=True)),
    "stack": lambda w, h: (w[..., None] * torch.stack(h, 1)).sum(1),
    "einsum": lambda w, h: torch.einsum("bk,bkd->bd", w, torch.stack(h, 1)),
    "bmm": lambda w, h: (w[:, None] @ torch.stack(h, 1))[:, 0],
}
ONE_STACK: dict[str, Mix] = {
    "stack": lambda w, h: (w[..., None] * h).sum(1),
    "einsum": lambda w, h: torch.einsum("bk,bkd->bd", w, h),
    "bmm": lambda w, h: (w[:, None] @ h)[:, 0],
}


class Attending(nn.Module):
    """Attention residuals: each block reads an attention over the outputs of all earlier ones.

    With `kept`, the forks of the joins, and copies of them that shortcut and branch read.
    """

    def __init__(self, weigh: Weigh | None, mix: Mix) -> None:
        super().__init__()
        self.weigh, self.mix = weigh, mix
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
        self.queries = nn.ParameterList(torch.randn(8) for _ in range(4))
        self.kept: list[list[Tensor]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.embed(x)]
        h = self.copies(seen[0])[1]
        for number, (branch, q) in enumerate(zip(self.branches, self.queries, strict=True)):
            seen.append(branch(h))
            if self.weigh is None:
                stack = torch.stack(seen, 1)
                h = self.mix((stack @ q).softmax(1), stack)
                continue
            values, scores = [*seen], [*seen]
            if self.kept is not None:
                newest = self.copies(seen[-1])[1]
                values[-2:] = self.kept[number][1], newest
                scores[-2:] = self.kept[number][2], newest
            h = self.mix(self.weigh(q, scores), values)
        return self.head(h)

    def copies(self, fork: Tensor) -> list[Tensor]:
        if self.kept is None:
            return [fork, fork]
        self.kept.append([fork, fork.view_as(fork), fork.view_as(fork)])
        return self.kept[-1][::2]


def attending(weigh: Weigh | None, mix: Mix) -> Attending:
    torch.manual_seed(1)
    return Attending(weigh, mix).double()


def test_attention_over_earlier_outputs_is_one_join_a_block_however_it_is_written() -> None:
    (x, y), loss = batch(), functional.cross_entropy
    true = attending(WEIGHTS["scores apart"], ATTENDED["python sum"])
    true.kept = []
    value = loss(true(x.double()), y)
    norms = [
        [g.norm().item() for g in torch.autograd.grad(value, tensors, retain_graph=True)]
        for tensors in true.kept[:4]
    ]
    columns = [f"{side}_gradient_norm" for side in ("fork", "shortcut", "branch")]
    shares = analyzer.path_spectrum(attending(None, ONE_STACK["stack"]), x.double(), y, loss)
    for weigh, mix in [
        *((weigh, mix) for weigh in WEIGHTS.values() for mix in ATTENDED.values()),
        *((None, mix) for mix in ONE_STACK.values()),
    ]:
        model = attending(weigh, mix)
        joins = analyzer.find_joins(model, x.double())
        assert [(join.num_operands, join.shortcut) for join in joins] == [
            (number, "gated") for number in (2, 3, 4, 5)
        ]
        splits = analyzer.gradient_splits(model, x.double(), y, loss)
        for place, wanted in enumerate(norms):
            assert splits.loc[place, columns].tolist() == pytest.approx(wanted, rel=1e-10)
        found = analyzer.path_spectrum(model, x.double(), y, loss)
        assert found["num_paths"].tolist() == [1, 4, 6, 4, 1]
        assert found["share"].tolist() == pytest.approx(shares["share"].tolist(), abs=1e-10)
        with analyzer.skip_scale(model, 0.0):
            if weigh is None:  # what a gate reads, too, cannot be changed for the sum alone
                with pytest.raises(AnalyzerError, match="Attending"):
                    model(x.double())
            else:
                without = model(x.double())
                assert torch.allclose(without, alone(model, x.double()), rtol=1e-12)


def alone(model: Attending, x: Tensor) -> Tensor:
    """The same blocks without shortcuts, by hand: each reads its weight times the last output."""
    seen = [model.embed(x)]
    h = seen[0]
    for branch, q in zip(model.branches, model.queries, strict=True):
        seen.append(branch(h))
        h = torch.stack([one @ q for one in seen], 1).softmax(1)[:, -1:] * seen[-1]
    return model.head(h)


# One Highway layer: ``t · h + (1 − t) · x``.
GATED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "two products": lambda x, h, t: t * h + (1 - t) * x,
    "lerp": torch.lerp,
    "interpolation": lambda x, h, t: x + t * (h - x),
    "turned": lambda x, h, t: (h - x) * t + x,
    "subtracted": lambda x, h, t: x - t * (x - h),
    "from the branch": lambda x, h, t: h + (1 - t) * (x - h),
}


class Highway(nn.Module):
    def __init__(self, way: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.value, self.gate = way, nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x, self.value(x).relu(), torch.sigmoid(self.gate(x)))


@pytest.mark.parametrize("name", GATED)
def test_a_gate_between_shortcut_and_branch_is_one_join_however_it_is_written(name: str) -> None:
    def highway(name: str) -> nn.Sequential:
        torch.manual_seed(1)
        layers = [Highway(GATED[name]) for _ in range(2)]
        return nn.Sequential(nn.Linear(8, 8), *layers, nn.Linear(8, 3)).double()

    model, first, (x, y), loss = (
        highway(name),
        highway("two products"),
        batch(),
        functional.cross_entropy,
    )
    x = x.double()
    joins = analyzer.find_joins(model, x)
    assert [(join.name, join.shortcut) for join in joins] == [("1", "gated"), ("2", "gated")]
    assert [sorted(join.branch_layers) for join in joins] == [
        [f"{n}.gate", f"{n}.value"] for n in (1, 2)
    ]
    columns = [f"{side}_gradient_norm" for side in ("join", "shortcut", "branch", "fork")]
    splits, truth = (analyzer.gradient_splits(m, x, y, loss) for m in (model, first))
    for column in (*columns, "cosine", "shortcut_share"):
        assert splits[column].tolist() == pytest.approx(truth[column].tolist(), rel=1e-10)
    measured = splits["output_cosine"].notna()  # by hand in no other way than in the first one
    assert splits["output_cosine"][measured].tolist() == pytest.approx(
        truth["output_cosine"][measured].tolist(), rel=1e-10
    )
    shares, true = (analyzer.path_spectrum(m, x, y, loss)["share"] for m in (model, first))
    assert shares.tolist() == pytest.approx(true.tolist(), abs=1e-10)
    with analyzer.skip_scale(model, 0.0):
        without = model(x)
    h = model[0](x)
    for layer in model[1:3]:
        h = torch.sigmoid(layer.gate(h)) * layer.value(h).relu()
    assert torch.allclose(without, model[3](h), rtol=1e-12)
    lesions, true = (analyzer.lesion_study(m, x, y, loss)["loss"] for m in (model, first))
    assert lesions.tolist() == pytest.approx(true.tolist(), rel=1e-10)
