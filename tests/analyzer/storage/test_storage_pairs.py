import time
from pathlib import Path
from typing import Any

import pytest

from analyzer.storage.catalog import RunSummary
from analyzer.storage.pairs import arguments, newest_pair
from tests.support.timing import undisturbed


def listed(*runs: RunSummary) -> dict[str, RunSummary]:
    return {run.name: run for run in runs}


def summary(name: str, joins: int | None, **told: Any) -> RunSummary:
    return RunSummary(name, Path(name), "finished", joins=joins, told=told)


def test_a_run_and_its_twin_are_a_pair_without_shortcuts_first() -> None:
    runs = listed(
        summary("mine", 3, argv=["train.py"], twin="mine-plain"),
        summary("else", 3, argv=["train.py"]),
        summary("mine-plain", 3, argv=["train.py"], twin_of="mine", skip_scale=0),
    )
    assert newest_pair(runs) == ("mine-plain", "mine")


def test_one_program_with_and_without_joins_is_a_pair() -> None:
    runs = listed(
        summary("newest", 0, argv=["other.py"]),
        summary("b", 3, argv=["train.py", "--depth", "20"], seed=1),
        summary("a", 0, argv=["train.py", "--depth", "20", "--plain"], seed=1),
        summary("c", 0, argv=["train.py", "--depth", "56", "--plain"], seed=1),
    )
    assert newest_pair(runs) == ("a", "b")


def test_of_equal_partners_that_of_the_same_seed_is_taken() -> None:
    runs = listed(
        summary("r-1", 3, argv=["zoo:simple28"], seed=1),
        summary("p-0", 0, argv=["zoo:simple28-plain"], seed=0),
        summary("p-1", 0, argv=["zoo:simple28-plain"], seed=1),
    )
    assert newest_pair(runs) == ("p-1", "r-1")


def test_built_in_networks_are_one_program_by_their_depth() -> None:
    runs = listed(summary("x", 9, argv=["zoo:resnet20"]), summary("y", 0, argv=["zoo:plain20"]))
    assert newest_pair(runs) == ("y", "x")
    runs = listed(summary("x", 9, argv=["zoo:resnet20"]), summary("y", 0, argv=["zoo:plain56"]))
    assert newest_pair(runs) is None


def test_runs_without_a_program_are_told_by_their_names() -> None:
    assert newest_pair(listed(summary("residual", 2), summary("plain", 0))) == ("plain", "residual")
    assert newest_pair(listed(summary("one", 2), summary("two", 0))) is None


def test_runs_that_are_alike_are_no_pair() -> None:
    same = {"argv": ["train.py"]}
    assert newest_pair(listed(summary("a", 2, **same), summary("b", 2, **same))) is None
    assert newest_pair(listed(summary("a", 0, **same), summary("b", None, **same))) is None
    assert newest_pair({}) is None


def test_thousands_of_runs_without_a_partner_are_looked_through_at_once() -> None:
    argv = ["train.py", "--lr"]
    runs = listed(*(summary(f"run-{k}", 3, argv=[*argv, str(k)]) for k in range(4000)))
    with undisturbed():
        began = time.process_time()
        assert newest_pair(runs) is None
        taken = time.process_time() - began
    assert taken < 0.5  # 1.1 s where each is looked at beside each
    partner = summary("old", 0, argv=[*argv, "7"])
    assert newest_pair(runs | {"old": partner}) == ("old", "run-0")


def test_damaged_words_about_a_run_do_no_harm() -> None:
    odd = summary("a", 2, argv="train.py", twin=["b"], twin_of={"c": 1}, skip_scale="0")
    assert newest_pair(listed(odd, summary("b", 0, argv=None))) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--lr 0.1 --depth=20 --fast", {"lr": "0.1", "depth": "20", "fast": "yes"}),
        ("--fast --lr -0.1", {"fast": "yes", "lr": "-0.1"}),
        ("-b 8 -v", {"b": "8", "v": "yes"}),
        ("model.depth=20 +data=digits", {"model.depth": "20", "+data": "digits"}),
        ("--name a=b -- -x", {"name": "a=b", "x": "yes"}),
        ("fit config.yaml 5 -3 =x", {}),
    ],
)
def test_arguments_have_the_names_that_the_command_line_gave(
    words: str, expected: dict[str, str]
) -> None:
    assert arguments({"argv": ["train.py", *words.split()]}) == expected
    told = {"argv": ["train.py", "--seed", "3"], "seed": 5, "skip_scale": 0.0}
    assert arguments(told) == {"seed": "3", "skip-scale": "0.0"}
    assert arguments({"argv": None}) == arguments({"argv": 7}) == {}
