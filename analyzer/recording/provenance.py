"""What a manifest says about where a run came from, without paths, hosts or user names."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment", "git_state", "portable_argv"]

_PACKAGES = ("gradient-flow-analyzer", "torch", "numpy", "pyarrow")


def portable_argv(argv: Sequence[str], working_folder: Path) -> list[str]:
    """Return a command line without absolute paths.

    A path inside the working folder becomes relative to it; any other becomes ``<path:n>``, the
    same number for the same path. ``--option=/path`` is treated like ``/path``.
    """
    numbers: dict[str, int] = {}

    def portable(word: str) -> str:
        option, equals, value = word.partition("=")
        if option.startswith("-") and equals:
            return f"{option}={portable(value)}"
        path = os.path.expanduser(word)
        if not os.path.isabs(path) and ".." not in Path(path).parts:
            return word
        whole = Path(os.path.normpath(working_folder / path))
        if whole.is_relative_to(working_folder):
            return whole.relative_to(working_folder).as_posix()
        return f"<path:{numbers.setdefault(str(whole), len(numbers))}>"

    return [portable(word) for word in argv]


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit and whether there are uncommitted changes; None outside of a repository."""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
            ).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Return versions, determinism flags and threads of this process."""
    return {
        "created": datetime.now(UTC).isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "determinism": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads(),
        },
        "python_flags": {"hash_seed": os.environ.get("PYTHONHASHSEED"), "dev": sys.flags.dev_mode},
    }


def device_name(device: torch.device) -> str:
    """Return a device as a reader knows it: ``cpu``, or type and model of an accelerator."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
