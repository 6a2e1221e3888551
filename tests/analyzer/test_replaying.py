"""Probes after the fact: the same values as those taken during the training."""

import io
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import analyzer
from analyzer.cli import main
from analyzer.errors import AnalyzerError, NotRecordedError, SchemaError
from analyzer.probes import PROBE_NAMES
from analyzer.replaying import checkpoints_of, state_of
from analyzer.replaying.programs import command_of
from tests.support.commands import command
from tests.support.runs import write_run

SCRIPT = """
import argparse, random
import numpy as np
import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
lr = parser.parse_args().lr

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.second(torch.relu(self.first(x)))

model = nn.Sequential(nn.Linear(4, 8), Block(), nn.BatchNorm1d(8), Block(), nn.Linear(8, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
for step in range(6):
    x = torch.from_numpy(np.random.randn(16, 4)).float() + torch.randn(16, 4)
    y = torch.tensor([random.randrange(3) for _ in range(16)])
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    open("seen.txt", "a").write("step ")
"""
MODEL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Linear(8, 8)

    def forward(self, x):
        return x + torch.relu(self.branch(x))

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Block(), nn.Dropout(0.2), nn.Linear(8, 10))
"""


def assert_same_values(found, expected):
    """Every column, bit for bit; losses of a surface to the rounding of float32.

    How many samples a micro-batch of a surface holds depends on the speed of the moment.
    """
    assert list(found) == list(expected) and len(found) == len(expected)
    for name in found:
        if "evaluated" in found and name == "loss":
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
        else:
            assert found[name].equals(expected[name]), name


def without_probes(run):
    """A copy of a run in which no probe was taken."""
    other = run.with_name("again")
    shutil.copytree(run, other)
    shutil.rmtree(other / "probes")
    return other


@pytest.mark.parametrize(
    ("target", "replay"),
    [
        (["train.py", "--lr", "0.1"], ["--replay", "--yes"]),
        pytest.param(["--steps", "4", "model.py"], ["--replay", "--yes"], marks=pytest.mark.slow),
        pytest.param(["--steps", "4", "zoo:mlp4-residual"], [], marks=pytest.mark.slow),
    ],
    ids=["script", "model file", "zoo"],
)
def test_every_probe_after_the_fact_gives_the_values_of_the_training(tmp_path, target, replay):
    # The first, a middle and the last checkpoint: each one costs all probes twice.
    (tmp_path / "train.py").write_text(SCRIPT.replace("range(6)", "range(4)"))
    (tmp_path / "model.py").write_text(MODEL)
    options = [word for name in PROBE_NAMES for word in ("--probe", f"{name}:2")]
    command(
        tmp_path, "record", "--quiet", "--run", "run", "--checkpoint-every", "2", *options, *target
    )
    again = without_probes(tmp_path / "run")
    seen = (tmp_path / "seen.txt").read_text() if target[0] == "train.py" else None

    command(tmp_path, "probe", str(again), *PROBE_NAMES, "--step", "all", *replay)

    if seen:  # nothing that the script writes was touched
        assert (tmp_path / "seen.txt").read_text() == seen
    live, later = analyzer.open_run(tmp_path / "run"), analyzer.open_run(again)
    for name in PROBE_NAMES:
        expected, found = live.probe(name), later.probe(name)
        if name == "sharpness":  # by the optimizer that the manifest names, at the recorded rates
            assert found["threshold"].notna().all()
        assert set(found["step"]) == {0, 2, 4}
        assert_same_values(found, expected)
        numbers = found.select_dtypes("float64").to_numpy()
        assert np.isfinite(numbers).any() and (numbers != 0).any()


def test_a_script_is_started_again_only_when_asked_and_its_command_is_said_first(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    command(tmp_path, "record", "--quiet", "--run", "run", "train.py", "--lr", "0.1")
    assert "add --replay" in command(tmp_path, "probe", "run", "paths", code=2)
    assert "expected --yes" in command(tmp_path, "probe", "run", "paths", "--replay", code=2)
    told = command(tmp_path, "probe", "run", "paths", "--replay", "--yes").splitlines()
    assert told[0] == "analyzer: --replay runs, up to its first update: python train.py --lr 0.1"
    assert "exists and is kept" in command(tmp_path, "probe", "run", "paths", "--replay", "--yes")


def test_another_first_batch_is_refused(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    command(tmp_path, "record", "--quiet", "--run", "run", "train.py", "--lr", "0.1")
    (tmp_path / "train.py").write_text(SCRIPT.replace("float() +", "float() + 1 +"))
    message = command(tmp_path, "probe", "run", "paths", "--replay", "--yes", code=2)
    assert "the first batch of run 'run' cannot be reproduced" in message


def test_a_program_that_needs_its_folder_is_told_about_in_place(tmp_path):
    script = "open('data.txt').read()\n" + SCRIPT
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "data.txt").write_text("here")
    command(tmp_path, "record", "--quiet", "--run", "run", "train.py", "--lr", "0.1")
    assert "--in-place" in command(tmp_path, "probe", "run", "paths", "--replay", "--yes", code=2)
    command(tmp_path, "probe", "run", "paths", "--replay", "--yes", "--in-place")
    assert analyzer.open_run(tmp_path / "run").probes == ["paths"]


# Its loss is computed inside the model, so that nobody can split it into samples.
OWN_LOSS = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, y):
        return nn.functional.cross_entropy(self.layer(x), y)

model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    optimizer.zero_grad()
    model(torch.randn(8, 4), torch.arange(8) % 3).backward()
    optimizer.step()
"""


