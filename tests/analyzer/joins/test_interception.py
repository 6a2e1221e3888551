"""Scaled shortcuts against nets written without them, and against forks scaled by hand."""

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode
from torch.utils.checkpoint import checkpoint

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.joins.calls import tensors_in
from analyzer.joins.edits import Edit
from analyzer.joins.find import plan_joins
from analyzer.joins.interception import Interception
from analyzer.joins.trace import ForwardTrace
from analyzer.networks.zoo import zoo
from tests.support import families
from tests.support.families import FAMILIES, Family
from tests.support.zoo_names import plain_twin

Add = Callable[[Tensor, Tensor], Tensor]


def out_add(x: Tensor, b: Tensor) -> Tensor:
    return x + b if torch.is_grad_enabled() else torch.add(x, b, out=torch.empty_like(x))


def in_place_on_a_view(x: Tensor, b: Tensor) -> Tensor:
    view = b.view(-1)
    view += x.view(-1)
    return b


def in_place_on_the_shortcut(x: Tensor, b: Tensor) -> Tensor:
    s = x * 1.0
    s.add_(b)
    return s


def assigned_part(x: Tensor, b: Tensor) -> Tensor:
    b = b.clone()
    b[:] = x + b
    return b


ADDITIONS: dict[str, Add] = {
    "x + f(x)": lambda x, b: x + b,
    "f(x) + x": lambda x, b: b + x,
    "+=": lambda x, b: operator.iadd(b, x),
    "add_": lambda x, b: b.add_(x),
    "add_ on the shortcut": in_place_on_the_shortcut,
    "+= on a view": in_place_on_a_view,
    "torch.add": torch.add,
    "keywords": lambda x, b: torch.add(other=x, input=b),
    "alpha": lambda x, b: torch.add(b, x, alpha=1),
    "operator": operator.add,
    "sum": lambda x, b: sum([b, x]),
    "difference": lambda x, b: b - (-x),
    "dispatcher": lambda x, b: torch.ops.aten.add.Tensor(x, b),
    "out": out_add,
    "assigned": assigned_part,
}


class Block(nn.Module):
    def __init__(self, add: Add | None, width: int = 5) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.relu(self.first(x)))
        return torch.tanh(h if self.add is None else self.add(x, h))


def net(add: Add | None, blocks: int = 3) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), *[Block(add) for _ in range(blocks)], nn.Linear(5, 2))


def output_and_gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    return [output, *(p.grad for p in model.parameters())]


