"""Path-length spectra against enumeration, closed forms and autograd."""

from collections.abc import Callable
from itertools import chain, combinations
from math import comb, nan

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.joins.backward import splits_of_model
from analyzer.joins.calls import tensors_in
from analyzer.networks.zoo import zoo
from analyzer.probes.batch import HeldBatch
from analyzer.probes.path_graph import crossings_of, gradients_by_length
from analyzer.probes.path_samples import destination_of, evaluate, evaluating
from analyzer.probes.paths import effective_path_length, measure, path_lengths
from analyzer.storage.schema import PROBES
from tests.support.families import FAMILIES, Family

Cross = Callable[[int, Tensor], Tensor]


def wavy_loss(output: object, _: None) -> Tensor:
    """The mean over samples of a sum whose gradient differs from element to element."""
    terms = [
        (t * torch.arange(t.numel()).view_as(t).cos()).sum() / len(t) for t in tensors_in(output)
    ]
    return torch.stack(terms).sum()


def gradients_of(model: nn.Module, inputs: object) -> tuple[list[Tensor], Tensor]:
    """The gradient of each length, and that of a plain backward pass, of the mean loss."""
    with evaluating(model):
        run = evaluate(model, inputs, None, wavy_loss)
        goal = destination_of(run.sites, run.input_edges, run.walk)
        (truth,) = torch.autograd.grad(run.loss, goal.parts, retain_graph=True)
        crossings = crossings_of(run.sites, run.walk, goal.node)
        found = gradients_by_length(run.loss, goal.parts, crossings)
        gradients = [torch.zeros_like(truth) if g is None else g for (g,) in found]
    return gradients, truth


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_lengths_of_every_family_add_up_to_its_gradient(family: Family) -> None:
    torch.manual_seed(0)
    model, inputs = family.build(), family.inputs()
    gradients, truth = gradients_of(model, inputs)
    assert 0 < (sum(gradients) - truth).norm() + truth.norm() <= (1 + 1e-5) * truth.norm()
    spectrum = path_lengths(HeldBatch(model, inputs, None, wavy_loss))
    assert spectrum.lengths == range(len(family.joins) + 1)
    assert sum(spectrum.shares or ()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in FAMILIES if len(FAMILIES[name].joins) == 1])
def test_the_two_lengths_of_one_join_are_its_split(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[name].build().eval(), FAMILIES[name].inputs()
    (shortcut, branch), _ = gradients_of(model, inputs)
    split = splits_of_model(model, inputs, None, wavy_loss)
    assert shortcut.norm().item() == pytest.approx(split["shortcut_gradient_norm"][0], rel=1e-5)
    assert branch.norm().item() == pytest.approx(split["branch_gradient_norm"][0], rel=1e-5)


def test_a_gate_on_the_shortcut_belongs_to_the_branch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*FAMILIES["highway"].build()[:2]).eval()
    x = torch.randn(3, 6)
    (shortcut, branch), _ = gradients_of(model, x)
    split = splits_of_model(model, x, None, wavy_loss)
    assert shortcut.norm().item() == pytest.approx(split["shortcut_gradient_norm"][0], rel=1e-5)
    assert branch.norm().item() == pytest.approx(split["branch_gradient_norm"][0], rel=1e-5)


class EightJoins(nn.Module):
    """Eight joins; each branch operand passes `cross`, which a test may replace."""

    num_joins = 8

    def __init__(self) -> None:
        super().__init__()
        self.cross: Cross = lambda _, branch: branch
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(9))

    def branch(self, number: int, x: Tensor) -> Tensor:
        return torch.tanh(self.layers[number](x))


class Chain(EightJoins):
    def forward(self, x: Tensor) -> Tensor:
        for join in range(8):
            x = x + self.cross(join, self.branch(join, x))
        return x.sin()


class ReadElsewhere(EightJoins):
    """Every branch's output has a second reader, which no join may shift."""

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.ones(())
        for join in range(8):
            branch = self.branch(join, x)
            seen = seen * branch.cos()
            x = x + self.cross(join, branch)
        return x.sin() * seen


class Parallel(EightJoins):
    """Four pairs of branches that read one tensor."""

    def forward(self, x: Tensor) -> Tensor:
        for join in range(0, 8, 2):
            first, second = self.branch(join, x), self.branch(join + 1, x)
            x = x + self.cross(join, first) + self.cross(join + 1, second)
        return x.sin()


