"""The points of a study on a Ray cluster: each is a task, which Ray places and runs again."""

import contextlib
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from analyzer.errors import AnalyzerError
from analyzer.storage.study import read_json
from analyzer.studies.running import Ended, Workers, held

__all__ = ["RayCluster", "run_point"]

_MOST_RETRIES = 3
_POLL_SECONDS = 1.0
# All points are given to Ray, which knows what it can run at a time.
_ALL = 1_000_000


def run_point(name: str, options: str, log: str, is_script: bool, threads: int) -> int | None:
    """Run one point in a worker of Ray; return the exit code of its process.

    Ray may start a task again while what it began elsewhere still lives: a lock in the study's
    folder lets only one of them train, and what an earlier one has finished is left as it is.

    Returns:
        The exit code; None where the process was lost with the one that started it.
    """
    folder = Path(log).parents[1]
    run = folder / "runs" / name
    with held(folder / "locks" / name, math.inf) as lock:
        if read_json(run / "run.json").get("status") == "finished":
            return 0
        shutil.rmtree(run, ignore_errors=True)
        workers = Workers(1, threads, lock)
        try:
            workers.start(name, options, Path(log), is_script=is_script)
            while not (ended := workers.ended(_POLL_SECONDS)):
                pass
            return ended[0][1]
        finally:
            workers.close()


class RayCluster:
    """Runs points on a Ray cluster whose nodes share the folder of the study.

    Args:
        address: ``auto`` for the cluster of this machine, or one started here where there is none;
            or the address of one, as Ray has it.
        cpus: Processors, and threads of torch, for each point.
        gpus: GPUs for each point.

    Raises:
        AnalyzerError: If Ray is not installed, or there is no cluster at the address.
    """

    capacity = _ALL

    def __init__(self, address: str, *, cpus: int = 1, gpus: float = 0) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise AnalyzerError(
                f"--ray {address} is given and Ray is not installed; expected it beside analyzer. "
                "Install it with: pip install 'gradient-flow-analyzer[ray]'"
            ) from error
        self._ray, self._cpus = ray, cpus
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            if address != "auto":
                raise AnalyzerError(
                    f"no Ray cluster at {address!r} ({error}); expected the address of one that "
                    "runs, or auto. Start one with: ray start --head"
                ) from error
            ray.init(include_dashboard=False, **quiet)
        # A task that dies with its node or its worker is run again; what the script raises is not.
        limits = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": _MOST_RETRIES}
        self._task = ray.remote(**limits)(run_point)
        self._names: dict[Any, str] = {}

    def start(self, name: str, options: str, log: Path, *, is_script: bool) -> None:
        """Give a point to Ray."""
        task = self._task.options(name=name)
        self._names[task.remote(name, options, str(log), is_script, self._cpus)] = name

    def ended(self, seconds: float) -> list[Ended]:
        """Return which points have ended; None as code of one that Ray gave up."""
        if not self._names:
            return []
        done, _ = self._ray.wait(list(self._names), num_returns=1, timeout=seconds)
        found: list[Ended] = []
        for task in done:
            name = self._names.pop(task)
            try:
                found.append((name, self._ray.get(task)))
            except self._ray.exceptions.RayError as error:
                print(f"analyzer: Ray on {name}: {str(error).strip()[:500]}", file=sys.stderr)
                found.append((name, None))
        return found

    def close(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for task in self._names:
            with contextlib.suppress(Exception):
                self._ray.cancel(task, force=True)
        self._names.clear()
        self._ray.shutdown()
