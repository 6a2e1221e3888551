import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from analyzer.cli import main
from analyzer.errors import AnalyzerError
from analyzer.networks.data import dataset
from analyzer.studies.coordinates import CoordinateCheck, coordinate_check
from analyzer.studies.measuring import Scores, layer_sizes

DATA = dataset("digits")
BATCH = (DATA.train_inputs[:32].flatten(1), DATA.train_targets[:32])
WIDTHS = (32, 64, 128, 256)


class Net(nn.Module):
    """Three hidden layers; in the maximal-update parametrization for SGD, or the standard one."""

    def __init__(self, width: int, depth: int = 3, *, is_maximal: bool = True) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(
            nn.Linear(64 if place == 0 else width, width) for place in range(depth)
        )
        self.out = nn.Linear(width, 10)
        for layer in (*self.hidden, self.out):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
            nn.init.zeros_(layer.bias)
        if is_maximal:
            nn.init.normal_(self.out.weight, std=4 / width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.hidden:
            x = layer(x).relu()
        return self.out(x)


def optimizer(model: Any, **wrong: float) -> torch.optim.Optimizer:
    """Learning rates by layer of the maximal-update parametrization; ``wrong`` ones to a power."""
    width = model.out.in_features
    rates = {"hidden.0": width / 64, "out": 64 / width}
    return torch.optim.SGD(
        [
            {
                "params": list(module.parameters()),
                "lr": 0.02 * rates.get(name, 1.0) * (width / 64) ** wrong.get(name, 0.0),
            }
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        ]
    )


def check(
    build: Callable[..., nn.Module],
    parametrization: str = "maximal-update",
    wrong: dict[str, float] | None = None,
    **options: Any,
) -> CoordinateCheck:
    return coordinate_check(
        build,
        options.pop("widths", WIDTHS),
        data=[BATCH],
        build_optimizer=lambda model: optimizer(model, **(wrong or {})),
        parametrization=parametrization,
        steps=options.pop("steps", 1),
        seeds=options.pop("seeds", None),
        **options,
    )


def broken(name: str, power: float) -> Callable[[int], nn.Module]:
    """A right net whose one layer starts too large by a power of the width."""

    def build(width: int) -> nn.Module:
        net = Net(width)
        with torch.no_grad():
            net.get_submodule(name).weight.mul_((width / 64) ** power)  # type: ignore[operator]
        return net

    return build


def test_a_right_parametrization_passes_and_its_exponents_are_those_of_the_theory() -> None:
    found = check(Net)
    assert found.passes and found.culprit is None and found.look_at is None
    exponents = {
        (one.layer, one.quantity, one.step): one.exponent
        for one in found.growths
        if one.parameter in ("", "weight")
    }
    assert exponents["hidden.1", "activation", 0] == pytest.approx(0, abs=0.1)
    assert exponents["hidden.1", "gradient", 0] == pytest.approx(-1, abs=0.15)
    assert exponents["hidden.1", "update", 1] == pytest.approx(0, abs=0.15)
    assert exponents["out", "gradient", 0] == pytest.approx(0, abs=0.05)
    roles = {one.role for one in found.growths if one.layer == "hidden.0" and not one.parameter}
    assert roles == {"input"}
    assert exponents["hidden.1", "own update", 1] == pytest.approx(0, abs=0.15)
    assert found.sentence().endswith("are as the maximal-update parametrization expects.")


@pytest.mark.parametrize("layer", ["hidden.2"])
def test_a_layer_that_starts_too_large_is_found(layer: str) -> None:
    found = check(broken(layer, 0.5))
    assert (found.passes, found.look_at) == (False, layer)
    assert found.culprit is not None and found.culprit.quantity == "own activation"
    assert found.culprit.exponent > 0.25
    # A net of ReLUs without biases is homogeneous: the planted power adds to the exponent exactly.
    right, wrong = (
        check(build, widths=(16, 32, 64), seeds=2) for build in (Net, broken(layer, 0.5))
    )
    for one, other in zip(right.growths, wrong.growths, strict=True):
        if one.quantity == "activation":
            planted = 0.5 if one.layer in (layer, "out") else 0.0
            assert other.exponent - one.exponent == pytest.approx(planted, abs=1e-4)
    start = f"own activation of layer {layer} (weight) grows as width^0.5"
    assert found.sentence().startswith(start)
    assert "expected 0" in found.sentence()


def test_a_standard_net_fails_as_maximal_update_at_its_output_layer_and_passes_as_itself() -> None:
    def standard(width: int) -> nn.Module:
        return Net(width, is_maximal=False)

    assert check(standard).look_at == "out"
    found = coordinate_check(standard, WIDTHS, data=[BATCH], learning_rate=0.02, steps=1)
    assert found.passes
    slopes = {one.layer: one.exponent for one in found.growths if one.quantity == "gradient"}
    assert slopes["hidden.1"] == pytest.approx(-0.5, abs=0.15)


def test_depths_are_checked_one_by_one() -> None:
    found = coordinate_check(
        Net, (16, 32, 64), (1, 2), data=[BATCH], build_optimizer=optimizer, steps=1, seeds=2
    )
    assert {one.depth for one in found.growths} == {1, 2}
    layers = [one.layer for one in found.growths if (one.depth, one.quantity) == (2, "gradient")]
    assert layers == ["hidden.0", "hidden.1", "out"]


def test_a_readout_of_zeros_is_not_judged_where_nothing_arrives() -> None:
    def build(width: int) -> nn.Module:
        net = Net(width)
        nn.init.zeros_(net.out.weight)
        return net

    found = check(build, widths=(16, 32, 64), seeds=2)
    verdicts = {(one.layer, one.quantity, one.step): one.verdict for one in found.growths}
    assert verdicts["hidden.1", "gradient", 0] == "not judged"
    assert verdicts["out", "activation", 0] == "not judged"
    assert verdicts["out", "update", 1] != "not judged"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"widths": (8, 16)}, "expected at least 3"),
        ({"parametrization": "wrong"}, "the parametrization is 'wrong'"),
        ({"steps": 0}, "steps is 0"),
        ({"seeds": 1}, "2 seeds: one has no spread"),
    ],
)
def test_what_cannot_be_checked_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(AnalyzerError, match=said):
        check(Net, **options)