class Nested(EightJoins):
    """Four joins, each with another one inside its branch."""

    def forward(self, x: Tensor) -> Tensor:
        for join in range(0, 8, 2):
            inner = self.branch(join, x)
            inner = inner + self.cross(join + 1, self.branch(join + 1, inner))
            x = x + self.cross(join, inner)
        return x.sin()


class Cut(torch.autograd.Function):
    """The identity, through which no gradient passes."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def enumerated(model: EightJoins, x: Tensor) -> list[Tensor]:
    """The gradient by length from one backward pass for each set of open branches."""
    n = model.num_joins
    sets = list(chain.from_iterable(combinations(range(n), k) for k in range(n + 1)))
    gradient: dict[frozenset[int], Tensor] = {}
    for opened in map(frozenset, sets):
        model.cross = lambda join, b, opened=opened: b if join in opened else Cut.apply(b)
        leaf = x.clone().requires_grad_()
        (gradient[opened],) = torch.autograd.grad(wavy_loss(model(leaf), None), leaf)
    model.cross = lambda _, branch: branch
    by_length = [torch.zeros_like(x) for _ in range(n + 1)]
    crossing: dict[frozenset[int], Tensor] = {}
    for exact in map(frozenset, sets):
        fewer = [part for part in crossing if part < exact]
        crossing[exact] = gradient[exact] - sum(crossing[part] for part in fewer)
        by_length[len(exact)] += crossing[exact]
    return by_length


@pytest.mark.parametrize("kind", [Chain, ReadElsewhere, Parallel, Nested])
def test_eight_joins_agree_with_the_enumeration_of_256_paths(kind: type[EightJoins]) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(2, 3).double()
    expected = enumerated(model, x)
    found, _ = gradients_of(model, x)
    assert sum(gradient.norm() > 1e-9 for gradient in expected) >= 5
    for k, gradient in enumerate(expected):
        other = found[k] if k < len(found) else torch.zeros_like(gradient)
        assert (other - gradient).norm() <= 1e-12
    frame = analyzer.path_spectrum(model, x, None, wavy_loss)
    own = torch.stack(expected) * 2
    norms = own.norm(dim=2).mean(1)
    assert frame["gradient_norm"].tolist() == pytest.approx(norms.tolist(), abs=1e-12)
    total = own.sum(0)
    shares = ((own * total).sum(2) / total.square().sum(1)).mean(1)
    assert frame["share"].tolist() == pytest.approx(shares.tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Chain, [comb(8, k) for k in range(9)]),
        (Parallel, [comb(4, k) * 2**k if k <= 4 else 0 for k in range(9)]),
        (Nested, [1, 4, 10, 16, 19, 16, 10, 4, 1]),  # (1 + t + t²)⁴
    ],
)
def test_paths_are_counted(kind: type[EightJoins], expected: list[int]) -> None:
    frame = analyzer.path_spectrum(kind(), torch.randn(2, 3), None, wavy_loss)
    assert frame["num_paths"].tolist() == expected


MIXES: dict[str, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "python sum": lambda w, h: sum((w[i] * h[i] for i in range(1, len(h))), start=w[0] * h[0]),
    "stack and sum": lambda w, h: (w.view(-1, 1, 1) * torch.stack(h)).sum(0),
    "einsum": lambda w, h: torch.einsum("i,ibd->bd", w, torch.stack(h)),
    "matmul": lambda w, h: torch.stack(h, -1) @ w,
}


class SixBlocks(EightJoins):
    """Each block reads a mix of what all earlier ones wrote: attention residuals."""

    num_joins = 6
    mix = staticmethod(MIXES["python sum"])

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(n + 2) for n in range(6))

    def forward(self, x: Tensor) -> Tensor:
        written, h = [x], x
        for join in range(6):
            written.append(self.cross(join, self.branch(join, h)))
            h = self.mix(self.weights[join].softmax(0), written)
        return h.sin()


class AttentionResiduals(SixBlocks):
    """The weights are those of a softmax over what all earlier blocks wrote."""

    def forward(self, x: Tensor) -> Tensor:
        written, h = [x], x
        for join in range(6):
            written.append(self.cross(join, self.branch(join, h)))
            query, values = self.weights[join][:1], torch.stack(written)
            if type(self).by_list:
                keys = torch.stack([v.cos().sum(-1) for v in written])
            else:
                keys = values.cos().sum(-1)
            h = torch.einsum("nb,nbd->bd", (query * keys).softmax(0), values)
        return h.sin()

    by_list = False


class KeysByList(AttentionResiduals):
    by_list = True


class DenseFormer(SixBlocks):
    """Each block reads a mix of all earlier mixes and of what the last block wrote."""

    def forward(self, x: Tensor) -> Tensor:
        mixes = [x]
        for join in range(6):
            mixes.append(self.cross(join, self.branch(join, mixes[-1])))
            mixes[-1] = self.mix(self.weights[join], mixes)
        return mixes[-1].sin()


class LinearLast(SixBlocks):
    """The branches end with a linear map, whose node adds the bias."""

    def branch(self, number: int, x: Tensor) -> Tensor:
        linear = self.layers[number](x.cos())
        assert isinstance(linear, Tensor)
        return linear


@pytest.mark.parametrize("spelling", MIXES)
@pytest.mark.parametrize("kind", [SixBlocks, DenseFormer, LinearLast])
def test_mixes_of_all_earlier_outputs_agree_with_the_enumeration(kind, spelling) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(2, 3).double()
    model.mix = MIXES[spelling]
    expected = enumerated(model, x)
    found, _ = gradients_of(model, x)
    assert len(found) == 7
    for gradient, other in zip(expected, found, strict=True):
        assert other.norm() > 0
        assert (other - gradient).norm() <= 1e-12 * gradient.norm() + 1e-14
    frame = analyzer.path_spectrum(model, x, None, wavy_loss)
    assert frame["num_paths"].tolist() == [comb(6, k) for k in range(7)]


@pytest.mark.parametrize("kind", [AttentionResiduals, KeysByList])
def test_weights_computed_from_earlier_outputs_agree_with_the_enumeration(kind) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(2, 3).double()
    expected = enumerated(model, x)
    found, _ = gradients_of(model, x)
    assert len(found) == 7
    for gradient, other in zip(expected, found, strict=True):
        assert (other - gradient).norm() <= 1e-12 * sum(expected).norm()


class HyperConnections(EightJoins):
    """Two streams, mixed by a matrix of each block, which reads one mix and writes to both."""

    num_joins = 6

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.ParameterList(torch.randn(2, 2) for _ in range(6))
        self.read = nn.ParameterList(torch.randn(2) for _ in range(6))
        self.write = nn.ParameterList(torch.randn(2) for _ in range(6))

    def written(self, join: int, h: Tensor) -> Tensor:
        return self.cross(join, self.branch(join, torch.einsum("n,bnd->bd", self.read[join], h)))

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, None].repeat(1, 2, 1)
        for join in range(6):
            branch = torch.einsum("n,bd->bnd", self.write[join], self.written(join, h))
            h = torch.einsum("nm,bmd->bnd", self.mixing[join], h) + branch
        return h.sum(1).sin()


class ByMatmul(HyperConnections):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.stack([x, x], 1)
        for join in range(6):
            branch = self.written(join, h).unsqueeze(1) * self.write[join][:, None]
            h = self.mixing[join] @ h + branch
        return h.sum(1).sin()


class Dynamic(HyperConnections):
    """The matrices are computed from the streams, for each sample its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dynamic = nn.ParameterList(torch.randn(3, 2) for _ in range(6))
        self.made: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h, self.made = x[:, None].repeat(1, 2, 1), []
        for join in range(6):
            branch = torch.einsum("n,bd->bnd", self.write[join], self.written(join, h))
            matrix = self.mixing[join] + (h @ self.dynamic[join]).tanh()
            self.made.append(matrix.detach())
            h = self.cross(join, matrix) @ h + branch
        return h.sum(1).sin()


