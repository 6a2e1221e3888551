import json
import math

import pytest
import torch
from captum.attr import (
    DeepLift,
    InternalInfluence,
    LayerConductance,
    LayerGradientXActivation,
    LayerIntegratedGradients,
)
from torch import Tensor, nn

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.networks.zoo import zoo
from analyzer.probes import HeldBatch
from analyzer.probes.attribution import METHODS, layer_attribution, measure

BY_HAND = {
    "conductance": LayerConductance,
    "integrated_gradients": LayerIntegratedGradients,
    "gradient_x_activation": LayerGradientXActivation,
    "internal_influence": InternalInfluence,
}

# Captum keeps the weights of the steps of internal influence in float32.
TOLERANCE = dict.fromkeys(BY_HAND, 1e-9) | {"internal_influence": 1e-6}


def by_hand(method: str, forward, layer: nn.Module, x: Tensor, target, num_steps: int) -> float:
    steps = {} if method == "gradient_x_activation" else {"n_steps": num_steps}
    found = BY_HAND[method](forward, layer).attribute(x, target=target, **steps)
    return found.double().sum().item() / len(x)


def mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    return net.double().eval(), torch.randn(7, 4, dtype=torch.float64)


@pytest.mark.parametrize("method", BY_HAND)
def test_an_mlp_agrees_with_captum_by_hand(method):
    net, x = mlp()
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = layer_attribution(net, x, target, method, num_steps=12)
    for name, value in zip(found.names, found.values, strict=True):
        expected = by_hand(method, net, net.get_submodule(name), x, target, 12)
        assert value == pytest.approx(expected, rel=TOLERANCE[method])
    assert sum(found.shares) == pytest.approx(1)
    assert not found.refused


@pytest.mark.parametrize("method", BY_HAND)
@pytest.mark.filterwarnings("ignore:Input Tensor")
def test_a_resnet_with_batch_norm_and_in_place_relus_agrees_with_captum(method):
    torch.manual_seed(0)
    net = zoo("resnet8", in_channels=3, num_classes=5, image_size=8).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    inplace = [m for m in net.modules() if isinstance(m, nn.ReLU)]
    for module in inplace:
        module.inplace = True
    found = layer_attribution(net, x, 3, method, num_steps=8)
    assert not found.refused
    assert all(module.inplace for module in inplace)
    for module in inplace:
        module.inplace = False
    for name in ("stem.0", "layer1.0.branch.1", "layer2.0.shortcut", "layer3.0.relu", "output"):
        value = found.values[found.names.index(name)]
        expected = by_hand(method, net, net.get_submodule(name), x, 3, 8)
        assert value == pytest.approx(expected, rel=TOLERANCE[method]), name


@pytest.mark.parametrize("method", BY_HAND)
def test_a_small_gpt2_agrees_with_captum_through_its_embeddings(method):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).double()
    ids = torch.randint(11, (2, 5))
    found = layer_attribution(model, {"input_ids": ids}, 4, method, num_steps=10)
    model.eval()
    embedded = model.transformer.wte(ids).detach()

    def last_scores(embeddings: Tensor) -> Tensor:
        return model(inputs_embeds=embeddings).logits[:, -1]

    for name in ("transformer.h.0.ln_1", "transformer.h.1.mlp.c_fc", "lm_head"):
        layer = model.get_submodule(name)
        expected = by_hand(method, last_scores, layer, embedded, 4, 10)
        value = found.values[found.names.index(name)]
        assert value == pytest.approx(expected, rel=10 * TOLERANCE[method], abs=1e-9), name
    assert found.target == "last position, as given"
    assert list(found.refused) == ["transformer.wpe"]
    if method == "conductance":
        assert found.refused["transformer.wpe"] == "its output has no sample axis"
        names = [f"transformer.h.{i}#{j}" for i in (0, 1) for j in (0, 1)]
        assert [join.name for join in found.joins] == names
        for join in found.joins:
            assert join.shortcut + join.branch == pytest.approx(found.output_change, rel=1e-6)


def test_conductance_sums_to_the_output_difference_within_captums_delta():
    net, x = mlp()
    found = layer_attribution(net, x, 1, num_steps=50)
    change = (net(x) - net(torch.zeros_like(x)))[:, 1].mean().item()
    assert found.output_change == pytest.approx(change, rel=1e-9)
    for name, value in zip(found.names, found.values, strict=True):
        method = LayerConductance(net, net.get_submodule(name))
        _, delta = method.attribute(x, target=1, return_convergence_delta=True)
        assert found.deltas[name] == pytest.approx(delta.mean().item(), abs=1e-9)
        assert abs(value - change) <= abs(delta.mean().item()) + 1e-9
        assert abs(found.deltas[name]) < 0.05 * abs(change)


