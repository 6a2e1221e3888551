"""Studies and landscapes on a Ray cluster: tasks that Ray places, and runs again if one dies."""

import contextlib
import math
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analyzer.cli.session import options_from, options_text
from analyzer.errors import AnalyzerError
from analyzer.storage.remote import Mirror
from analyzer.storage.run import Run, open_run
from analyzer.storage.study import read_json
from analyzer.studies.running import held
from analyzer.studies.worker import Ended, Workers

if TYPE_CHECKING:
    from analyzer.replaying import ProbeOrder, Together

__all__ = ["RayCluster", "landscape_helpers", "run_point"]

_MOST_RETRIES = 3
_POLL_SECONDS, _ANSWER_SECONDS, _PATIENCE_SECONDS = 1.0, 5.0, 20.0
# All points are given to Ray, which knows what it can run at a time.
_ALL = 1_000_000


def run_point(
    name: str,
    options: str,
    log: str,
    is_script: bool,
    threads: int,
    here: str,
    url: str | None = None,
    limit: float | None = None,
) -> int | None:
    """Run one point in a worker of Ray; return the exit code of its process.

    It runs in the working folder of the command, ``here``, where the node has that.

    Ray may start a task again while what it began elsewhere still lives: a lock in the study's
    folder lets only one of them train, and what an earlier one has finished is left as it is.
    Where the study is at a URL, its folder here is a copy, from which the point is copied there.

    Returns:
        The exit code; None where the process was lost with the one that started it.
    """
    with contextlib.suppress(OSError):
        os.chdir(here)
    if url is None:
        return _run_in(Path(log).parents[1], name, options, is_script, threads, limit)
    mirror, part = Mirror(url), f"runs/{name}"
    mirror.fetch(part)
    own = replace(options_from(options), run=mirror.folder / part)
    try:
        return _run_in(mirror.folder, name, options_text(own), is_script, threads, limit)
    finally:
        for some in (part, "logs"):
            mirror.push({}, some)


def _run_in(
    folder: Path, name: str, options: str, is_script: bool, threads: int, limit: float | None
) -> int | None:
    run, log = folder / "runs" / name, folder / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with held(folder / "locks" / name, math.inf) as lock:
        if read_json(run / "run.json").get("status") == "finished":
            return 0
        shutil.rmtree(run, ignore_errors=True)
        workers = Workers(1, threads, lock, limit)
        try:
            workers.start(name, options, log, is_script=is_script)
            while not (ended := workers.ended(_POLL_SECONDS)):
                pass
            return ended[0][1]
        finally:
            workers.close()


def _answers(address: str) -> bool:
    """Whether anything listens at an address."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def _address(asked: str) -> str:
    """The address that is meant by one; ``local`` for a cluster that is to be started here.

    Ray itself tries for many minutes to reach a cluster that is gone, and for ``auto`` it takes the
    last one that was started on this machine, also where that was killed.

    Raises:
        AnalyzerError: If nothing answers.
    """
    found = (os.environ.get("RAY_ADDRESS") if asked == "auto" else asked) or "auto"
    if found == "auto":
        last = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        is_gone = last.is_file() and not _answers(last.read_text().strip())
        return "local" if is_gone else found
    if found != "local" and not _answers(found):
        raise AnalyzerError(
            f"no Ray cluster answers at {found!r}; expected the address of one that runs, as "
            "HOST:6379, or auto. Start one with: ray start --head"
        )
    return found


def _connected(address: str) -> Any:
    """Ray, connected to a cluster."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise AnalyzerError(
            f"--ray {address} is given and Ray is not installed; expected it beside analyzer. "
            "Install it with: pip install 'gradient-flow-analyzer[ray]'"
        ) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    found = _address(address)
    try:
        if found != "local":
            ray.init(address=found, **quiet)
            return ray
    except ConnectionError as error:
        if found != "auto":
            raise AnalyzerError(
                f"no Ray cluster at {found!r} ({error}); expected the address of one that "
                "runs, or auto. Start one with: ray start --head"
            ) from error
    ray.init(address="local", include_dashboard=False, **quiet)
    return ray