def are_equal(one: list[Tensor | None], other: list[Tensor | None]) -> bool:
    return all(a is not None and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
def test_without_shortcuts_a_residual_net_is_the_plain_one(add: Add) -> None:
    residual, plain, x = net(add), net(None), torch.randn(6, 4)
    with analyzer.skip_scale(residual, 0):
        found = output_and_gradients(residual, x)
        with torch.no_grad():
            evaluated = residual(x)
    assert are_equal(found, output_and_gradients(plain, x))
    assert torch.equal(evaluated, plain(x))
    assert not torch.equal(residual(x), plain(x))


@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
def test_a_scale_of_one_changes_no_bit(add: Add) -> None:
    model, x = net(add), torch.randn(6, 4)
    expected = output_and_gradients(model, x)
    with analyzer.skip_scale(model, 1):
        assert are_equal(output_and_gradients(model, x), expected)
    assert are_equal(output_and_gradients(model, x), expected)


@pytest.mark.parametrize(
    "together",
    [
        torch.cat,
        torch.hstack,
        torch.vstack,
        torch.column_stack,
        lambda parts: parts[1].subtract_(parts[0]),
    ],
    ids=["cat", "hstack", "vstack", "column_stack", "subtract_"],
)
@pytest.mark.parametrize("is_trained", [True, False])
def test_a_join_at_the_networks_input_is_found_and_scaled_however_it_is_written(
    together: Callable[[list[Tensor]], Tensor], is_trained: bool
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(4, 4).requires_grad_(is_trained)
            self.output = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(together([x, self.branch(x)]).reshape(-1, 1))

    model, x = Net(), torch.randn(3, 4)
    (join,) = analyzer.find_joins(model, x)
    assert join.branch_layers == ["branch"]
    with analyzer.skip_scale(model, 0):
        found = model(x)
    expected = together([torch.zeros_like(x), model.branch(x)]).reshape(-1, 1)
    assert torch.equal(found, model.output(expected))


@pytest.mark.parametrize("of_view", [True, False], ids=["the view", "what it views"])
def test_a_fork_that_was_changed_in_place_after_a_view_of_it(of_view: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            whole = self.stem(x)
            # Autograd gives the view a new node, which is younger than what reads it.
            view = whole[:, :]
            (view if of_view else whole).add_(1.0)
            return view + self.branch(view)

    model, x = Net(), torch.randn(3, 4)
    (join,) = analyzer.find_joins(model, x)
    assert (join.shortcut, join.branch_layers) == ("identity", ["branch"])
    fork = (model.stem(x) + 1).detach().requires_grad_()
    with analyzer.skip_scale(model, 0):
        assert torch.equal(model(x), model.branch(fork))
    (through_branch,) = torch.autograd.grad(model.branch(fork).sum(), fork)
    splits = analyzer.gradient_splits(model, x, None, lambda output, _: output.sum())
    assert splits["shortcut_gradient_norm"][0] == pytest.approx(fork.numel() ** 0.5)
    assert splits["branch_gradient_norm"][0] == pytest.approx(through_branch.norm().item())


def test_a_pass_whose_trace_begins_inside_the_call_is_scaled_too() -> None:
    model, x, trace = net(operator.add), torch.randn(6, 4), ForwardTrace()
    handles = [
        model.register_forward_pre_hook(lambda *_: trace.__enter__() and None),
        model.register_forward_hook(lambda *_: trace.__exit__(None, None, None)),
    ]
    with analyzer.skip_scale(model, 0):
        found = model(x)
    for handle in handles:
        handle.remove()
    assert torch.equal(found, net(None)(x))


def test_an_addition_is_known_by_its_operands_not_by_its_place() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            h = x * 2
            for _ in range(int(scale)):
                h = h + 1
            noise = torch.ones(4) + torch.ones(4)
            return (h + self.branch(h)) + (noise + noise)

    model, x = Net(), torch.randn(3, 4)
    for number in (0.0, 2.0, 1.0):
        with analyzer.skip_scale(model, 0.5):
            h = x * 2 + number
            assert torch.allclose(model(x, number), (0.5 * h + model.branch(h)) + 4)


IDENTITIES = [
    name
    for name, family in FAMILIES.items()
    if family.joins
    and all(join.shortcut != "projection" for join in family.joins)
    and name not in ("parallel branches, two additions", "res2net")
]


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_scaled_net_is_one_whose_forks_were_scaled_by_hand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    family = FAMILIES[name]
    model = family.build().double().eval()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in family.inputs())
    with analyzer.skip_scale(model, 0.3):
        found = list(tensors_in(model(*inputs)))
    with monkeypatch.context() as patch:
        patch.setattr(families, "fork", lambda x: (x, 0.3 * x, x))
        expected = list(tensors_in(model(*inputs)))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)
    assert any(
        not torch.equal(a, b) for a, b in zip(found, tensors_in(model(*inputs)), strict=True)
    )


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_join_of_every_family_is_seen_and_a_scale_of_one_keeps_the_bits(
    family: Family, is_training: bool
) -> None:
    torch.manual_seed(0)
    model, inputs = family.build().train(is_training), family.inputs()
    seen: set[int] = set()

    class Seen(Edit):
        def factor(self, place: Any, slot: int, operand: Tensor) -> float:
            seen.add(place.join.index)
            return 1.0

        def joined(self, place: Any, result: Tensor) -> None:
            assert result.shape

    torch.manual_seed(1)
    expected = list(tensors_in(copy.deepcopy(model)(*inputs)))
    interception = Interception(Seen(), model)
    torch.manual_seed(1)
    interception.start()
    found = list(tensors_in(model(*inputs)))
    interception.stop()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    torch.manual_seed(1)
    plan = plan_joins(model, inputs, {})
    assert seen == {join.index for join in plan.joins}


ZOO = ["resnet20", "resnet20-preact", "resnet20-nonorm", "mlp10-residual", "mlp10-residual-pair"]


@pytest.mark.parametrize("name", [*ZOO, "mlp10-residual-preact-layernorm", "simple6"])
def test_the_residual_zoo_without_shortcuts_is_the_plain_zoo(name: str) -> None:
    sizes = {"in_channels": 1, "num_classes": 4, "image_size": 8}
    residual, plain = zoo(name, **sizes), zoo(plain_twin(name), **sizes)
    x = torch.randn(4, 1, 8, 8)
    expected = output_and_gradients(residual, x)
    with analyzer.skip_scale(residual, 0):
        found = output_and_gradients(residual, x)
    assert are_equal(found, output_and_gradients(plain, x))
    assert not are_equal(found, expected)


def test_projections_get_zero_gradients_and_the_rest_those_of_the_plain_net() -> None:
    sizes = {"in_channels": 1, "num_classes": 4, "image_size": 8}
    residual, plain = zoo("resnet20-b", **sizes), zoo("plain20", **sizes)
    x = torch.randn(4, 1, 8, 8)
    with analyzer.skip_scale(residual, 0):
        residual(x).square().sum().backward()
    plain(x).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    projections = [n for n, _ in residual.named_parameters() if "shortcut" in n]
    assert len(projections) == 2
    for name, parameter in residual.named_parameters():
        assert parameter.grad is not None
        truth = expected[name] if name in expected else torch.zeros_like(parameter)
        assert torch.equal(parameter.grad, truth)


def test_no_shortcut_is_zero_also_where_it_is_not_finite() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x / 0 + self.branch(torch.nan_to_num(x, 0.0, 0.0, 0.0))

    model, x = Net(), torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    # The fork is the input: x / 0 is its shortcut, with NaN and infinities.
    with analyzer.skip_scale(model, 0):
        assert torch.equal(model(x), model.branch(x))
    assert not torch.isfinite(model(x)).any()


def test_gradients_through_n_shortcuts_are_multiplied_by_their_factor_n_times() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(4, 4).double() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for branch in self.branches:
                x = x + 0.0 * branch(x)
            return x

    chain, x = Chain(), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with analyzer.skip_scale(chain, 0.5):
        chain(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 0.5**4))


