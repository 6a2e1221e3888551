"""Serves an application on this machine: a port, an address, and a quiet server."""

import gc
import logging
import os
import secrets
import socket
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NoReturn

from waitress import create_server, wasyncore

from analyzer.errors import AnalyzerError

from .security import MOST_BYTES, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

__all__ = [
    "FIRST_PORT",
    "LESSON",
    "Place",
    "Server",
    "add_lesson",
    "leave",
    "new_token",
    "serve",
    "ssh_line",
    "take_port",
    "warm_up",
]

FIRST_PORT = 8050
LESSON = "/learn"
_PORTS_TRIED = 100
# A page asks for its figures at once, by six connections of one browser.
_THREADS, _MOST_CONNECTIONS = 8, 64
# A connection that says nothing is closed; where all are taken, those that wait are let in for it.
_IDLE_SECONDS, _IDLE_SECONDS_WHEN_FULL = 20, 1
# A request gives the interpreter up each time it asks the file system, and beside a thread that
# computes it waits for so long each time; Python's own choice is 5 ms.
_SWITCH_SECONDS = 0.0005


@dataclass(frozen=True)
class Place:
    """A bound address; its socket listens there until the server takes it over."""

    host: str
    port: int
    socket: socket.socket

    def url(self, token: str | None = None) -> str:
        """Return the address for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "") else self.host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?token={token}" if token else "")


def take_port(host: str = "127.0.0.1", port: int | None = None) -> Place:
    """Bind this port and no other; None for the next free one from 8050.

    Raises:
        AnalyzerError: If the port is taken or may not be bound, or none is free.
    """
    wanted = range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED) if port is None else [port]
    reason: OSError | None = None
    for number in wanted:
        try:
            bound = _bound(host, number)
        except (OSError, OverflowError) as error:
            reason = error if isinstance(error, OSError) else OSError(str(error))
            continue
        return Place(host, bound.getsockname()[1], bound)
    seen = f"port {port}" if port is not None else f"any port from {FIRST_PORT}"
    why = getattr(reason, "strerror", None) or reason
    raise AnalyzerError(
        f"cannot listen at {host}, {seen} ({why}); "
        "expected a free port: name another with --port, or leave --port out for the next free one."
    )


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port whose last server has just ended may be taken again at once.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(64)
    except (OSError, OverflowError):
        made.close()
        raise
    return made


class Server:
    """Answers requests from a few threads, and holds no more than it can.

    Bodies of requests have at most ``MOST_BYTES``, and 64 connections are open at a time. One that
    says nothing is closed after 20 seconds, or after one where others wait for its place.
    """

    def __init__(self, app: "Flask", place: Place) -> None:
        self._place, self._is_over = place, False
        self._ended = threading.Event()
        logging.getLogger("waitress").setLevel(logging.CRITICAL)  # the terminal is the user's
        self._server = create_server(
            app,
            sockets=[place.socket],
            threads=_THREADS,
            # It counts its own two sockets, too.
            connection_limit=_MOST_CONNECTIONS + 2,
            channel_timeout=_IDLE_SECONDS,
            cleanup_interval=1,
            max_request_body_size=MOST_BYTES,
            max_request_header_size=65_536,
            # Answers have some megabytes at most, and wait in memory: no file is written for them.
            inbuf_overflow=2 * MOST_BYTES,
            outbuf_overflow=1 << 28,
            ident=None,
            expose_tracebacks=False,
        )

    def serve_forever(self) -> None:
        """Answer until ``shutdown``."""
        sockets = self._server._map
        try:
            while not self._is_over:
                wasyncore.loop(timeout=1.0, map=sockets, use_poll=True, count=1)
                if self._server.in_connection_overflow:
                    self._server.maintenance(time.time() + _IDLE_SECONDS - _IDLE_SECONDS_WHEN_FULL)
        finally:
            self._server.task_dispatcher.shutdown(timeout=1)
            self._ended.set()

    def shutdown(self) -> None:
        """End ``serve_forever`` from another thread, and wait for it."""
        self._is_over = True
        self._server.pull_trigger()
        self._ended.wait()

    def server_close(self) -> None:
        """Close every connection and the socket."""
        wasyncore.close_all(self._server._map)
        self._place.socket.close()


def leave() -> NoReturn:
    """End this process at once, with exit code 0; nothing is left to be written.

    A thread that still answers may be inside of Arrow, and Python's own end would wait for it
    without end, or abort.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def serve(app: "Flask", place: Place) -> Server:
    """Return a server of ``app`` at a bound address; ``serve_forever`` and ``shutdown`` run it."""
    return Server(app, place)


def add_lesson(server: "Flask") -> None:
    """Let a server answer at ``LESSON`` with the page of the lesson, made when first asked for."""
    from flask import Response

    @cache
    def page() -> tuple[str, str]:
        from analyzer.lesson.page import lesson_html

        return lesson_html(home="/")

    def answer() -> Response:
        text, policy = page()
        return Response(text, headers={"Content-Security-Policy": policy}, mimetype="text/html")

    server.add_url_rule(LESSON, "lesson", answer)


def warm_up(server: "Flask") -> None:
    """Get a process that does nothing else ready for its first page, before a browser asks for it.

    A thread loads what the first figure needs, calls ``server.extensions["draw_first"]``, which
    returns once that figure is there, and then loads what others need.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)

    def work() -> None:
        _load()
        # Modules stay: to look through their objects for garbage takes 80 ms, in some answer.
        gc.freeze()
        server.extensions["draw_first"]()
        _load_panes()
        gc.freeze()

    threading.Thread(target=work, name="warm-up", daemon=True).start()


def _load() -> None:
    import pandas  # noqa: F401
    import plotly.graph_objects as go
    import pyarrow.parquet  # noqa: F401

    figure = go.Figure([go.Heatmap(z=[[0.0]]), go.Scatter(x=[0.0], y=[0.0])])
    figure.update_layout(xaxis={"title": {"text": "step"}}, shapes=[{"type": "line"}])
    figure.add_annotation(text="")
    figure.to_json()


def _load_panes() -> None:
    """Load what the first figure with panes and colors of a theme needs further."""
    from analyzer.figures.axes import panes
    from analyzer.figures.theme import LIGHT

    panes(["", ""], LIGHT, height=400)
    LIGHT.depth_colors(1)


def new_token(host: str) -> str | None:
    """Return a secret for a server that others can reach; None on loopback."""
    return None if is_loopback(host) else secrets.token_urlsafe(24)


def ssh_line(port: int, environ: "Mapping[str, str]" = os.environ) -> str | None:
    """Return the command that brings a remote dashboard to a browser; None outside of SSH."""
    if not ("SSH_CONNECTION" in environ or "SSH_TTY" in environ):
        return None
    parts = environ.get("SSH_CONNECTION", "").split()
    machine = parts[2] if len(parts) == 4 else "THIS-MACHINE"
    return f"ssh -N -L {port}:127.0.0.1:{port} {machine}"
