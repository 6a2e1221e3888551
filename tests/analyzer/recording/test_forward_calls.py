"""Programs that only call models: each outermost call is a step; a training that follows wins."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.recording import forward_calls
from analyzer.recording.recorder import Recorder


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu = nn.Linear(6, 6), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.relu(self.fc(self.relu(x)))


@contextmanager
def recorded(folder: Path, **options: int) -> Iterator[Recorder]:
    with Recorder(None, folder, manifest={"kind": "script"}, **options) as recorder:
        yield recorder


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_each_call_is_a_step_with_its_activations(
    tmp_path: Path, mode: Callable[[], object], is_frozen: bool
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(5, 6) for _ in range(3)]
    with recorded(tmp_path / "run", splits_every=2), mode():  # type: ignore[attr-defined]
        model = nn.Sequential(nn.Linear(6, 6), Block(), nn.Linear(6, 2)).eval()
        model.requires_grad_(not is_frozen)
        for x in inputs:
            model(x)
    run = analyzer.open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.steps["num_backward"].tolist() == [0, 0, 0]
    assert run.steps["loss"].isna().all()
    assert run.layers["name"].tolist() == ["0", "1.relu", "1.fc", "1.relu#1", "2"]
    assert run.layers["depth"].tolist() == [1, 2, 3, 4, 5]
    assert run.parameters["name"].tolist() == [name for name, _ in model.named_parameters()]
    assert not run.parameters["trained"].any()
    stats = run.layer_stats()
    assert stats["output_gradient_norm"].isna().all()
    with torch.inference_mode():
        outputs = np.array([model(x).double().norm().item() for x in inputs])
        inner = [model[1].fc(model[0](x).relu()) for x in inputs]
        relu = [(hidden.relu() == 0).double().mean().item() for hidden in inner]
    found = stats[stats["layer"] == 4]["activation_norm"].to_numpy()
    np.testing.assert_allclose(found, outputs, rtol=1e-6)
    found = stats[stats["layer"] == 3]["activation_zero_fraction"].to_numpy()
    np.testing.assert_allclose(found, relu, rtol=1e-6)
    assert run.manifest["not_recorded"][0].startswith("gradients and updates: no backward pass ran")
    assert run.joins["name"].tolist() == ["1"]
    assert run.joins["branch_layers"].tolist() == [["1.relu", "1.fc", "1.relu#1"]]
    assert set(run.layers["role"].dropna()) == {"branch"}
    splits = run.splits()
    assert splits["step"].tolist() == [0, 2]
    assert splits["fork_gradient_norm"].isna().all() and splits["shortcut_share"].isna().all()
    with torch.no_grad():
        for row, x in zip(splits.itertuples(), inputs[::2], strict=True):
            s = model[0](x).double()
            b = model[1](model[0](x)).double() - s
            norms = [tensor.norm().item() for tensor in (s, b, s + b)]
            found = [row.shortcut_output_norm, row.branch_output_norm, row.join_output_norm]
            assert found == pytest.approx(norms, rel=1e-5)
            cosine = ((s * b).sum() / (s.norm() * b.norm())).item()
            assert row.output_cosine == pytest.approx(cosine, rel=1e-5)


def test_calls_before_a_training_are_dropped_and_nothing_is_paid_afterwards(tmp_path: Path) -> None:
    with recorded(tmp_path / "run") as recorder:
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        capture, forward = recorder.training.capture, recorder.forward
        assert forward is not None
        with torch.no_grad():
            model.eval()(torch.randn(3, 6))
        assert capture.watches_all and len(forward.steps) == 1
        for _ in range(4):
            model(torch.randn(3, 6)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert not forward.wants_all and not forward.steps
            model(torch.randn(3, 6)).detach()
    run = analyzer.open_run(tmp_path / "run")
    assert run.steps["num_backward"].tolist() == [1] * 4
    assert len(run.layers) == 3 and run.layer_stats()["output_gradient_norm"].notna().all()
    assert "not_recorded" not in run.manifest


def test_an_update_without_a_backward_pass_is_a_training_too(tmp_path: Path) -> None:
    with recorded(tmp_path / "run") as recorder:
        model = nn.Linear(6, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for parameter, gradient in zip(
            model.parameters(),
            torch.autograd.grad(model(torch.ones(2, 6)).sum(), list(model.parameters())),
            strict=True,
        ):
            parameter.grad = gradient
        optimizer.step()
        assert recorder.has_trained
    assert "each call of a model" not in str(analyzer.open_run(tmp_path / "run").manifest)


def test_gradients_that_nobody_received_are_named(tmp_path: Path) -> None:
    with recorded(tmp_path / "run"):
        model, x = nn.Linear(6, 2), torch.ones(2, 6, requires_grad=True)
        torch.autograd.grad(model(x).sum(), x)
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.steps) == 1
    assert any("autograd.grad" in reason for reason in run.manifest["not_recorded"])


def test_no_more_than_a_hundred_calls_are_kept(tmp_path: Path) -> None:
    with recorded(tmp_path / "run") as recorder:
        model = nn.Linear(6, 2)
        for _ in range(103):
            model(torch.ones(2, 6))
        assert recorder.forward is not None and not recorder.forward.wants_all
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.steps) == 100
    assert "calls of models after the first 100" in run.manifest["not_recorded"]


def test_rows_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_calls, "_MOST_ROWS", 10)
    with recorded(tmp_path / "run"):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        for _ in range(5):
            model(torch.ones(2, 4))
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.steps) == 3 and len(run.layer_stats()) == 10
    assert "calls of models after the first 3" in run.manifest["not_recorded"]


class Sized(nn.Module):
    """Looks at the size of a part before it is complete."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(self.stem(torch.zeros(1, 1, 5, 5)).numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).flatten(1))


def test_a_part_that_was_called_before_its_model_was_complete_is_no_call(tmp_path: Path) -> None:
    with recorded(tmp_path / "run"):
        model = Sized()
        model(torch.randn(4, 1, 5, 5))
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.steps) == 1
    assert run.layers["name"].tolist() == ["stem", "head"]
    assert run.layers["output_shape"].map(list).tolist() == [[4, 2, 3, 3], [4, 3]]


def test_modules_without_parameters_and_calls_that_fail(tmp_path: Path) -> None:
    with recorded(tmp_path / "run"):
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(5, 2))
        with pytest.raises(RuntimeError, match="shapes"):
            model(torch.ones(2, 6))
        nn.ReLU()(nn.CrossEntropyLoss()(torch.randn(2, 3), torch.tensor([0, 1])))
        model[0](torch.ones(2, 6))
    run = analyzer.open_run(tmp_path / "run")
    assert len(run.steps) == 2
    assert run.layer_stats().groupby("step").size().tolist() == [1, 1]


def test_chosen_steps_and_layers(tmp_path: Path) -> None:
    with Recorder(None, tmp_path / "run", every=2, layers="^1"):
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
        for _ in range(4):
            model(torch.ones(2, 6))
    run = analyzer.open_run(tmp_path / "run")
    assert run.steps["step"].tolist() == [0, 1, 2, 3]
    stats = run.layer_stats()
    assert stats["step"].tolist() == [0, 2]
    assert run.layers.set_index("layer")["name"][stats["layer"]].tolist() == ["1", "1"]
