"""Defaults of options from ``[tool.analyzer]`` in the nearest ``pyproject.toml``."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analyzer.errors import AnalyzerError

__all__ = ["defaults_for"]

Loader = Callable[[str], Any]


def defaults_for(command: str, load: Loader, folder: Path | None = None) -> dict[str, Any]:
    """Return the defaults that ``pyproject.toml`` gives to the options of one command.

    ``[tool.analyzer]`` holds options that several commands share (``runs-dir = "runs"``),
    ``[tool.analyzer.record]`` those of ``record`` alone, which win. Keys are option names without
    the leading dashes; values are read as if typed on the command line.

    Args:
        command: Name of the command that is about to run.
        load: Returns the parser of a command by its name.
        folder: Where the search for the file starts, upward; the working directory when None.

    Returns:
        Parameter name to value; empty without a file or a ``[tool.analyzer]`` table in it.

    Raises:
        AnalyzerError: If the file cannot be read, or names an option or command that there is not.
    """
    path = _nearest(folder or Path.cwd())
    if path is None:
        return {}
    table = _table(path)
    shared = {key: value for key, value in table.items() if not isinstance(value, dict)}
    own = table.get(command, {})
    _check_tables(path, table)
    options = _options(load(command))
    _check_shared(path, [key for key in shared if _plain(key) not in options], load)
    for key in own:
        if _plain(key) not in options:
            raise AnalyzerError(_unknown(path, f"tool.analyzer.{command}", key, options))
    known = {key: value for key, value in shared.items() if _plain(key) in options}
    return {options[_plain(key)]: value for key, value in (known | own).items()}


def _nearest(folder: Path) -> Path | None:
    """Return the first ``pyproject.toml`` in ``folder`` or above it."""
    candidates = (parent / "pyproject.toml" for parent in (folder, *folder.parents))
    return next((path for path in candidates if path.is_file()), None)


def _table(path: Path) -> dict[str, Any]:
    """Return the ``[tool.analyzer]`` table of a file, empty where it has none."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("analyzer", {})
    except (OSError, ValueError) as error:
        raise AnalyzerError(
            f"{path.name} cannot be read: {error}; expected TOML. "
            "Correct it, or run from a folder outside that project."
        ) from error
    if not isinstance(table, dict):
        raise AnalyzerError(
            f"{path.name}: tool.analyzer is {table!r}; expected a table. Write [tool.analyzer]."
        )
    return table


def _check_tables(path: Path, table: dict[str, Any]) -> None:
    """Refuse a ``[tool.analyzer.NAME]`` where NAME is no command."""
    from analyzer.cli import COMMANDS

    for name, value in table.items():
        if isinstance(value, dict) and name not in COMMANDS:
            raise AnalyzerError(
                f"{path.name}: [tool.analyzer.{name}] names no command; expected one of "
                f"{', '.join(COMMANDS)}. Correct or remove it."
            )


def _check_shared(path: Path, keys: list[str], load: Loader) -> None:
    """Refuse a key of ``[tool.analyzer]`` that is an option of no command."""
    from analyzer.cli import COMMANDS

    # Other commands are loaded only for a key that the present one does not know.
    options = {key: "" for name in COMMANDS if keys for key in _options(load(name))}
    for key in keys:
        if _plain(key) not in options:
            raise AnalyzerError(_unknown(path, "tool.analyzer", key, options))


def _options(command: Any) -> dict[str, str]:
    """Return the long options of a parser, without dashes, and the parameter each one sets."""
    return {
        _plain(option.removeprefix("--")): parameter.name
        for parameter in command.params
        if parameter.param_type_name == "option"
        for option in parameter.opts
        if option.startswith("--") and option != "--help"
    }


def _plain(key: str) -> str:
    """Write a key as the command line does, with dashes."""
    return key.replace("_", "-")


def _unknown(path: Path, table: str, key: str, options: dict[str, str]) -> str:
    """Say which key of which table is none, and what may stand there."""
    return (
        f"{path.name}: [{table}] has the key '{key}', which is no option; "
        f"expected one of {', '.join(sorted(options)) or 'none'}. Correct or remove it."
    )
