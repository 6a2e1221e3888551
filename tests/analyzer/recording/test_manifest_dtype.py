from pathlib import Path

import torch
from torch import Tensor, nn

import analyzer


class Mixed(nn.Module):
    """Layers of two types, and a frozen one of a third."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1).double()
        self.frozen = nn.Linear(1, 1).half().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Call both trained layers."""
        result: Tensor = self.second(self.first(x).double())
        return result


def test_the_manifest_names_the_types_of_the_trained_parameters(tmp_path: Path) -> None:
    model = Mixed()
    with analyzer.Recorder(model, tmp_path / "run"):
        model(torch.ones(1, 2)).sum().backward()
    manifest = analyzer.open_run(tmp_path / "run").manifest
    assert manifest["dtype"] == "float32, float64"
    assert len(manifest["first_batch"]) == 16


def test_the_digest_of_the_first_batch_tells_batches_apart(tmp_path: Path) -> None:
    digests = []
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        model = nn.Linear(2, 1)
        with analyzer.Recorder(model, tmp_path / name):
            model(torch.full((1, 2), value)).sum().backward()
        digests.append(analyzer.open_run(tmp_path / name).manifest["first_batch"])
    assert digests[0] == digests[1] != digests[2]


def test_the_manifest_names_the_optimizers_with_their_constants(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    sgd = torch.optim.SGD([model.weight], lr=0.1, momentum=0.9)
    adam = torch.optim.Adam([model.bias], lr=torch.tensor(0.1), betas=(0.8, 0.99))
    with analyzer.Recorder(model, tmp_path / "run"):
        for _ in range(2):
            model(torch.ones(1, 2)).sum().backward()
            sgd.step()
            adam.step()
    manifest = analyzer.open_run(tmp_path / "run").manifest
    assert manifest["optimizers"] == [
        {"name": "SGD", "momentum": 0.9},
        {"name": "Adam", "betas": [0.8, 0.99]},
    ]
