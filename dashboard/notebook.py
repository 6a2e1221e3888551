"""Shows a run in a notebook: the dashboard of this run in a frame, served by this process."""

import atexit
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from analyzer.figures.catalog import page_of

from .app import create_app
from .library import Library
from .server import serve, take_port

if TYPE_CHECKING:
    from analyzer.storage.run import Run

__all__ = ["Shown", "show"]

# A notebook page stands at another port of this machine.
_NOTEBOOKS = "http://127.0.0.1:* http://localhost:* https://127.0.0.1:* https://localhost:*"
_SERVED: dict[tuple[Path, ...], str] = {}


class Shown:
    """A frame with the dashboard, ``height`` pixels high; outside of a notebook its address."""

    def __init__(self, url: str, height: int) -> None:
        self.url, self.height = url, height

    def __repr__(self) -> str:
        return f"dashboard at {self.url}"

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{self.url}" width="100%" height="{self.height}" '
            'title="gradient flow dashboard" style="border:0"></iframe>'
        )


def show(*runs: "Run", page: str = "overview", height: int = 1000) -> Shown:
    """Show runs in a notebook.

    The server listens at 127.0.0.1 and ends with this process. On a remote notebook its port must
    be forwarded, as ``analyzer dashboard`` says how.

    Args:
        runs: Opened runs, one to three.
        page: The page to begin with.
        height: Height of the frame in pixels.

    Returns:
        What a notebook draws as the dashboard.
    """
    folders = tuple(run.path.resolve() for run in runs)
    if folders not in _SERVED:
        _SERVED[folders] = _serve(folders)
    ids = {listed.summary.path.resolve(): listed.id for listed in Library(folders).listing()}
    pairs: list[tuple[str, Any]] = [("run", ids[folder]) for folder in folders if folder in ids]
    return Shown(f"{_SERVED[folders]}{page_of(page).path[1:]}?{urlencode(pairs)}", height)


def _serve(folders: tuple[Path, ...]) -> str:
    """Serve these runs from a thread and return the address."""
    place = take_port()
    app = create_app(folders, port=place.port, frame_ancestors=_NOTEBOOKS)
    server = serve(app.server, place)
    threading.Thread(target=server.serve_forever, name="dashboard", daemon=True).start()
    # What it still answers ends before the interpreter does.
    atexit.register(server.shutdown)
    return place.url()