class BySlices(HyperConnections):
    """As in the authors' code: one product makes what the block reads and the mixed streams."""

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, None].repeat(1, 2, 1)
        for join in range(6):
            mixed = torch.cat([self.read[join][None], self.mixing[join]]) @ h
            branch = self.cross(join, self.branch(join, mixed[:, 0]))
            h = torch.einsum("bd,n->bnd", branch, self.write[join]) + mixed[:, 1:]
        return h.sum(1).sin()


class DynamicBySlices(HyperConnections):
    """As in the authors' code, with matrices that are computed from the streams."""

    def __init__(self) -> None:
        super().__init__()
        self.dynamic = nn.ParameterList(torch.randn(3, 3) for _ in range(6))
        self.made: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h, self.made = x[:, None].repeat(1, 2, 1), []
        for join in range(6):
            mixed = self.mixed(join, h)
            branch = self.cross(join, self.branch(join, mixed[:, 0]))
            h = torch.einsum("bd,n->bnd", branch, self.write[join]) + mixed[:, 1:]
        return h.sum(1).sin()

    def mixed(self, join: int, h: Tensor) -> Tensor:
        static = torch.cat([self.read[join][:, None], self.mixing[join].T], 1)
        matrix = (static + torch.tanh(h @ self.dynamic[join])).mT
        self.made.append(matrix[:, 1:].detach())
        return matrix @ h


