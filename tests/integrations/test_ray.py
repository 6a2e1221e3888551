"""Studies and landscapes on a Ray cluster of this machine, with the results of local workers.

Each test has a time limit of its own, and whatever it started is ended with it.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.options import RecordOptions
from analyzer.storage.study import Study, open_study
from analyzer.studies.plan import Plan, product
from analyzer.studies.ray_cluster import RayCluster
from analyzer.studies.running import run_study
from tests.support.commands import run, start
from tests.support.waiting import MODEL, lines, until

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("default")
SECONDS = 300


class TooLongError(BaseException):
    """Ends a test; what tries something again and again catches no such exception."""


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A time limit, and a folder for Ray: no test finds the cluster of another program.

    Whatever happens, no Ray is left.
    """

    def late(*_: object) -> None:
        raise TooLongError(f"the test took longer than {SECONDS} s")

    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # names of sockets are short
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield folder
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class Nodes:
    """Nodes of a cluster, each with one processor, that ``ray start`` starts on this machine."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"{ray.util.get_node_ip_address()}:{self.port}"
        self._folder, self._nodes = folder, []

    def start(self) -> None:
        """Start a node; the first is the head."""
        where = ["--address", self.address]
        if not self._nodes:
            where = ["--head", "--port", str(self.port), "--include-dashboard=false"]
        words = ["start", "--block", "--num-cpus=1", "--object-store-memory=80000000", *where]
        command = [str(Path(sys.executable).with_name("ray")), *words]
        with (self._folder / f"node-{len(self._nodes)}.txt").open("wb") as log:
            given = {"stdout": log, "stderr": log, "cwd": "/", "start_new_session": True}
            self._nodes.append(subprocess.Popen(command, **given))

    def kill(self, place: int) -> None:
        """Kill a node with all that it started."""
        group = self._nodes[place].pid
        inside = [pid for pid in processes() if session_of(pid) == group]
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._nodes[place].wait()

    def end(self) -> None:
        for place in reversed(range(len(self._nodes))):
            self.kill(place)


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def session_of(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return None


@pytest.fixture
def nodes(limited: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """No node yet; who starts one and who runs a study have the same token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    started = Nodes(limited)
    try:
        yield started
    finally:
        ray.shutdown()
        started.end()


def plan() -> Plan:
    options = RecordOptions(steps=6, batch_size=16)
    return product("zoo:simple", depth=[2], shortcuts=["on", "off"], options=options)


def same_losses(study: Study, other: Study) -> bool:
    losses = [
        [one.run(p.name).steps["loss"].tolist() for p in study.points] for one in (study, other)
    ]
    return losses[0] == losses[1]


def test_a_study_on_one_node_has_the_results_of_local_workers(
    tmp_path: Path, limited: Path
) -> None:
    # Ray remembers a cluster that was killed, and would try to reach it for many minutes.
    (limited / "ray").mkdir()
    (limited / "ray/ray_current_cluster").write_text("127.0.0.1:9")
    here = run_study(plan(), tmp_path / "here", workers=1, threads=1)
    cluster = RayCluster("auto", cpus=1)
    there = run_study(plan(), tmp_path / "there", runner=lambda _: cluster)
    assert not ray.is_initialized()
    assert [point.status for point in there.points] == ["finished"] * 2
    assert same_losses(here, there)


def test_a_point_whose_program_fails_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build_model(depth):\n    raise ValueError('no net')\n")
    options = RecordOptions(steps=2)
    cluster = RayCluster("auto", cpus=1)
    target = str(tmp_path / "model.py")
    study = run_study(
        product(target, depth=[2], options=options), tmp_path / "s", runner=lambda _: cluster
    )
    assert [point.status for point in study.points] == ["failed"]
    assert "no net" in (study.points[0].error or "")


def test_tasks_that_help_with_a_landscape_leave_its_values_alone(tmp_path: Path) -> None:
    record = ("-m", "analyzer", "record", "--quiet", "--steps", "3", "--run", "mine", "zoo:simple2")
    assert run(tmp_path, *record).returncode == 0
    words = ("-m", "analyzer", "probe", "mine", "landscape", "--mode", "exact", "--grid", "31")
    assert run(tmp_path, *words).returncode == 0
    alone = analyzer.open_run(tmp_path / "mine").probe("landscape")
    done = run(tmp_path, *words, "--overwrite", "--ray", "auto", "--workers", "1")
    assert done.returncode == 0, done.stderr
    both = analyzer.open_run(tmp_path / "mine").probe("landscape")
    assert both["loss"].tolist() == alone["loss"].tolist()
    left = list((tmp_path / "mine/probes/landscape").iterdir())
    assert [file.suffix for file in left] == [".parquet"]


def test_a_study_at_a_url_is_run_on_a_cluster(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ANALYZER_CACHE", str(tmp_path / "copies"))
    url = f"file://{tmp_path}/bucket/study"
    (tmp_path / "bucket").mkdir()
    cluster = RayCluster("auto", cpus=1, url=url)
    there = run_study(plan(), Path(url), runner=lambda _: cluster)
    assert [point.status for point in there.points] == ["finished"] * 2
    found = open_study(tmp_path / "bucket/study")
    assert [point.status for point in found.points] == ["finished"] * 2
    for point in found.points:
        assert len(found.run(point.name).steps) == 6


@pytest.mark.slow
def test_a_node_that_is_killed_changes_no_result(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    command = ("-m", "analyzer", "study", "--model", "model.py", "--depths", "1,3", "--no-probes")
    nodes.start()
    until(lambda: is_up(nodes.address))
    nodes.start()
    (tmp_path / "wait").touch()
    ray_study = ("--study", "there", "--ray", nodes.address)
    parent = start(tmp_path, *command, *ray_study, stderr=subprocess.PIPE)
    until(lambda: len(lines(tmp_path, "begun")) == 2)  # each node has one processor
    nodes.kill(1)
    (tmp_path / "wait").unlink()
    assert parent.wait(timeout=SECONDS) == 0, parent.stderr.read()
    parent.stderr.close()
    there = open_study(tmp_path / "there")
    assert [point.status for point in there.points] == ["finished"] * 4
    # One of them was begun twice, and each ended once.
    assert [len(lines(tmp_path, name)) for name in ("begun", "ended")] == [5, 4]
    assert run(tmp_path, *command, "--study", "here", "--workers", "1").returncode == 0
    assert same_losses(open_study(tmp_path / "here"), there)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere"])
def test_an_address_at_which_nothing_answers_is_refused(address: str) -> None:
    with pytest.raises(AnalyzerError, match=f"no Ray cluster answers at '{address}'"):
        RayCluster(address)


def is_up(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as tried:
        return tried.connect_ex((host, int(port))) == 0
