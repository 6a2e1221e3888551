"""Whole trainings that meet a fault: what they train, how they are started, what must hold."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from analyzer.storage.parts import Part
from analyzer.storage.run import Run, open_run
from tests.analyzer.storage.storage_faults import FILE_FAULTS, Faulted, steps_of

__all__ = ["KINDS", "Trainings", "survive"]

ROOT = Path(__file__).parents[2]
NUM_LAYERS, NUM_PARAMETERS = 4, 8
KINDS = (
    *("SIGKILL", "SIGTERM", "SIGHUP", "ENOSPC once", "EIO once", "ENOSPC", "EIO", "hung"),
    *(f"{name} {when}" for name in FILE_FAULTS for when in ("live", "later")),
)
SCRIPT = """
import os, sys, time
import torch

seed, losses, least = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
torch.manual_seed(seed)
model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(4)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batch = torch.randn(4, 8)
started = time.monotonic()
with open(losses, "w", buffering=1) as file:
    for step in range(50_000):
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(loss.item(), file=file)
        time.sleep(0.001)
        # Until the fault has come, where it must come while this runs.
        if time.monotonic() - started > least and step >= 40 and not os.path.exists("hold"):
            break
"""
SERVER = """
import errno, json, os, sys, threading, traceback
from pathlib import Path
import torch, analyzer
from analyzer.__main__ import main
from analyzer.recording import recorder
from analyzer.storage import folder, parts, writer

writer.RunWriter.__init__.__kwdefaults__.update(flush_seconds=0.03, queue_steps=64)
parts.FAN_IN = 4
folder._PATIENCE_SECONDS = 0.3
writer._PATIENCE_SECONDS, writer._LAST_SECONDS = 0.5, 0.3

def spoil(kind, at, run):
    word, _, once = kind.partition(" ")
    calls, plain = [0], os.replace

    def replace(source, target, *more, **options):
        if Path(target).is_relative_to(run):
            calls[0] += 1
            if calls[0] == at or (calls[0] > at and not once):
                if word == "hung":
                    threading.Event().wait()
                raise OSError(getattr(errno, word), os.strerror(getattr(errno, word)))
        return plain(source, target, *more, **options)

    parts.os.replace = replace

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(1, 2)
    os.chdir(job["folder"])
    if job["kind"].split()[0] in ("ENOSPC", "EIO", "hung"):
        spoil(job["kind"], job["at"], job["run"])
    code = 1
    try:
        code = main(job["arguments"]) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)
"""


class Trainings:
    """Starts trainings from a process that has imported everything, so that each takes a second."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, **job: Any) -> int:
        """Start one and return its process."""
        return self._ask(job)

    def wait(self, pid: int) -> int:
        """Return the exit code of one, once it has ended."""
        return self._ask({"wait": pid})

    def _ask(self, job: dict[str, Any]) -> int:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


def survive(trainings: Trainings, folder: Path, kind: str, seed: int) -> None:
    """Train through one fault; assert what must hold."""
    chance = random.Random(seed)
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    run, losses, hold = folder / "run", folder / "losses", folder / "hold"
    signal_ = getattr(signal, kind, None)
    if signal_ is not None or kind.endswith("live"):
        hold.touch()
    seconds = chance.uniform(0.3, 0.7)
    arguments = ["record", "--quiet", "--run", str(run), "--checkpoint-every", "100000", "train.py"]
    pid = trainings.start(
        arguments=[*arguments, str(seed), str(losses), str(seconds)],
        folder=str(folder),
        output=str(folder / "output"),
        kind=kind,
        at=chance.randrange(2, 30),
        run=str(run),
    )
    faulted = None
    if hold.exists():
        wait_for(lambda: list(run.glob("steps/*.parquet")))
        time.sleep(chance.uniform(0.0, 0.2))
    before = set() if signal_ is None else set(open_run(run).recorded_steps().tolist())
    if signal_ is not None:
        os.kill(pid, signal_)
    elif kind.endswith("live"):
        faulted = spoil(run, kind, chance)
    hold.unlink(missing_ok=True)
    code = trainings.wait(pid)
    output = (folder / "output").read_text()
    assert code == (0 if signal_ is None else -signal_), output
    if kind.endswith("later"):
        faulted = spoil(run, kind, chance)
    check(open_run(run), [float(x) for x in losses.read_text().split()], kind, before, faulted)


def wait_for(condition: Any) -> None:
    """Wait until it holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited a minute"
        time.sleep(0.005)


def spoil(run: Path, kind: str, chance: random.Random) -> Faulted:
    """Do something to one of the parts of a run."""
    name = kind.partition(" ")[0]
    while True:
        files = sorted(p for p in run.glob("*s/*.parquet") if Part.from_name(p.name))
        path = chance.choice(files)
        others = [p for p in files if p.parent == path.parent and p != path]
        try:
            faulted = Faulted(name, f"{path.parent.name}/{path.name}", steps_of(path))
            FILE_FAULTS[name](path, chance.choice(others) if others else None, chance)
            return faulted
        except FileNotFoundError:
            continue  # a merge took it away


def check(run: Run, losses: list[float], kind: str, before: set[int], faulted: Any) -> None:
    """Every number is right, what may be missing is no more than it must be, and is named."""
    found = run.read("steps", "loss")
    steps = found.column("step").to_pylist()
    assert len(set(steps)) == len(steps)
    assert found.column("loss").to_pylist() == [losses[step] for step in steps]
    tables = {"steps": set(steps)}
    for table, count in (("layer_stats", NUM_LAYERS), ("parameter_stats", NUM_PARAMETERS)):
        numbers = run.read(table).column("step").to_pylist()
        tables[table] = set(numbers)
        assert all(
            numbers.count(step) == count for step in (numbers[:1], numbers[-1:]) for step in step
        )
        assert len(numbers) == count * len(tables[table])
    named = [*run.warnings, *run.manifest.get("damaged", [])]
    lost = run.manifest.get("lost_steps", 0)
    everything = set(range(len(losses)))
    if faulted is not None:
        for table, there in tables.items():
            missing = everything - there
            if table != faulted.place.partition("/")[0] or kind.startswith("swapped"):
                assert not missing, (table, missing)
            assert missing <= faulted.steps
            word = "missing" if faulted.name == "removed" else faulted.place
            assert not missing or any(word in line and table in line for line in named), named
    elif kind.startswith("SIG"):
        assert before <= tables["steps"]
        assert named == []
    elif kind.endswith("once"):
        assert tables["steps"] == everything
        assert run.manifest.get("storage_error") is None
    else:
        # What is not there was lost when the disk refused for good; it may not even take run.json.
        assert run.manifest["status"] != "finished" or len(everything) - len(steps) == lost
        assert tables["steps"] <= tables["layer_stats"] and named == []
