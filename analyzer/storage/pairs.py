"""What tells which runs belong together: arguments, and the newest pair of runs in a list."""

import re
from collections.abc import Mapping
from typing import Any

from analyzer.storage.catalog import RunSummary

__all__ = ["arguments", "newest_pair"]

_FLAG, _KEY = re.compile(r"--?[A-Za-z]"), re.compile(r"[+~]{0,2}[A-Za-z_][\w./-]*")
# What a name or a built-in network says of its role; without it both of a pair are called alike.
_ROLES = re.compile(r"[-_]?(plain|residual|resnet|no[-_]?(?:skips?|shortcuts?)|skips?)", re.I)


def arguments(told: Mapping[str, Any]) -> dict[str, str]:
    """Return what the command line gave to a program, by name: ``--lr 0.1``, ``-b 8``, ``lr=0.1``.

    A name without a value is ``yes``. With them the seed and the scale of the shortcuts, which the
    recorder may have set.

    Args:
        told: A manifest, or what a list of runs keeps of it.
    """
    given = told.get("argv")
    words = [str(word) for word in given] if isinstance(given, list) else []
    found: dict[str, str] = {}
    waiting = ""  # the name whose value comes next
    for word in words:
        name, is_whole, value = word.lstrip("-").partition("=")
        if _FLAG.match(word):
            found[name] = value if is_whole else "yes"
            waiting = "" if is_whole else name
        elif word == "--":
            waiting = ""
        elif waiting:
            found[waiting], waiting = word, ""
        elif is_whole and _KEY.fullmatch(name):
            found[name] = value
    for name in ("seed", "skip_scale"):
        if told.get(name) is not None:
            found.setdefault(name.replace("_", "-"), str(told[name]))
    return found


def newest_pair(runs: Mapping[str, RunSummary]) -> tuple[str, str] | None:
    """Return keys of the newest runs that are a pair, first the one without shortcuts.

    A pair is a run and its twin; else two runs of one program (of one name, where none is known;
    words such as ``plain`` and ``resnet`` aside), one with joins, the other without. Of several
    partners the one with most arguments in common is taken, then the one of the same seed, then
    the newest. Only what lists of runs have is looked at.

    Args:
        runs: Runs by their keys, the newest first.
    """
    shortcuts = {key: _has_shortcuts(run) for key, run in runs.items()}
    # Of thousands of runs each would be looked at beside each: partners are looked up instead.
    program = {key: _program(run) for key, run in runs.items()}
    alike: dict[object, list[str]] = {}
    for key, run in runs.items():
        for word in {(program[key],), *_own_names(run)}:
            alike.setdefault((word, shortcuts[key]), []).append(key)
    for key, run in runs.items():
        if (has := shortcuts[key]) is None:
            continue
        words = {(program[key],), *_own_names(run)}
        found = {name for word in words for name in alike.get((word, not has), ())}
        others = [
            name
            for name in (runs if found else ())
            if name in found and (program[name] == program[key] or _are_twins(run, runs[name]))
        ]
        if others:
            # Of equal ones max takes the first, the newest.
            partner = max(others, key=lambda name: _likeness(run, runs[name]))
            return (partner, key) if has else (key, partner)
    return None


def _own_names(run: RunSummary) -> set[str]:
    """The names of a run and of its twin."""
    names = (run.name, run.told.get("twin"), run.told.get("twin_of"))
    return {name for name in names if isinstance(name, str)}


def _has_shortcuts(run: RunSummary) -> bool | None:
    """Whether gradients flow through joins, as far as the list knows."""
    if run.told.get("skip_scale") == 0 or run.told.get("twin_of"):
        return False
    if run.told.get("twin"):
        return True
    return None if run.joins is None else run.joins > 0


def _are_twins(run: RunSummary, other: RunSummary) -> bool:
    return run.name in (other.told.get("twin"), other.told.get("twin_of")) or other.name in (
        run.told.get("twin"),
        run.told.get("twin_of"),
    )


def _program(run: RunSummary) -> str:
    """The script or network, else the name of the run, without the word for its role."""
    return _ROLES.sub("", (_arguments(run) or [run.name])[0])


def _arguments(run: RunSummary) -> list[str]:
    found = run.told.get("argv")
    return list(map(str, found)) if isinstance(found, list) else []


def _likeness(run: RunSummary, other: RunSummary) -> tuple[bool, int, bool, bool]:
    arguments = [set(_arguments(one)[1:]) for one in (run, other)]
    return (
        _are_twins(run, other),
        -len(arguments[0] ^ arguments[1]),
        run.told.get("seed") == other.told.get("seed"),
        _ROLES.sub("", run.name) == _ROLES.sub("", other.name),
    )
