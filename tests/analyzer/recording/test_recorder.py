"""The recorder against plain autograd on the same training, done by hand."""

import copy
import math
import sys
from types import ModuleType

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from torch import nn

import analyzer
from analyzer.errors import AnalyzerError, RunExistsError


class Awkward(nn.Module):
    """A frozen stem, a ReLU used twice (once in place), an in-place addition, an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.relu, self.unused, self.head = nn.ReLU(inplace=True), nn.Linear(3, 3), nn.Linear(8, 2)
        self.stem.requires_grad_(False)

    def forward(self, x):
        y = self.relu(self.first(self.stem(x)))
        z = self.second(y)
        z += y
        return self.head(self.relu(z))


def rows(run, table):
    return ds.dataset(run / table, format="parquet").to_table().to_pandas().sort_values("step")


def loss_of(model, x, y):
    return nn.functional.mse_loss(model(x), y)


def batches(steps, micro=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            (torch.randn(6, 4, generator=generator), torch.randn(6, 2, generator=generator))
            for _ in range(micro)
        ]
        for _ in range(steps)
    ]


def train(model, data, *, clip=None, after=lambda step: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step, parts in enumerate(data):
        optimizer.zero_grad()
        for x, y in parts:
            (loss_of(model, x, y) / len(parts)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        after(step)


def by_hand(model, x, y):
    """Outputs and output gradients of every call, by the plainest means."""
    first = model.first(model.stem(x))
    a = first.relu()
    second = model.second(a)
    total = second + a
    b = total.relu()
    outputs = {
        "stem": model.stem(x),
        "first": first,
        "relu": a,
        "second": second,
        "relu#1": b,
        "head": model.head(b),
    }
    loss = nn.functional.mse_loss(outputs["head"], y)
    traced = [name for name, t in outputs.items() if t.requires_grad]
    gradients = torch.autograd.grad(loss, [outputs[name] for name in traced], retain_graph=True)
    return loss, outputs, dict(zip(traced, gradients, strict=True))


def test_layer_statistics_equal_plain_autograd(tmp_path):
    torch.manual_seed(0)
    model = Awkward()
    twin = copy.deepcopy(model)
    data = batches(3)
    with analyzer.Recorder(model, tmp_path / "run"):
        train(model, data)
    layers = ds.dataset(tmp_path / "run" / "layers.parquet").to_table().to_pandas()
    assert layers["name"].tolist() == ["stem", "first", "relu", "second", "relu#1", "head"]
    assert layers["module"].tolist() == ["stem", "first", "relu", "second", "relu", "head"]
    assert layers["call"].tolist() == [0, 0, 0, 0, 1, 0]
    assert layers["depth"].tolist() == [1, 2, 3, 4, 5, 6]
    assert layers["kind"].tolist() == ["Linear", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert layers["num_parameters"].tolist() == [40, 72, 0, 72, 0, 18]
    assert [list(shape) for shape in layers["output_shape"]] == [[6, 8]] * 5 + [[6, 2]]
    stats = rows(tmp_path / "run", "layer_stats")
    checked = 0

    def check(step):
        nonlocal checked
        x, y = data[step + 1][0]
        _, outputs, gradients = by_hand(twin, x, y)
        for layer, name in enumerate(layers["name"]):
            row = stats[(stats["step"] == step + 1) & (stats["layer"] == layer)].iloc[0]
            out = outputs[name].detach().double()
            dead = int((out == 0).all(dim=0).sum())
            expected = {
                "activation_norm": out.norm().item(),
                "activation_mean": out.mean().item(),
                "activation_std": out.std(correction=0).item(),
                "activation_min": out.min().item(),
                "activation_max": out.max().item(),
                "activation_zero_fraction": (out == 0).double().mean().item(),
                "activation_num_dead": dead,
                "activation_num_nonfinite": 0,
            }
            if name in gradients:
                g = gradients[name].double()
                expected |= {
                    "output_gradient_norm": g.norm().item(),
                    "output_gradient_mean_abs": g.abs().mean().item(),
                    "output_gradient_max_abs": g.abs().max().item(),
                    "output_gradient_zero_fraction": (g == 0).double().mean().item(),
                    "output_gradient_num_nonfinite": 0,
                }
            else:
                assert math.isnan(row["output_gradient_norm"])
            for column, value in expected.items():
                assert row[column] == pytest.approx(value, rel=1e-5, abs=1e-7), (name, column)
                checked += 1

    train(twin, data[:2], after=check)
    assert checked == 2 * (6 * 8 + 5 * 5)


def test_parameter_statistics_are_what_the_optimizer_receives(tmp_path):
    torch.manual_seed(0)
    model = Awkward()
    twin = copy.deepcopy(model)
    data = batches(3)
    with analyzer.Recorder(model, tmp_path / "run", updates_every=2):
        train(model, data, clip=0.05)
    table = ds.dataset(tmp_path / "run" / "parameters.parquet").to_table().to_pandas()
    assert table["name"].tolist() == [name for name, _ in twin.named_parameters()]
    assert table["trained"].tolist() == [p.requires_grad for p in twin.parameters()]
    used = dict(zip(table["name"], table["layer"], strict=True))
    assert used["first.bias"] == 1 and used["head.weight"] == 5 and math.isnan(used["unused.bias"])
    stats = rows(tmp_path / "run", "parameter_stats")
    steps = rows(tmp_path / "run", "steps")
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for step, ((x, y),) in enumerate(data):
        optimizer.zero_grad()
        loss = loss_of(twin, x, y)
        loss.backward()
        grads = [p.grad for p in twin.parameters() if p.grad is not None]
        total = torch.cat([g.flatten() for g in grads]).double().norm().item()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
        received = torch.cat([g.flatten() for g in grads]).double().norm().item()
        row = steps.iloc[step]
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert row["gradient_norm"] == pytest.approx(total, rel=1e-5)
        assert row["clip_factor"] == pytest.approx(received / total, rel=1e-5)
        assert row["learning_rate"] == 0.1 and row["num_backward"] == 1 and not row["skipped"]
        before = [p.detach().clone() for p in twin.parameters()]
        optimizer.step()
        for number, parameter in enumerate(twin.parameters()):
            found = stats[(stats["step"] == step) & (stats["parameter"] == number)]
            if not parameter.requires_grad:
                assert found.empty
                continue
            found = found.iloc[0]
            assert found["norm"] == pytest.approx(before[number].double().norm().item(), rel=1e-5)
            if parameter.grad is None:
                assert math.isnan(found["gradient_norm"])
            else:
                g = parameter.grad.double()
                assert found["gradient_norm"] == pytest.approx(g.norm().item(), rel=1e-5)
                assert found["gradient_mean_abs"] == pytest.approx(g.abs().mean().item(), rel=1e-5)
                assert found["gradient_max_abs"] == pytest.approx(g.abs().max().item(), rel=1e-5)
                assert found["gradient_num_nonfinite"] == 0
            if step % 2 == 0:
                moved = (parameter.detach() - before[number]).double().norm().item()
                assert found["update_norm"] == pytest.approx(moved, rel=1e-5, abs=1e-12)
            else:
                assert math.isnan(found["update_norm"])


@pytest.mark.parametrize("micro", [2, 3])
def test_micro_batches_are_one_step(tmp_path, micro):
    torch.manual_seed(0)
    model = Awkward()
    twin = copy.deepcopy(model)
    data = batches(2, micro)
    with analyzer.Recorder(model, tmp_path / "run"):
        train(model, data, clip=0.1)
    steps = rows(tmp_path / "run", "steps")
    assert steps["num_backward"].tolist() == [micro, micro]
    assert len(ds.dataset(tmp_path / "run" / "layers.parquet").to_table()) == 6
    stats = rows(tmp_path / "run", "layer_stats")
    parts = [by_hand(twin, x, y) for x, y in data[0]]
    assert steps["loss"][0] == pytest.approx(
        sum(loss.item() for loss, _, _ in parts) / micro, rel=1e-6
    )
    grads = torch.cat([p.flatten() for p in _gradients(twin, data[0])]).double()
    assert steps["gradient_norm"].iloc[0] == pytest.approx(grads.norm().item(), rel=1e-5)
    assert steps["clip_factor"].iloc[0] == pytest.approx(0.1 / grads.norm().item(), rel=1e-4)
    for layer, name in ((1, "first"), (2, "relu"), (4, "relu#1"), (5, "head")):
        row = stats[(stats["step"] == 0) & (stats["layer"] == layer)].iloc[0]
        out = torch.cat([outputs[name] for _, outputs, _ in parts]).detach().double()
        g = torch.cat([gradients[name] / micro for _, _, gradients in parts]).double()
        assert row["activation_norm"] == pytest.approx(out.norm().item(), rel=1e-5)
        assert row["activation_std"] == pytest.approx(out.std(correction=0).item(), rel=1e-5)
        assert row["activation_num_dead"] == int((out == 0).all(dim=0).sum())
        assert row["output_gradient_norm"] == pytest.approx(g.norm().item(), rel=1e-5)
        assert row["output_gradient_mean_abs"] == pytest.approx(g.abs().mean().item(), rel=1e-5)


def _gradients(model, parts):
    model.zero_grad()
    for x, y in parts:
        (loss_of(model, x, y) / len(parts)).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_weights_are_bit_identical_and_nothing_is_left_behind(tmp_path):
    torch.manual_seed(0)
    model = Awkward()
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    train(twin, batches(4), clip=0.1)
    expected_state = torch.get_rng_state()
    torch.manual_seed(1)
    with analyzer.Recorder(model, tmp_path / "run", updates_every=1):
        train(model, batches(4), clip=0.1)
        output = model(torch.zeros(1, 4))
    assert torch.equal(torch.get_rng_state(), expected_state)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not output._backward_hooks


def test_validation_without_backward_is_not_counted(tmp_path):
    torch.manual_seed(0)
    model = Awkward()
    data = batches(3)

    def validate(step):
        model.eval()
        with torch.no_grad():
            model(torch.full((50, 4), 100.0))
        kept.append(model(torch.full((50, 4), 100.0)))  # with gradient, and its graph stays alive
        model.train()

    kept: list[torch.Tensor] = []
    with analyzer.Recorder(model, tmp_path / "run"):
        train(model, data, after=validate)
    assert len(ds.dataset(tmp_path / "run" / "layers.parquet").to_table()) == 6
    stats = rows(tmp_path / "run", "layer_stats")
    assert stats["activation_max"].max() < 50
    assert stats.groupby("step").size().tolist() == [6, 6, 6]


def test_every_selects_steps_and_all_steps_have_a_loss(tmp_path):
    with analyzer.Recorder(model := Awkward(), tmp_path / "run", every=3):
        train(model, batches(7))
    assert rows(tmp_path / "run", "steps")["step"].tolist() == list(range(7))
    assert rows(tmp_path / "run", "steps")["loss"].notna().all()
    assert rows(tmp_path / "run", "layer_stats")["step"].unique().tolist() == [0, 3, 6]


def test_layers_and_columns_can_be_chosen(tmp_path):
    with analyzer.Recorder(
        model := Awkward(), tmp_path / "a", layers="first|relu", skip_layers="1"
    ):
        train(model, batches(2))
    with analyzer.Recorder(model, tmp_path / "b", columns="norms"):
        train(model, batches(2))
    layers = ds.dataset(tmp_path / "a" / "layers.parquet").to_table().to_pandas()
    written = rows(tmp_path / "a", "layer_stats")["layer"].unique()
    assert {layers["name"][i] for i in written} == {"first", "relu", "relu#1"}
    norms = rows(tmp_path / "b", "layer_stats")
    assert norms["output_gradient_norm"].notna().any()
    assert norms["activation_mean"].isna().all()


def test_stop_after_leaves_the_block(tmp_path):
    done = []
    with analyzer.Recorder(model := Awkward(), tmp_path / "run", stop_after=2):
        train(model, batches(9), after=done.append)
    assert done == [0, 1]
    assert rows(tmp_path / "run", "steps")["step"].tolist() == [0, 1]


def test_logged_values_belong_to_the_current_step(tmp_path):
    with analyzer.Recorder(model := Awkward(), tmp_path / "run") as recorder:
        train(
            model, batches(3), after=lambda step: recorder.log(accuracy=step / 10, note=f"n{step}")
        )
    steps = rows(tmp_path / "run", "steps")
    assert steps["accuracy"].tolist() == [0.0, 0.1, 0.2]
    assert steps["note"].tolist() == ["n0", "n1", "n2"]
    with pytest.raises(AnalyzerError, match="is closed"):
        recorder.log(accuracy=1.0)


def test_values_that_cannot_be_logged_are_refused(tmp_path):
    with analyzer.Recorder(nn.Linear(2, 2), tmp_path / "run") as recorder:
        with pytest.raises(ValueError, match="'loss' is a column"):
            recorder.log(loss=1.0)
        with pytest.raises(ValueError, match=r"shape \[3\]"):
            recorder.log(values=torch.zeros(3))
        with pytest.raises(TypeError, match="'things' is a list"):
            recorder.log(things=[1])


def test_a_step_without_an_optimizer_is_one_backward(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    before = []
    with analyzer.Recorder(model, tmp_path / "run", updates_every=1):
        for ((x, y),) in batches(3):
            model.zero_grad()
            loss_of(model, x, y).backward()
            before.append([p.detach().clone() for p in model.parameters()])
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
    steps, stats = rows(tmp_path / "run", "steps"), rows(tmp_path / "run", "parameter_stats")
    assert steps["step"].tolist() == [0, 1, 2]
    moved = (before[1][0] - before[0][0]).norm().item()
    first = stats[(stats["step"] == 0) & (stats["parameter"] == 0)].iloc[0]
    assert first["update_norm"] == pytest.approx(moved, rel=1e-5)
    assert first["gradient_norm"] == pytest.approx(moved / 0.1, rel=1e-5)


def test_a_closure_gives_one_row_with_its_first_evaluation(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn=None)
    data = batches(2)
    evaluations = [0, 0]
    losses = []
    with analyzer.Recorder(model, tmp_path / "run", updates_every=1):
        for step, ((x, y),) in enumerate(data):

            def closure(step=step, x=x, y=y):
                evaluations[step] += 1
                optimizer.zero_grad()
                loss = loss_of(model, x, y)
                loss.backward()
                losses.append((step, loss.item(), model.weight.grad.norm().item()))
                return loss

            optimizer.step(closure)
    steps, stats = rows(tmp_path / "run", "steps"), rows(tmp_path / "run", "parameter_stats")
    assert steps["num_backward"].tolist() == evaluations
    assert min(evaluations) > 1
    firsts = [next(entry for entry in losses if entry[0] == step) for step in range(2)]
    assert steps["loss"].tolist() == pytest.approx([loss for _, loss, _ in firsts], rel=1e-6)
    weights = stats[stats["parameter"] == 0]
    assert weights["gradient_norm"].tolist() == pytest.approx([g for _, _, g in firsts], rel=1e-5)
    assert (weights["update_norm"] > 0).all()
    layer_rows = rows(tmp_path / "run", "layer_stats")
    assert layer_rows["step"].tolist() == [0, 1]
    out = twin(data[0][0][0]).detach().double().norm().item()
    assert layer_rows["activation_norm"].iloc[0] == pytest.approx(out, rel=1e-5)


def test_consecutive_updates_are_one_step_and_leftovers_a_last_one(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizers = [
        torch.optim.SGD(part.parameters(), lr=rate)
        for part, rate in zip(model, (0.1, 0.2), strict=True)
    ]
    with analyzer.Recorder(model, tmp_path / "run"):
        for ((x, y),) in batches(2):
            loss_of(model, x, y).backward()
            for optimizer in optimizers:
                optimizer.step()
        loss_of(model, x, y).backward()
    steps = rows(tmp_path / "run", "steps")
    assert steps["step"].tolist() == [0, 1, 2]
    assert steps["learning_rate"].tolist()[:2] == [0.1, 0.1]
    assert steps["learning_rate_1"].tolist()[:2] == [0.2, 0.2]
    stats = rows(tmp_path / "run", "parameter_stats")
    assert sorted(stats[stats["step"] == 0]["parameter"]) == [0, 1, 2, 3]


def test_two_backward_passes_over_one_graph_add(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 4)
    hidden = model[0](x)
    output = model[2](model[1](hidden))
    expected = torch.autograd.grad(output.mean() + output.square().mean(), hidden)[0]
    with analyzer.Recorder(model, tmp_path / "run"):
        output = model(x)
        output.mean().backward(retain_graph=True)
        output.square().mean().backward()
        optimizer.step()
    steps, stats = rows(tmp_path / "run", "steps"), rows(tmp_path / "run", "layer_stats")
    assert steps["num_backward"].tolist() == [2]
    norm = stats[stats["layer"] == 0]["output_gradient_norm"].iloc[0]
    assert norm == pytest.approx(expected.norm().item(), rel=1e-5)
    assert len(stats) == 3


def test_autograd_grad_is_no_backward_pass(tmp_path):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(model, tmp_path / "run"):
        for ((x, y),) in batches(2):
            torch.autograd.grad(loss_of(model, x, y), model.parameters())
            optimizer.zero_grad()
            loss_of(model, x, y).backward()
            optimizer.step()
    assert rows(tmp_path / "run", "steps")["num_backward"].tolist() == [1, 1]
    layers = ds.dataset(tmp_path / "run" / "layers.parquet").to_table().to_pandas()
    assert layers["name"].tolist() == ["Linear"]


def test_clip_grad_value_is_seen(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batches(1)[0][0]
    with analyzer.Recorder(model, tmp_path / "run"):
        loss_of(model, x, y).backward()
        total = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
        received = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        optimizer.step()
    row = rows(tmp_path / "run", "steps").iloc[0]
    assert row["gradient_norm"] == pytest.approx(total, rel=1e-5)
    assert row["clip_factor"] == pytest.approx(received / total, rel=1e-5)


def test_gradients_below_1e30_are_not_zero(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        *[m for _ in range(100) for m in (nn.Linear(16, 16), nn.Tanh())], nn.Linear(16, 2)
    )
    for p in model.parameters():
        p.data *= 0.9
    twin = copy.deepcopy(model).double()
    x, y = torch.randn(8, 16), torch.randn(8, 2)
    with analyzer.Recorder(model, tmp_path / "run"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss_of(model, x, y).backward()
        optimizer.step()
    first = twin[0](x.double())
    (gradient,) = torch.autograd.grad(loss_of(twin[1:], first, y.double()), first)
    stats = rows(tmp_path / "run", "layer_stats")
    found = stats[stats["layer"] == 0]["output_gradient_norm"].iloc[0]
    assert 0 < gradient.abs().max().item() < 1e-30
    assert found == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_nan_is_recorded_as_nan(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(5, 4)
    x[0, 0] = math.nan
    with analyzer.Recorder(model, tmp_path / "run"):
        model(x).sum().backward()
        optimizer.step()
    table = ds.dataset(tmp_path / "run" / "layer_stats").to_table()
    norms = table.column("activation_norm")
    assert norms.null_count == 0
    assert math.isnan(norms[0].as_py())
    assert table.column("activation_num_nonfinite")[0].as_py() == 3
    assert math.isnan(rows(tmp_path / "run", "steps")["loss"].iloc[0])


def test_an_existing_folder_is_never_overwritten(tmp_path):
    with pytest.raises(RunExistsError, match="never overwritten"):
        analyzer.Recorder(nn.Linear(1, 1), tmp_path)
    taken = analyzer.Recorder(nn.Linear(1, 1), tmp_path, exist="new")
    assert taken.path.name == f"{tmp_path.name}-1"


def test_a_failure_is_kept_and_passes_on(tmp_path):
    with (
        pytest.raises(ZeroDivisionError, match="division"),
        analyzer.Recorder(model := nn.Linear(4, 2), tmp_path / "run"),
    ):
        train(model, batches(2), after=lambda step: step and 1 / 0)
    text = (tmp_path / "run" / "run.json").read_text()
    assert '"status": "failed"' in text and "ZeroDivisionError: division by zero" in text
    assert rows(tmp_path / "run", "steps")["step"].tolist() == [0, 1]


def test_wrong_arguments_are_refused_in_words(tmp_path):
    with pytest.raises(TypeError, match=r"model is a list; expected a torch\.nn\.Module"):
        analyzer.Recorder([], tmp_path / "run")
    with pytest.raises(ValueError, match="every is 0; expected a whole number from 1 up"):
        analyzer.Recorder(nn.Linear(1, 1), tmp_path / "run", every=0)
    with pytest.raises(ValueError, match="expected a regular expression"):
        analyzer.Recorder(nn.Linear(1, 1), tmp_path / "run", layers="(")


def test_a_training_continues_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    model, (x, y) = nn.Linear(4, 2), batches(1)[0][0]
    recorder = analyzer.Recorder(model, tmp_path / "file" / "run")
    told = r"cannot write run .*Not a directory\); the training continues, nothing more is recorded"
    with pytest.warns(RuntimeWarning, match=told), recorder:
        loss_of(model, x, y).backward()
    assert model.weight.grad is not None
    assert "Not a directory" in recorder.storage_failure


def test_in_a_notebook_a_folder_that_exists_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert analyzer.Recorder(None, tmp_path / "run").path == tmp_path / "run-1"
    with pytest.raises(RunExistsError):
        analyzer.Recorder(None, tmp_path / "run", exist="raise")


def test_a_run_without_a_name_takes_that_of_its_model(tmp_path, monkeypatch):
    monkeypatch.setenv("ANALYZER_RUNS", str(tmp_path))
    (tmp_path / "linear-0").mkdir()
    assert analyzer.Recorder(nn.Linear(1, 1)).path == tmp_path / "linear-1"
    assert analyzer.Recorder(None).path == tmp_path / "run-0"


def test_numbers_of_any_kind_are_logged_once_a_run_is_open_and_never_after(tmp_path):
    model, (x, y) = nn.Linear(4, 2), batches(1)[0][0]
    with analyzer.Recorder(model, tmp_path / "run") as recorder:
        loss_of(model, x, y).backward()
        recorder.log(accuracy=torch.tensor(0.5), count=np.int64(3))
    steps = analyzer.open_run(tmp_path / "run").steps
    assert (steps["accuracy"].tolist(), steps["count"].tolist()) == ([0.5], [3])
    with pytest.raises(AnalyzerError, match="closed"):
        recorder.log(accuracy=1.0)


@pytest.mark.parametrize("a", [0.8, 1.25])
def test_the_gain_of_a_trained_chain_of_scalars_is_its_factor(tmp_path, a):
    """The check of the definitions: fifty layers ``y = a·x``."""
    model = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(50)]).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(a)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    with analyzer.Recorder(model, tmp_path / "run"):
        model(torch.ones(4, 1, dtype=torch.float64)).mean().backward()
        optimizer.step()
    assert analyzer.open_run(tmp_path / "run").gain().gain == pytest.approx(a, rel=1e-12)
