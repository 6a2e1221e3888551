"""One fault of a disk or of a file, at a moment that a seed draws, and what must hold after it."""

import contextlib
import ctypes
import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from analyzer.storage import catalog, folder, parts, writer
from analyzer.storage.parts import Part
from analyzer.storage.run import Run, open_run
from analyzer.storage.schema import STAT_COLUMNS
from analyzer.storage.writer import RunWriter
from tests.analyzer.storage.storage_rows import block, record

__all__ = ["FILE_FAULTS", "Faulted", "quick", "survive"]

NUM_JOINS = 3
CODES = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EAGAIN, errno.EROFS, errno.EDQUOT)


def quick(patch: pytest.MonkeyPatch) -> None:
    """Let a writer be as patient as a test, and merge after few parts."""
    patch.setattr(folder, "_RETRY_SECONDS", 0.001)
    patch.setattr(folder, "_PATIENCE_SECONDS", 0.05)
    patch.setattr(folder, "_LAST_TRIES", (0.0, 0.001, 0.002))
    patch.setattr(writer, "_POLL_SECONDS", 0.002)
    patch.setattr(parts, "FAN_IN", 4)


@dataclass
class Faulted:
    """Rows that stood in a file when it was spoiled: only they may be missing later."""

    name: str
    place: str
    steps: set[int] = field(default_factory=set)


def steps_of(path: Path) -> set[int]:
    """The steps of a file, read by pyarrow alone."""
    return set(pq.read_table(path, columns=["step"]).column("step").to_pylist())


def removed(path: Path, _: Path | None, chance: random.Random) -> None:
    """The file is gone."""
    path.unlink()


def truncated(path: Path, _: Path | None, chance: random.Random) -> None:
    """The file ends early."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def flipped(path: Path, _: Path | None, chance: random.Random) -> None:
    """A byte of the file is another one."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
    path.write_bytes(data)


def swapped(path: Path, other: Path | None, _: random.Random) -> None:
    """Two files have each other's names."""
    if other is not None:
        names = (-100, os.fsencode(path), -100, os.fsencode(other))
        if ctypes.CDLL(None, use_errno=True).renameat2(*names, 2) != 0:  # both at once
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


FILE_FAULTS = {
    "removed": removed,
    "truncated": truncated,
    "flipped": flipped,
    "swapped": swapped,
}


def spoil(run: Path, name: str, chance: random.Random) -> Faulted | None:
    """Do something to one part of a run; None where there is none, or a merge took it away."""
    files = sorted(p for p in run.glob("s*/*.parquet") if Part.from_name(p.name))
    if not files:
        return None
    path = chance.choice(files)
    others = [p for p in files if p.parent == path.parent and p != path]
    with contextlib.suppress(FileNotFoundError):
        faulted = Faulted(name, f"{path.parent.name}/{path.name}", steps_of(path))
        FILE_FAULTS[name](path, chance.choice(others) if others else None, chance)
        return faulted
    return None


class Disk:
    """Stands between the writer and the disk: refuses or hangs at some calls."""

    def __init__(self, run: Path) -> None:
        self.run, self.calls = run, 0
        self.at: Callable[[int], bool] = lambda call: False
        self.error: Callable[[], BaseException] | None = None
        self.gate = threading.Event()

    def between(self, call: Callable[..., Any], which: int) -> Callable[..., Any]:
        """Return a call that passes here first; argument ``which`` is the path."""

        def passing(*arguments: Any, **options: Any) -> Any:
            if Path(arguments[which]).is_relative_to(self.run):
                self.calls += 1
                if self.at(self.calls):
                    if self.error is None:
                        self.gate.wait(60)
                    else:
                        raise self.error()
            return call(*arguments, **options)

        return passing

    def stand_between(self, patch: pytest.MonkeyPatch) -> None:
        """Let every write of the storage pass here."""
        patch.setattr(parts.pq, "write_table", self.between(pq.write_table, 1))
        patch.setattr(parts.os, "replace", self.between(os.replace, 1))
        patch.setattr(catalog.os, "link", self.between(os.link, 1))
        patch.setattr(parts, "seal", self.between(parts.seal, 0))


