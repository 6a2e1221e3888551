"""``analyzer dashboard``: the Dash application over recorded runs."""

import os
from typing import Annotated

import typer

__all__ = ["dashboard"]


def dashboard(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR|RUN...]",
            help="Folders of runs, or runs. Default: $ANALYZER_RUNS or runs.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; beyond loopback a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="This port and no other. Default: the next free one from 8050.",
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address and open nothing.")
    ] = False,
) -> None:
    """Open the dashboard: where the gradient goes, live while a run is recorded.

    It reads run folders and changes nothing. Over SSH it prints the command that forwards the port.

    \b
    Example:
        analyzer dashboard
        analyzer dashboard runs/mine-plain runs/mine --port 8051
    """  # noqa: D301 -- click reads the control character
    _keep_memory_low()
    from analyzer.dashboard.app import create_app
    from analyzer.dashboard.security import is_loopback
    from analyzer.dashboard.server import new_token, serve, ssh_line, take_port, warm_up
    from analyzer.storage.catalog import resolve_run

    folders = [name if os.path.isdir(name) else str(resolve_run(name)) for name in sources or ()]
    place = take_port(host, port)
    token = new_token(host)
    app = create_app(folders or [os.environ.get("ANALYZER_RUNS") or "runs"], token=token)
    server = serve(app.server, place)
    warm_up()
    address = place.url(token)
    try:
        if not is_loopback(host):
            typer.echo(_warning(host), err=True)
        typer.echo(f"dashboard at {address}  (Ctrl-C ends it)")
        forward = ssh_line(place.port)
        if forward is not None:
            typer.echo(f"from your own machine: {forward}")
        elif not no_browser:
            _open(address)
        server.serve_forever()
    except KeyboardInterrupt:
        typer.echo("")
    finally:
        server.server_close()


def _keep_memory_low() -> None:
    """Let freed memory go back to the system; call it before Arrow is loaded.

    A request runs in a thread of its own, and each thread's arena keeps what it once held: over
    runs of 1,000 layers that was 140 MiB.
    """
    import contextlib
    import ctypes

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    most_arenas = -8
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(most_arenas, 2)


def _warning(host: str) -> str:
    return (
        f"analyzer: WARNING: listening at '{host}', beyond this machine. Whoever can reach it and "
        "has the token in the address below can read these runs, and the way there is not "
        "encrypted. Leave --host out to listen to this machine alone."
    )


def _open(address: str) -> None:
    """Open a browser, where there is a screen for one; elsewhere a text browser would start."""
    import sys
    import webbrowser

    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_screen or sys.platform in ("darwin", "win32"):
        webbrowser.open(address)
