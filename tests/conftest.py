"""What every test shares: nothing is left behind, time is measured alone, coverage has a floor."""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Where there is no GPU, Triton's kernels run in its interpreter, which must be known before it is
# imported.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Torch counts its devices at the first backward pass of a process; a device that registers itself
# later has no queue in the engine. So it must be there before any test.
from tests.support import simulated_accelerator  # noqa: F401

# A shared machine stands still for seconds now and then, which says nothing about an example.
settings.register_profile(
    "shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared machine")

# They need libraries that are installed in an environment of their own: `make test-integrations`.
collect_ignore = [] if importlib.util.find_spec("lightning") else ["integrations"]

# Percent of the lines of analyzer, dashboard and reports that `make test COVERAGE=1` must run.
LEAST_LINES = 90

# Where the tests run in the background of a shell or under nohup, these signals are ignored, and so
# they would be in every program that the tests start and send one.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave coverage out where a browser looks on: tests without one run the same lines, and the
    server of the pages takes twice as long with it."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.no_cover)


def _left_behind() -> list[str]:
    """What a recorder would leave behind in this process if it forgot something."""
    if "torch" not in sys.modules:
        return []
    from torch import autograd
    from torch.nn.modules import module
    from torch.nn.utils import clip_grad
    from torch.optim import optimizer

    hooks = {
        name: vars(module)[name] for name in vars(module) if name.startswith("_global_forward")
    } | {
        "optimizer pre-hooks": optimizer._global_optimizer_pre_hooks,
        "optimizer post-hooks": optimizer._global_optimizer_post_hooks,
    }
    found = [f"{name}: {value}" for name, value in hooks.items() if value]
    for function in (
        autograd._engine_run_backward,
        clip_grad._group_tensors_by_device_and_dtype,
    ):
        if function.__module__.startswith("analyzer"):
            found.append(f"{function.__name__} is replaced")
    constants = module.Module.__call__.__code__.co_consts
    if any(type(constant).__module__.startswith("analyzer") for constant in constants):
        found.append("the call of a module has hooks")
    tracing = sys.modules.get("torch._dynamo.output_graph")
    if tracing and hasattr(tracing.OutputGraph.call_user_compiler, "__wrapped__"):
        found.append("the compiler is followed")
    return found


@pytest.fixture(autouse=True)
def no_hooks_left() -> Iterator[None]:
    """No test may begin or end with a hook or a replaced function in torch."""
    assert _left_behind() == []
    yield
    assert _left_behind() == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Give a test marked ``alone`` the machine for itself, where several workers share it.

    Each test holds the lock ``machine``, a marked one exclusively. Both pass the lock ``door``
    first: otherwise a marked test would wait until the other workers have run out of tests.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    folder = item.config.cache.mkdir("alone")
    how = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with (folder / "machine").open("w") as machine:
        with (folder / "door").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(machine, how)
        try:
            return (yield)
        finally:
            # A process that a test forked may still hold the file open, and with it the lock.
            fcntl.flock(machine, fcntl.LOCK_UN)


def _coverage(config: pytest.Config) -> dict[str, float]:
    """What was measured with COVERAGE=1, in percent; nothing in a worker or where not asked for."""
    asked = "json" in (config.getoption("cov_report", None) or {})
    if not asked or hasattr(config, "workerinput"):
        return {}
    file = config.rootpath / config.option.cov_report["json"]
    if not file.exists():  # the tests were interrupted
        return {}
    totals = json.loads(file.read_text())["totals"]
    return {what: totals[f"percent_{what}_covered"] for what in ("statements", "branches")}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the coverage."""
    if found := _coverage(terminalreporter.config):
        lines, branches = found["statements"], found["branches"]
        terminalreporter.section("coverage")
        terminalreporter.line(
            f"{lines:.1f} % of lines (the floor is {LEAST_LINES} %), {branches:.1f} % of branches"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where fewer lines than the floor were run."""
    if _coverage(session.config).get("statements", 100.0) < LEAST_LINES:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """Return Playwright, of which a process may have one."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(engine: Any) -> Iterator[Any]:
    """Return one Chromium for the session."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium is installed")
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update", "--no-sandbox"]
    # Of a window without a screen nobody sees the menus of the address bar, two further pages of
    # their own; together they took a third of the time.
    menus = ("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "WebUIOmniboxFullPopup")
    quiet += [f"--disable-features={','.join(menus)}"]
    # Pages of one context share a process, which has read their scripts once.
    quiet += ["--process-per-site"]
    chromium = engine.chromium.launch(executable_path=path, args=quiet)
    yield chromium
    chromium.close()