def survive(path: Path, seed: int, patch: pytest.MonkeyPatch) -> str:
    """Record a run through one fault; assert what must hold, and return what the fault was."""
    chance = random.Random(seed)
    quick(patch)
    patch.setattr(parts, "_GRACE_SECONDS", chance.choice([0.0, 0.0, 5.0]))
    disk = Disk(path)
    disk.stand_between(patch)
    kind = chance.choice([*FILE_FAULTS, *(f"live {name}" for name in FILE_FAULTS), *_OF_DISK])
    steps = chance.randint(3, 40)
    at = chance.randrange(steps)
    if kind in _OF_DISK:
        _OF_DISK[kind](disk, chance, patch)
    said: list[str] = []
    run = RunWriter(
        path,
        {},
        flush_steps=chance.randint(1, 5),
        queue_steps=chance.choice([4, 64]),
        warn=said.append,
    )
    faulted = None
    for step in range(steps):
        run.add(lambda step=step: record(step, block("splits", step, NUM_JOINS)))  # type: ignore[misc]
        if step == at and kind.startswith("live "):
            _settle(run, step - 5)
            faulted = spoil(path, kind.removeprefix("live "), chance)
    started = time.monotonic()
    run.close("finished")
    if kind == "hung":
        assert time.monotonic() - started < 3.0
        assert run.failed is not None and "did not answer" in run.failed
        assert run.lost_steps > 0 and len(said) >= 1
        disk.gate.set()
        run._thread.join(10)
    if kind in FILE_FAULTS:
        faulted = spoil(path, kind, chance)
    if kind in ("refused for good", "hung") and not (path / "run.json").exists():
        assert run.failed is not None and run.written_steps == 0 and run.lost_steps == steps
        return kind
    _check(path, steps, run, faulted)
    return kind


def _settle(run: RunWriter, steps: int) -> None:
    end = time.monotonic() + 10
    while run.written_steps < steps and time.monotonic() < end:
        time.sleep(0.001)


def _refused(disk: Disk, chance: random.Random, _: pytest.MonkeyPatch) -> None:
    """The disk refuses some calls in a row."""
    first, count, code = chance.randrange(1, 40), chance.randint(1, 3), chance.choice(CODES)
    disk.at = lambda call: first <= call < first + count
    disk.error = lambda: OSError(code, os.strerror(code))


def _refused_for_good(disk: Disk, chance: random.Random, _: pytest.MonkeyPatch) -> None:
    """The disk refuses from some call on."""
    first, code = chance.randrange(1, 40), chance.choice(CODES)
    disk.at = lambda call: call >= first
    disk.error = lambda: OSError(code, os.strerror(code))


def _no_memory(disk: Disk, chance: random.Random, _: pytest.MonkeyPatch) -> None:
    """There is no memory at one call."""
    first = chance.randrange(1, 40)
    disk.at = lambda call: call == first
    disk.error = lambda: MemoryError("no memory")


def _hung(disk: Disk, chance: random.Random, patch: pytest.MonkeyPatch) -> None:
    """The disk does not answer, from one call on until the program is over."""
    patch.setattr(writer, "_PATIENCE_SECONDS", 0.2)
    patch.setattr(writer, "_LAST_SECONDS", 0.1)
    first = chance.randrange(1, 6)
    disk.at = lambda call: call >= first


_OF_DISK: dict[str, Callable[[Disk, random.Random, pytest.MonkeyPatch], None]] = {
    "refused": _refused,
    "refused for good": _refused_for_good,
    "no memory": _no_memory,
    "hung": _hung,
}


def rows(run: Run) -> Iterator[tuple[str, set[int]]]:
    """The steps of each table that can be read, whole and once; every number must be right."""
    steps = run.read("steps", "loss")
    numbers = np.array(steps.column("step").to_pylist(), dtype=np.int64)
    assert steps.column("loss").to_pylist() == (numbers + 0.5).tolist()
    assert len(set(numbers.tolist())) == len(numbers)
    yield "steps", set(numbers.tolist())
    splits = run.read("splits")
    of, ids = (np.array(splits.column(n).to_pylist(), np.int64) for n in ("step", "join"))
    assert len(set(zip(of.tolist(), ids.tolist(), strict=True))) == len(of)
    assert all(np.sum(of == step) == NUM_JOINS for step in set(of.tolist()))
    for place, name in enumerate(STAT_COLUMNS["splits"]):
        assert splits.column(name).to_pylist() == (of * 100.0 + ids * 10.0 + place).tolist()
    yield "splits", set(of.tolist())


def _check(path: Path, steps: int, writer: RunWriter, faulted: Faulted | None) -> None:
    run = open_run(path)
    found = dict(rows(run))
    seen = run.series("loss", max_points=10**6)
    if seen.width == 1:
        assert seen.mean.tolist() == [step + 0.5 for step in sorted(found["steps"])]
    lost = run.manifest.get("lost_steps", 0)
    assert writer.written_steps + writer.lost_steps == steps
    if writer.lost_steps:
        assert writer.failed is not None
        assert lost == 0 or lost == writer.lost_steps
    if faulted is None:
        assert len(found["steps"]) == writer.written_steps, (found, writer.written_steps)
        assert writer.lost_steps or run.warnings == [], run.warnings
    table = None if faulted is None else faulted.place.partition("/")[0]
    for name, there in found.items():
        missing = set(range(steps)) - there
        if faulted is None or name != table:
            assert len(missing) <= writer.lost_steps, (name, missing)
            continue
        if faulted.name == "swapped":
            assert not missing, (faulted, missing, run.warnings)
        assert missing <= faulted.steps, (faulted, missing)
        if missing:
            named = [*run.warnings, *run.manifest.get("damaged", [])]
            word = "missing" if faulted.name == "removed" else faulted.place
            assert any(word in sentence and name in sentence for sentence in named), named
