"""The table of the joins that a training shows; a join keeps its number for the whole run."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from analyzer.joins.plan import Join, numbered

__all__ = ["JoinTable"]

_TOKEN = re.compile(r"@(\d+)(\.?)")


class JoinTable:
    """Static rows of the joins, in the order in which backward passes first showed them.

    Two joins of different graphs are the same where module, operation and branch are: so the joins
    of a network keep their numbers when stochastic depth leaves some of its blocks out.
    """

    def __init__(self) -> None:
        self._joins: list[Join] = []
        self._numbers: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._joins)

    def number(self, join: Join) -> int | None:
        """Return the number of a join, None where it is not in the table."""
        return self._numbers.get(_key(join))

    def add(self, join: Join) -> bool:
        """Add a join; return whether it is new."""
        if _key(join) in self._numbers:
            return False
        self._numbers[_key(join)] = len(self._joins)
        self._joins.append(join)
        return True

    def rows(self, name_of: Callable[[int, str], str]) -> list[dict[str, Any]]:
        """Return the rows of ``joins.parquet``.

        Args:
            name_of: The name of a module, from the number of its root and its path there.
        """
        names = numbered([_spelled(_base(join), name_of) for join in self._joins])
        return [
            {
                "join": number,
                "name": name,
                "operation": join.operation,
                "shortcut": join.shortcut,
                "branch_layers": [_spelled(layer, name_of) for layer in join.branch_layers],
                "shortcut_layers": [_spelled(layer, name_of) for layer in join.shortcut_layers],
                "branch_parameters": join.branch_parameters,
                "shortcut_parameters": join.shortcut_parameters,
            }
            for number, (name, join) in enumerate(zip(names, self._joins, strict=True))
        ]

    def roles(self) -> dict[str, tuple[int, str]]:
        """Return the innermost join and the role (branch | shortcut) of layers, by their token."""
        sizes: dict[str, int] = {}
        roles: dict[str, tuple[int, str]] = {}
        for number, join in enumerate(self._joins):
            size = len(join.branch_layers) + len(join.shortcut_layers)
            sides = [("branch", layer) for layer in join.branch_layers]
            sides += [("shortcut", layer) for layer in join.shortcut_layers]
            for role, layer in sides:
                if layer not in roles or size < sizes[layer]:
                    roles[layer], sizes[layer] = (number, role), size
        return roles


def _base(join: Join) -> str:
    return join.name.partition("#")[0]


def _key(join: Join) -> Any:
    return _base(join), join.operation, tuple(join.branch_layers), tuple(join.shortcut_layers)


def _spelled(name: str, name_of: Callable[[int, str], str]) -> str:
    """A name that begins with the token of its root, as a user would write it."""
    found = _TOKEN.match(name)
    if found is None:
        return name
    path, mark, call = name[found.end() :].partition("#")
    return f"{name_of(int(found[1]), path)}{mark}{call}"
