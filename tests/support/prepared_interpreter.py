"""A Python process that has imported torch and waits; for each request a fork of it runs a program.

Started by ``tests.support.commands``. A request is a message with four files (stdin, stdout, stderr
and a socket for the answers): the words after ``python``, the folder and the environment. The
answers are a line with the number of the process and, when it has ended, one with its exit code.
"""

import gc
import json
import os
import runpy
import signal
import socket
import sys
import types
from typing import Any


def serve(requests: socket.socket) -> Any:
    """Answer requests until the other side closes; in a fork, return what it is to run."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            os._exit(0)
        if os.fork():
            for file in files:
                os.close(file)
            continue
        # Between the server and the program stands a process that waits for its end.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        requests.close()
        *standard, answers = files
        read, write = os.pipe()
        pid = os.fork()
        if pid:
            for file in (*standard, read, 0, 1, 2):
                os.close(file)
            os.write(answers, f"{pid}\n".encode())
            os.close(write)  # the program may begin
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(answers, f"{code}\n".encode())
            os._exit(0)
        os.close(write)
        os.read(read, 1)
        for number, file in enumerate(standard):
            os.dup2(file, number)
        for file in (*files, read):
            os.close(file)
        return json.loads(message)


def run(words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run what ``python *words`` would, in this process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv = [sys.executable, *words]
    sys.path[:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy._run_module_as_main(words[1])
        return
    sys.argv = words[1:] if words[0] == "-c" else list(words)
    if words[0] == "-c":
        source, name, sys.argv = words[1], "<string>", ["-c", *words[2:]]
    else:
        name = os.path.abspath(words[0])
        with open(name) as file:
            source = file.read()
        main.__file__ = name
        sys.path[0] = os.path.dirname(name)
    exec(compile(source, name, "exec"), main.__dict__)


def prepare() -> None:
    """Import what nearly every program of the tests imports."""
    import numpy  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torch
    import torch._dynamo

    # The first optimizer of a process does the rest of torch's imports.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1).zero_grad()
    gc.collect()
    gc.freeze()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    assert threads == 1, "a fork of a process with several threads may wait for one that it lacks"


def without_our_frames(print_exception: Any) -> Any:
    """Return a hook for exceptions that begins the traceback at the program."""

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        print_exception(kind, error.with_traceback(trace), trace)

    return hook


if __name__ == "__main__":
    prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    job = serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        run(job["words"], job["folder"], job["environment"])
    except BaseException:
        sys.excepthook = without_our_frames(sys.excepthook)
        raise