class Droppy(nn.Module):
    """Stochastic depth with dropout: another way through the net in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            if torch.rand(()) < 0.5:
                continue
            x = self.scale * x + nn.functional.dropout(branch(x), 0.3)
        return x


def test_blocks_left_out_have_no_join_and_the_random_state_is_not_consumed() -> None:
    torch.manual_seed(0)
    model, x = Droppy(), torch.randn(3, 6)
    torch.manual_seed(1)
    with analyzer.skip_scale(model, 0.5):
        found = [model(x) for _ in range(20)]
    torch.manual_seed(1)
    model.scale = 0.5
    assert all(torch.equal(one, model(x)) for one in found)


def test_nothing_is_left_behind_and_copies_carry_nothing() -> None:
    model, x = net(ADDITIONS["torch.add"]), torch.randn(2, 4)
    before = [set(vars(module)) for module in model.modules()]
    expected = model(x)
    with analyzer.skip_scale(model, 0):
        assert not torch.equal(model(x), expected)
        copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        assert torch.equal(copied(x), expected)
    assert [set(vars(module)) for module in model.modules()] == before
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert _get_current_function_mode() is None
    assert torch.equal(model(x), expected)


def test_a_forward_that_fails_or_is_interrupted_leaves_no_mode() -> None:
    class Net(Block):
        fails: type[BaseException] | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.fails:
                raise self.fails("now")
            return super().forward(x)

    model, plain, x = Net(torch.add), Block(None), torch.randn(2, 5)
    plain.load_state_dict(model.state_dict())
    with analyzer.skip_scale(model, 0):
        for kind in (RuntimeError, KeyboardInterrupt):
            model.fails = None
            model(x)
            model.fails = kind
            with pytest.raises(kind, match="now"):
                model(x)
        model.fails = None
        # What runs after an interrupt is no part of the call.
        assert torch.equal(x + x, 2 * x)
        assert torch.equal(model(x), plain(x))
        assert _get_current_function_mode() is None
    assert _get_current_function_mode() is None


def test_contexts_of_one_model_multiply_and_parts_are_refused() -> None:
    model, x = net(torch.add), torch.randn(2, 4)
    with analyzer.skip_scale(model, 0.25):
        expected = model(x)
    with analyzer.skip_scale(model, 0.5), analyzer.skip_scale(model, 0.5):
        assert torch.equal(model(x), expected)
    with (
        analyzer.skip_scale(model, 0.5),
        pytest.raises(AnalyzerError, match="'Block' cannot be changed while those of 'Sequential'"),
        analyzer.skip_scale(model[1], 0.5),
    ):
        pass
    with pytest.raises(ValueError, match="alpha is nan"), analyzer.skip_scale(model, float("nan")):
        pass


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.block, self.reentrant = nn.Linear(4, 5), Block(torch.add), reentrant

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant)


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x + x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.block = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return Fused.apply(x, self.weight)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.inner = torch.jit.trace(Block(torch.add, 4), torch.randn(2, 4))

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.stem(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Checkpointed(True), "'Checkpointed' may hold .* reentrant checkpointing|'block'"),
        (lambda: Checkpointed(False), "'block' is inside of a checkpoint"),
        (Custom, "'Custom' may hold shortcuts .* custom function Fused"),
        (Scripted, "the shortcut of 'Scripted' is added by code|custom function Differentiable"),
        (lambda: nn.Sequential(torch.compile(Block(torch.add, 4))), "'0' is compiled"),
    ],
)
def test_a_join_that_cannot_be_intercepted_is_named(
    build: Callable[[], nn.Module], expected: str
) -> None:
    model, x = build(), torch.randn(2, 4)
    for _ in range(2):
        with pytest.raises(AnalyzerError, match=expected), analyzer.skip_scale(model, 0):
            model(x)
    assert _get_current_function_mode() is None


def test_measurements_inside_see_the_scaled_model() -> None:
    model, x, y = net(torch.add), torch.randn(4, 4), torch.randn(4, 2)
    with analyzer.skip_scale(model, 0):
        splits = analyzer.gradient_splits(model, x, y, nn.functional.mse_loss)
        lesions = analyzer.lesion_study(model, x, y, nn.functional.mse_loss)
    assert splits["shortcut_share"].tolist() == [0.0, 0.0, 0.0]
    # Without shortcut and branch the last block gives zeros.
    loss = nn.functional.mse_loss(model[-1](torch.zeros(4, 5)), y).item()
    assert lesions["loss"].tolist() == pytest.approx([*lesions["loss"][:2], loss], abs=1e-7)


def test_keyword_arguments_caches_and_concatenations() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(4, 2)

        def forward(self, cache: Any, *, x: Tensor) -> Tensor:
            cache.items.append(x)
            return torch.cat(tensors=[x, self.branch(torch.stack(cache.items).sum(0))], dim=1)

    class Cache:
        def __init__(self) -> None:
            self.items: list[Tensor] = []

    model, x, cache = Net(), torch.randn(3, 4), Cache()
    with analyzer.skip_scale(model, 0), torch.inference_mode():
        found = [model(cache, x=number * x) for number in (1, 2)]
    assert len(cache.items) == 2
    for total, one in zip((1, 3), found, strict=True):
        assert torch.equal(one[:, :4], torch.zeros(3, 4))
        assert torch.allclose(one[:, 4:], model.branch(total * x))


def test_a_hook_of_a_probe_that_copies_an_output_hides_no_skip() -> None:
    from analyzer.probes.activations import layer_outputs

    class Own(nn.Module):
        """A layer whose output is a view of what it made itself."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (x @ self.weight).view(-1, 2, 2).view(-1, 4)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own()

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.relu(self.own(x))

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), Block()), torch.randn(3, 4)
    plain = torch.relu(model[1].own(model[0](x)))
    with analyzer.skip_scale(model, 0.0), layer_outputs(model) as layers:
        assert torch.equal(model(x), plain)
    assert len(layers) == 2


class Permuted(nn.Module):
    """A block of ConvNeXt: the branch has another order in memory than the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.wide = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 16)
        self.thin, self.is_plain = nn.Linear(16, 8), False

    def forward(self, x: Tensor) -> Tensor:
        branch = self.thin(self.wide(self.depthwise(x).permute(0, 2, 3, 1)).relu())
        branch = branch.permute(0, 3, 1, 2)
        return branch if self.is_plain else x + branch


def test_the_order_in_memory_is_that_of_the_plain_net() -> None:
    torch.manual_seed(0)
    blocks, x = nn.Sequential(Permuted(), Permuted()), torch.randn(2, 8, 6, 6)

    def values() -> list[Tensor]:
        output = blocks(x).mean((2, 3))
        return [output, *torch.autograd.grad(output.square().sum(), [*blocks.parameters()])]

    with analyzer.skip_scale(blocks, 0.0):
        without = values()
    for block in blocks:
        block.is_plain = True
    assert all(map(torch.equal, without, values()))
