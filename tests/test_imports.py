import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import analyzer
from analyzer.cli import COMMANDS
from tests.support.commands import run

ROOT = Path(__file__).parents[1]

EVERYONE = {
    f"analyzer.{name}" for name in ("errors", "texts", "vocabulary", "pooling", "options", "launch")
} | {"analyzer"}
MAY_IMPORT: dict[str, set[str]] = {
    "analyzer.errors": set(),
    "analyzer.texts": set(),
    "analyzer.vocabulary": set(),
    "analyzer.pooling": set(),
    "analyzer.options": set(),
    "analyzer.launch": set(),
    "analyzer.storage": set(),
    "analyzer.joins": set(),
    "analyzer.probes": {"analyzer.joins"},
    "analyzer.networks": set(),
    "analyzer.recording": {
        "analyzer.joins",
        "analyzer.probes",
        "analyzer.storage",
        "analyzer.script",
    },
    "analyzer.live": {"analyzer.joins", "analyzer.probes"},
    "analyzer.integrations": {"analyzer.recording", "analyzer.storage"},
    "analyzer.analysis": {"analyzer.storage"},
    "analyzer.opened": {"analyzer.storage", "analyzer.analysis"},
    "analyzer.replaying": {
        "analyzer.networks",
        "analyzer.probes",
        "analyzer.recording",
        "analyzer.script",
        "analyzer.storage",
    },
    "analyzer.figures": {"analyzer.analysis"},
    "analyzer.ending": set(),
    "analyzer.script": {"analyzer.ending"},
    "analyzer.dashboard": {
        "analyzer.storage",
        "analyzer.analysis",
        "analyzer.figures",
        "analyzer.lesson",
    },
    "analyzer.reports": {"analyzer.storage", "analyzer.analysis", "analyzer.figures"},
    "analyzer.lesson": {"analyzer.analysis", "analyzer.figures", "analyzer.reports"},
}
# The cli and the studies are the top: they may import anything.

MUST_NOT_LOAD = {
    "analyzer": {"torch", "numpy", "pandas", "pyarrow", "plotly", "dash"},
    "analyzer.vocabulary": {"torch", "numpy", "pandas", "pyarrow", "plotly", "dash"},
    "analyzer.pooling": {"torch", "pandas", "pyarrow", "plotly", "dash"},
    "analyzer.options": {"torch", "numpy", "pandas", "pyarrow", "typer"},
    "analyzer.launch": {"torch", "numpy", "pandas", "pyarrow", "typer"},
    "analyzer.storage": {"torch", "plotly", "dash"},
    "analyzer.joins": {"pandas", "plotly", "dash"},
    "analyzer.probes": {"pandas", "plotly", "dash"},
    "analyzer.networks": {"pandas", "plotly", "dash"},
    "analyzer.recording": {"plotly", "dash"},
    "analyzer.live": {"plotly", "dash"},
    "analyzer.integrations": {"plotly", "dash"},
    "analyzer.analysis": {"torch", "dash"},
    "analyzer.opened": {"torch", "plotly", "dash"},
    "analyzer.replaying": {"plotly", "dash"},
    "analyzer.figures": {"torch", "dash"},
    "analyzer.dashboard": {"torch", "analyzer.reports"},
    "analyzer.reports": {"torch", "dash", "analyzer.dashboard"},
    "analyzer.lesson": {"torch", "dash", "analyzer.dashboard"},
}


# Folders at the top that are packages inside of `analyzer` (setup.py says why).
FOLDERS = {"analyzer.dashboard": "dashboard", "analyzer.reports": "reports"}


