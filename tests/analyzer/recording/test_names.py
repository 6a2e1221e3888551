"""A parameter and a layer have their model's name, whatever came first and whenever they appear."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import analyzer
from tests.support.plain import Plain, compare, recorded


def mlp(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, width))


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    return model(x).square().mean()


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, truth: Plain, prefix: str = ""
) -> None:
    """One step of the training of a model."""
    optimizer.zero_grad()
    loss_of(model, truth.step).backward()
    truth.update((prefix + name, p) for name, p in model.named_parameters())
    optimizer.step()


# --- what comes first ------------------------------------------------------------------------


def closures(truth: Plain) -> None:
    model = truth.watch(mlp())
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.SGD([{"params": others}, {"params": decayed}], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, truth.step)
        loss.backward()
        truth.update(model.named_parameters())
        return loss

    for _ in range(3):
        optimizer.step(closure)


def stepped_before_the_model_is_called(truth: Plain) -> None:
    model = truth.watch(mlp())
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()  # some do so to silence a scheduler
    for _ in range(3):
        update(model, optimizer, truth)


class Holder:
    """Holds a model where no variable of a running function does."""

    def __init__(self, model: nn.Module) -> None:
        self.parts = [model]


def out_of_sight(truth: Plain) -> None:
    holder = Holder(truth.watch(mlp()))
    optimizer = torch.optim.Adam(holder.parts[0].parameters())
    optimizer.step()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(holder.parts[0], truth.step).backward()
        truth.update(holder.parts[0].named_parameters())
        optimizer.step()


@pytest.mark.parametrize("train", [closures, stepped_before_the_model_is_called, out_of_sight])
def test_parameters_have_their_models_names_and_its_order(train, tmp_path: Path) -> None:
    run, plain = recorded(tmp_path / "run", train)
    compare(run, plain)
    assert run.parameters["name"].tolist() == [name for name, _ in mlp().named_parameters()]
    assert run.parameters["layer"].tolist() == [0, 0, 2, 2]
    assert "not_recorded" not in run.manifest


def test_a_model_that_is_only_called_as_functions_still_names_its_weights(tmp_path: Path) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with analyzer.Recorder(None, tmp_path / "run"):
        for _ in range(2):
            hidden = torch.tanh(nn.functional.linear(torch.ones(2, 4), model[0].weight))
            nn.functional.linear(hidden, model[2].weight).sum().backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.parameters["name"].tolist() == [name for name, _ in model.named_parameters()]
    assert len(run.layers) == 0
    assert run.manifest["not_recorded"] == [
        "layers of 0, 2: not called as modules (their `forward` is called directly, or a function "
        "uses their weights), so that only their parameters have rows"
    ]


# --- what appears later ----------------------------------------------------------------------


def replaced(width: int):
    def train(truth: Plain) -> None:
        model = truth.watch(mlp())
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters())
        for step in range(4):
            if step == 2:
                model[2] = nn.Linear(6, width)
                truth.watch(model[2], "2")
                optimizer = torch.optim.Adam(model.parameters())
            update(model, optimizer, truth)

    return train


def appended(truth: Plain) -> None:
    model = truth.watch(mlp(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        if step == 2:
            block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            truth.watch(block, "3.")
            model.append(block)
            optimizer.add_param_group({"params": block.parameters()})
        update(model, optimizer, truth)


@pytest.mark.parametrize("train", [replaced(3), replaced(5), appended])
@pytest.mark.parametrize("every", [1, 2])
def test_new_layers_have_rows_and_names_from_their_first_step(
    train, every: int, tmp_path: Path
) -> None:
    run, plain = recorded(tmp_path / "run", train, every=every)
    if every > 1:
        for rows in (plain.layers, plain.parameters):
            for key in [key for key in rows if key[0] % every]:
                del rows[key]
    compare(run, plain)
    assert run.layers["name"].is_unique and run.parameters["name"].is_unique
    assert run.layers["depth"].tolist() == list(range(1, len(run.layers) + 1))


@pytest.mark.parametrize("again", [True, False], ids=["new optimizer", "same optimizer"])
def test_a_parameter_that_pruning_renames_has_its_new_name(again: bool, tmp_path: Path) -> None:
    def train(truth: Plain) -> None:
        model = truth.watch(mlp())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        update(model, optimizer, truth)
        prune.l1_unstructured(model[0], "weight", 0.5)
        truth.parameters = {
            (step, name.replace("0.weight", "0.weight_orig")): value
            for (step, name), value in truth.parameters.items()
        }
        if again:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        update(model, optimizer, truth)

    compare(*recorded(tmp_path / "run", train))


def test_a_parametrization_is_called_before_it_is_a_part_of_the_model(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    def train(truth: Plain) -> None:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(4):
            if step == 2:
                parametrize.register_parametrization(model[2], "weight", Twice())
            update(model, optimizer, truth)
        original = "2.parametrizations.weight.original"
        truth.parameters = {
            (step, original if name == "2.weight" else name): value
            for (step, name), value in truth.parameters.items()
        }

    run, plain = recorded(tmp_path / "run", train)
    found = run.parameter_stats(columns=["gradient_norm"])
    names = found["parameter"].map(dict(enumerate(run.parameters["name"])))
    values = zip(found["step"], names, found["gradient_norm"], strict=True)
    assert {(step, name): x for step, name, x in values} == pytest.approx(plain.parameters)
    modules = run.layers["module"].tolist()
    assert modules[:3] == ["0", "1", "2"]
    assert all(name.startswith("2.parametrizations.weight") for name in modules[3:])


def test_a_recorder_of_one_model_sees_its_new_head_and_no_other_model(tmp_path: Path) -> None:
    model, other = mlp(), mlp()
    with analyzer.Recorder(model, tmp_path / "run"):
        for step in range(3):
            if step == 1:
                model[2] = nn.Linear(6, 7)
            both = [*model.parameters(), *other.parameters()]
            optimizer = torch.optim.SGD(both, lr=0.1)
            (loss_of(model) + loss_of(other)).backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    assert run.parameters["name"].tolist() == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert run.parameters["shape"].tolist()[2] == [7, 6]
    assert run.layers["output_shape"].tolist()[2] == [8, 7]
    assert (run.layer_stats(layers="2")["step"] == [0, 1, 2]).all()


def unfrozen(truth: Plain) -> None:
    model = truth.watch(mlp())
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        if step == 1:
            model[0].requires_grad_(True)
        update(model, optimizer, truth)


def test_a_parameter_that_is_unfrozen_is_trained(tmp_path: Path) -> None:
    run, plain = recorded(tmp_path / "run", unfrozen)
    compare(run, plain)
    assert run.parameters["trained"].all()


def test_a_teacher_that_is_trained_later_is_a_model_then(tmp_path: Path) -> None:
    def train(truth: Plain) -> None:
        student, teacher = mlp(), mlp()
        teacher.requires_grad_(False)
        truth.watch(student, "Sequential0.")
        for _ in range(2):
            optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
            teacher(torch.ones(1, 4))
            update(student, optimizer, truth, "Sequential0.")
        teacher.requires_grad_(True)
        truth.watch(teacher, "Sequential1.")
        for _ in range(2):
            optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1)
            update(teacher, optimizer, truth, "Sequential1.")

    run, plain = recorded(tmp_path / "run", train)
    compare(run, plain)


# --- models that come and go -----------------------------------------------------------------


def folds(truth: Plain) -> None:
    for fold in range(3):
        model = mlp()
        truth.watch(model, f"Sequential{fold}.")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            update(model, optimizer, truth, f"Sequential{fold}.")
        del model, optimizer
        gc.collect()


def copied(truth: Plain) -> None:
    model = mlp()
    twin = copy.deepcopy(model)
    truth.watch(model, "Sequential0.")
    truth.watch(twin, "Sequential1.")
    for number, one in enumerate((model, twin)):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(2):
            update(one, optimizer, truth, f"Sequential{number}.")


@pytest.mark.parametrize("train", [folds, copied])
def test_each_model_has_names_of_its_own_and_keeps_its_tables(train, tmp_path: Path) -> None:
    run, plain = recorded(tmp_path / "run", train)
    compare(run, plain)
    assert run.layers["kind"].tolist() == ["Linear", "Tanh", "Linear"] * (len(run.layers) // 3)
    by_layer = dict(zip(run.layers["layer"], run.layers["name"], strict=True))
    for name, layer in zip(run.parameters["name"], run.parameters["layer"], strict=True):
        assert by_layer[layer] == name.rpartition(".")[0]


def test_a_block_that_was_trained_alone_has_its_place_in_the_model_later(tmp_path: Path) -> None:
    def train(truth: Plain) -> None:
        block = mlp(4)
        truth.watch(block, "0.")
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        for _ in range(2):
            update(block, optimizer, truth, "0.")
        model = nn.Sequential(block, nn.ReLU(), nn.Linear(4, 2))
        truth.watch(model[1], "1")
        truth.watch(model[2], "2")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            update(model, optimizer, truth)

    run, plain = recorded(tmp_path / "run", train)
    compare(run, plain)


def test_inputs_that_are_optimized_one_after_the_other_share_a_row(tmp_path: Path) -> None:
    model = mlp()
    with analyzer.Recorder(None, tmp_path / "run"):
        for _ in range(5):
            x = torch.zeros(2, 4, requires_grad=True)
            optimizer = torch.optim.SGD([x], lr=0.1)
            model(x).sum().backward()
            optimizer.step()
    run = analyzer.open_run(tmp_path / "run")
    names = run.parameters["name"].tolist()
    assert len(names) == 5 and names[4].startswith("parameter")
    assert len(run.parameter_stats(parameters=4)) == 5
