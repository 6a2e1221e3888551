import torch
from torch import nn

from analyzer.probes import HeldBatch
from analyzer.probes.registry import probe_named


def test_zeros_of_each_layer_are_counted_before_a_later_layer_changes_them() -> None:
    x = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.eye(2)
    batch = HeldBatch(nn.Sequential(linear, nn.ReLU(inplace=True)), x, None, torch.sum)
    with torch.no_grad():
        found = probe_named("saturation")(batch)
    assert found.columns == {"layer": [0, 1], "name": ["0", "1"], "zero_share": [0.0, 0.25]}
    assert x[0, 1] == -1.0
