"""One field of `RecordOptions` is an option everywhere: command line, ``Recorder``, manifest."""

import inspect

import pytest
from torch import nn

import analyzer
from analyzer.cli import load
from analyzer.options import MODEL_FILE, RECORDER, OptionError, RecordOptions, flag, options_of

WRONG = {
    "every": 0,
    "columns": "few",
    "layers": "(",
    "probe": ("nosuch",),
    "skip_scale": float("nan"),
    "seed": -1,
    "fail_on": "note",
    "steps": True,
    "data": "mnist",
    "optimizer": "lion",
    "lr": float("inf"),
}


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
    names = {field.name for field in options_of(RECORDER)} - {"probe", "skip_scale"}
    assert stored.keys() == names | {"probes"}
    assert (stored["every"], stored["probes"]) == (3, [{"name": "paths", "every": 5}])
    assert RecordOptions(lr=0.5).stored(MODEL_FILE)["lr"] == 0.5


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_with_its_name_as_the_user_wrote_it(name: str) -> None:
    with pytest.raises(OptionError, match=rf"^{name} is .*; expected ") as caught:
        RecordOptions(**{name: WRONG[name]})
    assert caught.value.on_command_line.startswith(f"{flag(name)} is ")


def test_an_unknown_keyword_of_the_recorder_is_refused(tmp_path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'evry'"):
        analyzer.Recorder(nn.Linear(1, 1), tmp_path / "run", evry=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        analyzer.Recorder(nn.Linear(1, 1), tmp_path / "run", lr=3)
