import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from analyzer.storage import forking
from analyzer.storage.forking import Unforked


def fork_and_ask(question) -> bool:
    """Fork, and return what the child answers."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if question() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextmanager
def inside(work, is_inside, is_over):
    """A thread that works until ``is_over``, once it has said that it is inside."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert is_inside.wait(5)
        yield thread
    finally:
        is_over.set()
        thread.join()


def test_a_process_is_forked_between_two_pieces_of_work():
    unforked, is_inside, is_over = Unforked(), threading.Event(), threading.Event()
    lock = threading.Lock()  # of a library, which does not know of forks

    def work():
        while not is_over.is_set():
            with unforked, lock:
                is_inside.set()
                time.sleep(0.002)

    with inside(work, is_inside, is_over) as thread:
        assert all(fork_and_ask(lambda: not lock.locked()) for _ in range(20))
        assert thread.is_alive()


def test_a_thread_that_stands_still_does_not_keep_a_process_from_forking(monkeypatch):
    monkeypatch.setattr(forking, "_PATIENCE_SECONDS", 0.1)
    unforked, is_inside, is_over = Unforked(), threading.Event(), threading.Event()

    def work():
        with unforked:
            is_inside.set()
            is_over.wait(30)

    with inside(work, is_inside, is_over):
        assert fork_and_ask(lambda: True)
    assert not unforked._is_awaited
    with unforked:
        assert unforked._lock.locked()


def test_a_fork_of_a_fork_waits_for_nothing():
    unforked = Unforked()
    assert fork_and_ask(lambda: fork_and_ask(lambda: not unforked._lock.locked()))


@pytest.mark.parametrize("kind", ["fork", "subprocess"])
def test_what_is_no_longer_used_is_not_waited_for(kind):
    unforked = Unforked()
    unforked._lock.acquire()
    del unforked
    began = time.monotonic()
    if kind == "fork":
        assert fork_and_ask(lambda: True)
    else:
        subprocess.run([sys.executable, "-S", "-c", ""], preexec_fn=lambda: None, check=True)
    assert time.monotonic() - began < 1.5
