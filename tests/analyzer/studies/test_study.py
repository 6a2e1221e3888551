"""``analyzer study``: what is planned is run once, whatever is killed on the way."""

import contextlib
import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from analyzer.cli import main
from analyzer.cli.study_text import grid_axis, print_result
from analyzer.errors import AnalyzerError, SchemaError
from analyzer.networks.zoo import zoo
from analyzer.options import RecordOptions
from analyzer.storage.parts import write_table
from analyzer.storage.study import open_study, write_json
from analyzer.studies.plan import Plan, Point, product
from analyzer.studies.running import held, run_study
from analyzer.studies.worker import Ended
from tests.support.commands import command, run, start
from tests.support.hostile_studies import write_study
from tests.support.waiting import MODEL, lines, until

COMMAND = (
    *("-m", "analyzer", "study", "--study", "s", "--model", "model.py", "--depths", "1,3"),
    *("--workers", "2", "--steps", "9", "--no-probes"),
)


def children(pid: int) -> list[int]:
    """The processes that one has started and that still live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == pid and words[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_study_that_is_killed_twice_ends_complete_and_runs_nothing_twice(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    waits = [tmp_path / "wait 1 False", tmp_path / "wait 3 True"]
    for wait in waits:
        wait.touch()
    parent = start(tmp_path, *COMMAND, stderr=subprocess.PIPE)
    # The first is done, the second and the third are being trained.
    until(lambda: len(lines(tmp_path, "begun")) == 3 and lines(tmp_path, "ended") == ["1 True"])
    until(lambda: open_study(tmp_path / "s").points[0].ending)
    before = (tmp_path / "s/runs/depth1-on-seed0/run.json").read_bytes()
    (server,) = children(parent.pid)
    orphans = [server, *children(server)]
    assert len(orphans) == 3
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stderr.close()
    until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in orphans))
    waits[0].unlink()

    parent = start(tmp_path, *COMMAND, stderr=subprocess.PIPE)
    until(lambda: [bool(p.ending) for p in open_study(tmp_path / "s").points] == [1, 1, 0, 1])
    (server,) = children(parent.pid)
    (worker,) = children(server)
    os.kill(worker, signal.SIGKILL)
    until(lambda: lines(tmp_path, "begun").count("3 True") == 3)
    waits[1].unlink()
    assert parent.wait(timeout=120) == 0, parent.stderr.read()
    parent.stderr.close()
    study = open_study(tmp_path / "s")
    assert [point.status for point in study.points] == ["finished"] * 4
    assert sorted(lines(tmp_path, "ended")) == ["1 False", "1 True", "3 False", "3 True"]
    assert (tmp_path / "s/runs/depth1-on-seed0/run.json").read_bytes() == before
    rows = study.summary()
    assert rows["has_shortcuts"].tolist() == [True, False, True, False]
    assert rows["steps"].tolist() == [6] * 4
    run_ = study.run("depth3-off-seed0")
    assert rows["final_loss"][3] == pytest.approx(run_.steps["loss"].iloc[-1])
    assert rows["error_rate"][3] == pytest.approx(1 - run_.steps["accuracy"].iloc[-1])
    assert run_.manifest["point"] == {"depth": 3, "shortcuts": "off", "seed": 0}
    assert rows["claim_training_loss"].notna().tolist() == [True, False, True, False]
    # Nothing is left to do, so that no process is started for it.
    begun = lines(tmp_path, "begun")
    assert run(tmp_path, *COMMAND).returncode == 0
    assert lines(tmp_path, "begun") == begun


def test_a_point_that_takes_too_long_is_ended_with_what_it_started(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(
        MODEL
        + """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)  # of a late point"])