class ByStream(HyperConnections):
    """The streams are tensors of their own."""

    def forward(self, x: Tensor) -> Tensor:
        h = [x, x]
        for join in range(6):
            read, mixing, write = self.read[join], self.mixing[join], self.write[join]
            branch = self.cross(join, self.branch(join, read[0] * h[0] + read[1] * h[1]))
            h = [m[0] * h[0] + m[1] * h[1] + w * branch for m, w in zip(mixing, write, strict=True)]
        return (h[0] + h[1]).sin()


@pytest.mark.parametrize("kind", [HyperConnections, ByMatmul, Dynamic, BySlices, ByStream])
def test_hyper_connections_agree_with_the_enumeration(kind) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(2, 3).double()
    expected = enumerated(model, x)
    frame = analyzer.path_spectrum(model, x, None, wavy_loss)
    assert frame["num_paths"].tolist() == [comb(6, k) for k in range(7)]
    found, _ = gradients_of(model, x)
    for gradient, other in zip(expected, found, strict=True):
        if kind is BySlices:  # the first fork is what the first product makes
            other = torch.cat([model.read[0][None], model.mixing[0]]).T @ other
        found_at_x = other.sum(1) if other.dim() == 3 else other  # x was copied into both streams
        assert (found_at_x - gradient).norm() <= 1e-12 * sum(expected).norm()


def sinkhorn(matrix: Tensor) -> Tensor:
    """A doubly stochastic matrix, by 200 normalizations of rows and columns."""
    matrix = matrix.exp()
    for _ in range(200):
        matrix = matrix / matrix.sum(1, keepdim=True)
        matrix = matrix / matrix.sum(0, keepdim=True)
    return matrix


@pytest.mark.parametrize("kind", [HyperConnections, ByMatmul, BySlices, ByStream])
def test_the_gain_of_mixed_streams_is_that_of_the_product_of_their_matrices(kind) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(2, 3).double()
    found = path_lengths(HeldBatch(model, x, None, wavy_loss)).streams
    product = torch.eye(2).double()
    # Two of them are asked from the first join on.
    for matrix in list(model.mixing)[kind in (ByStream, BySlices) :]:
        product = matrix @ product
    values = torch.linalg.svdvals(product.detach())
    assert found.largest == pytest.approx(values[0].item(), rel=1e-9)
    assert found.smallest == pytest.approx(values[1].item(), rel=1e-6)


@pytest.mark.parametrize("kind", [Dynamic, DynamicBySlices])
def test_the_gain_of_matrices_computed_from_data_is_the_extreme_over_samples(kind) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(4, 3).double()
    found = path_lengths(HeldBatch(model, x, None, wavy_loss)).streams
    product = torch.eye(2).double().expand(4, 2, 2)
    for matrix in model.made[kind is DynamicBySlices :]:  # asked from the first join on
        product = matrix @ product
    values = torch.linalg.svdvals(product)
    assert found.largest == pytest.approx(values.max().item(), rel=1e-9)
    assert found.smallest == pytest.approx(values.min().item(), rel=1e-6)


@pytest.mark.parametrize("kind", [HyperConnections, ByMatmul, BySlices, ByStream])
def test_doubly_stochastic_mixing_has_gain_one_and_may_still_attenuate(kind) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(2, 3).double()
    with torch.no_grad():
        for matrix in model.mixing:
            matrix.copy_(sinkhorn(matrix))
    frame = analyzer.path_spectrum(model, x, None, wavy_loss)
    assert frame.attrs["shortcut_gain_largest"] == pytest.approx(1, abs=1e-12)
    assert 0 < frame.attrs["shortcut_gain_smallest"] < 0.5


