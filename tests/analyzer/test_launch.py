"""The processes of one launch agree on folder, rank and attempt by files alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analyzer.launch import Launch, Rank, join, launch_of_process, newest_attempt

JOIN = """
import json, sys
from pathlib import Path
from analyzer.launch import join, launch_of_process
launch = launch_of_process()
rank = join(Path(sys.argv[1]), launch)
found = None if rank is None else [rank.number, rank.attempt, rank.leads()]
print(json.dumps([launch.key, launch.is_unique, found]))
"""


@pytest.fixture
def joined(tmp_path: Path) -> Callable[..., Any]:
    """A process of ours as a launcher starts it: what it is in the folder of the run."""

    def run(**variables: object) -> Any:
        left_out = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        env = {name: value for name, value in os.environ.items() if name not in left_out}
        env |= {name: str(value) for name, value in variables.items()}
        command = [sys.executable, "-c", JOIN, str(tmp_path / "run")]
        return json.loads(subprocess.run(command, env=env, check=True, capture_output=True).stdout)

    return run


def of_torchrun(rank: int, restart: int = 0, world_size: int = 2) -> dict[str, object]:
    return {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": restart,
    }


def test_ranks_share_a_folder_and_a_restart_is_a_new_attempt(
    joined: Callable[..., Any], tmp_path: Path
) -> None:
    found = [joined(**of_torchrun(rank)) for rank in (1, 0)]
    assert [place for *_, place in found] == [[1, 0, True], [0, 0, False]]  # 1 asked first
    restarted = [joined(**of_torchrun(rank, restart=1)) for rank in (0, 1)]
    assert [place for *_, place in restarted] == [[0, 1, True], [1, 1, False]]
    assert len({key for key, *_ in [*found, *restarted]}) == 1
    assert newest_attempt(tmp_path / "run") == 1


def test_ranks_that_are_started_again_without_being_counted_are_a_new_attempt(
    joined: Callable[..., Any],
) -> None:
    """A machine that joins makes torchrun start all again, and is no restart that it counts."""
    assert joined(**of_torchrun(0))[2] == [0, 0, True]
    assert joined(**of_torchrun(2, world_size=3))[2][:2] == [2, 1]
    assert joined(**of_torchrun(0, world_size=3))[2][:2] == [0, 1]


def test_the_folder_of_another_launch_is_refused(
    joined: Callable[..., Any], tmp_path: Path
) -> None:
    there = Launch("another", 0, 2)
    rank = join(tmp_path / "run", there)
    assert rank is not None and rank.leads()
    assert joined(**of_torchrun(0))[2] is None
    assert join(tmp_path / "run", there) is None  # a process takes part once
    (tmp_path / "plain").mkdir()
    assert join(tmp_path / "plain", there) is None


def test_without_torchrun_a_run_that_has_ended_is_that_of_an_earlier_launch(
    joined: Callable[..., Any], tmp_path: Path
) -> None:
    by_hand = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": 29500}
    _, is_unique, place = joined(**by_hand)
    assert (is_unique, place) == (False, [0, 0, True])
    (tmp_path / "run" / "run.json").write_text('{"status": "finished"}')
    assert joined(**{**by_hand, "RANK": 1})[2] is None
    (tmp_path / "run" / "run.json").write_text('{"status": "running"}')
    assert joined(**{**by_hand, "RANK": 1})[2][:2] == [1, 0]


def test_a_training_that_goes_on_in_another_launch_is_a_new_attempt(tmp_path: Path) -> None:
    assert join(tmp_path / "run", Launch("one", 0, 2)) is not None
    code = "from analyzer.launch import *; from pathlib import Path; import sys\n"
    code += "print(join(Path(sys.argv[1]), Launch('two', 0, 3), resumes=True).attempt)"
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    assert subprocess.run(command, capture_output=True, check=True).stdout.split() == [b"1"]


@pytest.mark.parametrize("variables", [{}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_a_process_that_was_started_alone_is_of_no_launch(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch_of_process() is None


def test_the_last_rank_that_leaves_a_folder_removes_it(tmp_path: Path) -> None:
    one = join(tmp_path / "run", Launch("key", 0, 2))
    assert one is not None
    other = Rank(tmp_path / "run", 1, 0, 2)
    other.file("json").write_text("{}")
    one.leave()
    assert other.file("json").exists()
    other.leave()
    assert not (tmp_path / "run").exists()
