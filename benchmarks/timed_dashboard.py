"""``analyzer dashboard`` with what each answer took in a header, for ``benchmarks/dashboard.py``.

The header ``Server-Timing`` has milliseconds from the request to the answer: ``wall``; ``cpu``, the
processor time of the server in between, all of its threads, to which other programs add nothing;
and ``own``, that of the thread that answered alone.
"""

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from analyzer.cli import main
from analyzer.dashboard import server

_serve = server.serve


def _clocks() -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), time.thread_time()


def _timed(answer: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def answered(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        before = _clocks()

        def started(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            spent = (1000 * (now - then) for now, then in zip(_clocks(), before, strict=True))
            named = zip(("wall", "cpu", "own"), spent, strict=True)
            times = ", ".join(f"{name};dur={took:.2f}" for name, took in named)
            return start(status, [*headers, ("Server-Timing", times)], *more)

        return answer(environ, started)

    return answered


def _serve_timed(app: Any, place: server.Place) -> server.Server:
    app.wsgi_app = _timed(app.wsgi_app)
    return _serve(app, place)


if __name__ == "__main__":
    server.serve = _serve_timed
    sys.argv[1:1] = ["dashboard"]
    sys.exit(main())
