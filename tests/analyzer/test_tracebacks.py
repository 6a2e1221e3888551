import os
import subprocess
import sys
from pathlib import Path

import pytest

from analyzer.ending import peel

ROOT = Path(__file__).parents[2]

NETWORK = """\
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(3, 3))

    def forward(self, x):
        return x + self.body(x)

net = nn.Sequential(nn.Linear(4, 4), Block())
"""

FAILURES = {
    "shape": "net(torch.ones(2, 4))",
    "arguments": "net[1]()",
    "chain": (
        "try:\n    net(torch.ones(2, 4))\nexcept RuntimeError as error:\n"
        "    try:\n        net(torch.ones(2, 5))\n    except RuntimeError as other:\n"
        "        raise ExceptionGroup('both', [error, other]) from error"
    ),
    "own-hook": (
        "net[1].register_forward_hook(lambda module, inputs, output: None)\nnet(torch.ones(2, 4))"
    ),
    "failing-hook": (
        "net[0].register_forward_hook(lambda module, inputs, output: 1 / 0)\nnet(torch.ones(2, 4))"
    ),
}

RECORDS = """\
import sys
from analyzer.script import run_program, when_imported

def hook(module, inputs, output=None):
    return None

def attach():
    from analyzer.joins.calls import after_calls, before_calls
    before_calls(hook)
    after_calls(hook)

when_imported("torch", attach)
run_program(sys.argv[1], sys.argv[2:]).leave()
"""


def run(folder: Path, *command: str) -> tuple[int, str, str]:
    """Run python with these arguments in a folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=120,
        env=env,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(
            code, id=name, marks=pytest.mark.slow if name in ("arguments", "own-hook") else ()
        )
        for name, code in FAILURES.items()
    ],
)
def test_a_failing_forward_reads_as_under_python_while_hooks_record(
    tmp_path: Path, failure: str
) -> None:
    (tmp_path / "train.py").write_text(NETWORK + failure)
    plain = run(tmp_path, "train.py")
    assert run(tmp_path, "-c", RECORDS, "train.py") == plain
    assert "_call_impl" in plain[2]


def own(function: object) -> dict[str, object]:
    """Return globals in which ``relay`` is code of this package that calls ``function``."""
    code = "def relay():\n    function()\n\ndef fail():\n    raise KeyError('own')\n"
    names: dict[str, object] = {"function": function}
    exec(compile(code, str(ROOT / "analyzer" / "recording" / "relay.py"), "exec"), names)
    return names


def lines(error: BaseException) -> list[str]:
    """Return the names of the functions in the traceback of an exception."""
    names, traceback = [], error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    return names


def test_frames_of_this_package_vanish_where_they_called_something_else() -> None:
    def user() -> None:
        raise ValueError("shape")

    with pytest.raises(ValueError, match="shape") as caught:
        own(user)["relay"]()  # type: ignore[operator]
    before = lines(caught.value)
    peel(caught.value)
    assert before[-2:] == ["relay", "user"]
    assert lines(caught.value) == [name for name in before if name != "relay"]


def test_an_error_of_this_package_keeps_the_frame_that_raised_it() -> None:
    with pytest.raises(KeyError, match="own") as caught:
        own(None)["fail"]()  # type: ignore[operator]
    peel(caught.value)
    assert lines(caught.value)[-1] == "fail"


def test_exceptions_that_name_each_other_are_peeled_once() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__cause__ = second, first
    peel(first)
    assert (first.__traceback__, second.__traceback__) == (None, None)