class Block(nn.Module):
    """x + branch(x), with a branch that may be zero."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def test_the_sides_of_a_join_are_those_of_a_linear_block_by_hand():
    torch.manual_seed(0)
    stem, head = nn.Linear(3, 4, bias=False).double(), nn.Linear(4, 2).double()
    net = nn.Sequential(stem, Block().double(), head)
    x = torch.randn(5, 3, dtype=torch.float64)
    (join,) = layer_attribution(net, x, 0, num_steps=5).joins
    w, hidden = head.weight[0], stem(x)
    assert join.shortcut == pytest.approx((hidden @ w).mean().item())
    assert join.branch == pytest.approx((hidden @ net[1].branch.weight.T @ w).mean().item())
    assert join.as_dict()["shortcut_share"] == pytest.approx(
        join.shortcut / (join.shortcut + join.branch)
    )


def test_the_sides_of_every_join_add_to_the_change_that_all_paths_carry():
    torch.manual_seed(0)
    net = zoo("resnet8", in_channels=3, num_classes=5, image_size=8).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    frame = analyzer.layer_attribution(net, x, 3, num_steps=100)
    change = (net(x) - net(torch.zeros_like(x)))[:, 3].mean().item()
    values = dict(zip(frame["name"], frame["attribution"], strict=True))
    joins = json.loads(frame.attrs["joins"])
    assert [join["name"] for join in joins] == ["layer1.0", "layer2.0", "layer3.0"]
    for join in joins:
        assert join["shortcut"] + join["branch"] == pytest.approx(change, rel=1e-9)
        last = [name for name in values if name.startswith(f"{join['name']}.branch")][-1]
        assert join["branch"] == pytest.approx(values[last], rel=0.02)


def test_many_samples_are_summed_in_groups():
    net, x = mlp()
    several = torch.cat([x, 2 * x, 3 * x])
    found = layer_attribution(net, several, 1, num_steps=50)
    parts = [layer_attribution(net, n * x, 1, num_steps=50).values[0] for n in (1, 2, 3)]
    assert found.values[0] == pytest.approx(sum(parts) / 3, rel=1e-9)


class Reused(nn.Module):
    """One ReLU called twice, and an addition in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(3, 3), nn.Linear(3, 3), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        out = self.second(x)
        out += 1
        return self.relu(out)


def test_reused_modules_are_told_apart_and_what_captum_cannot_do_is_said():
    torch.manual_seed(0)
    net, x = Reused(), torch.randn(4, 3)
    net.second.bias.data += 2
    found = layer_attribution(net, x, 0, num_steps=20)
    assert found.names == ["first", "relu", "second", "relu#1"]
    assert not found.refused
    twin = nn.Sequential(net.first, nn.ReLU(), net.second)
    first = LayerConductance(lambda x: torch.relu(twin(x) + 1), twin[1])
    expected = first.attribute(x, target=0, n_steps=20).sum().item() / 4
    assert found.values[1] == pytest.approx(expected, rel=1e-5)
    by_captum = layer_attribution(net, x, 0, "integrated_gradients", num_steps=5)
    assert (
        found.traps
        == by_captum.traps
        == {
            "first": "its output is changed in place afterwards",
            "relu": "its module is called 2 times; Captum sees one",
            "second": "its output is changed in place afterwards",
            "relu#1": "its module is called 2 times; Captum sees one",
        }
    )
    assert by_captum.refused["relu"] == "its module is called 2 times; Captum sees one"
    assert by_captum.refused["second"] == "its output is changed in place afterwards"
    assert math.isnan(by_captum.values[1])
    assert not math.isnan(by_captum.values[0])


@pytest.mark.parametrize("method", METHODS)
def test_checkpointed_blocks_have_the_attribution_of_plain_ones(method):
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self, is_checkpointed: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
            views = nn.Unflatten(1, (2, 4)), nn.Flatten()
            self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), *views, nn.Linear(8, 8))
            self.is_checkpointed = is_checkpointed

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            if self.is_checkpointed:
                return self.head(x + checkpoint(self.block, x, use_reentrant=False))
            return self.head(x + self.block(x))

    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    found, expected = (layer_attribution(Net(yes), inputs, 1, method) for yes in (True, False))
    assert found.names == expected.names and len(found.names) == 7
    assert not expected.refused
    if method == "integrated_gradients":  # Captum is wrong there: −0.0175 instead of −0.0290
        assert set(found.refused) == {"block.0", "block.1", "block.2", "block.3"}
        assert "checkpointing runs it again" in found.refused["block.0"]
    known = [place for place, name in enumerate(found.names) if name not in found.refused]
    values = [expected.values[place] for place in known]
    assert [found.values[place] for place in known] == pytest.approx(values, rel=1e-6)
    assert any(values)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Input Tensor")
