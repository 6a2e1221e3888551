"""Run folders as an attacker would send them: each attack by its name, with what it tries."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.storage.sealed import seal
from tests.support.runs import layer_row, write_run

__all__ = ["ATTACKS", "MARKUP", "many_rows", "write_attack"]

MARKUP = '<img src=x onerror="window.hacked=1">'
_PART = "000000000000-000000000003.r0.a0.p0-0.parquet"
_Attack = Callable[[Path], object]
ATTACKS: dict[str, _Attack] = {}
"""What makes a hostile folder of that of a good run of 4 steps and 3 layers, by name."""


def write_attack(folder: Path, name: str) -> Path:
    """Write the folder of an attack into a folder of runs, and return it."""
    run = write_run(folder / name, [1.0, 0.5, 0.3, 0.2], [[1.0, 2.0, 3.0]] * 4)
    return Path(ATTACKS[name](run) or run)


def _attack(function: _Attack) -> _Attack:
    ATTACKS[function.__name__] = function
    return function


def _say(run: Path, **fields: Any) -> None:
    found = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(found | fields))


def _write(path: Path, **columns: Any) -> None:
    """Replace columns of a table; a function gets how many rows there are, None takes it away."""
    rows = pq.read_table(path).replace_schema_metadata(None)
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        if place >= 0:
            rows = rows.remove_column(place)
        if values is not None:
            cells = values(rows.num_rows) if callable(values) else values
            rows = rows.add_column(max(place, 0), name, cells)
    pq.write_table(rows, path)


def _probe(run: Path, name: str, table: Any, notes: Any = None) -> None:
    path = run / "probes" / name
    path.mkdir(parents=True)
    rows = pa.table(table).replace_schema_metadata(notes)
    pq.write_table(rows, path / "step-000000000003.parquet")


def many_rows(path: Path, rows: int) -> None:
    """Write a small file of equal rows of ``layer_stats``."""
    schema, size = pq.read_schema(path), 2_000_000
    columns = [
        pa.Array.from_buffers(
            f.type, size, [None, pa.py_buffer(bytes(size * f.type.bit_width // 8))]
        )
        for f in schema
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(rows // size):
            writer.write_table(table, row_group_size=size)


# --- names ------------------------------------------------------------------------------------


@_attack
def folder_not_utf8(run: Path) -> Path:
    return run.rename(os.fsdecode(os.fsencode(run) + b"\xff\xfe"))


@_attack
def folder_escapes(run: Path) -> Path:
    return run.rename(run.with_name("a\x1b]0;owned\x07\x1b[31mb"))


@_attack
def folder_lines(run: Path) -> Path:
    return run.rename(run.with_name("a\nanalyzer: all is well\u202egpj.b"))


@_attack
def folder_markup(run: Path) -> Path:
    return run.rename(run.with_name(MARKUP.replace("/", "")))


@_attack
def names_markup(run: Path) -> None:
    names = [MARKUP, "</script><script>window.hacked=1</script>", "javascript:window.hacked=1"]
    _write(run / "layers.parquet", name=pa.array(names))


@_attack
def names_remote(run: Path) -> None:
    names = ["<a href='https://evil.example'>x</a>", "![x](https://evil.example/x.png)", "$$x$$"]
    _write(run / "layers.parquet", name=pa.array(names))


@_attack
def names_formula(run: Path) -> None:
    _write(run / "layers.parquet", name=pa.array(["=1+1", "@x\r=cmd|' /C calc'!A0", "a;=2"]))


@_attack
def names_latex(run: Path) -> None:
    names = [r"\input{/etc/passwd}", "[1000pt]", r"\immediate\write18{touch owned}"]
    _write(run / "layers.parquet", name=pa.array(names))


@_attack
def names_template(run: Path) -> None:
    names = ["{{7*7}}", "{% include '/etc/passwd' %}", "%{customdata}"]
    _write(run / "layers.parquet", name=pa.array(names))


@_attack
def names_not_utf8(run: Path) -> None:
    offsets = pa.py_buffer(np.array([0, 2, 4, 6], np.int32))
    buffers = [None, offsets, pa.py_buffer(b"\xff\xfe\xff\xfd\xc3\x28")]
    _write(run / "layers.parquet", name=pa.Array.from_buffers(pa.string(), 3, buffers))


@_attack
def names_null(run: Path) -> None:
    _write(run / "layers.parquet", name=pa.array([None, "a", None]))


@_attack
def names_long(run: Path) -> None:
    _write(run / "layers.parquet", name=pa.array(["x" * 60_000, "y" * 60_000, ""]))


# --- run.json ---------------------------------------------------------------------------------


@_attack
def manifest_types(run: Path) -> None:
    """Every field has a value of a type that it never has."""
    from analyzer.storage.run_json import FIELDS

    kept = ("schema_version",)
    _say(run, **{name: [{"a": 1}, None, [5]] for name in FIELDS if name not in kept}, ranks=5)


@_attack
def manifest_numbers(run: Path) -> None:
    huge = 10**400
    _say(run, seconds="abc", recorder_seconds=huge, last_loss=huge, steps=-5, num_layers=huge)


@_attack
def manifest_escapes(run: Path) -> None:
    text = "\x1b]52;c;cm0gLXJmIH4=\x07\x9b31m\u202e"
    _say(
        run,
        status="failed",
        error=text,
        device=text,
        not_recorded=[text],
        storage_error=text,
        damaged=[text],
        lost_steps=3,
        versions={"torch": text, text: "1"},
        argv=[text],
        data=text,
    )


@_attack
def manifest_surrogates(run: Path) -> None:
    _say(run, status="failed", error="\ud800", device="\udfff", argv=["\ud800"], data="\ud801")


@_attack
def manifest_markup(run: Path) -> None:
    fields = dict.fromkeys(("error", "device", "data", "platform", "dtype"), MARKUP)
    _say(run, **fields, argv=[MARKUP], versions={MARKUP: MARKUP}, not_recorded=[MARKUP])


@_attack
def manifest_paths(run: Path) -> None:
    paths = ["/etc/passwd", "../../secret", "file:///etc/passwd", "\\\\evil.example\\share"]
    _say(run, argv=paths, data=paths[0], name=paths[1], target=paths[2], template=paths[3])


@_attack
def manifest_program(run: Path) -> None:
    (run / "evil.py").write_text("open('/tmp/analyzer-owned', 'w')\n")
    (run / "sitecustomize.py").write_text("open('/tmp/analyzer-owned', 'w')\n")
    _say(run, kind="script", argv=[str(run / "evil.py")])


@_attack
def manifest_nested(run: Path) -> None:
    text = (run / "run.json").read_text().rstrip()[:-1]
    (run / "run.json").write_text(f'{text}, "git": {"[" * 900}{"]" * 900}}}')


@_attack
def manifest_deep(run: Path) -> None:
    text = (run / "run.json").read_text().rstrip()[:-1]
    (run / "run.json").write_text(f'{text}, "git": {"[" * 100_000}{"]" * 100_000}}}')


@_attack
def manifest_lists(run: Path) -> None:
    """7 MB that would take 150 MB as lists."""
    text = (run / "run.json").read_text().rstrip()[:-1]
    (run / "run.json").write_text(f'{text}, "damaged": [{"[]," * 2_300_000}[]]}}')


@_attack
def manifest_other_encoding(run: Path) -> None:
    (run / "run.json").write_bytes((run / "run.json").read_text().encode("utf-16"))


@_attack
def manifest_folder(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").mkdir()


@_attack
def manifest_pipe(run: Path) -> None:
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")


# --- tables -----------------------------------------------------------------------------------


@_attack
def table_pipe(run: Path) -> None:
    for path in (run / "layers.parquet", run / "steps" / _PART):
        path.unlink()
        os.mkfifo(path)


@_attack
def table_folder(run: Path) -> None:
    (run / "layers.parquet").unlink()
    (run / "layers.parquet").mkdir()
    shutil.rmtree(run / "steps")
    (run / "steps").write_text("x")


@_attack
def table_links(run: Path) -> None:
    (run / "joins.parquet").unlink()
    (run / "joins.parquet").symlink_to("/etc/passwd")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-000000000003.safetensors").symlink_to("/etc/passwd")


@_attack
def table_ids(run: Path) -> None:
    _write(run / "layers.parquet", layer=pa.array([-5, 0, 2**31 - 1], pa.int32()))


@_attack
def table_twice(run: Path) -> None:
    _write(run / "layers.parquet", layer=pa.array([0, 0, 0], pa.int32()))


@_attack
def table_nulls(run: Path) -> None:
    nulls = {"depth": pa.nulls(3, pa.int32()), "kind": pa.nulls(3, pa.string())}
    _write(run / "layers.parquet", **nulls)


@_attack
def table_structs(run: Path) -> None:
    _write(run / "layers.parquet", kind=pa.array([{"a": 1}] * 3), output_shape=pa.array(["a"] * 3))


@_attack
def table_dangling(run: Path) -> None:
    _write(run / "layers.parquet", join=pa.array([7, 9, -1], pa.int32()))


@_attack
def steps_null(run: Path) -> None:
    _write(run / "layer_stats" / _PART, step=lambda n: pa.nulls(n, pa.int64()))


@_attack
def steps_text(run: Path) -> None:
    _write(run / "layer_stats" / _PART, step=lambda n: pa.array(["x"] * n))


@_attack
def steps_far(run: Path) -> None:
    _write(run / "layer_stats" / _PART, step=lambda n: pa.array([2**62] * n))


@_attack
def steps_span(run: Path) -> None:
    """A part whose name says that it holds 10^18 steps."""
    for table in ("steps", "layer_stats"):
        path = run / table / _PART
        _write(path)
        path.rename(path.with_name("000000000000-999999999999999999.r0.a0.p0-0.parquet"))


@_attack
def rows_twice(run: Path) -> None:
    _write(run / "layer_stats" / _PART, layer=lambda n: pa.array([0] * n, pa.int32()))


@_attack
def rows_without_layer(run: Path) -> None:
    _write(run / "layer_stats" / _PART, layer=None)


@_attack
def rows_types(run: Path) -> None:
    texts = {name: lambda n: pa.array(["x"] * n) for name in ("loss", "seconds", "skipped")}
    _write(run / "steps" / _PART, **texts)


@_attack
def rows_extremes(run: Path) -> None:
    numbers = [float("inf"), -1e308, float("nan"), 5e-324]
    times = pa.array([2**62, -(2**62), 0, 1], pa.timestamp("us", "UTC"))
    _write(run / "steps" / _PART, seconds=pa.array(numbers), loss=pa.array(numbers), time=times)


@_attack
def columns_logged(run: Path) -> None:
    """Names and types that no training logs."""
    cells = {
        "=cmd|' /C calc'!A0": [1.0] * 4,
        MARKUP: [2.0] * 4,
        "a\x1b[2J": ["\x1b[31m"] * 4,
        "struct": [{"a": 1}] * 4,
        "bytes": [b"\xff"] * 4,
    }
    _write(run / "steps" / _PART, **{name: pa.array(values) for name, values in cells.items()})


@_attack
def columns_twice(run: Path) -> None:
    rows = pq.read_table(run / "steps" / _PART).replace_schema_metadata(None)
    pq.write_table(rows.append_column("loss", rows["loss"]), run / "steps" / _PART)


@_attack
def columns_deep(run: Path) -> None:
    cell: Any = 1
    for _ in range(60):
        cell = [cell]
    _write(run / "steps" / _PART, deep=lambda n: pa.array([cell] * n))


@_attack
def columns_pickled(run: Path) -> None:
    """An extension type whose description is a pickle, as old readers would load it."""
    path = run / "steps" / _PART
    rows = pq.read_table(path).replace_schema_metadata(None)
    pickle = b"cos\nsystem\n(S'touch /tmp/analyzer-owned'\ntR."
    notes = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    field = pa.field("e", pa.binary(), metadata={**notes, b"ARROW:extension:metadata": pickle})
    rows = rows.append_column(field, pa.array([b"x"] * rows.num_rows))
    pq.write_table(rows.replace_schema_metadata({b"pandas": b'{"index_columns": 5}'}), path)


@_attack
def place_escapes(run: Path) -> None:
    path = run / "layer_stats" / _PART
    rows = pq.read_table(path).replace_schema_metadata({b"place": b"\x1b[31m\xff\xfe"})
    pq.write_table(rows, path)
    seal(path)


@_attack
def checkpoint_pickled(run: Path) -> None:
    (run / "checkpoints").mkdir()
    pickle = b"cos\nsystem\n(S'touch /tmp/analyzer-owned'\ntR."
    for name in ("step-000000000003.safetensors", "step-000000000003.pt"):
        (run / "checkpoints" / name).write_bytes(pickle)


# --- the network ------------------------------------------------------------------------------


@_attack
def names_deep(run: Path) -> None:
    """Modules within modules, 30,000 deep."""
    names = [".".join(f"a{k}" for k in range(12_000)), "b" + ".b" * 30_000, "c"]
    columns = {"name": pa.array(names), "module": pa.array(names)}
    _write(run / "layers.parquet", **columns)


@_attack
def names_of_ours(run: Path) -> None:
    """Names that parts of the page of a network have, dots alone, and one name twice."""
    names = ["input", "+0", "input"]
    _write(
        run / "layers.parquet", name=pa.array(names), module=pa.array(["..", "[+0 … input]", ""])
    )
    _write_edges(run, [-1, 0, 1], [0, 1, 2])


@_attack
def edges_cyclic(run: Path) -> None:
    """Edges in circles, to themselves, from and to layers that are not there."""
    _write_edges(run, [0, 1, 2, 2, -1, 7, 2**31 - 1, -9], [1, 2, 0, 2, -1, 0, 1, 2])
    rows = [
        {"join": 7, "name": "a", "operation": "add", "shortcut": "identity"}
        | {"branch_parameters": 20, "shortcut_parameters": 20}
        | {
            "branch_layers": [f"layers.{k}", f"layers.{k}", "nosuch"],
            "shortcut_layers": ["layers.2"],
            "branch_parameters": 1,
            "shortcut_parameters": 0,
        }
        for k in range(3)
    ]
    schema = pq.read_schema(run / "joins.parquet").remove_metadata()
    pq.write_table(pa.Table.from_pylist(rows, schema), run / "joins.parquet")


@_attack
def edges_types(run: Path) -> None:
    pq.write_table(pa.table({"source": ["<b>"], "target": [[1]]}), run / "edges.parquet")


@_attack
def edges_many(run: Path) -> None:
    """Every layer reads every other one, and each pair is a join."""
    count = 220
    layers = [layer_row(k, f"layers.{k}") for k in range(count)]
    join = {"name": "a", "operation": "add", "shortcut": "identity"}
    join |= {"branch_parameters": 20, "shortcut_parameters": 20}
    joins = [
        {"join": k, **join, "branch_layers": [f"layers.{k % count}"], "shortcut_layers": []}
        | {"shortcut_layers": [f"layers.{(7 * k + 1) % count}"]}
        for k in range(20_000)
    ]
    shutil.rmtree(run)
    write_run(run, [1.0], [[1.0] * count], layers=layers, joins=joins)
    ends = [(source, target) for target in range(count) for source in range(count)]
    _write_edges(run, *zip(*ends, strict=True))


def _write_edges(run: Path, sources: Any, targets: Any) -> None:
    ends = {"source": pa.array(sources, pa.int32()), "target": pa.array(targets, pa.int32())}
    pq.write_table(pa.table(ends), run / "edges.parquet")


# --- probes, ranks, how many ------------------------------------------------------------------


@_attack
def probe_names(run: Path) -> None:
    for name in ("a\x1b[31m\nb", "..x", "=cmd", MARKUP.replace("/", "")):
        _probe(run, name, {"x": [1.0]})


@_attack
def probe_foreign(run: Path) -> None:
    for name in ("paths", "lesion", "jacobian", "shattering", "noise", "curvature", "attribution"):
        _probe(run, name, {"zzz": ["a", "b"]})


@_attack
def probe_types(run: Path) -> None:
    """Each probe with text where it has numbers, and notes that are not UTF-8."""
    from analyzer.storage.schema import PROBES

    for name, schema in PROBES.items():
        notes = {b"a\xff": b"\xff", b"directions": b"[[", b"mode": b"\x1b[31m"}
        _probe(run, name, {column: ["<b>"] for column in schema.names}, notes)


@_attack
def landscape_sparse(run: Path) -> None:
    """Points each of which has an axis of its own: a grid of 10^10 cells."""
    count = 100_000
    axis = np.arange(count, dtype=float)
    columns = {"alpha": axis, "beta": axis[::-1], "loss": axis, "evaluated": [True] * count}
    _probe(run, "landscape", columns)


@_attack
def landscape_extremes(run: Path) -> None:
    inf, nan = float("inf"), float("nan")
    alpha, beta, loss = [0.0, 1e308, -1e308, nan], [0.0, inf, 1.0, 2.0], [1.0, nan, inf, -1.0]
    columns = {"alpha": alpha, "beta": beta, "loss": loss, "evaluated": [True, False, None, True]}
    _probe(run, "landscape", columns)


@_attack
def ranks_hostile(run: Path) -> None:
    (run / "ranks").mkdir()
    fields = {"rank": "x", "attempt": [], "status": 5, "elements": {"a": "b"}, "error": {"a": 1}}
    for rank in range(2):
        (run / "ranks" / f"a0.r{rank}.json").write_text(json.dumps(fields | {"flushes": [1]}))
    (run / "ranks" / "a0.r1.layers.parquet").write_bytes(b"PAR1xxxxPAR1")
    shutil.copy(run / "layers.parquet", run / "ranks" / "a0.r2.layers.parquet")


@_attack
def files_many(run: Path) -> None:
    for k in range(20_001):
        (run / "steps" / f"{k:012d}-{k:012d}.r0.a1.p{k}-{k}.parquet").touch()


@_attack
def rows_many(run: Path) -> None:
    """A file of less than 2 MB whose rows take 2 GB."""
    many_rows(run / "layer_stats" / _PART, 20_000_000)


@_attack
def text_much(run: Path) -> None:
    """10 kB that hold names of 100 MB."""
    rows = pq.read_table(run / "layers.parquet").replace_schema_metadata(None)
    place = rows.schema.get_field_index("name")
    rows = rows.set_column(place, "name", pa.array(["x" * 10**8] * 3))
    pq.write_table(rows, run / "layers.parquet", compression="zstd")


@_attack
def layers_many(run: Path) -> None:
    """A thousand layers, each with markup for a name."""
    names = [f"{MARKUP}{k}" for k in range(1000)]
    rows = [layer_row(k, name) for k, name in enumerate(names)]
    shutil.rmtree(run)
    write_run(run, [1.0], [[1.0] * 1000], layers=rows)


# --- what the owner says, what the training was given and logged --------------------------------


def _notes(run: Path, tags: Any, text: Any) -> None:
    (run / "notes.json").write_text(json.dumps({"tags": tags, "text": text}))


@_attack
def notes_markup(run: Path) -> None:
    _notes(
        run, [MARKUP, "javascript:hacked=1"], f"</script><script>window.hacked=1</script>{MARKUP}"
    )


@_attack
def notes_formula(run: Path) -> None:
    _notes(run, ["=1+1", "@SUM(A1)", "a;=2"], "=cmd|' /C calc'!A0\r=2")


@_attack
def notes_escapes(run: Path) -> None:
    """Control characters, halves of surrogates and directions of text."""
    _notes(
        run, ["\x1b[2J", "\ud800", "\u202egpj", "a\0b"], "\x1b]52;c;cm0gLXJmIH4=\x07\udfff\r\x9b31m"
    )


@_attack
def notes_long(run: Path) -> None:
    """A megabyte, of which a part could be shown."""
    _notes(run, ["x" * 40] * 20, "y" * 10**6)


@_attack
def notes_types(run: Path) -> None:
    _notes(run, {"a": [None]}, [[[MARKUP]]])


@_attack
def notes_link(run: Path) -> None:
    (run / "notes.json").symlink_to("/etc/passwd")


@_attack
def notes_pipe(run: Path) -> None:
    os.mkfifo(run / "notes.json")


@_attack
def arguments_hostile(run: Path) -> None:
    """Arguments and logged numbers whose names are columns of the list and groups of runs."""
    words = [
        f"--x{MARKUP}=1",
        "--a==cmd|' /C calc'!A0",
        "--lr=\x1b[31m",
        "--x\ud800",
        "--x\x1b[2J=1",
        "constructor=1",
    ]
    numbers = {MARKUP: 1.0, "=1+1": 1e308, "\x1b[2J": -0.0, "": 2.0, "constructor": 3.0}
    _say(run, argv=["train.py", *words], last_logged=numbers | {"\ud800": 1.0}, point={"a": MARKUP})


@_attack
def logged_many(run: Path) -> None:
    """3,000 logged numbers, each a line of a figure."""
    path = run / "steps" / _PART
    rows = pq.read_table(path).replace_schema_metadata(None)
    for k in range(3_000):
        rows = rows.append_column(f"{MARKUP}{k}", pa.array([float(k)] * rows.num_rows))
    pq.write_table(rows, path)


@_attack
def twin_escapes(run: Path) -> None:
    """A twin beside the run whose name is an escape sequence."""
    twin = run.with_name("\x1b]0;owned\x07")
    _say(run, twin=twin.name)
    shutil.copytree(run, twin)
    (twin / "run.json").write_text("{}")


# --- overviews, what probes noted ---------------------------------------------------------------


def _overview(run: Path, table: str, name: str, **columns: Any) -> None:
    path = run / "overview" / table / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@_attack
def overview_types(run: Path) -> None:
    """Bins whose numbers are text, lists or not there."""
    texts = pa.array(["<b>"] * 3)
    _overview(run, "layer_stats", "000000000000-000000000004.w1.parquet", start=texts, layer=texts)
    lists = {f"loss_{name}": pa.array([[1.0]] * 3) for name in ("min", "mean", "num_nonfinite")}
    starts = {"start": pa.array([0, 1, None]), "num_rows": pa.array([1.5, -1.0, None])}
    _overview(run, "steps", "000000000000-000000000003.w1.parquet", **starts, **lists)


@_attack
def overview_extremes(run: Path) -> None:
    """Bins of 10^17 steps, beyond the run, of no rows and of layers that are not there."""
    numbers = ("min", "mean", "max", "num_finite", "num_nonfinite")
    names = [f"{q}_{n}" for q in ("output_gradient_norm", "activation_norm") for n in numbers]
    far = pa.array([10**17, -5, 2**62, 0], pa.int64())
    columns = {"start": far, "layer": pa.array([2**31 - 1, -7, 0, 0], pa.int32())}
    columns |= {"num_rows": pa.array([0, 2**62, -1, 1], pa.int64())}
    columns |= {name: pa.array([float("inf"), -1e308, float("nan"), 5e-324]) for name in names}
    place = "000000000000-099999999999999999.w99999999999999999.parquet"
    _overview(run, "layer_stats", place, **columns)


def _noted(run: Path, **said: str) -> None:
    """Each probe with numbers of its types, and with what it is said to have noted."""
    from analyzer.storage.schema import PROBES

    cells: dict[Any, Any] = {pa.string(): "layers.0", pa.bool_(): True}
    notes = {key.encode(): text.encode() for key, text in said.items()}
    for name, schema in PROBES.items():
        columns = {
            f.name: pa.array([cells.get(f.type, k) for k in range(3)], f.type) for f in schema
        }
        _probe(run, name, columns, notes)


# What readers look for among the notes of a probe.
_NOTED = (
    *("trajectory", "trajectory_residuals", "variance_explained", "references", "accuracy"),
    *("condition_numbers", "by_method", "num_samples", "interval", "normalization", "directions"),
    *("mode", "loss", "seed", "target", "steps", "stream"),
)


@_attack
def noted_deep(run: Path) -> None:
    """100,000 levels of JSON where a probe noted numbers."""
    _noted(run, **dict.fromkeys(_NOTED, "[" * 100_000))


@_attack
def noted_types(run: Path) -> None:
    """Text, objects and numbers of 400 digits where a probe noted numbers."""
    values = (f'{{"layers.0": "{MARKUP.replace(chr(34), "")}"}}', '[[1, "x"], 2]', "1" + "0" * 400)
    _noted(run, **{name: values[k % 3] for k, name in enumerate(_NOTED)})


@_attack
def noted_lists(run: Path) -> None:
    """Lists and words in each place, none of them of the right shape."""
    _noted(run, **dict.fromkeys(_NOTED, '[["nan", 1e999, null], ["\\ud800"]]'))


@_attack
def trajectory_long(run: Path) -> None:
    """A path of 300,000 checkpoints."""
    points = ",".join(f"[{k},{k % 7},0.5]" for k in range(300_000))
    _noted(run, trajectory=f"[[-1e300,1e300,5e-324],{points}]", variance_explained="[1e308,1e308]")


@_attack
def edges_chain(run: Path) -> None:
    """3,000 layers one after the other, each inside of modules of its own."""
    count = 3_000
    layers = [layer_row(k, f"a{k % 100}.b{k}.c") for k in range(count)]
    shutil.rmtree(run)
    write_run(run, [1.0], [[1.0] * count], layers=layers)
    _write_edges(run, range(-1, count - 1), range(count))
