"""Makes the Dash application: the one place that knows app, layout and callbacks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from dash import Dash
from flask import redirect, request
from werkzeug.wrappers import Response

from analyzer.figures.catalog import PAGES

from . import callbacks
from .layout import shell
from .library import Library
from .security import protect

__all__ = ["create_app"]

_INDEX = """<!DOCTYPE html>
<html lang="en">
    <head>
        {%metas%}
        <title>{%title%}</title>
        {%favicon%}
        {%css%}
    </head>
    <body>
        {%app_entry%}
        <footer>
            {%config%}
            {%scripts%}
            {%renderer%}
        </footer>
    </body>
</html>"""
_PHONE = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
_SCHEMES = {"name": "color-scheme", "content": "light dark"}


def create_app(
    runs: str | Path | Sequence[str | Path],
    *,
    hosts: Iterable[str] = (),
    token: str | None = None,
    frame_ancestors: str = "'none'",
) -> Dash:
    """Return an application over recorded runs; it reads them and changes nothing.

    Args:
        runs: A folder of runs, a run, or several of either.
        hosts: Host names beside those of loopback under which it is asked for.
        token: Secret of the first request, for a server that others can reach.
        frame_ancestors: CSP sources that may show it in a frame.
    """
    library = Library([runs] if isinstance(runs, str | Path) else list(runs))
    app = Dash(
        __name__,
        title="Gradient flow",
        update_title="",
        assets_folder=str(Path(__file__).parent / "assets"),
        index_string=_INDEX,
        meta_tags=[_PHONE, _SCHEMES],
        suppress_callback_exceptions=True,
        add_log_handler=False,
        # The environment can switch this server on; a dashboard of local files never wants it.
        enable_mcp=False,
    )
    app.layout = shell()
    # Tables of long runs are large and short-lived; the pool would keep their memory for good.
    app.server.teardown_request(lambda _error: pa.default_memory_pool().release_unused())
    callbacks.connect(app, library)
    _keep_former_paths(app)
    protect(app.server, app.csp_hashes(), hosts=hosts, token=token, frame_ancestors=frame_ancestors)
    return app


def _keep_former_paths(app: Dash) -> None:
    """Lead from paths that pages had once to where they are, with what is chosen."""
    moved = {f"/{name}": page.path for page in PAGES for name in page.former}

    def lead() -> Response:
        text = request.query_string.decode(errors="replace")
        return redirect(moved[request.path] + (f"?{text}" if text else ""))

    for path in moved:
        app.server.add_url_rule(path, f"former{path}", lead)
