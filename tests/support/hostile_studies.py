"""Folders of studies as an attacker would send them: each attack by its name."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analyzer.analysis.study import summary_table
from analyzer.storage.parts import write_table
from analyzer.storage.study import PLAN, SUMMARY, open_study, write_json
from analyzer.studies.plan import product
from tests.support.hostile import ATTACKS, MARKUP
from tests.support.runs import write_run

__all__ = ["STUDIES", "write_study"]

_Attack = Callable[[Path, Path], object]
STUDIES: dict[str, _Attack] = {}
"""What makes one of a good study of three points, and of a folder outside of it, by name."""


def write_study(folder: Path, outside: Path, name: str | None = None) -> Path:
    """Write a study of four points that have ended, and make the attack of that name of it."""
    plan = product("zoo:mlp", depth=[4, 6], shortcuts=["on", "off"], seed=[0])
    write_json(folder / PLAN, plan.as_json())
    for point in plan.points:
        write_run(folder / "runs" / point.name, [1.0, 0.5, 0.3, 0.2], [[1.0, 2.0, 3.0]] * 4)
        said = {"status": "finished", "exit_code": 0, "error": None, "deaths": 0}
        write_json(folder / "points" / f"{point.name}.json", said | {"seconds": 1.0, "bytes": 9})
    (folder / "logs").mkdir()
    write_table(folder / SUMMARY, summary_table(open_study(folder)))
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    mine = outside / plan.points[3].name
    mine.mkdir()
    (mine / "kept.txt").write_text("kept")
    if name is not None:
        STUDIES[name](folder, outside)
    return folder


def _attack(function: _Attack) -> _Attack:
    STUDIES[function.__name__] = function
    return function


def _plan(folder: Path, **fields: Any) -> None:
    found = json.loads((folder / PLAN).read_text())
    (folder / PLAN).write_text(json.dumps(found | fields))


def _waiting(folder: Path) -> None:
    """Make the last point one that was not run."""
    (folder / "points" / "depth6-off-seed0.json").unlink()
    shutil.rmtree(folder / "runs" / "depth6-off-seed0")


def _record(folder: Path, **fields: Any) -> None:
    """Change what the plan says of the recording of a point that was not run."""
    _waiting(folder)
    found = json.loads((folder / PLAN).read_text())
    found["points"][3]["record"] |= fields
    (folder / PLAN).write_text(json.dumps(found))


def _linked(name: str) -> _Attack:
    def link(folder: Path, outside: Path) -> None:
        _waiting(folder)
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(outside if "." not in name else outside / "mine.txt")

    return link


STUDIES["link_runs"] = _linked("runs")
STUDIES["link_of_a_run"] = _linked("runs/depth6-off-seed0")
STUDIES["link_of_a_finished_run"] = _linked("runs/depth4-on-seed0")
STUDIES["link_points"] = _linked("points")
STUDIES["link_logs"] = _linked("logs")
STUDIES["link_of_a_log"] = _linked("logs/depth6-off-seed0.txt")
STUDIES["link_failed"] = _linked("failed")
STUDIES["link_of_a_temporary_file"] = _linked(".1-0.tmp")


@_attack
def link_lock(folder: Path, outside: Path) -> None:
    _waiting(folder)
    (folder / "lock").symlink_to(outside / "mine.txt")


@_attack
def link_summary(folder: Path, outside: Path) -> None:
    (folder / SUMMARY).rename(outside / SUMMARY)
    (folder / SUMMARY).symlink_to(outside / SUMMARY)


@_attack
def lock_pipe(folder: Path, outside: Path) -> None:
    _waiting(folder)
    os.mkfifo(folder / "lock")


@_attack
def summary_pipe(folder: Path, outside: Path) -> None:
    (folder / SUMMARY).unlink()
    os.mkfifo(folder / SUMMARY)


@_attack
def program(folder: Path, outside: Path) -> None:
    (folder / "evil.py").write_text("open('/tmp/analyzer-owned', 'w')\n")
    _record(folder, target=str(folder / "evil.py"))
    _plan(folder, is_script=True, target=str(folder / "evil.py"))


@_attack
def program_among_networks(folder: Path, outside: Path) -> None:
    (folder / "evil.py").write_text("open('/tmp/analyzer-owned', 'w')\n")
    _record(folder, target=str(folder / "evil.py"))


@_attack
def module(folder: Path, outside: Path) -> None:
    _record(folder, target="zoo:mlp6", as_module=True)


@_attack
def continues_another_run(folder: Path, outside: Path) -> None:
    _record(folder, resume=str(outside))


@_attack
def starts_twins(folder: Path, outside: Path) -> None:
    _record(folder, twin=True, skip_scale=None)


@_attack
def starts_processes(folder: Path, outside: Path) -> None:
    _record(folder, nproc_per_node=10_000)


@_attack
def network_of_terabytes(folder: Path, outside: Path) -> None:
    _record(folder, target="zoo:mlp9999-w9999")


@_attack
def data_of_terabytes(folder: Path, outside: Path) -> None:
    _record(folder, data="synthetic:9999x9999x9999")


@_attack
def plan_numbers(folder: Path, outside: Path) -> None:
    text = (folder / PLAN).read_text()
    (folder / PLAN).write_text(text.replace('"depth": 6', f'"depth": {10**400}'))


@_attack
def plan_surrogates(folder: Path, outside: Path) -> None:
    (folder / PLAN).write_text((folder / PLAN).read_text().replace('"on"', '"\\ud800"'))


@_attack
def plan_markup(folder: Path, outside: Path) -> None:
    text = (folder / PLAN).read_text()
    (folder / PLAN).write_text(text.replace('"shortcuts"', json.dumps(MARKUP + "\x1b[31m")))


@_attack
def plan_texts(folder: Path, outside: Path) -> None:
    text = (folder / PLAN).read_text()
    for depth in (4, 6):
        text = text.replace(f'"depth": {depth}', f'"depth": "\\u001b[3{depth}m<b>"')
    (folder / PLAN).write_text(text.replace("        4,", '        "<b>",'))


@_attack
def plan_without_points(folder: Path, outside: Path) -> None:
    _plan(folder, points=[])


@_attack
def plan_nested(folder: Path, outside: Path) -> None:
    (folder / PLAN).write_text("[" * 100_000)


@_attack
def plan_pipe(folder: Path, outside: Path) -> None:
    (folder / PLAN).unlink()
    os.mkfifo(folder / PLAN)


@_attack
def endings_of_other_types(folder: Path, outside: Path) -> None:
    said = {"status": "finished", "seconds": [5], "bytes": "x", "error": {"a": 1}}
    for file in (folder / "points").iterdir():
        file.write_text(json.dumps(said | {"deaths": 10**400, "exit_code": None}))


@_attack
def endings_with_escapes(folder: Path, outside: Path) -> None:
    said = {"status": "failed", "error": f"\x1b[31m\ud800{MARKUP}" * 500}
    for file in (folder / "points").iterdir():
        file.write_text(json.dumps(said))


@_attack
def summary_of_other_types(folder: Path, outside: Path) -> None:
    rows = pq.read_table(folder / SUMMARY)
    cells = {name: [f"<b>{name}"] * rows.num_rows for name in rows.column_names}
    cells |= {"status": ["finished"] * rows.num_rows, "depth": [[1]] * rows.num_rows}
    cells |= {"final_loss": [{"a": 1}] * rows.num_rows, "point": rows["point"].to_pylist()}
    cells["claim_<b>"] = cells["plain_<b>"] = cells["residual_<b>"] = ["holds"] * rows.num_rows
    pq.write_table(pa.table(cells), folder / SUMMARY)


@_attack
def summary_without_columns(folder: Path, outside: Path) -> None:
    pq.write_table(pa.table({"x": [1.0]}), folder / SUMMARY)


@_attack
def summary_with_markup(folder: Path, outside: Path) -> None:
    rows = pq.read_table(folder / SUMMARY)
    link = '<a href="https://evil.example">holds</a>'
    cells = {name: rows[name] for name in rows.column_names}
    cells |= {"claim_training_loss": [link] * rows.num_rows, "point": [MARKUP] * rows.num_rows}
    cells |= {"seeds_training_loss": [link] * rows.num_rows, "final_loss": [1e308, 0, -1, 5e-324]}
    pq.write_table(pa.table(cells), folder / SUMMARY)


@_attack
def runs_are_hostile(folder: Path, outside: Path) -> None:
    ATTACKS["names_markup"](folder / "runs" / "depth4-on-seed0")
    ATTACKS["manifest_types"](folder / "runs" / "depth4-off-seed0")
    ATTACKS["steps_far"](folder / "runs" / "depth6-on-seed0")
