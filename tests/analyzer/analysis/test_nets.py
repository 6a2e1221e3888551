"""No miss and no false alarm: sick nets, their cures, and healthy nets."""

from pathlib import Path

import pytest
import torch
from torch import nn

import analyzer
from analyzer.analysis.findings import health
from tests.support.nets import HEALTHY_NETS, SICK_NETS, train_net

# One of each rule that the illnesses of `tests.support.illnesses` do not have; the rest is slow.
_QUICK_SICK = {
    "tanh with large weights",
    "a learning rate of 1e-5",
    "labels of other inputs",
    "an optimizer of the head alone",
    "a summed cross entropy",
    "gradients that are never cleared",
    "inputs from 0 to 255",
    "a weight decay of 1",
}
_QUICK_HEALTHY = {"VAE", "GAN", "fine-tuning"}
# What else is true of a net, besides what its name says.
_ALSO = {"nonfinite"}


def _marked(names: object, quick: set[str]) -> list[object]:
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in quick else slow) for name in names]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", _marked(SICK_NETS, _QUICK_SICK))
def test_a_sick_net_has_its_finding_and_its_remedy_takes_it_away(tmp_path: Path, name: str) -> None:
    code, make = SICK_NETS[name]
    found = analyzer.open_run(train_net(make(False), tmp_path / "sick")).findings()
    codes = [finding.code for finding in found]
    assert codes[:1] == [code] and {*codes} <= {code, *_ALSO}, [f.sentence for f in found]
    assert health(found) == code
    cured = analyzer.open_run(train_net(make(True), tmp_path / "cured")).findings()
    assert [f.sentence for f in cured if f.severity != "note"] == []


@pytest.mark.parametrize("name", _marked(HEALTHY_NETS, _QUICK_HEALTHY))
def test_a_healthy_net_raises_no_alarm(tmp_path: Path, name: str) -> None:
    found = analyzer.open_run(train_net(HEALTHY_NETS[name](), tmp_path / "run")).findings()
    assert [f.sentence for f in found if f.severity != "note"] == []
    assert health(found) == "healthy"


@pytest.mark.parametrize("options", [{"layers": "2"}, {"skip_layers": "0"}])
def test_what_the_options_leave_out_is_not_called_detached(tmp_path: Path, options: dict) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 4), torch.randint(0, 2, (16,))
    with analyzer.Recorder(model, tmp_path / "run", **options):
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert set(run.parameter_stats()["name"]) == {"2.weight", "2.bias"}
    assert [finding.sentence for finding in run.findings()] == []
