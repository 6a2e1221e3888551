"""One field of `RecordOptions` is an option everywhere: command line, ``Recorder``, manifest."""

import inspect
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import analyzer
from analyzer.cli import load
from analyzer.networks.loop import seed_everything
from analyzer.options import MODEL_FILE, RECORDER, OptionError, RecordOptions, flag, options_of

NOT_FINITE = (float("nan"), float("inf"), -float("inf"), True, "0", 10**400, 1j, [0.0])
WRONG = [
    *(("every", value) for value in (0, -1, 2.0, True, "3", float("nan"))),
    ("columns", "few"),
    ("layers", "("),
    ("probe", ("nosuch",)),
    ("probe", (5,)),
    *(("skip_scale", value) for value in NOT_FINITE),
    *(("seed", value) for value in (-1, 2**64, 0.5, True, "1", float("nan"))),
    *(("run", value) for value in ("a\0b", "", 5, b"bytes")),
    ("fail_on", "note"),
    ("steps", True),
    ("data", "mnist"),
    ("data", "cifar10:a\0b"),
    ("optimizer", "lion"),
    *(("lr", value) for value in (float("inf"), -0.1, True, 10**400)),
]


IDS = [f"{name}-{i}" for i, (name, _) in enumerate(WRONG)]


def test_every_option_is_an_option_of_the_command_with_its_help() -> None:
    command = {parameter.name: parameter for parameter in load("record").params}
    for field in options_of():
        option, parameter = field.metadata["option"], command[field.name]
        assert parameter.opts == [flag(field.name)]
        assert option.help and parameter.help.endswith(option.help)


def test_every_option_of_the_recorder_is_its_keyword_and_in_its_help() -> None:
    keywords = inspect.signature(analyzer.Recorder).parameters
    for field in options_of(RECORDER):
        assert keywords[field.name].default == field.default
        assert field.metadata["option"].help in (analyzer.Recorder.__doc__ or "")


def test_the_manifest_stores_the_options_of_the_recorder(tmp_path) -> None:
    with analyzer.Recorder(nn.Linear(1, 1), tmp_path / "run", every=3, probe="paths:5"):
        pass
    stored = analyzer.open_run(tmp_path / "run").manifest["schedule"]
    every = {field.name: field.metadata["option"] for field in options_of(RECORDER)}
    names = {name for name, option in every.items() if option.is_stored}
    assert stored.keys() == names - {"probe"} | {"probes"}
    assert (stored["every"], stored["probes"]) == (3, [{"name": "paths", "every": 5}])
    assert RecordOptions(lr=0.5).stored(MODEL_FILE)["lr"] == 0.5


@pytest.mark.parametrize(
    ("name", "value"), WRONG, ids=[f"{name}-{i}" for i, (name, _) in enumerate(WRONG)]
)
def test_a_wrong_value_is_refused_with_its_name_as_the_user_wrote_it(name, value) -> None:
    with pytest.raises(OptionError, match=rf"^{name} is .*; expected ") as caught:
        RecordOptions(**{name: value})
    assert caught.value.on_command_line.startswith(f"{flag(name)} is ")


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_every_seed_that_is_taken_is_one_that_all_generators_take(seed) -> None:
    assert RecordOptions(seed=seed).seed == seed
    states = preserve_global_states()
    try:
        seed_everything(seed)
    finally:
        states()


def preserve_global_states():
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def put_back() -> None:
        random.setstate(python), np.random.set_state(arrays), torch.set_rng_state(tensors)

    return put_back


@pytest.mark.parametrize(("name", "value"), [("run", "a\0b"), ("skip_scale", True), ("every", -1)])
def test_a_recorder_refuses_them_before_anything_is_made(
    tmp_path, monkeypatch, name, value
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected "):
        analyzer.Recorder(nn.Linear(1, 1), **{name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("--skip-scale", "nan"), ("--seed", "-1"), ("--seed", str(2**64))]
)
def test_the_command_refuses_them_before_the_script_runs(tmp_path, words) -> None:
    (tmp_path / "train.py").write_text("print('ran')")
    done = subprocess.run(
        [sys.executable, "-m", "analyzer", "record", *words, "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"analyzer: {words[0]} is ") and "; expected " in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_an_unknown_keyword_of_the_recorder_is_refused(tmp_path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'evry'"):
        analyzer.Recorder(nn.Linear(1, 1), tmp_path / "run", evry=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        analyzer.Recorder(nn.Linear(1, 1), tmp_path / "run", lr=3)
