"""Which of several runs belong together: the seeds of one program, and plain with residual."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analyzer.storage.run import Run

__all__ = ["Group", "grouped", "has_shortcuts", "pairs_of", "program", "representatives", "seed_of"]

_SEED = re.compile(r"--?seed(=.*)?", re.IGNORECASE)
_MOST_SHOWN = 3


@dataclass(frozen=True)
class Group:
    """Runs of one program that differ by their seed at most.

    Args:
        label: What the figures call it.
        has_shortcuts: Whether gradients flow through joins in its runs.
        runs: Its runs, by seed.
    """

    label: str
    has_shortcuts: bool
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seed of each run; a dash where the manifest has none."""
        return tuple(seed_of(run.manifest) for run in self.runs)


def has_shortcuts(run: Run) -> bool:
    """Return whether gradients of a run flow through joins."""
    return len(run.joins) > 0 and run.manifest.get("skip_scale") != 0


def seed_of(manifest: dict[str, Any]) -> str:
    """Return the seed of a run as text; a dash where none is known."""
    arguments = [str(a) for a in manifest.get("argv") or ()]
    for place, argument in enumerate(arguments):
        found = _SEED.fullmatch(argument)
        if found and found[1]:
            return found[1][1:]
        if found and place + 1 < len(arguments):
            return arguments[place + 1]
    seed = manifest.get("seed")
    return "–" if seed is None else str(seed)


def program(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Return the command line of a run without its seed."""
    arguments = [str(a) for a in manifest.get("argv") or [manifest.get("name", "")]]
    kept: list[str] = []
    skip = False
    for argument in arguments:
        found = _SEED.fullmatch(argument)
        if not found and not skip:
            kept.append(argument)
        skip = bool(found) and not (found and found[1])
    return tuple(kept)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Put the seeds of one program together, plain nets before residual ones.

    Args:
        runs: Opened runs, in the order in which they were named.

    Returns:
        Groups; those of one kind in the order of their first run. A run of its own is a group.
    """
    members: dict[tuple[bool, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        members.setdefault((has_shortcuts(run), program(run.manifest)), []).append(run)
    keys = sorted(members, key=lambda key: key[0])
    return [
        Group(_label(key, keys, members[key]), key[0], tuple(_by_seed(members[key])))
        for key in keys
    ]


def pairs_of(plain: Group, residual: Group) -> list[tuple[Run, Run]]:
    """Return the runs of two groups that have the same seed; one of each where they are single."""
    if len(plain.runs) == len(residual.runs) == 1:
        return [(plain.runs[0], residual.runs[0])]
    right = dict(zip(residual.seeds, residual.runs, strict=True))
    left = zip(plain.seeds, plain.runs, strict=True)
    return [(run, right[seed]) for seed, run in left if seed in right]


def _by_seed(runs: list[Run]) -> list[Run]:
    def order(run: Run) -> tuple[float, str]:
        seed = seed_of(run.manifest)
        return (float(seed) if seed.isdigit() else math.inf, seed)

    return sorted(runs, key=order)


def _label(
    key: tuple[bool, tuple[str, ...]], keys: list[tuple[bool, tuple[str, ...]]], runs: list[Run]
) -> str:
    """The role where it names one group only, with the program where it does not."""
    role = "residual" if key[0] else "plain"
    if len(runs) == 1:
        return runs[0].name
    return role if sum(k[0] == key[0] for k in keys) == 1 else f"{role}: {' '.join(key[1])}"


def representatives(groups: Sequence[Group]) -> tuple[Run, ...]:
    """Return the runs that the figures show: one of each group, of one seed where there is one.

    Returns:
        Three runs at the most, since the figures have room for three columns.
    """
    common = set.intersection(*(set(group.seeds) for group in groups)) if groups else set()
    first = next((seed for seed in groups[0].seeds if seed in common), None) if groups else None
    chosen = []
    for group in groups[:_MOST_SHOWN]:
        place = group.seeds.index(first) if first in group.seeds else 0
        chosen.append(group.runs[place])
    return tuple(chosen)