def test_a_probe_that_is_refused_keeps_no_other_from_being_measured(tmp_path):
    (tmp_path / "train.py").write_text(OWN_LOSS)
    command(tmp_path, "record", "--quiet", "--run", "run", "train.py")
    words = ["noise", "curvature", "--step", "all", "--replay", "--yes"]
    told = command(tmp_path, "probe", "run", *words, code=2).splitlines()
    assert analyzer.open_run(tmp_path / "run").probe("curvature")["step"].unique().tolist() == [
        0,
        3,
    ]
    refusals = [line for line in told if "cannot be split" in line]
    assert len(refusals) == 1 and refusals[0] == told[-1]
    assert told[-1].startswith("analyzer: probe noise of step 0, 3: the gradient noise cannot be")
    assert "--in-place" not in told[-1] and "code 3" not in told[-1]


def test_a_compiled_model_has_checkpoints_under_its_own_names(tmp_path):
    compiled = 'train = torch.compile(model, backend="eager")\noptimizer ='
    script = OWN_LOSS.replace("optimizer =", compiled, 1).replace("    model(", "    train(")
    (tmp_path / "train.py").write_text(script)
    command(tmp_path, "record", "--quiet", "--run", "run", "train.py")
    assert list(checkpoints_of(analyzer.open_run(tmp_path / "run"), "all")) == [0, 3]
    command(tmp_path, "probe", "run", "curvature", "--replay", "--yes")
    sharpness = analyzer.open_run(tmp_path / "run").probe("curvature")["value"].iloc[0]
    assert np.isfinite(sharpness) and sharpness > 0


def a_run_of(folder, *argv, kind="script"):
    """A run of somebody else, which names a program."""
    write_run(folder, [1.0], [[1.0]], argv=list(argv), kind=kind, seed=0)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-000000000000.safetensors").touch()
    return folder


BROUGHT = "open('it-ran', 'w').close()\n"


