"""Measure a published experiment part by part into a folder, and read it back.

``DIR/parts/<part>-seed<n>.parquet`` appear one by one, each whole, so that a measurement that was
stopped resumes; ``DIR/measured.parquet`` holds all of them and says how they were made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import analyzer
from analyzer.errors import AnalyzerError
from analyzer.storage.catalog import refuse_links
from analyzer.storage.parts import READ_FAILURES, reason_of, replace_file
from analyzer.storage.sealed import open_file
from analyzer.storage.study import read_json, write_json
from analyzer.studies.published import COLUMNS, SCALES, Experiment

if TYPE_CHECKING:
    from analyzer.networks.data import Dataset

__all__ = ["EXPERIMENTS", "Case", "experiment", "read_measured", "reproduce"]

EXPERIMENTS = {
    "he2015": "of_degradation:HE2015",
    "he2016": "at_initialization:HE2016",
    "veit2016": "of_paths:VEIT2016",
    "balduzzi2017": "of_correlation:BALDUZZI2017",
    "li2018": "of_degradation:LI2018",
    "yang2019": "at_initialization:YANG2019",
    "desmith2020": "at_initialization:DESMITH2020",
    "hanin2018": "of_depth:HANIN2018",
    "xiong2020": "of_depth:XIONG2020",
    "cohen2021": "of_training:COHEN2021",
    "gurari2018": "of_training:GURARI2018",
    "resmlp": "of_depth:RESMLP",
}
"""Name of each experiment: the module in this package and its object."""

_MEASURED = "measured.parquet"
_ABOUT = b"experiment"


@dataclass(frozen=True)
class Case:
    """One part of an experiment for one seed: what a measuring function is given.

    Args:
        settings: Those of the scale.
        data_name: As `analyzer.networks.data.dataset` takes it.
        device: As torch writes it, or ``auto``.
    """

    settings: Mapping[str, Any]
    seed: int
    part: str
    data_name: str = "digits"
    device: str = "auto"

    @cached_property
    def data(self) -> Dataset:
        """The data to train on."""
        from analyzer.networks.data import dataset

        return dataset(self.data_name)


def experiment(name: str) -> Experiment:
    """Return an experiment by name.

    Raises:
        AnalyzerError: If there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise AnalyzerError(
            f"there is no experiment '{name}'; expected one of {', '.join(EXPERIMENTS)}."
        )
    module, _, attribute = EXPERIMENTS[name].partition(":")
    found: Experiment = getattr(import_module(f"analyzer.studies.{module}"), attribute)
    return found


