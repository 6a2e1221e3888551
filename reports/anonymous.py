"""Runs without what could name their author, for double-blind review."""

import re
from pathlib import Path
from typing import Any

from analyzer.storage.run import Run

__all__ = ["AnonymousRun", "anonymous_manifest", "without_paths"]

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
    """A run under a name that says nothing.

    Args:
        path: Folder of the run.
        alias: The name that it is shown under.

    Raises:
        RunNotFoundError: If there is no run at this place.
        SchemaError: If ``run.json`` is damaged, foreign, or of a newer version.
    """

    def __init__(self, path: Path, alias: str) -> None:
        super().__init__(path)
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
