"""Programs that use autograd in unusual ways: same weights, and a record that is right."""

import copy
import warnings
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import analyzer
from analyzer.storage.run import open_run
from tests.support.commands import run
from tests.support.plain import Plain, compare
from tests.support.plain import recorded as recorded_twice


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        x = x + checkpoint(self.second, x, use_reentrant=False)
        return checkpoint(self.third, x, use_reentrant=True)


class Nested(nn.Module):
    """A module that owns a parameter and has layers inside, called by its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.encoder, self.decoder = nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x):
        return self.decoder(self.encoder(x)) * self.scale


def train(model, forward=lambda model, x: model(x), steps=3):
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        forward(model, torch.randn(4, 6)).square().mean().backward()
        optimizer.step()


def recorded(model, path, forward=lambda model, x: model(x)):
    twin = copy.deepcopy(model)
    train(twin, forward)
    with analyzer.Recorder(model, path):
        train(model, forward)
    for ours, plain in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, plain)
    return open_run(path)


def test_recomputed_calls_are_not_counted(tmp_path):
    run = recorded(Checkpointed(), tmp_path / "run")
    # Under reentrant checkpointing the only call with a gradient is a recomputed one: that counts.
    assert run.layers["name"].tolist() == ["first", "second", "third"]
    assert run.layers["depth"].tolist() == [1, 2, 3]
    assert (run.layer_stats()["output_gradient_norm"] > 0).all()


def test_a_model_that_is_called_by_its_parts_has_layers(tmp_path):
    run = recorded(Nested(), tmp_path / "run", lambda m, x: m.decoder(m.encoder(x)))
    assert run.layers["name"].tolist() == ["encoder", "decoder"]
    assert run.layers["depth"].tolist() == [1, 2]


def test_a_module_that_owns_a_parameter_is_a_layer_with_its_class_name_at_the_root(tmp_path):
    run = recorded(Nested(), tmp_path / "run")
    assert run.layers["name"].tolist() == ["encoder", "decoder", "Nested"]
    assert run.layers["depth"].tolist() == [1, 2, 3]
    named = dict(zip(run.parameters["name"], run.parameters["layer"], strict=True))
    assert named == {
        "scale": 2,
        "encoder.weight": 0,
        "encoder.bias": 0,
        "decoder.weight": 1,
        "decoder.bias": 1,
    }


def test_function_transforms_are_left_alone(tmp_path):
    model, x, y = nn.Linear(6, 1), torch.randn(4, 6), torch.randn(4, 1)

    def loss(parameters, a, b):
        return (functional_call(model, parameters, (a,)) - b).square().mean()

    detached = {name: p.detach() for name, p in model.named_parameters()}
    with analyzer.Recorder(model, tmp_path / "run"):
        per_sample = vmap(grad(loss), in_dims=(None, 0, 0))(detached, x, y)
        train(model)
    assert per_sample["weight"].shape == (4, 1, 6)
    assert len(open_run(tmp_path / "run").steps) == 3


def test_double_backward_gives_the_gradient_of_the_whole_loss(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(5, 6, requires_grad=True)

    def penalized(model):
        output = model(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return output.mean() + slope.square().sum()

    hidden = model[0](x)
    output = model[2](model[1](hidden))
    (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(output.mean() + slope.square().sum(), hidden)
    with analyzer.Recorder(model, tmp_path / "run"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalized(model).backward()
        optimizer.step()
    stats = open_run(tmp_path / "run").layer_stats(layers="0")
    assert stats["output_gradient_norm"].iloc[0] == pytest.approx(expected.norm().item(), rel=1e-5)


def test_a_backward_that_fails_is_not_counted(tmp_path):
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run"):
        with pytest.raises(RuntimeError, match="grad can be implicitly created only"):
            model(torch.randn(4, 6)).backward()
        loss = model(torch.randn(4, 6)).square().mean()
        loss.backward()
        with pytest.raises(RuntimeError, match="a second time"):
            loss.backward()
        optimizer.step()
    assert open_run(tmp_path / "run").steps["num_backward"].tolist() == [1]


def test_strange_outputs_do_not_stop_the_training(tmp_path):
    class Strange(nn.Module):
        def forward(self, x):
            return {"nothing": None, "value": x * 2, "text": "hello"}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.strange = nn.Linear(6, 2), Strange()

        def forward(self, x):
            return self.strange(self.linear(x))["value"]

    run = recorded(Model(), tmp_path / "run")
    assert run.layers["name"].tolist() == ["linear", "strange"]
    assert (run.layer_stats(layers="strange")["activation_norm"] > 0).all()


def test_tied_weights_belong_to_the_first_layer_that_uses_them(tmp_path):
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    run = recorded(model, tmp_path / "run")
    assert run.parameters["name"].tolist() == ["0.weight", "0.bias", "1.bias"]
    assert run.parameters["layer"].tolist() == [0, 0, 1]


def test_a_frozen_stem_has_depth_and_activations_but_no_gradient(tmp_path):
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).requires_grad_(False)
            self.head = nn.Linear(6, 1)

        def forward(self, x):
            return self.head(torch.relu(self.stem(x)) + 1)

    run = recorded(Frozen(), tmp_path / "run")
    assert run.layers["depth"].tolist() == [1, 2, 3]
    stats = run.layer_stats(steps=0)
    assert stats["activation_norm"].notna().all()
    assert stats["output_gradient_norm"].isna().tolist() == [True, True, False]
    assert run.parameters["trained"].tolist() == [False] * 4 + [True] * 2


def test_parallel_branches_share_depth(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
            self.deeper, self.head = nn.Linear(6, 6), nn.Linear(6, 1)

        def forward(self, x):
            return self.head(self.left(x) + self.deeper(self.right(x).relu()))

    run = recorded(Two(), tmp_path / "run")
    depth = dict(zip(run.layers["name"], run.layers["depth"], strict=True))
    assert depth == {"left": 1, "right": 1, "deeper": 2, "head": 3}


def test_an_error_of_the_recorder_ends_the_recording_and_not_the_training(tmp_path, monkeypatch):
    model = nn.Linear(6, 1)
    twin = copy.deepcopy(model)
    train(twin, steps=5)
    with analyzer.Recorder(model, tmp_path / "run") as recorder:
        optimizers = []

        def fail(*_):
            optimizers.append(1)
            if len(optimizers) == 3:
                raise LookupError("no such thing")

        monkeypatch.setattr(recorder.training.updates, "_receive", fail)
        train(model, steps=5)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )
    run = open_run(tmp_path / "run")
    assert run.steps["step"].tolist() == [0, 1]
    assert "recording ended in step 2" in run.manifest["not_recorded"][0]
    assert "LookupError: no such thing" in run.manifest["not_recorded"][0]


@pytest.mark.parametrize("inner", [False, True])
def test_an_optimizer_that_raises_has_attempted_an_update(inner: bool, tmp_path: Path) -> None:
    class Refuses(torch.optim.SGD):
        def step(self, closure=None):
            self.times = getattr(self, "times", 0) + 1
            if self.times in (2, 4):
                if inner:
                    super().step()
                raise KeyboardInterrupt
            return super().step(closure)

    def program(truth: Plain) -> None:
        model = truth.watch(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)))
        optimizer = Refuses(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            truth.update(model.named_parameters())
            with suppress(KeyboardInterrupt):
                optimizer.step()

    run, plain = recorded_twice(tmp_path / "run", program, updates_every=1)
    compare(run, plain)
    assert run.steps["num_backward"].tolist() == [1] * 5
    assert run.steps["num_discarded"].tolist() == [0] * 5
    moved = run.parameter_stats(columns=["update_norm"]).groupby("step")["update_norm"].max() > 0
    assert moved.tolist() == [True, inner, True, inner, True]


def test_torch_may_exchange_what_parameters_hold(tmp_path: Path) -> None:
    def program(truth: Plain) -> None:
        model = truth.watch(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            truth.update(model.named_parameters())
            optimizer.step()
            if step == 1:
                model.double().float()
        assert weakref.getweakrefs(model[0].weight) == []

    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        run, plain = recorded_twice(tmp_path / "run", program)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    compare(run, plain)
    assert run.parameters["name"].tolist() == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_warning_in_a_backward_pass_names_the_line_of_the_program(tmp_path: Path) -> None:
    def warned() -> list[tuple[str, int]]:
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
        model[0].register_full_backward_hook(lambda *_: None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(torch.ones(4, 6)).sum().backward()
        return [(warning.filename, warning.lineno) for warning in caught]

    plain = warned()
    with analyzer.Recorder(None, tmp_path / "run"):
        assert warned() == plain
    assert [name for name, _ in plain] == [__file__]


def test_an_interrupt_in_the_first_forward_pass_leaves_no_mode_behind(tmp_path):
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 6).requires_grad_(False)
            self.head = nn.Linear(6, 1)

        def forward(self, x):
            self.head(self.stem(x))
            raise KeyboardInterrupt

    model = Interrupted()
    with pytest.raises(KeyboardInterrupt), analyzer.Recorder(model, tmp_path / "run"):
        train(model)
    assert _get_current_function_mode_stack() == []


COPIES = """
import copy, io, pickle, sys
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
average = copy.deepcopy(model)
for step in range(3):
    optimizer.zero_grad()
    output = model(torch.ones(3, 4))
    torch.save(output, "output.pt")
    output.sum().backward()
    optimizer.step()
    average = copy.deepcopy(model)
    torch.save(model, "model.pt")
assert "analyzer" not in open("model.pt", "rb").read().decode("latin-1")
print(average(torch.ones(1, 4)).item(), len(pickle.dumps(model)), len(model[0]._forward_hooks))
"""


def test_a_model_is_copied_and_saved_as_without_the_recorder(tmp_path):
    (tmp_path / "copies.py").write_text(COPIES)
    plain = run(tmp_path, "copies.py")
    weights = (tmp_path / "model.pt").read_bytes()
    recorded = run(tmp_path, "-m", "analyzer", "record", "--quiet", "copies.py")
    assert recorded.returncode == 0, recorded.stderr
    assert recorded.stdout == plain.stdout
    assert recorded.stderr == plain.stderr
    assert len((tmp_path / "model.pt").read_bytes()) == len(weights)
