"""The note about a skip whose operands do not match, and that nothing else changes."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analyzer.cli.mismatch import shortcut_mismatch
from tests.support.commands import run


class Block(nn.Module):
    """A block whose branch has twice the channels and half the size, and no projection."""

    def __init__(self, add: Callable[["Block", Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.add = nn.Conv2d(64, 128, 3, 2, 1), add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self, x)


def plus(self: Block, x: Tensor) -> Tensor:
    return torch.relu(x + self.conv(x))


def in_place(self: Block, x: Tensor) -> Tensor:
    out = self.conv(x)
    out += x[:, :, ::2, ::2]
    return out


def method(self: Block, x: Tensor) -> Tensor:
    return self.conv(x).add_(
        nn.functional.avg_pool2d(x, 2),
    )


def function(self: Block, x: Tensor) -> Tensor:
    return torch.add(nn.functional.avg_pool2d(x, 2), self.conv(x))


def note_of(model: nn.Module, x: Tensor) -> str | None:
    try:
        model(x)
    except RuntimeError as error:
        return shortcut_mismatch(error)
    raise AssertionError("the forward pass did not fail")


@pytest.mark.parametrize(
    ("add", "one", "other", "stride"),
    [
        (plus, "[2, 64, 8, 8]", "[2, 128, 4, 4]", "stride=2"),
        (in_place, "[2, 128, 4, 4]", "[2, 64, 4, 4]", "stride=1"),
        (method, "[2, 128, 4, 4]", "[2, 64, 4, 4]", "stride=1"),
        (function, "[2, 64, 4, 4]", "[2, 128, 4, 4]", "stride=1"),
    ],
)
def test_the_note_names_module_shapes_and_fixes(add, one, other, stride):
    model = nn.Sequential(nn.Identity(), nn.Sequential(Block(add)))
    note = note_of(model, torch.randn(2, 64, 8, 8))
    assert note is not None
    assert note.startswith(
        f"in '1.0 (Block)' the two operands of the shortcut do not match: {one} and "
    )
    assert other in note
    assert stride in note
    assert "1x1 convolution" in note
    assert "zero padding" in note


def _doubled(function):
    @functools.wraps(function)
    def wrapped(*args):
        return function(*args)

    return wrapped


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 6)


class This(Named):
    def forward(this, x: Tensor) -> Tensor:
        return this.f(x) + x


class Rest(Named):
    def forward(*all_of_them: Any) -> Tensor:
        return all_of_them[0].f(all_of_them[1]) + all_of_them[1]


class Wrapped(Named):
    @_doubled
    def forward(module, x: Tensor) -> Tensor:
        return module.f(x) + x


class Helped(Named):
    def forward(me, x: Tensor) -> Tensor:
        return me.added(x)

    def added(layer, x: Tensor) -> Tensor:
        return layer.f(x) + x


@pytest.mark.parametrize("block", [This, Rest, Wrapped, Helped])
def test_the_first_argument_may_have_any_name(block):
    note = note_of(nn.Sequential(nn.Identity(), block()), torch.randn(3, 4))
    assert note is not None
    assert note.startswith(f"in '1 ({block.__name__})' the two operands of the shortcut do not")


def test_a_function_that_is_given_a_model_is_no_method_of_it():
    def train(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) + torch.ones(7)

    with pytest.raises(RuntimeError, match="must match the size") as caught:
        train(nn.Linear(4, 6), torch.randn(3, 4))
    assert shortcut_mismatch(caught.value) is None


def test_an_operand_that_cannot_be_had_again_is_known_by_the_message():
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linears = [nn.Linear(4, 6)]

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linears.pop()(x)

    note = note_of(Once(), torch.randn(3, 4))
    assert note is not None
    assert "'Once' the two operands of the shortcut do not match: [3, 4] and […, 6, …]" in note


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.ones(3, 5)


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(7, 5)


@pytest.mark.parametrize("model", [Product(), Wrong()])
def test_other_errors_get_no_note(model):
    assert note_of(model, torch.randn(3, 4)) is None
    assert shortcut_mismatch(ValueError("The size of tensor a (3) must match")) is None
    assert shortcut_mismatch(None) is None


def test_an_addition_outside_of_any_module_gets_no_note():
    with pytest.raises(RuntimeError, match="must match the size") as caught:
        torch.ones(3) + torch.ones(4)
    assert shortcut_mismatch(caught.value) is None


SCRIPT = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(64, 128, 1)
    def forward(self, x):
        print("forward")
        return x + self.conv(x)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = Block()
    def forward(self, x):
        return self.layer1(x)
model = Net()
"""
TRAINS = SCRIPT + "model(torch.randn(1, 64, 4, 4)).sum().backward()\n"
MODEL = SCRIPT + "def batches():\n    yield torch.randn(1, 64, 4, 4), torch.tensor([0])\n"


def test_the_note_follows_the_unchanged_traceback_of_a_script(tmp_path):
    (tmp_path / "train.py").write_text(TRAINS)
    plain = run(tmp_path, "train.py")
    ours = run(tmp_path, "-m", "analyzer", "record", "train.py")
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout) == (1, "forward\n")
    assert ours.stderr.startswith(plain.stderr)
    lines = ours.stderr[len(plain.stderr) :].splitlines()
    assert all(line.startswith("analyzer: ") for line in lines)
    (note,) = [line for line in lines if "operands" in line]
    assert "in 'layer1 (Block)'" in note
    assert "[1, 64, 4, 4] and [1, 128, 4, 4] differ at dimension 1" in note


def test_the_note_follows_the_traceback_of_a_model_file(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    ours = run(tmp_path, "-m", "analyzer", "record", "model.py")
    assert ours.returncode == 1
    assert ours.stderr.count("operands of the shortcut do not match") == 1
    assert ours.stderr.index("RuntimeError") < ours.stderr.index("operands of the shortcut")
