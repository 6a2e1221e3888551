"""What a manifest says about where a run came from, without paths, hosts or user names."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["device_name", "environment", "git_state"]

_PACKAGES = ("gradient-flow-analyzer", "torch", "numpy", "pyarrow")


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
