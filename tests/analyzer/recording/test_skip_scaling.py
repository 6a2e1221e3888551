"""A recorded training with scaled shortcuts."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from analyzer import Recorder, open_run
from analyzer.errors import AnalyzerError
from analyzer.recording.skip_scaling import SkipScaling, SkipsNotScaledError


class Block(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.branch, self.drop, self.scale = nn.Linear(5, 5), nn.Dropout(0.2), scale

    def forward(self, x: Tensor, *, gain: float = 1.0) -> Tensor:
        if random.random() + np.random.rand() < 0.4:
            return x
        return self.scale * x + gain * torch.tanh(self.drop(self.branch(x)))


def net(scale: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), *[Block(scale) for _ in range(4)], nn.Linear(5, 1))


def train(model: nn.Module, steps: int = 12) -> list[float]:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(steps):
        x = torch.randn(8, 3)
        loss = mse_loss(model(x), x.sum(1, keepdim=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model(x)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_a_training_with_scaled_shortcuts_is_that_of_a_net_written_so(
    tmp_path: Path, scale: float, is_recorded: bool
) -> None:
    model = net(1.0)
    scaling = SkipScaling(scale)
    if is_recorded:
        with Recorder(model, tmp_path / "run", checkpoint_every=3, probe=["lesion:4"]) as recorder:
            scaling.start()
            found = train(model)
            scaling.stop()
        assert recorder.training.failure is None
        run = open_run(tmp_path / "run")
        assert run.steps["loss"].tolist() == found
        assert "not_recorded" not in run.manifest
        assert run.probes == ["lesion"]
    else:
        scaling.start()
        found = train(model)
        scaling.stop()
    written = net(scale)
    assert found == train(written)
    pairs = zip(model.parameters(), written.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_each_outermost_model_is_scaled_and_models_without_training_are_not() -> None:
    models = [nn.Sequential(Block(1.0)).eval() for _ in range(3)]
    models[2].requires_grad_(False)
    random.seed(0)
    np.random.seed(0)
    x = torch.randn(2, 5) + 10
    scaling = SkipScaling(0.0)
    scaling.start()
    found = [torch.stack([model(x) for _ in range(20)]).abs().mean() for model in models]
    scaling.stop()
    plain = [torch.stack([model(x) for _ in range(20)]).abs().mean() for model in models]
    assert found[0] < 0.8 * plain[0]
    assert found[1] < 0.8 * plain[1]
    assert found[2] == pytest.approx(plain[2].item(), rel=0.05)


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return checkpoint(lambda h: h + self.block(h), h, use_reentrant=False)


def test_what_cannot_be_scaled_raises_or_ends_the_program() -> None:
    said: list[str] = []
    for scaling, kind in (
        (SkipScaling(0.0), AnalyzerError),
        (SkipScaling(0.0, ends_program=True, on_problem=said.append), SkipsNotScaledError),
    ):
        scaling.start()
        model = Kept()
        with pytest.raises(kind) as caught:
            model(torch.randn(2, 5))
        scaling.stop()
    assert isinstance(caught.value, SystemExit)
    assert caught.value.code == 2
    assert said == [caught.value.message]
    assert said[0].startswith("the shortcut of 'Kept' is inside of a checkpoint")


def test_branches_are_rescaled_once_before_the_first_call_with_gradient() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(5, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 5), Wide()), torch.randn(60, 5)
    original = model(x).std().item()
    scaling = SkipScaling(0.0, rescales=True)
    scaling.start()
    with torch.no_grad():
        assert model(x).std().item() != pytest.approx(original, rel=0.05)
    assert model(x).std().item() == pytest.approx(original, rel=1e-4)
    weight = model[1].branch.weight.detach().clone()
    model(3 * x)
    scaling.stop()
    assert torch.equal(model[1].branch.weight, weight)


def test_a_recorder_scales_the_shortcuts_of_its_model(tmp_path):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.linear(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Block())
    plain = nn.Sequential(model[0], model[1].linear)
    x = torch.randn(3, 4)
    with Recorder(model, tmp_path / "run", skip_scale=0.0):
        assert torch.equal(model(x), plain(x))
        model(x).sum().backward()
    assert not torch.equal(model(x), plain(x))
    assert open_run(tmp_path / "run").manifest["skip_scale"] == 0


def test_a_probe_before_the_forward_of_a_call_plans_with_its_own_arguments(tmp_path: Path) -> None:
    class Sized(nn.Module):
        """Computes in another way for one sample than for several."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                x = torch.cat([x, self.second(x)]).sum(dim=0, keepdim=True)
            return x + self.first(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Sized())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, tmp_path / "run", skip_scale=0.0, probe="jacobian"):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).square().sum().backward()
            optimizer.step()
    run = open_run(tmp_path / "run")
    assert "not_recorded" not in run.manifest
    assert run.probe("jacobian")["step"].unique().tolist() == [0, 3]
