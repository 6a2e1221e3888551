import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADDRESS = re.compile(r"0x[0-9a-f]+")

SHOWS_ITSELF = """\
import sys
print(list(globals().items())[:9])
print(__name__, sys.argv, sys.path[0], sys.modules["__main__"].__dict__ is globals())
"""

ENDINGS = {
    "end": "",
    "exit": "sys.exit()",
    "exit-3": "sys.exit(3)",
    "exit-300": "sys.exit(300)",
    "exit-minus-1": "sys.exit(-1)",
    "exit-huge": "sys.exit(10**30)",
    "exit-true": "sys.exit(True)",
    "exit-message": "sys.exit('no data')",
    "exit-tuple": "raise SystemExit(1, 2)",
    "exit-from-site": "exit(4)",
    "error": "1 / 0",
    "error-in-function": "def f(x):\n    return x[0] + [1][x]\nf(1)",
    "cause": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('z') from e",
    "context": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    {}['k']",
    "group": "raise ExceptionGroup('g', [ValueError(1), KeyError(2)])",
    "notes": "e = ValueError('n')\ne.add_note('more')\nraise e",
    "recursion": "def f(n):\n    return f(n + 1)\nf(0)",
    "syntax": "x = = 1",
    "indentation": "if True:\nx = 1",
    "tab": "if True:\n\tx = 1\n        y = 2",
    "unterminated": "x = (1,",
    "string": "x = 'abc",
    "compiled-text": "compile('x = = 1', 'text', 'exec')",
    "import": "import nosuchmodule",
    "warning": "import warnings\nwarnings.warn('careful')",
    "warning-in-function": "import warnings\ndef f():\n    warnings.warn('you', stacklevel=2)\nf()",
    "syntax-warning": "print(1 is 1)",
    "deprecation": "import warnings\nwarnings.warn('old', DeprecationWarning)",
    "atexit": "import atexit\natexit.register(print, 'bye')\n1 / 0",
    "interrupt": "import atexit\natexit.register(print, 'bye')\nraise KeyboardInterrupt",
    "interrupt-child-class": "class Stop(KeyboardInterrupt):\n    pass\nraise Stop('s')",
    "signal": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)",
    "killed": "import os\nos.kill(os.getpid(), 9)",
    "hard-exit": "import os\nos._exit(5)",
    "hook": "sys.excepthook = lambda kind, e, tb: print(kind, tb.tb_lineno, tb.tb_next)\n1 / 0",
    "hook-fails": "def hook(kind, e, tb):\n    {}['k']\nsys.excepthook = hook\n1 / 0",
    "hook-exits": "sys.excepthook = lambda *a: sys.exit(9)\n1 / 0",
    "hook-missing": "del sys.excepthook\n1 / 0",
    "stdin": "print(input('name? '), sys.stdin.read())",
    "closed-stdout": "sys.stdout.close()",
    "no-stderr": "sys.stderr = None\n1 / 0",
    "own-traceback": "import traceback as t\ntry:\n    1 / 0\nexcept Exception:\n    t.print_exc()",
    "pickle": "import pickle\nclass A:\n    x = 1\nprint(pickle.loads(pickle.dumps(A())).x)",
    "future": "x: int = 1\nprint(__annotations__, compile('1', '', 'exec').co_flags)",
    "source": "import inspect\nclass A:\n    x = 1\nprint(inspect.getsource(A))",
    "dataclass": "import dataclasses as d\n@d.dataclass\nclass A:\n    x: 'int' = 1\nprint(A())",
    "thread": (
        "import threading, time\n"
        "def work():\n    time.sleep(0.2)\n    print('late', file=sys.stderr)\n"
        "threading.Thread(target=work).start()\n1 / 0"
    ),
    "thread-fails": (
        "import threading\n"
        "t = threading.Thread(target=lambda: 1 / 0)\nt.start()\nt.join()\nprint('on')"
    ),
    "pool": (
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "ThreadPoolExecutor(2).submit(lambda: (time.sleep(0.2), print('late')))"
    ),
    "fork": "import os\nchild = os.fork()\nif child:\n    os.wait()\nelse:\n    sys.exit('child')",
}

PROCESSES = """\
import multiprocessing, sys
def square(x):
    return x * x
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(pool.map(square, range(4)))
"""