def reproduce(
    name: str,
    out: Path,
    *,
    scale: str = "laptop",
    data: Path | None = None,
    seeds: int | None = None,
    device: str = "auto",
    on_part: Callable[[int, int, str], None] | None = None,
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Measure what is missing of an experiment in a folder; return all of it, and how it was made.

    Args:
        name: One of `EXPERIMENTS`.
        out: The folder, made where it does not exist.
        scale: ``tiny`` | ``laptop`` | ``full``.
        data: The folder of CIFAR-10; scikit-learn's digits without one.
        seeds: How many, in place of the number of the scale.
        device: As torch writes it, or ``auto``.
        on_part: Is told the parts that are done, how many there are, and which comes next.

    Returns:
        A table with `COLUMNS`; and texts: ``experiment``, ``scale``, ``data``, ``command``,
        ``version``, ``torch``, ``seconds`` of processor time.

    Raises:
        AnalyzerError: If there is no such experiment or scale, the scale needs data that were not
            given, or the folder holds another experiment.
    """
    chosen = experiment(name)
    if scale not in SCALES:
        raise AnalyzerError(f"the scale is '{scale}'; expected one of {', '.join(SCALES)}.")
    if chosen.needs_data and scale == "full" and data is None:
        raise AnalyzerError(
            f"the full scale of {name} trains on CIFAR-10, and no folder was given; expected "
            "--data DIR with the folder that holds cifar-10-batches-py."
        )
    settings = dict(chosen.settings[scale])
    count = settings["seeds"] if seeds is None else seeds
    if count < 1:
        raise AnalyzerError(f"seeds is {count}; expected at least 1.")
    about = _about(name, scale, data, seeds)
    _expect_same(out, about)
    (out / "parts").mkdir(parents=True, exist_ok=True)
    write_json(out / "plan.json", about)
    points = [(part, seed) for seed in range(count) for part in chosen.parts(settings)]
    source = "digits" if data is None else f"cifar10:{data}"
    files = []
    for place, (part, seed) in enumerate(points):
        file = out / "parts" / f"{part}-seed{seed}.parquet"
        files.append(file)
        if file.exists():
            continue
        if on_part is not None:
            on_part(place, len(points), f"{part} seed {seed}")
        case = Case(settings, seed, part, source, device)
        started = time.process_time()
        found = [(part, seed, *row) for row in chosen.measure(case)]
        seconds = time.process_time() - started
        _write(file, pd.DataFrame(found, columns=list(COLUMNS)), {"seconds": str(seconds)})
    tables, notes = zip(*map(_read, files), strict=True)
    whole = pd.concat(tables, ignore_index=True)
    about |= _versions() | {"seconds": f"{sum(float(note['seconds']) for note in notes):.1f}"}
    _write(out / _MEASURED, whole, about)
    return whole, about


def read_measured(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return a table of measured numbers and how it was made, from its file or its folder."""
    return _read(path / _MEASURED if path.is_dir() else path)


def _about(name: str, scale: str, data: Path | None, seeds: int | None) -> dict[str, str]:
    """What tells one measurement from another, and the command that repeats it."""
    options = f" --scale {scale}" + (f" --seeds {seeds}" if seeds is not None else "")
    options += "" if data is None else " --data DIR"
    return {
        "experiment": name,
        "scale": scale,
        "data": "digits" if data is None else "cifar10",
        "command": f"analyzer reproduce {name}{options}",
    }


def _versions() -> dict[str, str]:
    import torch

    return {"version": analyzer.__version__, "torch": torch.__version__}


def _expect_same(out: Path, about: Mapping[str, str]) -> None:
    """Refuse a folder with parts of another measurement."""
    if out.is_dir():
        refuse_links(out, what="measurement")
    plan = out / "plan.json"
    if not plan.exists():
        if out.exists() and any(out.iterdir()):
            raise AnalyzerError(
                f"'{out}' is not empty and holds no plan.json; expected a new folder, or one of "
                "this experiment. Name another one with --out."
            )
        return
    before = read_json(plan)
    if not before:
        raise AnalyzerError(
            f"'{plan}' cannot be read; expected what this experiment is. Name another folder with "
            "--out."
        )
    for key in ("experiment", "scale", "data"):
        if before.get(key) != about[key]:
            raise AnalyzerError(
                f"'{out}' holds another measurement ({plan.name} differs in {key}); expected "
                f"{about['experiment']} at the scale {about['scale']} on {about['data']}. Name "
                "another folder with --out."
            )


def _write(path: Path, table: pd.DataFrame, about: Mapping[str, str]) -> None:
    """Write a table, whole or not at all."""
    arrow = pa.Table.from_pandas(table.astype(COLUMNS), preserve_index=False)
    arrow = arrow.replace_schema_metadata({_ABOUT: json.dumps(dict(about)).encode()})
    replace_file(path, lambda hidden: pq.write_table(arrow, hidden, compression="zstd"))


def _read(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read a table: the folder may be anybody's, and its files be anything."""
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with open_file(path) as file:
            about = dict(json.loads((file.schema_arrow.metadata or {})[_ABOUT]))
            float(about["seconds"])
            table = file.read(list(COLUMNS)).to_pandas().astype(COLUMNS)
    except (*READ_FAILURES, TypeError, RecursionError) as error:
        raise AnalyzerError(
            f"'{path}' cannot be read ({reason_of(error)}); expected numbers that 'analyzer "
            "reproduce' measured. Remove it to measure them again."
        ) from error
    return table, about