def _help(folder: str, order: str, here: str, threads: int) -> None:
    """Evaluate points of a landscape in a worker of Ray."""
    import torch

    from analyzer.replaying import ProbeOrder
    from analyzer.replaying.programs import probe_run

    os.chdir(here)
    torch.set_num_threads(threads)
    probe_run(open_run(folder), ProbeOrder.from_text(order))


@contextlib.contextmanager
def landscape_helpers(address: str, order: "ProbeOrder", workers: int) -> Iterator["Together"]:
    """Give what lets workers of Ray evaluate the landscapes of an order, too.

    Args:
        address: As that of `RayCluster`; the nodes share the folder of the run.
        order: What is measured.
        workers: How many there are beside this process.

    Raises:
        AnalyzerError: If Ray is not installed, or there is no cluster at the address.
    """
    ray = _connected(address)
    task = ray.remote(num_cpus=1, max_retries=_MOST_RETRIES)(_help)

    @contextlib.contextmanager
    def together(run: Run, step: int) -> Iterator[None]:
        own = replace(order, names=("landscape",), which=str(step), helps=True)
        given = (str(run.path.resolve()), own.as_text(), os.getcwd(), 1)
        tasks = [task.remote(*given) for _ in range(workers)]
        try:
            yield
        finally:
            # Those at work find nothing left to do; those that wait for a place are not needed.
            left = ray.wait(tasks, num_returns=len(tasks), timeout=_POLL_SECONDS)[1]
            for is_forced in (False, True):
                for one in left:
                    with contextlib.suppress(Exception):
                        ray.cancel(one, force=is_forced)
                if left:
                    left = ray.wait(left, num_returns=len(left), timeout=_PATIENCE_SECONDS)[1]

    try:
        yield together
    finally:
        ray.shutdown()


class RayCluster:
    """Runs points on a Ray cluster whose nodes share the folder of the study.

    Args:
        address: ``auto`` for the cluster of this machine, or one started here where there is none;
            or the address of one, as Ray has it.
        cpus: Processors, and threads of torch, for each point.
        gpus: GPUs for each point.
        url: Where the study is, if not in a folder that all nodes share.
        limit: Seconds after which a point is ended, from when it has begun on a node.

    Raises:
        AnalyzerError: If Ray is not installed, or there is no cluster at the address.
    """

    capacity = _ALL

    def __init__(
        self,
        address: str,
        *,
        cpus: int = 1,
        gpus: float = 0,
        url: str | None = None,
        limit: float | None = None,
    ) -> None:
        self._ray, self._cpus, self._url = _connected(address), cpus, url
        self._limit = limit
        ray = self._ray
        # A task that dies with its node or its worker is run again; what the script raises is not.
        limits = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": _MOST_RETRIES}
        self._task = ray.remote(**limits)(run_point)
        self._names: dict[Any, str] = {}

    def start(self, name: str, options: str, log: Path, *, is_script: bool) -> None:
        """Give a point to Ray."""
        task = self._task.options(name=name)
        given = (name, options, str(log), is_script, self._cpus, os.getcwd(), self._url)
        self._names[task.remote(*given, self._limit)] = name

    def ended(self, seconds: float) -> list[Ended]:
        """Return which points have ended; None as code of one that Ray gave up."""
        if not self._names:
            return []
        done, _ = self._ray.wait(list(self._names), num_returns=1, timeout=seconds)
        found: list[Ended] = []
        for task in done:
            name = self._names.pop(task)
            try:
                code = self._ray.get(task)
                if self._url is not None:
                    for part in (f"runs/{name}", f"logs/{name}.txt"):
                        Mirror(self._url).fetch(part)
                found.append((name, code))
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