"""
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wait 1 False").touch()
    words = [*COMMAND[2:5], "--model", "model.py", "--depths", "1", "--shortcuts", "off"]
    words += ["--steps", "9", "--no-probes", "--quiet"]
    assert main([*words, "--time-limit", "1"]) == 1
    (point,) = open_study(tmp_path / "s").points
    assert point.status == "failed" and point.ending["deaths"] == 0
    assert re.fullmatch(r"it was ended after \d+ s by --time-limit; .*", point.error)
    assert lines(tmp_path, "begun") in ([], ["1 False"])
    until(lambda: not any("# of a late point" in text for text in command_lines()))
    (tmp_path / "wait 1 False").unlink()
    assert main([*words, "--retry", "--time-limit", "100"]) == 0
    assert lines(tmp_path, "ended") == ["1 False"]


@pytest.mark.parametrize("limit", ["nan", "inf", "0"])
def test_a_time_limit_is_a_number_of_seconds(limit, capsys):
    assert main(["study", "--depths", "8", "--time-limit", limit]) == 2
    assert "--time-limit" in capsys.readouterr().err


def command_lines() -> Iterator[str]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text(errors="replace")


class Recorded:
    """What runs points in this process: a run that was recorded once is copied for each."""

    capacity = 2

    def __init__(self, source: Path, fails: set[str]) -> None:
        self.source, self.fails, self.started, self._left = source, fails, [], []

    def start(self, name: str, options: str, log: Path, *, is_script: bool) -> None:
        self.started.append(name)
        code = int(name in self.fails)
        log.write_text("first\nthe last line\n")
        if not code:
            shutil.copytree(self.source, json.loads(options)["run"])
        self._left.append((name, code))

    def ended(self, seconds: float) -> list[Ended]:
        found, self._left = self._left, []
        return found

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("study")
    command(folder, "record", "--run", "r", "--steps", "1", "--batch-size", "8", "zoo:simple2")
    return folder / "r"


def test_a_failed_point_is_kept_and_reported_and_run_again_when_asked(tmp_path, recorded, capsys):
    plan = product("zoo:mlp", depth=[4], seed=[0, 1, 2])
    runner = Recorded(recorded, {"depth4-seed1"})
    study = run_study(plan, tmp_path / "s", runner=lambda _: runner)
    assert [point.status for point in study.points] == ["finished", "failed", "finished"]
    assert study.points[1].error == "exit code 1: the last line"
    assert study.summary()["problem"].tolist()[1] == "exit code 1: the last line"
    # Neither what is finished nor what failed is run by itself.
    again = Recorded(recorded, set())
    run_study(plan, tmp_path / "s", runner=lambda _: again)
    assert again.started == []
    run_study(plan, tmp_path / "s", retry=True, runner=lambda _: again)
    assert again.started == ["depth4-seed1"]
    assert [point.status for point in study.points] == ["finished"] * 3
    kept = tmp_path / "s/failed/depth4-seed1-0"
    assert sorted(file.name for file in kept.iterdir()) == ["depth4-seed1.json", "depth4-seed1.txt"]
    assert study.summary()["status"].tolist() == ["finished"] * 3


def test_a_plan_grows_and_never_changes_what_was_run(tmp_path, recorded):
    first = product("zoo:mlp", depth=[4], seed=[0])
    run_study(first, tmp_path, runner=lambda _: Recorded(recorded, set()))
    more = Recorded(recorded, set())
    study = run_study(product("zoo:mlp", depth=[4, 6], seed=[0]), tmp_path, runner=lambda _: more)
    assert more.started == ["depth6-seed0"]
    assert study.axes == {"depth": [4, 6], "seed": [0]}
    other = product("zoo:mlp", depth=[4], seed=[0], options=RecordOptions(steps=3))
    with pytest.raises(AnalyzerError, match=r"planned with other options \(probe, steps\)"):
        run_study(other, tmp_path)
    with pytest.raises(AnalyzerError, match="is of zoo:mlp, and zoo:simple was given"):
        run_study(product("zoo:simple", depth=[4]), tmp_path)


def test_a_script_of_a_study_is_named_by_its_command_and_may_set_its_own_seed(
    tmp_path, recorded, capsys
):
    grid = {"--lr": [0.1, 0.2]}
    plan = product("train.py", grid=grid, seed=[0, 1, 2], is_script=True)
    # Of one run for all, seeds change nothing.
    runner = Recorded(recorded, {"lr0.2-seed1"})
    assert print_result(run_study(plan, tmp_path / "s", runner=lambda _: runner)) == 1
    said = capsys.readouterr().out
    assert "Run them again: the same command with --retry\n" in said
    assert (
        'the script sets its own seed, so all seeds give the same. Let it take one: --grid "'
        in said
    )
    rows = open_study(tmp_path / "s").summary()
    rows.loc[0, "final_loss"] += 1
    write_table(tmp_path / "s/summary.parquet", pa.Table.from_pandas(rows, preserve_index=False))
    print_result(open_study(tmp_path / "s"))
    assert "own seed" not in capsys.readouterr().out


def test_a_study_that_is_moved_while_it_runs_ends_and_goes_on_where_it_is(tmp_path, recorded):
    class Moved(Recorded):
        def ended(self, seconds: float) -> list[Ended]:
            (tmp_path / "s").rename(tmp_path / "t")
            return super().ended(seconds)

    plan = product("zoo:mlp", depth=[4], seed=[0, 1, 2])
    with pytest.raises(AnalyzerError, match="was moved or removed while it ran"):
        run_study(plan, tmp_path / "s", runner=lambda _: Moved(recorded, set()))
    assert not (tmp_path / "s").exists()
    again = Recorded(recorded, set())
    study = run_study(None, tmp_path / "t", runner=lambda _: again)
    assert [point.status for point in study.points] == ["finished"] * 3
    assert again.started == ["depth4-seed2"]  # two were finished, and nobody had said so


def test_a_disk_that_is_full_ends_a_study_in_a_sentence(tmp_path, monkeypatch, capsys):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("analyzer.studies.running.write_json", full)
    monkeypatch.chdir(tmp_path)
    assert main(["study", "--study", "s", "--model", "zoo:mlp", "--depths", "4"]) == 2
    said = capsys.readouterr().err
    assert "study 's' cannot go on ([Errno 28] No space left on device" in said
    assert "give the same command again" in said and said.count("\n") == 1


def test_two_parents_do_not_run_one_study(tmp_path):
    with held(tmp_path), pytest.raises(AnalyzerError, match=f"by process {os.getpid()} on "):
        run_study(product("zoo:mlp", depth=[4]), tmp_path)
    with held(tmp_path):
        pass


def test_a_folder_runs_no_code_that_it_names(tmp_path):
    point = Point("evil", {}, RecordOptions(target="evil.py"))
    write_json(tmp_path / "plan.json", Plan("evil.py", (point,)).as_json())
    with pytest.raises(AnalyzerError, match=r"names the file\. Give --model or --script"):
        run_study(None, tmp_path)


@pytest.mark.parametrize(
    ("target", "arguments", "name"),
    [
        ("zoo:resnet", {"shortcuts": "on"}, "resnet8"),
        ("zoo:resnet-b-preact", {"shortcuts": "off", "norm": "none"}, "plain8-preact-nonorm"),
        ("zoo:resnet", {"shortcuts": 0.5, "width": 4}, "resnet8-w4"),
        ("zoo:mlp", {"shortcuts": "off", "norm": "layer"}, "mlp8-layernorm"),
        ("zoo:mlp-pair", {"initialization": "he"}, "mlp8-pair-residual-he"),
        ("zoo:simple", {"shortcuts": "off", "norm": "batch"}, "simple8-plain-batchnorm"),
    ],
)
def test_a_point_names_a_network_of_the_zoo(target, arguments, name):
    (point,) = product(target, depth=[8], **{key: [one] for key, one in arguments.items()}).points
    assert point.record.target == f"zoo:{name}"
    assert zoo(name, in_channels=1, num_classes=2, image_size=8)
    scales = {0.5: 0.5}
    assert point.record.skip_scale == scales.get(arguments.get("shortcuts"))


def test_points_have_names_of_their_own_whatever_their_values():
    grid = {"--path": ["a/b", "a_b", "a b"]}
    plan = product("train.py", grid=grid, seed=[0], args=["--x"], is_script=True)
    names = [point.name for point in plan.points]
    assert len(set(names)) == 3 and all("/" not in name for name in names)
    assert plan.points[0].record.args == ("--x", "--path", "a/b")
    assert plan.points[0].arguments == {"path": "a/b", "seed": 0}


def test_a_study_below_the_working_folder_is_named_from_there(tmp_path, capsys, monkeypatch):
    folder = write_study(tmp_path / "here" / "runs" / "s", tmp_path / "outside")
    monkeypatch.chdir(tmp_path / "here")
    assert print_result(open_study(folder)) == 0
    end = "Look closer: analyzer report {0}; analyzer dashboard {0}\n"
    assert capsys.readouterr().out.endswith(end.format("runs/s"))
    monkeypatch.chdir(tmp_path / "outside")
    assert print_result(open_study(folder)) == 0
    assert capsys.readouterr().out.endswith(end.format(folder))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depths", "9"], "depth 9 is none of zoo:resnet; expected 6n + 2"),
        (["--model", "zoo:vgg", "--depths", "8"], "zoo:vgg is no family"),
        (["--model", "zoo:resnet"], "zoo:resnet has no depth; expected some with --depths"),
        (["--depths", "8,x"], "--depths is '8,x'"),
        (["--depths", "8", "--norms", "layer"], "norm 'layer' is none of zoo:resnet"),
        (["--depths", "8", "--shortcuts", "maybe"], "shortcuts is 'maybe'; expected on, off"),
        (["--depths", "8", "--seeds", "0"], "--seeds is '0'; expected how many"),
        (["--model", "none.py"], "'none.py' is no file"),
        (["--script", "t.py", "--model", "m.py"], "--model m.py is given with --script t.py"),
        (["--script", __file__, "--depths", "8"], '--grid "--depth 8"'),
        (["--script", __file__, "--grid", "lr"], "is no argument with values"),
        (["--depths", "8", "--grid", "--lr 1"], "expected it with --script"),
        (["--depths", "8", "--steps", "0"], "--steps is 0"),
        (["--depths", "8", "--lrs", "nan"], "--lrs is 'nan' (one is not finite, or too large)"),
        (["--depths", "8", "--lrs", "-1"], "--lr is -1.0; expected a finite number"),
        (["--depths", "8", "--seeds", "1000000000"], "the plan has 2,000,000,000 points"),
        (["--script", __file__, "--grid", "--a-b 1", "--grid", "a_b 2"], "argument twice"),
        (["--script", __file__, "--grid", "--seed 1,2", "--seeds", "3"], "seeds are given twice"),
        (["--model", __file__, "--depths", "8", "--grid", "depth 1,2"], "depth are given twice"),
        (["--depths", "8", "--ray", "auto"], "pip install 'gradient-flow-analyzer[ray]'"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(words, message, capsys, tmp_path):
    if "--ray" in words and importlib.util.find_spec("ray"):
        message = ""
        words = ["--depths", "9"]
    assert main(["study", "--study", str(tmp_path / "s"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("analyzer: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "s" / "plan.json").exists()


def test_an_argument_that_varies_is_written_in_several_ways():
    axis = ("--lr", [0.1, 0.01])
    for text in ("--lr 0.1,0.01", "lr=0.1,0.01", " lr 0.1, 0.01"):
        assert grid_axis(text, is_script=True) == axis
    assert grid_axis("--two-words 1,a", is_script=False) == ("two_words", [1, "a"])


def test_values_that_no_plan_can_hold_as_numbers_stay_texts():
    _, found = grid_axis(f"--clip inf,nan,1e400,{10**30},1e3", is_script=True)
    assert found == ["inf", "nan", "1e400", str(10**30), 1000.0]
    plan = product("train.py", grid={"--clip": found}, is_script=True)
    assert plan.points[0].record.args == ("--clip", "inf")


def test_a_seed_that_a_script_takes_is_that_of_the_point():
    plan = product("train.py", grid={"--seed": [3, 4]}, is_script=True)
    assert [point.name for point in plan.points] == ["seed3", "seed4"]
    assert [(p.record.seed, p.record.args) for p in plan.points] == [
        (3, ("--seed", "3")),
        (4, ("--seed", "4")),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        '{"schema_version": 1}',
        '{"schema_version": 1, "target": "a", "axes": {}, "points":'
        ' [{"name": "../x", "arguments": {}, "record": {}}]}',
    ],
)
def test_a_damaged_plan_is_refused(tmp_path, damage):
    (tmp_path / "plan.json").write_text(damage)
    with pytest.raises(SchemaError, match=r"plan.json is damaged"):
        open_study(tmp_path)