def sources(package: str) -> list[Path]:
    """Return the source files of a package or a module that exist so far."""
    place = ROOT.joinpath(*FOLDERS.get(package, package).split("."))
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [file for file in files if file.exists()]


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return what a file consists of."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def dotted(path: Path) -> str:
    """Return the name of the module in a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return f"analyzer.{name}" if parts[0] in FOLDERS.values() else name


def modules(package: str) -> list[str]:
    """Return the names of the modules of a package that exist so far."""
    return [dotted(path) for path in sources(package)]


def project_imports(path: Path) -> Iterator[str]:
    """Yield the modules of this project that a file imports anywhere, typing included."""
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            # Only the two folders at the top do, which are checked under their own names.
            is_inside = path.relative_to(ROOT).parts[0] in FOLDERS.values()
            assert (node.level > 0) <= is_inside, f"{path} imports relatively"
            if node.level:
                here = dotted(path).split(".") + [""] * (path.name == "__init__.py")
                start = [*here[: -node.level], *filter(None, [node.module])]
                names = [".".join([*start, alias.name]) for alias in node.names]
            else:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        own = ("analyzer", *FOLDERS.values())
        assert not any(n.partition(".")[0] in own[1:] for n in names), f"{path} imports a folder"
        yield from (n for n in names if n.partition(".")[0] in own)


def layer(module: str) -> str:
    """Return the part of the project that a module, or a name in it, belongs to."""
    parts = module.split(".")
    if parts[0] != "analyzer" or len(parts) == 1:
        return parts[0]
    name = ".".join(parts[:2])
    # ``from analyzer import __version__`` names no part of its own.
    return name if sources(name) else "analyzer"


def loaded(code: str, *names: str) -> set[str]:
    """Return which of these modules a fresh interpreter has loaded after some code."""
    ask = f"\nimport sys; print('\\n'.join(set({names!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code + ask],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_point_one_way(name: str) -> None:
    allowed = MAY_IMPORT[name] | EVERYONE | {name}
    for path in sources(name):
        for module in project_imports(path):
            assert layer(module) in allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_every_part_of_the_project_stands_in_the_table() -> None:
    top = {"analyzer", "analyzer.cli", "analyzer.studies", "analyzer.__main__"}
    parts = {layer(module) for module in modules("analyzer")} | set(FOLDERS)
    assert parts - top <= set(MAY_IMPORT)


# These import torch, which takes seconds: they are imported one after the other by one interpreter.
WITH_TORCH = [name for name, without in MUST_NOT_LOAD.items() if "torch" not in without]


def imports(name: str) -> str:
    """Return the code that imports a part of the project."""
    # Each integration needs a library of its own.
    alone = name in ("analyzer", "analyzer.integrations")
    return "\n".join(f"import {module}" for module in ([name] if alone else modules(name)))


@pytest.mark.parametrize("name", [name for name in MUST_NOT_LOAD if name not in WITH_TORCH])
def test_importing_a_part_loads_nothing_that_it_must_not(name: str) -> None:
    assert loaded(imports(name), *MUST_NOT_LOAD[name]) == set()


def test_importing_a_part_that_needs_torch_loads_nothing_else_that_it_must_not() -> None:
    assert [len(MUST_NOT_LOAD[name]) for name in WITH_TORCH] == [3, 3, 3, 2, 2, 2, 2]
    code = "import sys\n" + "\n".join(
        f"{imports(name)}\nfound = {MUST_NOT_LOAD[name]!r} & set(sys.modules)\n"
        f"assert not found, ({name!r}, found)"
        for name in WITH_TORCH  # those that may load least come first
    )
    assert loaded(code) == set()


def test_the_parser_of_every_command_loads_nothing_heavy() -> None:
    code = f"from analyzer.cli import load\nfor name in {list(COMMANDS)}: load(name)"
    assert loaded(code, "torch", "numpy", "pandas", "pyarrow", "plotly", "dash") == set()


def test_a_recording_loads_nothing_heavy_before_the_script_runs(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys; print({'torch', 'numpy', 'pyarrow', 'pandas'} & {*sys.modules})")
    done = subprocess.run(
        [sys.executable, "-m", "analyzer", "record", "--quiet", "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(analyzer.__all__, id="in order"),
        pytest.param(analyzer.__all__[::-1], id="in reverse"),
        *(pytest.param([name], id=name, marks=pytest.mark.slow) for name in analyzer.__all__),
    ],
)
def test_every_public_name_can_be_imported(names: list[str]) -> None:
    asked = "; ".join(f"assert {name!r} in dir(analyzer); analyzer.{name}" for name in names)
    done = run(ROOT, "-c", f"import analyzer, sys; {asked}; print('dash' in sys.modules)")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_a_name_that_is_not_public_is_missing_as_ever() -> None:
    with pytest.raises(AttributeError, match="module 'analyzer' has no attribute 'nosuch'"):
        analyzer.nosuch  # noqa: B018


def test_every_dependency_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {
        line.replace("-", "_").partition(">")[0] for line in project["dependencies"] + extras
    } | {"sklearn"}
    for path in [p for part in ("analyzer", *FOLDERS) for p in sources(part)]:
        for node in nodes(path):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            is_absolute = isinstance(node, ast.ImportFrom) and not node.level
            names += [node.module or ""] if is_absolute else []
            for top in {name.partition(".")[0] for name in names}:
                known = top == "analyzer" or top in sys.stdlib_module_names or top in declared
                assert known, f"{path.relative_to(ROOT)} imports {top}, which is not declared"


def _imported(*folders: str) -> set[str]:
    """The packages at the top that the Python files of some folders import."""
    found = set()
    for path in [p for folder in folders for p in (ROOT / folder).rglob("*.py")]:
        for node in nodes(path):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
                names.append(ast.literal_eval(node.args[0]))
            found |= {name.partition(".")[0] for name in names}
    return found


def test_no_dependency_is_declared_that_nothing_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    spelled = {"scikit_learn": "sklearn"}

    def modules_of(lines: list[str]) -> set[str]:
        names = {re.split(r"[>=\[; ]", line)[0].replace("-", "_").lower() for line in lines}
        return {spelled.get(name, name) for name in names}

    assert modules_of(project["dependencies"]) - _imported("analyzer", *FOLDERS.values()) == set()
    # What developers need is imported by a test, or is a program or plugin that a file names.
    files = ("Makefile", "mkdocs.yml", "pyproject.toml", "tests/test_examples.py")
    told = " ".join((ROOT / name).read_text() for name in files).split("[project.scripts]")
    used = " ".join([told[0].partition("[project]")[0], *told[1:]]).replace("-", "_")
    extras = modules_of([x for lines in project["optional-dependencies"].values() for x in lines])
    left = extras - _imported("tests", "benchmarks", "docs", "examples", "analyzer")
    known = {"mkdocs_material": "theme", "pandas_stubs": "mypy", "ipykernel": "nbclient"}
    known |= {"pytest_cov": "__cov", "pytest_xdist": "__dist"}
    left -= {"accelerate"}  # the Trainer of Transformers refuses to work without it
    assert {name for name in left if known.get(name, name) not in used} == set()


def test_nothing_is_installed_but_files_whose_hashes_are_listed() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in makefile.splitlines():
        if re.search(r"\bpip (install|wheel)|install --", line) and "apt-get" not in line:
            is_checked = "--require-hashes --no-deps" in line or "--no-build-isolation" in line
            assert is_checked or line.startswith("TORCH"), line
    pinned, versions = set(), set()
    for path in ROOT.glob("locked/*.txt"):
        assert f"locked/{path.name}" in makefile
        text = path.read_text()
        entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
        for entry in entries:
            pin, *hashes = re.split(r" \\\n\s+", entry)
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;]+( ; .*)?", pin), pin
            assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes)
            pinned.add(re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower())
            versions.add(pin.replace("+cpu", "").replace(" ;", ";").lower().replace("_", "-"))
    # Hashes there would forbid `pip install -c constraints.txt -e .`, since a folder has none.
    told = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert {line.replace(" ;", ";").replace("_", "-") for line in told} == versions
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [x for some in project["optional-dependencies"].values() for x in some]
    for line in project["dependencies"] + lines + ["setuptools"]:
        assert re.split(r"[>=\[; ]", line)[0].lower() in pinned


def test_the_list_of_materials_has_whatever_the_package_needs() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    from sbom import bill_of_materials

    found = bill_of_materials()
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    names = {one["purl"].partition("@")[0].removeprefix("pkg:pypi/") for one in found["components"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {line.partition(">")[0] for line in project["dependencies"]} <= names
    assert not {"pytest", "ruff", "playwright"} & names  # nobody but developers needs them
    references = [one["bom-ref"] for one in found["components"]]
    assert len(set(references)) == len(references)
    known = {*references, found["metadata"]["component"]["bom-ref"]}
    assert {edge["ref"] for edge in found["dependencies"]} == known
    assert {ref for edge in found["dependencies"] for ref in edge["dependsOn"]} <= known
    assert found == bill_of_materials()


@pytest.mark.parametrize("name", ["analyzer.recording._scan", "analyzer.joins._products"])
def test_what_is_compiled_does_not_say_where(name: str) -> None:
    compiled = importlib.import_module(name).__file__
    assert compiled is not None and compiled.endswith(".so")
    assert str(ROOT).encode() not in Path(compiled).read_bytes()


def test_the_command_is_installed_under_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["analyzer"].partition(":")
    assert importlib.util.find_spec(module) is not None
    assert callable(vars(importlib.import_module(module))[function])


def _imports_by_file() -> dict[str, set[str]]:
    """Return the modules of the project that each module imports, at its top or later."""
    names = {dotted(path): path for part in ("analyzer", *FOLDERS) for path in sources(part)}
    # A compiled module is a name in its package, but imports nothing of ours.
    compiled = {dotted(path) for path in (ROOT / "analyzer").rglob("*.pyi")}

    def module_of(name: str) -> str:
        return name if name in names or name in compiled else name.rpartition(".")[0]

    return {
        module: {module_of(name) for name in project_imports(path)} & (set(names) - {module})
        # The package itself is a table of contents: it loads a name when that is asked for.
        for module, path in names.items()
        if module != "analyzer"
    }


def test_no_files_import_each_other_in_a_circle() -> None:
    left = _imports_by_file()
    # Taking away again and again what imports nothing that is left: a circle remains.
    while free := [module for module, needs in left.items() if not needs & set(left)]:
        for module in free:
            del left[module]
    assert not left


def test_no_module_is_longer_than_400_lines() -> None:
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for part in ("analyzer", *FOLDERS)
        for path in sources(part)
    }
    assert [name for name, count in lines.items() if count > 400] == []
