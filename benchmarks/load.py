"""Load on the dashboard: many clients, silent connections, and a bomb beside good runs.

    python benchmarks/load.py [--clients 100] [--requests 2000] [--silent 150]

Every request must be answered with 200; what the server's memory was before and at its peak, and
how long the answers took, is printed. docs/security.md has the figures.
"""

import argparse
import http.client
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from dashboard import memory, served

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.hostile import write_attack
from tests.support.runs import write_run

BOMBS = ("rows_many", "text_much", "manifest_lists", "files_many", "landscape_sparse")
PATHS = (
    "/runs",
    "/runs",
    "/?run=good-0",
    "/_dash-layout",
    "/_dash-dependencies",
    "/csv/loss?run=good-1",
)


def peak(pid: int) -> float:
    """Return the largest resident memory that a process had, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def handles(pid: int) -> int:
    """Return how many files and connections a process holds open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def client(address: str, count: int, found: list[tuple[int, float]]) -> None:
    """Ask one thing after the other; note code and seconds of each answer."""
    host, _, port = address.removeprefix("http://").partition(":")
    for k in range(count):
        start, code = time.perf_counter(), 0
        try:
            connection = http.client.HTTPConnection(host, int(port), timeout=120)
            connection.request("GET", PATHS[k % len(PATHS)])
            answer = connection.getresponse()
            answer.read()
            code = answer.status
            connection.close()
        except OSError:
            pass
        found.append((code, time.perf_counter() - start))


def silent(address: str, count: int) -> list[socket.socket]:
    """Open connections that say nothing, half of them after half a line."""
    host, _, port = address.removeprefix("http://").partition(":")
    made = [socket.create_connection((host, int(port))) for _ in range(count)]
    for one in made[::2]:
        one.sendall(b"GET / HTTP/1.1\r\nHost: ")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("clients", 100), ("requests", 2000), ("silent", 150)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        for k in range(8):
            write_run(runs / f"good-{k}", [1.0, 0.5] * 50, [[1.0, 2.0, 3.0]] * 100)
        for name in BOMBS:
            write_attack(runs, name)
        with served(runs) as (address, pid):
            warm: list[tuple[int, float]] = []
            client(address, 2 * len(PATHS), warm)
            time.sleep(5)  # the words of the list are found, the bombs' too
            before = memory(pid)
            began = time.perf_counter()
            quiet = silent(address, given.silent)
            found: list[tuple[int, float]] = []
            each = given.requests // given.clients
            threads = [
                threading.Thread(target=client, args=(address, each, found))
                for _ in range(given.clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - began
            for one in quiet:
                one.close()
            time.sleep(3)
            seconds = sorted(second for _, second in found)
            good = sum(code == 200 for code, _ in found)
            print(f"{good} of {len(found)} requests answered with 200 in {took:.1f} s")
            tail = seconds[int(0.99 * len(seconds))]
            middle = statistics.median(seconds)
            print(f"seconds of an answer: median {middle:.2f}, 99 % {tail:.2f}")
            print(
                f"memory in MiB: {before:.0f} before, {memory(pid):.0f} after, peak {peak(pid):.0f}"
            )
            print(f"open files and connections afterwards: {handles(pid)}")
            if good < len(found):
                raise SystemExit(1)


if __name__ == "__main__":
    main()
