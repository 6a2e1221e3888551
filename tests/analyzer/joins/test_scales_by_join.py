"""Shortcuts scaled one by one: by the name of a join, the path of a stage, a regular expression."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import analyzer
from analyzer.cli.record import record
from analyzer.joins.edits import joins_named
from analyzer.options import RecordOptions
from tests.support.commands import run

NAMES = ["layer1.0", "layer1.1", "layer10.0", "layer2.0#0", "layer2.0#1", "Net"]


class Block(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(5, 5), nn.Linear(5, 5), scale

    def forward(self, x: Tensor) -> Tensor:
        b = self.second(torch.relu(self.first(x)))
        if self.scale == 0:
            return torch.tanh(b)
        return torch.tanh((x if self.scale == 1 else x * self.scale) + b)


class Net(nn.Module):
    def __init__(self, *scales: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.head = nn.Linear(3, 5), nn.Linear(5, 2)
        self.layer1 = nn.Sequential(Block(scales[0]), Block(scales[1]))
        self.layer2 = nn.Sequential(Block(scales[2]))
        self.layer10 = nn.Sequential(Block(scales[3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer10(self.layer2(self.layer1(self.stem(x)))))


def output_and_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    output = model(x)
    output.square().sum().backward()
    return [output, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("alphas", "scales"),
    [
        ({"layer1": 0}, (0, 0, 1, 1)),
        ({"layer1.1": 0.0}, (1, 0, 1, 1)),
        ({"layer1": 0, "layer2": 0.5}, (0, 0, 0.5, 1)),
        ({r"layer\d\.0": 0}, (0, 1, 0, 1)),
        ({r"\.0$": -2}, (-2, 1, -2, -2)),
        ({".*": 0.5, "layer2.0": 0}, (0.5, 0.5, 0, 0.5)),
        ({"layer2.0": 0, ".*": 0.5}, (0.5, 0.5, 0, 0.5)),
        ({"layer1": 0, "layer1.[1]": 0.25}, (0, 0.25, 1, 1)),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_some_shortcuts_scaled_are_the_net_that_is_written_so(tmp_path, alphas, scales, recorded):
    model, written, x = Net(1, 1, 1, 1), Net(*scales), torch.randn(4, 3)
    if recorded:
        with analyzer.Recorder(model, tmp_path / "run", skip_scale=alphas):
            found = output_and_gradients(model, x)
        assert analyzer.open_run(tmp_path / "run").manifest["skip_scale"] == alphas
    else:
        with analyzer.skip_scale(model, alphas):
            found = output_and_gradients(model, x)
    expected = output_and_gradients(written, x)
    assert len(found) == len(expected) == 21
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], model(x))


@pytest.mark.parametrize(
    ("key", "chosen"),
    [
        ("layer1", {"layer1.0", "layer1.1"}),
        ("layer2.0", {"layer2.0#0", "layer2.0#1"}),
        ("layer2.0#1", {"layer2.0#1"}),
        ("layer", set(NAMES) - {"Net"}),
        ("Net", {"Net"}),
        ("nosuch", set()),
    ],
)
def test_a_key_is_a_name_then_whole_parts_of_a_path_then_a_pattern(key, chosen) -> None:
    assert set(joins_named(key, NAMES)) == chosen


def test_a_name_of_no_join_is_refused_in_a_sentence_that_lists_the_joins() -> None:
    model, x = Net(1, 1, 1, 1), torch.randn(4, 3)
    expected = model(x)
    message = "'layer3' stands for no join .*; expected the name, .* of layer1.0, layer1.1, layer2"
    with (
        pytest.raises(analyzer.AnalyzerError, match=message) as caught,
        analyzer.skip_scale(model, {"layer1": 1, "layer3": 0}),
    ):
        model(x)
    assert "\n" not in str(caught.value)
    assert torch.equal(model(x), expected)
    with (
        pytest.raises(analyzer.AnalyzerError, match=r"'fc' stands for no join .* has none"),
        analyzer.skip_scale(model.stem, {"fc": 0}),
    ):
        model.stem(x)


def test_a_second_context_of_a_model_refuses_its_own_names() -> None:
    model, x = Net(1, 1, 1, 1), torch.randn(4, 3)
    with analyzer.skip_scale(model, 0.5):
        model(x)
        with (
            pytest.raises(analyzer.AnalyzerError, match="'nosuch' stands for no join"),
            analyzer.skip_scale(model, {"nosuch": 0}),
        ):
            model(x)
        with analyzer.skip_scale(model, {"layer2": 0}):
            assert torch.equal(model(x), Net(0.5, 0.5, 0, 0.5)(x))


@pytest.mark.parametrize(
    "alphas",
    [float("nan"), {"layer1": float("inf")}, {"layer1": True}, {}, {"layer1": "0"}, {"(": 0}],
)
def test_what_is_no_finite_number_or_no_pattern_is_refused_before_anything_runs(alphas) -> None:
    with (
        pytest.raises(ValueError, match=r"alpha is .*; expected a "),
        analyzer.skip_scale(nn.Linear(1, 1), alphas),
    ):
        pass
    with pytest.raises(ValueError, match=r"skip_scale is .*; expected a "):
        RecordOptions(skip_scale=alphas)


def test_a_join_that_stochastic_depth_left_out_is_not_refused() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1 = nn.Sequential(nn.Linear(3, 5), Block(1), Block(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer1[:2](x) if self.training else self.layer1(x)

    model, x = Dropped(), torch.randn(2, 3)
    with analyzer.skip_scale(model, {"layer1.2": 0}):
        trained = model(x)
        assert torch.equal(trained, model.layer1[:2](x))


SCRIPT = """
import torch
from tests.analyzer.joins.test_scales_by_join import Net
from torch import nn
generator, discriminator = nn.Linear(3, 3), Net(1, 1, 1, 1)
for step in range(2):
    discriminator(generator(torch.ones(4, 3))).square().sum().backward()
    print(step)
"""


@pytest.mark.parametrize(
    ("text", "code"),
    [("layer1=0,layer2=0.5", 0), ("layer7=0", 2), ("layer1=nan", 2), ("layer1", 2), ("layer1=", 2)],
)
def test_the_command_takes_scales_by_join(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "", "OMP_NUM_THREADS": "1"}
    words = ["--run", "run", "--skip-scale", text, "train.py"]
    done = run(tmp_path, "-m", "analyzer", "record", *words, env=environment)
    assert (done.returncode, done.stdout) == (code, "" if code else "0\n1\n"), done.stderr
    if code:
        (line,) = [one for one in done.stderr.splitlines() if "expected" in one]
        assert line.startswith("analyzer: ") and (
            "discriminator" in line or "skip" in line or "layer7" in line
        )
    else:
        manifest = analyzer.open_run(tmp_path / "run").manifest
        assert manifest["skip_scale"] == {"layer1": 0.0, "layer2": 0.5}


def test_patterns_with_commas_are_read() -> None:
    parse = record.__globals__["_scale_from"]
    assert parse(r"layer\d{1,2}=0, fc=.5") == {r"layer\d{1,2}": 0.0, "fc": 0.5}
    assert parse("0.5") == 0.5 and parse(None) is None
    assert parse("layer1=0=1") == "layer1=0=1" and parse("a=0,a=1") == "a=0,a=1"
