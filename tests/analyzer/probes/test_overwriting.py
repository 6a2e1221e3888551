import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from analyzer.networks.zoo import zoo
from analyzer.probes.landscape.overwriting import overwriting


class Tangled(nn.Module):
    """Values that are read twice, sums that broadcast or change the type, a ReLU of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pooled, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        start = self.relu(x)
        read_twice = self.first(start)
        other = functional.relu(self.second(self.relu(read_twice) - read_twice))
        small = self.pooled(other.mean((2, 3), keepdim=True))
        wide = self.second(other) + x.double()
        doubled = self.first(other)
        return small + self.relu(wide + small) + (doubled + doubled) + start + 1


def test_values_that_something_else_reads_are_not_written_over():
    torch.manual_seed(0)
    net = Tangled().eval()
    x = torch.randn(2, 3, 5, 5)
    traced, before = fx.symbolic_trace(net), x.clone()
    text = traced.code
    changed = overwriting(traced)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(changed(x), expected)
        assert torch.equal(changed(x), expected)
        assert torch.equal(traced(x), expected)
    assert torch.equal(x, before)
    assert traced.code == text
    # Of three ReLUs behind the first, one reads what only it reads, and one reads a sum.
    assert changed.code.count("relu_(") == 2


def test_every_relu_and_every_sum_of_a_residual_network_needs_no_new_memory():
    torch.manual_seed(0)
    net = zoo("resnet20", in_channels=3, num_classes=10, image_size=8).eval()
    for module in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    traced = fx.symbolic_trace(net)
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    changed = overwriting(traced)
    assert (changed.code.count("relu_("), changed.code.count("added(")) == (19, 9)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(changed(x), net(x))
