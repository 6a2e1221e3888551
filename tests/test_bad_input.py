"""What a user can get wrong: one sentence with what was seen, and what was expected or to do."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import analyzer
from analyzer.cli import main
from tests.support.runs import write_run

# What tells a person what to do.
_ADVICE = re.compile(
    r"expected|[Tt]ry |[Nn]ame |[Gg]ive |[Ll]eave |[Ww]rite |See '|`analyzer|'analyzer|[Rr]ecord|"
    r"[Mm]easure|Unpack|nearest|there are none|[Cc]hoose|[Cc]heck|Correct|add "
)
LONG = "x" * 5000

# Words of a command; `seen` is what the sentence must quote. {run} is a run, {file} a text file,
# {full} a folder that holds something, {empty} an empty one.
COMMANDS = [
    (["nosuch"], "nosuch"),
    (["show"], "RUN"),
    (["show", "nosuch"], "nosuch"),
    (["show", "a\0b"], r"a\x00b"),
    (["show", LONG], "xxx"),
    (["show", "a\nb"], r"a\nb"),
    (["show", "\x1b[31m"], r"\x1b[31m"),
    (["show", "{file}"], "notes.txt"),
    (["show", "{empty}"], "empty"),
    (["show", "{run}", "--nosuch"], "--nosuch"),
    (["show", "{run}", "--step", "x"], "'x'"),
    (["show", "{run}", "--step", "-1"], "-1"),
    (["show", "{run}", "--step", "9" * 30], "999"),
    (["show", "{run}", "--step", "77"], "77"),
    (["show", "{run}", "--step", ""], "''"),
    (["show", "{run}", "--layers", "("], "'('"),
    (["show", "{run}", "--layers", "nomatch"], "nomatch"),
    (["show", "{run}", "--runs-dir"], "--runs-dir"),
    (["show", "latest", "--runs-dir", "{file}"], "notes.txt"),
    (["show", "latest", "--runs-dir", "a\0b"], r"a\x00b"),
    (["runs", "a\0b"], r"a\x00b"),
    (["runs", "{file}"], "notes.txt"),
    (["runs", LONG], "xxx"),
    (["diagnose", "nosuch"], "nosuch"),
    (["diagnose", "{run}", "--threshold", "x"], "'x'"),
    (["diagnose", "{run}", "--threshold", "x=1"], "'x=1'"),
    (["diagnose", "{run}", "--threshold", "vanishing_decades=a"], "decades=a"),
    (["diagnose", "{run}", "--threshold", "vanishing_decades=nan"], "decades=nan"),
    (["compare", "{run}"], "RUN"),
    (["compare", "{run}", "nosuch"], "nosuch"),
    (["explain", "{run}", "nosuch"], "nosuch"),
    (["explain", "{run},{run}", "{run}"], "2"),
    (["explain", ",", "{run}"], "0 runs"),
    (["probe", "{run}"], "NAME"),
    (["probe", "{run}", "nosuch"], "nosuch"),
    (["probe", "{run}", "paths", "x"], "x"),
    (["probe", "{run}", "paths"], "checkpoint"),
    (["probe", "{run}", "landscape", "--grid", "0"], "0"),
    (["probe", "{run}", "landscape", "--grid", "x"], "'x'"),
    (["probe", "{run}", "landscape", "--plane", "nosuch"], "nosuch"),
    (["probe", "{run}", "landscape", "--mode", "nosuch"], "nosuch"),
    (["probe", "{run}", "paths", "--replay"], "--replay"),
    (["export", "{run}"], "--output"),
    (["export", "{run}", "-o", "{file}"], "notes.txt"),
    (["export", "{run}", "-o", "{full}"], "full"),
    (["export", "{run}", "-o", "{file}/x"], "notes.txt"),
    (["export", "{run}", "-o", "a\0b"], r"a\x00b"),
    (["export", "{run}", "-o", "out", "--format", "xml"], "xml"),
    (["report"], "RUN"),
    (["report", "nosuch"], "nosuch"),
    (["report", "{run}", "-o", "{full}"], "full"),
    (["report", "{run}", "-o", "{file}/x.html"], "notes.txt"),
    (["report", "{run}", "-o", "/proc/nosuch/x.html"], "/proc/nosuch"),
    (["report", "{run}", "-o", "a\0b"], r"a\x00b"),
    (["report", "{run}", "-o", ""], "'.'"),
    (["report", "{run}", "--figures", "{file}"], "notes.txt"),
    (["report", "{run}", "--figures", "/proc/nosuch"], "/proc/nosuch"),
    (["report", "{run}", "--tables", "{file}"], "notes.txt"),
    (["report", "{run}", "--tables", "{file}/x"], "notes.txt"),
    (["report", "{run}", "--width", "abc"], "abc"),
    (["report", "{run}", "--width", "0in"], "0in"),
    (["report", "{run}", "--width", "-1in"], "-1in"),
    (["report", "{run}", "--width", "nanin"], "nanin"),
    (["report", "{run}", "--width", "9" * 400 + "in"], "999"),
    (["report", "{run}", "--format", "gif"], "gif"),
    (["report", "{run}", "--format", ""], "''"),
    (["report", "{run}", "--style", "nosuch"], "nosuch"),
    (["report", "{run}", "--style", "{file}"], "notes.txt"),
    (["report", "{run}", "--template", "nosuch"], "nosuch"),
    (["report", "{run}", "--template", "{file}"], "notes.txt"),
    (["dashboard", "nosuch"], "nosuch"),
    (["dashboard", "a\0b"], r"a\x00b"),
    (["dashboard", "{run}", "--port", "x"], "'x'"),
    (["dashboard", "{run}", "--port", "70000"], "70000"),
    (["dashboard", "{run}", "--host", "a b"], "a b"),
    (["record"], "TARGET"),
    (["record", "nosuch.py"], "nosuch.py"),
    (["record", "a\0b.py"], r"a\x00b"),
    (["record", "zoo:nosuch"], "nosuch"),
    (["record", "--every", "0", "zoo:plain8"], "0"),
    (["record", "--every", "x", "zoo:plain8"], "'x'"),
    (["record", "--every", "1.5", "zoo:plain8"], "1.5"),
    (["record", "--columns", "some", "zoo:plain8"], "some"),
    (["record", "--layers", "(", "zoo:plain8"], "'('"),
    (["record", "--skip-layers", "[", "zoo:plain8"], "'['"),
    (["record", "--splits-every", "0", "zoo:plain8"], "0"),
    (["record", "--updates-every", "-1", "zoo:plain8"], "-1"),
    (["record", "--probe", "nosuch", "zoo:plain8"], "nosuch"),
    (["record", "--probe", "paths:0", "zoo:plain8"], "paths:0"),
    (["record", "--probe", "paths", "--probe", "paths", "zoo:plain8"], "paths"),
    (["record", "--checkpoint-every", "0", "zoo:plain8"], "0"),
    (["record", "--stop-after", "0", "zoo:plain8"], "0"),
    (["record", "--skip-scale", "x", "zoo:plain8"], "'x'"),
    (["record", "--skip-scale", "nan", "zoo:plain8"], "nan"),
    (["record", "--skip-scale", "(=0", "zoo:plain8"], "("),
    (["record", "--twin", "--skip-scale", "0", "zoo:plain8"], "--twin"),
    (["record", "--max-calls", "0", "zoo:plain8"], "0"),
    (["record", "--nproc-per-node", "0", "zoo:plain8"], "0"),
    (["record", "--seed", "-1", "zoo:plain8"], "-1"),
    (["record", "--seed", str(2**64), "zoo:plain8"], str(2**64)),
    (["record", "--seed", "9" * 5000, "zoo:plain8"], "999"),
    (["record", "--fail-on", "mild", "zoo:plain8"], "mild"),
    (["record", "--resume", "nosuch", "zoo:plain8"], "nosuch"),
    (["record", "--first-step", "3", "zoo:plain8"], "3"),
    (["record", "--steps", "0", "zoo:plain8"], "0"),
    (["record", "--data", "nosuch", "zoo:plain8"], "nosuch"),
    (["record", "--data", "cifar10:{empty}", "zoo:plain8"], "empty"),
    (["record", "--batch-size", "0", "zoo:plain8"], "0"),
    (["record", "--optimizer", "nosuch", "zoo:plain8"], "nosuch"),
    (["record", "--lr", "nan", "zoo:plain8"], "nan"),
    (["record", "--lr", "-1", "zoo:plain8"], "-1"),
    (["record", "--device", "nosuch", "zoo:plain8"], "nosuch"),
    (["record", "--run", "{full}", "zoo:plain8"], "full"),
    (["record", "--run", "", "zoo:plain8"], "'.'"),
    (["record", "--run", "a\0b", "zoo:plain8"], r"a\x00b"),
    (["record", "-m"], "TARGET"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("places")
    write_run(folder / "run", [1.0, 0.5], [[1.0, 2.0]] * 2)
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    (folder / "notes.txt").write_text("no parquet\n")
    return {
        "run": folder / "run",
        "file": folder / "notes.txt",
        "full": folder / "full",
        "empty": folder / "empty",
    }


def _id(value: Any) -> str | None:
    if not isinstance(value, list):
        return ""
    return " ".join(word[:30].encode("unicode_escape").decode() for word in value)


@pytest.mark.parametrize(("words", "seen"), COMMANDS, ids=_id)
def test_a_wrong_command_gets_one_sentence(
    words: list[str], seen: str, places, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [word.format(**places) if "{" in word else word for word in words]
    assert main(given) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("analyzer: ") and printed.err.count("\n") == 1
    assert seen in printed.err
    assert _ADVICE.search(printed.err)
    assert len(printed.err) < 5000
    left = {path.name for path in tmp_path.rglob("*")} - {"runs"}
    assert left == set()


# Those that come as far as Python itself end the process, as the script would have.
PROGRAMS = [(["{empty}"], "empty"), (["-m", "nosuch.module"], "nosuch")]


@pytest.mark.parametrize(("words", "seen"), PROGRAMS, ids=_id)
def test_a_target_that_is_no_program_gets_one_sentence(
    words: list[str], seen: str, places, tmp_path
) -> None:
    given = [word.format(**places) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "analyzer", "record", *given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode != 0 and last.startswith("analyzer: ") and seen in done.stderr
    assert not list(tmp_path.glob("runs/*"))


class Block(nn.Module):
    """A residual block on 4 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.branch(inputs)