@pytest.mark.parametrize("kind", ["script", "model file"])
def test_a_run_folder_brings_no_program(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    a_run_of(tmp_path / "run", "run/evil.py", kind=kind)
    (tmp_path / "run" / "evil.py").write_text(BROUGHT)
    (tmp_path / "linked.py").symlink_to(tmp_path / "run" / "evil.py")
    for argv, reason in (
        (["run/evil.py"], "inside of the run folder"),
        (["linked.py"], "inside of the run folder"),
        ([str(tmp_path / "run" / ".." / "run" / "evil.py")], "inside of the run folder"),
        (["-m", "timeit", "import os"], "is not one of this folder"),
        (["-m", "pip", "--version"], "is not one of this folder"),
        (["-m", "run.evil"], "is not one of this folder"),
        (["-m", "sys"], "is not one of this folder"),
        (["-m", "__main__"], "is not one of this folder"),
        (["-m", ".evil"], "is not one of this folder"),
        (["-m", "nosuch"], "is not one of this folder"),
        (["-m"], "names no program"),
        ([], "names no program"),
        ("evil.py", "names no program"),
        ([["evil.py"]], "names no program"),
    ):
        file = tmp_path / "run" / "run.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "argv": argv}))
        assert main(["probe", "run", "paths", "--replay", "--yes"]) == 2
        told = capsys.readouterr().err
        assert reason in told and told.count("\n") == 1, (argv, told)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("answer", ["n\n", "", "yes\n"])
def test_on_a_terminal_the_user_is_asked(tmp_path, monkeypatch, capsys, answer):
    monkeypatch.chdir(tmp_path)
    a_run_of(tmp_path / "run", "mine.py", "--name", "\x1b[2Ja\u202eb c", kind="model file")
    (tmp_path / "mine.py").write_text(BROUGHT)
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["probe", "run", "paths", "--replay"]) == 2
    told = capsys.readouterr().err
    assert r"python mine.py --name '\x1b[2Ja\u202eb c'" in told and "run it? [y/N] " in told
    assert (tmp_path / "it-ran").exists() == (answer == "yes\n")
    assert ("nothing was run" in told) == (answer != "yes\n")


def named(folder, **models):
    file = folder / "step-000000000000.safetensors"
    save_file({f"{n}{k}": v for n, m in models.items() for k, v in m.state_dict().items()}, file)
    return file


def test_the_weights_of_a_model_are_told_from_those_of_the_models_beside_it(tmp_path, monkeypatch):
    generator, critic, twin = nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(2, 1)
    file = named(tmp_path, **{"critic.": critic, "generator.": generator, "twin.": twin})
    found = state_of(nn.Linear(3, 2), file)
    assert list(found) == ["weight", "bias"] and torch.equal(found["weight"], generator.weight)

    again = nn.Linear(2, 1)
    with pytest.raises(AnalyzerError, match="several models of the same shape, 'critic', 'twin'"):
        state_of(again, file)
    monkeypatch.setattr(sys.modules["__main__"], "twin", again, raising=False)
    assert torch.equal(state_of(again, file)["weight"], twin.weight)

    with pytest.raises(
        AnalyzerError, match=r"'weight' has shape \[1, 2\], that of the model \[7, 2"
    ):
        state_of(nn.Linear(2, 7), file)
    with pytest.raises(AnalyzerError, match="it has no 'weight_g'"):
        state_of(nn.ParameterDict({"weight_g": nn.Parameter(torch.ones(1))}), file)


def test_paths_that_the_run_does_not_hold_must_be_given_again(tmp_path):
    write_run(tmp_path / "run", [1.0], [[1.0]], argv=["train.py", "--data", "<path:0>"])
    run = analyzer.open_run(tmp_path / "run")
    with pytest.raises(AnalyzerError, match="<path:0>"):
        command_of(run, [])
    assert command_of(run, ["--data", "here"]) == ["train.py", "--data", "here"]


@pytest.mark.parametrize("which", ["7", "first", "-1"])
def test_a_step_without_checkpoint_is_refused(tmp_path, which):
    write_run(tmp_path / "run", [1.0], [[1.0]])
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "step-000000000000.safetensors").touch()
    run = analyzer.open_run(tmp_path / "run")
    with pytest.raises(AnalyzerError, match=r"expected|steps 0"):
        checkpoints_of(run, which)


def test_a_run_without_checkpoints_says_how_to_get_them(tmp_path):
    write_run(tmp_path / "run", [1.0], [[1.0]])
    with pytest.raises(NotRecordedError, match="--checkpoint-every"):
        checkpoints_of(analyzer.open_run(tmp_path / "run"), "last")


