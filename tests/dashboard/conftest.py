"""A folder of runs of every kind, a server over it and one browser, all for the whole session."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analyzer.dashboard.app import create_app
from analyzer.dashboard.server import serve, take_port
from tests.support.full_run import write_empty_run, write_full_pair, write_network_run
from tests.support.runs import layer_row, write_run

HOSTILE = '<img src=x onerror="window.hacked=1">'


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a full pair and a run of every awkward kind."""
    folder = tmp_path_factory.mktemp("runs")
    write_full_pair(folder)
    write_empty_run(folder / "empty")
    write_network_run(folder / "diverged", has_shortcuts=True, probes=False, nan_from=30)
    layers = [layer_row(0, HOSTILE), layer_row(1, "</script>_größe‖"), layer_row(2, "x" * 10_000)]
    write_run(folder / HOSTILE.replace("/", ""), [1.0] * 3, [[1.0, 2.0, 3.0]] * 3, layers=layers)
    write_run(folder / "single", [2.0, 1.0], [[1.0], [2.0]])
    _broken(folder)
    return folder


def _broken(folder: Path) -> None:
    """A manifest of a newer version, one that is no JSON, and a table that is no parquet."""
    newer = write_run(folder / "newer", [1.0], [[1.0]]) / "run.json"
    newer.write_text(newer.read_text().replace('"schema_version": 2', '"schema_version": 99'))
    (folder / "torn").mkdir()
    (folder / "torn" / "run.json").write_text('{"schema_version": 1, ')
    corrupt = write_run(folder / "corrupt", [1.0] * 4, [[1.0, 2.0]] * 4)
    for part in [*corrupt.glob("layer_stats/*.parquet"), *corrupt.glob("overview/*/*.parquet")]:
        part.write_bytes(part.read_bytes()[:40])


@pytest.fixture(scope="session")
def address(runs_dir: Path) -> Iterator[str]:
    """Serve the runs from a thread; return where, without a slash at the end."""
    with serving(runs_dir) as url:
        yield url


class serving:
    """Serve runs for as long as a block lasts.

    Args:
        runs: What ``create_app`` takes.
        options: More of what it takes.
    """

    def __init__(self, runs: Any, **options: Any) -> None:
        self._place = take_port(port=0)
        self._server = serve(create_app(runs, port=self._place.port, **options).server, self._place)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return self._place.url().rstrip("/")

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Visit:
    """A page of the browser that keeps what went wrong in it.

    Args:
        page: A page of playwright.
        address: Where the dashboard is.
    """

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.on("console", self._keep)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._look)

    def _keep(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _look(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(request.url)

    def go(self, path: str) -> Any:
        """Open a path of the dashboard and wait until its name stands there."""
        self.page.goto(self.address + path)
        self.page.wait_for_selector("#content h1")
        return self.page

    def settle(self) -> None:
        """Wait until every card has its figure or the reason why there is none."""
        self.until(_SETTLED)

    def until(self, expression: str, seconds: float = 30) -> None:
        """Wait until a script says yes; playwright's own way to wait is refused by the CSP."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"{expression} did not become true"
            self.page.wait_for_timeout(50)

    def assert_clean(self) -> None:
        """No error was written, and nobody else was asked for anything."""
        assert self.errors == []
        assert self.foreign == []


_SETTLED = """() => document.querySelector('#content h1')
  && !document.querySelector('#content .mantine-Skeleton-root')
  && [...document.querySelectorAll('[data-panel]')].every((card) =>
    card.querySelector('.message') || (card.querySelector('.caption').textContent
      && card.querySelector('.js-plotly-plot .main-svg')))"""


@pytest.fixture(scope="session")
def contexts(browser: Any) -> dict[str, Any]:
    """Return the contexts of the session by their options: scripts are read once for each.

    Each has a page that stays, and with it the process that has read them.
    """
    return {}


@pytest.fixture
def visit(browser: Any, contexts: dict[str, Any], address: str) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens a fresh page; arguments are those of a context."""
    pages = []

    def opened(where: str = address, **options: Any) -> Visit:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        if str(options) not in contexts:
            contexts[str(options)] = browser.new_context(**options)
            contexts[str(options)].new_page().goto(f"{address}/assets/browser.css")
        pages.append(contexts[str(options)].new_page())
        return Visit(pages[-1], where)

    yield opened
    for page in pages:
        page.close()
