"""The correlation of activations against the closed form of wide nets, and pair by pair."""

import json
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

import analyzer
from analyzer.probes.forward_correlation import relu_correlation
from analyzer.storage.schema import PROBES


def relu_net(width: int, depth: int, inputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(depth):
        linear = nn.Linear(width if place else inputs, width, bias=False)
        nn.init.normal_(linear.weight, std=(2 / linear.in_features) ** 0.5)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def test_a_wide_relu_net_collapses_as_its_closed_form_says():
    torch.manual_seed(0)
    x = torch.randn(12, 20)
    frame = analyzer.forward_correlation(relu_net(2000, 12, 20), x)
    assert list(frame.columns) == ["layer", "name", "correlation"]
    curve = json.loads(frame.attrs["references"])["relu"]
    relus = frame.index % 2 == 1
    assert frame["correlation"][relus].tolist() == pytest.approx(
        [value for value, is_relu in zip(curve, relus, strict=True) if is_relu], abs=0.02
    )
    assert json.loads(frame.attrs["nonlinearities_below"]) == [k // 2 + k % 2 for k in range(24)]
    assert frame["correlation"].iloc[-1] > 0.85 > 0.5 > frame["correlation"].iloc[1]


def test_the_map_of_the_closed_form_has_its_known_values():
    cosine = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    expected = [1.0, 1 / torch.pi, 0.0]
    assert relu_correlation(cosine, 1).tolist() == pytest.approx(expected, abs=1e-12)
    # Near 1 it falls behind by 2√2 (1 − c)^{3/2} / 3π.
    gap = 1 - relu_correlation(torch.tensor([1 - 1e-4], dtype=torch.float64), 1).item()
    assert gap == pytest.approx(1e-4 - 2**1.5 * 1e-6 / (3 * torch.pi), rel=1e-3)


class Net(nn.Module):
    """A branch that works in place, batch norm, dropout, and a layer without an axis of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(6, 3)
        self.of_all = nn.Flatten(0)

    def forward(self, x, scale=1.0):
        h = self.relu(self.norm(self.first(x)))
        return self.last(self.drop(h) * scale) + 0 * self.of_all(h).sum()


def test_every_layer_is_the_mean_over_pairs_of_its_output():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(7, 4)
    frame = analyzer.forward_correlation(model, {"x": x, "scale": 0.5}).set_index("name")
    h = model.first(x)
    values = {"first": h}
    values["norm"] = (h - h.mean(0)) / (h.var(0, correction=0) + model.norm.eps).sqrt()
    values["relu"] = values["drop"] = values["norm"].relu()
    values["last"] = model.last(values["relu"] * 0.5)
    for name, value in values.items():
        value = value[value.any(dim=1)]  # zeros have no direction
        pairs = [cosine_similarity(a, b, dim=0).item() for a, b in combinations(value, 2)]
        assert frame["correlation"][name] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert torch.isnan(torch.tensor(frame["correlation"]["of_all"]))
    assert model.training and model.norm.num_batches_tracked == 0


def test_it_is_recorded_at_the_initialization(tmp_path):
    torch.manual_seed(0)
    model, x = relu_net(32, 3, 4), torch.randn(9, 4)
    expected = analyzer.forward_correlation(model, x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with analyzer.Recorder(model, tmp_path / "run", probe="forward_correlation"):
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    rows = analyzer.open_run(tmp_path / "run").probe("forward_correlation")
    assert sorted(set(rows["step"])) == [0, 2]
    first = rows[rows["step"] == 0]
    assert first["correlation"].tolist() == expected["correlation"].tolist()
    for name in PROBES["forward_correlation"].names[3:]:
        assert first[name].tolist() == json.loads(expected.attrs[name])