class Given:
    """What a call from Python is made with: a model, a batch, a recorded run, a folder."""

    def __init__(self, run: Path, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(Block(), Block())
        self.inputs, self.targets = torch.randn(3, 4), torch.randn(3, 4)
        self.batch = (self.inputs, self.targets)
        self.run, self.new = analyzer.open_run(run), folder / "new"
        self.place, self.folder = run, folder

    def recorder(self, model: Any = ..., run: Any = ..., **options: Any) -> None:
        model = self.model if model is ... else model
        with analyzer.Recorder(model, self.new if run is ... else run, **options):
            pass

    def log(self, *, closed: bool = False, **numbers: Any) -> None:
        with analyzer.Recorder(self.model, self.new) as recorder:
            if not closed:
                mse_loss(self.model(self.inputs), self.targets).backward()
                recorder.log(**numbers)
        recorder.log(**numbers)

    def surface(self, batches: Any = ..., directions: Any = ..., alphas: Any = (0.0,), **more: Any):
        batches = [self.batch] if batches is ... else batches
        directions = analyzer.random_directions(self.model) if directions is ... else directions
        return analyzer.loss_surface(self.model, batches, mse_loss, directions, alphas, **more)


CALLS: list[tuple[str, Callable[[Given], Any], str]] = [
    ("Recorder('model')", lambda g: g.recorder(model="model"), "model"),
    ("Recorder(5)", lambda g: g.recorder(model=5), "int"),
    ("Recorder(run=5)", lambda g: g.recorder(run=5), "5"),
    ("Recorder(run='')", lambda g: g.recorder(run=""), "''"),
    ("Recorder(run=NUL)", lambda g: g.recorder(run="a\0b"), r"\x00"),
    ("Recorder(run=existing)", lambda g: g.recorder(run=g.place), "run"),
    ("Recorder(exist)", lambda g: g.recorder(exist="maybe"), "maybe"),
    ("Recorder(nosuch)", lambda g: g.recorder(nosuch=1), "nosuch"),
    ("Recorder(every=0)", lambda g: g.recorder(every=0), "0"),
    ("Recorder(every='a')", lambda g: g.recorder(every="a"), "'a'"),
    ("Recorder(every=True)", lambda g: g.recorder(every=True), "True"),
    ("Recorder(columns=5)", lambda g: g.recorder(columns=5), "5"),
    ("Recorder(columns='some')", lambda g: g.recorder(columns="some"), "some"),
    ("Recorder(layers='(')", lambda g: g.recorder(layers="("), "'('"),
    ("Recorder(layers=['a'])", lambda g: g.recorder(layers=["a"]), "['a']"),
    ("Recorder(layers=5)", lambda g: g.recorder(layers=5), "5"),
    ("Recorder(layers=b'a')", lambda g: g.recorder(layers=b"a"), "b'a'"),
    ("Recorder(skip_layers=[])", lambda g: g.recorder(skip_layers=[]), "[]"),
    ("Recorder(probe=5)", lambda g: g.recorder(probe=5), "5"),
    ("Recorder(probe='nosuch')", lambda g: g.recorder(probe="nosuch"), "nosuch"),
    ("Recorder(probe twice)", lambda g: g.recorder(probe=["paths", "paths:2"]), "paths"),
    ("Recorder(probe=[[]])", lambda g: g.recorder(probe=[[]]), "[]"),
    ("Recorder(splits_every=0)", lambda g: g.recorder(splits_every=0), "0"),
    ("Recorder(updates_every=None)", lambda g: g.recorder(updates_every=None), "None"),
    ("Recorder(checkpoint_every='x')", lambda g: g.recorder(checkpoint_every="x"), "'x'"),
    ("Recorder(stop_after=-1)", lambda g: g.recorder(stop_after=-1), "-1"),
    ("Recorder(max_calls=0)", lambda g: g.recorder(max_calls=0), "0"),
    ("Recorder(skip_scale='x')", lambda g: g.recorder(skip_scale="x"), "'x'"),
    ("Recorder(skip_scale=nan)", lambda g: g.recorder(skip_scale=float("nan")), "nan"),
    ("Recorder(skip_scale={})", lambda g: g.recorder(skip_scale={}), "{}"),
    ("Recorder(skip_scale={'(': 0})", lambda g: g.recorder(skip_scale={"(": 0}), "("),
    ("Recorder(resume=5)", lambda g: g.recorder(run=None, resume=5), "5"),
    ("Recorder(resume='nosuch')", lambda g: g.recorder(run=None, resume="nosuch"), "nosuch"),
    ("Recorder(first_step=3)", lambda g: g.recorder(first_step=3), "3"),
    ("log after the end", lambda g: g.log(closed=True, accuracy=1.0), "closed"),
    ("open_run(5)", lambda g: analyzer.open_run(5), "5"),
    ("open_run(None)", lambda g: analyzer.open_run(None), "None"),
    ("open_run('nosuch')", lambda g: analyzer.open_run("nosuch"), "nosuch"),
    ("open_run('')", lambda g: analyzer.open_run(""), "''"),
    ("open_run(NUL)", lambda g: analyzer.open_run("a\0b"), "a"),
    ("open_run(long)", lambda g: analyzer.open_run(LONG), "xxx"),
    ("open_run(file)", lambda g: analyzer.open_run(g.place / "run.json"), "run.json"),
    ("read('nosuch')", lambda g: g.run.read("nosuch"), "nosuch"),
    ("read(5)", lambda g: g.run.read(5), "5"),
    ("read(['steps'])", lambda g: g.run.read(["steps"]), "steps"),
    ("layer_stats(columns=5)", lambda g: g.run.layer_stats(columns=5), "5"),
    ("layer_stats(columns=[5])", lambda g: g.run.layer_stats(columns=[5]), "5"),
    ("layer_stats('nosuch')", lambda g: g.run.layer_stats("nosuch"), "nosuch"),
    ("layer_stats(layers='nosuch')", lambda g: g.run.layer_stats(layers="nosuch"), "nosuch"),
    ("layer_stats(layers=99)", lambda g: g.run.layer_stats(layers=99), "99"),
    ("layer_stats(layers=1.5)", lambda g: g.run.layer_stats(layers=1.5), "1.5"),
    ("layer_stats(layers=[1.5])", lambda g: g.run.layer_stats(layers=[1.5]), "1.5"),
    ("layer_stats(layers=[None])", lambda g: g.run.layer_stats(layers=[None]), "None"),
    ("layer_stats(steps='a')", lambda g: g.run.layer_stats(steps="a"), "'a'"),
    ("layer_stats(steps=1.5)", lambda g: g.run.layer_stats(steps=1.5), "1.5"),
    ("layer_stats(steps=[1.5])", lambda g: g.run.layer_stats(steps=[1.5]), "1.5"),
    ("layer_stats(steps=['a'])", lambda g: g.run.layer_stats(steps=["a"]), "'a'"),
    ("layer_stats(steps=stride 0)", lambda g: g.run.layer_stats(steps=slice(0, 9, 0)), "slice"),
    ("layer_stats(steps=slice('a'))", lambda g: g.run.layer_stats(steps=slice("a")), "'a'"),
    ("layer_stats(steps=2**70)", lambda g: g.run.layer_stats(steps=2**70), str(2**70)),
    ("layer_stats(ranks='some')", lambda g: g.run.layer_stats(ranks="some"), "some"),
    ("splits('nosuch')", lambda g: g.run.splits("nosuch"), "nosuch"),
    ("parameter_stats('nosuch')", lambda g: g.run.parameter_stats("nosuch"), "nosuch"),
    ("probe('nosuch')", lambda g: g.run.probe("nosuch"), "nosuch"),
    ("probe(5)", lambda g: g.run.probe(5), "5"),
    ("probe_metadata('nosuch')", lambda g: g.run.probe_metadata("nosuch"), "nosuch"),
    ("profile('nosuch')", lambda g: g.run.profile("nosuch", 0), "nosuch"),
    ("profile(table)", lambda g: g.run.profile("loss", 0, table="nosuch"), "nosuch"),
    ("series('nosuch')", lambda g: g.run.series("nosuch"), "nosuch"),
    ("series(max_points=0)", lambda g: g.run.series("loss", max_points=0), "0"),
    ("series(max_points='a')", lambda g: g.run.series("loss", max_points="a"), "'a'"),
    ("series(layer)", lambda g: g.run.series("output_gradient_norm", "nosuch"), "nosuch"),
    ("heatmap('nosuch')", lambda g: g.run.heatmap("nosuch"), "nosuch"),
    ("heatmap(0)", lambda g: g.run.heatmap("output_gradient_norm", 0), "0"),
    ("grid(number)", lambda g: g.run.grid("output_gradient_norm", "median"), "median"),
    ("recorded_steps('nosuch')", lambda g: g.run.recorded_steps("nosuch"), "nosuch"),
    ("nearest_step('a')", lambda g: g.run.nearest_step("a"), "'a'"),
    ("nearest_step(table)", lambda g: g.run.nearest_step(1, "nosuch"), "nosuch"),
    ("written('nosuch')", lambda g: g.run.written("nosuch"), "nosuch"),
    ("static_rows('nosuch')", lambda g: g.run.static_rows("nosuch"), "nosuch"),
    ("batches('nosuch')", lambda g: list(g.run.batches("nosuch")), "nosuch"),
    ("batches(0)", lambda g: list(g.run.batches("steps", 0)), "0"),
    ("findings({'nosuch': 1})", lambda g: g.run.findings({"nosuch": 1}), "nosuch"),
    ("findings('a')", lambda g: g.run.findings({"vanishing_decades": "a"}), "'a'"),
    ("findings(5)", lambda g: g.run.findings(5), "5"),
    ("find_joins(None)", lambda g: analyzer.find_joins(None), "None"),
    ("find_joins('model')", lambda g: analyzer.find_joins("model", g.inputs), "model"),
    ("find_joins(model)", lambda g: analyzer.find_joins(g.model), "input"),
    ("skip_scale(None)", lambda g: analyzer.skip_scale(None, 0.0).__enter__(), "None"),
    ("skip_scale('x')", lambda g: analyzer.skip_scale(g.model, "x").__enter__(), "'x'"),
    ("skip_scale(nan)", lambda g: analyzer.skip_scale(g.model, float("nan")).__enter__(), "nan"),
    ("skip_scale({})", lambda g: analyzer.skip_scale(g.model, {}).__enter__(), "{}"),
    ("gradient_splits(None)", lambda g: analyzer.gradient_splits(None, *g.batch, mse_loss), "None"),
    ("gradient_splits(loss=5)", lambda g: analyzer.gradient_splits(g.model, *g.batch, 5), "5"),
    ("path_spectrum(None)", lambda g: analyzer.path_spectrum(None, *g.batch, mse_loss), "None"),
    ("path_spectrum(loss)", lambda g: analyzer.path_spectrum(g.model, *g.batch, "a"), "'a'"),
    (
        "path_spectrum(batch_dim)",
        lambda g: analyzer.path_spectrum(g.model, *g.batch, mse_loss, batch_dim=9),
        "9",
    ),
    ("lesion_study(None)", lambda g: analyzer.lesion_study(None, *g.batch, mse_loss), "None"),
    ("lesion_study(loss)", lambda g: analyzer.lesion_study(g.model, *g.batch, None), "None"),
    ("counterfactual(None)", lambda g: analyzer.counterfactual(None, *g.batch, mse_loss), "None"),
    ("gradient_correlation(None)", lambda g: analyzer.gradient_correlation(None, g.inputs), "None"),
    ("jacobian_spectrum(k=0)", lambda g: analyzer.jacobian_spectrum(g.model, g.inputs, k=0), "0"),
    ("jacobian_spectrum('a')", lambda g: analyzer.jacobian_spectrum(g.model, g.inputs, k="a"), "a"),
    ("random_directions(None)", lambda g: analyzer.random_directions(None), "None"),
    (
        "random_directions(normalization)",
        lambda g: analyzer.random_directions(g.model, normalization="nosuch"),
        "nosuch",
    ),
    ("random_directions(seed)", lambda g: analyzer.random_directions(g.model, seed="x"), "'x'"),
    ("loss_surface(directions=5)", lambda g: g.surface(directions=5), "int"),
    ("loss_surface(alphas=[])", lambda g: g.surface(alphas=[]), "alphas"),
    ("loss_surface(alphas=['a'])", lambda g: g.surface(alphas=["a"]), "'a'"),
    ("loss_surface(batches=[])", lambda g: g.surface(batches=[]), "batch"),
    ("loss_surface(batches=5)", lambda g: g.surface(batches=5), "5"),
    ("sharpness(batches=[])", lambda g: analyzer.sharpness(g.model, [], mse_loss), "batch"),
    ("sharpness(None)", lambda g: analyzer.sharpness(None, [g.batch], mse_loss), "None"),
    (
        "hessian_spectrum(batches=[])",
        lambda g: analyzer.hessian_spectrum(g.model, [], mse_loss),
        "batch",
    ),
    (
        "gradient_noise_scale(batches=[])",
        lambda g: analyzer.gradient_noise_scale(g.model, [], mse_loss),
        "batch",
    ),
    (
        "layer_attribution(method)",
        lambda g: analyzer.layer_attribution(g.model, g.inputs, 0, method="nosuch"),
        "nosuch",
    ),
    ("layer_attribution(None)", lambda g: analyzer.layer_attribution(None, g.inputs, 0), "None"),
]


@pytest.mark.parametrize(("call", "seen"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_a_wrong_call_raises_one_sentence(
    call: Callable[[Given], Any], seen: str, places, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = Given(places["run"], tmp_path)
    with pytest.raises((analyzer.AnalyzerError, ValueError, TypeError)) as raised:
        call(given)
    told = str(raised.value)
    assert seen in told and _ADVICE.search(told), told
    assert "\n" not in told and len(told) < 6000
    # Raised by us, not by a library that was handed it.
    assert "/analyzer/" in str(raised.traceback[-1].path)