def run(folder: Path, *command: str, stdin: str = "", timeout: float = 60) -> tuple[int, str, str]:
    """Run python with these arguments in a folder; addresses in what it writes are made equal."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        input=stdin,
        text=True,
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    return done.returncode, ADDRESS.sub("0x", done.stdout), ADDRESS.sub("0x", done.stderr)


def recorded(folder: Path, *command: str, stdin: str = "") -> tuple[int, str, str]:
    """Run a program with the runner in place of python."""
    return run(folder, "-m", "analyzer.script", *command, stdin=stdin)


def as_module(folder: Path, name: str, *args: str) -> tuple[int, str, str]:
    """Run a module with the runner in place of ``python -m``."""
    code = (
        "import sys; from analyzer.script import run_program; "
        "run_program(sys.argv[1], sys.argv[2:], as_module=True).leave()"
    )
    return run(folder, "-c", code, name, *args)


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=list(ENDINGS))
def test_a_script_ends_as_under_python(tmp_path: Path, ending: str) -> None:
    (tmp_path / "train.py").write_text(SHOWS_ITSELF + ending)
    arguments = ("train.py", "--lr", "0.1", "-m", "--", "x")
    plain = run(tmp_path, *arguments, stdin="Ada\nmore")
    assert recorded(tmp_path, *arguments, stdin="Ada\nmore") == plain


@pytest.mark.parametrize("ending", ["", "exit-message", "error", "interrupt", "recursion"])
def test_a_module_ends_as_under_python(tmp_path: Path, ending: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("import sys; print(sys.argv)")
    (package / "train.py").write_text(SHOWS_ITSELF + ENDINGS.get(ending, ""))
    plain = run(tmp_path, "-m", "package.train", "--lr", "0.1")
    assert as_module(tmp_path, "package.train", "--lr", "0.1") == plain
    assert "['-m', '--lr', '0.1']" in plain[1]


@pytest.mark.parametrize("ending", ["end", "error", "recursion"])
@pytest.mark.parametrize("target", ["folder", "./folder", "bundle.zip"])
def test_a_folder_and_a_zip_file_run_as_under_python(
    tmp_path: Path, target: str, ending: str
) -> None:
    (tmp_path / "folder").mkdir()
    main = tmp_path / "folder" / "__main__.py"
    main.write_text(SHOWS_ITSELF + ENDINGS[ending])
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as bundle:
        bundle.write(main, "__main__.py")
    plain = run(tmp_path, target, "--lr")
    assert recorded(tmp_path, target, "--lr") == plain
    assert f"'{target}', '--lr'" in plain[1]


@pytest.mark.parametrize("target", ["./train.py", "sub/../train.py", "link.py"])
def test_paths_are_written_as_python_writes_them(tmp_path: Path, target: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "train.py").write_text(SHOWS_ITSELF + "1 / 0")
    (tmp_path / "link.py").symlink_to("train.py")
    assert recorded(tmp_path, target) == run(tmp_path, target)


def test_a_compiled_file_runs_as_under_python(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SHOWS_ITSELF + "1 / 0")
    run(tmp_path, "-c", "import py_compile; py_compile.compile('train.py', 'train.pyc')")
    plain = run(tmp_path, "train.pyc")
    assert recorded(tmp_path, "train.pyc") == plain
    assert "SourcelessFileLoader" in plain[1]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_that_a_script_starts_find_its_functions(tmp_path: Path, method: str) -> None:
    (tmp_path / "train.py").write_text(PROCESSES)
    assert recorded(tmp_path, "train.py", method) == (0, "[0, 1, 4, 9]\n", "")


def test_the_order_of_stdout_and_traceback_is_that_of_python(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('first')\n1 / 0")
    together = "import subprocess, sys; subprocess.run(sys.argv[1:], stderr=subprocess.STDOUT)"
    plain = run(tmp_path, "-c", together, sys.executable, "train.py")
    ours = run(tmp_path, "-c", together, sys.executable, "-m", "analyzer.script", "train.py")
    assert ours == plain
    assert plain[1].startswith("first\nTraceback")


def test_an_interrupt_kills_the_process_with_the_signal(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ENDINGS["interrupt"])
    code, out, err = recorded(tmp_path, "train.py")
    assert (code, out) == (-signal.SIGINT, "bye\n")
    assert err.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize(
    ("target", "module", "message"),
    [
        ("nosuch.py", False, "script 'nosuch.py' not found"),
        ("empty", False, "can't find '__main__' module in '.*empty'; expected"),
        ("nosuch", True, "No module named nosuch; expected"),
        ("os.nosuch", True, "__path__ attribute not found on 'os'"),
        ("package", True, "No module named package.__main__; 'package' is a package"),
    ],
)
def test_what_python_cannot_run_is_refused_in_words(
    tmp_path: Path, target: str, module: bool, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    code = (
        "from analyzer.script import run_program; from analyzer.errors import ScriptError\n"
        f"try: run_program({target!r}, [], as_module={module})\n"
        "except ScriptError as error: print(error)"
    )
    returncode, out, err = run(tmp_path, "-c", code)
    assert (returncode, err) == (0, "")
    assert re.search(message, out)
    assert sys.executable not in out


def test_the_globals_of_the_script_are_left_to_read(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build_model():\n    return 42\n")
    code = (
        "from analyzer.script import run_program; ending = run_program('model.py', [])\n"
        "print(ending.namespace['build_model'](), ending.exit_code, ending.exception)"
    )
    assert run(tmp_path, "-c", code)[1] == "42 0 None\n"


def test_the_runner_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import analyzer.script; names = {n.partition('.')[0] for n in sys.modules}\n"
        "print(names - set(sys.stdlib_module_names) - {'__main__', 'analyzer'})"
    )
    out = run(ROOT, "-S", "-c", code)[1]
    assert out == "set()\n"