@pytest.mark.parametrize("kind", [HyperConnections, ByStream])
def test_the_share_of_each_stream_is_its_part_of_the_squared_gradient(kind) -> None:
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(2, 3).double()
    shares = path_lengths(HeldBatch(model, x, None, wavy_loss)).streams.shares
    assert len(shares) == (1 if kind is ByStream else 6)
    # Behind the last block both streams are summed alike.
    assert list(shares.values())[-1] == pytest.approx([0.5, 0.5], rel=1e-12)
    assert all(sum(values) == pytest.approx(1) for values in shares.values())


def test_the_gain_of_scaled_shortcuts_is_their_product() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x + torch.tanh(self.layer(x))

    model = nn.Sequential(*[Scaled() for _ in range(4)])
    found = path_lengths(HeldBatch(model, torch.randn(2, 3), None, wavy_loss)).streams
    assert (found.largest, found.smallest, found.shares) == (0.5**4, 0.5**4, {})


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.short, self.layer = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.layer(x)


@pytest.mark.parametrize("name", ["identity and projection", "projection", "dense concatenation"])
def test_shortcuts_that_project_features_have_no_gain_of_streams(name: str) -> None:
    if name == "projection":
        model, inputs = nn.Sequential(Projected(), Projected()), (torch.randn(2, 5, 3),)
    else:
        model, inputs = FAMILIES[name].build(), FAMILIES[name].inputs()
    found = path_lengths(HeldBatch(model, inputs, None, wavy_loss)).streams
    assert (found.largest, found.smallest, found.shares) == (None, None, {})


class Multiple(nn.Module):
    """``x + a·x``, with a parameter so that it is a branch."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a * x


@pytest.mark.parametrize("a", [0.5, -0.25])
def test_branches_that_multiply_give_the_binomial_spectrum(a: float) -> None:
    n = 20
    model = nn.Sequential(*[Multiple(a) for _ in range(n)]).double()
    frame = analyzer.path_spectrum(model, torch.randn(3, 4).double(), None, wavy_loss)
    terms = [comb(n, k) * a**k for k in range(n + 1)]
    norms = frame["gradient_norm"] / frame["gradient_norm"][0]
    assert norms.tolist() == pytest.approx([abs(term) for term in terms], rel=1e-12)
    shares = [term / (1 + a) ** n for term in terms]
    assert frame["share"].tolist() == pytest.approx(shares, rel=1e-9)
    mean = frame.attrs["effective_path_length"]
    assert mean == pytest.approx(n * abs(a) / (1 + abs(a)), rel=1e-12)


def test_54_joins_of_a_110_layer_net_take_one_run() -> None:
    torch.manual_seed(0)
    model = zoo("resnet110-preact", in_channels=3, num_classes=10, image_size=8)
    x, y = torch.randn(2, 3, 8, 8), torch.randint(10, (2,))
    spectrum = path_lengths(HeldBatch(model, x, y, nn.functional.cross_entropy))
    assert spectrum.num_paths == [comb(54, k) for k in range(55)]
    assert spectrum.sum_error <= 1e-5
    assert min(spectrum.gradient_norms) > 0
    assert 5 < spectrum.effective_path_length < 45


def test_effective_path_length_is_the_mean_weighted_by_norm() -> None:
    assert effective_path_length([0, 1, 2], [1.0, 2.0, 1.0]) == 1
    assert effective_path_length([0, 1], [1e308, 1e308]) == 0.5
    assert effective_path_length([0, 1], [0.0, 5e-324]) == 1
    for norms in ([0.0, 0.0], [1.0, nan], []):
        assert str(effective_path_length(range(len(norms)), norms)) == "nan"


def test_the_probe_writes_the_columns_of_its_table() -> None:
    measured = measure(HeldBatch(Chain(), torch.randn(2, 3), None, wavy_loss))
    names = [field.name for field in PROBES["paths"] if field.name != "step"]
    assert list(measured.columns) == names
    assert measured.metadata["num_joins"] == "8"
    assert measured.metadata["num_samples"] == "2"
    assert 0 < float(measured.metadata["effective_path_length"]) < 8
    assert float(measured.metadata["sum_error"]) < 1e-5