def test_what_breaks_deeplift_is_said_and_measured_all_the_same():
    torch.manual_seed(0)
    first, relu, second = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)
    net, x = nn.Sequential(first, relu, second, relu, nn.Linear(4, 2)), torch.randn(4, 3)
    with pytest.raises(RuntimeError, match=r"A Module ReLU\(\) was detected"):
        DeepLift(net).attribute(x, torch.zeros_like(x), target=0)
    twin = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(inplace=True), net[4])
    plain = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), net[4])
    reused, inplace, neither = (analyzer.layer_attribution(n, x, 0) for n in (net, twin, plain))
    times = "its module is called 2 times; Captum sees one"
    said = {"1": times, "1#1": times}
    assert json.loads(reused.attrs["in_place_or_reused"]) == said
    assert json.loads(inplace.attrs["in_place_or_reused"]) == {
        "2": "its output is changed in place afterwards",
        "3": "its module works in place",
    }
    assert neither.attrs["in_place_or_reused"] == "{}"
    expected = neither["attribution"].tolist()
    for found in (reused, inplace):
        assert found["attribution"].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_layer_whose_output_is_no_tensor_throughout_is_refused_by_captum():
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten())
    found = layer_attribution(net, torch.randn(3, 5, 4), 2, "integrated_gradients", num_steps=3)
    assert found.refused["0.self_attn"].endswith("its output holds something that is not a tensor")
    assert math.isfinite(found.values[found.names.index("0.norm2")])


def test_the_probe_holds_every_method_on_one_batch(monkeypatch):
    net, x = mlp()
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    batch = HeldBatch(net, x, None, lambda output, _: output.mean(), y)
    measurement = measure(batch)
    columns = measurement.columns
    for method in BY_HAND:
        expected = layer_attribution(net, x, y, method, num_steps=20)
        rows = [place for place, name in enumerate(columns["method"]) if name == method]
        assert [columns["layer"][place] for place in rows] == list(range(5))
        assert [columns["name"][place] for place in rows] == expected.names
        assert [columns["attribution"][place] for place in rows] == expected.values
        assert sum(columns["share"][place] for place in rows) == pytest.approx(1)
    assert columns["method"][0] == "conductance"
    others = json.loads(measurement.metadata["by_method"])
    assert set(others["integrated_gradients"]["convergence_delta"]) == set(columns["name"])
    monkeypatch.setattr("analyzer.probes.attribution._MOST_PASSES", 4)
    assert set(BY_HAND) - set(measure(batch).columns["method"]) == {"integrated_gradients"}


def test_the_target_is_chosen_and_said():
    net, x = mlp()
    predicted = layer_attribution(net, x)
    assert predicted.target == "predicted class"
    assert predicted.values == layer_attribution(net, x, net(x).argmax(1)).values
    one = layer_attribution(nn.Sequential(nn.Linear(4, 1)).double(), x)
    assert one.target == "the only output"
    rows = nn.Sequential(net, nn.Unflatten(1, (1, 3)))
    assert layer_attribution(rows, x, (0, 2)).values[0] == layer_attribution(net, x, 2).values[0]


def test_what_does_not_fit_is_refused():
    net, x = mlp()
    with pytest.raises(ValueError, match="method 'shap' is unknown; expected one of conductance"):
        layer_attribution(net, x, 0, "shap")
    with pytest.raises(
        ValueError, match=r"the target 3 is not a class of an output of shape \[7, 3\]"
    ):
        layer_attribution(net, x, 3)
    with pytest.raises(ValueError, match=r"the target \(0, 1\) is outside of an output of shape"):
        layer_attribution(net, x, (0, 1))
    with pytest.raises(ValueError, match="num_steps is 0; expected at least 1"):
        layer_attribution(net, x, 0, num_steps=0)

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 3))

        def forward(self, ids: Tensor) -> Tensor:
            return self.table[ids]

    with pytest.raises(AnalyzerError, match="inputs of 'Table' cannot be scaled to zero"):
        layer_attribution(Table(), torch.tensor([1, 2]))


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout())
    net.append(nn.Linear(6, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = torch.randn(10, 4), torch.randint(3, (10,))
    state = torch.get_rng_state()
    batch = HeldBatch(net, x, None, lambda output, _: output.mean(), y)
    measurement = measure(batch)
    layer_attribution(net, x, 0, "integrated_gradients", num_steps=3)
    columns = ["layer", "name", "method", "attribution", "share"]
    assert list(measurement.columns) == columns
    assert measurement.metadata["target"] == "label"
    assert measurement.metadata["num_samples"] == "8"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert all(m.training and not m._forward_hooks for m in net.modules())
    assert net[2].inplace
    assert torch.equal(torch.get_rng_state(), state)


def test_the_frame_has_the_columns_of_the_contract():
    net, x = mlp()
    frame = analyzer.layer_attribution(net, x, 0, num_steps=4)
    assert frame.columns.tolist() == ["layer", "name", "method", "attribution", "share"]
    assert frame["share"].sum() == pytest.approx(1)
    assert set(json.loads(frame.attrs["convergence_delta"])) == set(frame["name"])