def test_layers_that_differ_by_width_are_refused() -> None:
    with pytest.raises(AnalyzerError, match=r"hidden\.2"):
        check(lambda width: Net(width, 3 if width > 8 else 2), widths=(8, 16, 32), seeds=2)


class Attention(nn.Module):
    """A transformer layer of two heads in the maximal-update parametrization for Adam, or wrong."""

    def __init__(self, width: int, wrong: str, kind: str) -> None:
        super().__init__()
        self.embedding, self.kind, self.wrong = nn.Embedding(8, width), kind, wrong
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, 5, bias=False)
        for layer in (self.q, self.k, self.v):
            nn.init.normal_(layer.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=width**-0.5 if wrong == "out" else 8 / width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scale = q.shape[-1] ** -0.5 if self.wrong == "scores" else 4 / q.shape[-1]
        if self.kind == "product":
            y = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            y = (scale * q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out((x + y.transpose(1, 2).flatten(-2)).mean(1))


def adam(net: Any) -> torch.optim.Optimizer:
    width = net.out.in_features
    return torch.optim.Adam(
        {
            "params": list(layer.parameters()),
            "lr": 0.01 * (1 if name == "embedding" and net.wrong != "embedding" else 32 / width),
        }
        for name, layer in net.named_children()
    )


@pytest.mark.parametrize(
    ("wrong", "kind", "found"),
    [
        ("", "product", None),
        ("out", "softmax", "own activation of layer out (weight) grows as width^"),
        ("embedding", "softmax", "own update of layer embedding (weight) grows as width^−1 "),
        ("scores", "softmax", "update of layer Attention (scores) grows as width^0."),
        ("scores", "product", "update of layer Attention (scores) grows as width^0."),
    ],
)
def test_attention_is_scaled_by_the_width_of_a_head(wrong: str, kind: str, found: Any) -> None:
    tokens = torch.randint(8, (32, 6), generator=torch.Generator().manual_seed(0))
    check = coordinate_check(
        lambda width: Attention(width, wrong, kind),
        (32, 64, 128, 256),
        data=[(tokens, tokens[:, 0] % 5)],
        build_optimizer=adam,
        parametrization="maximal-update",
        steps=1,
    )
    assert check.passes is (found is None)
    assert found is None or check.sentence().startswith(found)
    gradients = {one.layer: one.exponent for one in check.growths if one.quantity == "gradient"}
    # Behind scores that are divided by d, not by its root, smaller by as much; and no fault.
    expected = -1.0 if wrong == "scores" else -1.5
    assert gradients["q"] == pytest.approx(expected + 0.5 * (wrong == "out"), abs=0.25)


def test_scores_are_seen_inside_of_multihead_attention() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True))
    x, seen = torch.randn(3, 4, 8), []
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.MultiheadAttention):
                seen.append(layer(x, x, x, average_attn_weights=False)[1])
    sizes = layer_sizes(net, x, torch.zeros(3, 4, 8), nn.functional.mse_loss, with_scores=True)
    (scores,) = [one for one in sizes if isinstance(one.module, Scores)]
    assert scores.name == "0.self_attn (scores)"
    assert torch.allclose(scores.value.softmax(-1).reshape(seen[0].shape), seen[0], atol=1e-6)
    before = [one.name for one in sizes].index(scores.name)
    assert sizes[before + 1].name.startswith("0.self_attn")


def test_the_command_names_the_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.py"
    file.write_text(
        "from torch import nn\n"
        "def build_model(depth=2, width=8):\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(),\n"
        "        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))\n"
        "    nn.init.normal_(net[3].weight, std=0.1)\n"
        "    return net\n"
    )
    options = ["--model", str(file), "--widths", "32,64,128,256", "--seeds", "6"]
    assert main(["study", "--coordinate-check", *options]) == 1
    said = "own activation of layer 3 (weight) grows as width^"
    assert capsys.readouterr().out.startswith(said)
    options[-1] = "2"
    file.write_text(file.read_text().replace("nn.init", "# "))
    assert main(["study", "--coordinate-check", *options]) == 3
    assert capsys.readouterr().out.startswith("undecided: ")
    assert main(["study", "--coordinate-check", "--widths", "32,64,128"]) == 2
    assert "expected --model FILE" in capsys.readouterr().err
    options[-1] = "3,5,7"
    assert main(["study", "--coordinate-check", *options]) == 2
    assert "--seeds is '3,5,7'; expected how many" in capsys.readouterr().err