def stranger(folder, **manifest):
    """A run as a stranger could send it, with a checkpoint of a small network."""
    said = {"kind": "zoo", "argv": ["zoo:mlp4"], "seed": 0, "data": "digits", "batch_size": 8}
    run = write_run(folder / "run", [1.0], [[1.0]], **{**said, **manifest})
    (run / "checkpoints").mkdir()
    save_file({"a": torch.zeros(2)}, run / "checkpoints" / f"step-{1:012d}.safetensors")
    return run


def _linked(name):
    def link(run, outside):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).symlink_to(outside)

    return link


def _checkpoint(content):
    def write(run, outside):
        (run / "checkpoints" / f"step-{1:012d}.safetensors").write_bytes(content)

    return write


HUGE, PICKLE = (2**40).to_bytes(8, "little"), b"cos\nsystem\n(S'true'\ntR."
STRANGERS = {
    "probes link out": ({}, _linked("probes"), "holds a link, 'probes'"),
    "one probe links out": ({}, _linked("probes/paths"), "holds a link, 'paths'"),
    "a checkpoint links out": ({}, _linked("checkpoints/x"), "holds a link, 'x'"),
    "header of a terabyte": (
        {},
        _checkpoint(HUGE + bytes(60_000)),
        "its header takes 1,048,576 MiB",
    ),
    "a pickle": ({}, _checkpoint(PICKLE + bytes(60_000)), "cannot be read"),
    "nothing": ({}, _checkpoint(b""), "hold no such network|cannot be read"),
    "a network of terabytes": ({"argv": ["zoo:mlp9999-w9999"]}, None, "hold no such network"),
    "a large residual one": ({"argv": ["zoo:resnet8-w9999"]}, None, "hold no such network"),
    "no network": ({"argv": ["zoo:\x1b[31m"]}, None, "is unknown"),
    "data of gigabytes": ({"data": "synthetic:9999x9999x9999"}, None, "no such network|data take"),
    "data of the folder": ({"data": "cifar10:run/data"}, None, "no such network|inside of the run"),
    "data of another type": ({"data": "\0"}, None, "no such network|is unknown"),
    "a seed of 70 bits": ({"seed": 2**63}, None, "."),
    "samples without end": ({"batch_size": 2**62}, None, "."),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_can_make_probe_read_write_and_build_nothing_else(
    name, tmp_path, monkeypatch, capsys
):
    manifest, change, expected = STRANGERS[name]
    monkeypatch.chdir(tmp_path)
    run, outside = stranger(tmp_path, **manifest), tmp_path / "outside"
    outside.mkdir()
    (outside / "step-000000000001.points").write_text("mine")
    if change is not None:
        change(run, outside)
    assert main(["probe", "run", "paths", "landscape"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "\x1b" not in told and re.search(expected, told), told
    assert [path.name for path in outside.iterdir()] == ["step-000000000001.points"]


def test_a_file_is_no_checkpoint_by_its_ending(tmp_path):
    run = stranger(tmp_path)
    for name in ("step-x.safetensors", "step-1.safetensors", "step-000000000009.safetensors.txt"):
        (run / "checkpoints" / name).write_text("")
    os.mkfifo(run / "checkpoints" / f"step-{7:012d}.safetensors")
    assert list(checkpoints_of(analyzer.open_run(run), "all")) == [1]


def test_a_run_with_a_link_is_not_resumed(tmp_path):
    run = stranger(tmp_path)
    (run / "steps").rename(tmp_path / "steps")
    (run / "steps").symlink_to(tmp_path / "steps")
    before = sorted(path.name for path in (tmp_path / "steps").iterdir())
    with pytest.raises(SchemaError, match="holds a link, 'steps'"):
        analyzer.Recorder(nn.Linear(2, 2), resume=str(run))
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == before


@pytest.mark.parametrize("name", ["mlp4", "mlp10-residual-w8", "resnet8", "plain14-w4", "simple6"])
def test_no_network_has_fewer_weights_than_its_name_says(name):
    from analyzer.networks.zoo import least_elements, zoo

    model = zoo(name, in_channels=3, num_classes=10, image_size=8)
    held = sum(parameter.numel() for parameter in model.parameters())
    assert held / 4 < least_elements(name, 192) <= held
