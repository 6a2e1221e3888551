"""What a report says of each run: size and loss, what repeats it, what would name its author."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyzer.analysis.gradient_flow import Gain, depth_profile, profile_gain
from analyzer.analysis.numerals import number, percent
from analyzer.analysis.training import run_training
from analyzer.analysis.view import has_shortcuts
from analyzer.storage.run import Run

from .groups import seed_of

__all__ = [
    "AnonymousRun",
    "differing",
    "last_gain",
    "reproducibility",
    "run_table",
    "without_paths",
]

# What says where, when or by whom; argv keeps its flags and loses its paths.
_DROPPED = ("created", "heartbeat", "git", "name", "platform", "host", "user", "target", "log_dir")
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:~?[\\/]|\.{1,2}[\\/])[^\s'\",:;()<>|]+|\w+(?:[\\/][\w.-]+)+")
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|\bhttps?://\S+")


def without_paths(text: str) -> str:
    """Return a text with paths, mail and web addresses replaced by what they are."""
    return _PATH.sub("<path>", _ADDRESS.sub("<address>", text))


def anonymous_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest without commit, time, machine and paths; numbers and flags stay."""
    return {key: _cleaned(value) for key, value in manifest.items() if key not in _DROPPED}


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


class AnonymousRun(Run):
    """A run under a name that says nothing, without what would name its author."""

    def __init__(self, path: Path, alias: str) -> None:
        super().__init__(path)
        # The status follows from the heartbeat, which is a time and so left out below.
        self._alias, self._known_status = alias, super().status
        self.manifest = anonymous_manifest(self.manifest)

    @property
    def name(self) -> str:
        """The name that it is shown under."""
        return self._alias

    @property
    def status(self) -> str:
        """The status at the time of opening."""
        return self._known_status


_UNKNOWN = "not recorded"


def reproducibility(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the facts of runs: a row for each ``fact``, a column for each run.

    What a manifest does not hold reads ``not recorded``.
    """
    rows = [[fact, *(of(run) for run in runs)] for fact, of in _FACTS.items()]
    for key, words in _TABLES.items():
        held = [run.manifest.get(key) or {} for run in runs]
        for name in dict.fromkeys(name for of_run in held for name in of_run):
            rows.append([words(name), *(_text(of_run.get(name)) for of_run in held)])
    return pd.DataFrame(rows, columns=["fact", *(run.name for run in runs)])


def differing(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the facts in which runs differ, as ``reproducibility`` does; when they ran is none."""
    facts = reproducibility(runs)
    rows = facts.itertuples(index=False, name=None)
    kept = [len(set(row[1:])) > 1 and row[0] not in _MOMENTS for row in rows]
    return facts[kept]


_MOMENTS = ("begun", "wall time", "cost of recording")
_TABLES: dict[str, Callable[[str], str]] = {
    "versions": "version of {}".format,
    "determinism": lambda flag: flag.replace("_", " "),
}


def _text(value: Any) -> str:
    """A value of a manifest in words."""
    if value is None:
        return _UNKNOWN
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _command(run: Run) -> str:
    arguments = run.manifest.get("argv")
    return shlex.join(["analyzer", "record", *map(str, arguments)]) if arguments else _UNKNOWN


def _git(run: Run) -> str:
    git = run.manifest.get("git")
    if not isinstance(git, dict):
        return _UNKNOWN
    state = "with uncommitted changes" if git.get("dirty") else "clean"
    return f"{git.get('commit', _UNKNOWN)} ({state})"


def _sampling(run: Run) -> str:
    schedule = run.manifest.get("schedule") or {}
    if not schedule:
        return _UNKNOWN
    words = [
        f"every {schedule.get('every', 1)} steps",
        f"columns {schedule.get('columns', 'all')}",
        f"splits every {schedule.get('splits_every')}",
        f"updates every {schedule.get('updates_every')}",
    ]
    for key, word in (("layers", "only layers"), ("skip_layers", "without layers")):
        words += [f"{word} {schedule[key]}"] if schedule.get(key) else []
    return ", ".join(words)


def _data_hash(run: Run) -> str:
    """The digest of the data, or of the first batch that the network was called with."""
    digest, first = run.manifest.get("data_hash"), run.manifest.get("first_batch")
    if digest:
        return str(digest)
    return f"{first} (types, shapes and first values of the first batch)" if first else _UNKNOWN


def _wall_time(run: Run) -> str:
    seconds = run.manifest.get("seconds")
    return f"{number(float(seconds))} s" if isinstance(seconds, int | float) else _UNKNOWN


def _overhead(run: Run) -> str:
    cost, seconds = (run.manifest.get(key) for key in ("recorder_seconds", "seconds"))
    if not isinstance(cost, int | float) or not isinstance(seconds, int | float) or not seconds:
        return _UNKNOWN
    return f"{percent(cost / seconds)} of the wall time ({number(float(cost))} s)"


def _key(name: str) -> Callable[[Run], str]:
    return lambda run: _text(run.manifest.get(name))


_FACTS: dict[str, Callable[[Run], str]] = {
    "command line": _command,
    "status": lambda run: run.status,
    "error": lambda run: str(run.manifest.get("error") or "none"),
    "begun": _key("created"),
    "git commit": _git,
    "seed": lambda run: seed_of(run.manifest),
    "data": _key("data"),
    "data hash": _data_hash,
    "batch size": _key("batch_size"),
    "optimizer": _key("optimizer"),
    "scale of the shortcuts": lambda run: str(run.manifest.get("skip_scale", "none")),
    "device": _key("device"),
    "dtype of parameters": _key("dtype"),
    "platform": _key("platform"),
    "steps": lambda run: f"{len(run.recorded_steps('steps')):,} recorded",
    "wall time": _wall_time,
    "cost of recording": _overhead,
    "sampling": _sampling,
    "schema version": _key("schema_version"),
}


def last_gain(run: Run) -> Gain | None:
    """Return the fitted gain at the last recorded step; None without one."""
    steps = run.layer_steps()
    return profile_gain(depth_profile(run, int(steps[-1]))) if len(steps) else None


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row for each run: kind, status, size, loss and gain."""
    return pd.DataFrame([_row(run) for run in runs])


def _row(run: Run) -> dict[str, Any]:
    gain, training = last_gain(run), run_training(run)
    return {
        "run": run.name,
        "kind": "residual" if has_shortcuts(run) else "plain",
        "seed": seed_of(run.manifest),
        "status": run.status,
        "steps": training.num_steps,
        "layers": len(run.layers),
        "joins": len(run.joins),
        "first loss": training.first_loss,
        "final loss": training.final_loss,
        "gain per layer": float("nan") if gain is None else gain.gain,
    }
